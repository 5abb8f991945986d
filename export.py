"""Export a trained network: `python export.py --checkpoint FILE --output gestures/`.

The folder, or zip, needs nothing of this project: the network as ONNX, a program for videos and
cameras, a page that runs it in a browser, and a model card.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from exporting.package import export
from system.errors import end_program, exit_status


def main(arguments=None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkpoint", "-c", required=True, metavar="FILE", help="the network to export"
    )
    parser.add_argument(
        "--output",
        "-o",
        type=Path,
        required=True,
        metavar="FOLDER|FILE.zip",
        help="a new folder or zip file to write",
    )
    parser.add_argument(
        "--runtime",
        type=Path,
        metavar="FOLDER",
        help="the unpacked npm package onnxruntime-web, which is copied beside the page; by "
        "default, the page fetches it from a public CDN",
    )
    options = parser.parse_args(arguments)

    def run():
        with tqdm(total=100, leave=False, disable=None) as bar:

            def show(fraction, text):
                bar.set_description(text, refresh=False)
                bar.update(100 * fraction - bar.n)

            agreement = export(options.checkpoint, options.output, options.runtime, show)
        print(f"{options.output}: {agreement.sentence()}")

    return exit_status(run)


if __name__ == "__main__":
    end_program(main())

"""Shows what a network has learnt: `python explain.py --checkpoint FILE`.

The time probe classifies the validation clips with their frames in order, reversed, shuffled and
frozen to one. A network that has learnt movement confuses opposites when time runs backwards, and
knows little from a single frame.
"""

import argparse
import sys
from pathlib import Path

import time_probe
from annotations import read_annotations
from device import choose_device, prepare
from errors import UserError, exit_status
from predictor import load_predictor


def explain(options) -> None:
    """Prints the time probe and writes it; options: the flags, as `main` defines them."""
    device = choose_device(options.gpus)
    prepare(device, "auto", deterministic=False)
    predictor = load_predictor(options.checkpoint, device)
    data_folder, csv_path = options.data or predictor.config.set_paths("validation")
    annotations = read_annotations(csv_path, data_folder, predictor.classes)
    print(f"{len(annotations):,} clips in {data_folder}")
    result = time_probe.probe(predictor, annotations)
    print(time_probe.table(result))
    folder = options.output or Path(options.checkpoint).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = time_probe.write(result, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); set --output") from None
    print("written: " + ", ".join(map(str, paths)))


def main(arguments=None) -> int:
    """Returns the exit status: 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", "-c", required=True, metavar="FILE")
    parser.add_argument("--data", nargs=2, metavar=("FOLDER", "CSV"), help="labelled clips; "
                        "default: the validation set that the network was trained with")
    parser.add_argument("--output", "-o", type=Path, metavar="FOLDER",
                        help="default: the checkpoint's folder")
    parser.add_argument("--gpus", "-g", help="0 or cpu; default: a GPU if there is one")
    options = parser.parse_args(arguments)
    return exit_status(lambda: explain(options))


if __name__ == "__main__":
    sys.exit(main())

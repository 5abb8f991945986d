"""Write report.html for a run: `python report.py trainings/quickstart`."""

import argparse
from pathlib import Path

from clips.frames import prepare_decoders
from reporting.page import write_report
from system.errors import end_program, exit_status


def main(arguments=None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description="Write report.html into a run folder.")
    parser.add_argument("folder", type=Path, help="run folder, for example trainings/quickstart")
    options = parser.parse_args(arguments)
    prepare_decoders()
    return exit_status(lambda: print(write_report(options.folder)))


if __name__ == "__main__":
    end_program(main())

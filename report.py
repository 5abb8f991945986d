"""Writes report.html about a run: `python report.py trainings/quickstart`."""

import argparse
import sys
from pathlib import Path

from clips.frames import prepare_decoders
from reporting.page import write_report
from system.errors import exit_status

# --- the command -------------------------------------------------------------------------------


def main(arguments=None) -> int:
    """Returns the exit status: 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description="Writes report.html about a run into its folder.")
    parser.add_argument("folder", type=Path, help="a run folder, as trainings/quickstart")
    options = parser.parse_args(arguments)
    prepare_decoders()
    return exit_status(lambda: print(write_report(options.folder)))


if __name__ == "__main__":
    sys.exit(main())

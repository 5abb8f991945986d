"""Clips that cannot be read while a run is under way: they stop it, or are skipped and listed."""

import csv
from pathlib import Path

import processes
from config import Config
from data_loader import Batch
from errors import first_few
from frames import FrameError

COLUMNS = ("epoch", "set", "id", "reason")


class BadClips:
    """The list of skipped clips, a row for each time one was missing from a batch."""

    def __init__(self, config: Config):
        self.config = config
        self.rows: list[dict] = []
        self.unshared: list[dict] = []  # rows that only this process knows of

    def note(self, batch: Batch, annotations, set_name: str, epoch: int) -> None:
        """Takes down the clips that are missing from `batch`.

        Raises FrameError with the path if bad clips stop the run, or if they are more than
        `max_bad_share` of the set.
        """
        for bad in batch.bad:
            if self.config.on_bad_clip == "stop":
                raise FrameError(bad.reason)
            values = (epoch, set_name, str(annotations.ids[bad.index]), bad.reason)
            self.unshared.append(dict(zip(COLUMNS, values, strict=True)))
        if batch.bad:
            self._check_share(self.rows + self.unshared, annotations, set_name, epoch)

    def _check_share(self, rows, annotations, set_name, epoch):
        ids = {row["id"] for row in rows if (row["set"], row["epoch"]) == (set_name, epoch)}
        if len(ids) > self.config.max_bad_share * len(annotations):
            raise FrameError(
                f"{annotations.folder}: {len(ids)} of the {len(annotations):,} {set_name} clips "
                f"cannot be read, more than max_bad_share ({self.config.max_bad_share:g}) allows: "
                f"{first_few(sorted(ids))}; --check_data finds them all"
            )

    def share(self) -> list[dict]:
        """All rows of all processes, in one order; every process has to call this."""
        new = processes.gathered(self.unshared)
        self.rows = sorted(self.rows + new, key=lambda row: tuple(row[name] for name in COLUMNS))
        self.unshared = []
        return self.rows

    def restore(self, rows: list[dict], epochs_done: int) -> None:
        """Goes on from a checkpoint's rows; a validation that was under way will start anew."""
        self.rows = [row for row in rows
                     if row["set"] == "train" or row["epoch"] <= epochs_done]

    def report(self, annotations, set_name: str, epoch: int) -> None:
        """Prints which clips of a set an epoch went without; every process has to call this.

        Raises FrameError if those of all processes together are more than `max_bad_share`.
        """
        self.share()
        ids = [row["id"] for row in self.rows if (row["set"], row["epoch"]) == (set_name, epoch)]
        if ids:
            print(f"{set_name}: {len(ids)} clips skipped, since they cannot be read: "
                  f"{first_few(ids)}")
            self._check_share(self.rows, annotations, set_name, epoch)

    def write(self, path: Path) -> None:
        if self.rows:
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(self.rows)

"""Clips that cannot be read while a run is under way: they stop it, or are skipped and listed.

Clips that are too short are counted, too.
"""

import csv
from pathlib import Path

from clips.batches import Batch
from clips.frames import FrameError
from clips.sampling import short_clips_note
from config import Config
from system import processes
from system.errors import first_few

COLUMNS = ("epoch", "set", "id", "reason")


class BadClips:
    """The list of skipped clips, a row for each time one was missing from a batch."""

    def __init__(self, config: Config):
        self.config = config
        self.rows: list[dict] = []
        self.unshared: list[dict] = []  # rows that only this process knows of
        self.lengths: dict[str, list] = {}  # by set: short clips and all clips that were read
        self.told: set[str] = set()  # sets whose short clips were counted to the end

    def note(self, batch: Batch, annotations, set_name: str, epoch: int) -> None:
        """Takes down the clips that are missing from `batch`, and counts its short ones.

        Raises FrameError with the path if bad clips stop the run, or if they are more than
        `max_bad_share` of the set.
        """
        lengths = self.lengths.setdefault(set_name, [0, 0])
        lengths[0] += batch.num_short
        lengths[1] += len(batch.indices)
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
        new = processes.all_gather(self.unshared)
        self.rows = sorted(self.rows + new, key=lambda row: tuple(row[name] for name in COLUMNS))
        self.unshared = []
        return self.rows

    def restore(self, rows: list[dict], epochs_done: int) -> None:
        """Goes on from a checkpoint's rows; a validation that was under way will start anew."""
        self.rows = [row for row in rows
                     if row["set"] == "train" or row["epoch"] <= epochs_done]

    def report(self, annotations, set_name: str, epoch: int) -> None:
        """Prints which clips of a set an epoch went without; every process has to call this.

        The first time, it also prints how many are short. Raises FrameError if more clips of all
        processes together than `max_bad_share` allows cannot be read.
        """
        self.share()
        if set_name not in self.told:
            self.told.add(set_name)
            counts = processes.all_gather([self.lengths.get(set_name, (0, 0))])
            num_short, num_read = map(sum, zip(*counts, strict=True))
            if num_short:
                print(f"{set_name}: {short_clips_note(num_short, num_read, self.config)}")
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

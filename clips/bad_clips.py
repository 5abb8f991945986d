"""Clips that cannot be read in a run: they stop it, or are skipped and listed.

Short clips are counted.
"""

from pathlib import Path

import numpy as np

from clips.batches import Batch
from clips.frames import FrameError
from clips.sampling import short_clips_note
from config import Config
from system import processes
from system.errors import summarize

COLUMNS = ("epoch", "set", "id", "reason")


def check_bad_clips(reasons: dict[str, str], annotations, set_name: str, config: Config) -> None:
    """Raise FrameError if the unreadable clips of a set must stop a run.

    That is, if they are all clips of the set or of a class, if `on_bad_clip` is "stop", or if they
    are too many. reasons: id -> why the clip cannot be read.
    """
    if not reasons:
        return
    folder, num_clips = annotations.folder, len(annotations)
    few = summarize(reasons.values(), 3)
    if len(reasons) == num_clips:
        raise FrameError(
            f"{folder}: none of the {num_clips:,} {set_name} clips can be read: {few};"
            " correct the data folder in the config, or repair them; --check_data "
            "finds them all"
        )
    check_classes(reasons, annotations, set_name)
    if config.on_bad_clip == "stop":
        first, *others = reasons
        more = (
            f"; nor can {len(others):,} more of the {num_clips:,} {set_name} clips be read: "
            f"{summarize(others)}; --check_data finds them all"
        )
        raise FrameError(reasons[first] + (more if others else ""))
    _check_fraction(reasons, annotations, set_name, config)


def _check_fraction(ids, annotations, set_name: str, config: Config) -> None:
    """Raise FrameError if `ids` are more of the set than `max_bad_share` allows."""
    if len(ids) > config.max_bad_share * len(annotations):
        raise FrameError(
            f"{annotations.folder}: {len(ids)} of the {len(annotations):,} {set_name} clips cannot "
            f"be read, more than max_bad_share ({config.max_bad_share:g}) allows: "
            f"{summarize(sorted(ids))}; --check_data finds them all"
        )


def check_classes(reasons: dict[str, str], annotations, set_name: str) -> None:
    """Raise FrameError if no clip of a class can be read. reasons: as in `check_bad_clips`."""
    if not (reasons and annotations.class_names):  # a test set has no classes
        return
    num_classes, is_bad = len(annotations.class_names), np.isin(annotations.ids, list(reasons))
    counts = np.bincount(annotations.labels, minlength=num_classes)
    num_bad = np.bincount(annotations.labels[is_bad], minlength=num_classes)
    lost = [index for index in range(num_classes) if 0 < counts[index] == num_bad[index]]
    if lost:
        names = [f"{annotations.class_names[index]!r} ({counts[index]:,})" for index in lost]
        few = [reasons[clip_id] for clip_id in annotations.ids[np.isin(annotations.labels, lost)]]
        raise FrameError(
            f"{annotations.folder}: no {set_name} clip of {summarize(names)} can be read: "
            f"{summarize(few, 3)}; repair the clips, or drop the class from labels_csv"
        )


class BadClips:
    """The list of skipped clips, with one row per clip and batch that lacks it."""

    def __init__(self, config: Config):
        self.config = config
        self.rows: list[dict] = []
        self.unshared: list[dict] = []  # rows of this process only
        self.ids: dict[tuple, set[str]] = {}  # skipped clips by (set, epoch), of the latest only
        self.lengths: dict[str, list] = {}  # by set: number of short clips, and of all clips read
        self.told: set[str] = set()  # sets whose short clips have been reported

    def record(self, batch: Batch, annotations, set_name: str, epoch: int) -> None:
        """Record the clips that are missing from `batch`, and count its short ones.

        Raises FrameError with the path if bad clips stop the run, or if there are more than
        `max_bad_share` allows.
        """
        lengths = self.lengths.setdefault(set_name, [0, 0])
        lengths[0] += batch.num_short
        lengths[1] += len(batch.indices)
        for bad in batch.bad:
            if self.config.on_bad_clip == "stop":
                raise FrameError(bad.reason)
            values = (epoch, set_name, str(annotations.ids[bad.index]), bad.reason)
            self.unshared.append(dict(zip(COLUMNS, values, strict=True)))
            self._ids_in(set_name, epoch).add(values[2])
        if batch.bad:
            _check_fraction(self._ids_in(set_name, epoch), annotations, set_name, self.config)

    def _ids_in(self, set_name, epoch) -> set[str]:
        """Return the skipped clips known to this process; searches the rows once per epoch."""
        key = set_name, epoch
        if key not in self.ids:
            self.ids = {
                key: {
                    row["id"]
                    for row in self.rows + self.unshared
                    if (row["set"], row["epoch"]) == key
                }
            }
        return self.ids[key]

    def gather(self) -> list[dict]:
        """Return the rows of all processes, sorted; every process must call this."""
        new = processes.all_gather(self.unshared)
        self.rows = sorted(self.rows + new, key=lambda row: tuple(row[name] for name in COLUMNS))
        self.unshared, self.ids = [], {}
        return self.rows

    def restore(self, rows: list[dict], epochs_done: int) -> None:
        """Continue from a checkpoint's rows, without those of an unfinished validation."""
        self.ids = {}
        self.rows = [row for row in rows if row["set"] == "train" or row["epoch"] <= epochs_done]

    def report(self, annotations, set_name: str, epoch: int, training=True) -> None:
        """Print which clips of a set were skipped in an epoch; every process must call this.

        The first call also prints how many clips are short. Raises FrameError if bad clips in all
        processes are more than `max_bad_share` allows, or are all clips of a class; without
        `training`, the latter is a warning.
        """
        self.gather()
        if set_name not in self.told:
            self.told.add(set_name)
            counts = processes.all_gather([self.lengths.get(set_name, (0, 0))])
            num_short, num_read = map(sum, zip(*counts, strict=True))
            if num_short:
                print(f"{set_name}: {short_clips_note(num_short, num_read, self.config)}")
        reasons = {
            row["id"]: row["reason"]
            for row in self.rows
            if (row["set"], row["epoch"]) == (set_name, epoch)
        }
        if reasons:
            print(
                f"{set_name}: {len(reasons)} clips skipped because they cannot be read: "
                f"{summarize(reasons)}"
            )
            _check_fraction(reasons, annotations, set_name, self.config)
            try:
                check_classes(reasons, annotations, set_name)
            except FrameError as error:
                if training:
                    raise
                print(f"warning: {error}")

    def write(self, path: Path) -> None:
        """Write `bad_clips.csv`, if there are bad clips."""
        if self.rows:
            import pandas as pd  # not at the top: most runs have no bad clips

            rows = pd.DataFrame(self.rows, columns=COLUMNS)
            rows.to_csv(path, index=False, lineterminator="\r\n", errors="backslashreplace")

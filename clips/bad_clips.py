"""Clips that cannot be read during a run: they stop it, or are skipped and listed.

Clips that are too short are counted.
"""

from pathlib import Path

from clips.batches import Batch
from clips.frames import FrameError
from clips.sampling import short_clips_note
from config import Config
from system import processes
from system.errors import first_few

COLUMNS = ("epoch", "set", "id", "reason")


class BadClips:
    """The list of skipped clips: one row each time a clip is missing from a batch."""

    def __init__(self, config: Config):
        self.config = config
        self.rows: list[dict] = []
        self.unshared: list[dict] = []  # rows that only this process has
        self.ids: dict[tuple, set[str]] = {}  # skipped clips by (set, epoch), of the latest
        self.lengths: dict[str, list] = {}  # by set: number of short clips, and of all clips read
        self.told: set[str] = set()  # sets whose short clips have been reported

    def record(self, batch: Batch, annotations, set_name: str, epoch: int) -> None:
        """Record the clips that are missing from `batch`, and count its short ones.

        Raises FrameError with the path if bad clips stop the run, or if their share of the set
        exceeds `max_bad_share`.
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
            self._check_share(annotations, set_name, epoch)

    def _ids_in(self, set_name, epoch) -> set[str]:
        """The skipped clips that this process knows of; the rows are searched once per epoch."""
        key = set_name, epoch
        if key not in self.ids:
            self.ids = {key: {row["id"] for row in self.rows + self.unshared
                              if (row["set"], row["epoch"]) == key}}
        return self.ids[key]

    def _check_share(self, annotations, set_name, epoch):
        ids = self._ids_in(set_name, epoch)
        if len(ids) > self.config.max_bad_share * len(annotations):
            raise FrameError(
                f"{annotations.folder}: {len(ids)} of the {len(annotations):,} {set_name} clips "
                f"cannot be read, more than max_bad_share ({self.config.max_bad_share:g}) allows: "
                f"{first_few(sorted(ids))}; --check_data finds them all"
            )

    def share(self) -> list[dict]:
        """Return the rows of all processes, sorted; every process must call this."""
        new = processes.all_gather(self.unshared)
        self.rows = sorted(self.rows + new, key=lambda row: tuple(row[name] for name in COLUMNS))
        self.unshared, self.ids = [], {}
        return self.rows

    def restore(self, rows: list[dict], epochs_done: int) -> None:
        """Continue from a checkpoint's rows, without those of an unfinished validation."""
        self.ids = {}
        self.rows = [row for row in rows
                     if row["set"] == "train" or row["epoch"] <= epochs_done]

    def report(self, annotations, set_name: str, epoch: int) -> None:
        """Print which clips of a set were skipped in an epoch; every process must call this.

        The first call also prints how many clips are short. Raises FrameError if the share of bad
        clips over all processes exceeds `max_bad_share`.
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
            print(f"{set_name}: {len(ids)} clips skipped because they cannot be read: "
                  f"{first_few(ids)}")
            self._check_share(annotations, set_name, epoch)

    def write(self, path: Path) -> None:
        """Write `bad_clips.csv`, if there are bad clips."""
        if self.rows:
            import pandas as pd  # here, since most runs have no bad clips

            rows = pd.DataFrame(self.rows, columns=COLUMNS)
            rows.to_csv(path, index=False, lineterminator="\r\n", errors="backslashreplace")

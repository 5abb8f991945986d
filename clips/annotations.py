"""Labels and clip lists: from CSV files to two compact arrays, checked on the way.

Two layouts are read. Jester's own has no header: `id;label` a line, or `id` alone in a test set.
The other has commas and a header with at least `video_id`, and `label` unless it is a test set.
"""

import csv
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clips.videos import is_video
from system.errors import UserError, first_few


@dataclass(frozen=True)
class Annotations:
    """The clips of one set. Arrays, not lists: loader workers share them without copying."""

    ids: np.ndarray  # str [num_clips], names of folders below `folder`
    labels: np.ndarray  # int64 [num_clips], class indices; -1 where there is no label
    folder: str
    num_dropped: int  # rows whose label is not in the labels file
    class_names: tuple[str, ...] = ()  # of a set with labels

    def __len__(self):
        return len(self.ids)

    @property
    def has_labels(self) -> bool:
        return bool((self.labels >= 0).all())

    def digest(self) -> str:
        """A hash of the ids and labels in their order, wherever the clips are."""
        ids = "\0".join(self.ids.tolist()).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(ids + b"\0" + self.labels.tobytes(), digest_size=16).hexdigest()

    def clip_path(self, index) -> str:
        return os.path.join(self.folder, str(self.ids[index]))


def read_labels(path) -> list[str]:
    """Class names in the order of their lines; the line number (from 0) is the class index.

    Raises UserError for blank lines, duplicates, or fewer than two names.
    """
    names = [line.strip() for line in _read_text(path, "labels_csv").rstrip().split("\n")]
    problems = [f"line {n} is blank" for n, name in enumerate(names, 1) if not name]
    problems += [f"{name!r} stands on {c} lines" for name, c in Counter(names).items()
                 if c > 1 and name]
    if problems:
        raise UserError(
            f"{path}: labels_csv: {first_few(problems)}; the line number is the class index, so "
            "each line needs one name of its own"
        )
    if len(names) < 2:
        raise UserError(f"{path}: labels_csv: a classifier needs at least two class names")
    return names


def read_annotations(csv_path, folder, class_names=None) -> Annotations:
    """The clips that `csv_path` lists, with their folders below `folder` known to exist.

    class_names: the labels file; rows with another label are left out and counted. None reads a
    test set, whose labels, if any, are not used.
    Raises UserError for rows that cannot be read, doubled ids, missing folders, or no clips left.
    """
    rows = read_rows(csv_path, with_labels=class_names is not None)
    _check_ids(csv_path, [clip_id for _, clip_id, _ in rows])
    if class_names is None:
        kept = [(clip_id, -1) for _, clip_id, _ in rows]
    else:
        class_indices = {name: index for index, name in enumerate(class_names)}
        kept = [(clip_id, class_indices[label]) for _, clip_id, label in rows
                if label in class_indices]
    if not kept:
        raise UserError(_nothing_left(csv_path, rows))
    ids, labels = zip(*kept, strict=True)
    _check_clips(csv_path, folder, ids)
    return Annotations(np.array(ids), np.array(labels, np.int64), str(folder),
                       len(rows) - len(kept), tuple(class_names or ()))


def _read_text(path, key) -> str:
    """Text of a file with `\\n` line ends and without a byte order mark."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {key} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: {key} is not UTF-8 text; save it as UTF-8") from None


def read_rows(csv_path, with_labels) -> list[tuple[int, str, str | None]]:
    """(line number, id, label or None) of each line of a clip list that is not blank."""
    lines = _read_text(csv_path, "the clip list").split("\n")
    header = [field.strip() for field in lines[0].split(",")]
    try:
        if "video_id" in header:
            return _read_rows_with_header(csv_path, lines, header, with_labels)
        return _read_rows_without_header(csv_path, lines, with_labels)
    except csv.Error as error:
        raise UserError(f"{csv_path}: not a CSV file ({error}); write it anew") from None


def _read_rows_without_header(csv_path, lines, with_labels):
    rows = []
    for number, fields in enumerate(csv.reader(lines, delimiter=";"), 1):
        fields = [field.strip() for field in fields]
        if not any(fields):
            continue
        if with_labels and len(fields) != 2:
            raise UserError(
                f"{csv_path}: line {number}: expected id;label, found {lines[number - 1][:80]!r}; "
                "separate the two with one semicolon, or use a header with video_id,label"
            )
        if "," in fields[0]:
            raise UserError(
                f"{csv_path}: line {number}: found a comma in the id {fields[0][:80]!r}; separate "
                "with semicolons, or use a header with video_id"
            )
        rows.append((number, fields[0], fields[1] if with_labels else None))
    return rows


def _read_rows_with_header(csv_path, lines, header, with_labels):
    if with_labels and "label" not in header:
        raise UserError(
            f"{csv_path}: line 1: the header has video_id but no label column; add the labels"
        )
    rows = []
    reader = csv.DictReader(lines[1:], fieldnames=header)
    for row in reader:
        number, label = reader.line_num + 1, row.get("label")
        if row["video_id"] is None or (with_labels and label is None):
            raise UserError(
                f"{csv_path}: line {number}: has fewer columns than the header; complete the line"
            )
        rows.append((number, row["video_id"].strip(), label.strip() if with_labels else None))
    return rows


def is_folder_name(clip_id: str) -> bool:
    """Whether an id, joined to the data folder, names a folder right below it."""
    return clip_id not in ("", ".", "..") and not set("/\\\0") & set(clip_id)


def _check_ids(csv_path, ids):
    outside = [clip_id for clip_id in ids if not is_folder_name(clip_id)]
    if outside:
        raise UserError(
            f"{csv_path}: {len(outside)} ids that are no plain folder names: "
            f"{first_few(map(repr, outside))}; an id names one folder right below the data folder"
        )
    doubled = [clip_id for clip_id, count in Counter(ids).items() if count > 1]
    if doubled:
        raise UserError(
            f"{csv_path}: {len(doubled):,} ids stand there more than once: {first_few(doubled)}; "
            "keep one line each"
        )


def _check_clips(csv_path, folder, ids):
    # One scan of the root, instead of asking the file system for each of 100,000 ids.
    try:
        with os.scandir(folder) as entries:
            present = {entry.name for entry in entries if is_video(entry.name) or _is_folder(entry)}
    except OSError as error:
        raise UserError(f"{folder}: data folder cannot be read ({error.strerror})") from None
    missing = [clip_id for clip_id in ids if clip_id not in present]
    if missing:
        raise UserError(
            f"{csv_path}: {len(missing):,} of {len(ids):,} clips have no folder in {folder}: "
            f"{first_few(missing)}; add the folders or drop the rows"
        )


def _is_folder(entry) -> bool:
    # is_dir() of a scanned entry costs nothing, but raises on a link that leads in a circle.
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def _nothing_left(csv_path, rows) -> str:
    if not rows:
        return f"{csv_path}: no clips: the file is empty; add a line for each clip"
    labels = sorted({label for _, _, label in rows})
    return (
        f"{csv_path}: no clip left: none of its labels ({first_few(labels, 5)}) is in labels_csv; "
        "use the same spelling in both"
    )

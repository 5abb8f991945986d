"""Read labels and clip lists from CSV files into two compact arrays.

Two layouts are supported. Jester's own has no header and one `id;label` per line, or only `id` in
a test set. The other is separated by commas; its header has at least `video_id`, and `label` unless
it is a test set.
"""

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clips.folders import Clip, ClipFolder
from clips.frames import composed
from clips.packs import open_folder
from system.errors import UserError, summarize

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Annotations:
    """The clips of one set. Loader workers share the arrays without copying them."""

    ids: np.ndarray  # str [num_clips], folders or video files, as paths relative to `folder`
    labels: np.ndarray  # int64 [num_clips], class indices; -1 where there is no label
    folder: ClipFolder
    num_dropped: int  # rows whose label is not in the labels file
    class_names: tuple[str, ...] = ()  # empty for a test set
    groups: np.ndarray | None = None  # str [num_clips], as from `groups_of`; None: unknown

    def __len__(self):
        return len(self.ids)

    @property
    def has_labels(self) -> bool:
        return bool((self.labels >= 0).all())

    def digest(self) -> str:
        """Return a hash of the ids and labels in their order."""
        ids = "\0".join(self.ids.tolist()).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(ids + b"\0" + self.labels.tobytes(), digest_size=16).hexdigest()

    def clip_paths(self) -> list[str]:
        """Return the absolute path of each clip, links in that of the data folder resolved."""
        root = os.path.realpath(str(self.folder))
        return [f"{root}/{clip_id}" for clip_id in self.ids.tolist()]

    def clip(self, index) -> Clip:
        return self.folder.clip(str(self.ids[index]))


def read_labels(path) -> list[str]:
    """Return the class names in line order; the line number (from 0) is the class index.

    Raises UserError for blank lines, duplicates, or fewer than two names.
    """
    text = composed(_read_text(path, "labels_csv"))
    names = [line.strip() for line in text.rstrip().split("\n")]
    problems = [f"line {n} is blank" for n, name in enumerate(names, 1) if not name]
    problems += [
        f"{name!r} is on {c} lines" for name, c in Counter(names).items() if c > 1 and name
    ]
    if problems:
        raise UserError(
            f"{path}: labels_csv: {summarize(problems)}; the line number is the class index, so "
            "each line needs a different name"
        )
    if len(names) < 2:
        raise UserError(f"{path}: labels_csv: a classifier needs at least two class names")
    return names


def read_annotations(csv_path, folder, class_names=None, with_groups=True) -> Annotations:
    """Return the clips that `csv_path` lists; check that they exist in `folder`, or pack.

    class_names: names from the labels file; rows with another label are left out and counted. None
        reads a test set, whose labels, if any, are ignored. with_groups: read the column `group`.
    Raises UserError for rows that cannot be read, duplicate ids, empty groups, missing folders, or
    no clips left.
    """
    rows = read_rows(csv_path, with_labels=class_names is not None)
    _check_ids(csv_path, rows["id"])
    if class_names is None:
        labels = np.full(len(rows), -1)
        is_kept = np.full(len(rows), True)
    else:
        class_indices = {name: index for index, name in enumerate(class_names)}
        labels = rows["label"].tolist()
        labels = np.array([class_indices.get(label, -1) for label in labels], np.int64)
        is_kept = labels >= 0
    if not is_kept.any():
        raise UserError(_nothing_left(csv_path, rows))
    ids, folder = rows["id"][is_kept].to_numpy(dtype=str), open_folder(folder)
    _check_clips(csv_path, folder, ids.tolist())
    groups = None
    if with_groups and "group" in rows:
        if lines := lines_without_group(rows[is_kept]):
            raise UserError(
                f"{csv_path}: no group in {len(lines):,} lines: {summarize(lines)}; "
                "fill in the column `group`, with a unique name, such as the id, where "
                "nothing is known of a clip; or delete the column"
            )
        groups = rows["group"][is_kept].to_numpy(dtype=str)
    return Annotations(
        ids, labels[is_kept], folder, int((~is_kept).sum()), tuple(class_names or ()), groups
    )


def lines_without_group(rows: "pd.DataFrame") -> list[int]:
    """Return the numbers of the lines whose cell in the column `group` is empty.

    As a name, it would group clips that have nothing in common.
    """
    return rows.index[rows["group"] == ""].tolist()


def groups_of(ids, pattern: str) -> np.ndarray:
    """Return each clip's group, str [N]: what the first group of `pattern` matches in its name.

    A group is, for example, the person that a clip shows. A pattern with a slash is searched in the
    whole id, others in what follows the id's last slash. Raises UserError if the pattern finds
    nothing in an id.
    """
    ids = [str(clip_id) for clip_id in ids]
    names = [composed(clip_id if "/" in pattern else clip_id.rpartition("/")[2]) for clip_id in ids]
    found = [re.search(composed(pattern), name) for name in names]
    names = [match[1] if match else None for match in found]
    without = [clip_id for clip_id, name in zip(ids, names, strict=True) if not name]
    if without:
        raise UserError(
            f"group: {pattern!r} finds no group in {len(without):,} of {len(names):,} clips: "
            f"{summarize(without)}; correct the pattern, whose first pair of brackets encloses the "
            "group's name"
        )
    return np.array(names)


def _read_text(path, key) -> str:
    """Return a file's text with `\\n` line ends and without a byte order mark."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {key} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: {key} is not UTF-8 text; save it as UTF-8") from None


def read_rows(csv_path, with_labels: bool) -> "pd.DataFrame":
    """Return the columns `id` and, with_labels, `label` of a clip list, indexed by line number.

    With labels, a column `group` is read, too, if there is one. Labels and groups are in NFC.

    Blank lines are skipped. Raises UserError for lines that do not have these columns.
    """
    import pandas as pd  # not at the top: only commands that read a clip list wait for it

    lines = _read_text(csv_path, "the clip list").split("\n")
    header = [field.strip().strip('"') for field in lines[0].split(",")]
    has_header = "video_id" in header
    numbers = [
        number
        for number, line in enumerate(lines, 1)
        if line.strip() and not (has_header and number == 1)
    ]
    check = _check_lines_with_header if has_header else _check_lines
    columns = check(csv_path, lines, numbers, header, with_labels)
    if not numbers:
        return pd.DataFrame(columns=list(columns), dtype=str)
    text = "\n".join(lines[number - 1] for number in numbers)
    try:
        if "\0" in text:
            raise ValueError("it contains zero bytes")
        rows = pd.read_csv(
            StringIO(text),
            sep="," if has_header else ";",
            header=None,
            usecols=sorted(columns.values()),
            names=sorted(columns, key=columns.get),
            dtype=str,
            keep_default_na=False,  # ids such as 00012 and labels such as NA
        )
        rows.index = numbers
    except ValueError as error:  # also if a quoted field contains a line end
        reason = " ".join(str(error).split())
        raise UserError(f"{csv_path}: not a CSV file ({reason}); write it again") from None
    rows = rows.apply(lambda column: column.str.strip())
    return rows.apply(lambda column: column if column.name == "id" else column.map(composed))


def _check_lines(csv_path, lines, numbers, _header, with_labels) -> dict[str, int]:
    """Check the lines of a list without a header; return the positions of the columns."""
    for number in numbers:
        line = lines[number - 1]
        if with_labels and line.count(";") != 1:
            raise UserError(
                f"{csv_path}: line {number}: expected id;label, found {line[:80]!r}; "
                "separate the two with one semicolon, or use a header with video_id,label"
            )
        clip_id = line.partition(";")[0]
        if "," in clip_id:
            raise UserError(
                f"{csv_path}: line {number}: found a comma in the id {clip_id[:80]!r}; separate "
                "with semicolons, or use a header with video_id"
            )
    return {"id": 0, "label": 1} if with_labels else {"id": 0}


def _check_lines_with_header(csv_path, lines, numbers, header, with_labels) -> dict[str, int]:
    """Check the lines of a list with a header; return the positions of the columns."""
    if with_labels and "label" not in header:
        raise UserError(
            f"{csv_path}: line 1: the header has video_id but no label column; add the labels"
        )
    columns = {"id": header.index("video_id")}
    if with_labels:
        columns["label"] = header.index("label")
        if "group" in header:
            columns["group"] = header.index("group")
    last = max(columns.values())
    for number in numbers:
        if lines[number - 1].count(",") < last:
            raise UserError(
                f"{csv_path}: line {number}: has fewer columns than the header; complete the line"
            )
    return columns


def is_clip_id(clip_id: str) -> bool:
    """Return whether an id is a path below the data folder, such as `12` or `wave/12.mp4`."""
    return not set("\\\0") & set(clip_id) and not {"", ".", ".."} & set(clip_id.split("/"))


def _check_ids(csv_path, ids: "pd.Series"):
    outside = [clip_id for clip_id in ids.tolist() if not is_clip_id(clip_id)]
    if outside:
        raise UserError(
            f"{csv_path}: {len(outside):,} ids are not paths below the data folder: "
            f"{summarize(map(repr, outside))}; an id names a clip, such as 12 or wave/12.mp4"
        )
    duplicates = ids[ids.duplicated(keep=False)].unique()
    if len(duplicates):
        raise UserError(
            f"{csv_path}: {len(duplicates):,} ids are listed more than once: "
            f"{summarize(duplicates)}; keep one line for each"
        )


def _check_clips(csv_path, folder: ClipFolder, ids):
    try:
        present = folder.siblings(ids)
    except OSError as error:
        raise UserError(f"{folder}: data folder cannot be read ({error.strerror})") from None
    missing = [clip_id for clip_id in ids if composed(clip_id) not in present]
    if missing:
        raise UserError(
            f"{csv_path}: {len(missing):,} of {len(ids):,} clips have no folder in {folder}: "
            f"{summarize(missing)}; add the folders or drop the rows"
        )
    spelled = [clip_id for clip_id in ids if not clip_id.isascii()]
    paths = Counter(folder.clip_path(clip_id) for clip_id in spelled)
    if twice := [path for path, count in paths.items() if count > 1]:
        raise UserError(
            f"{csv_path}: {len(twice):,} clips are listed more than once, with their "
            f"accents composed and apart: {summarize(twice)}; keep one line for each"
        )


def _nothing_left(csv_path, rows: "pd.DataFrame") -> str:
    if rows.empty:
        return f"{csv_path}: no clips: the file is empty; add one line per clip"
    labels = sorted(set(rows["label"]))
    return (
        f"{csv_path}: no clips left: none of its labels ({summarize(labels, 5)}) is in labels_csv; "
        "use the same spelling in both files"
    )

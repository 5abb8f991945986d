"""Find the clips in a folder with one folder per class, the layout of torchvision's `ImageFolder`.

`clips/wave/1.mp4`, `clips/wave/anna/1.mp4`, `clips/wave/1/00001.jpg`; or the same below `train/`
and `val/` (also `validation/`, `valid/`), with an optional `test/`.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from clips.frames import FRAME_SUFFIXES, natural_key
from clips.videos import is_video
from system.errors import UserError, first_few

PARTS = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
         "validation": "validation", "test": "test"}  # fmt: skip
CONTROL_CHARACTERS = {chr(number) for number in range(32)} | {"\x7f"}


@dataclass
class FoundClips:
    """The clips of a folder, in natural order of their paths, and what else is there."""

    root: Path
    # (path relative to `root`, with "/"; name of the class folder; "train", "validation", "test",
    # or "" if the folder is not split)
    clips: list[tuple[str, str, str]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)  # class folders without clips
    other_files: list[str] = field(default_factory=list)  # neither a video nor a frame

    def table(self) -> pd.DataFrame:
        """Return the clips with the columns id, label and part."""
        return pd.DataFrame(self.clips, columns=["id", "label", "part"], dtype=str)


def find_clips(root: Path) -> FoundClips:
    """Return the clips below `root`.

    A clip is a video file, or a folder with frames in it. Hidden files and folders, and links that
    lead back to a folder above, are ignored.
    Raises UserError if there are no class folders, fewer than two classes, or unusable names.
    """
    found = FoundClips(root)
    top = _entries(root)
    folders = [entry for entry in top if _is_folder(entry)]
    _check_top(root, top, folders)
    names = {entry.name.lower() for entry in folders}
    if names <= set(PARTS) and any(PARTS[name] == "train" for name in names):
        for part in folders:
            for entry in _entries(part.path):
                if _is_folder(entry):
                    _add_class(found, entry, PARTS[part.name.lower()], part.name)
    else:
        for entry in folders:
            _add_class(found, entry, "", "")
    _check_names(found)
    labels = {label for _, label, _ in found.clips}
    if len(labels) < 2:
        has = f"only {min(labels)!r} has clips" if labels else "no folder has clips"
        raise UserError(
            f"--data {root}: a classifier needs two classes, but {has}; put the videos, or the "
            "folders of frames, of each class into a folder with the name of the class"
        )
    return found


def _check_top(root, top, folders):
    if folders and not any(_has_frames(entry.path) for entry in folders):
        return
    reason = "it has no folders in it"
    if folders:
        reason = f"the clips are directly in it ({first_few([entry.name for entry in folders], 2)})"
    elif any(is_video(entry.name) for entry in top):
        reason = "the videos are directly in it"
    raise UserError(
        f"--data {root}: expected one folder per class, but {reason}; put the clips of each class "
        "into a folder with the name of the class, or list them in CSVs and use --config"
    )


def _add_class(found: FoundClips, entry, part: str, prefix: str) -> None:
    """Add the clips of one class folder."""
    real_paths = frozenset({os.path.realpath(found.root), os.path.realpath(entry.path)})
    name = f"{prefix}/{entry.name}" if prefix else entry.name
    ids = list(_clips_below(entry.path, name, real_paths, found))
    found.clips += [(clip_id, entry.name, part) for clip_id in ids]
    if not ids:
        found.empty.append(name)


def _clips_below(folder, relative: str, real_paths: frozenset, found: FoundClips):
    """Yield the ids of the clips below a class folder; real_paths: the folders on the way here."""
    for entry in _entries(folder):
        clip_id = f"{relative}/{entry.name}"
        if not _is_folder(entry):
            if is_video(entry.name):
                yield clip_id
            else:
                found.other_files.append(clip_id)
        elif _has_frames(entry.path):
            yield clip_id
        elif (real_path := os.path.realpath(entry.path)) not in real_paths:
            yield from _clips_below(entry.path, clip_id, real_paths | {real_path}, found)


def _entries(folder) -> list[os.DirEntry]:
    """Return the entries of a folder in natural order, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"--data {folder}: cannot be read ({error.strerror})") from None
    return sorted(visible, key=lambda entry: natural_key(entry.name))


def _is_folder(entry) -> bool:
    # is_dir() of a scanned entry costs nothing, but raises on a circular link.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _has_frames(folder) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(FRAME_SUFFIXES) for entry in entries
                       if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"--data {folder}: cannot be read ({error.strerror})") from None


def _check_names(found: FoundClips) -> None:
    """CSVs and labels.csv have one line per clip or class, whose ends are trimmed."""
    def is_unusable(name):
        return name != name.strip() or "\\" in name or CONTROL_CHARACTERS & set(name) \
            or not _is_text(name)

    wrong = [clip_id for clip_id in [*(clip_id for clip_id, _, _ in found.clips), *found.empty]
             if any(is_unusable(part) for part in clip_id.split("/"))]
    if wrong:
        raise UserError(
            f"--data {found.root}: {len(wrong):,} names with control characters, a backslash, a "
            f"space at their end, or bytes that are not UTF-8: {first_few(map(repr, wrong), 2)}; "
            "rename them"
        )


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes in another encoding arrive as surrogates
        return False
    return True

"""A data set that grows: `clips/<number>/00001.jpg ...`, `labels.csv` and a CSV for each set.

The files are complete after each change, so that every command can use them at any time. The clips
of classes that are switched off are in `disabled.csv`, which only this page reads.
"""

import csv
import io
import os
import re
import shutil
import threading
import unicodedata
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

from clips.annotations import read_annotations, read_rows
from clips.folders import PlainFolder
from clips.frames import natural_key
from config import Config
from own_clips.splitting import choose_validation
from system.errors import UserError, is_disk_full, summarize
from system.files import atomic_write, try_lock
from teaching.pictures import MAX_FRAMES, decode_jpeg, thumbnail

MAX_CLIPS = 2000
MAX_NAME = 60  # characters
SHARE_FOR_VALIDATION = 5  # every n-th clip
SETS = ("train", "validation")
DISABLED = "disabled"  # set of the clips whose class is switched off
UNFINISHED = ".unfinished"  # folder for clips that are being written
REMOVED = ".removed"  # folder for clips whose removal can be undone


class DiskFullError(UserError):
    """A clip that could not be saved because the disk is full."""


class GoneError(UserError):
    """A removed clip whose files were deleted, so that it cannot come back."""


class DataSet:
    """The clips of a folder. Threads may share it; only one process may open it."""

    def __init__(self, folder: Path):
        """Open `folder`, or make it.

        Raises UserError if it has other files, its CSVs cannot be read, or it is in use.
        """
        self.folder, self.lock = folder, threading.Lock()
        self.csvs = {name: folder / f"{name}.csv" for name in (*SETS, DISABLED)}
        self._check_content()
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(folder, os.O_RDONLY)  # keeps the lock while this process lives
        if not try_lock(self.descriptor):
            raise UserError(f"--data {folder}: is open in another teach.py; close that one")
        self.removed, self.num_changes = {}, 0  # id -> (row, where its files are)
        for name in (UNFINISHED, REMOVED):
            shutil.rmtree(folder / "clips" / name, ignore_errors=True)
        # id -> (class, set), in the order of recording, where the files tell. An interrupted change
        # may have left a clip in two lists: the last counts, so a class is never half on.
        self.clips = {clip_id: row for name in self.csvs for clip_id, row in self._rows(name)}
        self.clips = _in_order(self.clips)
        self.last_number = max(
            (int(name) for name in os.listdir(folder / "clips") if name.isdecimal()), default=0
        )

    def close(self) -> None:
        """Delete what was removed, and let other processes open the folder."""
        with suppress(UserError):
            self.empty_trash()
        os.close(self.descriptor)

    def _check_content(self):
        if not self.folder.is_dir() or (self.folder / "clips").is_dir():
            return
        others = [name for name in sorted(os.listdir(self.folder)) if not name.startswith(".")]
        if others:
            raise UserError(
                f"--data {self.folder}: not a data set of this page: it has "
                f"{summarize(others, 3)} but no folder `clips`; name a new folder, and drop "
                "videos and folders into the page"
            )

    def _rows(self, set_name):
        path = self.csvs[set_name]
        labels = set(read_rows(path, with_labels=True)["label"]) if path.exists() else ()
        if labels:
            with open(path, newline="", encoding="utf-8-sig") as file:
                columns = [column.strip() for column in next(csv.reader(file))]
            if others := set(columns) - {"video_id", "label"} if "video_id" in columns else ():
                raise UserError(
                    f"{path}: has columns that this page cannot keep: "
                    f"{summarize(sorted(others))}; give it a copy of the folder "
                    "without them"
                )
            found = read_annotations(path, self.folder / "clips", sorted(labels))
            for clip_id, label in zip(found.ids.tolist(), found.labels.tolist(), strict=True):
                yield clip_id, (found.class_names[label], set_name)

    def _check_folder(self):
        """Raise UserError if the folder was deleted or moved, where a clip would be lost."""
        try:
            is_there = os.path.samestat(os.fstat(self.descriptor), os.stat(self.folder))
        except FileNotFoundError:
            is_there = False
        if not (is_there and (self.folder / "clips").is_dir()):
            raise UserError(
                f"{self.folder}: was deleted or moved while this page was open, so nothing can be "
                "saved; put it back, or start teach.py again"
            )

    # --- clips ---------------------------------------------------------------------------------

    def add(self, name: str, pictures: list[bytes]) -> str:
        """Save JPEG pictures as a clip of the class `name`; return the clip's id.

        A class whose name differs only in case is the same. One clip in five of each class is for
        validation. Raises UserError for a name, a number of frames or a picture that is not
        accepted, and if the disk is full.
        """
        name = checked_name(name)
        if not 2 <= len(pictures) <= MAX_FRAMES:
            raise UserError(f"a clip has 2 to {MAX_FRAMES} frames, not {len(pictures)}")
        for picture in pictures:
            decode_jpeg(picture)
        with self.lock:
            self._check_folder()
            if len(self.clips) >= MAX_CLIPS:
                raise UserError(f"there are already {MAX_CLIPS:,} clips; remove some")
            name = self.spelling(name)
            clip_id = str(self.last_number + 1)
            own_set = DISABLED if name in self.disabled() else self._due_set(name, self.clips)
            paths = self.folder / "clips" / UNFINISHED / clip_id, self.folder / "clips" / clip_id
            try:
                self._write_frames(paths[0], pictures)
                paths[0].rename(paths[1])
                self.last_number += 1
                self._write({**self.clips, clip_id: (name, own_set)})
            except BaseException as error:
                for path in paths:
                    shutil.rmtree(path, ignore_errors=True)  # no half a clip is left
                if is_disk_full(error):
                    raise DiskFullError(
                        f"the disk of {self.folder} is full, so this clip of “{name}” was not "
                        "saved; remove clips here, or make room on the disk"
                    ) from None
                raise
        return clip_id

    def _write_frames(self, folder, pictures):
        for path in (folder.parent, folder):
            path.mkdir(exist_ok=True)
        for number, picture in enumerate(pictures, 1):
            with open(folder / f"{number:05d}.jpg", "wb") as file:
                file.write(picture)
                os.fsync(file.fileno())

    def _due_set(self, name, clips) -> str:
        """Return the set of the next clip of a class."""
        sets = [own_set for label, own_set in clips.values() if label == name]
        is_due = sets.count("validation") < (len(sets) + 1) // SHARE_FOR_VALIDATION
        return "validation" if is_due else "train"

    def remove(self, ids: list[str]) -> bool:
        """Remove clips, which `restore` brings back until `empty_trash`, if they have files.

        Returns whether the disk is full: then these, and those removed before, are deleted. Raises
        UserError if there is none with an id.
        """
        with self.lock:
            self._check_folder()
            self._check_ids(ids, self.clips, "clip")
            rows = {clip_id: self.clips[clip_id] for clip_id in ids}
            rest = {key: row for key, row in self.clips.items() if key not in rows}
            try:
                self._write(rest)
                (self.folder / "clips" / REMOVED).mkdir(exist_ok=True)
            except OSError as error:
                if not is_disk_full(error):
                    raise
                self._empty_trash()
                for clip_id in ids:
                    _delete(self.path(clip_id))
                self._write(rest)
                return True
            for clip_id, row in rows.items():
                self.num_changes += 1  # a number of its own
                place = self.folder / "clips" / REMOVED / str(self.num_changes)
                with suppress(FileNotFoundError):  # someone has deleted its files
                    self.path(clip_id).rename(place)
                    self.removed[clip_id] = row, place
        return False

    def restore(self, ids: list[str]) -> None:
        """Bring removed clips back, each as its class is now. Raises GoneError if one is deleted.

        After any other error they are still removed.
        """
        with self.lock:
            self._check_folder()
            if gone := [clip_id for clip_id in ids if clip_id not in self.removed]:
                raise GoneError(f"there is no removed clip {summarize(gone)}; it was deleted")
            clips, moved = dict(self.clips), []
            for clip_id in ids:
                clips[clip_id] = self._row_now(self.removed[clip_id][0], clips)
            try:
                for clip_id in ids:
                    self.removed[clip_id][1].rename(self.path(clip_id))
                    moved.append(clip_id)
                self._write(_in_order(clips))
            except BaseException:
                for clip_id in moved:
                    self.path(clip_id).rename(self.removed[clip_id][1])
                raise
            for clip_id in ids:
                del self.removed[clip_id]

    def _row_now(self, row, clips) -> tuple[str, str]:
        """Return the row of a removed clip among `clips`, where its class may have changed."""
        name, own_set = _spelling(row[0], clips), row[1]
        sets = {each for label, each in clips.values() if label == name}
        if sets and (DISABLED in sets) != (own_set == DISABLED):
            own_set = DISABLED if DISABLED in sets else self._due_set(name, clips)
        return name, own_set

    def _check_ids(self, ids, known, kind):
        if unknown := [clip_id for clip_id in ids if clip_id not in known]:
            raise UserError(f"there is no {kind} {summarize(unknown)}; it may have been removed")

    def empty_trash(self) -> None:
        """Delete the files of removed clips."""
        with self.lock:
            self._check_folder()
            self._empty_trash()

    def _empty_trash(self):
        for _, place in self.removed.values():
            _delete(place)
        self.removed = {}

    def path(self, clip_id: str) -> Path:
        """Return where a clip is."""
        return Path(PlainFolder(str(self.folder / "clips")).clip_path(clip_id))

    def strip(self, clip_id: str, config: Config) -> bytes:
        """Return the thumbnail of a clip, or of one that was removed, since a page may ask late.

        Raises UserError if the clip cannot be read.
        """
        while True:
            path = self._current_path(clip_id)
            try:
                return thumbnail(path, config)
            except (UserError, OSError):
                if path == self._current_path(clip_id):  # it was not moved meanwhile
                    raise

    def _current_path(self, clip_id) -> Path:
        with self.lock:
            if clip_id in self.removed:
                return self.removed[clip_id][1]
            self._check_ids([clip_id], self.clips, "clip")
            return self.path(clip_id)

    # --- classes -------------------------------------------------------------------------------

    def enabled(self) -> dict:
        """Return the clips of the classes that are switched on, as in `clips`."""
        return {key: row for key, row in self.clips.items() if row[1] != DISABLED}

    def counts(self) -> Counter:
        """Return the number of clips of each class that is switched on."""
        return Counter(label for label, _ in self.enabled().values())

    def disabled(self) -> set[str]:
        """Return the classes that are switched off."""
        return {label for label, own_set in self.clips.values() if own_set == DISABLED}

    def spelling(self, name: str) -> str:
        """Return the existing class that has this name, perhaps in other case, or the name."""
        return _spelling(name, self.clips)

    def rename(self, name: str, new: str) -> None:
        """Rename a class, and its removed clips. Raises UserError if another has the new name."""
        new = checked_name(new)
        with self.lock:
            self._check_folder()
            self._check_class(name)
            other = self.spelling(new)
            if other != name and other in {label for label, _ in self.clips.values()}:
                raise UserError(f"there is already a gesture “{other}”; choose another name")
            self._write(
                {
                    key: (new if label == name else label, own_set)
                    for key, (label, own_set) in self.clips.items()
                }
            )
            for key, ((label, own_set), place) in self.removed.items():
                if label == name:
                    self.removed[key] = (new, own_set), place

    def enable(self, name: str, is_on: bool) -> None:
        """Switch a class on or off; one that is off keeps its clips, and is not trained on."""
        with self.lock:
            self._check_folder()
            self._check_class(name)
            clips = {}
            for key, (label, own_set) in self.clips.items():
                if label == name and is_on != (own_set != DISABLED):
                    own_set = self._due_set(name, clips) if is_on else DISABLED
                clips[key] = label, own_set
            self._write(clips)

    def _check_class(self, name):
        if all(label != name for label, _ in self.clips.values()):
            raise UserError(f"there is no gesture “{name}”; it may have been renamed or removed")

    # --- lists ---------------------------------------------------------------------------------

    def _write(self, clips) -> None:
        """Write the CSVs, and set `clips` if that succeeds."""
        _write_lists(self.folder, clips)
        self.clips = clips
        self.num_changes += 1

    def balance(self) -> None:
        """Split the clips again if a class has none for training or none for validation."""
        with self.lock:
            clips = self.enabled()
            if len(set(clips.values())) < len(SETS) * len(self.counts()):
                labels = [label for label, _ in clips.values()]
                flags = choose_validation(labels, list(clips), seed=0)
                rows = {
                    key: (label, SETS[int(flag)])
                    for key, label, flag in zip(clips, labels, flags, strict=True)
                }
                self._write(self.clips | rows)

    def snapshot(self, folder: Path) -> None:
        """Make `folder` a data set of the clips that are switched on, for a training.

        Files are linked if the file system can, so that they need no room. Later changes here do
        not change it. Raises UserError if the files of a clip are gone.
        """
        with self.lock:
            self._check_folder()
            clips = self.enabled()
            if gone := [clip_id for clip_id in clips if not self.path(clip_id).exists()]:
                raise UserError(f"the files of clip {summarize(gone)} are gone; remove it here")
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                for clip_id in clips:
                    source, target = self.path(clip_id), partial / "clips" / clip_id
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if source.is_dir():
                        shutil.copytree(source, target, copy_function=_link_or_copy)
                    else:
                        _link_or_copy(source, target)
                _write_lists(partial, clips)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise

    def trim_snapshot(self, folder: Path) -> None:
        """Delete the clips of a snapshot that have been removed here, to make room."""
        for path in (folder / "clips").glob("*"):
            if path.name not in {clip_id.partition("/")[0] for clip_id in self.clips}:
                _delete(path)


def _write_lists(folder: Path, clips: dict) -> None:
    """Write the CSVs and labels.csv of clips, {id: (class, set)}, to a folder.

    All are written before the first is replaced: on a full disk, all stay what they were.
    """
    names = {label for label, own_set in clips.values() if own_set != DISABLED}
    lines = "".join(f"{name}\n" for name in sorted(names, key=natural_key))
    contents = {folder / "labels.csv": lines.encode()}
    for set_name in (*SETS, DISABLED):
        text = io.StringIO()
        rows = [(key, label) for key, (label, own_set) in clips.items() if own_set == set_name]
        csv.writer(text, lineterminator="\n").writerows([("video_id", "label"), *rows])
        if rows or set_name != DISABLED:
            contents[folder / f"{set_name}.csv"] = text.getvalue().encode()
    with ExitStack() as files:  # it ends with the file that was opened first
        # A list that grows is replaced before one that shrinks: if an interruption comes between,
        # a clip that changes lists is in both, not in none.
        for path in sorted(contents, key=lambda path: len(contents[path]) - _size(path)):
            file = files.enter_context(atomic_write(path))
            file.write(contents[path])
            file.flush()
    if folder / f"{DISABLED}.csv" not in contents:
        (folder / f"{DISABLED}.csv").unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _in_order(clips: dict) -> dict:
    return dict(sorted(clips.items(), key=lambda item: natural_key(item[0])))


def _spelling(name: str, clips: dict) -> str:
    """Return the class of `clips` that has this name, perhaps in other case, or the name."""
    names = {label for label, _ in clips.values()}
    same = sorted(each for each in names if _tidy(each).casefold() == _tidy(name).casefold())
    return name if name in names or not same else same[0]


def _tidy(name: str) -> str:
    """Return a name with one plain space for each gap, which may be a tab or a wide space."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", name.strip()))


def _delete(path: Path) -> None:
    """Delete a clip's folder, film, or link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link_or_copy(source, target) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def checked_name(name: str) -> str:
    """Return a class name as it is saved. Raises UserError if it cannot be."""
    name = _tidy(name)
    # Joiners, which are not printable, make one emoji of several, and are part of Persian words.
    shown = name.replace("\u200c", "").replace("\u200d", "")
    if not shown or len(name) > MAX_NAME or not shown.isprintable():
        raise UserError(f"a gesture's name has 1 to {MAX_NAME} printable characters; change it")
    return name

"""What a clip is (`FrameSource`), where clips are (`ClipFolder`), and clips in plain folders."""

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from clips.films import ANIMATED_SUFFIXES, AnimatedPicture, is_video, sort_files
from clips.frames import FRAME_SUFFIXES, FrameError, FrameFolder, composed, list_frames
from clips.videos import VideoFile
from config import Config

_READ_BYTES = 2**20
_THUMBNAIL = re.compile(r"thumb|cover|poster|preview|folder|screenshot|album", re.IGNORECASE)


# --- what the program knows of a clip and of a folder ------------------------------------------


class FrameSource(Protocol):
    """A clip: a sequence of RGB frames, one after the other in time, decoded on demand.

    Opening one finds out how many frames there are; a frame is decoded when it is asked for. What
    happens to the frames (choosing, scaling, cropping) is the same for all kinds, in `reading.py`.
    Implementations: `FrameFolder`, pictures in a folder; `PackedFrames`, the same in a pack;
    `VideoFile` and `AnimatedPicture`, films, resampled to the config's `frame_rate`; and
    `FramesInMemory`, from a camera.
    """

    native_rate: float | None  # frames per second in a film's file; None: not a film

    def __len__(self) -> int:
        """Return the number of frames."""

    def frames_at(self, positions: Iterable[int]) -> Iterator[np.ndarray]:
        """Yield the frames at ascending `positions`, uint8 RGB [H, W, 3] each, upright.

        Raises FrameError, whose message begins with the path, for a frame that is damaged.
        """


class ClipFolder(Protocol):
    """A data folder: clips by their ids, which are paths below it, such as `12` or `wave/12.mp4`.

    Implementations: `PlainFolder`, a folder on disk, whose clips are folders of frames and films;
    and `Pack`, a file with the frames of all clips. `packs.open_folder` returns one of them. Both
    are a path, too, for messages and `os.path`, and are small when pickled: the data set of each
    loader worker has one. Their methods find an id however its accents are spelled.
    """

    identity: str  # changes with the frames; empty if only reading all files would tell
    frame_rate: float | None  # of all clips, in frames per second; None: unknown, or it differs
    max_height: int | None  # pixels, to which a pack's frames were shrunk; None: they were not

    def __fspath__(self) -> str: ...

    def check(self, config: Config) -> None:
        """Raise UserError if the frames do not suit `config`.

        A training calls this before its workers are forked, so that they share what is open.
        """

    def clip(self, clip_id: str) -> "Clip":
        """Return a clip, which need not exist: opening it would be an error."""

    def clip_path(self, clip_id: str) -> str:
        """Return the path of a clip."""

    def open(self, clip_id: str, config: Config) -> FrameSource:
        """Open a clip. Raises FrameError if it has no frames or is damaged."""

    def siblings(self, ids: Iterable[str]) -> set[str]:
        """Return the ids, in NFC, of at least all clips in the same folders as those of `ids`.

        Raises OSError, or FrameError, if the folder cannot be read.
        """

    def search(self) -> "Listing":
        """Return all clips in the folder."""

    def duplicates(self, ids: list[str]) -> list[list[int]]:
        """Return sets of clips with exactly the same bytes, as positions in `ids`.

        A clip that cannot be read has no duplicate.
        """

    def other_files(self, clip_id: str) -> list[str]:
        """Return the names of the files, hidden ones apart, that are beside a clip's frames."""


@dataclass(frozen=True)
class Clip:
    """The place of a clip: a folder, and an id in it; also a path."""

    folder: ClipFolder
    id: str

    def __fspath__(self):
        return self.folder.clip_path(self.id)

    __str__ = __fspath__

    def open(self, config: Config) -> FrameSource:
        """Open the clip, as `ClipFolder.open` does."""
        return self.folder.open(self.id, config)


class Listing(NamedTuple):
    """The clips of a `ClipFolder`; all but the messages are paths below it."""

    ids: list[str]
    empty: list[str]  # folders without clips
    others: list[str]  # files that are passed over
    problems: list[str]  # a message for each folder that is not usable


# --- plain folders -----------------------------------------------------------------------------


@dataclass(frozen=True)
class PlainFolder:
    """A folder on disk, whose clips are folders of frames and films: a `ClipFolder`."""

    path: str
    identity = ""
    frame_rate, max_height = None, None

    def __fspath__(self):
        return self.path

    __str__ = __fspath__

    def check(self, config: Config) -> None:
        """Do nothing: what a clip has is known when it is opened."""

    def clip(self, clip_id: str) -> Clip:
        return Clip(self, str(clip_id))

    def clip_path(self, clip_id: str) -> str:
        path = os.path.join(self.path, clip_id)
        if clip_id.isascii() or os.path.lexists(path):
            return path
        # Its accents may be composed or apart (NFC, NFD), in each part of the path.
        found = self.path
        for part in clip_id.split("/"):
            forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
            paths = [os.path.join(found, form) for form in forms]
            found = next(filter(os.path.lexists, paths), None)
            if found is None:
                return path
        return found

    def open(self, clip_id: str, config: Config) -> FrameSource:
        return open_clip(self.clip_path(clip_id), config)

    def siblings(self, ids: Iterable[str]) -> set[str]:
        """Scan each folder once, instead of asking the file system about each of 100,000 ids."""
        present = set()
        os.stat(self.path)
        for parent in {clip_id.rpartition("/")[0] for clip_id in ids}:
            path = self.clip_path(parent) if parent else self.path
            if parent and not os.path.isdir(path):
                continue
            with os.scandir(path) as entries:
                present |= {
                    composed(f"{parent}/{entry.name}" if parent else entry.name)
                    for entry in entries
                    if is_video(entry.path) or _is_folder(entry)
                }
        return present

    def search(self) -> Listing:
        root = Path(self.path)
        found = search_folder(root)
        ids, empty, others = (
            [path.relative_to(root).as_posix() for path in paths]
            for paths in (found.clips, found.empty, found.others)
        )
        problems = [message for path, message in found.problems if path not in found.empty]
        return Listing(ids, [path for path in empty if path != "."], others, problems)

    def duplicates(self, ids: list[str]) -> list[list[int]]:
        """Return the positions of equal clips; only clips of equal size are read."""
        by_size = defaultdict(list)
        for position, clip_id in enumerate(ids):
            with suppress(FrameError, OSError):
                files = _files_of(Path(self.path, clip_id))
                by_size[tuple(map(os.path.getsize, files))].append((position, files))
        by_content = defaultdict(list)
        for size, clips in by_size.items():
            if len(clips) > 1:
                for position, files in clips:
                    with suppress(OSError):
                        by_content[size, _digest(files)].append(position)
        return [same for same in by_content.values() if len(same) > 1]

    def other_files(self, clip_id: str) -> list[str]:
        path = self.clip_path(clip_id)
        if is_video(path):
            return []
        others = set(os.listdir(path)).difference(list_frames(path))
        return sorted(name for name in others if name[0] != ".")


def clip_at(path) -> Clip:
    """Return the clip at a path, wherever it is."""
    return PlainFolder("").clip(os.fspath(path))


def open_clip(path, config: Config) -> FrameSource:
    """Open a folder of frames, a video or an animated picture. Raises FrameError if unreadable."""
    if is_video(path):
        return open_video(path, config.frame_rate, config.max_frame_pixels)
    return FrameFolder(path, config.max_frame_pixels)


def open_video(path, frame_rate: float, max_pixels: int) -> VideoFile | AnimatedPicture:
    """Open a video file or an animated picture, resampled to `frame_rate` frames per second.

    Raises FrameError if it cannot be read.
    """
    is_picture = os.fspath(path).lower().endswith(ANIMATED_SUFFIXES)
    return (AnimatedPicture if is_picture else VideoFile)(path, frame_rate, max_pixels)


def _files_of(path: Path) -> list[str]:
    return [str(path / name) for name in list_frames(path)] if path.is_dir() else [str(path)]


def _digest(files) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        with open(path, "rb") as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
    return digest.digest()


def _is_folder(entry: os.DirEntry) -> bool:
    # is_dir() of a scanned entry costs nothing, but raises on a circular link.
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


# --- searching ---------------------------------------------------------------------------------


class Found(NamedTuple):
    """What is below a folder."""

    clips: list[Path]
    empty: list[Path]  # folders without frames, videos and other folders
    problems: list[tuple[Path, str]]  # folders that are not usable, those of `empty` too
    others: list[Path]  # files that are passed over


def search_folder(folder: Path) -> Found:
    """Return the clips at or below a folder, sorted by name."""
    found = Found([], [], [], [])
    _search(folder, found)
    return found


def _search(folder: Path, found: Found) -> None:
    try:
        with os.scandir(folder) as entries:
            entries = sorted(
                (entry.name, _is_folder(entry), entry.is_symlink())
                for entry in entries
                if not entry.name.startswith(".")
            )
    except OSError as error:
        found.problems.append((folder, f"{folder}: cannot be read ({error.strerror})"))
        return
    folders = {name: is_link for name, is_folder, is_link in entries if is_folder}
    files = sort_files(folder, [name for name, is_folder, _ in entries if not is_folder])
    inner = sorted([*folders, *files.films])
    found.others.extend(folder / name for name in files.others)
    have_frames = are_frames(files.frames, inner)
    if have_frames and all(name.lower().endswith((".gif", ".apng")) for name in inner):
        found.clips.append(folder)
        found.others.extend(folder / name for name in inner)  # such as a preview of the frames
        return
    if have_frames:
        message = (
            f"{folder}: has both frames and other clips ({inner[0]}); put each clip in "
            "its own folder"
        )
        found.problems.append((folder, message))
        return
    found.others.extend(folder / name for name in files.frames)
    if not inner:
        found.empty.append(folder)
        message = f"{folder}: contains no frames ({', '.join(FRAME_SUFFIXES)}) and no videos"
        found.problems.append((folder, message))
    for name in inner:
        path = folder / name
        if name not in folders:
            found.clips.append(path)
        elif not (folders[name] and folder.resolve().is_relative_to(path.resolve())):
            _search(path, found)  # a link to a folder above would be searched forever


def are_frames(pictures: list[str], clips: list[str]) -> bool:
    """Return whether pictures beside clips are frames of a further clip, rather than thumbnails.

    Frames are numbered and more than the clips are. A thumbnail may have the name of its clip.
    """
    if not clips:
        return bool(pictures)
    names = {name for clip in clips for name in (clip.lower(), os.path.splitext(clip)[0].lower())}
    frames = [
        name
        for name in pictures
        if re.search(r"\d", name)
        and not _THUMBNAIL.match(name)
        and os.path.splitext(name)[0].lower() not in names
    ]
    return len(frames) > (len(clips) if len(clips) > 1 else 0)

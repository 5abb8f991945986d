"""Make packs from folders of frames and videos, and from archives without unpacking them."""

import math
import os
import shutil
import struct
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg

from clips.films import ANIMATED_SUFFIXES, is_video, num_pictures
from clips.folders import open_video, search_folder
from clips.frames import (
    FRAME_SUFFIXES,
    JPEG_SUFFIXES,
    FrameError,
    decode_frame,
    in_natural_order,
    natural_key,
    read_file,
)
from clips.packs import (
    BITS_16,
    BITS_32,
    INDEX_NAME,
    LOCAL,
    ROW,
    SUFFIX,
    VERSION,
    Pack,
    comment_of,
    end_records,
)
from clips.search import Frames, archive_clips, is_hidden
from clips.transforms import scale_to_height
from config import Config
from system.errors import UserError
from system.files import open_locked

MAX_FRAME_PIXELS = Config.model_fields["max_frame_pixels"].default
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_UTF8_NAMES = 0x800
_DATE = 1 << 5 | 1  # 1980-01-01, so that the same frames give the same file


@dataclass
class Packing:
    """How to make a pack, and what was left out."""

    height: int | None = None  # taller frames are shrunk to it
    quality: int = 95  # of the JPEGs made from these and from videos
    frame_rate: float | None = None  # frames per second of videos
    max_frame_pixels: int = MAX_FRAME_PIXELS  # larger frames are not decoded
    bar: object = None  # while packing: a progress bar, updated with the bytes that were read
    hidden: list[str] = field(default_factory=list)  # files that were left out
    others: list[str] = field(default_factory=list)  # files that are not frames
    no_films: list[str] = field(default_factory=list)  # the same, beside videos and folders
    unreadable: list[str] = field(default_factory=list)  # what could not be decoded, and why

    def progress(self, num_bytes: int) -> None:
        """Advance the progress bar by bytes read from the sources."""
        self.bar.update(num_bytes)

    def is_frame(self, path: str) -> bool:
        """Return whether to pack a file; record it if it is left out."""
        if is_hidden(path):
            self.hidden.append(path)
            return False
        if path.lower().endswith(FRAME_SUFFIXES):
            return True
        if is_video(path):
            raise UserError(f"{path}: is a video; unpack the archive and pack its folder")
        self.others.append(path)
        return False


def pack(target: Path, sources: list[Path], packing: Packing, bar) -> Pack:
    """Write the clips of `sources` to the pack `target`, and return it.

    sources: a folder, a video, an archive, or the parts of one. bar: tqdm or similar; called with
    `total`, the number of bytes to read. Raises UserError if a source cannot be read or the
    target cannot be written; an earlier pack is then kept.
    """
    if missing := [path for path in sources if not path.exists()]:
        raise UserError(f"{missing[0]}: no such file or folder; correct the path")
    _check_target(target)
    target = Path(os.path.realpath(target))  # keep a link
    is_folder = os.path.isdir(sources[0]) or is_video(sources[0])
    try:
        num_bytes, clips, about = (_from_folder if is_folder else _from_archive)(sources, packing)
        is_copied = packing.height is None and not (is_folder and about)
        known_height = about.get("height") or math.inf
        if packing.height is not None and packing.height < known_height:
            about |= {"height": packing.height, "quality": packing.quality}
        with (
            _written_whole(target, num_bytes if is_copied else 0) as file,
            tempfile.TemporaryFile(dir=target.absolute().parent) as central,
            bar(total=num_bytes) as shown,
            closing(clips),
        ):
            packing.bar = shown
            writer = PackWriter(file, central)
            for path, frames in clips:
                writer.add_clip(path, frames)
            writer.finish(**about)
    except OSError as error:
        raise UserError(
            f"{error.filename or target}: cannot be read or written "
            f"({error.strerror}); make room, or check permissions and the disk"
        ) from None
    return Pack(target)


def _check_target(target: Path) -> None:
    if target.suffix.lower() != SUFFIX:
        raise UserError(f"{target}: give the pack to write first, with a name ending in {SUFFIX}")
    if not target.absolute().parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}; make it")
    if target.exists():
        try:
            Pack(target).ids()
        except FrameError as error:
            raise UserError(
                f"{error}; delete the file, or give another name; only a pack is replaced"
            ) from None


@contextmanager
def _written_whole(target: Path, num_bytes: int):
    """Yield a file that becomes `target` if the block ends without an error.

    num_bytes: its minimum size. Raises UserError if there is less space, or if another process
    writes the same file. The file stays locked until it is renamed, unlike one of `atomic_write`,
    which is closed before.
    """
    folder, part = target.absolute().parent, Path(f"{target}.part")
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"{target}: needs {num_bytes / 1e9:.1f} GB, but {folder} has "
            f"{free / 1e9:.1f} GB left; make room"
        )
    with open(_locked(part), "wb", buffering=2**20) as file:
        try:
            file.truncate(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # some file systems cannot
        os.fsync(descriptor)
    os.close(descriptor)


def _locked(part: Path) -> int:
    """Open and lock a file; raise UserError if another process has locked it."""
    descriptor = open_locked(part)
    if descriptor is None:
        raise UserError(f"{part}: another process is writing this pack; wait for it")
    return descriptor


# --- sources -----------------------------------------------------------------------------------


def _from_folder(sources, packing) -> tuple[int, Iterator[tuple[str, Frames]], dict]:
    """Return the bytes to read, the clips with their paths, and entries for the pack's comment."""
    folder, *others = sources
    if others:
        raise UserError(f"{others[0]}: a pack is made of one folder; put all clips into it")
    clips = [folder]
    if folder.is_dir():
        found = search_folder(folder)
        if problems := [text for path, text in found.problems if path not in found.empty]:
            raise UserError(problems[0])
        clips = sorted(found.clips + found.empty, key=lambda clip: natural_key(str(clip)))
        # Those beside frames are counted when the frames are read.
        packing.no_films += [str(path) for path in found.others if path.parent not in clips]
    has_videos = any(map(is_video, clips))
    if packing.frame_rate is not None and not has_videos:
        raise UserError(
            f"--frame_rate: there are no videos in {folder}, and frames are copied as "
            "they are; leave it out"
        )
    if has_videos and packing.frame_rate is None:
        raise UserError(
            f"{next(filter(is_video, clips))}: is a video; give --frame_rate, the "
            "frame_rate of the config"
        )
    root = folder.absolute().parent if clips == [folder] else folder.absolute()

    def read(clip):
        read_frames = _decode_video if is_video(clip) else _read_frames
        return clip.absolute().relative_to(root).as_posix(), read_frames(clip, packing)

    num_bytes = sum(
        os.path.getsize(clip) if is_video(clip) else _size_of_files(clip) for clip in clips
    )
    about = {"frame_rate": packing.frame_rate, "quality": packing.quality} if has_videos else {}
    return num_bytes, _in_threads(read, clips), about


def _size_of_files(folder) -> int:
    num_bytes = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # an editor's lock file is a link to nowhere
                num_bytes += entry.stat().st_size
    return num_bytes


def _read_frames(folder: Path, packing) -> Frames:
    names = [name for name in os.listdir(folder) if packing.is_frame(name)]
    frames = []
    for name in in_natural_order(names):
        data = read_file(folder / name)
        packing.progress(len(data))
        frames.append((name, data))
    return _shrunk(str(folder), frames, packing)


def _decode_video(path: Path, packing) -> Frames:
    """Return a video's frames as JPEGs; if it is damaged, record that and return none."""
    packing.progress(os.path.getsize(path))
    try:
        video = open_video(path, packing.frame_rate, packing.max_frame_pixels)
        frames = [_encode(frame, packing) for frame in video.frames_at(range(len(video)))]
    except FrameError as error:
        packing.unreadable.append(str(error))
        frames = []
    return [(f"{number:05d}.jpg", data) for number, data in enumerate(frames, 1)]


def _from_archive(sources, packing) -> tuple[int, Iterator[tuple[str, Frames]], dict]:
    """Return the same as `_from_folder`, for an archive or its parts."""
    num_bytes, about = sum(map(os.path.getsize, sources)), {}
    with suppress(FrameError):
        known = Pack(sources[0]).about  # if it is a pack itself
        about = {name: known.get(name) for name in ("height", "quality", "frame_rate")}

    def shrink(clip):
        return clip[0], _shrunk(*clip, packing)

    clips = _without_films(archive_clips(sources, packing.is_frame, packing.progress))
    return num_bytes, _in_threads(shrink, clips) if packing.height else clips, about


def _without_films(clips) -> Iterator[tuple[str, Frames]]:
    """Yield the clips of an archive; raise UserError for an animated picture among the frames."""
    for path, frames in clips:
        for name, data in frames:
            if name.lower().endswith(ANIMATED_SUFFIXES) and num_pictures(data) > 1:
                raise UserError(
                    f"{path}/{name}: is animated; unpack the archive and pack its folder"
                )
        yield path, frames


# --- frames ------------------------------------------------------------------------------------


def _shrunk(path: str, frames: Frames, packing) -> Frames:
    """Shrink frames taller than packing.height; keep bad ones as they are."""
    if packing.height is None:
        return frames
    result = []
    for name, data in frames:
        try:
            frame = decode_frame(data, packing.max_frame_pixels)
            if frame.shape[0] > packing.height:
                stem, suffix = os.path.splitext(name)
                name = name if suffix.lower() in JPEG_SUFFIXES else f"{stem}.jpg"
                data = _encode(frame, packing)
        except FrameError as error:
            packing.unreadable.append(f"{path}/{name}: {error}")
        result.append((name, data))
    return result


def _encode(frame: np.ndarray, packing) -> bytes:
    if packing.height is not None and frame.shape[0] > packing.height:
        frame = scale_to_height(frame, packing.height)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(frame), packing.quality, "RGB", "420")


def _in_threads(function, items) -> Iterator:
    """Yield function(item) of each item in order, computed a few items ahead."""
    waiting, num_threads = deque(), os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# --- the file ----------------------------------------------------------------------------------


class PackWriter:
    """Writer of a pack in one pass.

    file: open for writing; central: a temporary file, which collects ZIP's central directory.
    """

    def __init__(self, file: BinaryIO, central: BinaryIO):
        self.file, self.central = file, central
        self.position = self.num_members = self.central_crc = 0
        self.rows = bytearray()
        self.clips: dict[str, tuple[int, int]] = {}  # first row and number of rows by path

    def add_clip(self, path: str, frames: list[tuple[str, bytes]]) -> None:
        """Append a clip's frames, (name, content) in natural order, below the folder `path`.

        Raises UserError if the pack has this clip already, or if a name cannot be stored.
        """
        if path in self.clips:
            raise UserError(
                f"{path}: the clip occurs twice, or its frames are in two places of "
                "the archive; unpack the archive and pack its folder"
            )
        if len({name for name, _ in frames}) < len(frames):
            raise UserError(f"{path}: two frames have the same name; keep one of them")
        self.clips[path] = len(self.rows) // ROW.itemsize, len(frames)
        for name, data in frames:
            crc32 = zlib.crc32(data)
            offset = self._add_member(f"{path}/{name}", data, crc32)
            self.rows += struct.pack("<QII", offset, len(data), crc32)

    def _add_member(self, name: str, data: bytes, crc32: int) -> int:
        """Append a file, or a folder if its name ends with a slash; return its content's offset."""
        try:
            encoded = name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{name!r}: the name is not valid UTF-8; rename it") from None
        if len(encoded) > BITS_16 or len(data) >= BITS_32:
            raise UserError(f"{name[:200]}: its name or content is too long for a ZIP file")
        start = self.position
        extra = struct.pack("<2HQ", 1, 8, start) if start >= BITS_32 else b""
        version = 45 if extra else 20
        common = _UTF8_NAMES, 0, 0, _DATE, crc32, len(data), len(data), len(encoded)
        self.file.write(LOCAL.pack(b"PK\3\4", version, *common, 0) + encoded)
        self.file.write(data)
        mode = 0o40755 << 16 | 0x10 if name.endswith("/") else 0o100644 << 16
        entry = (
            _CENTRAL.pack(
                b"PK\1\2",
                3 << 8 | 45,
                version,
                *common,
                len(extra),
                0,
                0,
                0,
                mode,
                min(start, BITS_32),
            )
            + encoded
            + extra
        )
        self.central.write(entry)
        self.central_crc = zlib.crc32(entry, self.central_crc)
        self.num_members += 1
        offset = start + LOCAL.size + len(encoded)
        self.position = offset + len(data)
        return offset

    def finish(self, **about) -> None:
        """Append the index and ZIP's own directory.

        about: further entries of the comment: height, quality, frame_rate; None is left out. Ids
        are relative to the common folder of clips with frames. Raises UserError if there are none.
        """
        parents = [path.rpartition("/")[0] for path, (_, count) in self.clips.items() if count]
        if not parents:
            raise UserError(f"no frames ({', '.join(FRAME_SUFFIXES)}) and no videos in any folder")
        for path, (_, count) in self.clips.items():
            while count and (path := path.rpartition("/")[0]):
                if self.clips.get(path, (0, 0))[1]:
                    raise UserError(
                        f"{path}: has both frames and other clips; unpack the archive, "
                        "and put each clip in its own folder"
                    )
        root = os.path.commonpath(parents)
        self.clips = {
            path: place
            for path, place in self.clips.items()
            if not root or path.startswith(f"{root}/")
        }
        for path, (_, count) in self.clips.items():
            if not count:  # a folder without frames; here, since there are no gaps between frames
                self._add_member(f"{path}/", b"", 0)
        index, id_bytes = self._index(len(f"{root}/") if root else 0)
        offset = self._add_member(INDEX_NAME, index, zlib.crc32(index))
        comment = comment_of(
            {
                "version": VERSION,
                "clips": len(self.clips),
                "frames": len(self.rows) // ROW.itemsize,
                "members": self.num_members,
                "id_bytes": id_bytes,
                "index_offset": offset,
                "index_bytes": len(index),
                "index_crc32": zlib.crc32(index),
                "central_crc32": self.central_crc,
                "root": root,
                **{name: value for name, value in about.items() if value is not None},
            }
        )
        num_bytes = self.central.tell()
        self.central.seek(0)
        shutil.copyfileobj(self.central, self.file)
        self.file.write(end_records(self.num_members, num_bytes, self.position, comment))

    def _index(self, skipped: int) -> tuple[bytes, int]:
        """Return the index, and the bytes of an id; `skipped` characters of a path are the root."""
        ids = np.array([path[skipped:].encode() for path in self.clips], np.bytes_)
        order = np.argsort(ids, kind="stable")
        places = np.array(list(self.clips.values()), "<u8").reshape(-1, 2)[order]
        parts = places[:, 0], places[:, 1].astype("<u4"), ids[order]
        return bytes(self.rows) + b"".join(part.tobytes() for part in parts), ids.itemsize

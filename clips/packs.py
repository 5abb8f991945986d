"""Packs: the frames of a data set in one file, an uncompressed ZIP whose last member is an index.

Any ZIP tool lists, tests and unpacks a pack. A reader needs only the index, since the standard
library takes half a minute and gigabytes to open a ZIP file with millions of members.

A pack has, in this order: the frames, clip by clip and in natural order within a clip; the index;
ZIP's central directory and end records, whose comment describes the pack as JSON. The index has one
row per frame (`ROW`), then, for the clips sorted by id, the first row (u8), the number of rows (u4)
and the id (UTF-8, padded to the longest). Numbers are little-endian.
(ZIP64: PKWARE APPNOTE 6.3.10)
"""

import functools
import json
import os
import struct
import weakref
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from clips.folders import Clip, ClipFolder, Listing, PlainFolder
from clips.frames import FrameError, composed, decode_frame
from config import Config
from system.errors import UserError

SUFFIX = ".zip"
INDEX_NAME = ".clip-index"  # hidden, so that an unpacked pack has no additional clip
VERSION = 1
ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4")])
# Frames are read together if at most this many bytes are between them.
MAX_GAP = 2**17
MAX_READ = 2**23
BITS_32, BITS_16 = 2**32 - 1, 2**16 - 1
LOCAL = struct.Struct("<4s5H3I2H")
END = struct.Struct("<4s4H2IH")
_MAX_END = END.size + BITS_16  # with the longest comment


# --- the end of the file ----------------------------------------------------------------------


def comment_of(about: dict) -> bytes:
    """Return `about` as JSON, with the CRC-32 of its own text as the last value."""
    text = json.dumps(about)
    return json.dumps(about | {"crc32": zlib.crc32(text.encode())}).encode()


def end_records(num_members: int, size: int, offset: int, comment: bytes) -> bytes:
    """Return ZIP's end records, for a central directory of `size` bytes at `offset`."""
    large = struct.pack(
        "<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, num_members, num_members, size, offset
    )
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, offset + size, 1)
    count = min(num_members, BITS_16)
    end = END.pack(
        b"PK\5\6", 0, 0, count, count, min(size, BITS_32), min(offset, BITS_32), len(comment)
    )
    return large + locator + end + comment


# --- reading -----------------------------------------------------------------------------------


class Pack:
    """A pack, opened at its first use, and pickled as its path: a `ClipFolder`.

    Each process reads it with `os.pread`, which leaves the position of a shared descriptor alone. A
    pack that is replaced while it is open is still read as it was. expected: the `identity` that
    the file must have. Methods raise FrameError if the file is no pack, damaged, or another one.
    """

    def __init__(self, path, expected: str | None = None):
        self.path, self.expected = os.fspath(path), expected

    def __str__(self):
        return self.path

    __fspath__ = __str__

    def __reduce__(self):
        return _pack_once, (self.path, self.identity)

    @functools.cached_property
    def _opened(self) -> "_Opened":
        opened = _open(self.path)
        if self.expected not in (None, opened.identity):
            raise FrameError(
                f"{self.path}: another pack has replaced it since this run was "
                "started; start the run again"
            )
        return opened

    @property
    def identity(self) -> str:
        """Return a short text that differs between sets of frames."""
        return self._opened.identity

    @property
    def about(self) -> dict:
        """Return the comment's values: counts, height, quality, frame_rate."""
        return self._opened.about

    @property
    def frame_rate(self) -> float | None:
        """Return the frame rate to which videos were resampled; None if there were none."""
        return self.about.get("frame_rate")

    @property
    def max_height(self) -> int | None:
        return self.about.get("height")

    def check(self, config: Config) -> None:
        """Open the pack; raise UserError if its frames do not suit `config`."""
        height, rate = self.max_height, self.frame_rate
        if height is not None and (config.frame_height or 0) > height:
            raise UserError(
                f"frame_height: found {config.frame_height}, but {self.path} has "
                f"frames shrunk to a height of {height}; lower it, or pack again"
            )
        if rate is not None and rate != config.frame_rate:
            raise UserError(
                f"frame_rate: found {config.frame_rate:g}, but {self.path} has videos "
                f"at {rate:g} frames per second; make them equal, or pack again"
            )

    def ids(self) -> list[str]:
        """Return the ids of the clips, sorted: folders such as `12345` or `class/clip`."""
        return [clip_id.decode() for clip_id in self._opened.ids.tolist()]

    def lengths(self) -> list[int]:
        """Return the clips' numbers of frames, in the order of `ids`."""
        return self._opened.counts.tolist()

    def clip(self, clip_id: str) -> Clip:
        return Clip(self, str(clip_id))

    def clip_path(self, clip_id: str) -> str:
        return f"{self.path}/{clip_id}"

    def open(self, clip_id: str, config: Config) -> "PackedFrames":
        """Open a clip. Raises UserError, too, for a pack that does not suit `config`."""
        self.check(config)
        return PackedFrames(self.clip(clip_id), config.max_frame_pixels)

    def siblings(self, ids: Iterable[str]) -> set[str]:
        """Return all ids of the pack, in NFC."""
        return set(map(composed, self.ids()))

    def search(self) -> Listing:
        return Listing(self.ids(), [], [], [])

    def duplicates(self, ids: list[str]) -> list[list[int]]:
        """Return the positions of equal clips, by the checksums in the index."""
        by_content = defaultdict(list)
        for position, clip_id in enumerate(ids):
            rows = self.rows(clip_id)[1:]
            by_content[rows["size"].tobytes(), rows["crc32"].tobytes()].append(position)
        return [same for same in by_content.values() if len(same) > 1]

    def other_files(self, clip_id: str) -> list[str]:
        return []

    def rows(self, clip_id: str) -> np.ndarray:
        """Return the row before a clip's own, and these: `ROW` [1 + num_frames].

        Raises FrameError if there is no such clip.
        """
        opened = self._opened
        place = opened.place(clip_id)
        if place is None:
            place = opened.places_in_nfc.get(composed(clip_id))
        if place is None:
            raise FrameError(f"{self.path}/{clip_id}: no such clip in the pack; drop its CSV row")
        first, count = int(opened.firsts[place]), int(opened.counts[place])
        start = max(0, first - 1)
        offset = opened.about["index_offset"] + start * ROW.itemsize
        rows = np.frombuffer(self.read(offset, (first + count - start) * ROW.itemsize), ROW)
        return rows if first else np.concatenate([np.zeros(1, ROW), rows])

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of the file; raise FrameError if they cannot be read."""
        return _read(self.path, self._opened.descriptor, offset, size)

    def check_directory(self) -> None:
        """Raise FrameError if ZIP's own directory, which reading does not need, is damaged."""
        opened, crc32 = self._opened, 0
        for offset in range(*opened.central, MAX_READ):
            size = min(MAX_READ, opened.central[1] - offset)
            crc32 = zlib.crc32(self.read(offset, size), crc32)
        if crc32 != opened.about["central_crc32"]:
            raise FrameError(
                f"{self.path}: ZIP's directory of the frames is damaged; copy the pack again"
            )


@functools.lru_cache(maxsize=16)
def _pack_once(path, expected) -> Pack:
    """Open a pack once per worker, which unpickles it with each task."""
    return Pack(path, expected)


class PackedFrames:
    """The frames of a clip in a pack, read on demand. Raises FrameError if there are none."""

    native_rate = None

    def __init__(self, clip: Clip, max_pixels: int):
        self.clip, self.max_pixels = clip, max_pixels
        before, *_ = rows = clip.folder.rows(clip.id)
        self.end_before = int(before["offset"]) + int(before["size"])
        self.offsets, self.sizes, self.crcs = (rows[1:][name].tolist() for name in ROW.names)
        if not self.offsets:
            raise FrameError(f"{clip}: clip folder is empty; add its frames or drop its CSV row")

    def __len__(self):
        return len(self.offsets)

    def frames_at(self, positions) -> Iterator[np.ndarray]:
        """Yield the frames at ascending `positions`, as `frames.read_frame` returns them."""
        for position, data in self.read(positions):
            try:
                frame = decode_frame(data, self.max_pixels)
            except FrameError as error:
                raise FrameError(f"{self.path(position)}: {error}") from None
            yield frame

    def read(self, positions) -> Iterator[tuple[int, bytes]]:
        """Yield each frame's position and content; frames close to each other are read together."""
        for group in self._near(list(positions)):
            start = self.offsets[group[0]]
            size = self.offsets[group[-1]] + self.sizes[group[-1]] - start
            content = self.clip.folder.read(start, size)
            for position in group:
                offset = self.offsets[position] - start
                data = content[offset : offset + self.sizes[position]]
                if zlib.crc32(data) != self.crcs[position]:
                    raise FrameError(
                        f"{self.path(position)}: damaged (its CRC-32 is wrong); copy the pack again"
                    )
                yield position, data

    def content(self, position: int) -> bytes:
        """Return the file of one frame."""
        return next(self.read([position]))[1]

    def _near(self, positions) -> Iterator[list[int]]:
        """Split ascending positions where the gap between two frames should not be read."""
        group = positions[:1]
        for position in positions[1:]:
            gap = self.offsets[position] - self.offsets[group[-1]] - self.sizes[group[-1]]
            size = self.offsets[position] + self.sizes[position] - self.offsets[group[0]]
            if not 0 <= gap <= MAX_GAP or size > MAX_READ:
                yield group
                group = []
            group.append(position)
        if group:
            yield group

    @functools.cached_property
    def names(self) -> list[str]:
        """Return the frames' file names, from the headers between them."""
        skipped, names, end = len(self.clip.id.encode()), [], self.end_before
        if root := self.clip.folder.about["root"]:
            skipped += len(f"{root}/".encode())
        for offset, size in zip(self.offsets, self.sizes, strict=True):
            header = self.clip.folder.read(end, offset - end)
            name = header[LOCAL.size + skipped + 1 :]
            names.append(name.decode(errors="replace"))
            end = offset + size
        return names

    def path(self, position: int) -> str:
        """Return a frame's path, for messages."""
        return f"{self.clip}/{self.names[position]}"


# --- opening -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    descriptor: int
    about: dict
    identity: str
    central: tuple[int, int]  # first and last + 1 byte of ZIP's central directory
    firsts: np.ndarray  # uint64 [num_clips], the first row of each clip
    counts: np.ndarray  # uint32 [num_clips], its number of frames
    ids: np.ndarray  # bytes [num_clips], sorted

    def place(self, clip_id: str) -> int | None:
        """Return the place of an id; None if there is none."""
        key = clip_id.encode("utf-8", "surrogateescape")
        place = int(np.searchsorted(self.ids, np.array(key, self.ids.dtype)))
        return place if place < len(self.ids) and self.ids[place] == key else None

    @functools.cached_property
    def places_in_nfc(self) -> dict[str, int]:
        """Return the places of ids with accents, by their composed form."""
        names = (
            (place, clip_id.decode())
            for place, clip_id in enumerate(self.ids.tolist())
            if not clip_id.isascii()
        )
        return {composed(name): place for place, name in names}


def _open(path: str) -> _Opened:
    """Open a pack and check that its index and its end are whole."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise FrameError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        about, central = _read_end(path, descriptor)
        opened = _read_index(path, descriptor, about, central)
    except BaseException:
        os.close(descriptor)
        raise
    weakref.finalize(opened, os.close, descriptor)
    return opened


def _read_end(path, descriptor) -> tuple[dict, tuple[int, int]]:
    """Return the comment's values, and where ZIP's central directory is."""
    size = os.fstat(descriptor).st_size
    tail = _read(path, descriptor, max(0, size - _MAX_END), min(size, _MAX_END))
    comment = tail[tail.rfind(b"PK\5\6") + END.size :]
    try:
        about = json.loads(comment)
        about.pop("crc32")
        offset = about["index_offset"] + about["index_bytes"]
        is_later = about["version"] > VERSION
        is_whole = comment_of(about) == comment
    except (ValueError, TypeError, KeyError, AttributeError):
        is_later = is_whole = False
    if is_later:
        raise FrameError(f"{path}: a pack of a later version of this program; update")
    if is_whole:
        length = len(end_records(0, 0, 0, comment))
        central = offset, size - length
        is_whole = tail[-length:] == end_records(
            about["members"], central[1] - offset, offset, comment
        )
    if not is_whole:
        raise FrameError(_no_pack(path, descriptor, comment))
    return about, central


def _no_pack(path, descriptor, comment) -> str:
    is_zip = os.pread(descriptor, 4, 0) == b"PK\3\4"
    if is_zip and b'"index_crc32"' in comment:
        return f"{path}: the pack is damaged at its end; copy it or pack again"
    if is_zip:
        return (
            f"{path}: a pack that is cut off, or a ZIP file but not a pack; copy it again, or "
            "make a pack of it with pack.py"
        )
    return f"{path}: not a pack; pack.py makes one"


def _read_index(path, descriptor, about, central) -> _Opened:
    num_rows, num_clips = about["frames"], about["clips"]
    start, stop = about["index_offset"], about["index_offset"] + about["index_bytes"]
    middle, crc32 = start + num_rows * ROW.itemsize, 0
    for offset in range(start, middle, MAX_READ):  # not kept: it may be 100 MB
        size = min(MAX_READ, middle - offset)
        crc32 = zlib.crc32(_read(path, descriptor, offset, size), crc32)
    data = _read(path, descriptor, middle, stop - middle)
    if zlib.crc32(data, crc32) != about["index_crc32"]:
        raise FrameError(f"{path}: the index of the pack is damaged; copy it or pack again")
    return _Opened(
        descriptor,
        about,
        f"{about['index_crc32']:08x}",
        central,
        np.frombuffer(data, "<u8", num_clips),
        np.frombuffer(data, "<u4", num_clips, 8 * num_clips),
        np.frombuffer(data, f"S{about['id_bytes']}", num_clips, 12 * num_clips),
    )


def _read(path, descriptor, offset, size) -> bytes:
    try:
        data = os.pread(descriptor, size, offset)
        while data and len(data) < size:  # a signal, or more than 2 GiB
            more = os.pread(descriptor, size - len(data), offset + len(data))
            if not more:
                break
            data += more
    except OSError as error:
        raise FrameError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) < size:
        raise FrameError(f"{path}: the pack is cut off; copy it or pack again")
    return data


def open_folder(path) -> ClipFolder:
    """Return the Pack at `path`, or a PlainFolder if it is not a file."""
    return Pack(path) if os.path.isfile(path) else PlainFolder(os.fspath(path))

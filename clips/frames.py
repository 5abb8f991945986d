"""Frames in a folder: which files they are, their order, and strict decoding.

A damaged frame is an error, never a grey or truncated picture.
"""

import io
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from itertools import starmap
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from system.errors import UserError

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
JPEG_SUFFIXES = (".jpg", ".jpeg")
_JPEG_MAGIC = b"\xff\xd8"
# Markers of a JPEG. (ITU-T T.81, table B.1)
_SOI, _EOI, _SOS, _DHT, _DQT, _COM = 0xD8, 0xD9, 0xDA, 0xC4, 0xDB, 0xFE
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_SOF = (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_SEQUENTIAL = (b"\xc0", b"\xc1")  # with Huffman codes
_ALONE = (0x01, *range(0xD0, 0xDA))  # markers without a segment
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_READ_BYTES = 2**16  # bytes: most frames in one piece
# Non-blocking, so that a named pipe called 00001.jpg is an error instead of a hang.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# The formats of FRAME_SUFFIXES; Pillow tries no others.
_PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_RATIO = 100  # maximum ratio of a frame's sides
_DIGITS = re.compile(r"(\d+)")
_DIGITS_TO_ZERO = str.maketrans("123456789", "000000000")
# The last number of a name, with its decimals: 0.25, t=1.5s, but no part of 1.2.3.
_DECIMAL = re.compile(r"(.*?)(?<!\d)(?<!\d[.,])(\d+)(?:[.,](\d+))?(\D*)", re.DOTALL)


class FrameError(UserError):
    """A clip folder or a frame that cannot be used; the message begins with its path."""


class OversizedFrameError(FrameError):
    """A frame that declares more pixels than `max_frame_pixels`."""


def prepare_decoders(_worker_number: int | None = None) -> None:
    """Set up OpenCV and Pillow for this process; also serves as a DataLoader's worker_init_fn.

    OpenCV runs without threads, since the loader has one worker per core. Pillow's
    limit on pixels, which would report a large picture as damaged, is off: `check_size` refuses
    large pictures and names the config key.
    """
    cv2.setNumThreads(0)
    Image.MAX_IMAGE_PIXELS = None


def natural_key(name: str):
    """Return a sort key that puts `2.jpg` before `10.jpg`, with or without leading zeros."""
    parts = _DIGITS.split(name.lower())
    parts[1::2] = map(int, parts[1::2])
    return tuple(parts), name


def list_frames(folder) -> list[str]:
    """Return the file names of the frames in `folder`, in natural order.

    Hidden files and other kinds of files are ignored. Raises FrameError if there are no frames.
    """
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise FrameError(f"{folder}: clip folder cannot be read ({error.strerror})") from None
    frames = [name for name in names if name.lower().endswith(FRAME_SUFFIXES)]
    if not frames:
        if not names:
            raise FrameError(f"{folder}: clip folder is empty; add its frames or drop its CSV row")
        raise FrameError(
            f"{folder}: no frames ({', '.join(FRAME_SUFFIXES)}), only files such as "
            f"{min(names)!r}; convert them or drop the clip's CSV row"
        )
    return in_natural_order(frames)


def in_natural_order(names) -> list[str]:
    """Return `names` sorted by `natural_key`, or by their numbers if these have decimals."""
    # Names that differ only in their digits, which is the usual case, need no key.
    if len({name.translate(_DIGITS_TO_ZERO) for name in names}) == 1:
        return sorted(names)
    if decimals := decimals_of(names):
        return sorted(names, key=lambda name: (decimals[name], natural_key(name)))
    return sorted(names, key=natural_key)


def decimals_of(names) -> dict[str, tuple] | None:
    """Return the sort key of each name if all end in numbers, such as `0`, `0.25`, `t=10.5s`.

    A key ends with the number, a Decimal. None: no number has decimals, or they may be counters,
    as in `1.9`, `1.10`, since decimals do not end in zeros unless all have as many.
    """
    found = {name: _DECIMAL.fullmatch(os.path.splitext(name)[0]) for name in names}
    if None in found.values():
        return None
    fractions = {match[3] for match in found.values()} - {None}
    may_count = len(set(map(len, fractions))) > 1 and any(
        each.endswith("0") for each in fractions - {"0"}
    )
    if not fractions or may_count:
        return None
    return {
        name: (natural_key(match[1]), natural_key(match[4]), Decimal(f"{match[2]}.{match[3] or 0}"))
        for name, match in found.items()
    }


def composed(name: str) -> str:
    """Return a name with its accents in Unicode's composed form (NFC); a Mac stores them apart."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class FrameFolder:
    """The frames in a folder, read on demand. Raises FrameError if there are none."""

    native_rate = None

    def __init__(self, folder, max_pixels: int):
        self.folder, self.max_pixels = folder, max_pixels
        self.names = list_frames(folder)

    def __len__(self):
        return len(self.names)

    def frames_at(self, positions):
        """Yield the frames at these positions, as `read_frame` returns them."""
        for position in positions:
            yield read_frame(self._path(position), self.max_pixels)

    def content(self, position: int) -> bytes:
        """Return the file of one frame. Raises OSError if it cannot be read."""
        path = self._path(position)
        if not os.path.isfile(path):  # reading a pipe would wait forever
            raise OSError("not a file but a folder, a device or a broken link")
        return Path(path).read_bytes()

    def _path(self, position: int) -> str:
        return f"{self.folder}{os.sep}{self.names[position]}"


class FramesInMemory:
    """Frames in memory, for example from a camera: uint8 RGB [H, W, 3] each."""

    native_rate = None

    def __init__(self, frames):
        self.frames = frames

    def __len__(self):
        return len(self.frames)

    def frames_at(self, positions):
        return (self.frames[position] for position in positions)


def read_frame(path, max_pixels: int) -> np.ndarray:
    """Return the picture at `path` as uint8 RGB [H, W, 3], rotated as its EXIF tag says.

    max_pixels: a picture that declares more is refused before it is decoded.
    Raises FrameError with the path if the file is missing, not a picture, or damaged.
    """
    try:
        data = read_file(path)
    except OSError as error:
        raise FrameError(f"{path}: frame cannot be read ({error.strerror})") from None
    try:
        return decode_frame(data, max_pixels)
    except FrameError as error:
        raise FrameError(f"{path}: {error}") from None


def read_file(path) -> bytes:
    """Read a file by system calls, in half the time of a file object."""
    descriptor = os.open(path, _OPEN_FLAGS)
    try:
        parts = []
        while part := os.read(descriptor, _READ_BYTES):
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(descriptor)


def decode_frame(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode the bytes of a file as `read_frame` does; the FrameError has no path."""
    if not data:
        raise FrameError("file is empty (0 bytes); extract the frame again")
    if not data.startswith(_JPEG_MAGIC):
        return _decode_with_pillow(data, max_pixels)
    frame = _decode_jpeg(data, max_pixels)
    turn = _TURNS.get(_orientation(data))
    return frame if turn is None else np.array(Image.fromarray(frame).transpose(turn))


# --- JPEG ----------------------------------------------------------------------------------------


def _decode_jpeg(data, max_pixels):
    try:
        return _decode_strictly(data, max_pixels)
    except FrameError:
        raise
    except ValueError as error:
        problem = error
    try:
        plain = _with_plain_header(data)
        if plain and plain != data:
            return _decode_strictly(plain, max_pixels)
    except ValueError as error:
        problem = error
    raise FrameError(f"damaged JPEG ({problem}); extract the frame again")


def _decode_strictly(data, max_pixels):
    # simplejpeg is the fastest decoder that treats libjpeg's warnings about damaged data as
    # errors; Pillow ignores most of them.
    height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
    check_size(height, width, max_pixels)
    if colour_space in ("CMYK", "YCCK"):
        simplejpeg.decode_jpeg(data, "CMYK", strict=True)
        return _decode_with_pillow(data, max_pixels)  # handles inverted CMYK
    return simplejpeg.decode_jpeg(data, "RGB", strict=True)


def _segments(data: bytes, start=2) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment of a JPEG's header, without the marker's bytes.

    The last is the first scan's header. Other bytes between segments are skipped, as in libjpeg.
    Ends early where the file does.
    """
    marker = place = None
    while marker != _SOS:
        place = data.find(b"\xff", start)
        marker = data[place + 1] if 0 <= place < len(data) - 3 else _EOI
        if marker == _EOI:
            return
        start = place + 2
        if marker == 0xFF:
            start -= 1
        elif marker in _ALONE:
            yield marker, start, start
        elif marker:
            place, start = start, start + max(2, data[start] << 8 | data[start + 1])
            if start > len(data):
                return
            yield marker, place, start


def _orientation(data: bytes) -> int | None:
    """Return a JPEG's EXIF orientation, from any place in its header. (EXIF 2.3, tag 0x0112)"""
    # Searching takes a hundredth of the time of decoding; few frames need a walk through segments.
    if data.find(b"Exif\0\0") < 0:
        return None
    for marker, start, end in _segments(data):
        if marker == _APP1 and data.startswith(b"Exif\0\0", start + 2):
            exif = Image.Exif()
            with suppress(Exception):  # the picture may be intact although its EXIF block is not
                exif.load(data[start + 2 : end])
                if orientation := exif.get(0x0112):
                    return orientation
    return None


def _with_plain_header(data: bytes) -> bytes | None:
    """Return a JPEG without the harmless parts of its headers that libjpeg warns about.

    These are bytes between segments, unusual versions of JFIF and Adobe, and a spectral selection
    in sequential scans, as phones and cameras write them. The scans' data are unchanged. Returns
    None if a table may be damaged or lost.
    """
    parts, marker, content, end = [b"\xff\xd8"], _SOI, b"", 2
    tables, used, frame, has_gaps = {}, set(), b"", False
    while segments := list(_segments(data, end)):
        frame = next(
            (
                bytes((marker,)) + data[start:stop]
                for marker, start, stop in segments
                if marker in _SOF
            ),
            frame,
        )
        for next_marker, start, stop in segments:
            if gap := data[end : start - 2].strip(b"\xff"):
                if used or not _is_extra(gap, marker, content):
                    return None
                has_gaps = True
            marker, content, end = next_marker, bytearray(data[start:stop]), stop
            if marker == _DHT:
                tables |= _tables_in(content)
            elif marker == _SOS:
                used |= _make_plain_scan(content, frame)
            elif marker == _APP0 and content[2:7] == b"JFIF\0":
                content[7:8] = b"\1"
            elif marker == _APP14 and content[2:7] == b"Adobe" and frame[8:9] == b"\3":
                content[13:14] = b"\0" if content[13:14] == b"\0" else b"\1"
            elif _APP0 <= marker < _APP0 + 16 or marker in (_COM, _SOI):
                continue
            parts.append(bytes((0xFF, marker)) + content)
        if marker == _SOS:
            scan = _END_OF_SCAN.search(data, end)
            start, end = end, scan.start() if scan else len(data)
            parts.append(data[start:end])
    # libjpeg would replace lost tables by the usual ones.
    is_whole = used - {-1} <= set(tables) or not (tables or has_gaps)
    return b"".join(parts) + data[end:] if is_whole else None


def _is_extra(gap: bytes, marker: int, content: bytes) -> bool:
    """Return whether bytes after a segment are extra, not its end displaced by inserted bytes."""
    if marker == _DQT:
        last = content[-16:]
        return min(gap) < min(last) / 2 or max(gap) > 2 * max(last)
    return marker != _DHT or all(starmap(_is_table, _tables_in(content).items()))


def _tables_in(content: bytes) -> dict[int, bytes]:
    """Return the symbols of each Huffman table in a segment, by its class and number."""
    tables, place = {}, 2
    while place + 17 <= len(content):
        size = sum(content[place + 1 : place + 17])
        tables[content[place]] = content[place + 17 : place + 17 + size]
        place += 17 + size
    return tables


def _is_table(number: int, symbols: bytes) -> bool:
    """Return whether each symbol occurs once and has a valid size."""
    largest = 11 if number < 16 else 10  # bits per coefficient
    return len(set(symbols)) == len(symbols) and all(each & 15 <= largest for each in symbols)


def _make_plain_scan(content: bytearray, frame: bytes) -> set[int]:
    """Correct the header of a sequential scan in place; return the Huffman tables it names."""
    if frame[:1] not in _SEQUENTIAL:
        return {-1}
    content[-3:] = 0, 63, 0
    return {number for each in content[4:-3:2] for number in (each >> 4, 0x10 | each & 15)}


# --- other pictures ------------------------------------------------------------------------------


def _decode_with_pillow(data, max_pixels):
    try:
        picture = Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
        check_size(picture.height, picture.width, max_pixels)
        _check_single(picture)
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):  # 16-bit grey, which `convert` would clip at 255
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        return np.array(picture.convert("RGB"))
    except FrameError:
        raise
    except Image.UnidentifiedImageError:
        raise FrameError("not a picture that can be read; extract the frame again") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ...
        raise FrameError(f"damaged picture ({error}); extract the frame again") from None


def _check_single(picture) -> None:
    """Raise FrameError for several pictures in one file, and for values of unknown range."""
    if picture.format in ("PNG", "WEBP") and getattr(picture, "is_animated", False):
        raise FrameError(
            "an animated picture, which is a clip, not a frame; name the file itself "
            "as the clip, with the suffix .webp or .apng"
        )
    if picture.format == "TIFF":
        if picture.mode in ("I", "F"):
            raise FrameError(
                f"32-bit values ({picture.mode}), whose range is unknown; save "
                "it with 8 or 16 bits per channel"
            )
        if picture.n_frames > 1:
            raise FrameError(
                f"{picture.n_frames} pictures in one file; save each as a separate frame"
            )


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raise FrameError for a frame that is too large, or too long and thin."""
    if height * width > max_pixels:
        raise OversizedFrameError(
            f"{width} x {height} pixels are more than max_frame_pixels ({max_pixels:,}); "
            "shrink the frame or raise the key"
        )
    # Scaled to frame_height, a row of single pixels could exhaust the memory.
    if max(height, width) > _MAX_RATIO * min(height, width):
        raise FrameError(f"{width} x {height} pixels cannot be a video frame; extract it again")

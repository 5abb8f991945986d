"""Recognise films, and read animated pictures (GIF, WebP, APNG) as clips.

A damaged animation is an error, never a shorter clip.
"""

import io
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image

from clips.frames import FRAME_SUFFIXES, FrameError, check_size, read_file

VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mp4v",
    ".mov",
    ".qt",
    ".3gp",
    ".3g2",
    ".3gpp",
    ".mj2",
    ".f4v",
    ".flv",
    ".avi",
    ".divx",
    ".xvid",
    ".mkv",
    ".mk3d",
    ".webm",
    ".ogv",
    ".ogm",
    ".ogx",
    ".nut",
    ".mxf",
    ".wmv",
    ".asf",
    ".dvr-ms",
    ".wtv",
    ".rm",
    ".rmvb",
    ".dv",
    ".dif",
    ".ivf",
    ".y4m",
    ".mpg",
    ".mpeg",
    ".mpe",
    ".m1v",
    ".m2v",
    ".mpv",
    ".mp2v",
    ".m2p",
    ".vob",
    ".evo",
    ".mod",
    ".ts",
    ".mts",
    ".m2ts",
    ".m2t",
    ".tp",
    ".trp",
    ".tod",
    ".mjpg",
    ".mjpeg",
    ".insv",
    ".lrv",
    ".h264",
    ".264",
    ".avc",
    ".h265",
    ".265",
    ".hevc",
)
ANIMATED_SUFFIXES = (".gif", ".webp", ".apng")
FILM_SUFFIXES = VIDEO_SUFFIXES + ANIMATED_SUFFIXES
_TYPESCRIPT = (".ts", ".mts")  # suffixes of transport streams and of TypeScript, which is text
_TEXT_BYTES = 4096  # to tell text from film
_DEFAULT_DURATION = 100  # milliseconds of a picture without a duration, as in browsers and ffmpeg
_LONGEST = 6 * 3600 * 1000  # milliseconds


def is_video(path) -> bool:
    """Return whether the path is a video file or an animated picture, by its name and its start.

    A GIF or WebP file with a single picture is not, but a damaged one is.
    """
    name = os.fspath(path).lower()
    if not name.endswith(FILM_SUFFIXES) or os.path.isdir(path):
        return False
    if name.endswith(ANIMATED_SUFFIXES):
        return num_pictures(path) != 1
    return not (name.endswith(_TYPESCRIPT) and _is_text(path))


def _is_text(path) -> bool:
    try:
        with _mapped(path) as data:
            start = data[:_TEXT_BYTES]
        start.decode()
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4 and error.reason == "unexpected end of data"
    except (OSError, ValueError):
        return False
    return b"\0" not in start


def num_pictures(file) -> int:
    """Return 2 for a file with several pictures, 1 for a single one, 0 if it cannot be read.

    file: a path, or a file's content.
    """
    try:
        with nullcontext(file) if isinstance(file, bytes) else _mapped(file) as data:
            return len(list(islice(_durations(data), 2))) or 1
    except (OSError, ValueError, FrameError):
        return 0


def _mapped(path) -> mmap.mmap:
    """Map a file to memory; only the parts that are accessed are read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a file")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


class Sorted(NamedTuple):
    """The names of the files in a folder, by type."""

    films: list[str]
    frames: list[str]  # pictures
    others: list[str]


def sort_files(folder, names: list[str]) -> Sorted:
    """Sort the files of a folder into films, pictures and others, each in the order of `names`.

    A damaged GIF or WebP file is a film among films, and a picture among pictures.
    """
    paths = {name: os.path.join(folder, name) for name in names}
    counts = {
        name: num_pictures(path)
        for name, path in paths.items()
        if name.lower().endswith(ANIMATED_SUFFIXES)
    }
    films = {
        name
        for name, path in paths.items()
        if (counts[name] > 1 if name in counts else is_video(path))
    }
    pictures = {name for name in names if name.lower().endswith(FRAME_SUFFIXES)} - films
    damaged = {name for name, count in counts.items() if not count}
    if films or not pictures:
        films, pictures = films | damaged, pictures - damaged
    return Sorted(
        [name for name in names if name in films],
        [name for name in names if name in pictures],
        [name for name in names if name not in films | pictures],
    )


# --- animated pictures ---------------------------------------------------------------------------


class AnimatedPicture:
    """The pictures of a GIF, WebP or APNG file, resampled to `frame_rate` frames per second.

    Transparent pixels are white. max_pixels: larger pictures are refused before decoding. Raises
    FrameError with the path if the file is of another kind, cut off, or has a single picture.
    """

    def __init__(self, path, frame_rate: float, max_pixels: int):
        self.path, self.frame_rate, self.max_pixels = path, frame_rate, max_pixels
        try:
            self.data = read_file(path)
            durations = list(_durations(self.data))
            with self._opened():
                pass
        except OSError as error:
            raise self._error(f"cannot be read ({error.strerror})") from None
        except FrameError as error:
            raise self._error(str(error)) from None
        if len(durations) < 2:
            raise self._error("a single picture: no movement to classify")
        ends = np.cumsum(durations)
        if ends[-1] > _LONGEST:
            raise self._error(f"its pictures last {ends[-1] / 3.6e6:.0f} hours")
        seconds = float(ends[-1]) / 1000
        self.native_rate = 1000 * len(durations) / float(ends[-1])  # pictures per second
        middles = (np.arange(max(2, round(seconds * frame_rate))) + 0.5) / frame_rate
        numbers = np.searchsorted(ends, middles * 1000, side="right")
        self.numbers = np.minimum(numbers, len(durations) - 1)  # each frame's picture

    def __len__(self):
        return len(self.numbers)

    def frames_at(self, positions):
        """Yield the frames at ascending `positions`, uint8 RGB [H, W, 3] each."""
        positions, shown, frame = list(positions), None, None
        if not positions:
            return
        try:
            with self._opened() as picture:
                skipped = int(bool(getattr(picture, "default_image", False)))
                for position in positions:
                    number = int(self.numbers[position])
                    if number != shown:
                        # A picture is drawn over those before it.
                        for each in range((shown or 0) + skipped, number + skipped + 1):
                            picture.seek(each)
                            picture.load()
                        shown, frame = number, _on_white(picture)
                    yield frame
        except FrameError as error:
            raise self._error(str(error)) from None
        except Exception as error:  # Pillow raises OSError, EOFError, SyntaxError, ValueError ...
            raise self._error(f"damaged ({error})") from None

    def _opened(self):
        try:
            picture = Image.open(io.BytesIO(self.data), formats=("GIF", "WEBP", "PNG"))
        except Exception as error:  # of many kinds
            raise FrameError(f"not a picture that can be read ({type(error).__name__})") from None
        check_size(picture.height, picture.width, self.max_pixels)
        return picture

    def _error(self, problem) -> FrameError:
        return FrameError(f"{self.path}: {problem}; make or convert the file again")


def _on_white(picture) -> np.ndarray:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return np.array(picture)
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.array(Image.alpha_composite(white, picture).convert("RGB"))


def _durations(data) -> Iterator[float]:
    """Yield the duration of each picture in milliseconds; yield nothing for other pictures.

    Raises FrameError if the file is damaged or cut off, or of another kind.
    """
    starts = {b"GIF8": _gif_durations, b"RIFF": _webp_durations, b"\x89PNG": _png_durations}
    durations = starts.get(bytes(data[:4]))
    if durations is None:
        raise FrameError("neither GIF nor WebP nor APNG" if len(data) else "empty (0 bytes)")
    try:
        for duration in durations(data):
            yield duration if duration > 10 else _DEFAULT_DURATION
    except (IndexError, struct.error):
        raise FrameError("cut off") from None


def _gif_durations(data) -> Iterator[float]:
    """Walk the blocks of a GIF. (GIF89a, sections 18 to 27)"""

    def after_blocks(place):
        while size := data[place]:
            place += 1 + size
        return place + 1

    def after_table(place, flags):
        return place + (3 << (flags & 7) + 1 if flags & 0x80 else 0)

    place, duration, canvas = after_table(13, data[10]), 0, struct.unpack_from("<2H", data, 6)
    while place < len(data) and data[place] != 0x3B:
        kind = data[place]
        if kind == 0x21:  # an extension
            if data[place + 1] == 0xF9:
                duration = 10 * struct.unpack_from("<H", data, place + 4)[0]
            place = after_blocks(place + 2)
        elif kind == 0x2C:  # a picture
            if any(
                size > most
                for size, most in zip(
                    struct.unpack_from("<2H", data, place + 5), canvas, strict=True
                )
            ):
                raise FrameError("damaged: a picture is larger than the whole")
            place = after_blocks(after_table(place + 10, data[place + 9]) + 1)
            yield duration
            duration = 0
        elif kind == 0:
            place += 1
        else:
            raise FrameError("damaged: something else is between its pictures")


def _webp_durations(data) -> Iterator[float]:
    """Read the ANMF chunks. (developers.google.com/speed/webp/docs/riff_container)"""
    end, place = 8 + struct.unpack_from("<I", data, 4)[0], 12
    if end > len(data):
        raise IndexError
    while place + 8 <= end:
        (size,) = struct.unpack_from("<I", data, place + 4)
        if place + 8 + size > end:
            raise IndexError
        if data[place : place + 4] == b"ANMF":
            yield int.from_bytes(data[place + 20 : place + 23], "little")
        place += 8 + size + size % 2


def _png_durations(data) -> Iterator[float]:
    """Read the fcTL chunks. (PNG, third edition, section 11.3.6)"""
    place, kind, num_promised = 8, b"", 0
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, place)
        (crc32,) = struct.unpack_from(">I", data, place + 8 + size)
        if crc32 != zlib.crc32(data[place + 4 : place + 8 + size]):
            raise FrameError("damaged: a checksum is wrong")
        if kind == b"acTL":
            (num_promised,) = struct.unpack_from(">I", data, place + 8)
        elif kind == b"fcTL":
            numerator, denominator = struct.unpack_from(">HH", data, place + 28)
            num_promised -= 1
            yield 1000 * numerator / (denominator or 100)
        place += 12 + size
    if num_promised > 0:
        raise IndexError

"""Frames in a folder: which files they are, their order, and strict decoding.

A damaged frame is an error, never a grey or truncated picture.
"""

import io
import os
import re

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from system.errors import UserError

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
JPEG_SUFFIXES = (".jpg", ".jpeg")
_JPEG_MAGIC = b"\xff\xd8\xff"
# The EXIF block of a JPEG, with its orientation, is in the first segments.
_EXIF_SEARCH_BYTES = 4096
_READ_BYTES = 2**16  # nearly every frame in one piece
# Non-blocking, so that a named pipe called 00001.jpg is an error instead of a hang.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# The formats of FRAME_SUFFIXES; Pillow tries no others.
_PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LARGEST_RATIO = 100  # of a frame's longer side to its shorter one
_DIGITS = re.compile(r"(\d+)")
_DIGITS_TO_ZERO = str.maketrans("123456789", "000000000")


class FrameError(UserError):
    """A clip folder or a frame that cannot be used; the message begins with its path."""


class OversizedFrameError(FrameError):
    """A frame that declares more pixels than `max_frame_pixels`."""


def prepare_decoders(_worker_number: int | None = None) -> None:
    """Set up OpenCV and Pillow for this process; also serves as a DataLoader's worker_init_fn.

    OpenCV runs without threads of its own, since the loader's workers are the parallelism. Pillow's
    limit on pixels, which would report a large picture as damaged, is off: `check_size` refuses
    large pictures and names the config key.
    """
    cv2.setNumThreads(0)
    Image.MAX_IMAGE_PIXELS = None


def natural_key(name: str):
    """Sort key that puts `2.jpg` before `10.jpg`, with or without leading zeros."""
    parts = _DIGITS.split(name.lower())
    parts[1::2] = map(int, parts[1::2])
    return parts, name


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
    """Return `names` sorted by `natural_key`."""
    # Names that differ only in their digits, which is the usual case, need no key.
    is_alike = len({name.translate(_DIGITS_TO_ZERO) for name in names}) == 1
    return sorted(names) if is_alike else sorted(names, key=natural_key)


class FrameFolder:
    """The frames in a folder, read on demand. Raises FrameError if there are none."""

    def __init__(self, folder, max_pixels: int):
        self.folder, self.max_pixels = folder, max_pixels
        self.names = list_frames(folder)

    def __len__(self):
        return len(self.names)

    def frames_at(self, positions):
        """Yield the frames at these positions, as `read_frame` returns them."""
        for position in positions:
            yield read_frame(f"{self.folder}{os.sep}{self.names[position]}", self.max_pixels)


class FramesInMemory:
    """Frames that are in memory already, from a camera for example: uint8 RGB [H, W, 3] each."""

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
    """Read a file by system calls, which take half the time of a file object."""
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
    if data.find(b"Exif\0\0", 0, _EXIF_SEARCH_BYTES) >= 0:
        return _turn_upright(frame, data)
    return frame


def _decode_jpeg(data, max_pixels):
    # simplejpeg is the fastest decoder that treats libjpeg's warnings about damaged data as
    # errors; Pillow ignores most of them.
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
        check_size(height, width, max_pixels)
        if colour_space in ("CMYK", "YCCK"):
            simplejpeg.decode_jpeg(data, "CMYK", strict=True)
            return _decode_with_pillow(data, max_pixels)  # handles inverted CMYK
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        if isinstance(error, FrameError):
            raise
        raise FrameError(f"damaged JPEG ({error}); extract the frame again") from None


def _turn_upright(frame, data):
    """Rotate a decoded JPEG as its EXIF orientation says. (EXIF 2.3, tag 0x0112)"""
    try:
        orientation = Image.open(io.BytesIO(data), formats=["JPEG"]).getexif().get(0x0112)
    except Exception:  # the picture may be sound although its EXIF block is broken
        return frame
    if orientation not in _TURNS:
        return frame
    return np.array(Image.fromarray(frame).transpose(_TURNS[orientation]))


def _decode_with_pillow(data, max_pixels):
    try:
        picture = Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
        check_size(picture.height, picture.width, max_pixels)
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):  # grey of 16 bits, which `convert` would cut off at 255
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        return np.array(picture.convert("RGB"))
    except FrameError:
        raise
    except Image.UnidentifiedImageError:
        raise FrameError("not a picture that can be read; extract the frame again") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ...
        raise FrameError(f"damaged picture ({error}); extract the frame again") from None


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raises FrameError for a frame that is too large, or too long and thin."""
    if height * width > max_pixels:
        raise OversizedFrameError(
            f"{width} x {height} pixels are more than max_frame_pixels ({max_pixels:,}); "
            "shrink the frame or raise the key"
        )
    # Scaled to frame_height, a row of single pixels could exhaust the memory.
    if max(height, width) > _LARGEST_RATIO * min(height, width):
        raise FrameError(f"{width} x {height} pixels cannot be a video frame; extract it again")

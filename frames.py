"""From a folder of pictures to arrays: which files are frames, in which order, decoded strictly.

A frame that cannot be decoded without doubt is an error, never a grey or truncated picture.
"""

import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from errors import UserError

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
JPEG_SUFFIXES = (".jpg", ".jpeg")

_JPEG_MAGIC = b"\xff\xd8\xff"
# Where a JPEG keeps its EXIF block, and with it the orientation: within the first segments.
_EXIF_SEARCH_BYTES = 4096
# The formats behind FRAME_SUFFIXES; Pillow tries no other.
_PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_DIGITS = re.compile(r"(\d+)")


class FrameError(UserError):
    """A clip folder or a frame that cannot be used; the text begins with its path."""


def natural_key(name: str):
    """Sort key that puts `2.jpg` before `10.jpg`, however the numbers are padded."""
    parts = _DIGITS.split(name.lower())
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def list_frames(folder) -> list[str]:
    """File names of the frames in `folder`, in natural order.

    Hidden files and other kinds of file are passed over. Raises FrameError if none is left.
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
    return sorted(frames, key=natural_key)


def read_frame(path, max_pixels: int) -> np.ndarray:
    """The picture at `path` as uint8 RGB [H, W, 3], turned upright as its EXIF tag asks.

    max_pixels: a picture that declares more is refused before it is decoded.
    Raises FrameError with the path if the file is missing, no picture, or damaged.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FrameError(f"{path}: frame cannot be read ({error.strerror})") from None
    try:
        return decode_frame(data, max_pixels)
    except FrameError as error:
        raise FrameError(f"{path}: {error}") from None


def decode_frame(data: bytes, max_pixels: int) -> np.ndarray:
    """As `read_frame`, from the bytes of the file; the FrameError has no path."""
    if not data:
        raise FrameError("file is empty (0 bytes); extract the frame again")
    if data.startswith(_JPEG_MAGIC) and b"Exif\0\0" not in data[:_EXIF_SEARCH_BYTES]:
        return _decode_jpeg(data, max_pixels)
    return _decode_with_pillow(data, max_pixels)


def _decode_jpeg(data, max_pixels):
    # simplejpeg is the fastest decoder that treats libjpeg's warnings about damaged data as
    # errors; it has no CMYK, and no EXIF orientation, so those go the slower way.
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(height, width, max_pixels)
        if colour_space in ("CMYK", "YCCK"):
            return _decode_with_pillow(data, max_pixels)
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except FrameError:
        raise
    except ValueError as error:
        raise FrameError(f"damaged JPEG ({error}); extract the frame again") from None


def _decode_with_pillow(data, max_pixels):
    try:
        with warnings.catch_warnings():
            # Pillow's own, far higher limit only warns; ours follows at once.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
        _check_size(picture.height, picture.width, max_pixels)
        picture = ImageOps.exif_transpose(picture)
        return np.array(picture.convert("RGB"))
    except FrameError:
        raise
    except Image.UnidentifiedImageError:
        raise FrameError("not a picture that can be read; extract the frame again") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ...
        raise FrameError(f"damaged picture ({error}); extract the frame again") from None


def _check_size(height, width, max_pixels):
    if height * width > max_pixels:
        raise FrameError(
            f"{width} x {height} pixels are more than max_frame_pixels ({max_pixels:,}); "
            "shrink the frame or raise the key"
        )

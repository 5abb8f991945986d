"""Drawing: text, colour maps and GIF files. A picture is uint8 [H, W, 3]."""

import math
from collections.abc import Iterable
from functools import cache
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

MAX_GIF_RATE = 50  # pictures per second; browsers slow down faster ones
BACKGROUND, BAR, TEXT = (24, 24, 24), (92, 171, 255), (255, 255, 255)  # blue as in dark themes


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which covers many scripts, from matplotlib. size: pixels."""
    import matplotlib  # not at the top: the import is slow

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf", name), size)


def write_text(
    picture: np.ndarray, position: tuple[int, int], text: str, size: int = 13, colour=TEXT
) -> None:
    """Draw text into the picture, in place. position: left and vertical middle, in pixels."""
    canvas = Image.fromarray(picture)
    ImageDraw.Draw(canvas).text(position, text, colour, font(size), anchor="lm")
    picture[:] = np.asarray(canvas)


def blank(height: int, width: int) -> np.ndarray:
    """Return a picture in the background colour."""
    return np.full((height, width, 3), BACKGROUND, np.uint8)


def enlarged(picture: np.ndarray, height: int, smooth: bool = False) -> np.ndarray:
    """Return the picture scaled to `height`; nearest-neighbour unless `smooth`."""
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    method = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    return cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=method)


def heat(values: np.ndarray) -> np.ndarray:
    """Map values from 0 to 1, [H, W], to colours from black over red to pale yellow."""
    levels = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def save_gif(path: Path, pictures: Iterable[np.ndarray], frame_rate: float) -> None:
    """Write pictures of one size as a looping GIF. frame_rate: pictures per second.

    Times, rather than durations, are rounded to the format's hundredths of a second, so that errors
    do not add up. Of more than MAX_GIF_RATE pictures per second, only some are shown.
    """
    every = math.ceil(frame_rate / MAX_GIF_RATE)
    first, *others = [Image.fromarray(picture) for picture in islice(pictures, 0, None, every)]
    times = [round(100 * number * every / frame_rate) for number in range(len(others) + 2)]
    durations = [10 * (end - start) for start, end in pairwise(times)]  # milliseconds
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)

"""What every picture that the project draws needs: text, colours of numbers, GIF files.

A picture is uint8 [H, W, 3].
"""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND, BAR, TEXT = (24, 24, 24), (70, 130, 180), (255, 255, 255)


@cache
def font(size, bold=False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which knows many scripts; matplotlib brings it along. size: pixels."""
    import matplotlib  # here, since it takes a moment that no other use should wait for

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf", name), size)


def write_text(picture, position, text, size=13, colour=TEXT) -> None:
    """Writes into the picture, in place; position: left and middle, in pixels."""
    canvas = Image.fromarray(picture)
    ImageDraw.Draw(canvas).text(position, text, colour, font(size), anchor="lm")
    picture[:] = np.asarray(canvas)


def blank(height, width) -> np.ndarray:
    return np.full((height, width, 3), BACKGROUND, np.uint8)


def enlarged(picture, height, smooth=False) -> np.ndarray:
    """Scaled to that height; pixels stay squares unless `smooth`."""
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    method = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    return cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=method)


def heat(values) -> np.ndarray:
    """Numbers from 0 to 1 as colours from black over red to pale yellow: [H, W] -> a picture."""
    levels = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def save_gif(path, pictures, frame_rate) -> None:
    """A GIF that plays over and over; pictures: all of one size; frame_rate: pictures a second."""
    first, *others = [Image.fromarray(picture) for picture in pictures]
    first.save(path, save_all=True, append_images=others, duration=round(1000 / frame_rate), loop=0)

"""The confusion matrix as a picture."""

import math
import textwrap

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw

from explaining import pictures
from scoring.evaluation import confusion_matrix

FIELD = 840  # maximum side of the matrix in pixels
# For shares 0, 0.5 and 1.
BLUES = np.array([[247, 251, 255], [107, 174, 214], [8, 48, 107]])
MAX_CELL, CELL_WITH_DIGITS, CELL_WITH_NAME = 40, 16, 14  # pixels
MARGIN, MAX_NAME_WIDTH, NAME_SIZE = 8, 240, 12  # pixels


def save_confusion_matrix(folder, annotations, logits, class_names) -> None:
    """Write confusion_matrix.png. logits: [N, classes] of the clips of `annotations`."""
    matrix = confusion_matrix(logits, torch.from_numpy(annotations.labels))
    picture = Image.fromarray(draw_confusion_matrix(matrix, class_names))
    picture.save(folder / "confusion_matrix.png")


def draw_confusion_matrix(matrix, class_names) -> np.ndarray:
    """Draw the matrix with each row in percent of its true class. uint8 [H, W, 3].

    The size is limited: above about 50 classes, the cells have no digits and only every second,
    third, ... class is named. Without matplotlib, which would be slow during training.
    """
    num_classes = len(class_names)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    cell = min(MAX_CELL, FIELD / num_classes)
    every = math.ceil(CELL_WITH_NAME / cell)
    names = _names_in_a_column(class_names, cell, every)
    side, width = names.shape[:2]
    title = "share of each true class (rows) that is classified as each class (columns), %"
    title += f"; one class in {every} is named" if every > 1 else ""
    lines = textwrap.wrap(title, max(24, (side + width) // 7))
    top, left = MARGIN + 18 * len(lines), MARGIN + width
    longest = max(pictures.font(NAME_SIZE).getlength(line) for line in lines)
    picture_width = max(left + side, MARGIN + math.ceil(longest)) + MARGIN
    picture = np.full((top + side + width + MARGIN, picture_width, 3), 255, np.uint8)
    for number, line in enumerate(lines):
        place = (MARGIN, MARGIN + 18 * number + 6)
        pictures.write_text(picture, place, line, NAME_SIZE, (0, 0, 0))
    picture[top : top + side, MARGIN:left] = names
    picture[top + side : top + side + width, left : left + side] = np.rot90(names)
    picture[top : top + side, left : left + side] = _cells(shares, matrix > 0, cell, side)
    return picture


def _names_in_a_column(class_names, cell, every) -> np.ndarray:
    """Draw the name of one class in `every` next to its row. uint8 [H, W, 3]"""
    font, rows = pictures.font(NAME_SIZE), range(every // 2, len(class_names), every)
    shown = {row: _shortened(class_names[row], font) for row in rows}
    width = 6 + math.ceil(max(font.getlength(name) for name in shown.values()))
    column = Image.new("RGB", (width, round(cell * len(class_names))), "white")
    canvas = ImageDraw.Draw(column)
    for row, name in shown.items():
        canvas.text((width - 4, (row + 0.5) * cell), name, "black", font, anchor="rm")
    return np.asarray(column)


def _shortened(name, font) -> str:
    while font.getlength(name) > MAX_NAME_WIDTH:
        name = f"{name[:-2]}…"
    return name


def _cells(shares, is_shown, cell, side) -> np.ndarray:
    """Draw the cells in blue, with numbers if there is room. uint8 [side, side, 3]"""
    colours = np.stack([np.interp(shares, (0, 0.5, 1), levels) for levels in BLUES.T], axis=2)
    how = cv2.INTER_NEAREST if cell >= 1 else cv2.INTER_AREA
    field = cv2.resize(np.rint(colours).astype(np.uint8), (side, side), interpolation=how)
    if cell < CELL_WITH_DIGITS:
        return field
    picture = Image.fromarray(field)
    canvas, font = ImageDraw.Draw(picture), pictures.font(min(NAME_SIZE, int(cell / 2)))
    for row, column in zip(*np.nonzero(is_shown), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        place = ((column + 0.5) * cell, (row + 0.5) * cell)
        canvas.text(place, f"{100 * shares[row, column]:.0f}", colour, font, anchor="mm")
    return np.asarray(picture)

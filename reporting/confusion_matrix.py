"""The confusion matrix as a picture."""

import io
import math
import textwrap
import warnings

import numpy as np
import torch
from PIL import Image

from explaining import pictures
from scoring.evaluation import confusion_matrix

FIELD = 840  # maximum side of the matrix in pixels
MAX_CELL, CELL_WITH_DIGITS, CELL_WITH_NAME = 40, 16, 14  # pixels
MARGIN, MAX_NAME_WIDTH = 8, 240  # pixels
SETTINGS = {
    "figure.dpi": 72,
    "savefig.dpi": 72,  # so that a point is a pixel
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "text.parse_math": False,
    "axes.edgecolor": "silver",
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
}


def save_confusion_matrix(folder, annotations, logits, class_names) -> None:
    """Write confusion_matrix.png. logits: [N, classes] of the clips of `annotations`."""
    matrix = confusion_matrix(logits, torch.from_numpy(annotations.labels))
    picture = Image.fromarray(draw_confusion_matrix(matrix, class_names))
    picture.save(folder / "confusion_matrix.png")


def draw_confusion_matrix(matrix, class_names) -> np.ndarray:
    """Draw the matrix with each row in percent of its true class. uint8 [H, W, 3].

    The size is limited: above about 50 classes, the cells have no digits and only every second,
    third, ... class is named.
    """
    # Not at the top: the start of a run need not wait for it.
    import matplotlib
    from matplotlib.figure import Figure

    fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    cell = min(MAX_CELL, FIELD / len(class_names))
    side, every = cell * len(class_names), math.ceil(CELL_WITH_NAME / cell)
    title = "% of each true class (rows) classified as each class (columns)"
    title += f"; one class in {every} is named" if every > 1 else ""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # not in the font: a box is drawn
        figure = Figure(figsize=(side / 72, side / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_title(textwrap.fill(title, max(24, round(side / 7))))
        axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        named = range(every // 2, len(class_names), every)
        names = [_shortened(class_names[index]) for index in named]
        axes.set_xticks(named, names, rotation="vertical")
        axes.set_yticks(named, names)
        axes.tick_params(length=0)
        if cell >= CELL_WITH_DIGITS:
            _write_digits(axes, fractions, matrix > 0, min(12, cell / 2))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=MARGIN / 72)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _shortened(name) -> str:
    while pictures.font(12).getlength(name) > MAX_NAME_WIDTH:
        name = f"{name[:-2]}…"
    return name


def _write_digits(axes, fractions, is_shown, size) -> None:
    for row, column in zip(*np.nonzero(is_shown), strict=True):
        fraction = fractions[row, column]
        axes.text(
            column,
            row,
            f"{100 * fraction:.0f}",
            ha="center",
            va="center",
            fontsize=size,
            color="white" if fraction > 0.5 else "black",
        )

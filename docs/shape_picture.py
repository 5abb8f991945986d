"""The shapes of a network's stages, drawn to scale from `networks.stages.describe`."""

import re

import torch

import demo_data
from config import Config
from docs.svg import WIDTH, Svg
from model import build_model
from networks.stages import describe

SHEET_STEP = (4, -3)  # pixels from one frame to the next, x and y
COLUMN = 70  # pixels, at least, for a stage with frames
VECTOR_COLUMN = 58
TALLEST_FRAME, TALLEST_BAR = 124, 84  # pixels


def draw_shapes(config: Config) -> str:
    """Draw all stages, as SVG."""
    with torch.device("meta"):
        model = build_model(config, config.num_classes)
    network = describe(model, config.clip_shape)
    stages = network.stages
    total = f"{network.num_parameters:,} parameters, {network.flops / 1e9:.2f} GFLOP per clip"
    inputs, classes = stages[0].shape, stages[-1].shape[0]
    picture = Svg(
        464,
        f"A clip of {inputs[1]} frames of {inputs[2]} × {inputs[3]} pixels shrinks "
        "stage by stage in space and time, while channels grow, until one vector "
        f"is left, from which {classes} classes are told",
    )
    picture.text(24, 34, "Space and time shrink …", 17, "blue", bold=True)
    picture.text(24, 53, "frames, height and width of each stage, to scale", 13, "muted")
    picture.text(24, 345, "… while channels grow", 17, "orange", bold=True)
    picture.text(24, 364, "in the end they are a vector's entries", 13, "muted")
    scale = TALLEST_FRAME / inputs[2]
    widths = [_column_width(stage, scale) for stage in stages]
    left, gap = 24, (WIDTH - 48 - sum(widths)) / (len(stages) - 1)
    most = max(stage.shape[0] for stage in stages)
    for number, (stage, width) in enumerate(zip(stages, widths, strict=True)):
        middle = left + width / 2
        if len(stage.shape) > 1:
            _draw_sheets(picture, middle, stage.shape, scale, with_hand=number == 0)
        _draw_labels(picture, middle, stage, number, len(stages))
        height = max(1.5, TALLEST_BAR * stage.shape[0] / most)
        bar_left = middle - 13
        picture.rect(bar_left, 432 - height, 26, height, "orange", opacity=0.85)
        picture.text(middle, 450, stage.shape[0], 13, anchor="middle")
        left += width + gap
    picture.text(WIDTH - 24, 53, total, 13, "muted", anchor="end")
    return picture.source()


def _column_width(stage, scale) -> float:
    if len(stage.shape) == 1:
        return VECTOR_COLUMN
    _, frames, _, width = stage.shape
    return max(COLUMN, width * scale + (frames - 1) * SHEET_STEP[0])


def _draw_sheets(picture, middle, shape, scale, with_hand) -> None:
    """Draw a sheet for each frame, the last one at the back."""
    _, frames, height, width = (max(1, number) for number in shape)
    step_x, step_y = SHEET_STEP
    left = middle - (width * scale + (frames - 1) * step_x) / 2
    top = 156 - (height * scale + (frames - 1) * step_y) / 2
    for frame in reversed(range(frames)):
        x, y = left + frame * step_x, top + frame * step_y
        sides = max(2.5, width * scale), max(2.5, height * scale)
        picture.rect(x, y, *sides, "card")
        picture.rect(x, y, *sides, "blue", opacity=0.3 if frame else 0.75, line="blue")
    if with_hand:
        _draw_hand(picture, left + width * scale / 2, top + height * scale / 2, 0.28 * sides[1])


def _draw_hand(picture, x, y, size) -> None:
    """Draw the hand of the built-in data set."""
    for outline in demo_data.hand():
        corners = " ".join(f"{x + size * px:.1f} {y + size * py:.1f}" for px, py in outline)
        picture.path(f"M{corners}z", None, 0, "card")


def _draw_labels(picture, middle, stage, number, num_stages) -> None:
    if len(stage.shape) > 1:
        _, frames, height, width = stage.shape
        name = "input" if number == 0 else stage.name.replace("_", " ")
        block = re.fullmatch(r"blocks\.(\d+)", stage.name)
        name = f"block {int(block[1]) + 1}" if block else name
        lines = [f"{frames} frame" + ("s" if frames > 1 else ""), f"{height} × {width}"]
    else:
        name = "classes" if number == num_stages - 1 else "hidden"
        lines = ["scores" if name == "classes" else "a vector"]
    picture.text(middle, 268, name, 13, anchor="middle", bold=True)
    for line_number, line in enumerate(lines):
        picture.text(middle, 286 + 16 * line_number, line, 12, "muted", anchor="middle")

"""What happens to time: in three kinds of convolution, in two layers, and in the whole network.

All numbers are computed by PyTorch from the bars of `convolution_pictures`. T frames, H, W cells.
"""

import numpy as np
import torch
from torch import nn

from config import Config
from docs.convolution_pictures import (
    EDGE_KERNEL,
    MOVEMENT_KERNEL,
    bar_clips,
    draw_frame,
    moving_bar,
    signed,
    slide_2d,
    slide_3d,
    strongest_of,
)
from docs.svg import Svg
from explaining.layers import first_kernels
from model import build_model

STACKED_KERNEL = np.stack([-EDGE_KERNEL, -EDGE_KERNEL, EDGE_KERNEL, EDGE_KERNEL])  # 4 frames
RELU_THRESHOLD = 100  # of the second layer, its bias with a minus
NUM_LEARNT = 3  # kernels that are shown


# --- one frame, stacked frames, 3D -------------------------------------------------------------


def three_cases(frames) -> list[np.ndarray]:
    """Return the outputs of the three kinds of convolution for a clip, int [T, H, W] each."""
    return [
        np.stack([slide_2d(frame, EDGE_KERNEL) for frame in frames]),
        slide_3d(frames, STACKED_KERNEL),
        slide_3d(frames, MOVEMENT_KERNEL),
    ]


def draw_cases() -> str:
    """Draw a clip, and its frames backwards, through the three kinds of convolution. SVG"""
    right = moving_bar()
    forwards, backwards = three_cases(right), three_cases(right[::-1].copy())
    picture = Svg(
        492,
        "Three kinds of convolution: on one frame, the outputs of a clip and of its "
        "reverse are the same pictures; on stacked frames, they are two opposite "
        "pictures; in 3D, they are opposite clips",
    )
    words = (
        (
            "2D, frame by frame",
            "kernel 3 × 3",
            "The same pictures in another",
            "order: their mean, for example,",
            "is equal.",
        ),
        (
            "2D, on stacked frames",
            "kernel 4 × 3 × 3, all frames",
            "Opposite pictures: the order",
            "is seen, once. The output is one",
            "picture; later layers see no time.",
        ),
        (
            "3D",
            "kernel 2 × 3 × 3, slides over time",
            "Opposite clips: the output has",
            "a time axis, so the next layer",
            "can look at time again.",
        ),
    )
    for number, (title, kernel, *lines) in enumerate(words):
        y = 30 + 154 * number
        picture.text(24, y, title, 17, bold=True)
        picture.text(24, y + 21, kernel, 14, "muted")
        for line_number, line in enumerate(lines):
            picture.text(24, y + 52 + 20 * line_number, line, 14)
        seen = (1, len(right), len(MOVEMENT_KERNEL))[number]
        for clip, (name, frames, outputs) in enumerate(
            (("forwards", right, forwards), ("backwards", right[::-1], backwards))
        ):
            _draw_case(picture, y + 2 + 66 * clip, name, frames, outputs[number], seen)
        if number:
            picture.path(f"M24 {y - 26}H806", "edge", 1)
    picture.text(
        24,
        478,
        "Yellow: what one output is computed from. Blue outputs are above 0, orange ones below.",
        14,
    )
    return picture.source()


def _draw_case(picture, y, name, frames, outputs, seen) -> None:
    colour = "orange" if name == "backwards" else "blue"
    picture.text(282, y + 1, name, 14, colour)
    top, cell = y + 8, 7
    for time, frame in enumerate(frames):
        draw_frame(picture, 282 + 64 * time, top, frame, cell)
    for time in range(seen):
        left = 281 + 64 * time
        picture.rect(left, top - 1, 3 * cell + 1, 3 * cell + 1, line="mark", line_width=3)
    picture.arrow(540, top + 18, 28)
    for time, output in enumerate(outputs):
        _draw_output(picture, 582 + 56 * time, top + 7, output, cell, np.abs(outputs).max())


def _draw_output(picture, x, y, values, cell, strongest) -> None:
    """Draw cells, blue above 0 and orange below."""
    height, width = values.shape
    picture.rect(x - 1, y - 1, width * cell + 1, height * cell + 1, "faint", opacity=0.6)
    for (row, column), value in np.ndenumerate(values):
        left, top = x + column * cell, y + row * cell
        picture.rect(left, top, cell - 1, cell - 1, "card")
        if value:
            picture.rect(
                left,
                top,
                cell - 1,
                cell - 1,
                "blue" if value > 0 else "orange",
                opacity=0.25 + 0.65 * abs(value) / strongest,
            )


# --- two layers --------------------------------------------------------------------------------


def edges_then_movement(frames, with_relu=True) -> tuple[np.ndarray, np.ndarray]:
    """Return each frame's edges, with or without ReLU, and the movement kernel's outputs."""
    edges = np.stack([slide_2d(frame, EDGE_KERNEL) for frame in frames])
    edges = np.maximum(edges, 0) if with_relu else edges
    return edges, slide_3d(edges, MOVEMENT_KERNEL)


def wide_bar_clips() -> dict[str, np.ndarray]:
    """Return two frames of bars with space for two layers, int [T, H, W], by name."""
    bright = moving_bar(2, height=5, width=12, start=4)
    return {
        "bright, to the right": bright,
        "dark, to the right": 9 - bright,
        "bright, to the left": bright[::-1],
        "dark, to the left": 9 - bright[::-1],
    }


def draw_two_layers() -> str:
    """Draw one layer, which gives direction times contrast, and two, which give direction. SVG"""
    picture = Svg(
        418,
        "Bars through one layer and through two: one layer cannot tell a bright bar "
        "that moves right from a dark one that moves left; two layers with a ReLU "
        "in between can",
    )
    columns = (
        (24, "Two frames in", ""),
        (244, "One layer", "the 3D kernel"),
        (366, "Layer 1: edges, ReLU", "below 0 becomes 0"),
        (580, "Layer 2", "the 3D kernel"),
    )
    for x, title, subtitle in columns:
        picture.text(x, 34, title, 16, bold=True)
        picture.text(x, 54, subtitle, 14, "muted")
    picture.text(806, 34, "ReLU", 16, anchor="end", bold=True)
    picture.text(806, 54, f"of it − {RELU_THRESHOLD}", 14, "muted", anchor="end")
    picture.path("M350 20V362", "edge", 1)
    cell = 8
    for number, (name, frames) in enumerate(wide_bar_clips().items()):
        frames = frames.copy()
        y = 92 + 72 * number
        picture.text(24, y - 6, name, 14, "blue" if "to the right" in name else "orange")
        for time, frame in enumerate(frames):
            draw_frame(picture, 24 + 104 * time, y, frame, cell)
        edges, movement = edges_then_movement(frames)
        for time, edge in enumerate(edges):
            _draw_output(picture, 366 + 92 * time, y + cell, edge, cell, edges.max())
        _draw_strongest(picture, 290, y + 29, slide_3d(frames, MOVEMENT_KERNEL))
        picture.arrow(548, y + 20, 26)
        _draw_strongest(picture, 620, y + 29, movement)
        shown = max(0, strongest_of(movement) - RELU_THRESHOLD)
        picture.text(806, y + 28, shown, 20, anchor="end", bold=True)
    without = [
        signed(strongest_of(edges_then_movement(frames.copy(), with_relu=False)[1]))
        for frames in wide_bar_clips().values()
    ]
    picture.text(
        24,
        378,
        "Numbers are the strongest outputs. Blue names and numbers: right, or "
        "above 0. Orange: left, or below 0.",
        14,
    )
    picture.text(
        24,
        400,
        f"Without the first ReLU, layer 2 would give {', '.join(without)}: "
        "contrast would count again.",
        14,
    )
    return picture.source()


def _draw_strongest(picture, x, y, values) -> None:
    value = strongest_of(values)
    picture.text(
        x, y, signed(value), 24, "blue" if value > 0 else "orange", anchor="middle", bold=True
    )


# --- how far each layer sees in time -----------------------------------------------------------


def frames_seen(config: Config) -> list[tuple[int, list[int]]]:
    """Return each block's positions in time, and the input frames that the middle one depends on.

    They are the frames where the output has a gradient, all weights being 1 and pooling a mean.
    """
    network = build_model(config, 2).double().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.ones_(module.weight)
            nn.init.ones_(module.bias)
        elif isinstance(module, nn.BatchNorm3d):
            module.running_var.fill_(module.weight.numel() ** 2)  # keeps the numbers small
    clip = torch.ones(1, 3, *config.clip_shape, dtype=torch.double, requires_grad=True)
    found, output = [], clip
    for block in network.blocks:
        for module in block:
            pools = isinstance(module, nn.MaxPool3d)
            output = (
                nn.functional.avg_pool3d(output, module.kernel_size) if pools else module(output)
            )
        times, height, width = output.shape[2:]
        middle = output[0, 0, times // 2, height // 2, width // 2]
        (gradient,) = torch.autograd.grad(middle, clip, retain_graph=True)
        per_frame = gradient[0].abs().sum((0, 2, 3))
        found.append((times, per_frame.nonzero().flatten().tolist()))
    return found


def draw_receptive_field(config: Config) -> str:
    """Draw a row of input frames per block, with those that one output depends on. SVG"""
    rows = frames_seen(config)
    counts = [len(frames) for _, frames in rows]
    picture = Svg(
        78 + 62 * len(rows),
        f"Of the input's frames, one output of each block depends on {', '.join(map(str, counts))}",
    )
    picture.text(24, 34, "How far one output sees in time", 17, bold=True)
    picture.text(
        24,
        54,
        f"Blue: those of the {config.clip_size} input frames that the middle "
        "output of each block depends on.",
        14,
        "muted",
    )
    left, step = 224, 24
    for number, (times, frames) in enumerate(rows):
        y = 92 + 62 * number
        positions = f"{times} positions in time" if times > 1 else "1 position in time"
        picture.text(24, y + 8, f"block {number + 1}", 15, bold=True)
        picture.text(24, y + 27, positions, 14, "muted")
        for frame in range(config.clip_size):
            is_seen = frame in frames
            picture.rect(
                left + frame * step, y - 4, step - 3, 30, "blue" if is_seen else "faint", radius=3
            )
            picture.text(
                left + frame * step + 10.5,
                y + 16,
                frame + 1,
                12,
                "card" if is_seen else "muted",
                anchor="middle",
            )
        picture.text(806, y + 17, f"{len(frames)} frames", 15, "blue", anchor="end", bold=True)
    return picture.source()


# --- learnt kernels ----------------------------------------------------------------------------


def learnt_kernels(network) -> np.ndarray:
    """Return the first layer's kernels that change most over time: [kernels, T, H, W].

    The strongest weight of each is 1 or -1.
    """
    (films,) = first_kernels(network).values()
    kernels = films.sum(-1).numpy()  # the same grey value in all three colours
    change = kernels - kernels.mean(axis=1, keepdims=True)
    share = (change**2).sum((1, 2, 3)) / (kernels**2).sum((1, 2, 3))
    chosen = kernels[np.argsort(-share, kind="stable")[:NUM_LEARNT]]
    return chosen / np.abs(chosen).max((1, 2, 3), keepdims=True)


def strongest_right_and_left(kernel) -> tuple[float, float]:
    """Return a kernel's strongest output, with its sign, for a bar that moves right and left."""
    clips = list(bar_clips().values())[:2]
    outputs = [_slide_floats(frames.copy(), kernel) for frames, _ in clips]
    return tuple(max(values.flat, key=abs) for values in outputs)


def draw_learnt_kernels(network) -> str:
    """Draw the hand-made kernel beside learnt ones, and their output for a moving bar. SVG"""
    picture = Svg(
        292,
        "The kernel made by hand beside three learnt ones, and the strongest "
        "outputs of each for a bar that moves right or left",
    )
    kernels = [MOVEMENT_KERNEL, *learnt_kernels(network)]
    for number, kernel in enumerate(kernels):
        x = 24 + 200 * number
        title = "Made by hand" if number == 0 else f"Learnt, {number}"
        picture.text(x, 34, title, 16, bold=True)
        for time, name in enumerate(("earlier", "later")):
            _draw_weights(picture, x + 92 * time, 52, kernel[time])
            picture.text(x + 92 * time + 40, 150, name, 14, "muted", anchor="middle")
        outputs = strongest_right_and_left(kernel)
        for line, (name, value) in enumerate(zip(("right", "left"), outputs, strict=True)):
            y = 178 + 22 * line
            picture.text(x, y, f"bar to the {name}", 14)
            picture.text(
                x + 172,
                y,
                f"{value:+.0f}".replace("-", "−"),
                15,
                "blue" if value > 0 else "orange",
                anchor="end",
                bold=True,
            )
    picture.text(
        24,
        240,
        "Learnt: the first kernels of the demo's network with most change over "
        "time, summed over the colours.",
        14,
        "muted",
    )
    picture.text(
        24,
        262,
        "Blue weights are above 0, orange ones below; numbers are the strongest "
        "outputs for the bright bar.",
        14,
        "muted",
    )
    return picture.source()


def _draw_weights(picture, x, y, weights) -> None:
    for (row, column), weight in np.ndenumerate(weights):
        left, top = x + 27 * column, y + 27 * row
        picture.rect(left, top, 26, 26, "faint", opacity=0.5)
        picture.rect(
            left,
            top,
            26,
            26,
            "blue" if weight > 0 else "orange",
            opacity=min(0.99, 0.9 * abs(float(weight))),
        )
    picture.rect(x - 1, y - 1, 82, 82, line="ink", line_width=1.5)


def _slide_floats(frames, kernel) -> np.ndarray:
    inputs, weights = (torch.tensor(values).float()[None, None] for values in (frames, kernel))
    return nn.functional.conv3d(inputs, weights)[0, 0].numpy()

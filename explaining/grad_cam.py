"""Grad-CAM: where and when a network looks. (Selvaraju et al., arXiv 1610.02391)

A stage's channels are weighted by their mean gradient of a class's score; the positive part of
their sum shows which regions of which frames support that class.
Shapes: C channels, T frames, H, W pixels.
"""

import numpy as np
import torch
import torch.nn.functional as F

from explaining.layers import StageOutput
from explaining.pictures import BAR, TEXT, blank, enlarged, heat, write_text

MIN_FRAMES, MIN_SIDE = 4, 4  # resolution of a map in time and space, if any stage has it
FRAME_HEIGHT, TITLE_HEIGHT, BARS_HEIGHT = 224, 26, 48  # pixels


def grad_cam(
    outputs: dict[str, StageOutput],
    logits: torch.Tensor,
    class_index: int,
    shape: tuple[int, int, int],
    stage_name: str | None = None,
) -> tuple[np.ndarray, str]:
    """Return the map of one clip, float [T, H, W] from 0 to 1, and the name of its stage.

    outputs, logits: from `layers.stage_outputs`; shape: (T, H, W) of the clip; stage_name: None
    for `deepest_with_resolution`.
    """
    stage_name = stage_name or deepest_with_resolution(outputs)
    output = outputs[stage_name]
    weights = output.gradient(logits[0, class_index]).mean(dim=(1, 2, 3), keepdim=True)
    values = (weights * output.volume()).sum(0).clamp(min=0)  # [T, H, W]
    values = F.interpolate(values[None, None].float(), shape, mode="trilinear")[0, 0]
    return (values / values.max().clamp(min=1e-12)).detach().cpu().numpy(), stage_name


def deepest_with_resolution(outputs: dict[str, StageOutput]) -> str:
    """Return the deepest stage with MIN_SIDE, and MIN_FRAMES if any such stage has them.

    If no stage has MIN_SIDE, as in 2D networks with small crops, the largest side is required.
    """
    shapes = {name: output.volume().shape[1:] for name, output in outputs.items()}
    side = min(MIN_SIDE, max(min(shape[1:]) for shape in shapes.values()))
    maps = {name: shape for name, shape in shapes.items() if min(shape[1:]) >= side}
    num_frames = min(MIN_FRAMES, max(shape[0] for shape in maps.values()))
    return [name for name, shape in maps.items() if shape[0] >= num_frames][-1]


def draw(frames: np.ndarray, values: np.ndarray, title: str) -> list[np.ndarray]:
    """Draw the clip, the clip with the map beside it, and below one bar per frame with its weight.

    frames: uint8 [T, H, W, 3]; values: [T, H, W] from 0 to 1.
    """
    counts = values.sum((1, 2))
    counts = counts / max(counts.max(), 1e-12)
    pictures = []
    for position, (frame, value) in enumerate(zip(frames, values, strict=True)):
        plain = enlarged(frame, FRAME_HEIGHT, smooth=True)
        warm = heat(enlarged(value, FRAME_HEIGHT, smooth=True))
        mixed = np.maximum(plain // 2, warm)
        pair = np.concatenate([plain, mixed], axis=1)
        title_bar = blank(TITLE_HEIGHT, pair.shape[1])
        write_text(title_bar, (6, TITLE_HEIGHT // 2), title)
        pictures.append(np.concatenate([title_bar, pair, _bars(counts, position, pair.shape[1])]))
    return pictures


def _bars(counts: np.ndarray, position: int, width: int) -> np.ndarray:
    """Draw one bar per frame, with the current frame in white."""
    picture = blank(BARS_HEIGHT, width)
    edges = np.linspace(0, width, len(counts) + 1).round().astype(int)
    for number, count in enumerate(counts):
        height = max(1, round(count * (BARS_HEIGHT - 6)))
        colour = TEXT if number == position else BAR
        picture[BARS_HEIGHT - height :, edges[number] + 1 : edges[number + 1] - 1] = colour
    return picture

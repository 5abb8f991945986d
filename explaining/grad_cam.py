"""Grad-CAM: where and when a network looks. (Selvaraju et al., arXiv 1610.02391)

A stage's channels are weighted by their mean gradient of a class's score; the positive part of
their sum shows which regions of which frames support that class. A map that random weights draw,
too, says nothing about what was learnt, so both are shown. (Adebayo et al., Sanity Checks for
Saliency Maps, arXiv 1810.03292) Convolutions that pad with zeros see an edge at the border that is
not in the clip; it may be bright in both maps.
Shapes: C channels, T frames, H, W pixels.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from explaining.layers import StageOutput
from explaining.pictures import BAR, TEXT, blank, enlarged, heat, write_text
from model import build_model
from networks.inference import fold_batchnorm
from scoring.predictor import Predictor

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


def with_random_weights(predictor: Predictor) -> Predictor:
    """Return the predictor with the weights that a training starts from, of seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_model(predictor.config, len(predictor.classes))
    return replace(predictor, network=fold_batchnorm(network).to(predictor.device))


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's rank correlation of two maps, -1 to 1; NaN if one is constant."""
    from scipy.stats import spearmanr  # not at the top: the import takes half a second

    if min(np.ptp(first), np.ptp(second)) == 0:
        return float("nan")
    return float(spearmanr(first.ravel(), second.ravel()).statistic)


def deepest_with_resolution(outputs: dict[str, StageOutput]) -> str:
    """Return the deepest stage with MIN_SIDE, and MIN_FRAMES if any such stage has them.

    If no stage has MIN_SIDE, as in 2D networks with small crops, the largest side is required.
    """
    shapes = {name: output.volume().shape[1:] for name, output in outputs.items()}
    side = min(MIN_SIDE, max(min(shape[1:]) for shape in shapes.values()))
    maps = {name: shape for name, shape in shapes.items() if min(shape[1:]) >= side}
    num_frames = min(MIN_FRAMES, max(shape[0] for shape in maps.values()))
    return [name for name, shape in maps.items() if shape[0] >= num_frames][-1]


def draw(frames: np.ndarray, values: np.ndarray, untrained: np.ndarray, title: str):
    """Draw the clip, its map, the map of random weights, and below both one bar per frame.

    frames: uint8 [T, H, W, 3]; values, untrained: [T, H, W] from 0 to 1. Returns a picture per
    frame, uint8 [H, W, 3].
    """
    pictures = []
    for position, frame in enumerate(frames):
        plain = enlarged(frame, FRAME_HEIGHT, smooth=True)
        panels = [_panel("clip", plain, blank(BARS_HEIGHT, plain.shape[1]))]
        for name, each in (("trained weights", values), ("random weights", untrained)):
            bars = _bars(each.sum((1, 2)), position, plain.shape[1])
            panels.append(_panel(name, overlay(frame, each[position], FRAME_HEIGHT), bars))
        panels = np.concatenate(panels, axis=1)
        pictures.append(np.concatenate([_line(title, panels.shape[1]), panels]))
    return pictures


def overlay(frame: np.ndarray, value: np.ndarray, height: int) -> np.ndarray:
    """Return a darkened frame with its map, [H, W] from 0 to 1, on it; uint8, `height` high."""
    plain = enlarged(frame, height, smooth=True)
    return np.maximum(plain // 2, heat(enlarged(value, height, smooth=True)))


def _panel(title, picture, bars) -> np.ndarray:
    return np.concatenate([_line(title, picture.shape[1]), picture, bars])


def _line(text, width) -> np.ndarray:
    picture = blank(TITLE_HEIGHT, width)
    write_text(picture, (6, TITLE_HEIGHT // 2), text)
    return picture


def _bars(counts: np.ndarray, position: int, width: int) -> np.ndarray:
    """Draw one bar per frame, the highest as high as it fits, the current frame's in white."""
    picture = blank(BARS_HEIGHT, width)
    counts = counts / max(counts.max(), 1e-12)
    edges = np.linspace(0, width, len(counts) + 1).round().astype(int)
    for number, count in enumerate(counts):
        height = max(1, round(count * (BARS_HEIGHT - 6)))
        colour = TEXT if number == position else BAR
        picture[BARS_HEIGHT - height :, edges[number] + 1 : edges[number + 1] - 1] = colour
    return picture

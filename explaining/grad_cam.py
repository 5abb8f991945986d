"""Grad-CAM: where and when a network looks. (Selvaraju et al., arXiv 1610.02391)

A stage's channels are weighted by how much each raises the score of a class; their sum, where it is
positive, says which places of which frames speak for that class.
Shapes: C channels, T frames, H, W pixels.
"""

import numpy as np
import torch.nn.functional as F

from explaining.pictures import BAR, TEXT, blank, enlarged, heat, write_text
from system.errors import UserError

LEAST_MOMENTS, LEAST_SIDE = 4, 4  # what a map must tell apart, if any stage of the network does
FRAME_HEIGHT, TITLE_HEIGHT, BARS_HEIGHT = 224, 26, 48  # pixels


def grad_cam(outputs, logits, class_index, shape, stage_name=None) -> tuple[np.ndarray, str]:
    """The map of one clip, float [T, H, W] from 0 to 1, and the stage that it is of.

    outputs, logits: what `layers.stage_outputs` gives; shape: (T, H, W) of the clip; stage_name:
    default: the deepest stage that still tells places and moments apart. Raises UserError if there
    is no such stage.
    """
    stage_name = stage_name or deepest_with_places(outputs)
    if stage_name not in outputs:
        raise UserError(f"--stage: found {stage_name!r}; expected one of {', '.join(outputs)}")
    output = outputs[stage_name]
    weights = output.gradient(logits[0, class_index]).mean(dim=(1, 2, 3), keepdim=True)
    values = (weights * output.volume()).sum(0).clamp(min=0)  # [T, H, W]
    values = F.interpolate(values[None, None].float(), shape, mode="trilinear")[0, 0]
    return (values / values.max().clamp(min=1e-12)).detach().cpu().numpy(), stage_name


def deepest_with_places(outputs) -> str:
    """The deepest stage whose map tells places apart, and moments if any such stage does."""
    shapes = {name: output.volume().shape[1:] for name, output in outputs.items()}
    maps = {name: shape for name, shape in shapes.items() if min(shape[1:]) >= LEAST_SIDE}
    if not maps:
        raise UserError("no stage of this network tells places apart; Grad-CAM has nothing to show")
    moments = min(LEAST_MOMENTS, max(shape[0] for shape in maps.values()))
    return [name for name, shape in maps.items() if shape[0] >= moments][-1]


def draw(frames, values, title) -> list[np.ndarray]:
    """The clip, and beside it the map upon it; below, how much each frame counts, as bars.

    frames: uint8 [T, H, W, 3]; values: [T, H, W] from 0 to 1.
    """
    counts = values.sum((1, 2))
    counts = counts / max(counts.max(), 1e-12)
    pictures = []
    for moment, (frame, value) in enumerate(zip(frames, values, strict=True)):
        plain = enlarged(frame, FRAME_HEIGHT, smooth=True)
        warm = heat(enlarged(value, FRAME_HEIGHT, smooth=True))
        mixed = np.maximum(plain // 2, warm)
        pair = np.concatenate([plain, mixed], axis=1)
        title_bar = blank(TITLE_HEIGHT, pair.shape[1])
        write_text(title_bar, (6, TITLE_HEIGHT // 2), title)
        pictures.append(np.concatenate([title_bar, pair, _bars(counts, moment, pair.shape[1])]))
    return pictures


def _bars(counts, moment, width) -> np.ndarray:
    """A bar a frame, the one that is shown in white."""
    picture = blank(BARS_HEIGHT, width)
    edges = np.linspace(0, width, len(counts) + 1).round().astype(int)
    for number, count in enumerate(counts):
        height = max(1, round(count * (BARS_HEIGHT - 6)))
        colour = TEXT if number == moment else BAR
        picture[BARS_HEIGHT - height :, edges[number] + 1 : edges[number + 1] - 1] = colour
    return picture

"""What flows through a network's stages, and the kernels of its first layer, as numbers.

Shapes: C channels, T moments, H, W places.
"""

from typing import NamedTuple

import torch
from torch import nn

from networks.stages import stages
from networks.two_stream import NUM_FLOW_CHANNELS

# They pass on what they get, or give it another shape.
SILENT_LAYERS = nn.Identity | nn.Dropout | nn.Flatten


class StageOutput(NamedTuple):
    """What a stage gives for one clip, as it is in the graph that leads to the logits."""

    tensor: torch.Tensor
    channels_last: bool

    def volume(self) -> torch.Tensor:
        """[C, T, H, W]"""
        return as_volume(self.tensor, self.channels_last)

    def gradient(self, score) -> torch.Tensor:
        """How much each value of the volume raises a score of the clip, [C, T, H, W]."""
        (gradient,) = torch.autograd.grad(score, self.tensor, retain_graph=True)
        return as_volume(gradient, self.channels_last)


def stage_outputs(network, inputs) -> tuple[dict[str, StageOutput], torch.Tensor]:
    """What each stage gives for one clip, by its name, and the logits, [1, classes].

    inputs: float [1, C, T, H, W]
    """
    outputs, hooks = {}, []
    channels_last = type(network).__name__ == "SwinTransformer3d"

    def keep(name, output):
        # An LSTM's states come along in a tuple, or a transformer's shape.
        first, *others = output if isinstance(output, tuple) else (output,)
        first = first.clone()  # a later layer may work in place
        outputs[name] = StageOutput(first, channels_last)
        return (first, *others) if others else first

    for name, stage in stages(network):
        if not isinstance(stage, SILENT_LAYERS):
            hooks.append(stage.register_forward_hook(
                lambda _module, _inputs, output, name=name: keep(name, output)
            ))
    try:
        logits = network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, logits


def as_volume(output, channels_last) -> torch.Tensor:
    """A stage's output for one clip as [C, T, H, W].

    A 2D network's first axis is time, since it sees the frames of one clip as a batch.
    """
    if output.dim() == 5:
        output = output[0]
        return output.permute(3, 0, 1, 2) if channels_last else output
    if output.dim() == 4:
        return output.transpose(0, 1)
    if output.dim() == 3:  # [1, T, C] of an LSTM, or a transformer's places in a row
        output = output[0]
    return output.T[:, :, None, None]


def first_kernels(network) -> dict[str, torch.Tensor]:
    """The kernels that the input meets first, as films: [kernels, T, H, W, 3] by layer.

    A two-stream network has two such layers; the films of the one that takes optical flow show
    movement to the right as red and downwards as green.
    """
    streams = [name for name in ("spatial", "temporal") if hasattr(network, name)]
    found = {}
    for stream in streams or [""]:
        part = network.get_submodule(stream)
        name, layer = next((name, module) for name, module in part.named_modules()
                           if isinstance(module, nn.Conv2d | nn.Conv3d))
        found[f"{stream}.{name}".strip(".")] = _as_films(layer.weight.detach().float().cpu())
    return found


def _as_films(weight) -> torch.Tensor:
    """[kernels, C, (T,) H, W] -> [kernels, T, H, W, 3]"""
    if weight.dim() == 5:
        return weight.permute(0, 2, 3, 4, 1)[..., :3]
    if weight.shape[1] == 3:
        return weight.permute(0, 2, 3, 1)[:, None]
    flow = weight.unflatten(1, (NUM_FLOW_CHANNELS, -1)).permute(0, 2, 3, 4, 1)
    return nn.functional.pad(flow, (0, 3 - NUM_FLOW_CHANNELS))


def share_of_change(films) -> float:
    """Percent of the kernels' squares that lie in change over time; 0 for a still picture."""
    still = films.mean(dim=1, keepdim=True)
    return 100 * float((films - still).square().sum() / films.square().sum())

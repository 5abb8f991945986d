"""Outputs of a network's stages, and kernels of its first layer.

Shapes: C channels, T positions in time, H, W in space.
"""

from typing import NamedTuple

import torch
from torch import nn

from networks.frame_networks import NUM_FLOW_CHANNELS
from networks.stages import stages

# Identities and changes of shape.
SILENT_LAYERS = nn.Identity | nn.Dropout | nn.Flatten


class StageOutput(NamedTuple):
    """A stage's output for one clip, as a node in the graph of the logits."""

    tensor: torch.Tensor
    channels_last: bool

    def volume(self) -> torch.Tensor:
        """Return the output as [C, T, H, W]."""
        return as_volume(self.tensor, self.channels_last)

    def gradient(self, score: torch.Tensor) -> torch.Tensor:
        """Return the gradient of a score with respect to the volume, [C, T, H, W]."""
        (gradient,) = torch.autograd.grad(score, self.tensor, retain_graph=True)
        return as_volume(gradient, self.channels_last)


def stage_names(network: nn.Module) -> list[str]:
    """Return the names of the stages that have a distinct output."""
    return [name for name, stage in stages(network) if not isinstance(stage, SILENT_LAYERS)]


def stage_outputs(
    network: nn.Module, inputs: torch.Tensor
) -> tuple[dict[str, StageOutput], torch.Tensor]:
    """Return the output of each stage for one clip, by name, and the logits, [1, classes].

    inputs: float [1, C, T, H, W]
    """
    outputs, hooks = {}, []
    # cuDNN's LSTM only has a backward pass in training mode; without dropout, as here, both modes
    # compute the same.
    recurrent = [module for module in network.modules() if isinstance(module, nn.RNNBase)]
    channels_last = type(network).__name__ == "SwinTransformer3d"

    def keep(name, output):
        # The output may be a tuple, with an LSTM's states or a transformer's shape.
        first, *others = output if isinstance(output, tuple) else (output,)
        first = first.clone()  # a later layer may operate in place
        outputs[name] = StageOutput(first, channels_last)
        return (first, *others) if others else first

    for name in stage_names(network):
        hooks.append(
            network.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, name=name: keep(name, output)
            )
        )
    try:
        for module in recurrent:
            module.train()
        logits = network(inputs)
    finally:
        for module in recurrent:
            module.eval()
        for hook in hooks:
            hook.remove()
    return outputs, logits


def as_volume(output: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Return a stage's output for one clip as [C, T, H, W].

    The first axis of a 2D network is time, since its batch is the frames of one clip.
    """
    if output.dim() == 5:
        output = output[0]
        return output.permute(3, 0, 1, 2) if channels_last else output
    if output.dim() == 4:
        return output.transpose(0, 1)
    if output.dim() == 3:  # [1, T, C] of an LSTM, or a transformer's tokens
        output = output[0]
    return output.T[:, :, None, None]


def first_kernels(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the kernels of the first layer as films, [kernels, T, H, W, 3], by its name.

    A two-stream network has two such layers; in the kernels for optical flow, red is movement to
    the right and green is downwards.
    """
    streams = [name for name in ("spatial", "temporal") if hasattr(network, name)]
    found = {}
    for stream in streams or [""]:
        part = network.get_submodule(stream)
        name, layer = next(
            (name, module)
            for name, module in part.named_modules()
            if isinstance(module, nn.Conv2d | nn.Conv3d)
        )
        found[f"{stream}.{name}".strip(".")] = _as_films(layer.weight.detach().float().cpu())
    return found


def _as_films(weight) -> torch.Tensor:
    """Convert [kernels, C, (T,) H, W] to [kernels, T, H, W, 3]."""
    if weight.dim() == 5:
        return weight.permute(0, 2, 3, 4, 1)[..., :3]
    if weight.shape[1] == 3:
        return weight.permute(0, 2, 3, 1)[:, None]
    flow = weight.unflatten(1, (NUM_FLOW_CHANNELS, -1)).permute(0, 2, 3, 4, 1)
    return nn.functional.pad(flow, (0, 3 - NUM_FLOW_CHANNELS))


def share_of_change(films: torch.Tensor) -> float:
    """Return the percentage of the kernels' energy that is change over time; 0 for a picture."""
    still = films.mean(dim=1, keepdim=True)
    return 100 * float((films - still).square().sum() / films.square().sum())

"""A network's stages: shapes, parameters and operations, computed without data."""

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Maximum elements of a tensor for cuDNN's fast kernels; beyond, convolutions use slow ones.
MAX_ELEMENTS = 2**31 - 1
# What 2D networks call the container of most of their stages; in a backbone, it is opened, too.
ALL_STAGES = ("features", "blocks")


def to_meta(model) -> nn.Module:
    """Return a copy in evaluation mode on the meta device, which computes only shapes.

    It skips BatchNorm, which changes no shape, but takes half of the time there.
    """
    meta_model = copy.deepcopy(model).to("meta").eval()
    for module in meta_model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.forward = lambda values: values
    return meta_model


def num_channels(model) -> int:
    """Return the channels of the network's input: RGB, unless its class defines others."""
    return getattr(model, "num_channels", 3)


@torch.no_grad()
def run_on_meta(meta_model, clip_shape) -> None:
    """Raise RuntimeError or ValueError if the network does not accept clips of this (T, H, W)."""
    meta_model(torch.empty(1, num_channels(meta_model), *clip_shape, device="meta"))


def output_shapes(model, clip_shape) -> dict[str, torch.Size]:
    """Return the shape of each module's output for one clip, by the module's name."""
    meta_model, shapes = to_meta(model), {}

    def note_shape(name, output):
        output = output[0] if isinstance(output, tuple) else output  # an LSTM returns states, too
        if isinstance(output, torch.Tensor):
            shapes[name] = output.shape

    for name, module in meta_model.named_modules():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: note_shape(name, output)
        )
    run_on_meta(meta_model, clip_shape)
    return shapes


class Stage(NamedTuple):
    """A stage of a network, or its input."""

    name: str
    shape: tuple[int, ...]  # of its output for one clip, [C, T, H, W] or [C]
    num_parameters: int
    num_trained: int


class Description(NamedTuple):
    """A network's size, for clips of one shape."""

    stages: list[Stage]  # from the input to the classes
    num_parameters: int
    num_trained: int
    flops: int  # per clip, forward; a multiply-add counts as two
    max_clips: int  # largest batch whose tensors have at most MAX_ELEMENTS


def describe(model: nn.Module, clip_shape) -> Description:
    """Return the network's stages and size. clip_shape: (T, H, W)."""
    with FlopCounterMode(display=False) as counter:
        shapes = output_shapes(model, clip_shape)
    found = [Stage("input", (num_channels(model), *clip_shape), 0, 0)]
    found += [
        Stage(name, tuple(shapes.get(name, ())[1:]), count_parameters(stage), count_trained(stage))
        for name, stage in stages(model)
    ]
    max_clips = MAX_ELEMENTS // max(shape.numel() for shape in shapes.values())
    return Description(
        found, count_parameters(model), count_trained(model), counter.get_total_flops(), max_clips
    )


def format_description(network: Description, num_clips: int = 1) -> str:
    """Return a table of the stages, and totals.

    num_clips: clips per forward pass; a last line warns if there are too many.
    """
    width = max(15, *(len(stage.name) for stage in network.stages)) + 1
    lines = [f"{'stage':<{width}}{'output [C, T, H, W]':<24}{'parameters':>12}"]
    lines += [
        f"{name:<{width}}{', '.join(map(str, shape)):<24}{count:>12,}"
        + "  frozen" * (num_trained == 0 < count)
        for name, shape, count, num_trained in network.stages
    ]
    total = f"{network.flops / 1e9:.2f} GFLOP per clip"
    lines.append(f"{'total':<{width}}{total:<24}{network.num_parameters:>12,}")
    if network.num_trained < network.num_parameters:
        lines.append(f"{'trained':<{width + 24}}{network.num_trained:>12,}")
    if num_clips > network.max_clips:
        lines.append(
            f"warning: {num_clips} clips at once make tensors of more than 2^31 elements, "
            "which GPUs convolve by slow kernels; raise accumulate_steps, so that a part "
            f"has at most {network.max_clips:,} clips"
        )
    return "\n".join(lines)


def stages(model) -> list[tuple[str, nn.Module]]:
    """Return the model's children by name, with containers opened, in the order of use."""
    found = []
    for name, child in model.named_children():
        is_container = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        for part_name, part in child.named_children() if is_container else [("", child)]:
            names = [name, part_name] if part_name else [name]
            parts = part.named_children() if part_name in ALL_STAGES else [("", part)]
            found += [
                (".".join([*names, inner] if inner else names), each) for inner, each in parts
            ]
    return found


def count_parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_trained(module) -> int:
    return sum(each.numel() for each in module.parameters() if each.requires_grad)


def with_class(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """Return a module of class `kind` that shares parameters, buffers and children."""
    other = kind.__new__(kind)
    vars(other).update(vars(module))
    return other

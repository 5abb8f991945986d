"""A network's stages: shapes, parameters and operations, computed without data."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Elements of a tensor that cuDNN's fast kernels can count; beyond, convolutions take slow ones.
MOST_ELEMENTS = 2**31 - 1


def without_data(model) -> nn.Module:
    """A copy in evaluation mode on the meta device, which computes shapes but no values."""
    return copy.deepcopy(model).to("meta").eval()


@torch.no_grad()
def run_without_data(meta_model, clip_shape) -> None:
    meta_model(torch.empty(1, meta_model.num_channels, *clip_shape, device="meta"))


def describe(model: nn.Module, clip_shape, num_clips: int = 1) -> str:
    """A table of stages: name, output shape, parameters; then the totals and GFLOP per clip.

    clip_shape: (T, H, W). A multiplication and an addition count as two operations.
    num_clips: that are computed at once; a last line warns if they are too many.
    """
    meta_model = without_data(model)
    shapes = {}

    def note_shape(name, output):
        output = output[0] if isinstance(output, tuple) else output  # an LSTM's states come along
        shapes[name] = ", ".join(map(str, output.shape[1:]))

    for name, stage in stages(meta_model):
        stage.register_forward_hook(
            lambda _module, _inputs, output, name=name: note_shape(name, output)
        )
    with FlopCounterMode(display=False) as counter:
        run_without_data(meta_model, clip_shape)
    gflop = counter.get_total_flops() / 1e9
    rows = [("input", ", ".join(map(str, (model.num_channels, *clip_shape))), 0)]
    rows += [(name, shapes.get(name, ""), count_parameters(stage)) for name, stage in stages(model)]
    width = max(15, *(len(name) for name, _, _ in rows)) + 1
    lines = [f"{'stage':<{width}}{'output [C, T, H, W]':<24}{'parameters':>12}"]
    lines += [f"{name:<{width}}{shape:<24}{count:>12,}" for name, shape, count in rows]
    total = f"{gflop:.2f} GFLOP per clip"
    lines.append(f"{'total':<{width}}{total:<24}{count_parameters(model):>12,}")
    most = largest_batch(model, clip_shape)
    if num_clips > most:
        lines.append(f"warning: {num_clips} clips at once make tensors of more than 2^31 elements, "
                     "which GPUs convolve by slow kernels; raise accumulate_steps, so that a part "
                     f"has at most {most:,} clips")
    return "\n".join(lines)


def largest_batch(model, clip_shape) -> int:
    """Clips whose activations have at most MOST_ELEMENTS elements in each tensor."""
    meta_model, most = without_data(model), []

    def note_size(_module, _inputs, output):
        if isinstance(output, torch.Tensor):
            most.append(output.numel())

    for module in meta_model.modules():
        module.register_forward_hook(note_size)
    run_without_data(meta_model, clip_shape)
    return MOST_ELEMENTS // max(most)


def stages(model) -> list[tuple[str, nn.Module]]:
    """The model's children by name, with containers opened."""
    containers = nn.Sequential | nn.ModuleList | nn.ModuleDict
    return [
        (f"{name}.{part_name}" if part_name else name, part)
        for name, child in model.named_children()
        for part_name, part in (
            child.named_children() if isinstance(child, containers) else [("", child)]
        )
    ]


def count_parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

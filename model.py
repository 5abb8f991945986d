"""`build_model` makes the network that the config names; what all networks have in common.

Shapes: N clips, C channels, T frames, H, W pixels. A network maps float [N, C, T, H, W] to logits
[N, num_classes]; C is 3, or 5 where it takes optical flow, too.
"""

import copy
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from config import TORCHVISION_VIDEO_MODELS, Config
from errors import UserError
from networks_2d import CnnLstm, TemporalRelationNetwork, TwoStream
from networks_3d import ChannelSeparatedResNet, ConvColumn, MobileNet3d, torchvision_video

# Elements of a tensor that cuDNN's fast kernels can count; beyond, convolutions take slow ones.
MOST_ELEMENTS = 2**31 - 1
LARGEST_SIDE, MOST_FRAMES = 256, 64  # how far the smallest clip that a network takes is looked for


class Network(NamedTuple):
    """How a network is made, and which of its layers belong to the classes."""

    build: Callable  # (config, number of classes) -> module
    head: str = "classifier"  # the layers whose names begin so


def build_conv3d(config: Config, num_classes) -> nn.Module:
    clip_shape = (config.clip_size, *config.crop)
    return ConvColumn(
        num_classes, clip_shape, config.block_widths, config.head_widths, config.dropout
    )


def build_cnn_lstm(config: Config, num_classes) -> nn.Module:
    return CnnLstm(num_classes, config.backbone, config.lstm_units, config.dropout)


def build_trn(config: Config, num_classes) -> nn.Module:
    is_multi_scale = config.trn_scales == "multi"
    return TemporalRelationNetwork(
        num_classes, config.backbone, config.clip_size, is_multi_scale, config.dropout
    )


def build_two_stream(config: Config, num_classes) -> nn.Module:
    return TwoStream(num_classes, config.backbone, config.clip_size, config.dropout)


def build_mobilenet3d(config: Config, num_classes) -> nn.Module:
    return MobileNet3d(num_classes, config.width, config.dropout)


def build_csn(config: Config, num_classes) -> nn.Module:
    return ChannelSeparatedResNet(num_classes, config.depth, config.width, config.dropout)


def build_torchvision_video(config: Config, num_classes) -> nn.Module:
    clip_shape = (config.clip_size, *config.crop)
    dropout = config.dropout if config.model == "s3d" else None
    return torchvision_video(config.model, num_classes, clip_shape, dropout)


NETWORKS = {
    "conv3d": Network(build_conv3d),
    "cnn_lstm": Network(build_cnn_lstm),
    "trn": Network(build_trn),  # its heads are `classifiers`
    "two_stream": Network(build_two_stream),
    "mobilenet3d": Network(build_mobilenet3d),
    "csn": Network(build_csn),
    **{name: Network(build_torchvision_video, head)
       for name, head in TORCHVISION_VIDEO_MODELS.items()},
}  # fmt: skip


def build_model(config: Config, num_classes: int) -> nn.Module:
    """The network that `config.model` names. Raises UserError for clips too small for it."""
    network = NETWORKS[config.model]
    model = network.build(config, num_classes)
    model.num_classes, model.num_channels = num_classes, config.num_channels
    model.head_name = network.head
    check_clip_shape(model, (config.clip_size, *config.crop), config.model)
    return model


def check_clip_shape(model, clip_shape, name) -> None:
    """Raises UserError, with the smallest clip that works, if the network cannot take this one."""
    model = without_data(model)
    if _takes(model, clip_shape):
        return
    frames, height, width = clip_shape
    found = f"{frames} frames of {height} x {width} pixels"

    def takes(num_frames, side):
        return _takes(model, (num_frames, max(side, height), max(side, width)))

    if not takes(MOST_FRAMES, LARGEST_SIDE):
        raise UserError(f"model: {name} takes no clips of {found}")
    least_frames = _least(frames, MOST_FRAMES, lambda number: takes(number, LARGEST_SIDE))
    side = _least(min(height, width), LARGEST_SIDE, lambda side: takes(least_frames, side))
    raise UserError(
        f"clip_size, crop_size: clips of {found} are too small for {name}; the smallest that works "
        f"is {least_frames} frames of {max(side, height)} x {max(side, width)}"
    )


def _least(low, high, works) -> int:
    """The smallest number from `low` to `high` that works; all above it do, too."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle + 1, high)
    return low


def _takes(meta_model, clip_shape) -> bool:
    try:
        run_without_data(meta_model, clip_shape)
    except (RuntimeError, ValueError):
        return False
    return True


def without_data(model) -> nn.Module:
    """A copy on the meta device, through which shapes flow but no numbers."""
    return copy.deepcopy(model).to("meta").eval()


@torch.no_grad()
def run_without_data(meta_model, clip_shape) -> None:
    meta_model(torch.empty(1, meta_model.num_channels, *clip_shape, device="meta"))


def for_inference(model) -> nn.Module:
    """A copy of `model` with each BatchNorm that follows a convolution folded into its weights.

    It gives the same logits up to rounding, with one pass less over the activations.
    """
    model = copy.deepcopy(model).eval()
    for sequence in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for index, (first, second) in enumerate(itertools.pairwise(sequence)):
            if isinstance(first, nn.Conv2d | nn.Conv3d) and isinstance(second, _BatchNorm):
                sequence[index] = fuse_conv_bn_eval(first, second)
                sequence[index + 1] = nn.Identity()
    return model


# --- the stage table ---------------------------------------------------------------------------


def describe(model: nn.Module, clip_shape, num_clips: int = 1) -> str:
    """A table of stages: name, output shape, parameters; then the totals and GFLOPs a clip.

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
    total = f"{gflop:.2f} GFLOP a clip"
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


def count_flop(model, clip_shape) -> int:
    """Operations of one clip's forward pass."""
    with FlopCounterMode(display=False) as counter:
        run_without_data(without_data(model), clip_shape)
    return counter.get_total_flops()


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

"""The networks, and `build_model`, which makes the one that the config names.

Shapes: N clips, C channels, T frames, H, W pixels.
"""

import copy
import itertools

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from config import Config
from errors import UserError

SMALLEST_SIDE = 4  # pixels that a block needs: 4 -> 2 (no padding) -> 2 (padding) -> 1 (pooling)


class ConvColumn(nn.Module):
    """The tutorial's 3D ConvNet: blocks that halve time and space until one vector is left.

    A block is conv, BatchNorm, LeakyReLU, twice, and max pooling. As many blocks are stacked as
    fit into the clip; the last convolution's kernel covers what remains, which gives
    [N, C, 1, 1, 1]; hidden layers and a linear classifier follow. For 18 frames of 84 x 84 and the
    default widths this is the published network of 3,886,883 parameters at 27 classes.

    clip_shape: (T, H, W); block_widths: channels of each block, the last entry repeated for
    further ones; head_widths: channels of the last convolution, then of each hidden layer.
    Raises UserError if the clip is too small for one block.
    """

    def __init__(self, num_classes, clip_shape, block_widths, head_widths, dropout):
        super().__init__()
        if min(clip_shape[1:]) < SMALLEST_SIDE:
            raise UserError(
                f"crop_size: {clip_shape[1]} x {clip_shape[2]} pixels are too small for this "
                f"network; the smallest that works is {SMALLEST_SIDE} x {SMALLEST_SIDE}"
            )
        shape, channels = tuple(clip_shape), 3
        self.blocks = nn.Sequential()
        while min(shape[1:]) >= SMALLEST_SIDE:
            width = block_widths[min(len(self.blocks), len(block_widths) - 1)]
            self.blocks.append(conv_block(channels, width, has_time=shape[0] > 1))
            shape, channels = shape_after_block(shape), width
        self.last_conv = nn.Conv3d(channels, head_widths[0], kernel_size=shape)
        self.hidden = nn.Sequential(
            *(
                hidden_layer(inputs, outputs, dropout)
                for inputs, outputs in itertools.pairwise(head_widths)
            )
        )
        self.classifier = nn.Linear(head_widths[-1], num_classes)

    def forward(self, clips):
        """clips: float [N, 3, T, H, W]. Returns logits [N, num_classes]."""
        features = self.last_conv(self.blocks(clips))  # [N, C, 1, 1, 1]
        return self.classifier(self.hidden(features.flatten(1)))


def conv_block(channels_in, channels_out, has_time):
    """Halves H and W, and T where it `has_time`; a single frame keeps kernels of one frame.

    The tutorial pools after the second LeakyReLU. That never changes which value is the largest,
    so pooling first gives the same bits, and leaves it an eighth of the values.
    """
    time = 2 if has_time else 1
    kernel = (time, 3, 3)
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, kernel),
        nn.BatchNorm3d(channels_out),
        nn.LeakyReLU(inplace=True),
        nn.Conv3d(channels_out, channels_out, kernel, padding=(time - 1, 1, 1)),
        nn.BatchNorm3d(channels_out),
        nn.MaxPool3d((time, 2, 2)),
        nn.LeakyReLU(inplace=True),
    )


def shape_after_block(shape) -> tuple[int, int, int]:
    """(T, H, W) after `conv_block`: the first convolution trims, the pooling halves."""
    frames, height, width = shape
    return max(1, frames // 2), (height - 2) // 2, (width - 2) // 2


def hidden_layer(inputs, outputs, dropout):
    return nn.Sequential(
        nn.Linear(inputs, outputs), nn.LeakyReLU(), nn.BatchNorm1d(outputs), nn.Dropout(dropout)
    )


def build_conv3d(config: Config, num_classes) -> ConvColumn:
    clip_shape = (config.clip_size, *config.crop)
    return ConvColumn(
        num_classes, clip_shape, config.block_widths, config.head_widths, config.dropout
    )


MODELS = {"conv3d": build_conv3d}


def build_model(config: Config, num_classes: int) -> nn.Module:
    """The network that `config.model` names; it maps float [N, 3, T, H, W] to logits."""
    return MODELS[config.model](config, num_classes)


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


def describe(model: nn.Module, clip_shape) -> str:
    """A table of stages: name, output shape, parameters; then the totals and GFLOPs a clip.

    clip_shape: (T, H, W). Nothing is computed: the shapes flow through a copy without data.
    A multiplication and an addition count as two operations.
    """
    model = copy.deepcopy(model).to("meta").eval()
    shapes = {}
    for name, stage in stages(model):
        stage.register_forward_hook(
            lambda _module, _inputs, output, name=name: shapes.update({name: output.shape[1:]})
        )
    gflop = count_flop(model, clip_shape) / 1e9
    rows = [("input", (3, *clip_shape), 0)]
    rows += [(name, tuple(shapes[name]), count_parameters(stage)) for name, stage in stages(model)]
    lines = [f"{'stage':<16}{'output [C, T, H, W]':<24}{'parameters':>12}"]
    lines += [f"{name:<16}{', '.join(map(str, shape)):<24}{count:>12,}"
              for name, shape, count in rows]
    lines.append(f"{'total':<16}{f'{gflop:.2f} GFLOP a clip':<24}{count_parameters(model):>12,}")
    return "\n".join(lines)


def count_flop(model, clip_shape) -> int:
    """Operations of one clip's forward pass."""
    model = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *clip_shape, device="meta"))
    return counter.get_total_flops()


def stages(model) -> list[tuple[str, nn.Module]]:
    """The model's children by name, with containers opened."""
    return [
        (f"{name}.{part_name}" if part_name else name, part)
        for name, child in model.named_children()
        for part_name, part in (
            child.named_children() if isinstance(child, nn.Sequential) else [("", child)]
        )
    ]


def count_parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

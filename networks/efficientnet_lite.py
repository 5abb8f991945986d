"""EfficientNet-Lite0, a 2D network for small devices: EfficientNet-B0 without squeeze-excitation.

(Tan and Le, arXiv 1905.11946; the Lite variants: Liu, 2020, TensorFlow's blog, "Higher accuracy on
vision models with EfficientNet-Lite") Shapes: N pictures, C channels, H, W pixels.
"""

import itertools
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

# Pixels in 0..255 minus 127, divided by 128, are what its weights were trained on.
LITE0_MEAN, LITE0_STD = [127 / 255] * 3, [128 / 255] * 3
BATCHNORM_EPS = 1e-3  # TensorFlow's
# Expansion factor of a block, channels, blocks, kernel, stride of the first
STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
STEM_CHANNELS, NUM_FEATURES = 32, 1280


def efficientnet_lite0(num_classes=1000) -> nn.Sequential:
    """Build EfficientNet-Lite0 with random weights: [N, 3, H, W] -> [N, num_classes]."""
    blocks, channels = nn.Sequential(), STEM_CHANNELS
    for expansion, channels_out, num_blocks, kernel, first_stride in STAGES:
        for block in range(num_blocks):
            stride = first_stride if block == 0 else 1
            blocks.append(InvertedResidual(channels, channels_out, kernel, stride, expansion))
            channels = channels_out
    stem = {"conv": conv(3, STEM_CHANNELS, 3, 2), "bn": norm(STEM_CHANNELS), "relu": relu()}
    last = {"conv": conv(channels, NUM_FEATURES), "bn": norm(NUM_FEATURES), "relu": relu()}
    return sequence(
        {
            "stem": sequence({"pad": SamePadding(3, 2)} | stem),
            "blocks": blocks,
            "last": sequence(last),
            "avgpool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "classifier": nn.Linear(NUM_FEATURES, num_classes),
        }
    )


class InvertedResidual(nn.Module):
    """Widen by a pointwise convolution, convolve each channel, narrow again; add the input."""

    def __init__(self, channels_in, channels_out, kernel, stride, expansion):
        super().__init__()
        inside, layers = channels_in * expansion, {}
        if expansion > 1:
            layers |= {"expand_conv": conv(channels_in, inside), "bn0": norm(inside)}
            layers |= {"relu0": relu()}
        if stride > 1:
            layers |= {"pad": SamePadding(kernel, stride)}
        layers |= {
            "depthwise_conv": conv(inside, inside, kernel, stride, groups=inside),
            "bn1": norm(inside),
            "relu1": relu(),
            "project_conv": conv(inside, channels_out),
            "bn2": norm(channels_out),
        }
        self.layers = sequence(layers)
        self.adds_input = stride == 1 and channels_in == channels_out

    def forward(self, inputs):
        outputs = self.layers(inputs)
        return outputs.add_(inputs) if self.adds_input else outputs


class SamePadding(nn.Module):
    """Pad as TensorFlow does with "same": where the total is odd, one more at the right and bottom.

    PyTorch's own padding would see pixels shifted by one from those that the weights were trained
    on. With a stride of 1 the two are the same.
    """

    def __init__(self, kernel, stride):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, pictures):
        return F.pad(pictures, self.sides(pictures))

    def sides(self, pictures) -> list[int]:
        """Return the pixels at the left, right, top and bottom."""
        padding = []
        for size in reversed(pictures.shape[2:]):
            last_start = (-(-size // self.stride) - 1) * self.stride
            total = max(0, last_start + self.kernel - size)
            padding += [total // 2, total - total // 2]
        return padding


class SamePaddedConv2d(nn.Module):
    """`SamePadding` and a convolution of an odd kernel in one pass, for inference.

    The uneven padding of even sizes is that of a kernel with another row and column, of zeros,
    which a convolution pads evenly by itself.
    """

    def __init__(self, pad: SamePadding, conv: nn.Conv2d):
        super().__init__()
        self.pad, self.conv, self.half = pad, conv, conv.kernel_size[0] // 2
        wide = F.pad(conv.weight.detach(), (1, 0, 1, 0))
        memory_format = torch.channels_last if conv.groups == 1 else torch.contiguous_format
        self.register_buffer("wide", wide.contiguous(memory_format=memory_format))

    def forward(self, pictures):
        before, after = self.half - 1, self.half
        if self.pad.sides(pictures) != [before, after] * 2:
            return self.conv(self.pad(pictures))
        conv = self.conv
        return F.conv2d(pictures, self.wide, conv.bias, conv.stride, self.half, groups=conv.groups)


def merge_padding(model: nn.Module) -> nn.Module:
    """Let each convolution of `model` after a `SamePadding` pad by itself; return the model."""
    for sequence in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for index, (first, second) in enumerate(itertools.pairwise(sequence)):
            if isinstance(first, SamePadding) and isinstance(second, nn.Conv2d):
                sequence[index + 1] = SamePaddedConv2d(first, second)
                sequence[index] = nn.Identity()
    return model


def conv(channels_in, channels_out, kernel=1, stride=1, groups=1) -> nn.Conv2d:
    """Build a convolution; with a stride, `SamePadding` has to precede it."""
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False)


def norm(channels) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCHNORM_EPS)


def relu() -> nn.ReLU6:
    return nn.ReLU6(inplace=True)


def sequence(layers: dict) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))

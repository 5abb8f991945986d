"""Networks that convolve over time and space.

Shapes: N clips, C channels, T frames, H, W pixels. Each maps float [N, C, T, H, W] to logits
[N, num_classes].
"""

import itertools

from torch import nn

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

    num_channels = 3

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


# --- a light one -------------------------------------------------------------------------------


class MobileNet3d(nn.Module):
    """MobileNetV2 with kernels of 3 x 3 x 3. (Koepueklue et al., arXiv 1904.02422, table 1)

    Depthwise convolutions see time and space, pointwise ones the channels. The modules have the
    names that torchvision's `mobilenet_v2` gives them, so that its weights can be inflated.
    width: factor for the number of channels.
    """

    # Factor that the inside of a block is wider by, channels, blocks, stride of the first (T, H, W)
    STAGES = (
        (1, 16, 1, (1, 1, 1)),
        (6, 24, 2, (2, 2, 2)),
        (6, 32, 3, (2, 2, 2)),
        (6, 64, 4, (2, 2, 2)),
        (6, 96, 3, (1, 1, 1)),
        (6, 160, 3, (2, 2, 2)),
        (6, 320, 1, (1, 1, 1)),
    )

    def __init__(self, num_classes, width, dropout):
        super().__init__()
        channels = _multiple_of_8(32 * width)
        layers = [conv_norm_relu(3, channels, 3, (1, 2, 2))]
        for expansion, channels_out, num_blocks, first_stride in self.STAGES:
            channels_out = _multiple_of_8(channels_out * width)
            for block in range(num_blocks):
                stride = first_stride if block == 0 else (1, 1, 1)
                layers.append(InvertedResidual(channels, channels_out, stride, expansion))
                channels = channels_out
        last_channels = _multiple_of_8(1280 * max(1.0, width))
        layers.append(conv_norm_relu(channels, last_channels, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last_channels, num_classes))

    def forward(self, clips):
        return self.classifier(self.features(clips).mean(dim=(2, 3, 4)))


class InvertedResidual(nn.Module):
    """Widen by a pointwise convolution, convolve each channel, narrow again; add the input."""

    def __init__(self, channels_in, channels_out, stride, expansion):
        super().__init__()
        inside = channels_in * expansion
        layers = [conv_norm_relu(channels_in, inside, 1)] if expansion > 1 else []
        layers += [
            conv_norm_relu(inside, inside, 3, stride, groups=inside),
            nn.Conv3d(inside, channels_out, 1, bias=False),
            nn.BatchNorm3d(channels_out),
        ]
        self.conv = nn.Sequential(*layers)
        self.adds_input = stride == (1, 1, 1) and channels_in == channels_out

    def forward(self, inputs):
        outputs = self.conv(inputs)
        return inputs + outputs if self.adds_input else outputs


def conv_norm_relu(channels_in, channels_out, kernel, stride=1, groups=1):
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, kernel, stride, padding=kernel // 2, groups=groups,
                  bias=False),
        nn.BatchNorm3d(channels_out),
        nn.ReLU6(inplace=True),
    )


def _multiple_of_8(channels) -> int:
    """The nearest multiple of 8 that is not more than a tenth smaller, as in MobileNetV2."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


# --- channels apart ----------------------------------------------------------------------------

# Layers with weights -> blocks of each stage.
RESNET_BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ChannelSeparatedResNet(nn.Module):
    """A 3D ResNet in which all that sees time and space is depthwise. (Tran et al., 1904.02811)

    Its bottlenecks are the "interaction-reduced" ones: pointwise, depthwise 3 x 3 x 3, pointwise.
    The stem alone mixes channels and space.
    depth: layers with weights, 26, 50, 101 or 152; width: factor for the number of channels.
    """

    def __init__(self, num_classes, depth, width, dropout):
        super().__init__()
        channels = _multiple_of_8(64 * width)
        self.stem = nn.Sequential(
            nn.Conv3d(3, channels, (3, 7, 7), (1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
        )
        self.layers = nn.Sequential()
        for stage, num_blocks in enumerate(RESNET_BLOCKS[depth]):
            inside = _multiple_of_8(64 * 2**stage * width)
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                self.layers.append(ChannelSeparatedBottleneck(channels, inside, stride))
                channels = inside * ChannelSeparatedBottleneck.EXPANSION
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))

    def forward(self, clips):
        return self.classifier(self.layers(self.stem(clips)).mean(dim=(2, 3, 4)))


class ChannelSeparatedBottleneck(nn.Module):
    """Narrow by a pointwise convolution, convolve each channel, widen again; add the input."""

    EXPANSION = 4  # channels that come out, for each one inside

    def __init__(self, channels_in, inside, stride):
        super().__init__()
        channels_out = inside * self.EXPANSION
        self.conv = nn.Sequential(
            nn.Conv3d(channels_in, inside, 1, bias=False),
            nn.BatchNorm3d(inside),
            nn.ReLU(inplace=True),
            nn.Conv3d(inside, inside, 3, stride, padding=1, groups=inside, bias=False),
            nn.BatchNorm3d(inside),
            nn.ReLU(inplace=True),
            nn.Conv3d(inside, channels_out, 1, bias=False),
            nn.BatchNorm3d(channels_out),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv3d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm3d(channels_out),
            )

    def forward(self, inputs):
        return (self.conv(inputs) + self.shortcut(inputs)).relu()


# --- torchvision's -----------------------------------------------------------------------------


def torchvision_video(name, num_classes, clip_shape, dropout=None) -> nn.Module:
    """One of torchvision's video models, with fresh weights.

    Raises UserError for `mvit_*` with other clips than the one shape that they are made for.
    """
    import torchvision  # here, since it takes a second that the other networks need not wait for

    if name.startswith("mvit") and tuple(clip_shape) != (16, 224, 224):
        raise UserError(
            f"model: {name} takes clips of clip_size 16 and crop_size 224 only, found "
            f"{clip_shape[0]} and {clip_shape[1]} x {clip_shape[2]}; swin3d_t takes any"
        )
    options = {} if dropout is None else {"dropout": dropout}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if name == "s3d":
        # Its windows of 7 x 7 are the whole picture at 224 pixels; so are these, at any size.
        model.avgpool = nn.AdaptiveAvgPool3d(1)
        # torchvision's 0.001 leaves the running statistics where they began for hundreds of steps,
        # so that a network that has learnt its training clips is at chance in evaluation.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.momentum = 0.1
    return model

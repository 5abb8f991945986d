"""MobileNet3d: MobileNetV2 with kernels over time and space."""

from torch import nn

from config import Config


class MobileNet3d(nn.Module):
    """MobileNetV2 with kernels of 3 x 3 x 3. (Koepueklue et al., arXiv 1904.02422, table 1)

    Depthwise convolutions cover time and space, pointwise ones the channels. The modules have the
    same names as in torchvision's `mobilenet_v2`, so that its weights can be inflated.
    """

    # Expansion factor of a block, channels, blocks, stride of the first (T, H, W)
    STAGES = (
        (1, 16, 1, (1, 1, 1)),
        (6, 24, 2, (2, 2, 2)),
        (6, 32, 3, (2, 2, 2)),
        (6, 64, 4, (2, 2, 2)),
        (6, 96, 3, (1, 1, 1)),
        (6, 160, 3, (2, 2, 2)),
        (6, 320, 1, (1, 1, 1)),
    )

    def __init__(self, config: Config, num_classes):
        super().__init__()
        width = config.width
        channels = multiple_of_8(32 * width)
        layers = [conv_norm_relu(3, channels, 3, (1, 2, 2))]
        for expansion, channels_out, num_blocks, first_stride in self.STAGES:
            channels_out = multiple_of_8(channels_out * width)
            for block in range(num_blocks):
                stride = first_stride if block == 0 else (1, 1, 1)
                layers.append(InvertedResidual(channels, channels_out, stride, expansion))
                channels = channels_out
        last_channels = multiple_of_8(1280 * max(1.0, width))
        layers.append(conv_norm_relu(channels, last_channels, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(last_channels, num_classes)
        )

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
        nn.Conv3d(
            channels_in,
            channels_out,
            kernel,
            stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm3d(channels_out),
        nn.ReLU6(inplace=True),
    )


def multiple_of_8(channels: float) -> int:
    """Return the nearest multiple of 8 that is at most a tenth smaller, as in MobileNetV2."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8

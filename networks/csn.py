"""A 3D ResNet with depthwise convolutions."""

from torch import nn

from config import Config
from networks.mobilenet3d import multiple_of_8

# Layers with weights -> blocks of each stage.
RESNET_BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ChannelSeparatedResNet(nn.Module):
    """A 3D ResNet whose convolutions over time and space are depthwise. (Tran et al., 1904.02811)

    Its bottlenecks are the "interaction-reduced" ones: pointwise, depthwise 3 x 3 x 3, pointwise.
    Only the stem mixes channels and space.
    """

    def __init__(self, config: Config, num_classes):
        super().__init__()
        channels = multiple_of_8(64 * config.width)
        self.stem = nn.Sequential(
            nn.Conv3d(3, channels, (3, 7, 7), (1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
        )
        self.layers = nn.Sequential()
        for stage, num_blocks in enumerate(RESNET_BLOCKS[config.depth]):
            inside = multiple_of_8(64 * 2**stage * config.width)
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                self.layers.append(ChannelSeparatedBottleneck(channels, inside, stride))
                channels = inside * ChannelSeparatedBottleneck.EXPANSION
        self.classifier = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(channels, num_classes)
        )

    def forward(self, clips):
        return self.classifier(self.layers(self.stem(clips)).mean(dim=(2, 3, 4)))


class ChannelSeparatedBottleneck(nn.Module):
    """Narrow by a pointwise convolution, convolve each channel, widen again; add the input."""

    EXPANSION = 4  # output channels per inner channel

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

"""A 2D network on each frame, and a 3D network on its stacked maps.

The 2D network can start from pictures, of which there are far more than clips; the 3D one, which
sees movement, is small. (ECO: Zolfaghari et al., arXiv 1804.09066; mixed convolutions: Tran et al.,
arXiv 1711.11248) Shapes: N clips, C channels, T frames, H, W pixels, h, w places of a map.
"""

from torch import nn

from config import Config
from networks.backbones import build_cut_backbone
from networks.frame_networks import FrameNetwork
from system.errors import UserError

WIDTHS = (64, 96, 128)  # channels of the 3D network's convolutions


class Eco(FrameNetwork):
    """A 2D network up to maps of H / stride x W / stride, and a 3D network on them.

    Raises UserError for frames that are smaller than the stride.
    """

    def __init__(self, config: Config, num_classes):
        super().__init__()
        stride, (height, width) = config.backbone_stride, config.crop
        if min(height, width) < stride:
            raise UserError(
                f"crop_size: {height} x {width} pixels are too small for backbone_stride {stride}; "
                f"raise crop_size to {stride} x {stride} or more, or lower backbone_stride"
            )
        try:
            self.backbone, channels = build_cut_backbone(config.backbone, stride)
        except ValueError as error:
            raise UserError(f"backbone_stride: {error}; choose another") from None
        map_shape = (config.clip_size, -(-height // stride), -(-width // stride))
        self.layers = layers_over_time(channels, map_shape)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)

    def classify_features(self, features):
        vectors = self.layers(features.transpose(1, 2)).flatten(1)  # [N, C, 1, 1, 1] -> [N, C]
        return self.classifier(self.dropout(vectors))


def layers_over_time(channels, map_shape) -> nn.Sequential:
    """Build the 3D network: [N, C, T, h, w] -> [N, WIDTHS[-1], 1, 1, 1]; map_shape: (T, h, w)."""
    first, second, last = WIDTHS
    return nn.Sequential(
        nn.BatchNorm3d(channels),
        nn.Conv3d(channels, first, 1),
        *conv_norm_relu(first, second),
        nn.MaxPool3d([min(2, size) for size in map_shape]),
        *conv_norm_relu(second, last),
        nn.AdaptiveAvgPool3d(1),
    )


def conv_norm_relu(channels_in, channels_out):
    return (
        nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm3d(channels_out),
        nn.LeakyReLU(inplace=True),
    )

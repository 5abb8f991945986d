"""A 2D network on each frame, and a 3D network on its stacked maps.

The 2D network can start from pictures, of which there are far more than clips; the 3D one, which
sees movement, is small. (ECO: Zolfaghari et al., arXiv 1804.09066; mixed convolutions: Tran et al.,
arXiv 1711.11248) Shapes: N clips, C channels, T frames, H, W pixels, h, w places of a map.
"""

import torch
from torch import nn

from config import Config
from networks.backbones import build_map_backbone
from networks.frame_networks import FrameNetwork

WIDTHS = (64, 96, 128)  # channels of the 3D network's convolutions


class Eco(FrameNetwork):
    """A 2D network up to maps of H / stride x W / stride, and a 3D network on them.

    Raises UserError for frames that are smaller than the stride.
    """

    def __init__(self, config: Config, num_classes):
        super().__init__()
        self.backbone, map_shape = build_map_backbone(config)
        self.is_centered = config.center_features
        self.layers = layers_over_time(*map_shape)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)

    def classify_features(self, features):
        maps = features.transpose(1, 2)  # [N, C, T, h, w]
        if self.is_centered:
            maps = maps - maps.mean(2, keepdim=True)
        maps = maps.contiguous(memory_format=torch.channels_last_3d)
        vectors = self.layers(maps).flatten(1)  # [N, C, 1, 1, 1] -> [N, C]
        return self.classifier(self.dropout(vectors))


def layers_over_time(num_frames, channels, height, width) -> nn.Sequential:
    """Build convolutions over time and places: [N, C, T, h, w] -> [N, WIDTHS[-1], 1, 1, 1]."""
    first, second, last = WIDTHS
    return nn.Sequential(
        nn.BatchNorm3d(channels),
        nn.Conv3d(channels, first, 1),
        *conv_norm_relu(first, second, 3, padding=1),
        nn.MaxPool3d([min(2, size) for size in (num_frames, height, width)]),
        *conv_norm_relu(second, last, 3, padding=1),
        nn.AdaptiveAvgPool3d(1),
    )


def conv_norm_relu(channels_in, channels_out, kernel, padding=0):
    return (
        nn.Conv3d(channels_in, channels_out, kernel, padding=padding, bias=False),
        nn.BatchNorm3d(channels_out),
        nn.LeakyReLU(inplace=True),
    )

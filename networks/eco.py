"""A 2D network on each frame, and a 3D network on its stacked maps.

The 2D network can start from pictures, of which there are far more than clips; the 3D one, which
sees movement, is small. (ECO: Zolfaghari et al., arXiv 1804.09066; mixed convolutions: Tran et al.,
arXiv 1711.11248) Shapes: N clips, C channels, T frames, H, W pixels, h, w places of a map.
"""

import torch
from torch import nn

from config import Config
from networks.backbones import build_cut_backbone
from networks.frame_networks import FrameNetwork
from system.errors import UserError

WIDTHS = (64, 96, 128)  # channels of the 3D network's convolutions
PLACES, DROPPED_CHANNELS = 3, 0.1  # of maps before a convolution over the whole clip


class Eco(FrameNetwork):
    """A 2D network up to maps of H / stride x W / stride, and a 3D network on them.

    Raises UserError for frames that are smaller than the stride.
    """

    def __init__(self, config: Config, num_classes):
        super().__init__()
        height, width = config.crop
        try:
            self.backbone, channels, stride = build_cut_backbone(
                config.backbone, config.backbone_layer
            )
        except ValueError as error:
            raise UserError(f"backbone_layer: {error}; choose one of them") from None
        if min(height, width) < stride:
            raise UserError(
                f"crop_size: {height} x {width} pixels are too small for {config.backbone}, whose "
                f"maps have a place per {stride} x {stride} pixels; raise crop_size to {stride} x "
                f"{stride} or more, or choose an earlier backbone_layer"
            )
        map_shape = (config.clip_size, -(-height // stride), -(-width // stride))
        self.is_centered = config.center_features
        build = layers_over_time if config.global_pool else layer_over_all
        self.layers = build(channels, map_shape)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)

    def classify_features(self, features):
        maps = features.transpose(1, 2)  # [N, C, T, h, w]
        if self.is_centered:
            maps = maps - maps.mean(2, keepdim=True)
        maps = maps.contiguous(memory_format=torch.channels_last_3d)
        vectors = self.layers(maps).flatten(1)  # [N, C, 1, 1, 1] -> [N, C]
        return self.classifier(self.dropout(vectors))


def layers_over_time(channels, map_shape) -> nn.Sequential:
    """Build convolutions over time and places: [N, C, T, h, w] -> [N, WIDTHS[-1], 1, 1, 1].

    map_shape: (T, h, w).
    """
    first, second, last = WIDTHS
    return nn.Sequential(
        nn.BatchNorm3d(channels),
        nn.Conv3d(channels, first, 1),
        *conv_norm_relu(first, second, 3, padding=1),
        nn.MaxPool3d([min(2, size) for size in map_shape]),
        *conv_norm_relu(second, last, 3, padding=1),
        nn.AdaptiveAvgPool3d(1),
    )


def layer_over_all(channels, map_shape) -> nn.Sequential:
    """Build one convolution over the whole clip: [N, C, T, h, w] -> [N, WIDTHS[-1], 1, 1, 1].

    The maps are first pooled to PLACES x PLACES.
    """
    num_frames, *sides = map_shape
    shape = (num_frames, *(min(PLACES, side) for side in sides))
    return nn.Sequential(
        nn.BatchNorm3d(channels),
        nn.AdaptiveAvgPool3d(shape),
        nn.Dropout3d(DROPPED_CHANNELS),
        *conv_norm_relu(channels, WIDTHS[-1], shape),
    )


def conv_norm_relu(channels_in, channels_out, kernel, padding=0):
    return (
        nn.Conv3d(channels_in, channels_out, kernel, padding=padding, bias=False),
        nn.BatchNorm3d(channels_out),
        nn.LeakyReLU(inplace=True),
    )

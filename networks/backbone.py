"""torchvision's 2D networks, as features of single frames.

Shapes: N clips, C channels, T frames, H, W pixels, F features.
"""

from collections import OrderedDict

import torch
from torch import nn


def build_backbone(name) -> tuple[nn.Sequential, int]:
    """torchvision's network of that name without its last layers, and how many features it gives.

    Its modules keep their names, so that torchvision's weights fit. [N, 3, H, W] -> [N, F]
    """
    import torchvision  # here, since it takes a second that the other networks need not wait for

    network = torchvision.models.get_model(name, weights=None)
    parts = OrderedDict(network.named_children())
    _, head = parts.popitem()
    num_features = next(m for m in head.modules() if isinstance(m, nn.Linear)).in_features
    parts.setdefault("avgpool", nn.AdaptiveAvgPool2d(1))  # mobilenet_v2 has it in its code
    parts["flatten"] = nn.Flatten()
    return nn.Sequential(parts), num_features


def features_of_frames(backbone, clips) -> torch.Tensor:
    """Each frame through the 2D network: [N, C, T, H, W] -> [N, T, F]."""
    num_clips, _, num_frames = clips.shape[:3]
    frames = clips.transpose(1, 2).flatten(0, 1)
    return backbone(frames).view(num_clips, num_frames, -1)

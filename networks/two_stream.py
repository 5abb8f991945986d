"""A frame and stacked optical flow through a 2D ConvNet each."""

import torch
from torch import nn

from networks.backbone import build_backbone

NUM_FLOW_CHANNELS = 2  # pixels moved to the right, and down


class TwoStream(nn.Module):
    """One frame through a spatial ConvNet, stacked flow through a temporal one; scores averaged.

    (Simonyan and Zisserman, NeurIPS 2014) Clips have five channels: RGB and the optical flow from
    each frame to the next. The frame is the middle one in evaluation, a random one in training.
    """

    def __init__(self, num_classes, backbone, num_frames, dropout):
        super().__init__()
        self.spatial, num_features = build_backbone(backbone)
        self.temporal, _ = build_backbone(backbone)
        replace_first_convolution(self.temporal, NUM_FLOW_CHANNELS * max(1, num_frames - 1))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.ModuleDict(
            {stream: nn.Linear(num_features, num_classes) for stream in ("spatial", "temporal")}
        )

    def forward(self, clips):
        frames, flow = clips[:, :-NUM_FLOW_CHANNELS], clips[:, -NUM_FLOW_CHANNELS:]
        num_frames = frames.shape[2]
        chosen = int(torch.randint(num_frames, ())) if self.training else num_frames // 2
        spatial = self.spatial(frames[:, :, chosen])
        # The last frame has no next one. Flattened where it lies last, it stays channels last.
        flow = flow[:, :, : max(1, num_frames - 1)].permute(0, 3, 4, 1, 2).flatten(3)
        temporal = self.temporal(flow.permute(0, 3, 1, 2))
        return (
            self.classifier["spatial"](self.dropout(spatial))
            + self.classifier["temporal"](self.dropout(temporal))
        ) / 2


def replace_first_convolution(network, channels_in) -> None:
    """Makes the first convolution of a 2D network take another number of channels."""
    name, first = next(
        (name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    )
    parent, _, attribute = name.rpartition(".")
    fresh = nn.Conv2d(channels_in, first.out_channels, first.kernel_size, first.stride,
                      first.padding, bias=first.bias is not None)  # fmt: skip
    setattr(network.get_submodule(parent), attribute, fresh)

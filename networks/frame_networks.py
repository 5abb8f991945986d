"""Networks that apply 2D networks to frames: CNN and LSTM, TRN, two streams.

Shapes: N clips, C channels, T frames, H, W pixels, F features.
"""

import copy

import torch
from torch import nn

from config import Config
from networks.backbones import build_backbone

NUM_FLOW_CHANNELS = 2  # movement to the right, and down


class FrameNetwork(nn.Module):
    """A 2D network on each frame, `backbone`, and layers that relate the frames."""

    def frame_features(self, clips) -> torch.Tensor:
        """Pass each frame through the backbone: [N, C, T, H, W] -> [N, T, F] or [N, T, C, h, w]."""
        frames = clips.transpose(1, 2).flatten(0, 1)
        return self.backbone(frames).unflatten(0, (clips.shape[0], clips.shape[2]))

    def classify_features(self, features) -> torch.Tensor:
        """Return the logits of what `frame_features` computed, [N, num_classes]."""
        raise NotImplementedError

    def forward(self, clips):
        return self.classify_features(self.frame_features(clips))


class FeatureClassifier(nn.Module):
    """A network of frames without its backbone: maps what `frame_features` computed to logits."""

    def __init__(self, model: FrameNetwork):
        super().__init__()
        self.model = model

    def __deepcopy__(self, memo):
        """Copy all but the backbone: each epoch evaluates a copy, which does not use it."""
        memo[id(self.model.backbone)] = nn.Sequential().train(self.training)
        copied = FeatureClassifier(copy.deepcopy(self.model, memo))
        copied.training = self.training
        return copied

    def forward(self, features):
        return self.model.classify_features(features)


class CnnLstm(FrameNetwork):
    """A 2D ConvNet on each frame, an LSTM over the sequence. (Donahue et al., arXiv 1411.4389)

    Every step of the LSTM gives logits; the clip's are their mean.
    """

    def __init__(self, config: Config, num_classes):
        super().__init__()
        self.backbone, num_features = build_backbone(config.backbone)
        self.lstm = nn.LSTM(num_features, config.lstm_units, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.lstm_units, num_classes)

    def classify_features(self, features):
        states, _ = self.lstm(features)  # [N, T, units]
        return self.classifier(self.dropout(states)).mean(dim=1)


class TemporalRelationNetwork(FrameNetwork):
    """Features of ordered frame tuples through MLPs. (Zhou et al., arXiv 1711.08496)

    The single-scale network relates all T frames; the multi-scale one adds the scores of tuples
    of T, T - 1, ... 2 frames. Each scale uses some tuples: random ones in each training step, as
    in the paper; evenly spread ones in evaluation.
    """

    NUM_TUPLES = 3  # per scale
    FRAME_FEATURES, RELATION_FEATURES = 256, 256

    def __init__(self, config: Config, num_classes):
        super().__init__()
        self.backbone, num_features = build_backbone(config.backbone)
        self.project = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(num_features, self.FRAME_FEATURES)
        )
        self.num_frames = config.clip_size
        smallest = min(2, self.num_frames) if config.trn_scales == "multi" else self.num_frames
        self.scales = list(range(self.num_frames, smallest - 1, -1))
        self.relations = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Linear(scale * self.FRAME_FEATURES, self.RELATION_FEATURES),
                nn.ReLU(),
                nn.Dropout(config.dropout),
            )
            for scale in self.scales
        )
        self.classifiers = nn.ModuleList(
            nn.Linear(self.RELATION_FEATURES, num_classes) for _ in self.scales
        )

    def classify_features(self, features):
        features = self.project(features)  # [N, T, F]
        logits = 0
        for scale, relation, classifier in zip(
            self.scales, self.relations, self.classifiers, strict=True
        ):
            tuples = self.tuples(scale, features.device)
            related = relation(features[:, tuples].flatten(2))  # [N, tuples, F]
            logits = logits + classifier(related).mean(dim=1)
        return logits

    def tuples(self, scale, device) -> torch.Tensor:
        """Return positions of frames in ascending order, [tuples, scale]."""
        if scale == self.num_frames:
            return torch.arange(scale, device=device)[None]
        if self.training:
            order = torch.rand(self.NUM_TUPLES, self.num_frames, device=device).argsort(dim=1)
            return order[:, :scale].sort(dim=1).values
        places = (torch.arange(self.NUM_TUPLES, device=device)[:, None] + 0.5) / self.NUM_TUPLES
        parts = torch.arange(scale, device=device) + places
        return (parts * self.num_frames / scale).long()


class TwoStream(nn.Module):
    """One frame through a spatial ConvNet, stacked flow through a temporal one; scores averaged.

    (Simonyan and Zisserman, NeurIPS 2014) Clips have five channels: RGB and the optical flow from
    each frame to the next. The frame is the middle one in evaluation, a random one in training.
    """

    num_channels = 3 + NUM_FLOW_CHANNELS

    def __init__(self, config: Config, num_classes):
        super().__init__()
        self.spatial, num_features = build_backbone(config.backbone)
        self.temporal, _ = build_backbone(config.backbone)
        replace_first_convolution(self.temporal, NUM_FLOW_CHANNELS * (config.clip_size - 1))
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.ModuleDict(
            {stream: nn.Linear(num_features, num_classes) for stream in ("spatial", "temporal")}
        )

    def forward(self, clips):
        frames, flow = clips[:, :-NUM_FLOW_CHANNELS], clips[:, -NUM_FLOW_CHANNELS:]
        num_frames = frames.shape[2]
        chosen = int(torch.randint(num_frames, ())) if self.training else num_frames // 2
        spatial = self.spatial(frames[:, :, chosen])
        # The last frame has no next one. Flattening the last dimensions keeps channels last.
        flow = flow[:, :, : num_frames - 1].permute(0, 3, 4, 1, 2).flatten(3)
        temporal = self.temporal(flow.permute(0, 3, 1, 2))
        return (
            self.classifier["spatial"](self.dropout(spatial))
            + self.classifier["temporal"](self.dropout(temporal))
        ) / 2


def replace_first_convolution(network, channels_in) -> None:
    """Replace the first convolution of a 2D network by one with `channels_in` channels."""
    name, first = next(
        (name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    )
    fresh = nn.Conv2d(
        channels_in,
        first.out_channels,
        first.kernel_size,
        first.stride,
        first.padding,
        bias=first.bias is not None,
    )
    network.set_submodule(name, fresh)

"""Temporal Relation Network: a 2D ConvNet on each frame, and MLPs over tuples of frames."""

import torch
from torch import nn

from networks.backbone import build_backbone, features_of_frames


class TemporalRelationNetwork(nn.Module):
    """Features of ordered frame tuples through MLPs. (Zhou et al., arXiv 1711.08496)

    The single-scale network relates all T frames; the multi-scale one adds the scores of tuples
    of T, T - 1, ... 2 frames. Of each scale some tuples are looked at: in training they are drawn
    anew each time, as in the paper; in evaluation they are spread evenly.
    """

    NUM_TUPLES = 3  # of each scale
    FRAME_FEATURES, RELATION_FEATURES = 256, 256

    def __init__(self, num_classes, backbone, num_frames, is_multi_scale, dropout):
        super().__init__()
        self.backbone, num_features = build_backbone(backbone)
        self.project = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(num_features, self.FRAME_FEATURES)
        )
        self.num_frames = num_frames
        self.scales = list(range(num_frames, 1, -1)) if is_multi_scale else []
        self.scales = self.scales or [num_frames]
        self.relations = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Linear(scale * self.FRAME_FEATURES, self.RELATION_FEATURES),
                nn.ReLU(), nn.Dropout(dropout),
            )
            for scale in self.scales
        )  # fmt: skip
        self.classifiers = nn.ModuleList(
            nn.Linear(self.RELATION_FEATURES, num_classes) for _ in self.scales
        )

    def forward(self, clips):
        features = self.project(features_of_frames(self.backbone, clips))  # [N, T, F]
        logits = 0
        for scale, relation, classifier in zip(
            self.scales, self.relations, self.classifiers, strict=True
        ):
            tuples = self.tuples(scale, clips.device)
            related = relation(features[:, tuples].flatten(2))  # [N, tuples, F]
            logits = logits + classifier(related).mean(dim=1)
        return logits

    def tuples(self, scale, device) -> torch.Tensor:
        """Positions of frames in rising order, [tuples, scale]."""
        if scale == self.num_frames:
            return torch.arange(scale, device=device)[None]
        if self.training:
            order = torch.rand(self.NUM_TUPLES, self.num_frames, device=device).argsort(dim=1)
            return order[:, :scale].sort(dim=1).values
        places = (torch.arange(self.NUM_TUPLES, device=device)[:, None] + 0.5) / self.NUM_TUPLES
        parts = torch.arange(scale, device=device) + places
        return (parts * self.num_frames / scale).long()

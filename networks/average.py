"""Several networks on the same clips; their probabilities are averaged or multiplied.

They make different mistakes, so together they are often better than the best of them. (Two-stream
networks average in the same way: Simonyan and Zisserman, NeurIPS 2014. A product is surer where its
members agree: Hinton, Products of Experts, ICANN 1999)
Shapes: N clips, C channels, T frames, H, W pixels, S members, F features.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from networks.frame_networks import FrameNetwork
from networks.stages import to_meta


class Average(FrameNetwork):
    """Several networks; those that have a 2D network for each frame share it.

    They see the clips, of frames `crop` (H, W); the others see them shrunk to `small_crop`,
    without the clip's mean frame if `subtract_background` is set. In training mode the output is
    the logits of each member, [N, S, num_classes], so that each learns as it does alone; in
    evaluation mode, the logarithms of their probabilities combined as `combine` says.
    """

    def __init__(
        self, members: dict[str, nn.Module], crop, small_crop, subtract_background, combine
    ):
        super().__init__()
        self.subtract_background, self.combine = subtract_background, combine
        self.small_crop, self.map_shape, self.backbone = tuple(small_crop), (), nn.Sequential()
        for member in members.values():
            if isinstance(member, FrameNetwork):
                # At the top, where `freeze` and pretrained weights look for it.
                self.backbone = member.backbone
                del member.backbone
        if len(self.backbone):
            picture = torch.empty(1, 3, *crop, device="meta")
            self.map_shape = tuple(to_meta(self.backbone)(picture).shape[1:])
        self.members = nn.ModuleDict(members)

    def frame_features(self, clips):
        """Return each frame's small picture and maps as a vector: [N, C, T, H, W] -> [N, T, F]."""
        parts = [self.small_clips(clips).transpose(1, 2).flatten(2)]
        if self.map_shape:
            parts.append(super().frame_features(clips).flatten(2))
        return torch.cat(parts, 2)

    def small_clips(self, clips):
        """Return the clips as the members without a 2D network see them, [N, C, T, h, w]."""
        pictures = clips.transpose(1, 2).flatten(0, 1)  # ONNX has no mean over areas in 3D
        small = F.interpolate(pictures, self.small_crop, mode="area")
        return small.unflatten(0, (clips.shape[0], clips.shape[2])).transpose(1, 2)

    def without_background(self, small):
        """Subtract each clip's mean frame, with `subtract_background`."""
        return small - small.mean(2, keepdim=True) if self.subtract_background else small

    def split_features(self, features):
        """Return the small clips [N, C, T, h, w], and the maps [N, T, ...] or None."""
        num_pixels = 3 * math.prod(self.small_crop)
        small = features[..., :num_pixels].unflatten(2, (3, *self.small_crop)).transpose(1, 2)
        small = self.without_background(small).contiguous(memory_format=torch.channels_last_3d)
        if not self.map_shape:
            return small, None
        return small, features[..., num_pixels:].unflatten(2, self.map_shape)

    def classify_features(self, features):
        small, maps = self.split_features(features)
        logits = torch.stack(
            [
                member.classify_features(maps)
                if isinstance(member, FrameNetwork)
                else member(small)
                for member in self.members.values()
            ],
            dim=1,
        )
        return logits if self.training else combine_members(logits, self.combine)


def combine_members(logits, combine: str) -> torch.Tensor:
    """Return logarithms of the members' probabilities together: [N, S, classes] -> [N, classes].

    combine: their "mean", or their "product" divided by its sum over the classes. Logits of a
    single network, [N, classes], are returned unchanged.
    """
    if logits.dim() == 2:
        return logits
    each = logits.log_softmax(2, torch.promote_types(logits.dtype, torch.float32))
    if combine == "product":
        return each.sum(1).log_softmax(1)
    return each.logsumexp(1) - math.log(logits.shape[1])

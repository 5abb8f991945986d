"""Mixup and CutMix: what a training step does to a whole batch of clips on the device."""

import torch
import torch.nn.functional as F

from config import Config


def mixed(clips, labels, num_classes: int, config: Config):
    """Blends each clip with the one before it, if the config says so, and its label likewise.

    clips: float [N, C, T, H, W]; labels: int64 [N]. Returns the clips, and the labels as they were
    or as shares float [N, num_classes]. What is random comes from PyTorch's global generator of
    the CPU, which `seed_step` sets.
    """
    mixers = [(mixup, config.mixup_alpha), (cutmix, config.cutmix_alpha)]
    mixers = [(mixer, alpha) for mixer, alpha in mixers if alpha]
    if not mixers:
        return clips, labels
    mixer, alpha = mixers[int(torch.randint(len(mixers), ()))]
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    clips, share = mixer(clips, share)
    targets = F.one_hot(labels, num_classes).float()
    return clips, targets.lerp(targets.roll(1, 0), share)


def mixup(clips, share: float):
    """`share` of each clip comes from the one before it. (Zhang et al., arXiv 1710.09412)"""
    return clips.lerp(clips.roll(1, 0), share), share


def cutmix(clips, share: float):
    """A box of `share` of the picture comes from the clip before, the same box in all frames.

    Returns the clips and the box's true share. (Yun et al., arXiv 1905.04899)
    """
    height, width = clips.shape[-2:]
    rows, columns = (_span(side, share**0.5) for side in (height, width))
    results = clips.clone()
    results[..., rows, columns] = clips.roll(1, 0)[..., rows, columns]
    box = (rows.stop - rows.start) * (columns.stop - columns.start)
    return results, box / (height * width)


def _span(side: int, share: float) -> slice:
    """A stretch of that share around a random place; what would reach over the edge is cut off."""
    centre, half = int(torch.randint(side, ())), round(side * share) // 2
    return slice(max(0, centre - half), min(side, centre + half))

"""Mixup and CutMix: what a training step does to a whole batch of clips on the device."""

import functools

from config import Config


def mixed(clips, labels, num_classes: int, config: Config):
    """Blends each clip with another one, if the config says so, and its label likewise.

    clips: float [N, C, T, H, W]; labels: int64 [N]. Returns the clips, and the labels as they were
    or as shares float [N, num_classes]. What is random comes from PyTorch's global generator,
    which `seed_step` sets. (Zhang et al., arXiv 1710.09412; Yun et al., arXiv 1905.04899: there
    the box is the same in all frames.)
    """
    if not (config.mixup_alpha or config.cutmix_alpha):
        return clips, labels
    return _mixer(config.mixup_alpha, config.cutmix_alpha, num_classes)(clips, labels)


@functools.cache
def _mixer(mixup_alpha, cutmix_alpha, num_classes):
    from torchvision.transforms import v2  # here, since it takes a second that few runs need

    mixers = [v2.MixUp(alpha=mixup_alpha, num_classes=num_classes)] if mixup_alpha else []
    mixers += [v2.CutMix(alpha=cutmix_alpha, num_classes=num_classes)] if cutmix_alpha else []
    return v2.RandomChoice(mixers)

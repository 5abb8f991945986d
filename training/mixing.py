"""Mixup and CutMix: what a training step does to a whole batch of clips on the device."""

import torch

from config import Config


def mix_batch(clips: torch.Tensor, labels: torch.Tensor, num_classes: int, config: Config):
    """Blend each clip, and its label likewise, with the one before it, if the config says so.

    Mixup (Zhang et al., arXiv 1710.09412) blends whole clips, CutMix (Yun et al., arXiv
    1905.04899) replaces a box, the same in all frames. With both, each step draws one of them.

    clips: float [N, C, T, H, W]; labels: int64 [N]. Returns the clips, and the labels as they were
    or as shares float [N, num_classes]. What is random comes from PyTorch's global generator of
    the CPU, which `seed_step` sets.
    """
    if not config.mixup_alpha and not config.cutmix_alpha:
        return clips, labels
    from torchvision import tv_tensors  # here: importing torchvision takes a second
    from torchvision.transforms import v2

    mixers = [(v2.MixUp, config.mixup_alpha), (v2.CutMix, config.cutmix_alpha)]
    mixers = [(mixer, alpha) for mixer, alpha in mixers if alpha]
    mixer, alpha = mixers[int(torch.randint(len(mixers), ()))]
    # As a Video, since a plain tensor may have four dimensions only.
    clips, targets = mixer(alpha=alpha, num_classes=num_classes)(tv_tensors.Video(clips), labels)
    # On a GPU MixUp loses the memory order that convolutions like best.
    clips = clips.as_subclass(torch.Tensor).contiguous(memory_format=torch.channels_last_3d)
    return clips, targets

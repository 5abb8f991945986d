"""Mixup and CutMix: augmentations of a whole batch of clips on the device."""

import torch

from config import Config


def mix_batch(clips: torch.Tensor, labels: torch.Tensor, num_classes: int, config: Config):
    """Blend each clip and its label with the clip before it, if the config says so.

    Mixup (Zhang et al., arXiv 1710.09412) blends whole clips, CutMix (Yun et al., arXiv
    1905.04899) replaces a box, the same in all frames. With both, each step draws one of them.

    clips: float [N, C, T, H, W], or features of their frames; labels: int64 [N]. Returns the clips,
    and the labels unchanged or as probabilities, float [N, num_classes]. Random numbers come from
    PyTorch's global CPU generator, which `seed_step` seeds.
    """
    if not config.mixup_alpha and not config.cutmix_alpha:
        return clips, labels
    from torchvision import tv_tensors  # here: importing torchvision takes a second
    from torchvision.transforms import v2

    mixers = [(v2.MixUp, config.mixup_alpha), (v2.CutMix, config.cutmix_alpha)]
    mixers = [(mixer, alpha) for mixer, alpha in mixers if alpha]
    mixer, alpha = mixers[int(torch.randint(len(mixers), ()))]
    # As a Video, since a plain tensor may only have four dimensions; features [N, T, F] have three.
    video = tv_tensors.Video(clips if clips.dim() == 5 else clips[..., None, None])
    video, targets = mixer(alpha=alpha, num_classes=num_classes)(video, labels)
    # On a GPU, MixUp loses the channels-last memory format.
    mixed = video.as_subclass(torch.Tensor).contiguous(memory_format=torch.channels_last_3d)
    return mixed.view(clips.shape) if clips.dim() < 5 else mixed, targets

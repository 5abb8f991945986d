"""BatchNorm's running statistics, recomputed for the weights that are evaluated.

In training they are a moving average over the last steps, when the weights were different. After
few steps they lag far behind, and evaluation, which uses them, scores far below what the weights
can do. (Wu and Johnson, arXiv 2105.07576, section 3)
"""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clips.batches import batches_of
from config import Config
from model import normalize_clips
from system import processes
from system.device import evaluating
from training.freezing import is_frozen

NUM_CLIPS = 512  # enough for means and variances; an epoch may have fewer


def refresh_statistics(model: nn.Module, loader, epoch: int, device, config: Config) -> None:
    """Set the running means and variances of `model` to those over up to NUM_CLIPS clips.

    The clips are the epoch's first training clips, augmented as in that epoch; dropout is off.
    The new statistics are only set once all are computed, so a signal leaves the old ones.
    Every process must call this; each computes a part.
    """
    if not _norms(model):
        return
    copied = copy.deepcopy(model).eval()
    norms = _norms(copied)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    loader.batch_sampler.start_at(epoch, 0, last=-(-NUM_CLIPS // config.batch_size))
    with evaluating(device, config):
        for batch in batches_of(loader):
            processes.stop_together()
            counts = [row["clips"] for row in processes.all_gather_ints(clips=len(batch.labels))]
            num_parts = min(config.accumulate_steps, min(counts) // 2)  # as in a training step
            for part in range(num_parts):
                copied(normalize_clips(batch.clips[part::num_parts, 0], device, config))
    counts = [float(norm.num_batches_tracked) for norm in norms]
    sums = [
        torch.cat([norm.running_mean, norm.running_var, torch.ones_like(norm.running_mean)])
        .double()
        .cpu()
        * count
        for norm, count in zip(norms, counts, strict=True)
    ]
    sums = processes.all_sum(torch.cat(sums)).split([len(values) for values in sums])
    for norm, values in zip(_norms(model), sums, strict=True):
        mean, variance, count = values.chunk(3)
        if count.all():
            norm.running_mean.copy_(mean / count)
            norm.running_var.copy_(variance / count)


def _norms(model) -> list[_BatchNorm]:
    """Return the layers whose statistics follow the training; frozen ones keep theirs."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and not is_frozen(module)
    ]

"""The running mean of the weights, which often generalises better than the weights themselves."""

import copy
from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from networks.ridge import fitted_tensors


class AverageOfWeights:
    """Exponential moving average of a model's weights and BatchNorm statistics.

    `module` is the averaged network, in evaluation mode; call `update_parameters` after each step
    of the optimizer. Unlike PyTorch's AveragedModel, it never waits for a GPU. Tensors that
    training never changes are those of `model`, so that memory and checkpoints have them once.

    decay: weight of the old average in each step; smaller at the start, so that the random first
    weights are soon forgotten. (As in TensorFlow's ExponentialMovingAverage)
    """

    def __init__(self, model: nn.Module, decay: float):
        candidates = [*model.parameters(), *fitted_tensors(model).values()]
        shared = {id(each): each for each in candidates if not each.requires_grad}
        self.module = copy.deepcopy(model, shared).eval()
        self.decay, self.num_updates = decay, 0

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model`; batch counters are copied."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        moved = []
        for average, current in zip(_tensors(self.module), _tensors(model), strict=True):
            if average is current:
                continue
            if average.is_floating_point():
                moved.append((average, current))
            else:
                average.copy_(current)
        get_ema_multi_avg_fn(decay)(*zip(*moved, strict=True), None)


def _tensors(model: nn.Module):
    return chain(model.parameters(), model.buffers())

"""The running mean of the weights, which often generalises better than the weights themselves."""

import copy

import torch
from torch import nn


class AverageOfWeights:
    """Exponential moving average of a model's weights and BatchNorm statistics.

    decay: share of the past in each step; at the start it is less, so that the first weights,
    which mean nothing, are soon forgotten. (As in TensorFlow's ExponentialMovingAverage)
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.num_updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """To be called after each step of the optimizer."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        own, current = self.model.state_dict(), model.state_dict()
        are_means = [name for name, value in own.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [own[name] for name in are_means], [current[name] for name in are_means], 1 - decay
        )
        for name in own.keys() - set(are_means):  # counters of batches
            own[name].copy_(current[name])

"""The running mean of the weights, which often generalises better than the weights themselves."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class AverageOfWeights(AveragedModel):
    """Exponential moving average of a model's weights and BatchNorm statistics.

    `module` is the network with them, in evaluation mode; `update_parameters` is to be called
    after each step of the optimizer.

    decay: share of the past in each step; at the start it is less, so that the first weights,
    which mean nothing, are soon forgotten. (As in TensorFlow's ExponentialMovingAverage)
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, multi_avg_fn=self._move, use_buffers=True)
        self.module.eval().requires_grad_(False)
        self.decay, self.num_updates = decay, 0

    @property
    def num_updates(self) -> int:
        return int(self.n_averaged) - 1  # the weights at the start count as the first

    @num_updates.setter
    def num_updates(self, count: int) -> None:
        self.n_averaged.fill_(count + 1)

    def _move(self, averages, current, _count) -> None:
        """Move `averages` to `current`; tensors of one type, counters of batches are copied."""
        count = self.num_updates + 1
        decay = min(self.decay, (1 + count) / (10 + count))
        if not averages[0].is_floating_point():
            decay = 0.0
        get_ema_multi_avg_fn(decay)(averages, current, None)

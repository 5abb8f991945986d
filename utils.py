"""Seeds and metrics."""

import numpy as np
import torch

from system import processes

# --- seeds -------------------------------------------------------------------------------------


def seed_step(seed: int, epoch: int, step: int) -> None:
    """Seed a step's random numbers (dropout) by (seed, epoch, step, process)."""
    state = np.random.SeedSequence([seed, epoch, step, processes.rank()])
    torch.manual_seed(int(state.generate_state(1, np.uint64)[0]) >> 1)


# --- metrics -----------------------------------------------------------------------------------


class AverageMeter:
    """Running mean over clips.

    The sum is on the device of the values, so that only reading waits for a GPU.
    """

    # Sums of multiples of this are exact in a double, in any order: a resumed epoch, and
    # one over several processes, give exactly the same mean.
    RESOLUTION = 2.0**-24

    def __init__(self):
        self.sum, self.count = 0.0, 0

    def update(self, batch_sum: torch.Tensor, count: int | torch.Tensor):
        """Add values; batch_sum: sum of `count` values."""
        steps = (batch_sum.detach().double() / self.RESOLUTION).round()
        self.sum = self.sum + steps * self.RESOLUTION
        self.count += count

    @property
    def average(self) -> float:
        return float(self.sum) / int(self.count) if self.count else float("nan")


def accuracy_ranks(num_classes: int) -> list[int]:
    """Return the k of the top-k accuracies: 1, and 5 if there are more than 5 classes.

    With 5 classes or fewer the label is always among the 5 highest.
    """
    return [k for k in (1, 5) if k < num_classes]


def top_k_correct(logits, labels, k) -> torch.Tensor:
    """Return whether the label is among the k highest logits. [N, classes], [N] -> bool [N]."""
    if k == 1:  # the first of equal logits, as in predictions and the confusion matrix
        return logits.argmax(1) == labels
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1)


class TrainingMetrics:
    """Running means of an epoch: loss, top-1 and top-5 (percent) of the clips, gradient norm."""

    def __init__(self, num_classes: int):
        self.num_classes, self.ranks = num_classes, accuracy_ranks(num_classes)
        names = ["loss", *(f"top{k}" for k in self.ranks), "grad_norm"]
        self.meters = {name: AverageMeter() for name in names}

    def update(self, loss_sum, logits, labels):
        """Add clips; loss_sum: sum over them; logits: [N, classes]; labels: [N]."""
        sums = {"loss": loss_sum}
        sums |= {f"top{k}": 100 * top_k_correct(logits, labels, k).sum() for k in self.ranks}
        for name, batch_sum in sums.items():
            self.meters[name].update(batch_sum, len(labels))

    def update_norm(self, norm):
        """Add the norm of a step's gradients; ignore inf, as from too high a scale in fp16."""
        is_finite = norm.isfinite()
        self.meters["grad_norm"].update(torch.where(is_finite, norm, 0), is_finite.long())

    def averages(self) -> dict[str, float]:
        """Return the means over this process's clips."""
        return {name: meter.average for name, meter in self.meters.items()}

    def state(self) -> dict[str, list]:
        """Return each meter's sum and count over all processes; every process must call this."""
        own = [[float(meter.sum), int(meter.count)] for meter in self.meters.values()]
        sums = processes.all_sum(torch.tensor(own, dtype=torch.float64)).tolist()
        return dict(zip(self.meters, sums, strict=True))

    def load_state(self, state: dict[str, list]) -> None:
        """Continue from `state` in the main process; the others start from 0."""
        for name in self.meters.keys() & state.keys() if processes.is_main() else ():
            total, count = state[name]
            self.meters[name].sum, self.meters[name].count = total, int(count)

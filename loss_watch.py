"""Stops a run whose loss is no finite number, without making a GPU wait for the answer."""

from typing import NamedTuple

import torch

import processes
from errors import UserError, first_few


class _Step(NamedTuple):
    """A step whose loss is still to be looked at."""

    is_bad: torch.Tensor  # bool, on the CPU
    arrived: torch.cuda.Event | None  # after which `is_bad` can be read
    epoch: int
    step: int
    learning_rate: float
    ids: list[str]  # of its clips


class LossWatch:
    """Looks at the loss of each step: at once in a single process on the CPU, else while others go.

    So on a GPU, or in several processes, more steps may have moved the weights in memory; since
    `settle` comes before every save, no checkpoint ever holds one that came after a bad loss.
    """

    def __init__(self, device: torch.device):
        self.device, self.waiting = device, []

    def note(self, batch_loss: torch.Tensor, epoch, step, learning_rate, ids) -> None:
        """Takes the loss of a step. Raises UserError if it is known already that it is bad."""
        arrived = None
        is_bad = (~torch.isfinite(batch_loss)).to("cpu", non_blocking=True)
        if self.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        self.waiting.append(_Step(is_bad, arrived, epoch, step, learning_rate, list(ids)))
        if self.device.type == "cpu" and processes.world_size() == 1:
            self.settle()

    def knows_a_bad_loss(self) -> bool:
        """Whether a loss of this process that has arrived is bad; waits for none."""
        while self.waiting and (not self.waiting[0].arrived or self.waiting[0].arrived.query()):
            if self.waiting[0].is_bad:
                return True
            self.waiting.pop(0)
        return False

    def settle(self) -> None:
        """Waits for all losses; raises UserError in all processes if one of them was bad."""
        waiting, self.waiting = self.waiting, []
        bad = [step for step in waiting if _is_bad(step)]
        if not processes.highest(bad=bool(bad))["bad"]:
            return
        # Once weights are spoilt all losses are, in all processes.
        firsts = processes.gathered([step[2:] for step in bad[:1]])
        epoch, step, learning_rate, _ = min(firsts)
        ids = [name for first in firsts if first[1] == step for name in first[-1]]
        raise UserError(
            f"the loss is no finite number in epoch {epoch + 1}, step {step + 1}, at a "
            f"learning rate of {learning_rate:g}, with the clips {first_few(ids, 100)}; lower "
            "lr, or look at these clips; the last checkpoint is from before this step"
        )


def _is_bad(step: _Step) -> bool:
    if step.arrived:
        step.arrived.synchronize()
    return bool(step.is_bad)

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
    """Looks at the loss of each step: on the CPU at once, of a GPU's while it does the next one.

    So on a GPU one more step may have moved the weights in memory; since `settle` comes before
    every save, no checkpoint ever holds one that came after a bad loss.
    """

    def __init__(self, device: torch.device):
        self.device, self.waiting = device, None

    def note(self, batch_loss: torch.Tensor, epoch, step, learning_rate, ids) -> None:
        """Takes the loss of a step. Raises UserError for one that was noted before, or this one."""
        arrived, before = None, self.waiting
        is_bad = (~torch.isfinite(batch_loss)).to("cpu", non_blocking=True)
        if self.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        self.waiting = _Step(is_bad, arrived, epoch, step, learning_rate, list(ids))
        if self.device.type == "cuda":
            _check(before)
        else:
            self.settle()

    def settle(self) -> None:
        """Waits for what is known of the last step; raises UserError if its loss was bad."""
        waiting, self.waiting = self.waiting, None
        _check(waiting)


def _check(step: _Step | None) -> None:
    if step is None:
        return
    if step.arrived:
        step.arrived.synchronize()
    is_bad = bool(step.is_bad)
    if processes.highest(bad=is_bad)["bad"]:
        ids = processes.gathered(step.ids if is_bad else [])
        raise UserError(
            f"the loss is no finite number in epoch {step.epoch + 1}, step {step.step + 1}, at a "
            f"learning rate of {step.learning_rate:g}, with the clips {first_few(ids, 100)}; lower "
            "lr, or look at these clips; the last checkpoint is from before this step"
        )

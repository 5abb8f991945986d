"""Stops a run whose loss or gradient is NaN or inf, without synchronising with the GPU."""

from typing import NamedTuple

import torch

from system import processes
from system.errors import UserError, first_few


class _Step(NamedTuple):
    """A step that is still to be looked at."""

    is_bad: torch.Tensor  # bool [2], on the CPU: this process's loss, the common gradient
    arrived: torch.cuda.Event | None  # after which `is_bad` can be read
    epoch: int
    step: int
    learning_rate: float
    ids: list[str]  # of its clips


class LossWatch:
    """Records steps whose loss or gradient is NaN or inf, until all processes stop together.

    The optimizer has not moved in such a step (see `device.loss_scaler`), and `settle` comes before
    every save. A GPU is asked about the step before the last one only, which it has finished.
    """

    def __init__(self, device: torch.device, precision: str):
        """precision: its name, which the message has."""
        self.device, self.precision = device, precision
        self.waiting: list[_Step] = []
        self.bad: _Step | None = None

    def note(self, is_bad: torch.Tensor, epoch, step, learning_rate, ids) -> None:
        """Record a step; is_bad: bool [2] on the device, as in `_Step`."""
        is_bad, arrived = is_bad.detach().to("cpu", non_blocking=True), None
        if self.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        self.waiting.append(_Step(is_bad, arrived, epoch, step, learning_rate, list(ids)))

    def found_bad(self, is_last_included=False) -> bool:
        """Whether a step of this process was bad; each process then has to call `settle`."""
        is_kept = self.device.type == "cuda" and not is_last_included
        while len(self.waiting) > is_kept:
            step = self.waiting.pop(0)
            if step.arrived:
                step.arrived.synchronize()
            if self.bad is None and bool(step.is_bad.any()):
                self.bad = step
        return self.bad is not None

    def settle(self) -> None:
        """Waits for what is known of the last step. Every process has to call this.

        Raises UserError if a step was bad in any of them.
        """
        if not processes.all_max(bad=self.found_bad(is_last_included=True))["bad"]:
            return
        steps = processes.all_gather([self.bad._replace(arrived=None)] if self.bad else [])
        first = min(steps, key=lambda step: (step.epoch, step.step))
        # A bad loss in one process is a bad gradient in all; the clips are the one's.
        culprits = [step for step in steps if step.is_bad[0]] or steps
        ids = [clip_id for step in culprits if step.step == first.step for clip_id in step.ids]
        in_fp32 = "" if self.precision == "fp32" else (
            f"set precision to fp32, since this run computes in {self.precision}, "
        )
        raise UserError(
            f"the loss or its gradient is NaN or inf in epoch {first.epoch + 1}, step "
            f"{first.step + 1}, at a learning rate of {first.learning_rate:g}, with the clips "
            f"{first_few(ids, 100)}; {in_fp32}lower lr, or look at these clips; the last "
            "checkpoint is from before this step"
        )

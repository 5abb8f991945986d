"""Stop a run whose loss or gradient is NaN or inf, without synchronising with the GPU."""

from typing import NamedTuple

import torch

from system import processes
from system.errors import UserError, summarize
from training.callback import Callback


class _Step(NamedTuple):
    """A step that has not been checked."""

    is_bad: torch.Tensor  # bool [2], on the CPU: this process's loss, the common gradient
    arrived: torch.cuda.Event | None  # after which `is_bad` can be read
    epoch: int
    step: int
    learning_rate: float
    ids: list[str]  # of its clips


class StopOnBadLoss(Callback):
    """Stop the run in all processes if a loss or gradient is NaN or inf; it is never saved.

    The optimizer skips such a step (see `device.loss_scaler`). On a GPU, only the step before the
    last one is checked, which it has finished.
    """

    def __init__(self, device: torch.device, precision: str):
        """Watch a run; precision: its name, for the message."""
        self.device, self.precision = device, precision
        self.waiting: list[_Step] = []
        self.bad: _Step | None = None

    def on_start(self, run, train_loader, validation_loader):
        self.ids = train_loader.dataset.annotations.ids

    def before_optimizer_step(self, run, batch, loss_sum, gradient_norm):
        # While fp16's scale is above 1, inf gradients only lower it.
        scale = run.scaler.scale(torch.ones((), device=run.device))
        is_bad = torch.stack([~loss_sum.isfinite(), ~gradient_norm.isfinite() & (scale <= 1)])
        rate, ids = run.optimizer.param_groups[0]["lr"], self.ids[batch.indices.numpy()]
        self.record(is_bad, run.state.epoch, run.state.step, rate, ids)

    def vote(self, run):
        return int(self.found_bad())

    def on_vote(self, run, highest):
        self.raise_if_bad()

    def on_validation_start(self, run):
        self.raise_if_bad()

    def on_save(self, run):
        self.raise_if_bad()
        return {}

    def record(self, is_bad: torch.Tensor, epoch, step, learning_rate, ids) -> None:
        """Record a step; is_bad: bool [2] on the device, as in `_Step`."""
        is_bad, arrived = is_bad.detach().to("cpu", non_blocking=True), None
        if self.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        self.waiting.append(_Step(is_bad, arrived, epoch, step, learning_rate, list(ids)))

    def found_bad(self, is_last_included=False) -> bool:
        """Return whether a step of this process was bad; if so, all must call `raise_if_bad`."""
        is_kept = self.device.type == "cuda" and not is_last_included
        while len(self.waiting) > is_kept:
            step = self.waiting.pop(0)
            if step.arrived:
                step.arrived.synchronize()
            if self.bad is None and bool(step.is_bad.any()):
                self.bad = step
        return self.bad is not None

    def raise_if_bad(self) -> None:
        """Wait for the result of the last step. Every process must call this.

        Raises UserError if a step was bad in any process.
        """
        if not processes.all_max(bad=self.found_bad(is_last_included=True))["bad"]:
            return
        steps = processes.all_gather([self.bad._replace(arrived=None)] if self.bad else [])
        first = min(steps, key=lambda step: (step.epoch, step.step))
        # A bad loss in one process is a bad gradient in all; name that process's clips.
        culprits = [step for step in steps if step.is_bad[0]] or steps
        ids = [clip_id for step in culprits if step.step == first.step for clip_id in step.ids]
        in_fp32 = (
            ""
            if self.precision == "fp32"
            else (f"set precision to fp32, since this run computes in {self.precision}, ")
        )
        raise UserError(
            f"the loss or its gradient is NaN or inf in epoch {first.epoch + 1}, step "
            f"{first.step + 1}, at a learning rate of {first.learning_rate:g}, with the clips "
            f"{summarize(ids, 100)}; {in_fp32}lower lr, or check these clips; the last "
            "checkpoint is from before this step"
        )

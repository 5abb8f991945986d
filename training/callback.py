"""The base class of callbacks; `callbacks.py` has those that every run uses."""

from system import processes
from training.run import Run, save_run


class Callback:
    """The base class of callbacks, whose methods do nothing; override those that you need.

    Every process has the same callbacks and calls them in the same order.
    """

    def on_start(self, run: Run, train_loader, validation_loader) -> None:
        """Act before the first epoch that this process trains."""

    def on_epoch_start(self, run: Run, loader) -> None:
        """Act before the first step of an epoch, or the first one since the run was resumed."""

    def vote(self, run: Run) -> int:
        """Return a number above 0 to call `on_vote` in all processes. Called around each step."""
        return 0

    def on_vote(self, run: Run, highest: int) -> None:
        """Act in all processes after a vote above 0 in any; highest: the highest vote."""

    def on_batch(self, run: Run, batch) -> None:
        """Act before the step of a training batch."""

    def before_optimizer_step(self, run: Run, batch, loss_sum, gradient_norm) -> None:
        """Act after the backward pass. loss_sum, gradient_norm: scalars on the device."""

    def on_step(self, run: Run, num_clips: int) -> None:
        """Act after a step. num_clips: clips in all processes."""

    def on_validation_start(self, run: Run) -> None:
        """Act after all steps of the epoch."""

    def on_validation_batch(self, run: Run, batch) -> None:
        """Act before the clips of a validation batch are scored."""

    def on_validation_end(self, run: Run, logits, labels) -> None:
        """Act after validation. logits: [N, classes], NaN for unreadable clips; labels: [N]."""

    def add_to_row(self, run: Run, row: dict[str, float]) -> None:
        """Add columns to the row of the epoch that ends."""

    def on_epoch_end(self, run: Run, is_best: bool) -> None:
        """Act after an epoch; its row is in the history."""

    def on_save(self, run: Run) -> dict:
        """Return the keys that a checkpoint keeps for this callback. An error prevents saving.

        Every process calls this.
        """
        return {}

    def load(self, run: Run, checkpoint: dict) -> None:
        """Restore what `on_save` returned, if the checkpoint has it."""

    def on_end(self, run: Run, reason: str) -> None:
        """Act after the last epoch. reason: why training is over."""

    def on_exception(self, run: Run, error: BaseException) -> None:
        """Act when an error or a signal ends the run."""

    def close(self, run: Run) -> None:
        """Release what was opened, however the run ended."""


def sync_callbacks(callbacks: list[Callback], run: Run, num_clips: int) -> list[int]:
    """Exchange votes and numbers of clips between processes, in one collective call per step.

    Returns the `num_clips` of each process. If a callback votes in one process, `on_vote` is called
    in all processes before this returns.
    """
    votes = processes.all_gather_ints(
        clips=num_clips, **{str(n): callback.vote(run) for n, callback in enumerate(callbacks)}
    )
    for number, callback in enumerate(callbacks):
        highest = max(row[str(number)] for row in votes)
        if highest:
            callback.on_vote(run, highest)
    return [row["clips"] for row in votes]


def save_with_callbacks(run: Run, callbacks: list[Callback], is_best: bool = False) -> None:
    """Save the run with its callbacks' state. Every process must call this."""
    more = {}
    for callback in callbacks:
        more |= callback.on_save(run)
    save_run(run, more, is_best)

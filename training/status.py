"""`status.json` in the run folder: what a run is doing, for teach.py and other programs."""

import os
import signal
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from system import processes, stopping
from system.errors import escape_surrogates, message_for_user
from system.files import write_text
from training.callback import Callback
from training.run_folder import STATUS_FILE


class Status(BaseModel):
    """What a run is doing.

    If the process is killed or the machine loses power, the state remains: check whether
    `process_id` is alive, or how old `time` is.
    """

    state: Literal[
        "starting", "computing features", "training", "validating", "stopped", "failed", "done"
    ]
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch; while features are computed, frames
    num_steps: int | None = None  # of these, in all; None: not known yet
    num_epochs: int | None = None  # in all; None: no limit
    scores: dict[str, float | None] = {}  # the last row of history.csv; None: NaN or inf
    message: str = ""  # why it ended, for people
    process_id: int
    time: str  # of the last change, ISO 8601


def write_status(folder: Path, state: str, **fields) -> None:
    """Write the status of this process's run to `folder`, atomically."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    status = Status(state=state, process_id=os.getpid(), time=now, **fields)
    status.message = escape_surrogates(status.message)
    write_text(folder / STATUS_FILE, status.model_dump_json(indent=2) + "\n")


def read_status(folder: Path) -> Status | None:
    """Return the status of the run in `folder`, or None if it has none that can be read."""
    try:
        return Status.model_validate_json((folder / STATUS_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


class StatusFile(Callback):
    """Write status.json in the main process, at each change and once per second."""

    SECONDS_BETWEEN_UPDATES = 1.0

    def __init__(self):
        self.num_steps, self.written = None, 0.0

    def on_start(self, run, train_loader, validation_loader):
        self.num_steps = len(train_loader)
        self.write(run, "starting")

    def on_epoch_start(self, run, loader):
        self.write(run, "training")

    def on_step(self, run, num_clips):
        if time.monotonic() - self.written >= self.SECONDS_BETWEEN_UPDATES:
            self.write(run, "training")

    def on_validation_start(self, run):
        self.write(run, "validating")

    def on_epoch_end(self, run, is_best):
        self.write(run, "training")

    def on_end(self, run, reason):
        self.write(run, "done", reason)

    def on_exception(self, run, error):
        if isinstance(error, stopping.Stopped):
            self.write(run, "stopped", signal.Signals(error.signal_number).name)
            return
        message = message_for_user(error) if isinstance(error, Exception) else None
        self.write(run, "failed", message or f"{type(error).__name__}: {error}")

    def write(self, run, state, message=""):
        if processes.is_main():
            self.written, history = time.monotonic(), run.state.history
            with suppress(OSError):  # a full disk must not end the run because of its status
                write_status(
                    run.config.run_folder,
                    state,
                    epoch=run.state.epoch,
                    step=run.state.step,
                    num_steps=self.num_steps,
                    scores=history[-1] if history else {},
                    num_epochs=run.config.num_epochs if run.config.num_epochs > 0 else None,
                    message=message,
                )

"""What happens around the loop: progress, history, curves, checkpoints, stopping.

Training works without any of them; `build_callbacks` lists those of a run.
"""

import time
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams
from tqdm import tqdm

from clips.batches import ClipKey
from clips.frames import FrameError
from reporting.confusion_matrix import draw_confusion_matrix
from scoring.evaluation import confusion_matrix, format_scores
from scoring.yardsticks import NAMES
from system import memory, processes, stopping
from system.profiling import StepProfile, WaitingTime, waiting_hint
from training.optimization import training_is_over
from training.run import Run, save_run
from training.run_folder import HISTORY_FILE, LOG_FOLDER, write_whole


class Callback:
    """Does nothing; what watches or records a run overrides the moments that it needs.

    Every process has the same callbacks and calls them in the same order.
    """

    def on_start(self, run: Run, loader) -> None:
        """Before the first epoch that this process trains. loader: that of the training clips."""

    def on_epoch_start(self, run: Run, loader) -> None:
        """Before the first step of an epoch, or the first one since the run was resumed."""

    def ask(self, run: Run) -> int:
        """Before each step and after the last one: a number above 0 asks for `on_answer`."""
        return 0

    def on_answer(self, run: Run, highest: int) -> None:
        """In all processes, if `ask` gave a number above 0 in one; highest: the highest of all."""

    def on_batch(self, run: Run, batch) -> None:
        """A batch is here, and its step is next."""

    def on_step(self, run: Run, num_clips: int) -> None:
        """A step is done. num_clips: those of all processes."""

    def on_steps_end(self, run: Run) -> None:
        """All steps of the epoch are done; validation is next."""

    def on_epoch(self, run: Run, logits, labels, is_best: bool) -> None:
        """The epoch's row is in the history. logits: of the validation clips, [N, classes]."""

    def on_end(self, run: Run) -> None:
        """Training has ended, or an error or a signal has stopped it."""


def agree(callbacks: list[Callback], run: Run, num_clips: int) -> list[int]:
    """What the processes need to know of each other before a step, in one exchange.

    Returns the `num_clips` of each process. What a callback asks for in one process, it does in
    all of them, before this returns.
    """
    asked = processes.all_gather_ints(
        clips=num_clips, **{str(n): callback.ask(run) for n, callback in enumerate(callbacks)}
    )
    for number, callback in enumerate(callbacks):
        highest = max(row[str(number)] for row in asked)
        if highest:
            callback.on_answer(run, highest)
    return [row["clips"] for row in asked]


# --- what is printed ---------------------------------------------------------------------------


class Progress(Callback):
    """A bar in a terminal, else a line every `print_freq` steps; and a line per epoch."""

    SECONDS_BETWEEN_UPDATES = 0.5

    def __init__(self):
        self.bar, self.has_hinted = None, False

    def on_epoch_start(self, run, loader):
        of_all = f"/{run.config.num_epochs}" if run.config.num_epochs > 0 else ""
        self.title = f"epoch {run.epoch + 1}{of_all}"
        self.first_step, self.num_steps, self.num_clips = run.step, len(loader), 0
        silent = None if processes.is_main() else True  # None: where there is no terminal
        self.bar = tqdm(total=self.num_steps, initial=run.step, desc=self.title, leave=False,
                        disable=silent)
        self.start = self.shown = time.perf_counter()
        memory.reset_peak(run.device)
        self.waiting = WaitingTime(run.device)
        self.waiting.begin()

    def on_batch(self, run, batch):
        self.waiting.end()

    def on_step(self, run, num_clips):
        """Reading the metrics waits for a GPU, so they are not read at each step."""
        self.num_clips += num_clips
        self.bar.update(1)
        now = time.perf_counter()
        if not self.bar.disable and now - self.shown > self.SECONDS_BETWEEN_UPDATES:
            self.shown = now
            self.bar.set_postfix_str(self._figures(run, now))
        elif self.bar.disable and run.step % run.config.print_freq == 0:
            num_done = run.step - self.first_step
            seconds_left = (now - self.start) / num_done * (self.num_steps - run.step)
            print(f"{self.title}  step {run.step}/{self.num_steps}  {self._figures(run, now)}  "
                  f"{tqdm.format_interval(seconds_left)} left", flush=True)
        self.waiting.begin()

    def _figures(self, run, now) -> str:
        averages, rate = run.metrics.averages(), run.optimizer.param_groups[0]["lr"]
        return (f"loss {averages['loss']:.4f}  top-1 {averages['top1']:.2f} %  "
                f"lr {rate:.2e}  {self.num_clips / (now - self.start):.1f} clips/s  "
                f"{100 * self._waiting_share(now):.0f} % waiting for data")

    def _waiting_share(self, now) -> float:
        """The part of the epoch's time so far in which the device had no batch to work on."""
        return self.waiting.seconds / (now - self.start)

    def on_steps_end(self, run):
        """Says once in a run what to change if data came too slowly."""
        self.bar.close()
        share = self._waiting_share(time.perf_counter())
        hint = waiting_hint(share, run.step - self.first_step, run.config)
        if hint and not self.has_hinted:
            self.has_hinted = True
            print(hint, flush=True)

    def on_epoch(self, run, logits, labels, is_best):
        row = run.history[-1]
        validation = {name.removeprefix("val_"): value for name, value in row.items()
                      if name.startswith("val_")}
        peak = memory.format_bytes(row["peak_memory_mib"] * memory.MIB)
        print(f"epoch {run.epoch:>3}   train: {format_scores(row)}   "
              f"validation: {format_scores(validation)}   lr {row['learning_rate']:.1e}   "
              f"{row['clips_per_second']:.1f} clips/s   peak {peak}"
              f"{'   best' if is_best else ''}", flush=True)

    def on_end(self, run):
        if self.bar:
            self.bar.close()


class Profile(Callback):
    """For `--profile`: a trace of some steps, and where their time goes."""

    def __init__(self, profile: StepProfile):
        self.profile = profile

    def on_epoch_start(self, run, loader):
        self.profile.wait()

    def on_batch(self, run, batch):
        self.profile.batch_arrived()

    def on_step(self, run, num_clips):
        self.profile.step_done()
        self.profile.wait()

    def on_steps_end(self, run):
        self.profile.close()


# --- what is written ---------------------------------------------------------------------------


def write_history(path: Path, history: list[dict]) -> None:
    """Write the whole history as CSV, one row per epoch; a resumed run rewrites the same rows."""
    if not history:
        return
    import pandas as pd  # here, since the other processes of a run do without

    rows = [{name: f"{value:.8g}" for name, value in row.items()} for row in history]
    # A row of an earlier version may have fewer columns; its cells stay empty.
    write_whole(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\r\n"))


class History(Callback):
    """history.csv, in the main process."""

    def on_start(self, run, loader):
        if processes.is_main():
            write_history(run.config.run_folder / HISTORY_FILE, run.history)

    def on_epoch(self, run, logits, labels, is_best):
        self.on_start(run, None)


class TensorBoard(Callback):
    """Curves and pictures; `train` and `validation` are two folders, so that they share charts.

    The history is the truth: each start of a run writes its curves anew, so that no epoch is
    missing or there twice. In the main process only.
    """

    def __init__(self):
        self.writers = {}

    def on_start(self, run, loader):
        if not processes.is_main():
            return
        folder = run.config.run_folder / LOG_FOLDER
        for name in ("train", "validation"):
            for path in (folder / name).glob("events.*"):  # others may have put theirs beside them
                path.unlink()
            self.writers[name] = SummaryWriter(str(folder / name))
        for summary in hyperparameters(run.config):
            self.writers["validation"].file_writer.add_summary(summary)
        strip = input_strip(loader)
        if strip is not None:
            self.writers["train"].add_image("input", strip, 0, dataformats="HWC")
        for row in run.history:
            self.add_row(row)
        self.add_matrix(run)
        self.flush()

    def add_row(self, row):
        """Adds one row of the history to the curves.

        The writers' threads end at an error, and a call that follows would wait for ever.
        """
        if not self.writers:  # in another process, or since such an error
            return
        logs = [writer.file_writer.event_writer for writer in self.writers.values()]
        threads = [log._worker for log in logs if hasattr(log, "_worker")]  # no part of the API
        if not all(thread.is_alive() for thread in threads):
            print("note: the TensorBoard log cannot be written any more, for example because the "
                  "disk was full; history.csv has the curves, and --resume writes them anew",
                  flush=True)
            self.writers = {}
            return
        for name, value in row.items():
            writer = self.writers["validation" if name.startswith("val_") else "train"]
            if name != "epoch":
                writer.add_scalar(name.removeprefix("val_"), value, row["epoch"])

    def add_matrix(self, run):
        """Add the confusion matrix of the last epoch, if this process has validated it."""
        if self.writers and run.evaluated is not None:
            picture = draw_confusion_matrix(confusion_matrix(*run.evaluated), run.class_names)
            self.writers["validation"].add_image(
                "confusion_matrix", picture, run.epoch, dataformats="HWC"
            )

    def flush(self):
        """Write what was added: once history.csv has an epoch, a resumed run adds no more of it."""
        for writer in self.writers.values():
            writer.flush()

    def on_epoch(self, run, logits, labels, is_best):
        self.add_row(run.history[-1])
        if training_is_over(run.config, run.epoch, run.validation_losses):
            self.add_matrix(run)
        self.flush()

    def on_end(self, run):
        """Close the log, with the confusion matrix if the run was stopped before its last epoch."""
        if not training_is_over(run.config, run.epoch, run.validation_losses):
            self.add_matrix(run)
        for writer in self.writers.values():
            writer.close()


def hyperparameters(config) -> list:
    """The config as TensorBoard's HParams shows it, beside the loss and the top-1 accuracy."""
    values = {key: value if isinstance(value, bool | int | float | str) else str(value)
              for key, value in config.model_dump().items()}
    return list(hparams(values, {"loss": 0.0, "top1": 0.0}))


def input_strip(loader) -> np.ndarray | None:
    """The frames of the first training clip side by side, as the network sees them.

    uint8 [H, T * W, 3]; None if the clip cannot be read.
    """
    try:
        clip, _ = loader.dataset[ClipKey(0, 0)]
    except FrameError:
        return None
    return np.concatenate(list(clip[0, ..., :3]), axis=1)


class Checkpoints(Callback):
    """The run's checkpoints: after each epoch, and every `checkpoint_minutes` within one."""

    def __init__(self, minutes: float):
        self.seconds, self.saved = 60 * minutes, time.monotonic()

    def on_epoch_start(self, run, loader):
        self.first_step = run.step

    def ask(self, run):
        has_moved = run.step > self.first_step
        return int(has_moved and time.monotonic() - self.saved >= self.seconds)

    def on_answer(self, run, highest):
        self.save(run)

    def on_epoch(self, run, logits, labels, is_best):
        self.save(run, is_best)

    def save(self, run, is_best=False):
        run.loss_watch.settle()
        save_run(run, is_best)
        self.saved, self.first_step = time.monotonic(), run.step


YARDSTICK_HINT = (
    "train longer, start from the recipe in configs/few_clips.json, or look for wrong labels and "
    "clips that do not show their class (--check_data, report.html)"
)


class Yardsticks(Callback):
    """What the network has to beat, before the first epoch; and whether it did, after the last."""

    def on_start(self, run, loader):
        if run.yardsticks:
            values = ", ".join(f"{NAMES[name]} {value:.1f} %"
                               for name, value in run.yardsticks.items())
            print(f"yardsticks, validation top-1: {values}", flush=True)

    def on_end(self, run):
        name = max(run.yardsticks, key=run.yardsticks.get, default=None)
        is_over = training_is_over(run.config, run.epoch, run.validation_losses)
        if not (name and is_over and run.history):
            return
        if run.history[-1]["val_top1"] < run.yardsticks[name]:
            print(f"warning: the last epoch's {run.history[-1]['val_top1']:.1f} % is below the "
                  f"{run.yardsticks[name]:.1f} % of {NAMES[name]}: {YARDSTICK_HINT}", flush=True)


# --- what stops a run --------------------------------------------------------------------------


class StopOnSignal(Callback):
    """SIGTERM and Ctrl-C in any process stop all of them after a step."""

    def ask(self, run):
        return stopping.requested()

    def on_answer(self, run, highest):
        run.loss_watch.settle()
        raise stopping.Stopped(highest)


class StopOnBadLoss(Callback):
    """A loss or gradient that is NaN or inf stops the run; see `training.loss_watch`."""

    def ask(self, run):
        return int(run.loss_watch.found_bad())

    def on_answer(self, run, highest):
        run.loss_watch.settle()

    def on_steps_end(self, run):
        run.loss_watch.settle()


class BadClipList(Callback):
    """Clips that cannot be read stop the run, or are skipped, counted and listed."""

    def on_start(self, run, loader):
        self.annotations = loader.dataset.annotations

    def on_batch(self, run, batch):
        run.bad_clips.note(batch, self.annotations, "train", run.epoch + 1)

    def on_steps_end(self, run):
        run.bad_clips.report(self.annotations, "train", run.epoch + 1)


# --- all of them -------------------------------------------------------------------------------


def build_callbacks(run: Run) -> list[Callback]:
    """What watches and records a run, in the order in which it is called."""
    return [
        BadClipList(),
        StopOnBadLoss(),
        TensorBoard(),
        Checkpoints(run.config.checkpoint_minutes),
        History(),  # after what else is written: `is_recorded` looks at history.csv only
        StopOnSignal(),
        Profile(run.profile),
        Progress(),
        Yardsticks(),
    ]

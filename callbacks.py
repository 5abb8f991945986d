"""Callbacks around the loop: progress, history, curves, checkpoints, stopping.

Training works without any of them; `build_callbacks` lists those of a run.
"""

import time
from pathlib import Path

from tqdm import tqdm

from clips.bad_clips import BadClips
from explaining import time_probe
from features.feature_files import delete_features
from reporting.curves import TensorBoard
from reporting.page import add_report, write_evaluation
from scoring.baselines import NAMES
from scoring.evaluation import format_scores
from scoring.results import Origin
from system import memory, processes, stopping
from system.device import precision_name
from system.files import write_text
from system.profiling import StepProfile, WaitingTime, waiting_hint
from training.callback import Callback, save_with_callbacks
from training.loss_watch import StopOnBadLoss
from training.run import Run, split_columns, validation_columns
from training.run_folder import HISTORY_FILE, LAST_CHECKPOINT, TIME_PROBE_FILE, record_last_epoch
from training.status import StatusFile

# --- output ------------------------------------------------------------------------------------


class Progress(Callback):
    """Show a bar in a terminal, otherwise a line every `print_freq` steps; and a line per epoch."""

    SECONDS_BETWEEN_UPDATES = 0.5

    def __init__(self):
        self.bar, self.has_hinted = None, False

    def on_epoch_start(self, run, loader):
        of_all = f"/{run.config.num_epochs}" if run.config.num_epochs > 0 else ""
        self.title = f"epoch {run.state.epoch + 1}{of_all}"
        self.first_step, self.num_steps, self.num_clips = run.state.step, len(loader), 0
        silent = None if processes.is_main() else True  # None: only in a terminal
        self.bar = tqdm(
            total=self.num_steps,
            initial=self.first_step,
            desc=self.title,
            leave=False,
            disable=silent,
        )
        self.start = self.shown = time.perf_counter()
        memory.reset_peak(run.device)
        self.waiting = WaitingTime(run.device)
        self.waiting.begin()

    def on_batch(self, run, batch):
        self.waiting.end()

    def on_step(self, run, num_clips):
        """Update the bar; not in each step, since reading the metrics waits for a GPU."""
        self.num_clips += num_clips
        self.bar.update(1)
        now = time.perf_counter()
        if not self.bar.disable and now - self.shown > self.SECONDS_BETWEEN_UPDATES:
            self.shown = now
            self.bar.set_postfix_str(self._figures(run, now))
        elif self.bar.disable and run.state.step % run.config.print_freq == 0:
            step = run.state.step
            seconds_left = (now - self.start) / (step - self.first_step) * (self.num_steps - step)
            print(
                f"{self.title}  step {step}/{self.num_steps}  {self._figures(run, now)}  "
                f"{tqdm.format_interval(seconds_left)} left",
                flush=True,
            )
        self.waiting.begin()

    def _figures(self, run, now) -> str:
        averages, rate = run.state.metrics.averages(), run.optimizer.param_groups[0]["lr"]
        return (
            f"loss {averages['loss']:.4f}  top-1 {averages['top1']:.2f} %  "
            f"lr {rate:.2e}  {self.num_clips / (now - self.start):.1f} clips/s  "
            f"{100 * self._waiting_fraction(now):.0f} % waiting for data"
        )

    def _waiting_fraction(self, now) -> float:
        """Return the fraction of the epoch's time in which the device waited for a batch."""
        return self.waiting.seconds / (now - self.start)

    def on_validation_start(self, run):
        """Print advice once per run if data loading is too slow."""
        self.bar.close()
        fraction = self._waiting_fraction(time.perf_counter())
        hint = waiting_hint(fraction, run.state.step - self.first_step, run.config)
        if hint and not self.has_hinted:
            self.has_hinted = True
            print(hint, flush=True)

    def on_epoch_end(self, run, is_best):
        row = run.state.history[-1]
        training, validation = split_columns(row)
        peak = memory.format_bytes(row["peak_memory_mib"] * memory.MIB)
        print(
            f"epoch {run.state.epoch:>3}   train: {format_scores(training)}   "
            f"validation: {format_scores(validation)}   lr {row['learning_rate']:.1e}   "
            f"{row['clips_per_second']:.1f} clips/s   peak {peak}"
            f"{'   best' if is_best else ''}",
            flush=True,
        )

    def close(self, run):
        if self.bar:
            self.bar.close()


class Profile(Callback):
    """For `--profile`: trace some steps, and print where their time goes."""

    def __init__(self, profile: StepProfile):
        self.profile = profile

    def on_epoch_start(self, run, loader):
        self.profile.wait()

    def on_batch(self, run, batch):
        self.profile.batch_arrived()

    def on_step(self, run, num_clips):
        self.profile.wait()

    def on_validation_start(self, run):
        self.profile.close()


# --- files -------------------------------------------------------------------------------------


def write_history(path: Path, history: list[dict]) -> None:
    """Write the history as CSV, one row per epoch; a resumed run rewrites the same rows."""
    if not history:
        return
    import pandas as pd  # not at the top: only the main process needs it

    rows = [{name: f"{value:.8g}" for name, value in row.items()} for row in history]
    # Rows of an earlier version may have fewer columns; those cells are empty.
    write_text(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\r\n"))


class History(Callback):
    """Write history.csv in the main process."""

    def on_start(self, run, train_loader, validation_loader):
        if not run.is_over:
            self.write(run)

    def on_validation_end(self, run, logits, labels):
        if run.is_over:  # it died after its last checkpoint
            self.write(run)

    def on_epoch_end(self, run, is_best):
        self.write(run)
        if processes.is_main():
            record_last_epoch(run.config.run_folder)

    def write(self, run):
        if processes.is_main():
            write_history(run.config.run_folder / HISTORY_FILE, run.state.history)


class Checkpoints(Callback):
    """Save checkpoints: after each epoch, and every `checkpoint_minutes` within one."""

    def __init__(self, minutes: float, callbacks: list[Callback]):
        """Remember the callbacks whose state checkpoints keep."""
        self.seconds, self.saved, self.callbacks = 60 * minutes, time.monotonic(), callbacks

    def on_epoch_start(self, run, loader):
        self.first_step = run.state.step

    def vote(self, run):
        has_moved = run.state.step > self.first_step
        return int(has_moved and time.monotonic() - self.saved >= self.seconds)

    def on_vote(self, run, highest):
        self.save(run)

    def on_epoch_end(self, run, is_best):
        self.save(run, is_best)

    def save(self, run, is_best=False):
        save_with_callbacks(run, self.callbacks, is_best)
        self.saved, self.first_step = time.monotonic(), run.state.step


class Evaluation(Callback):
    """Write logits, predictions and confusion matrix of the last epoch, in the main process."""

    def __init__(self):
        self.logits = None

    def on_start(self, run, train_loader, validation_loader):
        self.validation_set = validation_loader.dataset.annotations

    def on_validation_end(self, run, logits, labels):
        self.logits = logits

    def on_end(self, run, reason):
        if processes.is_main() and self.logits is not None:
            folder, state = run.config.run_folder, run.state
            last = {
                "path": str(folder / LAST_CHECKPOINT),
                "epoch": state.epoch,
                "history": state.history,
            }
            write_evaluation(
                folder,
                self.validation_set,
                self.logits,
                run.class_names,
                Origin.of(run.config, [last]),
            )


class TimeProbe(Callback):
    """Classify some validation clips with their frames in other orders, for the report."""

    def __init__(self):
        self.is_readable = None

    def on_start(self, run, train_loader, validation_loader):
        self.validation_set = validation_loader.dataset.annotations

    def on_validation_end(self, run, logits, labels):
        self.is_readable = ~logits[:, 0].isnan().numpy()

    def on_end(self, run, reason):
        if self.is_readable is None:  # nothing was left to do
            return
        result = time_probe.probe_run(run, self.validation_set, self.is_readable)
        if result and processes.is_main():
            time_probe.write_predictions(result, run.config.run_folder / TIME_PROBE_FILE)


class Report(Callback):
    """Write report.html in the main process."""

    def on_end(self, run, reason):
        if processes.is_main():
            add_report(run.config.run_folder)


class DeleteFeatures(Callback):
    """Delete the features of a frozen backbone once training is over, in the main process."""

    def on_end(self, run, reason):
        if processes.is_main():
            delete_features(run.config.run_folder)


BASELINE_HINT = (
    "train longer, or look for wrong labels and clips that do not show their class (--check_data, "
    "report.html)"
)


class Baselines(Callback):
    """Print baselines before the first epoch, and after the last whether the network beats them."""

    def __init__(self, scores: dict[str, float]):
        """scores: percent, by name."""
        self.scores = scores

    def on_start(self, run, train_loader, validation_loader):
        if self.scores:
            values = ", ".join(
                f"{NAMES[name]} {value:.1f} %" for name, value in self.scores.items()
            )
            print(f"baselines, validation top-1: {values}", flush=True)

    def add_to_row(self, run, row):
        row |= validation_columns(self.scores)

    def on_end(self, run, reason):
        name = max(self.scores, key=self.scores.get, default=None)
        if not (name and run.state.history):
            return
        last = run.state.history[-1]["val_top1"]
        if last < self.scores[name]:
            print(
                f"warning: the last epoch's {last:.1f} % is below the {self.scores[name]:.1f} % "
                f"of {NAMES[name]}: {BASELINE_HINT}",
                flush=True,
            )


# --- stopping ----------------------------------------------------------------------------------


class StopOnSignal(Callback):
    """Stop all processes after a step if one of them receives SIGTERM or Ctrl-C."""

    def vote(self, run):
        return stopping.requested()

    def on_vote(self, run, highest):
        raise stopping.Stopped(highest)


class BadClipList(Callback):
    """Stop the run at unreadable clips, or count and list those that are skipped."""

    def __init__(self, config):
        self.bad_clips = BadClips(config)

    def on_start(self, run, train_loader, validation_loader):
        self.train_set = train_loader.dataset.annotations
        self.validation_set = validation_loader.dataset.annotations

    def on_batch(self, run, batch):
        self.bad_clips.record(batch, self.train_set, "train", run.state.epoch + 1)

    def on_validation_start(self, run):
        self.bad_clips.report(self.train_set, "train", run.state.epoch + 1)

    def on_validation_batch(self, run, batch):
        self.bad_clips.record(batch, self.validation_set, "validation", run.state.epoch + 1)

    def on_validation_end(self, run, logits, labels):
        self.bad_clips.report(self.validation_set, "validation", run.state.epoch + 1)

    def on_save(self, run):
        rows = self.bad_clips.gather()
        if processes.is_main():
            self.bad_clips.write(run.config.run_folder / "bad_clips.csv")
        return {"bad_clips": rows}

    def load(self, run, checkpoint):
        self.bad_clips.restore(checkpoint.get("bad_clips", []), run.state.epoch)


# --- the list ----------------------------------------------------------------------------------


def build_callbacks(run: Run, baselines: dict[str, float]) -> list[Callback]:
    """Return the callbacks of a run, in the order in which they are called.

    baselines: as `scoring.baselines.baselines_of_run` returns them.
    """
    precision = precision_name(run.config.precision, run.device)
    watches = [BadClipList(run.config), StopOnBadLoss(run.device, precision)]
    return [
        *watches,
        Baselines(baselines),
        TensorBoard(),
        Checkpoints(run.config.checkpoint_minutes, watches),
        History(),  # after the other files: `is_recorded` only checks history.csv
        StopOnSignal(),
        Profile(run.profile),
        Progress(),
        TimeProbe(),  # before the evaluation: `is_scored` only checks the logits
        Evaluation(),
        Report(),
        DeleteFeatures(),
        StatusFile(),
    ]

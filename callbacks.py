"""What happens around the loop: progress, history, curves."""

import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from config import Config
from reporting.confusion_matrix import draw_confusion_matrix
from system import processes
from system.profiling import WaitingTime, waiting_hint

# --- progress ----------------------------------------------------------------------------------


class Progress:
    """How far an epoch is: a bar in a terminal, a plain line every `print_freq` steps elsewhere."""

    SECONDS_BETWEEN_UPDATES = 0.5
    _has_hinted = False  # in this process

    def __init__(self, epoch: int, first_step: int, num_steps: int, config: Config, device):
        of_all = f"/{config.num_epochs}" if config.num_epochs > 0 else ""
        self.title = f"epoch {epoch + 1}{of_all}"
        self.config, self.waiting = config, WaitingTime(device)
        self.first_step, self.step, self.num_steps = first_step, first_step, num_steps
        silent = None if processes.is_main() else True  # None: where there is no terminal
        self.bar = tqdm(total=num_steps, initial=first_step, desc=self.title, leave=False,
                        disable=silent)
        self.start = self.shown = time.perf_counter()
        self.num_clips = 0

    def over(self, batches):
        """Passes the batches on, and knows how long each was waited for."""
        return self.waiting.over(batches)

    def update(self, step: int, num_clips: int, metrics, rate: float):
        """Once `step` steps are done; reading the metrics waits for the GPU, so not each time."""
        self.step = step
        self.num_clips += num_clips
        self.bar.update(1)
        now = time.perf_counter()
        if not self.bar.disable and now - self.shown > self.SECONDS_BETWEEN_UPDATES:
            self.shown = now
            self.bar.set_postfix_str(self._figures(metrics, rate, now))
        elif self.bar.disable and step % self.config.print_freq == 0:
            seconds_left = (now - self.start) / (step - self.first_step) * (self.num_steps - step)
            left = tqdm.format_interval(seconds_left)
            print(f"{self.title}  step {step}/{self.num_steps}  "
                  f"{self._figures(metrics, rate, now)}  {left} left", flush=True)

    def _figures(self, metrics, rate, now):
        averages = metrics.averages()
        speed = self.num_clips / (now - self.start)
        return (f"loss {averages['loss']:.4f}  top-1 {averages['top1']:.2f} %  "
                f"lr {rate:.2e}  {speed:.1f} clips/s  "
                f"{100 * self.waiting_share(now):.0f} % waiting for data")

    def waiting_share(self, now: float) -> float:
        """The part of the time since the start in which the device had no batch to work on."""
        return self.waiting.seconds / (now - self.start)

    def close(self):
        """The end of the epoch; says once in a run what to change if data came too slowly."""
        self.bar.close()
        share = self.waiting_share(time.perf_counter())
        hint = waiting_hint(share, self.step - self.first_step, self.config)
        if hint and not Progress._has_hinted:
            Progress._has_hinted = True
            print(hint, flush=True)


# --- history -----------------------------------------------------------------------------------


def write_history(path, history: list[dict]) -> None:
    """Write the whole history as CSV, one row per epoch; a resumed run rewrites the same rows."""
    if not history:
        return
    import pandas as pd  # here, since the other processes of a run do without

    partial = Path(f"{path}.partial")
    rows = [{name: f"{value:.8g}" for name, value in row.items()} for row in history]
    # A row of an earlier version may have fewer columns; its cells stay empty.
    pd.DataFrame(rows).to_csv(partial, index=False, lineterminator="\r\n")
    os.replace(partial, path)


# --- TensorBoard -------------------------------------------------------------------------------


class EventFile:
    """One TensorBoard event file, written in the calling thread.

    tensorboardX's SummaryWriter hands events to a thread and cannot say when they are written;
    here a checkpoint must know how long the file is with all that came before it.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        # Event files are named by the second; a number keeps quick restarts apart.
        self.writer = EventsWriter(str(folder / "events"), f".{len(list(folder.iterdir()))}")

    def add(self, content: Summary, epoch: int):
        self.writer.write_event(Event(summary=content, step=epoch, wall_time=time.time()))


class TensorBoardLog:
    """Curves and pictures; `train` and `validation` are two folders, so that they share charts.

    `sizes` says how long the event files are; a checkpoint keeps it, and a resumed run cuts the
    files back to it. So steps logged after the checkpoint are neither doubled nor missing.
    """

    def __init__(self, folder: Path, sizes: dict[str, int] | None = None):
        self.folder = folder
        _cut_back(folder, sizes or {})
        self.train = EventFile(folder / "train")
        self.validation = EventFile(folder / "validation")

    def sizes(self) -> dict[str, int]:
        """Bytes of each event file, with all that was logged so far in it."""
        self.train.writer.flush()
        self.validation.writer.flush()
        return {str(path.relative_to(self.folder)): path.stat().st_size
                for path in _event_files(self.folder)}

    def hyperparameters(self, config: Config, metric_names):
        values = {key: value if isinstance(value, bool | int | float | str) else str(value)
                  for key, value in config.model_dump().items()}
        for content in summary.hparams(values, dict.fromkeys(metric_names, 0.0)):
            self.validation.add(content, 0)

    def input_strip(self, clip, epoch: int):
        """The frames of one clip side by side, as the network sees them. uint8 [T, H, W, C]."""
        strip = np.concatenate(list(clip), axis=1)
        self.train.add(summary.image("input", strip, dataformats="HWC"), epoch)

    def epoch(self, row: dict):
        """Curves of one row of the history."""
        for name, value in row.items():
            file = self.validation if name.startswith("val_") else self.train
            if name != "epoch":
                file.add(summary.scalar(name.removeprefix("val_"), value), row["epoch"])

    def confusion_matrix(self, matrix, class_names, epoch: int):
        picture = draw_confusion_matrix(matrix, class_names)
        self.validation.add(summary.image("confusion_matrix", picture, dataformats="HWC"), epoch)

    def close(self):
        for file in (self.train, self.validation):
            with suppress(OSError):  # a full disk was reported where it mattered
                file.writer.close()


class SilentLog:
    """What processes other than the main one log to: it takes every call and does nothing."""

    def __getattr__(self, _name):
        return lambda *_arguments: {}


def _event_files(folder: Path) -> list[Path]:
    """The log's own files; what others put beside them, TensorBoard's plugins say, is not ours."""
    return sorted(path for name in ("train", "validation")
                  for path in (folder / name).glob("events.*") if path.is_file())


def _cut_back(folder: Path, sizes: dict[str, int]) -> None:
    for path in _event_files(folder):
        size = sizes.get(str(path.relative_to(folder)))
        if size is None:
            path.unlink()
        else:
            os.truncate(path, min(size, path.stat().st_size))


# --- checkpoints within an epoch ---------------------------------------------------------------


class CheckpointTimer:
    """Says when a checkpoint is due: `minutes` after the last one."""

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.saved = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self.saved >= self.seconds

    def restart(self) -> None:
        self.saved = time.monotonic()

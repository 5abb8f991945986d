"""The progress of computing features."""

import signal
import time
from contextlib import suppress

from tqdm import tqdm

from features.feature_set import Chunks, FeatureSet
from system import processes, stopping
from training.status import write_status

SECONDS_BETWEEN_LINES = 10.0  # if the output is not a terminal
SECONDS_BETWEEN_STATUSES = 0.5


class Progress:
    """A bar with frames per second and the time left, or a line from time to time; status.json."""

    def __init__(self, features: FeatureSet, chunks: Chunks):
        frames = features.frames_per_clip
        self.frames, self.title = frames, f"features of {features.name} clips"
        self.run_folder = features.config.run_folder
        todo = sum(len(chunks.clips(number)[1]) for number in chunks.todo)
        total = features.num_versions * len(features)
        self.bar = tqdm(
            total=total * frames,
            initial=(total - todo) * frames,
            desc=self.title,
            unit=" frames",
            leave=False,
            disable=None if processes.is_main() else True,  # None: only in a terminal
        )
        self.todo, self.done = todo * frames, 0

    def __enter__(self):
        self.start = self.shown = self.written = time.perf_counter()
        self._write_status("computing features")
        return self

    def update(self, chunk: dict) -> None:
        count = len(chunk["labels"]) * self.frames
        self.done += count
        self.bar.update(count)
        now = time.perf_counter()
        if now - self.written > SECONDS_BETWEEN_STATUSES:
            self.written = now
            self._write_status("computing features")
        if self.bar.disable and now - self.shown > SECONDS_BETWEEN_LINES and self.done < self.todo:
            self.shown, rate = now, self.done / (now - self.start)
            left = tqdm.format_interval((self.todo - self.done) / rate)
            print(
                f"{self.title}: {self.done:,}/{self.todo:,} frames, {rate:,.0f} frames/s, "
                f"{left} left",
                flush=True,
            )

    def __exit__(self, kind, error, _):
        self.bar.close()
        seconds = time.perf_counter() - self.start
        if self.done:
            rate = f"{seconds:.1f} s, {self.done / seconds:,.0f} frames/s"
            print(f"{self.title}: {self.done:,} frames in {rate}", flush=True)
        if isinstance(error, stopping.Stopped):
            name = signal.Signals(error.signal_number).name
            left = f"{self.todo - self.done:,} frames"
            print(f"stopped by {name}; the same command computes the other {left}", flush=True)
            self._write_status("stopped")

    def _write_status(self, state: str) -> None:
        if processes.is_main():
            with suppress(OSError):  # a full disk must not end the run because of its status
                write_status(self.run_folder, state, step=self.done, num_steps=self.todo)

"""Profiling: the share of time spent waiting for data, and the sections of a training step."""

import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from config import Config
from system import processes

# --- waiting -----------------------------------------------------------------------------------


class WaitingTime:
    """Seconds in which the device was idle because the next batch was not ready.

    On a GPU, which computes while its process waits, this is the time from the end of a step to
    the arrival of the next batch by CUDA events, which are read when they have completed.
    """

    def __init__(self, device: torch.device):
        self.device, self.seconds, self._pairs = device, 0.0, []

    def begin(self):
        """The device has nothing to do from now on."""
        self._start = self._moment()

    def end(self):
        """The next batch has come."""
        self._pairs.append((self._start, self._moment()))
        is_gpu = self.device.type == "cuda"
        while self._pairs and (not is_gpu or self._pairs[0][1].query()):
            start, end = self._pairs.pop(0)
            self.seconds += start.elapsed_time(end) / 1000 if is_gpu else end - start

    def _moment(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


MIN_SHARE_FOR_HINT = 0.2  # of the time
MIN_STEPS_FOR_HINT = 20  # workers take a moment to start


def waiting_hint(share: float, num_steps: int, config: Config) -> str | None:
    """Return advice if a large share of the time of `num_steps` steps was waiting for data."""
    if share <= MIN_SHARE_FOR_HINT or num_steps < MIN_STEPS_FOR_HINT:
        return None
    cores, num_workers = processes.cores_per_process(), processes.loader_workers(config.num_workers)
    if num_workers < cores:
        remedy = f"raise num_workers ({num_workers}; {cores} cores are available)"
    else:
        remedy = (
            "put the frames on a faster disk, or store them at frame_height "
            f"({config.frame_height}), which is faster to read and decode"
        )
    return f"{100 * share:.0f} % of the time was spent waiting for data: {remedy}"


# --- sections of a step ------------------------------------------------------------------------


class StepProfile:
    """For `--profile`: a trace of a few early steps, and the milliseconds of each section.

    In these steps, each section waits for the device, so that its time is its own.
    """

    WARM_UP_STEPS, NUM_STEPS = 3, 8

    def __init__(self, folder: Path | None = None, device: torch.device | None = None):
        """folder: where the trace is written; None disables profiling."""
        self.folder, self.device = folder, device
        self.step, self.seconds, self.start = 0, {}, 0.0
        self.tracer, self.waiting = None, ExitStack()

    @contextmanager
    def section(self, name: str):
        """Name and time the code inside, if the step is profiled."""
        if not self.tracer:
            yield
            return
        start = self._now()
        with torch.profiler.record_function(name):
            yield
            end = self._now()
        self.seconds[name] = self.seconds.get(name, 0) + end - start

    def wait(self):
        """The next batch is waited for, which is a section; the tracer starts here."""
        if self.folder and self.step == self.WARM_UP_STEPS and not self.tracer:
            self.tracer, self.seconds = torch.profiler.profile(), {}
            self.tracer.start()
            self.start = self._now()
        self.waiting.enter_context(self.section("wait for data"))

    def batch_arrived(self):
        self.waiting.close()

    def step_done(self):
        self.step += 1
        if self.step == self.WARM_UP_STEPS + self.NUM_STEPS:
            self.close()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def close(self):
        """Write the trace and print milliseconds per step by section, if a step was profiled."""
        self.waiting.close()
        num_steps, tracer, self.tracer = self.step - self.WARM_UP_STEPS, self.tracer, None
        if not tracer:
            return
        total = self._now() - self.start
        tracer.stop()
        if not num_steps:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"process_{processes.rank()}.pt.trace.json"
        tracer.export_chrome_trace(str(path))
        rows = self.seconds | {"other": total - sum(self.seconds.values()), "whole step": total}
        lines = [f"{f'mean of {num_steps} steps':<20}{'ms':>10}{'share':>9}"]
        lines += [f"{name:<20}{1000 * seconds / num_steps:>10.2f}{seconds / total:>9.1%}"
                  for name, seconds in rows.items()]
        lines.append(f"trace: {path}; open it in https://ui.perfetto.dev")
        print("\n".join(lines), flush=True)

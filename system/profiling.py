"""Profiling: the time spent waiting for data, and the sections of a training step."""

import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from config import Config
from system import processes

# --- waiting -----------------------------------------------------------------------------------


class WaitingTime:
    """Seconds in which the device was idle because the next batch was not ready.

    A GPU computes while its process waits. There, CUDA events measure the time from the end of a
    step to the arrival of the next batch; they are read once they have completed.
    """

    def __init__(self, device: torch.device):
        self.device, self.seconds, self._pairs = device, 0.0, []

    def begin(self):
        """Start to wait for the next batch."""
        self._start = self._moment()

    def end(self):
        """End the wait; the next batch has arrived."""
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


MIN_FRACTION_FOR_HINT = 0.2  # of the time
MIN_STEPS_FOR_HINT = 20  # workers take a moment to start


def waiting_hint(fraction: float, num_steps: int, config: Config) -> str | None:
    """Return advice if much of the time of `num_steps` steps was spent waiting for data."""
    if fraction <= MIN_FRACTION_FOR_HINT or num_steps < MIN_STEPS_FOR_HINT:
        return None
    cores, num_workers = processes.cores_per_process(), processes.loader_workers(config.num_workers)
    if num_workers < cores:
        remedy = f"raise num_workers ({num_workers}; {cores} cores are available)"
    else:
        remedy = (
            "put the frames on a faster disk, or store them at frame_height "
            f"({config.frame_height}), which is faster to read and decode"
        )
    return f"{100 * fraction:.0f} % of the time was spent waiting for data: {remedy}"


# --- sections of a step ------------------------------------------------------------------------


class StepProfile:
    """For `--profile`: a trace of a few early steps, and the milliseconds of each section.

    A step lasts until the next batch arrives. The profile ends with the epoch at the latest. Each
    profiled section waits for the device, so that its time includes no other section's work.
    """

    WARM_UP, ACTIVE = 3, 8  # steps

    def __init__(self, folder: Path | None = None, device: torch.device | None = None):
        """folder: where the trace is written; None disables profiling."""
        self.folder, self.device, self.profiler = folder, device, None
        self.sections, self.waiting = {}, ExitStack()
        if folder:
            steps = torch.profiler.schedule(wait=self.WARM_UP, warmup=1, active=self.ACTIVE)
            self.profiler = torch.profiler.profile(schedule=steps, on_trace_ready=self._write)
            self.profiler.start()

    @contextmanager
    def section(self, name: str):
        """Name and time the enclosed code, if the step is recorded."""
        if not self._is_recording():
            yield
            return
        self.sections[name] = None  # in the order of a step
        self._synchronize()
        with torch.profiler.record_function(name):
            yield
            self._synchronize()

    def wait(self):
        """Start to wait for the next batch, which is a section."""
        self.waiting.enter_context(self.section("wait for data"))

    def batch_arrived(self):
        self.waiting.close()
        if self.profiler:
            self.profiler.step()
            if self.profiler.step_num > self.WARM_UP + self.ACTIVE:
                self.close()

    def close(self):
        """End the epoch; write the recorded steps, if any, once."""
        self.waiting.close()
        if self._is_recording():
            self.profiler.stop()
            self.profiler = None

    def _is_recording(self) -> bool:
        return self.profiler is not None and self.profiler.step_num > self.WARM_UP

    def _write(self, profiler):
        """Write the trace, and print milliseconds per step by section."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"process_{processes.rank()}.pt.trace.json"
        profiler.export_chrome_trace(str(path))
        # The GPU's events have the same names.
        events = {
            event.key: event
            for event in profiler.key_averages()
            if event.device_type == torch.autograd.DeviceType.CPU
        }
        num_steps, total = events["ProfilerStep*"].count, events["ProfilerStep*"].cpu_time_total
        rows = {name: events[name].cpu_time_total for name in self.sections}
        rows |= {"other": total - sum(rows.values()), "whole step": total}
        print(f"{f'mean of {num_steps} steps':<20}{'ms':>10}{'share':>9}")
        for name, time_us in rows.items():
            print(f"{name:<20}{time_us / 1000 / num_steps:>10.2f}{time_us / total:>9.1%}")
        print(f"trace: {path}; open it in https://ui.perfetto.dev", flush=True)

    def _synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

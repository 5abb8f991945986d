"""Timing, and the description of the machine that figures were measured on."""

import json
import multiprocessing
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch

from system.files import write_text
from system.memory import reset_peak
from training.run_folder import versions

RESULTS = Path(__file__).parent / "results"


def device_of(name: str | None) -> torch.device:
    """Return the device called `name`, a GPU with its index; None: a GPU if there is one."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def describe(device: torch.device) -> dict[str, str]:
    """Describe the machine, versions and date."""
    cores = f"{torch.get_num_threads()} threads of {_cpu_name()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cores
    numbers = ", ".join(f"{package} {number}" for package, number in versions().items())
    return {"machine": name, "versions": numbers, "date": time.strftime("%Y-%m-%d")}


def save(name: str, contents: dict, text: str) -> None:
    """Write results/NAME.json and results/NAME.md."""
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{name}.json", as_json(contents))
    write_text(RESULTS / f"{name}.md", text)


def markdown_table(columns, rows) -> str:
    """Return a Markdown table; columns: their names; rows: of text."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(contents: dict) -> str:
    return json.dumps(contents, indent=2) + "\n"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function, device: torch.device, calls: int = 1) -> float:
    """Return the mean wall-clock seconds of a call, including the device's work."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronise(device)
    return (time.perf_counter() - start) / calls


def in_subprocess(function, *arguments):
    """Call the function in a separate process; return, or raise, what it does."""
    with start_process() as process:
        return process.submit(function, *arguments).result()


def start_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def alternate(functions: dict, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each function in each round, after one call that is not timed."""
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(seconds_of(function, device))
    return seconds


class Subprocesses:
    """Functions to time, each built and called in a separate process.

    So process-wide settings, which ours changes, do not affect the others.
    """

    def __init__(self, makers: dict, device: torch.device):
        """Start the processes; makers: {name: (function, arguments)}, which return what to time."""
        self.makers, self.device = makers, device

    def __enter__(self):
        with ExitStack() as stack:
            self._processes = {name: stack.enter_context(start_process()) for name in self.makers}
            started = {
                name: process.submit(_make, name, self.device, *self.makers[name])
                for name, process in self._processes.items()
            }
            self.seconds_to_make = {name: future.result() for name, future in started.items()}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def alternate(self, rounds: int) -> dict[str, list[float]]:
        """Return the seconds of each function in each round."""
        seconds = {name: [] for name in self.makers}
        for _ in range(rounds):
            for name in self.makers:
                seconds[name].append(self.call(name, _time, name, self.device))
        return seconds

    def call(self, name: str, function, *arguments):
        """Return what `function` returns in the process of `name`."""
        return self._processes[name].submit(function, *arguments).result()


_made = {}  # in a subprocess: its function


def _make(name, device, maker, arguments) -> float:
    """Build the function and call it once, since first calls choose algorithms."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # pinning memory would use GPU 0
    _made[name] = maker(*arguments)
    seconds = seconds_of(_made[name], device)
    if device.type == "cuda":
        _made[name]()
        synchronise(device)
        reset_peak(device)
    return seconds


def _time(name, device) -> float:
    return seconds_of(_made[name], device, calls=10 if device.type == "cuda" else 1)

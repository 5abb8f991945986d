"""Timing, and the description of the machine that figures were measured on."""

import json
import multiprocessing
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch

from training.run_folder import versions, write_whole

RESULTS = Path(__file__).parent / "results"


def device_of(name: str | None) -> torch.device:
    """The device called `name`, a GPU with its index; None: a GPU if there is one."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def describe(device: torch.device) -> dict[str, str]:
    """Machine, versions and date in words."""
    cores = f"{torch.get_num_threads()} threads of {_cpu_name()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cores
    numbers = ", ".join(f"{package} {number}" for package, number in versions().items())
    return {"machine": name, "versions": numbers, "date": time.strftime("%Y-%m-%d")}


def save(name: str, contents: dict, text: str) -> None:
    """Writes results/NAME.json and results/NAME.md."""
    RESULTS.mkdir(exist_ok=True)
    write_whole(RESULTS / f"{name}.json", as_json(contents))
    write_whole(RESULTS / f"{name}.md", text)


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
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function, device: torch.device, calls: int = 1) -> float:
    """Mean wall-clock time of a call, including the device's work."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronise(device)
    return (time.perf_counter() - start) / calls


def calls_between(device: torch.device) -> int:
    """Calls to time together: several on a GPU, which is not waited for between them."""
    return 10 if device.type == "cuda" else 1


def apart(function, *arguments):
    """Calls the function in a separate process; returns, or raises, what it does."""
    with _one_process() as process:
        return process.submit(function, *arguments).result()


def in_turn_apart(makers: dict, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """As `in_turn`, with each function made and called in a separate process.

    makers: {name: (function, arguments)}, where the function returns the one to time. Settings that
    one way changes for its whole process, as ours does, do not affect the other.
    """
    with ExitStack() as stack:
        processes = {name: stack.enter_context(_one_process()) for name in makers}
        for name, maker in makers.items():
            processes[name].submit(_make, device, *maker).result()
        seconds = {name: [] for name in makers}
        for _ in range(rounds):
            for name, process in processes.items():
                seconds[name].append(process.submit(_call, device).result())
    return seconds


def _one_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


_made = None  # in a process of `in_turn_apart`: the function that is timed


def _make(device, maker, arguments) -> None:
    """Makes the function and calls it, since first calls choose algorithms and set things up."""
    global _made
    if device.type == "cuda":
        torch.cuda.set_device(device)  # pinning memory would use GPU 0
    _made = maker(*arguments)
    for _ in range(2 if device.type == "cuda" else 1):
        _made()
    synchronise(device)


def _call(device) -> float:
    return seconds_of(_made, device, calls_between(device))


def in_turn(functions: dict, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each function in each round, after one call of each that is not timed."""
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(seconds_of(function, device))
    return seconds

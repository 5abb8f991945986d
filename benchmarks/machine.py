"""What a figure was measured on."""

import json
import multiprocessing
import platform
import time
from pathlib import Path

import torch

from run import versions

RESULTS = Path(__file__).parent / "results"


def describe(device: torch.device) -> dict[str, str]:
    """Machine, versions and date in words."""
    cores = f"{torch.get_num_threads()} threads of {_cpu_name()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cores
    numbers = ", ".join(f"{package} {number}" for package, number in versions().items())
    return {"machine": name, "versions": numbers, "date": time.strftime("%Y-%m-%d")}


def save(name: str, contents: dict, text: str) -> None:
    """Writes results/NAME.json and results/NAME.md."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(contents, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(text)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function, device: torch.device) -> float:
    """Wall-clock time of one call, the device's work included."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def in_turn_apart(makers: dict, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """As `in_turn`, with each function made and called in a process of its own.

    makers: {name: (function, arguments)}, where the function returns the one that is timed. So
    what one way sets for its whole process, as ours does, leaves the other as it is.
    """
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for name, maker in makers.items():
        connections[name], other = context.Pipe()
        processes.append(context.Process(target=_serve, args=(other, device, *maker), daemon=True))
        processes[-1].start()
        other.close()
    calls = {name: lambda name=name: _ask(connections[name]) for name in makers}
    for call in calls.values():
        call()
    seconds = {name: [] for name in makers}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(call())
    for process in processes:
        process.kill()
    return seconds


def _ask(connection) -> float:
    connection.send("go")
    return connection.recv()


def _serve(connection, device, maker, arguments):
    function = maker(*arguments)
    while True:
        connection.recv()
        connection.send(seconds_of(function, device))


def in_turn(functions: dict, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each function in each round; one call of each before counts for nothing."""
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(seconds_of(function, device))
    return seconds

"""A whole epoch with train.py: its time, and how long the device waited for data.

Clips have Jester's size and length. A few dozen are drawn, and the others are links to these, so
that files come from the system's cache and only decoder and step are measured.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.loader import write_clips
from benchmarks.memory import PROJECT
from system.config_file import parse_override

CLIPS_OF_JESTER = 118_562  # its training set
DRAWN_CLIPS = 64
# Reading the metrics for a progress line waits for the GPU, so lines are rare.
STEPS_BETWEEN_LINES = 20


class Line(NamedTuple):
    """A progress line of train.py, and when it was printed."""

    seconds: float
    step: int
    num_steps: int
    waiting: int  # percent


def measure(device, options, folder):
    """Clips/s of an epoch of `--epoch_clips` clips, and percentage of time spent waiting for data.

    After `--epoch_seconds` the run is stopped, and the figures are those between the first and the
    last progress line.
    """
    config_path = write_config(Path(folder) / "epoch", device, options)
    gpus = "cpu" if device.type == "cpu" else str(device.index)
    command = [sys.executable, "train.py", "-c", config_path, "-g", gpus]
    start = time.monotonic()
    lines, output = run(command, options.epoch_seconds)
    seconds = time.monotonic() - start
    clips = f"{options.epoch_clips:,} clips, {options.num_workers} workers"
    first, last = lines[0], lines[-1]
    if is_whole := "   peak " in output:
        speed = float(re.findall(r"([\d.]+) clips/s   peak ", output)[-1])
    else:
        speed = (last.step - first.step) * options.batch_size / (last.seconds - first.seconds)
        clips += f", stopped after {last.step:,} of {last.num_steps:,} steps"
    yield {"what": f"epoch of {clips}: clips/s through the real loader", "ours": speed}
    yield {"what": f"Jester's {CLIPS_OF_JESTER:,} clips at that speed: s",
           "ours": CLIPS_OF_JESTER / speed}
    yield {"what": f"epoch of {clips}: % of the time waiting for data", "ours": last.waiting}
    if is_whole:
        yield {"what": f"epoch of {clips}: s with start and validation", "ours": seconds}


def run(command, most_seconds) -> tuple[list[Line], str]:
    """Progress lines and output of a run, stopped `most_seconds` after its first progress line."""
    process = subprocess.Popen(command, cwd=PROJECT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    lines, output, is_stopped = [], "", False
    for text in process.stdout:
        output += text
        if found := re.search(r"step (\d+)/(\d+) .* (\d+) % waiting for data", text):
            lines.append(Line(time.monotonic(), *map(int, found.groups())))
            is_late = most_seconds and lines[-1].seconds - lines[0].seconds > most_seconds
            if is_late and not is_stopped:
                process.send_signal(signal.SIGTERM)
                is_stopped = True
    if process.wait() not in (0, 128 + signal.SIGTERM if is_stopped else 0) or not lines:
        raise RuntimeError(f"train.py ended with {process.returncode}:\n{output[-3000:]}")
    return lines, output


def write_config(folder: Path, device, options) -> str:
    config = write_clips(folder, num_clips=min(DRAWN_CLIPS, options.epoch_clips))
    for prefix, num_clips in (("train", options.epoch_clips), ("val", options.batch_size)):
        rows = Path(config.train_data_csv).read_text().splitlines()
        lines = []
        for number in range(num_clips):
            drawn, label = rows[number % len(rows)].split(";")
            name = f"{prefix}_{number}"
            os.symlink(drawn, folder / "clips" / name)
            lines.append(f"{name};{label}\n")
        (folder / f"{prefix}.csv").write_text("".join(lines))
    num_steps = options.epoch_clips // options.batch_size
    keys = config.model_dump() | {
        "train_data_csv": str(folder / "train.csv"), "val_data_csv": str(folder / "val.csv"),
        "output_dir": str(folder), "batch_size": options.batch_size, "num_epochs": 1,
        "schedule": "constant", "num_workers": options.num_workers,
        "print_freq": max(1, min(STEPS_BETWEEN_LINES, num_steps // 2)),
    } | dict(map(parse_override, options.overrides))  # fmt: skip
    path = folder / "config.json"
    path.write_text(json.dumps(keys))
    return str(path)

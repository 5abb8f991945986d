"""Epochs with train.py: clips per second, and how long the device waited for data.

Clips have Jester's size and length. A few dozen are drawn, and the others are links to these, so
that files come from the system's cache and only decoder and step are measured. The second of two
epochs counts, in which workers and memory are there and algorithms are chosen.
"""

import json
import os
from pathlib import Path
from unittest import mock

import pandas as pd

import train
from benchmarks.loader import write_clips
from benchmarks.machine import in_subprocess
from callbacks import Callback, build_callbacks
from system.config_file import parse_override
from system.profiling import WaitingTime
from training.run_folder import HISTORY_FILE

CLIPS_OF_JESTER = 118_562  # its training set
DRAWN_CLIPS = 64


class Waiting(Callback):
    """Measures the seconds of an epoch in which the device waited for data."""

    def on_epoch_start(self, run, loader):
        self.time = WaitingTime(run.device)
        self.time.begin()

    def on_batch(self, run, batch):
        self.time.end()

    def on_step(self, run, num_clips):
        self.time.begin()


def measure(device, options, folder):
    """Yield clips/s of an epoch of `--epoch_clips` clips, and the share of time spent waiting."""
    config_path = write_config(Path(folder) / "epoch", device, options)
    gpus = "cpu" if device.type == "cpu" else str(device.index)
    waiting = in_subprocess(train_and_watch, ["-c", config_path, "-g", gpus])
    keys = json.loads(Path(config_path).read_text())
    last = read_history(Path(keys["output_dir"], keys["model_name"])).iloc[-1]
    epoch = f"epoch of {options.epoch_clips:,} clips, {options.num_workers} workers"
    yield {"what": f"{epoch}: clips/s through the real loader", "ours": last["clips_per_second"]}
    yield {
        "what": f"Jester's {CLIPS_OF_JESTER:,} clips at that speed: s",
        "ours": CLIPS_OF_JESTER / last["clips_per_second"],
    }
    yield {
        "what": f"{epoch}: % of the time waiting for data",
        "ours": 100 * waiting / last["seconds"],
    }
    yield {"what": f"{epoch}: peak memory, MiB", "ours": last["peak_memory_mib"]}


def train_and_watch(arguments) -> float:
    """Train in this process, and return the seconds that the last epoch waited for data."""
    waiting = Waiting()
    with mock.patch.object(
        train, "build_callbacks", lambda *arguments: [waiting, *build_callbacks(*arguments)]
    ):
        status = train.main(arguments)
    if status:
        raise RuntimeError(f"train.py {' '.join(arguments)} ended with {status}")
    return waiting.time.seconds


def read_history(run_folder: Path) -> pd.DataFrame:
    """Return the rows of a run's history.csv, one per epoch."""
    return pd.read_csv(run_folder / HISTORY_FILE)


def write_config(folder: Path, device, options) -> str:
    """Write clips and a config that trains on them for two epochs; return the config's path."""
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
    keys = (
        config.model_dump()
        | {
            "train_data_csv": str(folder / "train.csv"),
            "val_data_csv": str(folder / "val.csv"),
            "output_dir": str(folder),
            "batch_size": options.batch_size,
            "num_epochs": 2,
            "schedule": "constant",
            "num_workers": options.num_workers,
            "baseline_clips": 0,
        }
        | dict(map(parse_override, options.overrides))
    )
    path = folder / "config.json"
    path.write_text(json.dumps(keys))
    return str(path)

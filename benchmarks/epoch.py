"""A whole epoch through the real command: its time, and how long the device waited for data.

Clips of Jester's size and length; a few hundred are drawn, and the others lead to these, so that
the files come from the system's cache: it is the decoder and the step that are measured.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.loader import write_clips
from benchmarks.memory import PROJECT

CLIPS_OF_JESTER = 118_562  # its training set


def measure(device, options, folder) -> list[dict]:
    """Seconds an epoch of `--epoch_clips` clips, and percent of it spent waiting for data."""
    config_path = write_config(Path(folder) / "epoch", device, options)
    command = [sys.executable, "train.py", "-c", config_path, "--set", "print_freq=1"]
    command += ["-g", "cpu"] if device.type == "cpu" else []
    start = time.monotonic()
    output = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    seconds = time.monotonic() - start
    waiting = [float(share) for share in re.findall(r"(\d+) % waiting for data", output)][-1]
    speed = float(re.findall(r"([\d.]+) clips/s", output)[-1])
    clips = f"{options.epoch_clips:,} clips, {options.num_workers} workers"
    return [
        {"what": f"epoch of {clips}: clips/s through the real loader", "ours": speed},
        {"what": f"Jester's {CLIPS_OF_JESTER:,} clips at that speed: s",
         "ours": CLIPS_OF_JESTER / speed},
        {"what": f"epoch of {clips}: % of the time waiting for data", "ours": waiting},
        {"what": f"epoch of {clips}: s with start and validation", "ours": seconds},
    ]


def write_config(folder: Path, device, options) -> str:
    config = write_clips(folder, num_clips=min(200, options.epoch_clips))
    for prefix, num_clips in (("train", options.epoch_clips), ("val", options.batch_size)):
        rows = Path(config.train_data_csv).read_text().splitlines()
        lines = []
        for number in range(num_clips):
            drawn, label = rows[number % len(rows)].split(";")
            name = f"{prefix}_{number}"
            os.symlink(drawn, folder / "clips" / name)
            lines.append(f"{name};{label}\n")
        (folder / f"{prefix}.csv").write_text("".join(lines))
    keys = config.model_dump() | {
        "train_data_csv": str(folder / "train.csv"), "val_data_csv": str(folder / "val.csv"),
        "output_dir": str(folder), "batch_size": options.batch_size, "num_epochs": 1,
        "schedule": "constant", "num_workers": options.num_workers,
    }  # fmt: skip
    path = folder / "config.json"
    path.write_text(json.dumps(keys))
    return str(path)

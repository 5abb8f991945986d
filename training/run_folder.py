"""The folder of a run: the names of its files, and protection from overwriting."""

import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import torch

from config import Config
from system.errors import UserError
from system.files import write_text

LAST_CHECKPOINT = "checkpoint.pth.tar"
PREVIOUS_CHECKPOINT = "checkpoint_previous.pth.tar"
BEST_CHECKPOINT = "model_best.pth.tar"
HISTORY_FILE = "history.csv"
TIME_PROBE_FILE = "time_probe_clips.csv"
CONFIG_FILE = "config.json"
VERSIONS_FILE = "versions.json"
REPORT_FILE = "report.html"
STATUS_FILE = "status.json"
LOG_FOLDER = "tensorboard"
PROFILE_FOLDER = "profile"
FEATURES_FOLDER = "features"
# A folder with any of these contains a run, which only --overwrite deletes.
RECORDS = (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, BEST_CHECKPOINT, HISTORY_FILE)
# What a start replaces in a folder without a run, left by a start that failed before it saved.
STARTED = ("bad_clips.csv", CONFIG_FILE, STATUS_FILE, VERSIONS_FILE)
# Other files written about a run: --overwrite deletes these, and no file of another name.
RESULTS = (
    REPORT_FILE,
    TIME_PROBE_FILE,
    "logits.npz",
    "predictions.csv",
    "confusion_matrix.png",
    "stack.json",
    "test_predictions.csv",
    "test_submission.csv",
)
RESULTS_BELOW = {  # folder -> patterns of files
    f"{LOG_FOLDER}/train": ("events.*",),
    f"{LOG_FOLDER}/validation": ("events.*",),
    LOG_FOLDER: (),
    PROFILE_FOLDER: ("process_*.pt.trace.json",),
    FEATURES_FOLDER: ("*.f16", "*.f16.jsonl"),
    "explained": (
        "time_probe.csv",
        "time_probe.png",
        "kernels_*.gif",
        "grad_cam_*.gif",
        "activations_*.gif",
        "events.*",
    ),
}
TIME = "%Y-%m-%d %H:%M:%S"


def is_in_run_folder(path, config: Config) -> bool:
    """Return whether a checkpoint is one of those in the run folder."""
    return Path(path).resolve().parent == config.run_folder.resolve()


def prepare_run_folder(config: Config, is_resumed: bool, overwrite: bool, devices: str) -> None:
    """Make the run folder and write `config.json` and `versions.json` into it.

    is_resumed: the run in it is resumed. devices: description of the devices.
    Raises UserError if the folder has another run that may not be overwritten, OSError if it
    cannot be written.
    """
    folder = config.run_folder
    if not (is_resumed or overwrite):
        check_unoccupied(folder)
    make_run_folder(config)
    if not is_resumed:
        if overwrite:
            _delete_run(folder)
        for name in STARTED:
            (folder / name).unlink(missing_ok=True)
    _append_versions(folder / VERSIONS_FILE, devices)
    write_text(folder / CONFIG_FILE, config.model_dump_json(indent=2) + "\n")


def _delete_run(folder: Path) -> None:
    """Delete what a run and the commands about it wrote, and folders that are then empty.

    Checkpoints and history are deleted last: if interrupted, the folder still has a run.
    """
    for name, patterns in RESULTS_BELOW.items():
        for path in [path for pattern in patterns for path in (folder / name).glob(pattern)]:
            path.unlink()
        with suppress(OSError):  # it has other files, or does not exist
            (folder / name).rmdir()
    for name in (*RESULTS, *STARTED, *RECORDS):
        (folder / name).unlink(missing_ok=True)
        (folder / f"{name}.partial").unlink(missing_ok=True)


def _records(folder) -> list[str]:
    return [name for name in RECORDS if os.path.lexists(folder / name)]


def has_run(folder) -> bool:
    """Return whether the folder has a run, finished or not."""
    return bool(_records(folder))


def check_unoccupied(folder) -> None:
    """Raise UserError if the folder has a run."""
    if has_run(folder):
        raise UserError(occupied_message(folder))


def occupied_message(folder) -> str:
    found = _records(folder)
    names = {LAST_CHECKPOINT: "last", PREVIOUS_CHECKPOINT: "last", BEST_CHECKPOINT: "best"}
    name = next((name for file, name in names.items() if file in found), None)
    way_on = (
        f"continue it with --resume True --checkpoint {name}, "
        if name
        else "it has no checkpoint to continue from; "
    )
    return (
        f"{folder}: already has a run ({', '.join(found)}); {way_on}choose another "
        "model_name, or delete it with --overwrite True"
    )


def make_run_folder(config: Config) -> Path:
    """Make the folder for what a command writes."""
    config.run_folder.mkdir(parents=True, exist_ok=True)
    return config.run_folder


def _append_versions(path, devices) -> None:
    """Append this start of the run to a JSON list; a resumed run may have been moved or updated."""
    starts = _read_starts(path)
    if starts is None:
        raise UserError(f"{path}: damaged; delete it to start a new list")
    started = time.strftime(TIME)
    starts.append({"started": started, "command": sys.argv, "devices": devices, **versions()})
    write_text(path, json.dumps(starts, indent=2) + "\n")


def _read_starts(path) -> list | None:
    try:
        starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except (ValueError, RecursionError):
        return None
    return starts if isinstance(starts, list) else None


def record_last_epoch(folder) -> None:
    """Set the time of the last epoch in the entry of the run's last start."""
    if starts := _read_starts(folder / VERSIONS_FILE):  # someone may have deleted it
        starts[-1]["last_epoch"] = time.strftime(TIME)
        write_text(folder / VERSIONS_FILE, json.dumps(starts, indent=2) + "\n")


def run_seconds(start: dict) -> float | None:
    """Return the seconds from a start of the run to the last epoch that it finished."""
    try:
        end, begin = (datetime.fromisoformat(start[key]) for key in ("last_epoch", "started"))
    except (KeyError, TypeError, ValueError):  # of an earlier version, or no epoch
        return None
    return (end - begin).total_seconds()


def is_recorded(config: Config, history: list[dict]) -> bool:
    """Return whether history.csv, which is written last, has all rows of the history."""
    path = config.run_folder / HISTORY_FILE
    return path.exists() and len(path.read_text(encoding="utf-8").splitlines()) > len(history)


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on, and this code's commit."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

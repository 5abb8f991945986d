"""A run: what training moves, its folder, and how both are started, saved and resumed."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from checkpoint import (
    check_classes,
    load_checkpoint,
    load_weights,
    network_weights,
    save_checkpoint,
)
from config import Config
from errors import UserError
from model import build_model
from optimization import build_optimizer, load_optimizer_state

LAST_CHECKPOINT = "checkpoint.pth.tar"
BEST_CHECKPOINT = "model_best.pth.tar"
LOG_FOLDER = "tensorboard"
# What training writes, and all that --overwrite removes.
RUN_FILES = (LAST_CHECKPOINT, BEST_CHECKPOINT, "history.csv", "config.json", "versions.json")


@dataclass
class Run:
    """All that training moves, and that a checkpoint therefore holds."""

    config: Config
    class_names: list[str]
    device: torch.device
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # epochs finished
    best_top1: float = 0.0  # percent, on the validation set
    history: list[dict] = field(default_factory=list)  # a row an epoch

    @property
    def validation_losses(self) -> list[float]:
        return [row["val_loss"] for row in self.history]


def start_run(config: Config, class_names, device) -> Run:
    """A run at its beginning: weights drawn from the seed, or `pretrained` ones."""
    torch.manual_seed(config.seed)
    model = build_model(config, len(class_names)).to(device, memory_format=torch.channels_last_3d)
    return Run(config, class_names, device, model, build_optimizer(config, model.parameters()))


def load_pretrained(run: Run) -> None:
    """Takes the weights of `pretrained`; with `new_head` the last layer keeps its fresh ones."""
    config = run.config
    checkpoint = load_checkpoint(config.pretrained)
    except_for = ["classifier."] if config.new_head else []
    if not config.new_head:
        check_classes(checkpoint, run.class_names, config.pretrained, config.labels_csv)
    load_weights(run.model, network_weights(checkpoint), config.pretrained, except_for)
    fresh = ", but for a new last layer" if config.new_head else ""
    print(f"weights from {config.pretrained}{fresh}")


def checkpoint_path(config: Config) -> str | Path:
    return config.checkpoint or config.run_folder / LAST_CHECKPOINT


def load_run_weights(run: Run) -> dict:
    """Loads the network of the run's checkpoint. Returns the checkpoint."""
    path = checkpoint_path(run.config)
    checkpoint = load_checkpoint(path)
    check_classes(checkpoint, run.class_names, path, run.config.labels_csv)
    load_weights(run.model, network_weights(checkpoint), path)
    print(f"checkpoint {path}: {checkpoint.get('epoch', 'unknown')} epochs")
    return checkpoint


def resume_run(run: Run) -> dict:
    """Brings `run` to where its checkpoint was saved. Returns the checkpoint.

    A published checkpoint has no optimizer and no history; those start afresh, which is said.
    """
    checkpoint = load_run_weights(run)
    run.epoch = checkpoint.get("epoch", 0)
    run.best_top1 = float(checkpoint.get("best_prec1", 0.0))
    run.history = checkpoint.get("history", [])
    if "optimizer" in checkpoint:
        load_optimizer_state(run.optimizer, checkpoint["optimizer"], checkpoint_path(run.config))
    else:
        print("the checkpoint holds no optimizer state; the optimizer starts afresh")
    _print_config_changes(checkpoint.get("config", {}), run.config)
    return checkpoint


def _print_config_changes(saved: dict, config: Config) -> None:
    for key, value in config.model_dump().items():
        if key in saved and saved[key] != value and key != "checkpoint":
            print(f"changed since the checkpoint: {key}: {saved[key]} -> {value}")


def save_run(run: Run, log_sizes: dict[str, int], is_best: bool) -> None:
    """Writes the last checkpoint, and the best one if this is it. Called after all has moved."""
    checkpoint = {
        "epoch": run.epoch,
        "arch": run.config.model,
        "state_dict": run.model.state_dict(),
        "best_prec1": run.best_top1,
        "optimizer": run.optimizer.state_dict(),
        "history": run.history,
        "classes": run.class_names,
        "config": run.config.model_dump(),
        "tensorboard": log_sizes,
    }
    folder = run.config.run_folder
    if is_best:
        save_checkpoint(checkpoint, folder / BEST_CHECKPOINT)
    save_checkpoint(checkpoint, folder / LAST_CHECKPOINT)


# --- the run folder ----------------------------------------------------------------------------


def prepare_run_folder(config: Config, resume: bool, overwrite: bool) -> Path:
    """Makes the run folder and writes `config.json` and `versions.json` into it.

    Raises UserError if a run is there already, unless it is resumed or may be overwritten, or if
    the folder cannot be written.
    """
    folder = config.run_folder
    found = [name for name in (*RUN_FILES, LOG_FOLDER) if os.path.lexists(folder / name)]
    if found and not (resume or overwrite):
        raise UserError(
            f"{folder}: holds a run already ({', '.join(found)}); go on with it by --resume True, "
            "choose another model_name, or delete it by --overwrite True"
        )
    make_run_folder(config)
    try:
        if overwrite and not resume:
            for name in RUN_FILES:
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / LOG_FOLDER, ignore_errors=True)
        _append_versions(folder / "versions.json")
        (folder / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"{folder}: run folder cannot be written ({error.strerror}); change output_dir"
        ) from None
    return folder


def make_run_folder(config: Config) -> Path:
    """Makes the folder for what a command writes; raises UserError if that cannot be done."""
    try:
        config.run_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{config.run_folder}: run folder cannot be written ({error.strerror}); change "
            "output_dir"
        ) from None
    return config.run_folder


def _append_versions(path) -> None:
    """Adds this start of the run to a JSON list: a resumed run may have been moved or updated."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except (ValueError, RecursionError):
        starts = None
    if not isinstance(starts, list):
        raise UserError(f"{path}: damaged; delete it, and a new list of starts is begun")
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    starts.append({"started": started, "command": sys.argv, **versions()})
    path.write_text(json.dumps(starts, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Versions of what figures depend on, and the commit of this code."""
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

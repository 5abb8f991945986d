"""A run: what training moves, its folder, and how both are started, saved and resumed."""

import json
import math
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

import processes
from bad_clips import BadClips
from checkpoint import (
    DamagedCheckpointError,
    check_classes,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from config import Config
from convolution_check import replace_wrong_convolutions
from device import loss_scaler, precision_name, to_device, warn_if_not_repeatable
from ema import AverageOfWeights
from errors import UserError
from loss_watch import LossWatch
from model import build_model
from optimization import build_optimizer, load_optimizer_state, optimizer_state
from pretrained import take_pretrained
from profiling import StepProfile
from utils import TrainingMetrics

LAST_CHECKPOINT = "checkpoint.pth.tar"
PREVIOUS_CHECKPOINT = "checkpoint_previous.pth.tar"
BEST_CHECKPOINT = "model_best.pth.tar"
HISTORY_FILE = "history.csv"
CONFIG_FILE = "config.json"
VERSIONS_FILE = "versions.json"
REPORT_FILE = "report.html"
LOG_FOLDER = "tensorboard"
PROFILE_FOLDER = "profile"
# A folder with any of these holds a run, which nothing but --overwrite deletes.
RECORDS = (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, BEST_CHECKPOINT, HISTORY_FILE)
# What a start replaces in a folder that holds no run: an earlier one failed before it saved.
STARTED = ("bad_clips.csv", CONFIG_FILE, VERSIONS_FILE)
# What must not change between two steps of one epoch. The training clips must not, either:
# checkpoints have their digest, those of earlier versions the names of the files.
EPOCH_KEYS = ("batch_size", "seed")
CLIP_KEYS = ("train_data_csv", "labels_csv")


@dataclass
class Run:
    """All that training moves, and that a checkpoint therefore holds; and what watches it."""

    config: Config
    class_names: list[str]
    device: torch.device
    model: torch.nn.Module
    network: torch.nn.Module  # the model; in training, spread over the processes
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss, for fp16
    metrics: TrainingMetrics  # of the running epoch
    bad_clips: BadClips
    average: AverageOfWeights | None  # of the model's weights
    loss_watch: LossWatch
    train_clips: str = ""  # the digest of the training set
    profile: StepProfile = field(default_factory=StepProfile)
    epoch: int = 0  # epochs finished
    step: int = 0  # steps finished in the running epoch
    seconds: float = 0.0  # that these steps took
    best_top1: float = -1.0  # percent, on the validation set; below 0: no epoch is finished yet
    history: list[dict] = field(default_factory=list)  # a row an epoch
    last_is_damaged: bool = False  # the run folder's last checkpoint, so that this came from before

    @property
    def evaluated_model(self) -> torch.nn.Module:
        return self.average.model if self.average else self.model

    @property
    def validation_losses(self) -> list[float]:
        return [row["val_loss"] for row in self.history]

    def start_epoch(self) -> None:
        self.step, self.seconds = 0, 0.0
        self.metrics = TrainingMetrics(len(self.class_names))


def start_run(config: Config, class_names, device, checkpoint=None, train_clips="") -> Run:
    """A run at its beginning, or where `checkpoint`, one that `load_for` gave, was saved.

    train_clips: the digest of the training set.
    """
    torch.manual_seed(config.seed)
    model = to_device(build_model(config, len(class_names)), device)
    if checkpoint is None and config.pretrained:
        take_pretrained(model, config, class_names)
    if config.deterministic and device.type == "cuda":
        warn_if_not_repeatable(model, config.model)
    _check_convolutions(model, config, device)
    optimizer = build_optimizer(config, model, device)
    average = AverageOfWeights(model, config.ema_decay) if config.ema_decay else None
    run = Run(
        config, class_names, device, model, model, optimizer,
        loss_scaler(device, config.precision), TrainingMetrics(len(class_names)),
        BadClips(config), average, LossWatch(device, precision_name(config.precision, device)),
        train_clips,
    )  # fmt: skip
    if checkpoint is not None:
        restore(run, checkpoint)
    return run


def _check_convolutions(model, config: Config, device) -> None:
    """Makes sure that the network computes right in training's precision, and in evaluation's."""
    clip_shape = (config.clip_size, *config.crop)
    num_clips = config.batch_size // (config.accumulate_steps * processes.world_size())
    replace_wrong_convolutions(model, clip_shape, num_clips, device, config.precision)
    num_windows = config.videos_per_eval_batch * config.windows_per_video
    replace_wrong_convolutions(
        model, clip_shape, num_windows, device, config.eval_precision, training=False
    )


# --- saving ------------------------------------------------------------------------------------


def save_run(run: Run, log_sizes: dict[str, int], is_best: bool = False) -> None:
    """Writes the last checkpoint, and the best one if this is it. Called after all has moved.

    Every process has to call this; the main one writes. The checkpoint before stays beside it.
    Raises UserError if it cannot be written, or could not be resumed.
    """
    metrics, bad_clips = run.metrics.state(), run.bad_clips.share()
    if not processes.is_main():
        return
    _check_finite(run)
    checkpoint = {
        "epoch": run.epoch,
        "step": run.step,
        "seconds": run.seconds,
        "arch": run.config.model,
        "state_dict": run.model.state_dict(),
        "best_prec1": run.best_top1,
        "optimizer": optimizer_state(run.optimizer, run.model),
        "scaler": run.scaler.state_dict() if run.config.precision == "fp16" else {},
        "metrics": metrics,
        "history": run.history,
        "bad_clips": bad_clips,
        "classes": run.class_names,
        "train_clips": run.train_clips,
        "config": run.config.model_dump(),
        "tensorboard": log_sizes,
    }
    if run.average:
        checkpoint["state_dict_ema"] = run.average.model.state_dict()
        checkpoint["ema_updates"] = run.average.num_updates
    folder = run.config.run_folder
    run.bad_clips.write(folder / "bad_clips.csv")
    if is_best:
        save_checkpoint(checkpoint, folder / BEST_CHECKPOINT)
    previous = None if run.last_is_damaged else folder / PREVIOUS_CHECKPOINT
    save_checkpoint(checkpoint, folder / LAST_CHECKPOINT, previous)
    run.last_is_damaged = False


def _check_finite(run: Run) -> None:
    """A loss that is still a number can have a gradient that is none."""
    states = run.optimizer.state_dict()["state"].values()
    values = [*run.model.state_dict().values(), *(v for state in states for v in state.values())]
    if not all(value.isfinite().all() for value in values):
        rate = run.optimizer.param_groups[0]["lr"]
        raise UserError(
            f"weights, or the optimizer's means, are no finite numbers after epoch {run.epoch}, "
            f"step {run.step}, at a learning rate of {rate:g}; lower lr; the last checkpoint is "
            "from before"
        )


# --- resuming ----------------------------------------------------------------------------------


def is_own(path, config: Config) -> bool:
    """Whether a checkpoint is one of the run folder's."""
    return Path(path).resolve().parent == config.run_folder.resolve()


def named_checkpoint(config: Config, name: str | None = None) -> Path:
    """The file that `--checkpoint` names: `best`, `last` or a path.

    None: the config's `checkpoint`, or else the run folder's last.
    """
    own = {"best": BEST_CHECKPOINT, "last": LAST_CHECKPOINT}
    if name in own:
        return config.run_folder / own[name]
    return Path(name or config.checkpoint or config.run_folder / LAST_CHECKPOINT)


def load_for(path, config: Config, class_names) -> dict:
    """The checkpoint at `path`; if it is the run folder's last and damaged, the one before it.

    Raises UserError if there is none, or if it knows other classes than `class_names`.
    """
    last, before = (config.run_folder / name for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT))
    try:
        checkpoint = load_checkpoint(path)
    except DamagedCheckpointError as error:
        if Path(path).resolve() != last.resolve() or not before.exists():
            raise
        print(f"warning: {error}\nwarning: going on from the one before, {before}",
              file=sys.stderr)
        path, checkpoint = before, load_checkpoint(before)
    check_classes(checkpoint, class_names, path, config.labels_csv)
    step = f", {checkpoint['step']} steps" if checkpoint.get("step") else ""
    print(f"checkpoint {path}: {checkpoint.get('epoch', 'unknown')} epochs{step}")
    return checkpoint | {"path": str(path)}


def which_weights(config: Config, checkpoint: dict) -> str:
    """`epoch 8 (trainings/quickstart/checkpoint.pth.tar)`, and how to get the best if it is not."""
    path, epoch, step = (checkpoint.get(key) for key in ("path", "epoch", "step"))
    words = "an unknown epoch" if epoch is None else f"epoch {epoch}"
    words += f" and {step} steps ({path})" if step else f" ({path})"
    best = [row["epoch"] for row in checkpoint.get("history", [])
            if row.get("val_top1") == checkpoint.get("best_prec1", math.nan)]
    is_last = is_own(path, config) and Path(path).name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)
    if is_last and best and (best[0] != epoch or step):
        words += f"; the best is of epoch {best[0]}: --checkpoint best"
    return words


def load_for_auto(config: Config, class_names, overwrite: bool) -> dict | None:
    """What `--resume auto` goes on from: the run's own checkpoint, or else what `checkpoint` names.

    None: there is none, so a run is to be started. Raises UserError as `load_for`, and where going
    on would lose epochs, because the checkpoint is not the last one, unless `overwrite` allows it.
    """
    folder, path = config.run_folder, _path_for_auto(config)
    if path is None:
        return None
    checkpoint = load_for(path, config, class_names)
    history = folder / HISTORY_FILE
    if is_own(path, config) and path.name != LAST_CHECKPOINT and history.exists():
        num_epochs = len(history.read_text().splitlines()) - 1
        if num_epochs > checkpoint.get("epoch", 0):
            if overwrite:
                return None
            raise UserError(_occupied(folder))
    return checkpoint


def _path_for_auto(config) -> Path | None:
    folder, named = config.run_folder, Path(config.checkpoint) if config.checkpoint else None
    if any((folder / name).exists() for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)):
        return folder / LAST_CHECKPOINT
    if (folder / BEST_CHECKPOINT).exists():  # it died in its first save, which writes this first
        return folder / BEST_CHECKPOINT
    # A config may name the checkpoint that its own run is going to write.
    return named if named and (named.exists() or not is_own(named, config)) else None


def restore(run: Run, checkpoint: dict) -> None:
    """Brings `run` to where `checkpoint` was saved.

    A published checkpoint has no optimizer and no history; those start afresh, which is said.
    """
    path = checkpoint["path"]
    load_weights(run.model, checkpoint, path)
    if run.average and "state_dict_ema" in checkpoint:
        averages = checkpoint | {"state_dict": checkpoint["state_dict_ema"]}
        load_weights(run.average.model, averages, path)
        run.average.num_updates = checkpoint.get("ema_updates", 0)
    elif run.average:  # it was not kept so far
        run.average = AverageOfWeights(run.model, run.config.ema_decay)
    run.epoch, run.step = checkpoint.get("epoch", 0), checkpoint.get("step", 0)
    run.seconds = checkpoint.get("seconds", 0.0)
    if is_own(path, run.config):  # another run's best says nothing about this folder's
        run.best_top1 = float(checkpoint.get("best_prec1", 0.0))
    run.history = checkpoint.get("history", [])
    run.metrics.load_state(checkpoint.get("metrics", {}))
    run.bad_clips.restore(checkpoint.get("bad_clips", []), run.epoch)
    run.last_is_damaged = path == str(run.config.run_folder / PREVIOUS_CHECKPOINT)
    saved_scaler = checkpoint.get("scaler")
    if saved_scaler and run.config.precision == "fp16":
        run.scaler.load_state_dict(saved_scaler)
    if "optimizer" not in checkpoint:
        print("the checkpoint holds no optimizer state; the optimizer starts afresh")
    # Adam has no state before its first step, which fp16 leaves out while its scale is too high.
    elif _has_trained(checkpoint) and (checkpoint["optimizer"].get("state") or not saved_scaler):
        load_optimizer_state(run.optimizer, run.model, checkpoint["optimizer"], path)
    _check_epoch(run, checkpoint, say_what_changed(run.config, checkpoint))


def _has_trained(checkpoint: dict) -> bool:
    counts = [count for _, count in checkpoint.get("metrics", {}).values()]
    return checkpoint.get("epoch", 0) > 0 or any(counts)


def say_what_changed(config: Config, checkpoint: dict) -> list[str]:
    """Prints and returns the keys whose values are others than when the checkpoint was saved."""
    saved = checkpoint.get("config", {})
    changed = [key for key, value in config.model_dump().items()
               if key in saved and saved[key] != value and key != "checkpoint"]
    for key in changed:
        print(f"changed since the checkpoint: {key}: {saved[key]} -> {getattr(config, key)}")
    return changed


def _check_epoch(run: Run, checkpoint: dict, changed: list[str]) -> None:
    """Raises UserError if what is left of an epoch would not be what it was begun with."""
    known = checkpoint.get("train_clips")
    keys = EPOCH_KEYS if known else EPOCH_KEYS + CLIP_KEYS
    fixed = [key for key in changed if key in keys]
    if known and known != run.train_clips:
        print("changed since the checkpoint: the training clips, their labels or their order")
        fixed.append(f"the clips of {run.config.train_data_csv}")
    if run.step and fixed:
        raise UserError(
            f"{', '.join(fixed)}: changed in the middle of epoch {run.epoch + 1}, which must be "
            "finished as it was begun; put it back, and change it between two epochs"
        )


# --- the run folder ----------------------------------------------------------------------------


def prepare_run_folder(config: Config, goes_on: bool, overwrite: bool, devices: str) -> None:
    """Makes the run folder and writes `config.json` and `versions.json` into it.

    goes_on: the run in it is the one that is resumed. devices: what computes, in words.
    Raises UserError if another run is there already and may not be overwritten, or if the folder
    cannot be written.
    """
    folder = config.run_folder
    if _records(folder) and not (goes_on or overwrite):
        raise UserError(_occupied(folder))
    make_run_folder(config)
    try:
        if overwrite and not goes_on:
            for name in (*RECORDS, REPORT_FILE):
                (folder / name).unlink(missing_ok=True)
            for name in (LOG_FOLDER, PROFILE_FOLDER):
                shutil.rmtree(folder / name, ignore_errors=True)
        for name in () if goes_on else STARTED:
            (folder / name).unlink(missing_ok=True)
        _append_versions(folder / VERSIONS_FILE, devices)
        write_whole(folder / CONFIG_FILE, config.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"{folder}: run folder cannot be written ({error.strerror}); change output_dir"
        ) from None


def _records(folder) -> list[str]:
    return [name for name in RECORDS if os.path.lexists(folder / name)]


def _occupied(folder) -> str:
    found = _records(folder)
    way_on = "it has no checkpoint to go on from; "
    if LAST_CHECKPOINT in found or PREVIOUS_CHECKPOINT in found:
        way_on = "go on with it by --resume True --checkpoint last, "
    elif BEST_CHECKPOINT in found:
        way_on = "go back to its best epoch by --resume True --checkpoint best, "
    return (f"{folder}: holds a run already ({', '.join(found)}); {way_on}choose another "
            "model_name, or delete it by --overwrite True")


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


def _append_versions(path, devices) -> None:
    """Adds this start of the run to a JSON list: a resumed run may have been moved or updated."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except (ValueError, RecursionError):
        starts = None
    if not isinstance(starts, list):
        raise UserError(f"{path}: damaged; delete it, and a new list of starts is begun")
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    starts.append({"started": started, "command": sys.argv, "devices": devices, **versions()})
    write_whole(path, json.dumps(starts, indent=2) + "\n")


def write_whole(path, text) -> None:
    """So that a process that dies here leaves the file as it was."""
    partial = Path(f"{path}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


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

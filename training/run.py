"""A run: its state, and how it is started, saved and restored."""

from dataclasses import dataclass, field

import torch

from config import IMAGENET_COLOURS, Config
from model import NETWORKS, build_model
from networks.convolution_check import replace_wrong_convolutions
from networks.convolutions import replace_slow_gradients
from networks.frame_networks import FeatureClassifier
from system import processes
from system.device import loss_scaler, precision_name, to_device, warn_if_not_repeatable
from system.errors import UserError
from system.profiling import StepProfile
from training.averaging import AverageOfWeights
from training.checkpoint import load_weights, save_checkpoint, training_set
from training.freezing import freeze_stages
from training.optimization import (
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    training_is_over,
)
from training.pretrained import load_pretrained
from training.run_folder import (
    BEST_CHECKPOINT,
    LAST_CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    is_in_run_folder,
)
from utils import TrainingMetrics

# Keys that must not change within an epoch; nor must the training clips.
EPOCH_KEYS = ("balanced_sampling", "batch_size", "seed")
VALIDATION_PREFIX = "val_"  # of columns of the history


def validation_columns(scores: dict) -> dict:
    """Return the columns of the history for scores of the validation set."""
    return {f"{VALIDATION_PREFIX}{name}": value for name, value in scores.items()}


def split_columns(row: dict) -> tuple[dict, dict]:
    """Return the training columns of a row of the history, and the scores of the validation set."""
    training, validation = {}, {}
    for name, value in row.items():
        part = validation if name.startswith(VALIDATION_PREFIX) else training
        part[name.removeprefix(VALIDATION_PREFIX)] = value
    return training, validation


@dataclass
class TrainState:
    """How far a run has come."""

    metrics: TrainingMetrics  # of the current epoch
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    seconds: float = 0.0  # seconds that these steps took
    best_top1: float = -1.0  # percent, on the validation set; below 0: no epoch is finished
    history: list[dict] = field(default_factory=list)  # one row per epoch

    @property
    def validation_losses(self) -> list[float]:
        return [row["val_loss"] for row in self.history]

    def finish_epoch(self, row: dict) -> bool:
        """Add the epoch's row to the history, move to the next epoch; return whether it is best."""
        is_best = not self.epoch or row["val_top1"] > self.best_top1
        self.history.append(row)
        self.best_top1 = max(row["val_top1"], self.best_top1)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.metrics = TrainingMetrics(self.metrics.num_classes)
        return is_best

    def state(self) -> dict:
        """Return the keys that a checkpoint keeps; every process must call this."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "best_prec1": self.best_top1,  # as published checkpoints call it
            "metrics": self.metrics.state(),
            "history": self.history,
        }

    def load_state(self, checkpoint: dict, is_same_run: bool) -> None:
        """Continue from a checkpoint; a published one has `epoch` only.

        is_same_run: False keeps `best_top1`, since another run's best does not apply to this one.
        """
        self.epoch, self.step = checkpoint.get("epoch", 0), checkpoint.get("step", 0)
        self.seconds = checkpoint.get("seconds", 0.0)
        self.history = checkpoint.get("history", [])
        self.metrics.load_state(checkpoint.get("metrics", {}))
        if is_same_run:
            self.best_top1 = float(checkpoint.get("best_prec1", 0.0))


@dataclass
class Run:
    """The objects that a training loop uses; `state` is how far it has come."""

    config: Config
    class_names: list[str]
    device: torch.device
    model: torch.nn.Module
    network: torch.nn.Module  # the model, wrapped by DDP if there are several processes
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss, for fp16
    average: AverageOfWeights | None  # of the model's weights
    state: TrainState
    train_clips: str = ""  # digest of the training set
    train_pack: str = ""  # identity of its pack; empty: it is not packed
    profile: StepProfile = field(default_factory=StepProfile)
    is_last_damaged: bool = False  # so the previous one was loaded
    uses_features: bool = False  # the loaders' batches are features of a frozen backbone

    @property
    def is_over(self) -> bool:
        state = self.state
        return bool(training_is_over(self.config, state.epoch, state.validation_losses))

    @property
    def evaluated_model(self) -> torch.nn.Module:
        return self.average.module if self.average else self.model

    @property
    def evaluated_network(self) -> torch.nn.Module:
        """Return the evaluated model as a module that takes the loaders' batches."""
        return self.part_of(self.evaluated_model)

    def part_of(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the part of `model` that takes the loaders' batches: all of it, or its head."""
        return FeatureClassifier(model) if self.uses_features else model


def start_run(
    config: Config, class_names, device, checkpoint=None, train_clips="", train_pack=""
) -> Run:
    """Start a run, or continue one from `checkpoint`, which `load_for` returned.

    train_clips, train_pack: the digest of the training set, and the identity of its pack.
    """
    torch.manual_seed(config.seed)
    model = to_device(build_model(config, len(class_names)), device)
    freeze_stages(model, config)
    if checkpoint is None and config.pretrained:
        load_pretrained(model, NETWORKS[config.model].head, config, class_names)
    if config.deterministic and device.type == "cuda":
        warn_if_not_repeatable(model, config.model)
    _check_convolutions(model, config, device)
    optimizer = build_optimizer(config, model, device)
    average = AverageOfWeights(model, config.ema_decay) if config.ema_decay else None
    scaler = loss_scaler(device, config.precision)
    state = TrainState(TrainingMetrics(len(class_names)))
    run = Run(
        config,
        class_names,
        device,
        model,
        model,
        optimizer,
        scaler,
        average,
        state,
        train_clips,
        train_pack,
    )
    if checkpoint is not None:
        restore(run, checkpoint)
    return run


def _check_convolutions(model, config: Config, device) -> None:
    """Replace convolutions with wrong results, in the precisions of training and evaluation.

    In fp32 on a GPU, those whose gradients are extremely slow are replaced, too.
    """
    if device.type == "cuda" and precision_name(config.precision, device) == "fp32":
        replace_slow_gradients(model)
    clip_shape = config.clip_shape
    num_clips = config.batch_size // (config.accumulate_steps * processes.world_size())
    replace_wrong_convolutions(model, clip_shape, num_clips, device, config.precision)
    num_windows = config.videos_per_eval_batch * config.inputs_per_video
    replace_wrong_convolutions(
        model, clip_shape, num_windows, device, config.eval_precision, training=False
    )


# --- saving ------------------------------------------------------------------------------------


def save_run(run: Run, more: dict, is_best: bool = False) -> None:
    """Write the last checkpoint, and the best one if `is_best`; the previous one is kept.

    more: further keys. Every process must call this; the main one writes. Raises UserError if the
    checkpoint cannot be written, or could not be resumed.
    """
    state = run.state.state()
    if not processes.is_main():
        return
    _check_finite(run)
    checkpoint = {
        **state,
        "arch": run.config.model,
        "state_dict": run.model.state_dict(),
        "optimizer": optimizer_state(run.optimizer, run.model),
        "scaler": run.scaler.state_dict() if run.config.precision == "fp16" else {},
        "classes": run.class_names,
        "train_clips": run.train_clips,
        "train_pack": run.train_pack,
        "config": run.config.model_dump(),
        **more,
    }
    if run.average:
        checkpoint["state_dict_ema"] = run.average.module.state_dict()
        checkpoint["ema_updates"] = run.average.num_updates
    folder = run.config.run_folder
    if is_best:
        save_checkpoint(checkpoint, folder / BEST_CHECKPOINT)
    previous = None if run.is_last_damaged else folder / PREVIOUS_CHECKPOINT
    save_checkpoint(checkpoint, folder / LAST_CHECKPOINT, previous)
    run.is_last_damaged = False


def _check_finite(run: Run) -> None:
    """Raise UserError for NaN or inf in what is saved; a finite loss can have such a gradient."""
    states = run.optimizer.state_dict()["state"].values()
    values = [*run.model.state_dict().values(), *(v for state in states for v in state.values())]
    if not all(value.isfinite().all() for value in values):
        rate = run.optimizer.param_groups[0]["lr"]
        raise UserError(
            f"weights or optimizer state contain NaN or inf after epoch {run.state.epoch}, step "
            f"{run.state.step}, at a learning rate of {rate:g}; lower lr; the last checkpoint is "
            "from before that"
        )


def restore(run: Run, checkpoint: dict) -> None:
    """Restore the state of `run` from `checkpoint`.

    A published checkpoint has no optimizer state and no history: both start empty. Prints it.
    """
    path = checkpoint["path"]
    load_weights(run.model, checkpoint, path)
    if run.average and "state_dict_ema" in checkpoint:
        averages = checkpoint | {"state_dict": checkpoint["state_dict_ema"]}
        load_weights(run.average.module, averages, path)
        run.average.num_updates = checkpoint.get("ema_updates", 0)
    elif run.average:  # not kept by earlier versions
        run.average = AverageOfWeights(run.model, run.config.ema_decay)
    run.state.load_state(checkpoint, is_in_run_folder(path, run.config))
    run.is_last_damaged = path == str(run.config.run_folder / PREVIOUS_CHECKPOINT)
    saved_scaler = checkpoint.get("scaler")
    if saved_scaler and run.config.precision == "fp16":
        run.scaler.load_state_dict(saved_scaler)
    if "optimizer" not in checkpoint:
        print("the checkpoint has no optimizer state; the optimizer starts without one")
    # It is empty before its first step; fp16 skips steps while its scale is too high.
    elif checkpoint["optimizer"].get("state") or (run.state.epoch and not saved_scaler):
        load_optimizer_state(run.optimizer, run.model, checkpoint["optimizer"], path)
    _check_epoch(run, checkpoint, print_changed_keys(run.config, checkpoint))


def print_changed_keys(config: Config, checkpoint: dict) -> list[str]:
    """Print and return the keys whose values have changed since the checkpoint was saved."""
    saved = checkpoint.get("config", {})
    if saved:  # keys that an older version did not have were at their defaults
        defaults = {
            key: field.default
            for key, field in Config.model_fields.items()
            if not field.is_required()
        }
        saved = defaults | IMAGENET_COLOURS | saved
    changed = [
        key
        for key, value in config.model_dump().items()
        if key in saved and saved[key] != value and key != "checkpoint"
    ]
    for key in changed:
        print(f"changed since the checkpoint: {key}: {saved[key]} -> {getattr(config, key)}")
    return changed


def _check_epoch(run: Run, checkpoint: dict, changed: list[str]) -> None:
    """Raise UserError if anything that an unfinished epoch depends on has changed."""
    known, known_pack = training_set(checkpoint)
    fixed = [key for key in changed if key in EPOCH_KEYS]
    if known_pack and run.train_pack and known_pack != run.train_pack:
        print(f"changed since the checkpoint: the frames in {run.config.train_data_folder}")
    if known is not None and known != run.train_clips:
        print("changed since the checkpoint: the training clips, their labels or their order")
        fixed.append(f"the clips of {run.config.train_data_csv}")
    if run.state.step and fixed:
        raise UserError(
            f"{', '.join(fixed)}: changed in the middle of epoch {run.state.epoch + 1}; "
            "restore it to finish this epoch, and change it between two epochs"
        )

"""Which checkpoint a command resumes from or evaluates."""

import math
import sys
from pathlib import Path

from config import Config
from system.errors import UserError
from training.checkpoint import DamagedCheckpointError, check_classes, load_checkpoint
from training.run_folder import (
    BEST_CHECKPOINT,
    HISTORY_FILE,
    LAST_CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    is_in_run_folder,
    occupied_message,
)


def named_checkpoint(config: Config, name: str | None = None) -> Path:
    """Return the file that `--checkpoint` names: `best`, `last` or a path.

    None: the config's `checkpoint`, or else the run folder's last.
    """
    own = {"best": BEST_CHECKPOINT, "last": LAST_CHECKPOINT}
    if name in own:
        return config.run_folder / own[name]
    return Path(name or config.checkpoint or config.run_folder / LAST_CHECKPOINT)


def load_for(path, config: Config, class_names) -> dict:
    """Load `path`; if it is the run folder's last and damaged, load the previous one.

    Raises UserError if there is none, or if its classes differ from `class_names`.
    """
    last, before = (config.run_folder / name for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT))
    try:
        checkpoint = load_checkpoint(path)
    except DamagedCheckpointError as error:
        if Path(path).resolve() != last.resolve() or not before.exists():
            raise
        print(f"warning: {error}\nwarning: using the previous one, {before}", file=sys.stderr)
        path, checkpoint = before, load_checkpoint(before)
    check_classes(checkpoint, class_names, path, config.labels_csv)
    step = f", {checkpoint['step']} steps" if checkpoint.get("step") else ""
    print(f"checkpoint {path}: {checkpoint.get('epoch', 'unknown')} epochs{step}")
    return checkpoint | {"path": str(path)}


def which_weights(config: Config, checkpoint: dict) -> str:
    """Return `epoch 8 (run/checkpoint.pth.tar)`, and how to get the best if this is another."""
    path, epoch, step = (checkpoint.get(key) for key in ("path", "epoch", "step"))
    words = "an unknown epoch" if epoch is None else f"epoch {epoch}"
    words += f" and {step} steps ({path})" if step else f" ({path})"
    best = [
        row["epoch"]
        for row in checkpoint.get("history", [])
        if row.get("val_top1") == checkpoint.get("best_prec1", math.nan)
    ]
    is_last = Path(path).name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)
    is_last = is_last and is_in_run_folder(path, config)
    if is_last and best and (best[0] != epoch or step):
        words += f"; the best is of epoch {best[0]}: --checkpoint best"
    return words


def load_for_auto(config: Config, class_names, overwrite: bool) -> dict | None:
    """Return what `--resume auto` resumes from: the run's checkpoint, or what `checkpoint` names.

    Returns None if there is none, so that a run starts. Raises UserError like `load_for`, and if
    resuming would lose epochs, because the checkpoint is not the last, unless `overwrite` is set.
    """
    folder, path = config.run_folder, _path_for_auto(config)
    if path is None:
        return None
    checkpoint = load_for(path, config, class_names)
    history = folder / HISTORY_FILE
    if is_in_run_folder(path, config) and path.name != LAST_CHECKPOINT and history.exists():
        num_epochs = len(history.read_text().splitlines()) - 1
        if num_epochs > checkpoint.get("epoch", 0):
            if overwrite:
                return None
            raise UserError(occupied_message(folder))
    return checkpoint


def _path_for_auto(config) -> Path | None:
    folder, named = config.run_folder, Path(config.checkpoint) if config.checkpoint else None
    if any((folder / name).exists() for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)):
        return folder / LAST_CHECKPOINT
    if (folder / BEST_CHECKPOINT).exists():  # it died in its first save, which writes this first
        return folder / BEST_CHECKPOINT
    # A config may name the checkpoint that its run will write.
    return named if named and (named.exists() or not is_in_run_folder(named, config)) else None


def checkpoint_to_resume(config: Config, options, class_names) -> dict | None:
    """Return the checkpoint that `--resume` continues from, or None to start a run."""
    if options.resume == "auto":
        return load_for_auto(config, class_names, options.overwrite)
    if options.resume:
        return load_for(named_checkpoint(config, options.checkpoint), config, class_names)
    return None

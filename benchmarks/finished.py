"""Which runs of a comparison are finished, so that they are read instead of trained again."""

import json
from pathlib import Path

import pandas as pd

from benchmarks.folds import PROJECT
from clips.annotations import Annotations, read_annotations, read_labels
from config import IMAGENET_COLOURS, Config
from scoring.results import LOGITS_FILE, read_logits
from system.errors import UserError
from training.checkpoint import load_checkpoint, training_set
from training.optimization import training_is_over
from training.run_folder import CONFIG_FILE, HISTORY_FILE, LAST_CHECKPOINT

# Keys that change no score.
IRRELEVANT_KEYS = {
    "model_name",
    "output_dir",
    "checkpoint",
    "num_workers",
    "print_freq",
    "checkpoint_minutes",
}


def is_finished(config: Config, folder: Path) -> bool:
    """Return whether the folder has the run's checkpoint after its last epoch.

    Raises UserError if the run in it was trained with other keys, or on other clips.
    """
    if not all((folder / name).exists() for name in (LAST_CHECKPOINT, HISTORY_FILE, CONFIG_FILE)):
        return False
    other = changed_keys(config, json.loads((folder / CONFIG_FILE).read_text()))
    if other:
        raise UserError(
            f"{folder}: trained with another {', '.join(other)}; give the variant "
            "another name, choose another --output, or delete the folder"
        )
    history = pd.read_csv(folder / HISTORY_FILE)
    if not training_is_over(config, len(history), history["val_loss"].tolist()):
        return False
    known, _ = training_set(load_checkpoint(folder / LAST_CHECKPOINT))
    if known and known != clips_of(config, "train").digest():
        raise UserError(
            f"{folder}: trained on other clips than {config.train_data_csv} lists now; "
            "choose another --output, or delete the folder"
        )
    return True


def clips_of(config: Config, prefix: str) -> Annotations:
    """Return the clips of the set whose keys begin with `prefix`: train or val."""
    csv, folder = (PROJECT / getattr(config, f"{prefix}_data_{key}") for key in ("csv", "folder"))
    return read_annotations(csv, folder, read_labels(PROJECT / config.labels_csv))


def changed_keys(config: Config, saved: dict) -> list[str]:
    """Return the keys that differ from those of a saved config and may change scores."""
    defaults = {key: field.default for key, field in Config.model_fields.items()}
    saved, values = defaults | IMAGENET_COLOURS | saved, config.model_dump(mode="json")
    for key, default in IMAGENET_COLOURS.items():
        # A run fills in those of its weights, and `pretrained` is compared itself.
        values[key] = values[key] or (saved[key] if config.pretrained else default)
    return [
        key for key, value in values.items() if key not in IRRELEVANT_KEYS and saved[key] != value
    ]


def is_evaluated(config: Config, folder: Path, num_epochs: int) -> bool:
    """Return whether the folder has the logits of the last, not the best, epoch for these clips."""
    if not (folder / LOGITS_FILE).exists():
        return False
    saved, clips = read_logits(folder / LOGITS_FILE), clips_of(config, "val")
    if dict(zip(saved.ids, saved.labels.tolist(), strict=True)) != dict(
        zip(clips.ids.tolist(), clips.labels.tolist(), strict=True)
    ):
        return False
    origin = saved.origin
    if origin is None or len(origin.networks) > 1 or changed_keys(config, origin.config):
        return False
    (network,) = origin.networks
    checkpoint = folder / LAST_CHECKPOINT
    return (
        Path(network.path).name == LAST_CHECKPOINT
        and network.epoch == num_epochs
        and (folder / LOGITS_FILE).stat().st_mtime >= checkpoint.stat().st_mtime
    )

"""The recipes of `train.py --data`, and which of their parts suit a folder's clips."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from clips.annotations import Annotations
from config import FRAME_MODELS, MODEL_OPTIONS, Config
from own_clips.choice import CrossValidation, choose_by_cross_validation, format_variants
from own_clips.settings import choose_settings
from own_clips.short_trainings import COMPARED
from own_clips.survey import ClipStats
from system.config_file import BACKBONE_KEYS

CONFIGS = Path(__file__).parent.parent / "configs"
FEW_CLIPS = CONFIGS / "few_clips.json"  # conv3d from random weights
PRETRAINED = CONFIGS / "pretrained.json"  # eco on a frozen backbone
CONV3D_KEYS = ("block_widths", "head_widths")
MIN_CLIPS = 6  # in the largest class, for a choice that is more than noise


def recipe_file(given: dict) -> Path:
    """Return the recipe for the user's keys: that of the network that they name."""
    networks = given.get("members") or [given.get("model", "eco")]
    has_backbone = any(name in FRAME_MODELS for name in networks)
    return PRETRAINED if has_backbone else FEW_CLIPS


def recipe_of(chosen: dict) -> dict[str, Any]:
    """Return the keys of the recipe for the chosen network, or for the members of an average."""
    networks = chosen.get("members", [chosen["model"]])
    keys = _read(FEW_CLIPS)
    if any(name in FRAME_MODELS for name in networks):
        keys = {key: keys[key] for key in CONV3D_KEYS} | _read(PRETRAINED)
    return {
        key: value
        for key, value in keys.items()
        if any(name in MODEL_OPTIONS.get(key, networks) for name in networks)
    }


def _read(path: Path) -> dict[str, Any]:
    keys = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in keys.items() if key not in ("$schema", "model_name")}


def cross_validated_keys(
    train: Annotations, stats: ClipStats, config: Config, given: dict, device_type: str
) -> dict[str, Any]:
    """Return the keys that score highest in cross-validation within the training clips; print it.

    given: the user's keys, which stay.
    """
    samplings = [given["sampling"]] if "sampling" in given else ["window", "segments"]
    configs = []
    for sampling in samplings:
        keys = given | {"sampling": sampling, "model": "average", "members": COMPARED}
        settings = choose_settings(stats, len(train), device_type, keys)
        keys = {choice.key: choice.value for choice in settings} | {"sampling": sampling}
        configs.append(config.model_copy(update=keys))
    started = time.monotonic()
    validated = choose_by_cross_validation(train, configs, COMPARED, config.seed)
    seconds = time.monotonic() - started
    variants = [variant for variant in validated.variants if fits(variant.keys, given)]
    validated = validated._replace(variants=variants)
    print_choice(validated, seconds)
    return validated.best.keys


def fits(keys: dict, given: dict) -> bool:
    """Return whether the user's keys apply to the networks of a variant, whose keys are `keys`."""
    networks = keys.get("members", [keys["model"]])
    has_backbone = any(name in FRAME_MODELS for name in networks)
    return all(
        has_backbone
        if key in BACKBONE_KEYS
        else any(name in MODEL_OPTIONS.get(key, networks) for name in networks)
        for key in given
    )


def print_choice(validated: CrossValidation, seconds: float) -> None:
    """Print the variants, and what the best of them says about the clips."""
    num_clips, best = len(validated.best.labels), validated.best
    print(
        f"  cross-validation within {num_clips:,} training clips, on small frames, in "
        f"{seconds:.0f} s:"
    )
    for line in format_variants(validated):
        print(f"    {line}")
    networks = best.keys.get("members", [best.keys["model"]])
    if networks == ["linear"]:
        print("    no network did better than a linear model, a weighted sum of pixels")
    elif "linear" in networks:
        print("    a linear model helps: a weighted sum of pixels tells some of these clips apart")


def can_cross_validate(labels: np.ndarray, given: dict) -> bool:
    """Return whether there are enough clips for a choice, and no network is given."""
    return "model" not in given and np.bincount(labels).max(initial=0) >= MIN_CLIPS

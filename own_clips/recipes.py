"""The recipes of `train.py --data`, and which of their parts suit a folder's clips."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from clips.annotations import Annotations
from config import FRAME_MODELS, IMAGENET_WEIGHTS, MAP_MODELS, MODEL_OPTIONS, Config
from own_clips.choice import (
    CENTERED,
    NUM_FOLDS,
    SAMPLINGS,
    CrossValidation,
    all_keys,
    choose_by_cross_validation,
    format_variants,
    networks_of,
)
from own_clips.settings import choose_settings
from own_clips.short_trainings import COMPARED
from own_clips.survey import ClipStats
from system.config_file import BACKBONE_KEYS
from training.pretrained import is_weights_name

CONFIGS = Path(__file__).parent.parent / "configs"
FEW_CLIPS = CONFIGS / "few_clips.json"  # conv3d from random weights
PRETRAINED = CONFIGS / "pretrained.json"  # eco on a frozen backbone
CONV3D_KEYS = ("block_widths", "head_widths")
# For a choice among networks that is more than noise: clips of the largest class, or of all classes
# together, with one clip of the largest in each fold.
MIN_CLIPS, MIN_CLIPS_IN_ALL = 6, 40


def recipe_file(given: dict) -> Path:
    """Return the recipe for the user's keys: that of the network that they name."""
    networks = given.get("members") or [given.get("model", "eco")]
    has_backbone = any(name in FRAME_MODELS for name in networks)
    return PRETRAINED if has_backbone else FEW_CLIPS


def recipe_of(chosen: dict) -> dict[str, Any]:
    """Return the keys of the recipe for the chosen network, or for the members of an average."""
    networks = networks_of(chosen)
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
    train: Annotations,
    stats: ClipStats,
    config: Config,
    given: dict,
    device_type: str,
    networks: list[str] = COMPARED,
    samplings: Iterable[str] = SAMPLINGS,
) -> dict[str, Any]:
    """Return the keys that score highest in cross-validation within the training clips; print it.

    given: the user's keys, which stay. networks, samplings: from `networks_to_compare`. Returns
    none if the user's keys exclude each other: the run then ends with a message about its config.
    """

    def fitting(keys):
        settings = choose_settings(stats, len(train), device_type, given | keys)
        return fits(keys, given, {choice.key: choice.value for choice in settings})

    possible = [keys for keys in all_keys(networks, samplings) if fitting(keys)]
    if len(possible) < 2:
        return possible[0] if possible else {}
    samplings = [name for name in samplings if any(keys["sampling"] == name for keys in possible)]
    members = [name for name in networks if any(name in networks_of(keys) for keys in possible)]
    centered = [each for each in CENTERED if any(each.items() <= keys.items() for keys in possible)]
    configs = []
    for sampling in samplings:
        keys = given | {"sampling": sampling, "model": "average", "members": COMPARED}
        settings = choose_settings(stats, len(train), device_type, keys)
        keys = {choice.key: choice.value for choice in settings} | {"sampling": sampling}
        configs.append(config.model_copy(update=keys))
    started = time.monotonic()
    validated = choose_by_cross_validation(train, configs, members, config.seed, centered)
    seconds = time.monotonic() - started
    variants = [variant for variant in validated.variants if fitting(variant.keys)]
    validated = validated._replace(variants=variants)
    print_choice(validated, seconds)
    return validated.best.keys


def fits(keys: dict, given: dict, settings: dict) -> bool:
    """Return whether a run can have the user's keys and those of a variant, `keys`.

    The user's must apply to its networks, and agree with what was scored. settings: what is chosen
    to suit both.
    """
    networks = networks_of(keys)
    has_backbone = any(name in FRAME_MODELS for name in networks)
    applies = all(
        has_backbone
        if key in BACKBONE_KEYS
        else any(name in MODEL_OPTIONS.get(key, networks) for name in networks)
        for key in given
    )
    agrees = all(keys.get(key, value) == value for key, value in given.items())
    return applies and agrees and _is_config(recipe_of(keys) | keys | given | settings)


def _is_config(values: dict) -> bool:
    try:
        Config.model_validate({"model_name": "a run"} | values)
    except ValidationError:
        return False
    return True


def print_choice(validated: CrossValidation, seconds: float) -> None:
    """Print the variants, and what the best of them says about the clips."""
    num_clips, best = len(validated.best.labels), validated.best
    print(
        f"  cross-validation within {num_clips:,} training clips, on small frames, in "
        f"{seconds:.0f} s:"
    )
    for line in format_variants(validated):
        print(f"    {line}")
    networks = networks_of(best.keys)
    if networks == ["linear"]:
        print("    no network did better than a linear model, a weighted sum of pixels")
    elif "linear" in networks:
        print("    a linear model helps: a weighted sum of pixels tells some of these clips apart")


def networks_to_compare(
    labels: np.ndarray, given: dict, is_quick: bool
) -> tuple[list[str], list[str]]:
    """Return the networks and the samplings to compare; none, if there is nothing to choose.

    labels: of the training clips, int [N]. given: the user's keys. If a network is given, the clips
    are few, or `is_quick`, it is only one network: with and without the mean map of the clip.
    """
    largest = np.bincount(labels).max(initial=0)
    if largest < NUM_FOLDS or not _has_known_backbone(given):
        return [], []
    is_enough = len(labels) >= MIN_CLIPS_IN_ALL or largest >= MIN_CLIPS
    if "model" not in given and is_enough and not is_quick:
        return COMPARED, [*SAMPLINGS]
    network = given.get("model", "eco")
    return ([network], [given.get("sampling", "window")]) if network in MAP_MODELS else ([], [])


def _has_known_backbone(given: dict) -> bool:
    """Return whether the weights are torchvision's or the recipe's: short trainings use them."""
    source = given.get("pretrained", IMAGENET_WEIGHTS)
    return source == IMAGENET_WEIGHTS or (source is not None and is_weights_name(source))

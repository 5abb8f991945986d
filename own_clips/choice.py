"""Choose networks and sampling for a folder of clips by cross-validation.

Only training clips are used: short trainings on two thirds of them are scored on the last third,
in turn. The choice is the variant with the highest score.
"""

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from clips.annotations import Annotations
from config import FITTED_MODELS, MAP_MODELS, Config
from model import build_average
from networks.average import combine_members
from own_clips.frame_maps import FRAMES_IN_ALL, frame_maps
from own_clips.short_trainings import (
    LONG_STEPS,
    STEPS,
    Head,
    feature_network,
    held_out_scores,
    short_config,
)
from scoring.folds import stratified_folds
from scoring.intervals import Comparison, compare_on_same_clips
from system.device import one_core_each

# Clips from which the choice is made; of more, a sample: MIN_SAMPLE, or more with many classes.
MIN_SAMPLE, CLIPS_PER_CLASS, MAX_SAMPLE = 300, 20, 600
NUM_FOLDS = 3
FEW_FRAMES = FRAMES_IN_ALL // 3  # enough to compare variants of only one network
NUM_SHOWN = 5
CENTERED = ({"center_features": False}, {"center_features": True})
SAMPLINGS = {"window": "windows", "segments": "whole clips"}


class Trial(NamedTuple):
    """A network to cross-validate."""

    member: str
    config: Config
    keys: dict[str, Any]  # of the config, for this network


class Variant(NamedTuple):
    """A way to train, and how it classified clips that it was not trained on."""

    name: str
    keys: dict[str, Any]  # of the config
    log_probabilities: torch.Tensor  # float64 [N, classes]
    labels: torch.Tensor  # int64 [N]

    @property
    def right(self) -> np.ndarray:
        """Return whether each clip was classified correctly, float [N]."""
        return (self.log_probabilities.argmax(1) == self.labels).double().numpy()

    @property
    def rank(self) -> tuple[float, float]:
        """Return what the best variant has the lowest of: errors, then the loss."""
        loss = F.nll_loss(self.log_probabilities, self.labels)
        return 1 - float(self.right.mean()), float(loss)


class CrossValidation(NamedTuple):
    """The variants, best first, and the groups of their clips."""

    variants: list[Variant]
    groups: np.ndarray | None

    @property
    def best(self) -> Variant:
        return self.variants[0]

    def compare(self, other: Variant) -> Comparison:
        """Compare the best variant with another."""
        return compare_on_same_clips(self.best.right[None], other.right[None], self.groups)


class Trials:
    """Short trainings on some clips."""

    def __init__(self, annotations: Annotations, config: Config, seed: int, frames_in_all: int):
        """Read the clips, and compute their features; config: for the size of frames.

        frames_in_all: about as many frames of the clips are used.
        """
        self.num_classes = len(annotations.class_names)
        short = short_config(config)
        network = feature_network(short, self.num_classes)
        chosen = some_clips(annotations, seed)
        self.maps = frame_maps(annotations, chosen, network, short, frames_in_all)
        self.labels = annotations.labels[self.maps.indices]
        groups = annotations.groups
        self.groups = None if groups is None else groups[self.maps.indices]
        self.folds, self.averages = folds_of(self.labels, self.groups, seed), {}

    def run(self, todo: list[Trial], num_steps: int, progress: tqdm) -> list[Variant]:
        """Cross-validate each network after so many steps; each core trains another."""
        with one_core_each() as pool:
            started = [self._start(trial, num_steps, pool) for trial in todo]
            variants = []
            for trial, parts in zip(todo, started, strict=True):
                variants.append(self._variant(trial, [part.result() for part in parts]))
                progress.update(1)
        return variants

    def _start(self, trial: Trial, num_steps, pool) -> list[Future]:
        config = short_config(trial.config).model_copy(update=trial.keys)
        built = config.clip_size, config.subtract_background, config.center_features
        if built not in self.averages:
            self.averages[built] = build_average(config, self.num_classes)
        whole = self.averages[built]
        return [
            pool.submit(
                held_out_scores,
                Head(whole, trial.member, seed),
                self.maps,
                self.labels,
                self.groups,
                fold,
                config,
                num_steps,
                seed,
            )
            for seed, fold in enumerate(self.folds)
        ]

    def _variant(self, trial: Trial, parts: list[torch.Tensor]) -> Variant:
        scores = torch.zeros(len(self.labels), self.num_classes, dtype=torch.float64)
        for (_, test), part in zip(self.folds, parts, strict=True):
            scores[test] = part
        centered = " without the mean map" if trial.keys.get("center_features") else ""
        sampling = trial.config.sampling
        name = f"{trial.member}{centered}, on {SAMPLINGS[sampling]}"
        keys = {"model": trial.member, "sampling": sampling, **trial.keys}
        return Variant(name, keys, scores, torch.from_numpy(self.labels))


def networks_of(keys: dict) -> list[str]:
    """Return the network, or the members of the average, of a variant with these keys."""
    return keys.get("members", [keys["model"]])


def all_keys(members: list[str], samplings: Iterable[str]) -> list[dict[str, Any]]:
    """Return the keys of the variants of these networks, alone and averaged."""
    alone = [{"model": name} for name in members]
    together = [
        {"model": "average", "members": [*names]}
        for size in range(2, len(members) + 1)
        for names in itertools.combinations(members, size)
    ]
    return [
        keys | {"sampling": sampling} | centered
        for keys, sampling in itertools.product(alone + together, samplings)
        for centered in (CENTERED if {*networks_of(keys)} & {*MAP_MODELS} else ({},))
    ]


def choose_by_cross_validation(
    annotations: Annotations,
    configs: list[Config],
    members: list[str],
    seed: int,
    centered: Sequence[dict] = CENTERED,
) -> CrossValidation:
    """Return the variants, best first.

    configs: one per sampling. members: the networks to try, alone and averaged. centered: the keys
    with which those that see maps of a 2D network are tried, with and without the mean map of the
    clip. Of several networks, the best variant of each that is trained by gradient descent is
    trained for longer, since some learn more slowly. `conv3d`, which costs the most, is tried with
    the sampling that is best for the others.
    """
    trials = Trials(
        annotations, configs[0], seed, FRAMES_IN_ALL if len(members) > 1 else FEW_FRAMES
    )
    todo = [
        Trial(member, config, keys)
        for config in configs
        for member in members
        if member != "conv3d"
        for keys in (centered if member in MAP_MODELS else ({},))
    ]
    trained = [name for name in members if name not in FITTED_MODELS] if len(members) > 1 else []
    count = len(todo) + len(trained)
    with tqdm(total=count, desc="choosing", leave=False, disable=None) as progress:
        found = trials.run(todo, STEPS, progress)
        places = sorted(range(len(todo)), key=lambda place: found[place].rank)
        ranked = [todo[place] for place in places]
        longer = [
            Trial(member, ranked[0].config, {})
            if member == "conv3d"
            else next(trial for trial in ranked if trial.member == member)
            for member in trained
        ]
        for trial, variant in zip(longer, trials.run(longer, LONG_STEPS, progress), strict=True):
            place = todo.index(trial) if trial in todo else len(found)
            found[place : place + 1] = [variant]
    variants = found + averages(found)
    return CrossValidation(sorted(variants, key=lambda variant: variant.rank), trials.groups)


def averages(variants: list[Variant]) -> list[Variant]:
    """Return the means of the variants that can be averaged: of the same clips and maps."""
    found = {}
    samplings = {variant.keys["sampling"]: None for variant in variants}
    for sampling, keys in itertools.product(samplings, CENTERED):
        same = [each for each in variants if (keys | each.keys) == (each.keys | keys)]
        same = [each for each in same if each.keys["sampling"] == sampling]
        for size in range(2, len(same) + 1):
            for members in itertools.combinations(same, size):
                average = average_of(members, sampling)
                found.setdefault(str(average.keys), average)
    return list(found.values())


def average_of(members: Sequence[Variant], sampling: str) -> Variant:
    """Return the mean of some variants of one sampling."""
    each = torch.stack([member.log_probabilities for member in members], 1)
    together = combine_members(each, "mean")
    keys = {key: value for each in members for key, value in each.keys.items()}
    keys |= {"model": "average", "members": [each.keys["model"] for each in members]}
    ending = f", on {SAMPLINGS[sampling]}"
    name = " + ".join(each.name.removesuffix(ending) for each in members) + ending
    return Variant(name, keys, together, members[0].labels)


def some_clips(annotations: Annotations, seed: int) -> np.ndarray:
    """Return the positions of all clips, or of a sample of them, of each class in proportion."""
    size = np.clip(CLIPS_PER_CLASS * len(annotations.class_names), MIN_SAMPLE, MAX_SAMPLE)
    order = np.random.default_rng(seed).permutation(len(annotations))
    by_class = order[np.argsort(annotations.labels[order], kind="stable")]
    places = np.linspace(0, len(by_class) - 1, min(size, len(by_class))).astype(int)
    return np.sort(by_class[places])


def folds_of(labels, groups, seed: int) -> list[tuple]:
    """Return (training, test) positions of three folds, or of fewer if clips or groups are few.

    The clips of a single group are split like those without groups: into the first third of each
    class, the second and the last. Clips whose names follow one another are often of the same
    person or recording, which a random split would have on both sides.
    """
    num_groups = 0 if groups is None else len(set(groups.tolist()))
    most = [NUM_FOLDS, int(np.bincount(labels).max()), num_groups if num_groups > 1 else NUM_FOLDS]
    known, seed = (groups, seed) if num_groups > 1 else (None, None)
    folds = stratified_folds(labels, known, max(2, min(most)), seed)
    return [(train, test) for train, test in folds if len(train) > 1]  # BatchNorm needs two clips


def format_variants(validated: CrossValidation) -> list[str]:
    """Return a line per variant: its score, and how it differs from the best.

    Only the best NUM_SHOWN, and the best of each network on its own, have one.
    """
    shown, networks = [], set()
    for place, variant in enumerate(validated.variants):
        if place < NUM_SHOWN or variant.keys["model"] not in networks | {"average"}:
            shown.append(variant)
        networks.add(variant.keys["model"])
    lines = []
    for variant in shown:
        difference = "the best"
        if variant is not validated.best:
            compared = validated.compare(variant)
            difference = f"{compared.difference:.1f} points less"
            if compared.low is None:
                difference += f" ({compared.method})"
            else:
                is_noise = compared.low <= 0
                difference += f" ({compared.low:+.1f} to {compared.high:+.1f}"
                difference += ": within noise)" if is_noise else ")"
        lines.append(f"{100 * variant.right.mean():5.1f} %  {variant.name}: {difference}")
    if num_others := len(validated.variants) - len(shown):
        lines.append(f"and {num_others} more, not shown")
    return lines

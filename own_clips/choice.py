"""Choose networks and sampling for a folder of clips by cross-validation.

Only training clips are used: short trainings on two thirds of them are scored on the last third,
in turn. The choice is the variant with the highest score.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from clips.annotations import Annotations
from config import FITTED_MODELS, MAP_MODELS, Config
from own_clips.frame_maps import frame_maps
from own_clips.short_trainings import (
    LONG_STEPS,
    STEPS,
    feature_network,
    held_out_scores,
    short_config,
)
from scoring.folds import stratified_folds
from scoring.intervals import Comparison, compare_on_same_clips

MAX_CLIPS = 300  # from which the choice is made; of more, a sample
NUM_FOLDS = 3
NUM_SHOWN = 5
CENTERED = ({"center_features": False}, {"center_features": True})
SAMPLINGS = {"window": "windows", "segments": "whole clips"}


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
    """Short trainings on some clips, each done once."""

    def __init__(self, annotations: Annotations, config: Config, seed: int):
        """Read the clips, and compute their features; config: for the size of frames."""
        self.num_classes = len(annotations.class_names)
        short = short_config(config)
        network = feature_network(short, self.num_classes)
        chosen = some_clips(annotations, seed)
        self.maps = frame_maps(annotations, chosen, network, short)
        self.labels = annotations.labels[self.maps.indices]
        groups = annotations.groups
        self.groups = None if groups is None else groups[self.maps.indices]
        self.folds = folds_of(self.labels, self.groups, seed)

    def run(self, member: str, config: Config, keys: dict, num_steps: int) -> Variant:
        """Cross-validate a network with these keys of its own, after so many steps."""
        short = short_config(config).model_copy(update=keys)
        scores = held_out_scores(
            member,
            self.maps,
            self.labels,
            self.groups,
            self.folds,
            short,
            self.num_classes,
            num_steps,
        )
        centered = " without the mean map" if keys.get("center_features") else ""
        name = f"{member}{centered}, on {SAMPLINGS[config.sampling]}"
        keys = {"model": member, "sampling": config.sampling, **keys}
        return Variant(name, keys, scores, torch.from_numpy(self.labels))


def choose_by_cross_validation(
    annotations: Annotations, configs: list[Config], members: list[str], seed: int
) -> CrossValidation:
    """Return the variants, best first.

    configs: one per sampling. members: the networks to try, alone and averaged; those that see maps
    of a 2D network with and without the mean map of the clip. Of the networks that are trained by
    gradient descent, the best variant is trained for longer, since some learn more slowly.
    """
    trials = Trials(annotations, configs[0], seed)
    todo = [
        (member, config, keys)
        for config in configs
        for member in members
        for keys in (CENTERED if member in MAP_MODELS else ({},))
    ]
    trained = [member for member in members if member not in FITTED_MODELS]
    found = {}
    with tqdm(total=len(todo) + len(trained), desc="choosing", leave=False, disable=None) as bar:

        def run(number, num_steps):
            found[number] = trials.run(*todo[number], num_steps)
            bar.update(1)

        for number in range(len(todo)):
            run(number, STEPS)
        for member in trained:
            same = [number for number, (name, _, _) in enumerate(todo) if name == member]
            run(min(same, key=lambda number: found[number].rank), LONG_STEPS)
    variants = [*found.values(), *averages([*found.values()])]
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
    together = torch.stack([each.log_probabilities for each in members]).logsumexp(0)
    keys = {key: value for each in members for key, value in each.keys.items()}
    keys |= {"model": "average", "members": [each.keys["model"] for each in members]}
    ending = f", on {SAMPLINGS[sampling]}"
    name = " + ".join(each.name.removesuffix(ending) for each in members) + ending
    return Variant(name, keys, together - math.log(len(members)), members[0].labels)


def some_clips(annotations: Annotations, seed: int) -> np.ndarray:
    """Return the positions of at most MAX_CLIPS clips, of each class in proportion."""
    order = np.random.default_rng(seed).permutation(len(annotations))
    by_class = order[np.argsort(annotations.labels[order], kind="stable")]
    places = np.linspace(0, len(by_class) - 1, min(MAX_CLIPS, len(by_class))).astype(int)
    return np.sort(by_class[places])


def folds_of(labels, groups, seed: int) -> list[tuple]:
    """Return (training, test) positions of three folds, or of fewer if clips or groups are few.

    The clips of a single group are split like those without groups.
    """
    num_groups = 0 if groups is None else len(set(groups.tolist()))
    most = [NUM_FOLDS, int(np.bincount(labels).max()), num_groups if num_groups > 1 else NUM_FOLDS]
    folds = stratified_folds(labels, groups if num_groups > 1 else None, max(2, min(most)), seed)
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

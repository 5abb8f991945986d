"""Choose networks and sampling for a folder of clips by cross-validation.

Only training clips are used: short trainings on two thirds of them are scored on the last third,
in turn. The choice is the variant with the highest score.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from clips.annotations import Annotations
from config import Config
from own_clips.frame_maps import frame_maps
from own_clips.short_trainings import feature_network, held_out_scores, short_config
from scoring.folds import stratified_folds
from scoring.intervals import Comparison, compare_on_same_clips

MAX_CLIPS = 300  # from which the choice is made; of more, a sample
NUM_FOLDS = 3
SAMPLINGS = {"window": "windows", "segments": "whole clips"}
# Keys with other values than the defaults, as the table of variants calls them.
WORDS = {
    ("center_features", True): "without the mean map",
    ("global_pool", False): "with its places",
}


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

    def run(self, member: str, config: Config, **keys) -> Variant:
        """Cross-validate a network."""
        short = short_config(config).model_copy(update=keys)
        scores = held_out_scores(
            member, self.maps, self.labels, self.folds, short, self.num_classes
        )
        words = [member, *(words for key, words in WORDS.items() if key in keys.items())]
        name = f"{', '.join(words)}, on {SAMPLINGS[config.sampling]}"
        keys = {"model": member, "sampling": config.sampling} | keys
        return Variant(name, keys, scores, torch.from_numpy(self.labels))


def choose_by_cross_validation(
    annotations: Annotations, configs: list[Config], members: list[str], seed: int
) -> CrossValidation:
    """Return the variants, best first.

    configs: one per sampling. members: the networks to try, alone and averaged. Of eco, centred
    maps and a head with places are tried, too.
    """
    trials = Trials(annotations, configs[0], seed)
    num_trials = len(configs) * (len(members) + ("eco" in members)) + ("eco" in members)
    found = {config.sampling: [] for config in configs}
    with tqdm(total=num_trials, desc="choosing", leave=False, disable=None) as bar:

        def run(member, config, **keys):
            found[config.sampling].append(trials.run(member, config, **keys))
            bar.update(1)

        for config, member in itertools.product(configs, members):
            if member == "eco":
                run("eco", config, center_features=False)
                run("eco", config, center_features=True)
            else:
                run(member, config)
        if "eco" in members:
            best = min(itertools.chain.from_iterable(found.values()), key=_rank_of_eco)
            (config,) = [each for each in configs if each.sampling == best.keys["sampling"]]
            run("eco", config, center_features=best.keys["center_features"], global_pool=False)
    variants = [variant for each in found.values() for variant in with_averages(each)]
    return CrossValidation(sorted(variants, key=lambda variant: variant.rank), trials.groups)


def _rank_of_eco(variant: Variant):
    return (variant.keys["model"] != "eco", *variant.rank)


def with_averages(variants: list[Variant]) -> list[Variant]:
    """Return variants of one sampling, and the mean of the best of each network with others."""
    best = {}
    for variant in sorted(variants, key=lambda variant: variant.rank):
        best.setdefault(variant.keys["model"], variant)
    averages = []
    for size in range(2, len(best) + 1):
        for members in itertools.combinations(best.values(), size):
            together = torch.stack([each.log_probabilities for each in members]).logsumexp(0)
            keys = {key: value for each in members for key, value in each.keys.items()}
            names = [each.keys["model"] for each in members]
            keys |= {"model": "average", "members": names}
            sampling = SAMPLINGS[keys["sampling"]]
            name = " + ".join(each.name.removesuffix(f", on {sampling}") for each in members)
            averages.append(
                Variant(
                    f"{name}, on {sampling}", keys, together - math.log(size), members[0].labels
                )
            )
    return variants + averages


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
    """Return a line per variant: its score, and how it differs from the best."""
    lines = []
    for variant in validated.variants:
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
    return lines

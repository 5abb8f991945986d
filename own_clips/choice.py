"""Choose networks and sampling for a folder of clips by cross-validation.

Only training clips are used: short trainings on two thirds of them are scored on the last third,
in turn. They use the features of a frozen 2D network, computed once, so each takes seconds.
Shapes: N clips, S members of an average.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from clips.annotations import Annotations
from config import Config
from model import NETWORKS, build_average, build_model
from networks.average import Average
from networks.frame_networks import FrameNetwork
from networks.inference import fold_batchnorm
from networks.linear import LinearModel
from own_clips.frame_maps import FrameMaps, frame_maps
from scoring.folds import stratified_folds
from scoring.intervals import compare_on_same_clips
from training.optimization import training_loss
from training.pretrained import load_pretrained

MAX_CLIPS = 300  # of which the choice is made; of more, a sample
NUM_FOLDS = 3
# Of each short training. The ranking of variants needs no more: docs/results.md.
STEPS, BATCH_SIZE, LR, WEIGHT_DECAY = 120, 16, 3e-3, 0.05
HEIGHT, SMALL_HEIGHT = 64, 28  # pixels of a frame, for 2D networks and for the others
MEMBERS = ("eco", "conv3d", "linear")


class Variant(NamedTuple):
    """A way to train, and how clips were classified by networks that were not trained on them."""

    members: tuple[str, ...]
    sampling: str
    log_probabilities: torch.Tensor  # float64 [N, classes]
    labels: torch.Tensor  # int64 [N]

    @property
    def right(self) -> np.ndarray:
        return (self.log_probabilities.argmax(1) == self.labels).numpy().astype(float)

    @property
    def loss(self) -> float:
        return float(nn.functional.nll_loss(self.log_probabilities, self.labels))

    @property
    def name(self) -> str:
        what = {"window": "windows", "segments": "the whole clip"}[self.sampling]
        return f"{' + '.join(self.members)} on {what}"

    @property
    def keys(self) -> dict[str, Any]:
        """Return the config keys that train it."""
        keys = {"sampling": self.sampling, "model": self.members[0]}
        if len(self.members) > 1:
            keys |= {"model": "average", "members": list(self.members)}
        return keys


def cross_validate(
    annotations: Annotations, configs: list[Config], members=MEMBERS, seed: int = 0
) -> list[Variant]:
    """Return the variants, the best first; prints a table.

    configs: one for each sampling. members: the networks to try, alone and averaged.
    """
    chosen = some_clips(annotations, seed)
    labels, groups = annotations.labels, annotations.groups
    network = feature_network(configs[0], len(annotations.class_names))
    maps = frame_maps(annotations, chosen, network, short_config(configs[0]))
    labels = labels[maps.indices]
    groups = None if groups is None else groups[maps.indices]
    folds = stratified_folds(labels, groups, num_folds(labels, groups), seed)
    variants = []
    with tqdm(
        total=len(configs) * len(members) * len(folds),
        desc="cross-validation",
        leave=False,
        disable=None,
    ) as bar:
        for config in map(short_config, configs):
            scores = {
                member: held_out(member, network, maps, labels, folds, config, bar)
                for member in members
            }
            variants += averages(scores, config.sampling, labels)
    return sorted(variants, key=lambda variant: (-variant.right.mean(), variant.loss))


def some_clips(annotations: Annotations, seed: int) -> np.ndarray:
    """Return the positions of at most MAX_CLIPS clips, of each class in proportion."""
    order = np.random.default_rng(seed).permutation(len(annotations))
    by_class = order[np.argsort(annotations.labels[order], kind="stable")]
    places = np.linspace(0, len(by_class) - 1, min(MAX_CLIPS, len(by_class))).astype(int)
    return np.sort(by_class[places])


def num_folds(labels, groups) -> int:
    """Return the number of folds: three, or fewer if there are fewer clips or groups."""
    largest_class = int(np.bincount(labels).max())
    return max(2, min(NUM_FOLDS, largest_class, *([] if groups is None else [len(set(groups))])))


def short_config(config: Config) -> Config:
    """Return the config of the short trainings, with small frames."""
    height, width = config.crop
    keys = {
        "model": "average",
        "members": ["eco", "conv3d", "linear"],
        "frame_height": HEIGHT,
        "crop_size": [HEIGHT, round(HEIGHT * width / height)],
        "small_frame_height": SMALL_HEIGHT,
    }
    return config.model_copy(update=keys)


def feature_network(config: Config, num_classes: int) -> Average:
    """Return the network whose `frame_features` are what the short trainings see."""
    config = short_config(config)
    network = build_model(config, num_classes)
    load_pretrained(network, NETWORKS["average"].head, config, ())
    return fold_batchnorm(network)


def held_out(member, network, maps: FrameMaps, labels, folds, config: Config, bar) -> torch.Tensor:
    """Return log probabilities of each clip, by a network that was not trained on it.

    float64 [N, classes].
    """
    num_classes = network.members["linear"].classifier.out_features
    found = torch.zeros(len(labels), num_classes, dtype=torch.float64)
    for number, (train, test) in enumerate(folds):
        torch.manual_seed(number)
        head = Head(member, network, config, num_classes)
        if member == "linear":
            fit_linear(head, maps, labels, train, config)
        else:
            train_head(head, maps, labels, train, config, np.random.default_rng(number))
        found[test] = log_probabilities(head, maps, test, config)
        bar.update(1)
    return found


class Head(nn.Module):
    """One member of an average, which gets the features of frames of the whole average."""

    def __init__(self, member, network: Average, config: Config, num_classes):
        super().__init__()
        self.split = network.split_features
        self.network = build_average(
            config.model_copy(update={"members": [member]}), num_classes
        ).members[member]

    def forward(self, features):
        small, maps = self.split(features)
        if isinstance(self.network, FrameNetwork):
            return self.network.classify_features(maps)
        return self.network(small)


def train_head(head: Head, maps: FrameMaps, labels, train, config: Config, rng) -> None:
    """Train for a fixed number of steps, with a one-cycle learning rate."""
    num_steps = min(STEPS, 40 * math.ceil(len(train) / BATCH_SIZE))
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=num_steps + 1)
    order = itertools.chain.from_iterable(rng.permutation(train) for _ in itertools.count())
    size = min(BATCH_SIZE, len(train))
    head.train()
    for _ in range(num_steps):
        batch = list(itertools.islice(order, size))
        logits = head(maps.train_clips(batch, config, rng))
        loss = training_loss(logits, torch.from_numpy(labels[batch]), config) / size
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def fit_linear(head: Head, maps: FrameMaps, labels, train, config: Config) -> None:
    """Fit the linear model to the evaluation windows of the training clips."""
    small, _ = head.split(maps.eval_clips(train, config))
    linear: LinearModel = head.network
    linear.fit(linear.inputs(small).numpy(), np.repeat(labels[train], config.nclips))


@torch.inference_mode()
def log_probabilities(head: Head, maps: FrameMaps, chosen, config: Config) -> torch.Tensor:
    """Return the logarithm of the mean probability over each clip's windows, [N, classes]."""
    head.eval()
    parts = [
        head(maps.eval_clips(part, config)).double().log_softmax(1)
        for part in np.array_split(chosen, math.ceil(len(chosen) / BATCH_SIZE))
    ]
    windows = torch.cat(parts).unflatten(0, (len(chosen), config.nclips))
    return windows.logsumexp(1) - math.log(config.nclips)


def averages(scores: dict[str, torch.Tensor], sampling: str, labels) -> list[Variant]:
    """Return the members and the mean of each subset of them as variants."""
    labels, variants = torch.from_numpy(labels), []
    for size in range(1, len(scores) + 1):
        for names in itertools.combinations(scores, size):
            together = torch.stack([scores[name] for name in names]).logsumexp(0) - math.log(size)
            variants.append(Variant(names, sampling, together, labels))
    return variants

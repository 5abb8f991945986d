"""Short trainings for the choice of a recipe: seconds each, on features that are computed once.

Shapes: N clips, K windows per clip, T frames, D numbers per frame.
"""

import copy
import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from config import Config
from model import NETWORKS, build_model
from networks.average import Average
from networks.frame_networks import FrameNetwork
from networks.ridge import MAX_WINDOWS, balanced_weights
from own_clips.frame_maps import FrameMaps
from system.device import to_device
from training.optimization import training_loss
from training.pretrained import copy_weights, find_weights, read_source, with_normalization

STEPS, LONG_STEPS, STEPS_PER_CLIP = 40, 120, 2.5  # the first two at most
BATCH_SIZE, LR, WEIGHT_DECAY, LARGEST_NORM = 16, 3e-3, 0.05, 5.0
HEIGHT, SMALL_HEIGHT = 64, 28  # pixels of a frame, for 2D networks and for the others
FEW_CLIPS = Path(__file__).parent.parent / "configs" / "few_clips.json"  # the recipe of conv3d
COMPARED = ["eco", "kernel_ridge", "conv3d", "linear"]


def short_config(config: Config) -> Config:
    """Return the config of short trainings on the config's clips, with small frames."""
    height, width = config.crop
    keys = {
        "model": "average",
        "members": COMPARED,
        "frame_height": HEIGHT,
        "crop_size": [HEIGHT, round(HEIGHT * width / height)],
        "small_frame_height": SMALL_HEIGHT,
        "freeze": True,  # whatever the run will train: features are computed once
        "pretrained_lr_scale": 1.0,
    }
    few_clips = json.loads(FEW_CLIPS.read_text())
    keys |= {key: few_clips[key] for key in ("block_widths", "head_widths")}
    return with_normalization(config.model_copy(update=keys), None)


def feature_network(config: Config, num_classes: int) -> Average:
    """Return the network whose `frame_features` short trainings see; config: a short one.

    Unlike `load_pretrained`, this is for one process, the main one.
    """
    source, network = find_weights(config), build_model(config, num_classes)
    network = to_device(network, torch.device("cpu"))
    copy_weights(network, NETWORKS["average"].head, config, (), source, read_source(source))
    return network.eval()


class SeededDropout(nn.Dropout):
    """Dropout with random numbers of its own: other threads draw, too."""

    def __init__(self, p: float, seed: int):
        super().__init__(p)
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, values):
        if not self.training:
            return values
        keep = torch.empty_like(values).bernoulli_(1 - self.p, generator=self.generator)
        return values * keep / (1 - self.p)


class Head(nn.Module):
    """A copy of one member of an average, on the features of the whole average."""

    def __init__(self, whole: Average, member: str, seed: int):
        """Set random weights: those of the seed."""
        super().__init__()
        self.split, self.network = whole.split_features, copy.deepcopy(whole.members[member])
        torch.manual_seed(seed)
        for module in list(self.network.modules()):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(module, name, SeededDropout(child.p, seed))

    def input(self, features):
        """Return what the member sees of the features: maps or small clips."""
        small, maps = self.split(features)
        return maps if isinstance(self.network, FrameNetwork) else small

    def forward(self, features):
        if isinstance(self.network, FrameNetwork):
            return self.network.classify_features(self.input(features))
        return self.network(self.input(features))


def held_out_scores(
    head: Head, maps: FrameMaps, labels, groups, fold, config: Config, num_steps: int, seed: int
) -> torch.Tensor:
    """Train on one part of the clips; return log probabilities of the other, [N, classes].

    labels: int [N]; groups: str [N] or None; fold: (training, test) positions; num_steps: of a
    training, at most.
    """
    train, test = fold
    if hasattr(head.network, "fit"):
        fit_head(head, maps, labels, groups, train, config)
    else:
        train_head(head, maps, labels, train, config, num_steps, np.random.default_rng(seed))
    return log_probabilities(head, maps, test, config)


@torch.inference_mode()
def fit_head(head: Head, maps: FrameMaps, labels, groups, train, config: Config) -> None:
    """Fit a member in closed form, on at most MAX_WINDOWS windows."""
    inputs = torch.cat(
        [
            head.network.inputs(head.input(maps.eval_clips(part, config)))
            for part in np.array_split(train, math.ceil(len(train) / BATCH_SIZE))
        ]
    ).numpy()
    clips = np.repeat(train, config.nclips)
    chosen = np.linspace(0, len(clips) - 1, min(len(clips), MAX_WINDOWS)).astype(int)
    clips = clips[chosen]
    groups = None if groups is None else groups[clips]
    head.network.fit(inputs[chosen], labels[clips], clips, groups, config.balanced_sampling)


def train_head(
    head: Head, maps: FrameMaps, labels, train, config: Config, num_steps: int, rng
) -> None:
    """Train for a fixed number of steps, at most, with a one-cycle learning rate."""
    num_steps = min(num_steps, math.ceil(STEPS_PER_CLIP * len(train)))
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=num_steps + 1)
    order = itertools.chain.from_iterable(
        epoch_of(train, labels, config, rng) for _ in itertools.count()
    )
    size = min(BATCH_SIZE, len(train))
    head.train()
    for _ in range(num_steps):
        batch = list(itertools.islice(order, size))
        logits = head(maps.train_clips(batch, config, rng))
        loss = training_loss(logits, torch.from_numpy(labels[batch]), config.label_smoothing) / size
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), LARGEST_NORM)
        optimizer.step()
        schedule.step()


def epoch_of(train, labels, config: Config, rng) -> np.ndarray:
    """Return the training clips in a random order; with `balanced_sampling`, drawn anew."""
    if not config.balanced_sampling:
        return rng.permutation(train)
    weights = balanced_weights(labels[train])
    return rng.choice(train, len(train), p=weights / weights.sum())


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

"""Logits of one set by the networks of checkpoints (`--eval_only`, `--ensemble`).

The data, and how they are evaluated, are the config's. A single network is an ensemble of one.
Shapes: N clips.
"""

from functools import partial
from typing import NamedTuple

import torch

from clips.bad_clips import BadClips
from config import Config
from data_loader import build_loader
from scoring.evaluation import compute_logits, format_scores, log_mean_probability, score
from scoring.loading import LoadedNetwork, load_network
from scoring.results import Origin
from training.resuming import which_weights


class Evaluation(NamedTuple):
    """The logits of a set, and which weights they are of."""

    logits: torch.Tensor  # float32 [N, classes]
    origin: Origin
    weights: str  # in words


def evaluate_checkpoints(paths, config: Config, class_names, annotations, device, set_name,
                         is_ensemble) -> Evaluation:
    """Evaluate the network of each checkpoint.

    is_ensemble: each network gets the clips as its own checkpoint says, and the logits are the
    logarithm of the mean probabilities; what each network reaches alone is printed where the set
    has labels. Raises UserError as `load_network`.
    """
    all_logits, origins, weights = [], [], ""
    for path in paths:
        loaded = load_network(path, device, config, class_names, takes_own_input=is_ensemble)
        logits = network_logits(loaded, annotations, device, set_name)
        if is_ensemble and annotations.has_labels:
            print(f"alone: {format_scores(score(logits, torch.from_numpy(annotations.labels)))}")
        all_logits.append(logits)
        origins.append(Origin.of(loaded.config, [loaded.checkpoint]))
        weights = which_weights(config, loaded.checkpoint)
    if not is_ensemble:
        return Evaluation(logits, origins[0], weights)
    networks = [network for origin in origins for network in origin.networks]
    return Evaluation(
        log_mean_probability(torch.stack(all_logits), dim=0),
        origins[0].model_copy(update={"networks": networks}),
        f"the mean of {len(networks)} networks",
    )


def network_logits(loaded: LoadedNetwork, annotations, device, set_name) -> torch.Tensor:
    """Logits float32 [N, classes] of one network; tolerated unreadable clips get NaN."""
    loader = build_loader(annotations, loaded.config, False, device)
    bad_clips = BadClips(loaded.config)
    note = partial(bad_clips.note, annotations=annotations, set_name=set_name, epoch=1)
    num_classes = len(loaded.classes)
    logits = compute_logits(loaded.network, num_classes, loader, device, set_name, note)
    bad_clips.report(annotations, set_name, epoch=1)
    return logits

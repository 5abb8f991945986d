"""Logits of one set by the networks of checkpoints (`--eval_only`, `--ensemble`, `--stack`).

The config determines the data and how they are evaluated. A single network is an ensemble of one.
Shapes: M networks, N clips.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from clips.bad_clips import BadClips
from config import Config
from data_loader import build_loader
from scoring.evaluation import (
    compute_logits,
    format_with_intervals,
    log_mean_probability,
    right_clips,
    score,
)
from scoring.intervals import compare_on_same_clips
from scoring.loading import LoadedNetwork, load_network
from scoring.results import Origin
from scoring.stack import (
    STACK_FILE,
    fit_stack,
    is_stack,
    member,
    read_stack,
    refuse_stacks,
    write_stack,
)
from system import processes
from training.resuming import which_weights


class Evaluation(NamedTuple):
    """The logits of a set, and the weights that computed them."""

    logits: torch.Tensor  # float32 [N, classes]
    origin: Origin
    weights: str  # description of the weights


def evaluate_checkpoints(
    paths, config: Config, class_names, annotations, device, set_name, is_ensemble
) -> Evaluation:
    """Evaluate the network of each checkpoint, or those of a stack.

    is_ensemble: each network gets its input according to its checkpoint, and the logits are the
    logarithm of the mean probabilities. If the set has labels, prints each network's scores.
    Raises UserError like `load_network` and `read_stack`.
    """
    if is_ensemble:
        refuse_stacks(paths)
    elif is_stack(paths[0]):
        return _evaluate_stack(paths[0], config, class_names, annotations, device, set_name)
    else:
        loaded = load_network(paths[0], device, config, class_names)
        logits = network_logits(loaded, annotations, device, set_name)
        origin = Origin.of(loaded.config, [loaded.checkpoint])
        return Evaluation(logits, origin, which_weights(config, loaded.checkpoint))
    all_logits, origin = _each_network(paths, config, class_names, annotations, device, set_name)
    logits = log_mean_probability(all_logits, dim=0)
    return Evaluation(logits, origin, f"the mean of {len(paths)} networks")


def _evaluate_stack(path, config, class_names, annotations, device, set_name) -> Evaluation:
    stack, paths = processes.broadcast_from_main(read_stack, path, class_names, config.labels_csv)
    all_logits, origin = _each_network(paths, config, class_names, annotations, device, set_name)
    ids = annotations.ids.tolist() if annotations.has_labels else []
    num_known = sum(clip_id in stack.folds for clip_id in ids)
    if num_known:
        print(
            f"the stack was fitted on {num_known:,} of these {len(ids):,} clips: each of them is "
            "scored by weights that were fitted without it (cross-validation)"
        )
    origin = origin.model_copy(update={"stack": str(path)})
    return Evaluation(
        stack.logits(all_logits, ids), origin, f"a stack of {len(paths)} networks ({path})"
    )


def _each_network(paths, config, class_names, annotations, device, set_name):
    """Return the logits of all networks, [M, N, classes], and their origin.

    If the set has labels, prints each network's scores.
    """
    all_logits, origins = [], []
    for path in paths:
        loaded = load_network(path, device, config, class_names, takes_own_input=True)
        logits = network_logits(loaded, annotations, device, set_name)
        if annotations.has_labels:
            print(f"alone: {_scores(logits, annotations)}")
        all_logits.append(logits)
        origins.append(Origin.of(loaded.config, [loaded.checkpoint]))
    networks = [network for origin in origins for network in origin.networks]
    return torch.stack(all_logits), origins[0].model_copy(update={"networks": networks})


def _scores(logits, annotations) -> str:
    return format_with_intervals(logits, torch.from_numpy(annotations.labels), annotations.groups)


def network_logits(loaded: LoadedNetwork, annotations, device, set_name) -> torch.Tensor:
    """Return logits float32 [N, classes] of one network; NaN for tolerated unreadable clips."""
    loader = build_loader(annotations, loaded.config, False, device)
    bad_clips = BadClips(loaded.config)
    record = partial(bad_clips.record, annotations=annotations, set_name=set_name, epoch=1)
    num_classes = len(loaded.classes)
    logits = compute_logits(loaded.network, num_classes, loader, device, set_name, record)
    bad_clips.report(annotations, set_name, epoch=1, training=False)
    return logits


# --- stacking ----------------------------------------------------------------------------------


def stack_checkpoints(paths, config: Config, class_names, annotations, device, folder) -> None:
    """Fit a stack of the networks on the set, print its scores, and write it to `folder`.

    Every process must call this. Raises UserError like `load_network`, and if a class has too few
    clips.
    """
    refuse_stacks(paths)
    all_logits, _ = _each_network(paths, config, class_names, annotations, device, "validation")
    if not processes.is_main():
        return
    members = [member(path, folder) for path in paths]
    stack = fit_stack(all_logits, annotations, class_names, members)
    logits = stack.logits(all_logits, annotations.ids.tolist())
    mean, labels = log_mean_probability(all_logits, dim=0), torch.from_numpy(annotations.labels)
    print(f"mean of {len(paths)} networks: {_scores(mean, annotations)}")
    print(
        f"stack, cross-validated in {len(stack.fold_layers)} folds: {_scores(logits, annotations)}"
    )
    best = max(range(len(paths)), key=lambda number: score(all_logits[number], labels)["top1"])
    for name, other in (
        ("the mean", mean),
        (f"the best network ({paths[best]})", all_logits[best]),
    ):
        found = compare_on_same_clips(
            right_clips(logits, labels), right_clips(other, labels), annotations.groups
        )
        print(f"stack against {name}: {found}")
    write_stack(Path(folder) / STACK_FILE, stack)
    print(f"written to {Path(folder) / STACK_FILE}")

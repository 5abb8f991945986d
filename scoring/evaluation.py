"""Scores of a network on a set of clips.

Shapes: N clips, K windows per clip (`nclips` x `ncrops`).
"""

import math
import re
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from clips.batches import batches_of
from model import normalize_clips, views_of
from networks.inference import fold_batchnorm
from scoring.intervals import Interval, accuracy_interval, balanced_interval
from system import processes
from system.device import evaluating
from system.errors import UserError, summarize
from utils import accuracy_ranks, top_k_correct


def compute_logits(model, num_classes, loader, device, title, on_batch) -> torch.Tensor:
    """Return the logits of all clips of the loader's set, float32 [N, classes] in CSV order.

    The logits of a clip with several windows are the logarithm of their mean probabilities.
    on_batch: called with each batch; may raise. Tolerated unreadable clips get NaN logits.
    Each process computes a part, and all return all logits, on the CPU. Raises UserError if the
    network's logits of a clip contain NaN or inf.
    """
    data_set = loader.dataset
    config = data_set.config
    processes.copy_buffers_from_main(model)
    model = fold_batchnorm(model)
    logits = torch.zeros(len(data_set), num_classes, device=device)
    bad = []
    silent = None if processes.is_main() else True
    for batch in tqdm(batches_of(loader), title, len(loader), leave=False, disable=silent):
        processes.stop_together()
        on_batch(batch)
        if len(batch.indices):
            logits[batch.indices.to(device)] = clip_logits(
                model, batch.clips.flatten(0, 1), len(batch.indices), device, config
            )
        bad += [clip.index for clip in batch.bad]
    logits = logits.cpu()
    _check_logits(logits, data_set.annotations)
    logits[bad] = torch.nan
    return processes.all_sum(logits)


def clip_logits(network, windows, num_clips, device, config) -> torch.Tensor:
    """Return the logits of clips, float32 [N, classes].

    windows: uint8 [N * K, T, H, W, C]; the K windows of a clip follow each other, and its logits
    are the logarithm of their mean probabilities, and of those of their `nviews` views.
    """
    inputs = normalize_clips(windows, device, config)
    with evaluating(device, config):
        if not windows.is_floating_point():  # features are those of all views
            inputs = views_of(inputs, config.nviews)
        logits = network(inputs).float()  # [N * K, classes]
    if len(logits) > num_clips:
        logits = log_mean_probability(logits.view(num_clips, -1, logits.shape[1]), dim=1)
    return logits


def log_mean_probability(logits, dim) -> torch.Tensor:
    """Return the logarithm of the mean probability over `dim`; the last dimension is the classes.

    It is computed from logarithms, since a probability that rounds to 0 would give an inf loss.
    """
    return logits.log_softmax(-1).logsumexp(dim) - math.log(logits.shape[dim])


def _check_logits(logits, annotations):
    is_wrong = ~logits.isfinite().all(dim=1)
    if is_wrong.any():
        raise UserError(
            "the network's logits contain NaN or inf for the clips "
            f"{summarize(annotations.ids[is_wrong.numpy()])}; lower lr, or use an earlier "
            "checkpoint"
        )


def score(logits, labels) -> dict[str, float]:
    """Return mean loss, top-1 and top-5 in percent. logits: [N, classes]; labels: int64 [N].

    Clips with NaN logits are ignored.
    """
    logits, labels = _with_logits(logits, labels)
    loss = F.cross_entropy(logits.double(), labels).item()
    return {"loss": loss} | {
        f"top{k}": 100 * top_k_correct(logits, labels, k).double().mean().item()
        for k in accuracy_ranks(logits.shape[1])
    }


def balanced_accuracy(logits, labels) -> float:
    """Return the mean of the accuracies of all classes that have clips, in percent.

    It is top-1 if each class has equally many clips. Clips with NaN logits are ignored.
    """
    matrix = confusion_matrix(logits, labels)
    totals, right = matrix.sum(1), np.diag(matrix)
    has_clips = totals > 0
    if not has_clips.any():
        return math.nan
    return 100 * float((right[has_clips] / totals[has_clips]).mean())


def right_clips(logits, labels) -> np.ndarray:
    """Return 1 for each correctly classified clip, 0 for others, NaN for NaN logits. [N]"""
    right = (logits.argmax(1) == labels).double()
    return right.masked_fill(logits[:, 0].isnan(), torch.nan).numpy()


def confusion_matrix(logits, labels) -> np.ndarray:
    """Count clips by [true class, predicted class]; clips with NaN logits are ignored."""
    logits, labels = _with_logits(logits, labels)
    num_classes = logits.shape[1]
    pairs = labels.numpy() * num_classes + logits.argmax(1).numpy()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


class Bin(NamedTuple):
    """The clips whose confidence is in one interval of 10 %."""

    low: int  # percent
    count: int
    confidence: float  # mean, percent
    right: float  # percent of the clips


def calibration(logits, labels) -> tuple[float, list[Bin]]:
    """Return the expected calibration error, in percent, and the bins that have clips.

    The error is the mean difference between a bin's confidence and its accuracy, weighted by its
    number of clips; it is 0 if they are always equal. (Guo et al., arXiv 1706.04599)
    """
    logits, labels = _with_logits(logits, labels)
    confidences, classes = logits.double().softmax(1).max(1)
    numbers = (confidences * 10).long().clamp(max=9)
    bins = []
    for number in numbers.unique().tolist():
        is_in = numbers == number
        right = (classes == labels)[is_in].double().mean().item()
        mean = confidences[is_in].mean().item()
        bins.append(Bin(10 * number, int(is_in.sum()), 100 * mean, 100 * right))
    distances = [each.count * abs(each.confidence - each.right) for each in bins]
    return sum(distances) / max(1, len(labels)), bins


def _with_logits(logits, labels):
    known = ~logits[:, 0].isnan()
    return logits[known], labels[known]


def score_intervals(logits, labels, groups=None) -> dict[str, Interval]:
    """Return the 95 % interval of each accuracy of `score`; groups: str [N], None: unknown."""
    known = ~logits[:, 0].isnan()
    logits, labels = logits[known], labels[known]
    groups = None if groups is None else groups[known.numpy()]
    return {
        f"top{k}": accuracy_interval(top_k_correct(logits, labels, k).numpy(), groups)
        for k in accuracy_ranks(logits.shape[1])
    }


def class_intervals(logits, labels, groups=None) -> list[Interval | None]:
    """Return the 95 % interval of each class's accuracy; None for a class without clips."""
    right, labels = right_clips(logits, labels), labels.numpy()
    found = []
    for label in range(logits.shape[1]):
        in_class = (labels == label) & ~np.isnan(right)
        own_groups = None if groups is None else groups[in_class]
        found.append(accuracy_interval(right[in_class], own_groups) if in_class.any() else None)
    return found


def method_of_classes(groups) -> str:
    """Describe how `class_intervals` computes its intervals."""
    if groups is None:
        return "Wilson"
    return (
        "Clopper-Pearson at the effective number of clips, from the groups of each class; "
        "Wilson for a class of one group"
    )


def format_scores(scores: dict[str, float], intervals: dict[str, Interval] | None = None) -> str:
    """Return `loss 0.1230   top-1 95.00 %   top-5 100.00 %`, with intervals in brackets."""
    words = [f"loss {scores['loss']:.4f}"]
    for name, value in scores.items():
        if re.fullmatch(r"top\d+", name):
            interval = f" ({intervals[name]})" if intervals else ""
            words.append(f"{name.replace('top', 'top-')} {value:.2f} %{interval}")
    return "   ".join(words)


def format_balanced(logits, labels, groups=None) -> str:
    """Return `61.30 % (50.1 to 70.2)`, the balanced accuracy with its 95 % interval.

    There is none for clips in groups, whose classes are not independent.
    """
    known = ~logits[:, 0].isnan()
    interval = ""
    if known.any():
        logits, labels = logits[known], labels[known]
        interval = " (no interval for clips in groups)"
        if groups is None:
            right = right_clips(logits, labels)
            interval = f" ({balanced_interval(right, labels.numpy())})"
    return f"{balanced_accuracy(logits, labels):.2f} %{interval}"


def format_with_intervals(logits, labels, groups=None) -> str:
    """Return the scores with their intervals and the method of these.

    The balanced accuracy is left out if it is top-1, as where each class has equally many clips.
    """
    intervals, scores = score_intervals(logits, labels, groups), score(logits, labels)
    text = format_scores(scores, intervals)
    if f"{balanced_accuracy(logits, labels):.2f}" != f"{scores['top1']:.2f}":
        text += f"   balanced accuracy {format_balanced(logits, labels, groups)}"
    return f"{text}   95 % intervals: {intervals['top1'].method}"


def last_and_best(history: list[dict]) -> str:
    """Return the validation top-1 of the last epoch, with its interval, and of the best one.

    The best of many epochs is an optimistic estimate, since it was chosen by its score.
    """
    scored = [row for row in history if math.isfinite(row.get("val_top1", math.nan))]
    if not scored:
        return "no epoch"
    last, best = scored[-1], max(scored, key=lambda row: row["val_top1"])
    interval = ""
    if "val_top1_low" in last:
        interval = f" (95 % interval {last['val_top1_low']:.1f} to {last['val_top1_high']:.1f})"
    return (
        f"validation top-1 {last['val_top1']:.2f} %{interval} after the last epoch; best of "
        f"{len(scored)} epochs: {best['val_top1']:.2f} % (epoch {best['epoch']:g})"
    )

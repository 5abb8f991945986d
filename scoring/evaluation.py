"""Scores of a network on a set of clips.

Shapes: N clips, K windows per clip (`nclips` x `ncrops`).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from clips.batches import batches_of
from networks.inference import for_inference
from system import processes
from system.device import evaluating, to_network_input
from system.errors import UserError, first_few
from utils import accuracy_ranks, top_k_correct


def compute_logits(model, loader, device, title, note_bad_clips) -> torch.Tensor:
    """Logits float32 [N, classes] of every clip of the loader's set, in CSV order, on the CPU.

    Several windows of a clip are averaged as probabilities; their logarithm serves as logits.
    note_bad_clips: called with each batch; clips that it lets pass have NaN for logits.
    With several processes each computes its part, and all get the whole. Raises UserError if the
    network itself gives NaN for a clip.
    """
    data_set = loader.dataset
    config = data_set.config
    processes.copy_buffers_from_main(model)
    model = for_inference(model)
    logits = torch.zeros(len(data_set), model.num_classes, device=device)
    bad = []
    silent = None if processes.is_main() else True
    for batch in tqdm(batches_of(loader), title, len(loader), leave=False, disable=silent):
        processes.stop_together()
        note_bad_clips(batch)
        if len(batch.indices):
            windows = to_network_input(batch.clips.flatten(0, 1), device, config)
            with evaluating(device, config):
                outputs = model(windows).float()  # [N * K, classes]
            if config.windows_per_video > 1:
                outputs = outputs.view(len(batch.indices), config.windows_per_video, -1)
                outputs = log_mean_probability(outputs, dim=1)
            logits[batch.indices.to(device)] = outputs
        bad += [clip.index for clip in batch.bad]
    logits = logits.cpu()
    _check_logits(logits, data_set.annotations)
    logits[bad] = torch.nan
    return processes.all_sum(logits)


def log_mean_probability(logits, dim) -> torch.Tensor:
    """The logarithm of the probabilities' mean over `dim`; the last dimension is the classes.

    Computed from logarithms, since a probability that rounds to 0 would give a loss of inf.
    """
    return logits.log_softmax(-1).logsumexp(dim) - math.log(logits.shape[dim])


def _check_logits(logits, annotations):
    spoilt = logits.isnan().any(dim=1)
    if spoilt.any():
        raise UserError(
            f"the network computes no numbers but NaN for the clips "
            f"{first_few(annotations.ids[spoilt.numpy()])}; lower lr, or take an earlier checkpoint"
        )


def score(logits, labels) -> dict[str, float]:
    """Mean loss, top-1 and top-5 in percent. logits: [N, classes]; labels: int64 [N].

    Clips without logits (NaN) do not count.
    """
    logits, labels = _with_logits(logits, labels)
    loss = F.cross_entropy(logits.double(), labels).item()
    return {"loss": loss} | {
        f"top{k}": 100 * top_k_correct(logits, labels, k).double().mean().item()
        for k in accuracy_ranks(logits.shape[1])
    }


def confusion_matrix(logits, labels) -> np.ndarray:
    """Counts [true class, predicted class] of the clips that have logits."""
    logits, labels = _with_logits(logits, labels)
    num_classes = logits.shape[1]
    pairs = labels.numpy() * num_classes + logits.argmax(1).numpy()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _with_logits(logits, labels):
    known = ~logits[:, 0].isnan()
    return logits[known], labels[known]


# --- printed -----------------------------------------------------------------------------------


def format_scores(scores: dict[str, float]) -> str:
    """`loss 0.123   top-1 95.00 %   top-5 100.00 %`"""
    accuracies = [f"{name.replace('top', 'top-')} {value:.2f} %"
                  for name, value in scores.items() if name.startswith("top")]
    return "   ".join([f"loss {scores['loss']:.4f}", *accuracies])

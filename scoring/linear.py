"""Fit linear models, alone or as members of `average`, before training."""

import numpy as np
import torch
from torch import nn

from clips.annotations import Annotations
from clips.batches import ClipKey, batches_of
from data_loader import VideoFolder, batch_loader
from model import normalize_clips
from networks.average import Average
from networks.linear import LinearModel
from system import processes
from training.run import Run

MAX_CLIPS = 2000  # more change the fit little


def fit_linear_models(run: Run, train_set: Annotations) -> None:
    """Fit the linear models of a new run's network; print the number of clips.

    Every process must call this; the main one reads the training clips.
    """
    linear = _linear_models(run.model)
    if not linear:
        return

    def fit():
        inputs, labels = _inputs(run, train_set)
        linear[0].fit(inputs, labels)
        print(f"linear model: fitted on {len(labels):,} windows of the training clips", flush=True)
        return {name: value.cpu() for name, value in linear[0].state_dict().items()}

    values = processes.broadcast_from_main(fit)
    for model in (run.model, *([run.average.module] if run.average else [])):
        _linear_models(model)[0].load_state_dict(values)


def _linear_models(model: nn.Module) -> list[LinearModel]:
    return [module for module in model.modules() if isinstance(module, LinearModel)]


def _inputs(run: Run, annotations: Annotations) -> tuple[np.ndarray, np.ndarray]:
    """Return the linear model's inputs, float32 [N, D], and labels, as evaluation sees clips."""
    model, config = run.model, run.config
    (linear,) = _linear_models(model)
    chosen = np.linspace(0, len(annotations) - 1, min(len(annotations), MAX_CLIPS)).astype(int)
    keys = [ClipKey(0, int(index)) for index in chosen]
    size = config.videos_per_eval_batch
    batches = [keys[start : start + size] for start in range(0, len(keys), size)]
    loader = batch_loader(VideoFolder(annotations, config, False), batches, run.device)
    inputs, labels = [], []
    with torch.no_grad():
        for batch in batches_of(loader):
            clips = normalize_clips(batch.clips.flatten(0, 1), run.device, config)
            if isinstance(model, Average):
                clips = model.without_background(model.small_clips(clips))
            inputs.append(linear.inputs(clips).cpu().numpy())
            labels.append(np.repeat(batch.labels.numpy(), config.windows_per_video))
    return np.concatenate(inputs), np.concatenate(labels)

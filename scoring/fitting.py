"""Fit ridge regressions, alone or as members of `average`, before training."""

import numpy as np
import torch
from tqdm import tqdm

from clips.batches import ClipKey, batches_of
from data_loader import VideoFolder, batch_loader
from model import normalize_clips
from networks.average import Average
from networks.ridge import MAX_WINDOWS, KernelRidge, LinearModel, fitted_tensors
from system import processes
from training.run import Run

MAX_CLIPS = 2000  # more change a linear model little
NUM_VERSIONS = 6  # of each clip, for a kernel model, if `feature_versions` does not say


def fit_ridge_models(run: Run, train_loader) -> None:
    """Fit the ridge regressions of a new run's network; print on how many windows.

    Every process must call this; the main one reads the training clips.
    """
    models = [each for each in run.model.modules() if isinstance(each, LinearModel | KernelRidge)]
    if not models:
        return
    groups = train_loader.dataset.annotations.groups

    def fit():
        run.model.eval()
        for model in models:
            read = _small_frames if isinstance(model, LinearModel) else _maps
            inputs, labels, clips = read(run, model, train_loader.dataset)
            own_groups = None if groups is None else groups[clips]
            model.fit(inputs, labels, clips, own_groups, run.config.balanced_sampling)
            print(
                f"{type(model).__name__}: fitted on {len(labels):,} windows of the training clips",
                flush=True,
            )
        return {name: value.detach().cpu() for name, value in fitted_tensors(run.model).items()}

    values = processes.broadcast_from_main(fit)
    for network in (run.model, *([run.average.module] if run.average else [])):
        network.load_state_dict(values, strict=False)


def _small_frames(run: Run, model: LinearModel, dataset):
    """Return a linear model's inputs, labels and clips: windows as evaluation sees them."""
    annotations, config = dataset.annotations, run.config
    chosen = np.linspace(0, len(annotations) - 1, min(len(annotations), MAX_CLIPS)).astype(int)
    videos = VideoFolder(annotations, config, False)
    loader = batch_loader(videos, _batches(run, chosen, 1), run.device)

    def inputs_of(clips):
        clips = normalize_clips(clips, run.device, config)
        if isinstance(run.model, Average):
            clips = run.model.without_background(run.model.small_clips(clips))
        return model.inputs(clips)

    return _inputs(model, loader, inputs_of)


def _maps(run: Run, model: KernelRidge, dataset):
    """Return a kernel model's inputs, labels and clips: augmented versions of the clips."""
    most = run.config.feature_versions or NUM_VERSIONS
    num_versions = max(1, min(most, MAX_WINDOWS // len(dataset)))
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), MAX_WINDOWS)).astype(int)
    num_workers = 0 if run.uses_features else None
    loader = batch_loader(dataset, _batches(run, chosen, num_versions), run.device, num_workers)

    def inputs_of(clips):
        features = normalize_clips(clips, run.device, run.config)
        if not run.uses_features:
            features = run.model.frame_features(features)
        if isinstance(run.model, Average):
            _, features = run.model.split_features(features)
        return model.inputs(features)

    return _inputs(model, loader, inputs_of)


def _batches(run: Run, chosen, num_versions: int) -> list[list[ClipKey]]:
    """Return batches of clips, each of one version."""
    parts = np.array_split(chosen, -(-len(chosen) // run.config.videos_per_eval_batch))
    return [
        [ClipKey(version, int(index)) for index in part]
        for version in range(num_versions)
        for part in parts
    ]


@torch.no_grad()
def _inputs(model, loader, inputs_of):
    """Return the inputs float32 [N, D] of all windows, their labels int [N], and clips int [N]."""
    inputs, labels, clips = [], [], []
    title = f"fitting {type(model).__name__}"
    for batch in tqdm(batches_of(loader), title, len(loader), leave=False, disable=None):
        num_windows = batch.clips.shape[1]
        inputs.append(inputs_of(batch.clips.flatten(0, 1)).cpu().numpy())
        labels.append(np.repeat(batch.labels.numpy(), num_windows))
        clips.append(np.repeat(batch.indices.numpy(), num_windows))
    return np.concatenate(inputs), np.concatenate(labels), np.concatenate(clips)

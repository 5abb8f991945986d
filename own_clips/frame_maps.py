"""Features of every frame of some clips, from which short trainings draw their clips.

Shapes: N clips, F frames of a clip, T frames of a window, D numbers per frame.
"""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from clips.annotations import Annotations
from clips.frames import FrameError
from clips.reading import eval_transforms, read_windows
from clips.sampling import eval_positions, train_positions
from config import Config
from model import normalize_clips
from networks.average import Average
from networks.efficientnet_lite import merge_padding
from networks.inference import fold_batchnorm
from system.device import one_core_each

# Frames of a clip; of longer ones, evenly spaced ones: many clips have fewer each, so that time and
# memory are bounded.
MIN_FRAMES, MAX_FRAMES, FRAMES_IN_ALL = 48, 192, 48 * 300
FRAMES_AT_ONCE = 16  # through the 2D network, so that its activations stay in the cache


class FrameMaps(NamedTuple):
    """The features of the frames of the clips that can be read."""

    indices: np.ndarray  # int [N], positions in the annotations
    lengths: np.ndarray  # int [N], frames of the whole clip
    features: list[torch.Tensor]  # fp16 [F, D] of each clip

    def train_clips(self, chosen, config: Config, rng) -> torch.Tensor:
        """Return random windows of the clips at `chosen`, float32 [N, T, D]."""
        return self._windows(chosen, lambda length: train_positions(length, config, rng))

    def eval_clips(self, chosen, config: Config) -> torch.Tensor:
        """Return all evaluation windows of the clips at `chosen`, float32 [N * nclips, T, D]."""
        return self._windows(chosen, lambda length: eval_positions(length, config))

    def _windows(self, chosen, positions_of) -> torch.Tensor:
        windows = []
        for index in chosen:
            length, features = int(self.lengths[index]), self.features[index]
            positions = positions_of(length) * len(features) // length  # [K, T]
            windows += [features[torch.from_numpy(row)] for row in positions]
        return torch.stack(windows).float()


def frame_maps(
    annotations: Annotations,
    chosen,
    network: Average,
    config: Config,
    frames_in_all: int = FRAMES_IN_ALL,
) -> FrameMaps:
    """Compute the features of the clips at `chosen`, as evaluation sees their frames.

    frames_in_all: about as many frames are used, MIN_FRAMES to MAX_FRAMES of a long clip. Clips
    that cannot be read are left out.
    """

    most = int(np.clip(frames_in_all // max(1, len(chosen)), MIN_FRAMES, MAX_FRAMES))
    network = merge_padding(fold_batchnorm(network))
    device = torch.device("cpu")

    @torch.inference_mode()
    def compute(index):
        try:
            source = annotations.clip(int(index)).open(config)
            num_frames = min(len(source), most)
            places = np.arange(num_frames) * len(source) // num_frames
            frames = np.empty((1, num_frames, *config.crop, 3), np.uint8)
            read_windows(source, places[None], eval_transforms(config)[:1], frames)
        except FrameError:
            return None
        clip = normalize_clips(torch.from_numpy(frames), device, config)
        parts = [network.frame_features(part)[0] for part in clip.split(FRAMES_AT_ONCE, 2)]
        return index, len(source), torch.cat(parts).half()

    with one_core_each() as pool:
        clips = tqdm(pool.map(compute, chosen), "features", len(chosen), leave=False, disable=None)
        found = [clip for clip in clips if clip]
    indices, lengths, features = zip(*found, strict=True) if found else ((), (), ())
    return FrameMaps(np.array(indices, int), np.array(lengths, int), list(features))

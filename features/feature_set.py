"""Features of the clips of a set, in batches for the loop.

With `feature_versions` V > 0, version v of a training clip is the clip as epoch v augments it, and
epoch e trains on version e modulo V; so with as many versions as epochs, training sees the clips
that it would see without this. Validation clips have one version: all their evaluation
windows, and the `nviews` views of each.

Shapes: V versions, N clips, K windows and views per clip, T frames. A window's features are fp16
[T, C, h, w], the backbone's maps, or [T, F] if it ends with a vector.
"""

import math

import numpy as np
import torch
from torch.utils.data import Dataset

from clips.batches import BadClip, Batch, ClipKey
from config import Config
from data_loader import VideoFolder
from system import processes
from system.chunk_file import ChunkFile

FRAMES_PER_CHUNK = 512  # of one process at a time; a killed run loses no more than a few of these


class FeatureSet(Dataset):
    """The features of one set of clips, in batches like those of `VideoFolder`."""

    def __init__(self, annotations, config: Config, training: bool, window_shape: tuple[int, ...]):
        """window_shape: of a window's features, (T, ...)."""
        self.videos = VideoFolder(annotations, config, training)
        self.annotations, self.config, self.training = annotations, config, training
        self.num_versions = config.feature_versions if training else 1
        self.num_views = 1 if training else config.nviews
        num_windows = self.videos.input_shape[0] * self.num_views
        self.clip_shape = (num_windows, *window_shape)  # (K, T, ...)
        self.labels = np.full((self.num_versions, len(self)), -1, np.int64)
        self.bad: dict[tuple[int, int], str] = {}  # (version, clip) -> why it cannot be read
        self.features: np.ndarray | None = None  # fp16 [V, N, K, T, ...]

    def __len__(self):
        return len(self.annotations)

    def __getitem__(self, key):
        """Return a clip itself and its label, as `VideoFolder` does."""
        return self.videos[key]

    def __getitems__(self, keys: list[ClipKey]) -> Batch:
        """Return a batch of fp16 [N, K, T, ...] with the features of one epoch's clips."""
        version = keys[0].epoch % self.num_versions if keys else 0
        indices = np.array([key.index for key in keys], np.int64)
        reasons = [self.bad.get((version, key.index)) for key in keys]
        good = indices[np.array([reason is None for reason in reasons], bool)]
        return Batch(
            torch.from_numpy(np.array(self.features[version, good])),
            torch.from_numpy(self.labels[version, good]),
            torch.from_numpy(good),
            [BadClip(key.index, why) for key, why in zip(keys, reasons, strict=True) if why],
        )

    def open(self, file: ChunkFile) -> None:
        """Open the file with the features of all clips."""
        self.features = file.array(self.shape, np.float16)
        for chunk in file.chunks.values():
            version, start = chunk["version"], chunk["start"]
            self.labels[version, start : start + len(chunk["labels"])] = chunk["labels"]
            self.bad |= {(version, index): why for index, why in chunk["bad"]}

    @property
    def name(self) -> str:
        return "train" if self.training else "validation"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_versions, len(self), *self.clip_shape)

    @property
    def network_shape(self) -> tuple[int, ...]:
        """Return the shape of the head's input for a clip, (T, ...)."""
        return self.clip_shape[1:]

    @property
    def clip_bytes(self) -> int:
        return 2 * math.prod(self.clip_shape)

    @property
    def num_bytes(self) -> int:
        return 2 * math.prod(self.shape)

    @property
    def frames_per_clip(self) -> int:
        return math.prod(self.clip_shape[:2])


class Chunks:
    """The unfinished chunks of a set, dealt to the processes in turn: a loader's batch sampler.

    A chunk has clips of one version. It is the same for any number of processes and after a
    resume, and so are its features, to the bit: other batches may be rounded differently.
    """

    def __init__(self, features: FeatureSet, finished: dict[int, dict]):
        self.features = features
        self.clips_per_chunk = max(1, FRAMES_PER_CHUNK // features.frames_per_clip)
        self.chunks_per_version = -(-len(features) // self.clips_per_chunk)
        # A clip that could not be read may have been repaired.
        self.todo = [
            number
            for number in range(features.num_versions * self.chunks_per_version)
            if number not in finished or finished[number]["bad"]
        ]

    def clips(self, number: int) -> tuple[int, range]:
        """Return the version and the clips of a chunk."""
        version, place = divmod(number, self.chunks_per_version)
        start = place * self.clips_per_chunk
        return version, range(start, min(start + self.clips_per_chunk, len(self.features)))

    def own(self, turn: int) -> int | None:
        """Return this process's chunk in a turn."""
        place = turn * processes.world_size() + processes.rank()
        return self.todo[place] if place < len(self.todo) else None

    def __len__(self):
        return -(-len(self.todo) // processes.world_size())

    def __iter__(self):
        for turn in range(len(self)):
            number = self.own(turn)
            version, clips = (0, ()) if number is None else self.clips(number)
            yield [ClipKey(version, index) for index in clips]

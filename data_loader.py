"""Annotations -> clips -> batches.

Whatever is random here is a function of (seed, epoch, clip), never of a stored generator: the
same clip looks the same in the same epoch, in any worker, and after a resume.
Shapes: N clips in a batch, K windows a video, T frames, H, W pixels, C = 3 colours, or 5 with
optical flow.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

import processes
import stopping
from annotations import Annotations, read_annotations, read_labels
from config import Config
from errors import UserError, first_few
from frames import FrameError, FrameFolder
from optical_flow import optical_flow
from transforms import (
    draw_movement,
    erase_box,
    eval_transform,
    jitter_colours,
    train_transform,
)
from videos import VideoFile, is_video

# Where the crops of evaluation lie on the longer side, by their number.
CROP_PLACES = {1: (0.5,), 3: (0.5, 0.0, 1.0)}


class ClipKey(NamedTuple):
    """What the sampler hands to a worker: which clip, and in which epoch."""

    epoch: int
    index: int


class BadClip(NamedTuple):
    """A clip that could not be read, and why."""

    index: int
    reason: str


class Batch(NamedTuple):
    clips: torch.Tensor  # uint8 [N, K, T, H, W, C]; K = 1 in training
    labels: torch.Tensor  # int64 [N]; -1 where the set has none
    indices: torch.Tensor  # int64 [N], positions in the CSV
    bad: list[BadClip]  # clips that are missing from the batch
    num_short: int = 0  # clips with fewer than `frames_needed`


# --- clips -------------------------------------------------------------------------------------


def frames_needed(config: Config) -> int:
    """Frames that a video must have so that nothing is padded or repeated."""
    if config.sampling == "segments":
        return config.clip_size
    return (config.clip_size - 1) * config.step_size + 1


def short_clips_note(num_short, num_clips, config: Config) -> str:
    """What is said of short clips, once in a command."""
    how = "padded with their last frame"
    if config.sampling == "segments":
        how = "some of their frames repeated"
    return f"short clips (fewer than {frames_needed(config)} frames), {how}: " \
           f"{num_short:,} of {num_clips:,}"


def frames_apart(num_frames, config: Config) -> float:
    """Frames of the video from one frame of the network's clip to the next."""
    if config.sampling == "segments":
        return num_frames / config.clip_size
    return config.step_size


def sample_window(num_frames, clip_size, step_size, rng=None, num_windows=1) -> np.ndarray:
    """Frame positions [K, T]: `clip_size` frames, `step_size` apart; the last frame pads.

    With `rng`, one window from a start drawn among all that fit, the last included. Without,
    `num_windows` evenly spread ones; a single one lies in the middle.
    """
    offsets = np.rint(np.arange(clip_size) * step_size).astype(int)
    last_start = max(0, num_frames - 1 - offsets[-1])
    if rng is not None:
        starts = np.array([rng.integers(last_start, endpoint=True)])
    elif num_windows == 1:
        starts = np.array([last_start // 2])
    else:
        starts = np.linspace(0, last_start, num_windows).round().astype(int)
    positions = starts[:, None] + offsets
    return np.minimum(positions, num_frames - 1)


def sample_segments(num_frames, clip_size, rng=None, num_windows=1) -> np.ndarray:
    """Frame positions [K, T]: one frame from each of `clip_size` equal parts of the video.

    With `rng`, a random frame of each part; without, the k-th of `num_windows` evenly spread
    places in each part (the middle for a single one). (Wang et al., arXiv 1608.00859)
    """
    if rng is not None:
        places = rng.random((1, clip_size))
    else:
        places = (np.arange(num_windows)[:, None] + 0.5) / num_windows
    positions = (np.arange(clip_size) + places) * num_frames / clip_size
    return positions.astype(int)


class VideoFolder(Dataset):
    """The clips of one set, read from folders of frames, a batch at a time."""

    def __init__(self, annotations: Annotations, config: Config, training: bool):
        self.annotations = annotations
        self.config = config
        self.training = training
        self.mirrored_labels = mirrored_labels(annotations, config) if training else None

    def __len__(self):
        return len(self.annotations)

    def __getitems__(self, keys: list[ClipKey]) -> Batch:
        """The clips of `keys` but for those that cannot be read, which the batch lists as bad.

        PyTorch's loader calls this in a worker, where a raised error would reach the user wrapped
        in a traceback.
        """
        config = self.config
        num_windows = 1 if self.training else config.windows_per_video
        clip_shape = (num_windows, config.clip_size, *config.crop, config.num_channels)
        clips = _empty_clips((len(keys), *clip_shape))
        good, labels, bad, num_short = [], [], [], 0
        for key in keys:
            try:
                label, num_frames = self.read_clip(key, clips[len(good)].numpy())
            except FrameError as error:
                bad.append(BadClip(key.index, str(error)))
            else:
                good.append(key.index)
                labels.append(label)
                num_short += num_frames < frames_needed(config)
        return Batch(clips[: len(good)], torch.tensor(labels, dtype=torch.int64),
                     torch.tensor(good, dtype=torch.int64), bad, num_short)

    def read_clip(self, key: ClipKey, clip: np.ndarray) -> tuple[int, int]:
        """Fills `clip`, uint8 [K, T, H, W, C]; returns its label, and the frames of the whole clip.

        Raises FrameError with the path of a bad frame.
        """
        config, label = self.config, int(self.annotations.labels[key.index])
        source = open_clip(self.annotations.clip_path(key.index), config)
        if not self.training:
            read_windows(source, eval_positions(len(source), config), eval_transforms(config), clip)
            return label, len(source)
        rng = np.random.default_rng([config.seed, *key])
        positions = train_positions(len(source), config, rng)
        movement = draw_movement(rng, config)
        transform = train_transform(movement, frame_height=config.frame_height, crop=config.crop)
        read_windows(source, positions, [transform], clip)
        augment(clip[0], config, rng)
        label = int(self.mirrored_labels[label]) if movement.is_mirrored else label
        return label, len(source)


def train_positions(num_frames, config: Config, rng) -> np.ndarray:
    """Positions of a training clip's frames, [1, T]."""
    if config.sampling == "segments":
        return sample_segments(num_frames, config.clip_size, rng)
    step = config.step_size
    if config.step_jitter:
        step *= rng.uniform(1 - config.step_jitter, 1 + config.step_jitter)
    return sample_window(num_frames, config.clip_size, step, rng)


def eval_positions(num_frames, config: Config) -> np.ndarray:
    """Positions of the frames that are evaluated, [nclips, T]."""
    if config.sampling == "segments":
        return sample_segments(num_frames, config.clip_size, num_windows=config.nclips)
    return sample_window(num_frames, config.clip_size, config.step_size, num_windows=config.nclips)


def eval_transforms(config: Config) -> list:
    """One for each crop."""
    size = {"frame_height": config.frame_height, "crop": config.crop}
    return [eval_transform(place, **size) for place in CROP_PLACES[config.ncrops]]


def window_input(source, span, config: Config) -> np.ndarray:
    """What a network with this config takes of the frames from span[0] to span[1] - 1.

    uint8 [K, T, H, W, C], as in evaluation. Raises FrameError with the path of a bad frame.
    """
    start, stop = span
    positions = start + eval_positions(stop - start, config)
    shape = (config.windows_per_video, config.clip_size, *config.crop, config.num_channels)
    clip = np.empty(shape, np.uint8)
    read_windows(source, positions, eval_transforms(config), clip)
    return clip


def open_clip(path, config: Config):
    """The frames of a folder or a video file: something with a length and `frames_at`.

    Raises FrameError if there are none.
    """
    if is_video(path):
        return VideoFile(path, config.frame_rate, config.max_frame_pixels)
    return FrameFolder(path, config.max_frame_pixels)


def read_windows(source, positions, transforms, clip) -> None:
    """Fills `clip`, uint8 [K, T, H, W, C], with what each transform makes of the frames, and flow.

    positions: [windows, T]; K is transforms x windows, all windows of a transform in a row.
    Padding and overlaps name a frame more than once; it is decoded once.
    """
    has_flow = clip.shape[-1] > 3
    colours = np.empty((*clip.shape[:-1], 3), np.uint8) if has_flow else clip
    windows = colours.reshape(len(transforms), positions.size, *colours.shape[2:])
    places = {}
    for place, position in enumerate(positions.ravel().tolist()):
        places.setdefault(position, []).append(place)
    chosen = sorted(places)
    for position, frame in zip(chosen, source.frames_at(chosen), strict=True):
        first, *others = places[position]
        for transform, results in zip(transforms, windows, strict=True):
            transform(frame, results[first])
        for place in others:
            windows[:, place] = windows[:, first]
    if has_flow:
        clip[..., :3] = colours
        for result, window in zip(clip, colours, strict=True):
            result[..., 3:] = optical_flow(window)


def augment(clip, config: Config, rng) -> None:
    """What changes a training clip's values in place. uint8 [T, H, W, C]"""
    if config.colour_jitter:
        colours = np.ascontiguousarray(clip[..., :3])
        jitter_colours(colours, config.colour_jitter, rng)
        clip[..., :3] = colours
    if config.random_erasing and rng.random() < config.random_erasing:
        erase_box(clip, np.rint(np.multiply(config.input_mean, 255)), rng)


def mirrored_labels(annotations: Annotations, config: Config) -> np.ndarray:
    """The class of the mirrored clip, for each class. Raises UserError for unknown names."""
    names = annotations.class_names
    pairs = config.flip_labels if isinstance(config.flip_labels, dict) else {}
    unknown = [name for pair in pairs.items() for name in pair if name not in names]
    if unknown:
        raise UserError(
            f"flip_labels: {first_few(unknown)} stands not in {config.labels_csv}; use its names"
        )
    classes = np.arange(len(names))
    for one, other in pairs.items():
        one, other = names.index(one), names.index(other)
        classes[one], classes[other] = other, one
    return classes


# --- batches -----------------------------------------------------------------------------------


class TrainBatches:
    """This process's part of each batch, in an order drawn from (seed, epoch).

    Call `start_at` before each pass. A last batch with fewer than two clips a process is left
    out, since BatchNorm needs two; the order changes with the epoch, so no clip always is.
    """

    def __init__(self, num_clips, batch_size, seed):
        self.num_clips, self.batch_size, self.seed = num_clips, batch_size, seed
        self.start_at(0, 0)

    def start_at(self, epoch: int, step: int, last: int | None = None) -> None:
        """The next pass is over the steps from `step` to `last` (excluded; None: to the end)."""
        self.epoch, self.first_step = epoch, step
        self.last_step = len(self) if last is None else min(last, len(self))

    def __len__(self):
        """Steps of a whole epoch."""
        full, rest = divmod(self.num_clips, self.batch_size)
        return full + (rest >= 2 * processes.world_size())

    def clips_per_part(self, num_parts: int) -> int:
        """Clips of this process in the first part of a full step, computed in `num_parts`."""
        num_clips, num_processes = min(self.batch_size, self.num_clips), processes.world_size()
        fewest = num_clips // num_processes
        own = len(range(processes.rank(), num_clips, num_processes))
        return -(-own // min(num_parts, fewest // 2))

    def __iter__(self):
        epoch = self.epoch
        # Without the spawn key it would be the stream of clip 0, which (seed, epoch, 0) names.
        seeds = np.random.SeedSequence([self.seed, epoch], spawn_key=(0,))
        order = np.random.default_rng(seeds).permutation(self.num_clips)
        for step in range(self.first_step, self.last_step):
            indices = order[step * self.batch_size : (step + 1) * self.batch_size]
            own = indices[processes.rank() :: processes.world_size()]
            yield [ClipKey(epoch, int(index)) for index in own]


class EvalBatches:
    """Batches of clip keys in CSV order, each clip once; the processes take them in turn.

    A batch holds the same clips for any number of processes, so that its figures are the same.
    A process that comes out one batch short gets an empty one: all have equally many.
    """

    def __init__(self, num_clips, batch_size):
        self.num_clips, self.batch_size = num_clips, batch_size

    def __len__(self):
        return -(-self.num_clips // (self.batch_size * processes.world_size()))

    def __iter__(self):
        for turn in range(len(self)):
            start = self.batch_size * (turn * processes.world_size() + processes.rank())
            stop = min(start + self.batch_size, self.num_clips)
            yield [ClipKey(0, index) for index in range(start, stop)]


def _empty_clips(shape) -> torch.Tensor:
    """Room for the clips of a batch; in a worker it is memory that the main process shares."""
    clips = torch.empty(0, dtype=torch.uint8)
    if get_worker_info() is not None:  # as PyTorch's own collate does it
        storage = clips.untyped_storage()._new_shared(math.prod(shape), device=clips.device)
        clips = clips.new(storage)
    return clips.resize_(shape)


def _as_it_is(batch: Batch) -> Batch:
    """In the place of the loader's collate function: the data set gives whole batches."""
    return batch


def build_loader(annotations, config: Config, training: bool, device) -> DataLoader:
    """A loader of `Batch`es; read them through `batches_of`."""
    if training:
        batches = TrainBatches(len(annotations), config.batch_size, config.seed)
        _check_batch_size(config, batches)
    else:
        batches = EvalBatches(len(annotations), config.videos_per_eval_batch)
    num_workers = processes.loader_workers(config.num_workers)
    return DataLoader(
        VideoFolder(annotations, config, training),
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=device.type == "cuda",
        # The loader draws its base seed from this one instead of from the global generator,
        # whose state dropout depends on.
        generator=torch.Generator(),
    )


def _check_batch_size(config, batches):
    least = 2 * processes.world_size() * config.accumulate_steps
    if config.batch_size < least:
        raise UserError(
            f"batch_size: found {config.batch_size}; {processes.world_size()} processes need at "
            f"least {least}, since BatchNorm needs two clips in each part"
        )
    if not len(batches):
        raise UserError(
            f"train_data_csv: {batches.num_clips} clips are not enough; BatchNorm needs "
            f"{2 * processes.world_size()} or more"
        )


def batches_of(loader):
    """Iterates over a loader's batches; a signal does not wait for a slow one."""
    with stopping.kept_from_workers():
        iterator = iter(loader)
    while True:
        # Several processes must stop at the same step, so each looks only between steps.
        with nullcontext() if processes.world_size() > 1 else stopping.at_once():
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


def read_class_names(config: Config) -> list[str]:
    """The labels file's names; raises UserError if `num_classes` says another number."""
    names = read_labels(config.labels_csv)
    if config.num_classes not in (None, len(names)):
        raise UserError(
            f"num_classes: found {config.num_classes}, but {config.labels_csv} names "
            f"{len(names)} classes; make them equal, or leave the key out"
        )
    return names


def read_set(config: Config, set_name, class_names) -> Annotations:
    """Annotations of `train`, `validation` or `test`; what was left out is printed."""
    folder, csv_path = config.set_paths(set_name)
    annotations = read_annotations(csv_path, folder, None if set_name == "test" else class_names)
    left_out = ""
    if annotations.num_dropped:
        left_out = f", {annotations.num_dropped:,} left out: label not in {config.labels_csv}"
    print(f"{set_name}: {len(annotations):,} clips in {folder}{left_out}")
    return annotations

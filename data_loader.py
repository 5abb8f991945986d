"""Annotations -> clips -> batches.

All random numbers here are functions of (seed, epoch, clip), so no generator's state is stored: the
same clip looks the same in the same epoch, in any worker, and after a resume.
Shapes: N clips in a batch, K windows per video, T frames, H, W pixels, C = 3 colours, or 5 with
optical flow.
"""

from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from clips.annotations import Annotations, groups_of, read_annotations, read_labels
from clips.batches import BadClip, Batch, ClipKey, EvalBatches, TrainBatches, as_it_is, empty_clips
from clips.frames import FrameError, natural_key, prepare_decoders
from clips.reading import augment, eval_shape, mirrored_labels, read_eval_clip, read_windows
from clips.sampling import frames_needed, train_positions
from clips.transforms import draw_movement, train_transform
from config import Config
from system import processes
from system.errors import UserError, summarize


class VideoFolder(Dataset):
    """The clips of one set, read from folders of frames or a pack, one batch at a time."""

    def __init__(self, annotations: Annotations, config: Config, training: bool):
        self.annotations = annotations
        self.config = config
        self.training = training
        self.mirrored_labels = mirrored_labels(annotations, config) if training else None
        annotations.folder.check(config)  # opened here, so that workers share its memory

    def __len__(self):
        return len(self.annotations)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return (K, T, H, W, C) of a clip; K is 1 in training."""
        shape = eval_shape(self.config)
        return (1, *shape[1:]) if self.training else shape

    @property
    def network_shape(self) -> tuple[int, ...]:
        """Return the shape of the network's input for a clip, (C, T, H, W)."""
        return self.config.num_channels, *self.config.clip_shape

    def __getitem__(self, key: int | ClipKey) -> tuple[torch.Tensor, int]:
        """Return a clip, uint8 [K, T, H, W, C], and its label. key: a CSV position, or a ClipKey.

        Raises FrameError with the path of a bad frame, and IndexError beyond the last clip.
        """
        key = key if isinstance(key, ClipKey) else ClipKey(0, key)
        if not -len(self) <= key.index < len(self):
            raise IndexError(f"clip {key.index} of {len(self)}")
        clip = np.empty(self.input_shape, np.uint8)
        label, _ = self.read_clip(key._replace(index=key.index % len(self)), clip)
        return torch.from_numpy(clip), label

    def __getitems__(self, keys: list[ClipKey]) -> Batch:
        """Return a batch of the clips of `keys`; unreadable ones are listed as bad.

        PyTorch's loader calls this in a worker, where a raised error would reach the user wrapped
        in a traceback.
        """
        clips = empty_clips((len(keys), *self.input_shape))
        good, labels, bad, num_short = [], [], [], 0
        for key in keys:
            try:
                label, num_frames = self.read_clip(key, clips[len(good)].numpy())
            except FrameError as error:
                bad.append(BadClip(key.index, str(error)))
            else:
                good.append(key.index)
                labels.append(label)
                num_short += num_frames < frames_needed(self.config)
        return Batch(
            clips[: len(good)],
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(good, dtype=torch.int64),
            bad,
            num_short,
        )

    def read_clip(self, key: ClipKey, clip: np.ndarray) -> tuple[int, int]:
        """Fill `clip`, uint8 [K, T, H, W, C]; return its label, and the frames of the whole clip.

        Raises FrameError with the path of a bad frame.
        """
        config, label = self.config, int(self.annotations.labels[key.index])
        source = self.annotations.clip(key.index).open(config)
        if not self.training:
            read_eval_clip(source, config, clip)
            return label, len(source)
        rng = np.random.default_rng([config.seed, *key])
        positions = train_positions(len(source), config, rng)
        movement = draw_movement(rng, config)
        transform = train_transform(
            movement,
            frame_height=config.frame_height,
            crop=config.crop,
            interpolation=config.affine_interpolation,
            padding=config.affine_padding,
        )
        read_windows(source, positions, [transform], clip)
        augment(clip[0], config, rng)
        label = int(self.mirrored_labels[label]) if movement.is_mirrored else label
        return label, len(source)


def build_loader(annotations, config: Config, training: bool, device) -> DataLoader:
    """Return a loader of `Batch`es; read them through `batches_of`."""
    if training:
        labels = annotations.labels if config.balanced_sampling else None
        batches = TrainBatches(len(annotations), config.batch_size, config.seed, labels)
        _check_batch_size(config, batches)
    else:
        batches = EvalBatches(len(annotations), config.videos_per_eval_batch)
    return batch_loader(VideoFolder(annotations, config, training), batches, device)


def batch_loader(data_set, batches, device, num_workers: int | None = None) -> DataLoader:
    """Return a loader of the `Batch`es of `data_set`, whose keys `batches` yields.

    num_workers: None starts as many as the config says.
    """
    if num_workers is None:
        num_workers = processes.loader_workers(data_set.config.num_workers)
    return DataLoader(
        data_set,
        batch_sampler=batches,
        collate_fn=as_it_is,
        num_workers=num_workers,
        worker_init_fn=prepare_decoders,
        persistent_workers=num_workers > 0,
        pin_memory=device.type == "cuda",
        # The loader draws its base seed from this one, not from the global generator,
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


def read_class_names(config: Config) -> list[str]:
    """Return the labels file's names; raise UserError if `num_classes` differs."""
    names = read_labels(config.labels_csv)
    if config.num_classes not in (None, len(names)):
        raise UserError(
            f"num_classes: found {config.num_classes}, but {config.labels_csv} names "
            f"{len(names)} classes; make them equal, or leave the key out"
        )
    return names


def read_set(config: Config, set_name, class_names) -> Annotations:
    """Return the annotations of `train`, `validation` or `test`; print what was left out."""
    folder, csv_path = config.set_paths(set_name)
    names = None if set_name == "test" else class_names
    annotations = read_annotations(csv_path, folder, names, with_groups=not config.group)
    if config.group and set_name != "test":
        groups = groups_of(annotations.ids, config.group)
        annotations = replace(annotations, groups=groups)
    left_out = ""
    if annotations.num_dropped:
        left_out = f", {annotations.num_dropped:,} left out: label not in {config.labels_csv}"
    print(f"{set_name}: {len(annotations):,} clips in {folder}{left_out}")
    return annotations


def warn_if_shared(train: Annotations, validation: Annotations) -> None:
    """Print a warning for clips or groups that are in both sets."""
    inflated = "in training and validation, which makes the validation score too high"
    known = set(train.clip_paths())
    paths = zip(validation.ids.tolist(), validation.clip_paths(), strict=True)
    if both := sorted((clip_id for clip_id, path in paths if path in known), key=natural_key):
        print(
            f"warning: {len(both):,} clips are both {inflated}: {summarize(both, 3)}; remove "
            "them from one of the two CSVs"
        )
    if train.groups is None or validation.groups is None:
        return
    is_shared = np.isin(validation.groups, train.groups)
    if names := sorted(set(validation.groups[is_shared].tolist()), key=natural_key):
        print(
            f"warning: {len(names):,} groups are both {inflated} for new groups: "
            f"{summarize(names, 5)}, {is_shared.sum():,} of {len(validation):,} validation "
            "clips; keep each group in one set"
        )


def read_data(config: Config, set_names: list[str]) -> tuple[list[str], list[Annotations]]:
    """Return class names and annotations; the main process reads them for all."""

    def read():
        class_names = read_class_names(config)
        sets = [read_set(config, name, class_names) for name in set_names]
        if set_names == ["train", "validation"]:
            warn_if_shared(*sets)
        return class_names, sets

    return processes.broadcast_from_main(read)

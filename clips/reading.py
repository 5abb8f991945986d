"""From a video, or the frames in a folder or pack, to a network's uint8 input.

Shapes: K windows per video, T frames, H, W pixels, C = 3 colours, or 5 with optical flow.
"""

from collections.abc import Iterator

import numpy as np

from clips.annotations import Annotations
from clips.folders import FrameSource
from clips.frames import composed
from clips.sampling import eval_positions
from clips.transforms import erase_box, eval_transform, jitter_colours, mask_frames, optical_flow
from config import Config
from system.errors import UserError, summarize

# Places of evaluation crops along the longer side, by number of crops.
CROP_PLACES = {1: (0.5,), 3: (0.5, 0.0, 1.0)}


def eval_transforms(config: Config) -> list:
    """Return one transform per crop."""
    size = {"frame_height": config.frame_height, "crop": config.crop}
    return [eval_transform(place, **size) for place in CROP_PLACES[config.ncrops]]


def eval_shape(config: Config) -> tuple[int, ...]:
    """Return the shape of a clip's evaluation input, (K, T, H, W, C)."""
    return config.windows_per_video, *config.clip_shape, config.num_channels


def read_eval_clip(source: FrameSource, config: Config, clip: np.ndarray, span=None) -> None:
    """Fill `clip`, uint8 [K, T, H, W, C], with the evaluation input for a whole video.

    Every command that gives a network a clip reads it here: training's validation, `--eval_only`,
    ensembles, predict, the camera and explain.
    span: first frame and last (excluded); None: the whole video. Raises FrameError with the path
    of a bad frame.
    """
    start, stop = span or (0, len(source))
    positions = start + eval_positions(stop - start, config)
    read_windows(source, positions, eval_transforms(config), clip)


def window_input(source: FrameSource, span, config: Config) -> np.ndarray:
    """Return the evaluation input for the frames span[0] to span[1] - 1; None: for all.

    uint8 [K, T, H, W, C]. Raises FrameError with the path of a bad frame.
    """
    clip = np.empty(eval_shape(config), np.uint8)
    read_eval_clip(source, config, clip, span)
    return clip


def distinct_frames(
    source: FrameSource, positions: np.ndarray
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield each frame once, in order, and the indices of `positions` at which it is.

    positions: int [P]. Padding and overlapping windows repeat frames, which are decoded once.
    """
    places = {}
    for place, position in enumerate(positions.tolist()):
        places.setdefault(position, []).append(place)
    chosen = sorted(places)
    for position, frame in zip(chosen, source.frames_at(chosen), strict=True):
        yield places[position], frame


def read_windows(
    source: FrameSource, positions: np.ndarray, transforms: list, clip: np.ndarray
) -> None:
    """Fill `clip`, uint8 [K, T, H, W, C], with the transformed frames and their optical flow.

    positions: [windows, T]; K is transforms x windows, grouped by transform.
    """
    has_flow = clip.shape[-1] > 3
    colours = np.empty((*clip.shape[:-1], 3), np.uint8) if has_flow else clip
    windows = colours.reshape(len(transforms), positions.size, *colours.shape[2:])
    for (first, *others), frame in distinct_frames(source, positions.ravel()):
        for transform, results in zip(transforms, windows, strict=True):
            transform(frame, results[first])
        for place in others:
            windows[:, place] = windows[:, first]
    if has_flow:
        clip[..., :3] = colours
        for result, window in zip(clip, colours, strict=True):
            result[..., 3:] = optical_flow(window)


def augment(clip: np.ndarray, config: Config, rng: np.random.Generator) -> None:
    """Apply colour jitter, time masking and random erasing in place. uint8 [T, H, W, C]"""
    if config.colour_jitter:
        colours = np.ascontiguousarray(clip[..., :3])
        jitter_colours(colours, config.colour_jitter, rng)
        clip[..., :3] = colours
    if config.time_masking:
        mask_frames(clip, config.time_masking, rng)
    if config.random_erasing and rng.random() < config.random_erasing:
        erase_box(clip, np.rint(np.multiply(config.input_mean, 255)), rng)


def mirrored_labels(annotations: Annotations, config: Config) -> np.ndarray:
    """Return the mirrored class of each class. Raises UserError for unknown or repeated names."""
    names = annotations.class_names
    pairs = config.flip_labels if isinstance(config.flip_labels, dict) else {}
    pairs = {composed(one): composed(other) for one, other in pairs.items()}
    unknown = [name for pair in pairs.items() for name in pair if name not in names]
    if unknown:
        raise UserError(
            f"flip_labels: {summarize(unknown)} is not in {config.labels_csv}; choose one of its "
            "names"
        )
    classes = np.arange(len(names))
    for one, other in pairs.items():
        one, other = names.index(one), names.index(other)
        classes[one], classes[other] = other, one
    twice = np.flatnonzero(classes[classes] != np.arange(len(names)))
    if len(twice):
        raise UserError(
            f"flip_labels: {summarize(names[place] for place in twice)} is in two pairs; keep one"
        )
    return classes

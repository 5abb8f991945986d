"""Choose the frames of a video that form a clip. Shapes: K windows per video, T frames."""

import numpy as np

from config import Config


def frames_needed(config: Config) -> int:
    """Return the number of frames that a video needs so that no frame is padded or repeated."""
    if config.sampling == "segments":
        return config.clip_size
    return (config.clip_size - 1) * config.step_size + 1


def short_clips_note(num_short, num_clips, config: Config) -> str:
    """Return a line with the number of short clips."""
    how = "padded with their last frame"
    if config.sampling == "segments":
        how = "with some frames repeated"
    return (
        f"short clips (fewer than {frames_needed(config)} frames), {how}: "
        f"{num_short:,} of {num_clips:,}"
    )


def unseen_seconds(num_frames, config: Config) -> float:
    """Return the longest time of a video from which evaluation uses no frame."""
    seen = np.unique(eval_positions(num_frames, config))
    gaps = np.diff([-1, *seen, num_frames]) - 1
    return float(gaps.max()) / config.frame_rate


def frames_apart(num_frames, config: Config) -> float:
    """Return the distance between two frames of the network's clip, in frames of the video."""
    if config.sampling == "segments":
        return num_frames / config.clip_size
    return config.step_size


def sample_window(num_frames, clip_size, step_size, rng=None, num_windows=1) -> np.ndarray:
    """Return frame positions [K, T]: `clip_size` frames, `step_size` apart.

    Short videos are padded with their last frame. With `rng`, one window with a random start;
    without, `num_windows` evenly spaced windows, a single one in the middle.
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
    """Return frame positions [K, T]: one frame from each of `clip_size` equal parts of the video.

    With `rng`, a random frame of each part; without, the k-th of `num_windows` evenly spaced
    places in each part, the middle for a single window. (Wang et al., arXiv 1608.00859)
    """
    if rng is not None:
        places = rng.random((1, clip_size))
    else:
        places = (np.arange(num_windows)[:, None] + 0.5) / num_windows
    positions = (np.arange(clip_size) + places) * num_frames / clip_size
    return positions.astype(int)


def train_positions(num_frames, config: Config, rng) -> np.ndarray:
    """Return random frame positions of a training clip, [1, T]."""
    if config.sampling == "segments":
        return sample_segments(num_frames, config.clip_size, rng)
    step = config.step_size
    if config.step_jitter:
        step *= rng.uniform(1 - config.step_jitter, 1 + config.step_jitter)
    return sample_window(num_frames, config.clip_size, step, rng)


def eval_positions(num_frames, config: Config) -> np.ndarray:
    """Return the frame positions for evaluation, [nclips, T]."""
    if config.sampling == "segments":
        return sample_segments(num_frames, config.clip_size, num_windows=config.nclips)
    return sample_window(num_frames, config.clip_size, config.step_size, num_windows=config.nclips)

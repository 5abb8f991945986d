"""Which frames of a video make a clip. Shapes: K windows of a video, T frames."""

import numpy as np

from config import Config

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

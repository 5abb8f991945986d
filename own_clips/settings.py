"""Choose frame rate, clip length, sampling and size for clips that have been looked at."""

import math
from typing import Any, NamedTuple

import numpy as np

from own_clips.looking import Looks

CLIP_SIZE = 12  # frames
WINDOW_SHARE = 0.6  # of the median clip that a window spans, so that its start can vary
LONGEST_GAP = 0.15  # seconds between two frames of a window: a step or a gesture takes longer
FEW_MOVING_PIXELS = 1 / 3  # of the picture; between the sets that this recipe was chosen on
FRAME_RATE_OF_FOLDERS = 12.0  # assumed, since folders of frames do not say
SIDES = {"cpu": 40, "cuda": 96}  # pixels of the shorter side that a step can afford
CLIPS_TO_SEE = {"cpu": 27_000, "cuda": 100_000}  # over a whole training
FEWEST_EPOCHS, MOST_EPOCHS = 20, 100


class Choice(NamedTuple):
    """The value of a config key, and the reason for it."""

    key: str
    value: Any
    reason: str


def choose_settings(looks: Looks, num_clips: int, device_type: str) -> list[Choice]:
    """Return the settings for these clips. num_clips: those for training."""
    return [*_time(looks), *_size(looks, device_type), _background(looks),
            *training_length(num_clips, device_type)]


def _time(looks: Looks) -> list[Choice]:
    """Choose the frames of a window: evenly spaced in time, since a rhythm tells movements apart.

    One frame from each part of a clip would span the whole clip, but at a rhythm of its own.
    """
    rates = looks.native_rates[~np.isnan(looks.native_rates)]
    rate = round(float(np.median(rates)), 3) if len(rates) else FRAME_RATE_OF_FOLDERS
    frames = float(np.median(np.where(np.isnan(looks.native_rates), looks.num_frames,
                                      looks.seconds * rate)))
    step = round(WINDOW_SHARE * frames / CLIP_SIZE)
    step = max(1, min(step, round(LONGEST_GAP * rate)))
    low, high = np.percentile(looks.num_frames, [5, 95])
    span = (CLIP_SIZE - 1) * step + 1
    choices = [Choice("frame_rate", rate, "the videos' own (median)")] if len(rates) else []
    return [*choices,
            Choice("clip_size", CLIP_SIZE, f"the clips have {low:.0f} to {high:.0f} frames, "
                   f"{frames:.0f} in the middle"),
            Choice("step_size", step, f"so a window spans {span} frames, {span / rate:.1f} s at "
                   f"{rate:g} frames per second"),
            Choice("nclips", _num_windows(frames / span), "windows from the whole clip are "
                   "averaged in evaluation")]


def _num_windows(windows_per_clip: float) -> int:
    return int(np.clip(np.ceil(windows_per_clip) + 1, 2, 10))


def _size(looks: Looks, device_type: str) -> list[Choice]:
    heights, widths = looks.sizes.T
    ratio = float(np.clip(np.median(widths / heights), 0.5, 2))
    side = SIDES[device_type]
    height = side if ratio >= 1 else side / ratio
    height = int(min(height, np.median(heights)))
    crop = [_multiple_of_4(height), _multiple_of_4(height * ratio)]
    reason = (f"frames are {np.median(widths):.0f} x {np.median(heights):.0f} pixels (median); "
              f"a step on this {'GPU' if device_type == 'cuda' else 'CPU'} affords about this size")
    return [Choice("frame_height", crop[0], reason), Choice("crop_size", crop, "the whole frame")]


def _multiple_of_4(size: float) -> int:
    return max(16, 4 * round(size / 4))


def _background(looks: Looks) -> Choice:
    share = float(np.median(looks.moving_shares))
    reason = f"{100 * share:.0f} % of the picture changes within a clip (median)"
    if share < FEW_MOVING_PIXELS:
        reason += ": something small moves before a fixed camera"
    return Choice("subtract_background", share < FEW_MOVING_PIXELS, reason)


def training_length(num_clips: int, device_type: str) -> list[Choice]:
    """Return batch size and number of epochs for so many clips, for an affordable training."""
    largest = 8 if num_clips < 200 else 16
    # Of equal size: BatchNorm's statistics of a last batch of two clips are noise.
    batch_size = math.ceil(num_clips / math.ceil(num_clips / largest))
    epochs = int(np.clip(CLIPS_TO_SEE[device_type] / num_clips, FEWEST_EPOCHS, MOST_EPOCHS))
    return [Choice("batch_size", batch_size, f"{num_clips:,} clips for training"),
            Choice("num_epochs", epochs, f"about {epochs * num_clips:,} clips are then seen")]

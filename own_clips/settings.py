"""Choose frame rate, clip length, sampling and size for clips that have been looked at."""

import math
from typing import Any, NamedTuple

import numpy as np

from own_clips.looking import Looks

LONGEST_GAP = 0.5  # seconds between frames, above which segments would miss most movements
WINDOW_SECONDS = 4.0  # that a window of a long video spans
FRAME_RATE_OF_FOLDERS = 12.0  # assumed, since folders of frames do not say
FEW_FRAMES = 16
SIDES = {"cpu": 48, "cuda": 96}  # pixels of the shorter side that a step can afford
CLIPS_TO_SEE = {"cpu": 12_000, "cuda": 60_000}  # over a whole training
FEWEST_EPOCHS, MOST_EPOCHS = 20, 200


class Choice(NamedTuple):
    """The value of a config key, and the reason for it."""

    key: str
    value: Any
    reason: str


def choose_settings(looks: Looks, num_clips: int, device_type: str) -> list[Choice]:
    """Return the settings for these clips. num_clips: those for training."""
    return [*_time(looks), *_size(looks, device_type), *_length(num_clips, device_type)]


def _time(looks: Looks) -> list[Choice]:
    frames = np.median(looks.num_frames)
    clip_size = 12 if frames >= FEW_FRAMES else 8
    choices = [Choice("clip_size", clip_size, f"the clips have {frames:.0f} frames (median)")]
    rates = looks.native_rates[~np.isnan(looks.native_rates)]
    rate = FRAME_RATE_OF_FOLDERS
    if len(rates):
        rate = round(float(np.median(rates)), 3)
        choices.append(Choice("frame_rate", rate, "the videos' own (median)"))
    seconds = np.where(np.isnan(looks.seconds), looks.num_frames / rate, looks.seconds)
    low, high = np.percentile(seconds, [5, 95])
    spans = f"the clips last {low:.1f} to {high:.1f} s"
    if np.median(seconds) / clip_size <= LONGEST_GAP:
        return [*choices, Choice("sampling", "segments", f"{spans}, so {clip_size} frames can "
                                 "span a whole clip")]
    step = max(1, round(WINDOW_SECONDS * rate / clip_size))
    return [*choices,
            Choice("sampling", "window", f"{spans}, too long for {clip_size} frames"),
            Choice("step_size", step, f"{clip_size} frames then span {WINDOW_SECONDS:.0f} s"),
            Choice("nclips", 4, "in evaluation, windows from the whole clip are averaged")]


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


def _length(num_clips: int, device_type: str) -> list[Choice]:
    largest = 8 if num_clips < 200 else 16
    # Of equal size: BatchNorm's statistics of a last batch of two clips are noise.
    batch_size = math.ceil(num_clips / math.ceil(num_clips / largest))
    epochs = int(np.clip(CLIPS_TO_SEE[device_type] / num_clips, FEWEST_EPOCHS, MOST_EPOCHS))
    return [Choice("batch_size", batch_size, f"{num_clips:,} clips for training"),
            Choice("num_epochs", epochs, f"about {epochs * num_clips:,} clips are then seen")]

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
SIDE = 40  # pixels of the shorter side; with 96, the recipe scored 6 points less on actions
CLIPS_TO_SEE = {"cpu": 27_000, "cuda": 100_000}  # over a training, which is affordable then
FEWEST_EPOCHS, MOST_EPOCHS = 20, 100


class Choice(NamedTuple):
    """The value of a config key, and the reason for it."""

    key: str
    value: Any
    reason: str


def choose_settings(looks: Looks, num_clips: int, device_type: str, given=()) -> list[Choice]:
    """Return the settings for these clips, without those that are given.

    num_clips: those for training. given: key -> value of what the user has set, which the others
    are chosen to suit.
    """
    given = dict(given)
    choices = [*_time(looks, given), *_size(looks, given), _background(looks),
               *training_length(num_clips, device_type)]
    return [choice for choice in choices if choice.key not in given]


def _time(looks: Looks, given: dict) -> list[Choice]:
    """Choose the frames of a window: evenly spaced in time, since a rhythm tells movements apart.

    One frame from each part of a clip would span the whole clip, but at a rhythm of its own.
    """
    rates = looks.native_rates[~np.isnan(looks.native_rates)]
    rate = round(float(np.median(rates)), 3) if len(rates) else FRAME_RATE_OF_FOLDERS
    rate = given.get("frame_rate", rate)
    num_frames = np.where(np.isnan(looks.native_rates), looks.num_frames, looks.seconds * rate)
    frames, clip_size = float(np.median(num_frames)), given.get("clip_size", CLIP_SIZE)
    step = round(WINDOW_SHARE * frames / clip_size)
    step = given.get("step_size", max(1, min(step, round(LONGEST_GAP * rate))))
    low, high = np.percentile(num_frames, [5, 95])
    span = (clip_size - 1) * step + 1
    choices = [Choice("frame_rate", rate, "the videos' own (median)")] if len(rates) else []
    if given.get("sampling") == "segments":
        choices.append(Choice("step_jitter", 0.0, "sampling segments has no step"))
    return [*choices,
            Choice("clip_size", clip_size, f"the clips have {low:.0f} to {high:.0f} frames, "
                   f"{frames:.0f} in the middle"),
            Choice("step_size", step, f"so a window spans {span} frames, {span / rate:.1f} s at "
                   f"{rate:g} frames per second"),
            Choice("nclips", _num_windows(frames / span), "windows from the whole clip are "
                   "averaged in evaluation")]


def _num_windows(windows_per_clip: float) -> int:
    return int(np.clip(np.ceil(windows_per_clip) + 1, 2, 10))


def _size(looks: Looks, given: dict) -> list[Choice]:
    heights, widths = looks.sizes.T
    ratio = float(np.clip(np.median(widths / heights), 0.5, 2))
    height = SIDE if ratio >= 1 else SIDE / ratio
    height = min(height, np.median(heights))
    height = max(16, 4 * int(height / 4))  # not above the clips' own, to which a pack may be shrunk
    if "frame_height" in given:
        height = given["frame_height"] or int(np.median(heights))
    elif "crop_size" in given:
        height = int(np.ravel(given["crop_size"])[0])
    crop = [height, max(16, 4 * round(height * ratio / 4))]
    reason = (f"frames are {np.median(widths):.0f} x {np.median(heights):.0f} pixels (median); "
              "the recipe was chosen at about this size")
    if "crop_size" in given:
        reason = "that of crop_size"
    return [Choice("frame_height", height, reason), Choice("crop_size", crop, "the whole frame")]


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

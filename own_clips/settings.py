"""Choose frame rate, clip length, sampling and size from statistics of the clips."""

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from config import FITTED_MODELS, FRAME_MODELS, MAP_MODELS
from networks.ridge import MAX_WINDOWS
from own_clips.survey import ClipStats

CLIP_SIZE = 12  # frames, at most
WINDOW_SHARE = 0.6  # maximum part of the median clip in a window, so that its start can vary
# A window is not longer than this percentile of the clips, since the rest is padded; but where
# clips differ much, it is as long as this share of the median clip: docs/results.md.
SHORT_PERCENTILE, SHORT_SHARE = 10, 0.8
MAX_GAP = 0.15  # seconds between two frames of a window: a step or a gesture takes longer
FEW_MOVING_PIXELS = 1 / 3  # of the picture; between the sets used to choose this recipe
STILL = 0.01  # of the picture; if less changes, nothing moves
MAX_STILL_CLIPS = 0.05  # that may look the same without their background
FRAME_RATE_OF_FOLDERS = 12.0  # assumed, since folders of frames do not say
SIDE = 40  # pixels of the shorter side; with 96, the recipe scored 6 points less on actions
CLIPS_TO_SEE = {"cpu": 27_000, "cuda": 100_000}  # in total, so that the training time is affordable
MIN_EPOCHS, MAX_EPOCHS = 20, 100
# Of networks with a frozen 2D network: frames of about SIDE_2D x SIDE_2D pixels, in steps of the
# 2D network's stride, and a shorter training. If there are so few clips that MIN_VERSIONS of each
# can be computed from larger frames, they are.
SIDE_2D, LARGER_SIDE_2D, STRIDE = 96, 128, 16
CLIPS_TO_SEE_2D, MAX_EPOCHS_2D = 11_000, 30
FRAMES_TO_COMPUTE = 36_000  # of SIDE_2D, for the features of a training set that is not larger
MIN_VERSIONS, MAX_VERSIONS = 4, 8
# With conv3d, which learns for longer and from random weights, a few versions may be overfitted;
# and fitting takes less time than training.
MORE_FRAMES, MORE_VERSIONS = 3, 2  # times as many
# The largest class has this many times the training clips of the smallest, or more.
UNEVEN, RATHER_UNEVEN = 3.0, 2.0


class Choice(NamedTuple):
    """The value of a config key, and the reason for it."""

    key: str
    value: Any
    reason: str


def choose_settings(
    stats: ClipStats, num_clips: int, device_type: str, given=(), is_quick: bool = False
) -> list[Choice]:
    """Return the settings for these clips, without those that are given.

    num_clips: those for training. given: the user's keys -> values, which the others are chosen
    to suit. is_quick: prefer what takes less time: smaller frames, and one view in evaluation.
    """
    given = dict(given)
    networks = given.get("members") or [given.get("model", "conv3d")]
    has_backbone = any(name in FRAME_MODELS for name in networks)
    choices = _time(stats, given)
    clip_size = given.get("clip_size") or next(
        choice.value for choice in choices if choice.key == "clip_size"
    )
    num_frames = num_clips * clip_size
    if {*networks} & {*MAP_MODELS}:
        choices += _centering(stats, clip_size)
    if has_backbone:
        is_few = MIN_VERSIONS * num_frames * (LARGER_SIDE_2D / SIDE_2D) ** 2 <= FRAMES_TO_COMPUTE
        side = LARGER_SIDE_2D if is_few and not is_quick else SIDE_2D
        choices += _size_2d(stats, side, given)
    else:
        choices += _size(stats, given)
    if is_quick:
        choices.append(Choice("nviews", 1, "more views take longer"))
    if any(name not in FRAME_MODELS for name in networks):
        choices.append(_background(stats))
    is_short = has_backbone and "conv3d" not in networks
    choices += training_length(num_clips, device_type, is_short)
    if {*networks} <= {*FITTED_MODELS}:
        choices[-1] = Choice("num_epochs", 1, "the weights are fitted in closed form before it")
    if has_backbone:
        crop = given.get("crop_size") or next(
            choice.value for choice in choices if choice.key == "crop_size"
        )
        choices.append(_versions(num_clips, clip_size, crop, networks, is_quick))
    return [choice for choice in choices if choice.key not in given]


def _time(stats: ClipStats, given: dict) -> list[Choice]:
    """Choose the frames of a window: evenly spaced in time, since speed distinguishes movements.

    One frame from each part of a clip (segments) would span the whole clip, but change its speed.
    """
    rates = stats.native_rates[~np.isnan(stats.native_rates)]
    rate = round(float(np.median(rates)), 3) if len(rates) else FRAME_RATE_OF_FOLDERS
    rate = given.get("frame_rate", rate)
    num_frames = np.where(np.isnan(stats.native_rates), stats.num_frames, stats.seconds * rate)
    low, frames, high = np.percentile(num_frames, [5, 50, 95])
    is_segments = given.get("sampling") == "segments"
    clip_size, step = _window(num_frames, rate, is_segments, given)
    choices = [Choice("frame_rate", rate, "the median of the videos")] if len(rates) else []
    choices.append(
        Choice(
            "clip_size",
            clip_size,
            f"most clips have {low:.0f} to {high:.0f} frames, the median is {frames:.0f}",
        )
    )
    if is_segments:
        choices.append(Choice("step_jitter", 0.0, "segments have no step that could vary"))
        # No more than have distinct frames.
        num_windows = min(_num_windows(frames / clip_size), frames // clip_size)
    else:
        span = (clip_size - 1) * step + 1
        choices.append(
            Choice(
                "step_size",
                step,
                f"so a window spans {span} frames, "
                f"{span / rate:.1f} s at {rate:g} frames per second",
            )
        )
        num_windows = min(_num_windows(frames / span), frames - span + 1)
    return [
        *choices,
        Choice(
            "nclips", max(1, int(num_windows)), "evaluation averages windows spread over the clip"
        ),
    ]


def _window(num_frames: np.ndarray, rate: float, is_segments: bool, given: dict) -> tuple[int, int]:
    """Return the number of frames of a window, and the step between them, for clips this long."""
    middle = float(np.median(num_frames))
    least = 2 if given.get("model") == "two_stream" else 1
    longest = int(max(np.percentile(num_frames, SHORT_PERCENTILE), SHORT_SHARE * middle, least))
    if is_segments:
        return given.get("clip_size", min(CLIP_SIZE, max(least, round(middle)))), 1
    step = given.get("step_size", 1)
    clip_size = given.get("clip_size", min(CLIP_SIZE, 1 + (longest - 1) // step))
    step = min(
        round(WINDOW_SHARE * middle / clip_size),
        round(MAX_GAP * rate),
        (longest - 1) // max(1, clip_size - 1),
    )
    return clip_size, given.get("step_size", max(1, step))


def _num_windows(windows_per_clip: float) -> int:
    return int(np.clip(np.ceil(windows_per_clip) + 1, 2, 10))


def _size(stats: ClipStats, given: dict) -> list[Choice]:
    heights, widths = stats.sizes.T
    ratio = float(np.clip(np.median(widths / heights), 0.5, 2))
    height = SIDE if ratio >= 1 else SIDE / ratio
    height = min(height, np.median(heights))
    height = max(16, 4 * int(height / 4))  # not above the clips': a pack may be shrunk to it
    if "frame_height" in given:
        height = given["frame_height"] or int(np.median(heights))
    elif "crop_size" in given:
        height = int(np.ravel(given["crop_size"])[0])
    crop = [height, max(16, 4 * round(height * ratio / 4))]
    reason = (
        f"frames are {np.median(widths):.0f} x {np.median(heights):.0f} pixels (median); "
        "the recipe was chosen at about this size"
    )
    if "crop_size" in given:
        reason = "as high as crop_size"
    return [Choice("frame_height", height, reason), Choice("crop_size", crop, "the whole frame")]


def _size_2d(stats: ClipStats, side: int, given: dict) -> list[Choice]:
    """Choose the size of frames for a 2D network: about side x side pixels."""
    heights, widths = stats.sizes.T
    ratio = float(np.clip(np.median(widths / heights), 0.5, 2))
    height = max(STRIDE, STRIDE * round(side / math.sqrt(ratio) / STRIDE))
    if "frame_height" in given or "crop_size" in given or stats.max_height is not None:
        height = given.get("frame_height") or int(np.ravel(given.get("crop_size", height))[0])
        height = min(height, stats.max_height or height)
    crop = [height, max(STRIDE, STRIDE * round(height * ratio / STRIDE))]
    reason = f"frames are {np.median(widths):.0f} x {np.median(heights):.0f} pixels (median)"
    return [
        Choice("frame_height", height, f"{reason}; the recipe was chosen at about this size"),
        Choice("crop_size", crop, "the whole frame"),
    ]


def _versions(num_clips: int, clip_size: int, crop, networks, is_quick: bool) -> Choice:
    """Choose how many versions of each clip are computed."""
    height, width = np.broadcast_to(crop, 2)
    to_compute, most = FRAMES_TO_COMPUTE * SIDE_2D**2 / (height * width), MAX_VERSIONS
    is_fitted = {*networks} <= {*FITTED_MODELS}
    if is_fitted or ("conv3d" in networks and not is_quick):
        to_compute, most = to_compute * MORE_FRAMES, most * MORE_VERSIONS
    if is_fitted:
        most = min(most, MAX_WINDOWS // num_clips)  # on which it is fitted
    versions = max(2, min(most, int(to_compute / (num_clips * clip_size))))
    reason = f"features of {versions * num_clips * clip_size:,} frames are computed once"
    return Choice("feature_versions", versions, reason)


def _background(stats: ClipStats) -> Choice:
    share = float(np.median(stats.moving_shares))
    reason = f"{100 * share:.0f} % of the picture changes within a clip (median)"
    is_fixed = share < FEW_MOVING_PIXELS
    if still := _still_clips(stats):
        is_fixed = False
        reason = f"{still}: without their background, they would look the same"
    elif is_fixed:
        reason += ": something small moves in front of a fixed camera"
    return Choice("subtract_background", is_fixed, reason)


def _centering(stats: ClipStats, clip_size: int) -> list[Choice]:
    """Keep the mean map of clips of which nothing else would be left."""
    if clip_size == 1:
        return [Choice("center_features", False, "a clip of one frame is its own mean")]
    still = _still_clips(stats)
    return [Choice("center_features", False, f"{still}: they are their own mean")] if still else []


def _still_clips(stats: ClipStats) -> str:
    """Return a note that nothing moves in many of the clips, or an empty one.

    Those of the class with most do not count: one class may mean that nothing moves.
    """
    is_still = stats.moving_shares < STILL
    num_still = int(is_still.sum())
    if stats.labels is not None:
        classes = set(stats.labels[is_still]) - {""}  # of test clips
        of_each = [int((is_still & (stats.labels == name)).sum()) for name in classes]
        num_still = sum(of_each) - max(of_each, default=0)
    if num_still <= MAX_STILL_CLIPS * len(is_still):
        return ""
    return f"nothing moves in {num_still:,} of the {len(is_still):,} clips that were examined"


def training_length(num_clips: int, device_type: str, is_short: bool = False) -> list[Choice]:
    """Return a batch size and a number of epochs that keep the training affordable.

    is_short: only a small network is trained, on features of a frozen one.
    """
    largest = 8 if num_clips < 200 else 16
    # Equally large ones: BatchNorm's statistics over a last batch of two clips are noise.
    batch_size = math.ceil(num_clips / math.ceil(num_clips / largest))
    to_see, most = CLIPS_TO_SEE[device_type], MAX_EPOCHS
    if is_short:
        to_see, most = CLIPS_TO_SEE_2D, MAX_EPOCHS_2D
    epochs = int(np.clip(to_see / num_clips, MIN_EPOCHS, most))
    return [
        Choice("batch_size", batch_size, f"{num_clips:,} clips for training"),
        Choice("num_epochs", epochs, f"so about {epochs * num_clips:,} clips are shown in all"),
    ]


def class_balance(labels) -> list[Choice]:
    """Choose balanced sampling where classes are uneven; labels: of the training clips."""
    if uneven := uneven_classes(labels, UNEVEN):
        return [Choice("balanced_sampling", True, f"{uneven}; each is drawn equally often")]
    return []


def uneven_classes(labels, ratio: float = RATHER_UNEVEN) -> str:
    """Return words about classes if the largest has `ratio` times the clips of the smallest."""
    counts = Counter(labels).most_common()
    (most, largest), (least, smallest) = counts[0], counts[-1]
    if largest < ratio * smallest:
        return ""
    return (
        f"classes are uneven, from {smallest:,} training clips of {least} to {largest:,} of {most}"
    )

"""From decoded frames to the network's input window, for training and for evaluation.

Both give uint8: normalisation happens on the device (`device.to_network_input`), so that a quarter
of the bytes travel. Shapes: T frames, H, W pixels, 3 colours (RGB).
"""

import math

import cv2
import numpy as np

# Parallelism comes from the loader's workers; threads inside each would only fight over cores.
cv2.setNumThreads(0)


def train_transform(frames, rng, *, frame_height, crop, degrees, translate) -> np.ndarray:
    """Scales, turns and shifts a whole clip by one random draw, then cuts out its centre.

    frames: T arrays uint8 [H, W, 3]; crop: (height, width) of the result; degrees, translate: the
    largest turn, and the largest shift as a fraction of the frame's width and height.
    Returns uint8 [T, crop height, crop width, 3].
    """
    frames = [scale_to_height(frame, frame_height) for frame in frames]
    angle = rng.uniform(-degrees, degrees)
    shift_x, shift_y = rng.uniform(-translate, translate, size=2)
    clip = np.empty((len(frames), *crop, 3), np.uint8)
    for frame, window in zip(frames, clip, strict=True):
        height, width = frame.shape[:2]
        pixels_right, pixels_down = round(shift_x * width), round(shift_y * height)
        matrix = affine_matrix(height, width, crop, angle, pixels_right, pixels_down)
        # Nearest neighbour, as torchvision's RandomAffine has it by default, and the fastest.
        cv2.warpAffine(frame, matrix, crop[::-1], dst=window, flags=cv2.INTER_NEAREST)
    return clip


def eval_transform(frames, *, frame_height, crop) -> np.ndarray:
    """Scales a clip and cuts out its centre; nothing is random. Shapes as in `train_transform`."""
    frames = [scale_to_height(frame, frame_height) for frame in frames]
    return np.stack([centre_crop(frame, crop) for frame in frames])


def scale_to_height(frame, height) -> np.ndarray:
    """`frame` scaled to `height` pixels, keeping its shape; as it is where height is None."""
    if height is None or frame.shape[0] == height:
        return frame
    width = max(1, round(frame.shape[1] * height / frame.shape[0]))
    shrinking = height < frame.shape[0]
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return cv2.resize(frame, (width, height), interpolation=interpolation)


def affine_matrix(height, width, crop, angle, pixels_right, pixels_down) -> np.ndarray:
    """2 x 3 matrix that maps a frame's pixels to those of the centre crop of the moved frame.

    The frame is turned clockwise about its centre by `angle` degrees, then shifted: the same
    geometry as torchvision's `affine` followed by `center_crop`, in one step.
    """
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    top, left = crop_corner(height, width, crop)
    return np.array([
        [cosine, -sine, centre_x - cosine * centre_x + sine * centre_y + pixels_right - left],
        [sine, cosine, centre_y - sine * centre_x - cosine * centre_y + pixels_down - top],
    ])


def crop_corner(height, width, crop) -> tuple[int, int]:
    """Top and left edge of the centre crop; negative where the frame is smaller than the crop."""
    return round((height - crop[0]) / 2), round((width - crop[1]) / 2)


def centre_crop(frame, crop) -> np.ndarray:
    """The centre [crop height, crop width, 3] of a frame, with black where it does not reach."""
    height, width = frame.shape[:2]
    top, left = crop_corner(height, width, crop)
    inside = frame[max(top, 0) : top + crop[0], max(left, 0) : left + crop[1]]
    if inside.shape[:2] == tuple(crop):
        return inside
    window = np.zeros((*crop, 3), frame.dtype)
    y, x = max(-top, 0), max(-left, 0)
    window[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return window

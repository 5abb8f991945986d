"""From decoded frames to the network's input window, for training and for evaluation.

Both give uint8: normalisation happens on the device (`device.to_network_input`), so that a quarter
of the bytes travel. Shapes: T frames, H, W pixels, 3 colours (RGB).
"""

import functools
import math

import cv2
import numpy as np

# Parallelism comes from the loader's workers; threads inside each would only fight over cores.
cv2.setNumThreads(0)


def train_transform(rng, *, frame_height, crop, degrees, translate):
    """A function that scales, turns and shifts a frame, then cuts out its centre; one draw a clip.

    Call it with each frame of the clip (uint8 [H, W, 3]) and the array that takes the result
    (uint8 [crop height, crop width, 3]): frame by frame, so that a frame is moved while it is
    still in the processor's cache. crop: (height, width); degrees, translate: the largest turn,
    and the largest shift as a fraction of the frame's width and height.
    """
    angle = rng.uniform(-degrees, degrees)
    shift_x, shift_y = rng.uniform(-translate, translate, size=2)

    @functools.cache  # the frames of a clip are nearly always of one size
    def matrix(height, width):
        pixels_right, pixels_down = round(shift_x * width), round(shift_y * height)
        return affine_matrix(height, width, crop, angle, pixels_right, pixels_down)

    def transform(frame, window):
        frame = scale_to_height(frame, frame_height)
        # Nearest neighbour, as torchvision's RandomAffine has it by default, and the fastest.
        cv2.warpAffine(frame, matrix(*frame.shape[:2]), crop[::-1], dst=window,
                       flags=cv2.INTER_NEAREST)

    return transform


def eval_transform(*, frame_height, crop):
    """As `train_transform`, but it only scales and cuts out the centre; nothing is random."""

    def transform(frame, window):
        window[:] = centre_crop(scale_to_height(frame, frame_height), crop)

    return transform


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

"""From decoded frames to the network's input window, for training and for evaluation.

Both give uint8: normalisation happens on the device (`device.to_network_input`), so that a quarter
of the bytes travel. Shapes: T frames, H, W pixels, 3 colours (RGB).
"""

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np

LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601)
ERASED_SHARE = (0.02, 0.33)
LARGEST_BOX_RATIO = 3.3


class Movement(NamedTuple):
    """How a whole clip is moved: one draw for all its frames."""

    angle: float = 0.0  # degrees, clockwise
    shift: tuple[float, float] = (0.0, 0.0)  # to the right and down, of the width and height
    scale: float = 1.0
    shear: float = 0.0  # degrees, along x
    is_mirrored: bool = False  # left and right exchanged, before all else


def draw_movement(rng, config) -> Movement:
    """A clip's movement; what is off draws nothing, so that it changes no other draw."""
    angle = rng.uniform(-config.affine_degrees, config.affine_degrees)
    shift = rng.uniform(-config.affine_translate, config.affine_translate, size=2)
    scale, shear, is_mirrored = 1.0, 0.0, False
    if config.affine_scale:
        scale = rng.uniform(1 - config.affine_scale, 1 + config.affine_scale)
    if config.affine_shear:
        shear = rng.uniform(-config.affine_shear, config.affine_shear)
    if config.horizontal_flip:
        is_mirrored = rng.random() < config.horizontal_flip
    return Movement(angle, tuple(shift), scale, shear, is_mirrored)


def train_transform(movement: Movement, *, frame_height, crop):
    """A function that scales a frame, moves it, then cuts out its centre.

    Call it with each frame of a clip (uint8 [H, W, 3]) and the array that takes the result
    (uint8 [crop height, crop width, 3]): frame by frame, so that a frame is moved while it is
    still in the processor's cache. crop: (height, width).
    """

    @functools.cache  # the frames of a clip are nearly always of one size
    def matrix(height, width):
        return affine_matrix(height, width, crop, movement)

    def transform(frame, window):
        frame = scale_to_height(frame, frame_height)
        # Nearest neighbour, as torchvision's RandomAffine has it by default, and the fastest.
        cv2.warpAffine(frame, matrix(*frame.shape[:2]), crop[::-1], dst=window,
                       flags=cv2.INTER_NEAREST)

    return transform


def eval_transform(place: float = 0.5, *, frame_height, crop):
    """As `train_transform`, but it only scales and crops; nothing is random.

    place: 0.5 crops the centre, 0 and 1 the ends of the longer side.
    """

    def transform(frame, window):
        window[:] = crop_at(scale_to_height(frame, frame_height), crop, place)

    return transform


# --- what is done to a whole clip --------------------------------------------------------------


def jitter_colours(clip, strength, rng) -> None:
    """Changes brightness, contrast and saturation of a clip in place, by one draw each.

    clip: uint8 [T, H, W, 3]; strength: by up to +- this fraction. All three are linear in the
    colours, so that they are one matrix.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    grey = np.broadcast_to(LUMA, (3, 3))
    colours = contrast * brightness * (saturation * np.eye(3) + (1 - saturation) * grey)
    offset = np.full((3, 1), 128 * (1 - contrast))
    matrix = np.hstack([colours, offset])
    for frame in clip:
        frame[:] = cv2.transform(frame, matrix)


def erase_box(clip, colour, rng) -> None:
    """Paints a random box of a clip, the same in all frames. (Zhong et al., arXiv 1708.04896)

    clip: uint8 [T, H, W, C]; colour: [C]. The box covers 2 to 33 % of the picture.
    """
    height, width = clip.shape[1:3]
    area = rng.uniform(*ERASED_SHARE) * height * width
    ratio = math.exp(rng.uniform(-math.log(LARGEST_BOX_RATIO), math.log(LARGEST_BOX_RATIO)))
    box_height = min(height, round(math.sqrt(area * ratio)))
    box_width = min(width, round(math.sqrt(area / ratio)))
    top = rng.integers(height - box_height, endpoint=True)
    left = rng.integers(width - box_width, endpoint=True)
    clip[:, top : top + box_height, left : left + box_width] = colour


# --- geometry ----------------------------------------------------------------------------------


def scale_to_height(frame, height) -> np.ndarray:
    """`frame` scaled to `height` pixels, keeping its shape; as it is where height is None."""
    if height is None or frame.shape[0] == height:
        return frame
    width = max(1, round(frame.shape[1] * height / frame.shape[0]))
    shrinking = height < frame.shape[0]
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return cv2.resize(frame, (width, height), interpolation=interpolation)


def affine_matrix(height, width, crop, movement: Movement) -> np.ndarray:
    """2 x 3 matrix that maps a frame's pixels to those of the centre crop of the moved frame.

    The frame is mirrored, scaled, sheared and turned about its centre, then shifted by whole
    pixels: the same geometry as torchvision's `affine` followed by `center_crop`, in one step.
    """
    angle, shear = math.radians(movement.angle), math.tan(math.radians(movement.shear))
    cosine, sine = math.cos(angle), math.sin(angle)
    turned = np.array([[cosine, -cosine * shear - sine], [sine, -sine * shear + cosine]])
    linear = movement.scale * turned @ np.diag([-1.0 if movement.is_mirrored else 1.0, 1.0])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = np.array([round(movement.shift[0] * width), round(movement.shift[1] * height)])
    top, left = crop_corner(height, width, crop)
    offset = centre - linear @ centre + shift - [left, top]
    return np.hstack([linear, offset[:, None]])


def crop_corner(height, width, crop) -> tuple[int, int]:
    """Top and left edge of the centre crop; negative where the frame is smaller than the crop."""
    return round((height - crop[0]) / 2), round((width - crop[1]) / 2)


def crop_at(frame, crop, place=0.5) -> np.ndarray:
    """[crop height, crop width, 3] of a frame, with black where it does not reach.

    place: 0.5 for the centre; 0 and 1 for the ends of the side that has more to spare.
    """
    height, width = frame.shape[:2]
    top, left = crop_corner(height, width, crop)
    if place != 0.5 and width - crop[1] >= height - crop[0]:
        left = round(place * (width - crop[1]))
    elif place != 0.5:
        top = round(place * (height - crop[0]))
    inside = frame[max(top, 0) : top + crop[0], max(left, 0) : left + crop[1]]
    if inside.shape[:2] == tuple(crop):
        return inside
    window = np.zeros((*crop, 3), frame.dtype)
    y, x = max(-top, 0), max(-left, 0)
    window[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return window

"""From decoded frames to the network's input window, for training and for evaluation.

The result is uint8; `model.normalize_clips` runs on the device, so only a quarter of the bytes are
copied. Shapes: T frames, H, W pixels, 3 colours (RGB).
"""

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in brightness (ITU-R BT.601)
ERASED_SHARE = (0.02, 0.33)
MAX_BOX_RATIO = 3.3
# Optical flow. A byte covers movements of up to 16 pixels in steps of an eighth; 128 means none.
STEPS_PER_PIXEL = 8
REST = 128
# Half of the resolution. By default the method uses a quarter of it for frames of 112 pixels, and
# all of it for frames of 84 pixels, which takes four times as long.
FINEST_SCALE = 1


class Movement(NamedTuple):
    """The affine transform of a clip, the same for all its frames."""

    angle: float = 0.0  # degrees, clockwise
    shift: tuple[float, float] = (0.0, 0.0)  # right and down, as a fraction of the size
    scale: float = 1.0
    shear: float = 0.0  # degrees, along x
    is_mirrored: bool = False  # left and right are swapped, before all other steps


def draw_movement(rng, config) -> Movement:
    """Draw a clip's movement; a disabled key draws nothing, so that other draws are unchanged."""
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


# Of `affine_interpolation` and `affine_padding`. Nearest neighbour is the fastest, and the default
# of torchvision's RandomAffine.
INTERPOLATIONS = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR}
PADDINGS = {"zeros": cv2.BORDER_CONSTANT, "border": cv2.BORDER_REPLICATE}


def train_transform(
    movement: Movement, *, frame_height, crop, interpolation="nearest", padding="zeros"
):
    """Return a function that scales a frame, moves it, and crops its centre.

    Call it with each frame of a clip (uint8 [H, W, 3]) and an array for the result (uint8
    [crop height, crop width, 3]): frame by frame, while the frame is still in the processor's
    cache. crop: (height, width). interpolation, padding: names as of `F.grid_sample`.
    """

    @functools.cache  # the frames of a clip nearly always have the same size
    def matrix(height, width):
        return affine_matrix(height, width, crop, movement)

    def transform(frame, window):
        frame = scale_to_height(frame, frame_height)
        cv2.warpAffine(
            frame,
            matrix(*frame.shape[:2]),
            crop[::-1],
            dst=window,
            flags=INTERPOLATIONS[interpolation],
            borderMode=PADDINGS[padding],
        )

    return transform


def eval_transform(place: float = 0.5, *, frame_height, crop):
    """Return a function like that of `train_transform`, which only scales and crops.

    place: 0.5 crops the centre, 0 and 1 the ends of the longer side.
    """

    def transform(frame, window):
        window[:] = crop_at(scale_to_height(frame, frame_height), crop, place)

    return transform


# --- augmentation of a whole clip --------------------------------------------------------------


def jitter_colours(clip, strength, rng) -> None:
    """Change brightness, contrast and saturation of a clip in place, each by a random factor.

    clip: uint8 [T, H, W, 3]; strength: the largest change, as a fraction. All three are linear in
    the colours, so one matrix applies them together.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    grey = np.broadcast_to(LUMA, (3, 3))
    colours = contrast * brightness * (saturation * np.eye(3) + (1 - saturation) * grey)
    offset = np.full((3, 1), 128 * (1 - contrast))
    matrix = np.hstack([colours, offset])
    for frame in clip:
        frame[:] = cv2.transform(frame, matrix)


def mask_frames(clip, largest_share, rng) -> None:
    """Replace a run of frames by the clip's mean frame in place. (Park et al., arXiv 1904.08779)

    clip: uint8 [T, H, W, C]. The run has 0 to `largest_share` * T frames, and any place.
    """
    length = rng.integers(int(largest_share * len(clip)), endpoint=True)
    start = rng.integers(len(clip) - length, endpoint=True)
    clip[start : start + length] = clip.mean(0).astype(np.uint8)


def erase_box(clip, colour, rng) -> None:
    """Fill a random box, the same in all frames, in place. (Zhong et al., arXiv 1708.04896)

    clip: uint8 [T, H, W, C]; colour: [C]. The box covers 2 to 33 % of the picture.
    """
    height, width = clip.shape[1:3]
    area = rng.uniform(*ERASED_SHARE) * height * width
    ratio = math.exp(rng.uniform(-math.log(MAX_BOX_RATIO), math.log(MAX_BOX_RATIO)))
    box_height = min(height, round(math.sqrt(area * ratio)))
    box_width = min(width, round(math.sqrt(area / ratio)))
    top = rng.integers(height - box_height, endpoint=True)
    left = rng.integers(width - box_width, endpoint=True)
    clip[:, top : top + box_height, left : left + box_width] = colour


# --- optical flow -----------------------------------------------------------------------------


def optical_flow(frames: np.ndarray) -> np.ndarray:
    """Compute each pixel's movement to the next frame. uint8 RGB [T, H, W, 3] -> [T, H, W, 2].

    The two channels are pixels to the right and down, times 8, plus 128, clipped to 0 to 255. The
    last frame has no next one and gets no movement. (DIS: Kroeger et al., arXiv 1603.03590)
    """
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    method.setFinestScale(FINEST_SCALE)
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in np.ascontiguousarray(frames)]
    flow = np.full((*frames.shape[:3], 2), REST, np.uint8)
    for result, grey, next_grey in zip(flow, greys, greys[1:], strict=False):
        pixels = method.calc(grey, next_grey, None)
        result[:] = np.clip(np.rint(pixels * STEPS_PER_PIXEL) + REST, 0, 255)
    return flow


# --- geometry ----------------------------------------------------------------------------------


def scale_to_height(frame, height) -> np.ndarray:
    """Scale `frame` to `height` pixels, keeping its aspect ratio; None keeps its size."""
    if height is None or frame.shape[0] == height:
        return frame
    width = max(1, round(frame.shape[1] * height / frame.shape[0]))
    shrinking = height < frame.shape[0]
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return cv2.resize(frame, (width, height), interpolation=interpolation)


def affine_matrix(height, width, crop, movement: Movement) -> np.ndarray:
    """Return the 2 x 3 matrix from a frame's pixels to those of the moved frame's centre crop.

    The frame is mirrored, scaled, sheared and rotated about its centre, then shifted by whole
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
    """Return the top and left edge of the centre crop; negative if the frame is smaller."""
    return round((height - crop[0]) / 2), round((width - crop[1]) / 2)


def crop_at(frame, crop, place=0.5) -> np.ndarray:
    """Crop a frame to [crop height, crop width, 3], padded with black.

    place: 0.5 for the centre; 0 and 1 for the ends of the side that exceeds the crop most.
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

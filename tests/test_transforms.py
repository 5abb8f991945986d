import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from transforms import centre_crop, eval_transform, scale_to_height, train_transform

CROP = (84, 84)


class FixedDraw:
    """Stands in for a generator: the draws of one clip, so that a reference can repeat them."""

    def __init__(self, angle, shift_x, shift_y):
        self.angle, self.shift = angle, np.array([shift_x, shift_y])

    def uniform(self, low, high, size=None):
        return self.angle if size is None else self.shift


def apply(transform, frames):
    """The clip uint8 [T, height, width, 3] of the transform's results."""
    clip = np.empty((len(frames), *CROP, 3), np.uint8)
    for frame, window in zip(frames, clip, strict=True):
        transform(frame, window)
    return clip


@pytest.fixture
def frames():
    """Smooth uint8 frames [100, 151, 3], each another: nearest pixels then differ by little."""
    y, x = np.mgrid[0:100, 0:151]
    return [np.stack([x, 2 * y, (x + y) // 2 + shift], axis=2).astype(np.uint8)
            for shift in range(3)]


def reference_clip(frames, angle, shift_x, shift_y):
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    height, width = clip.shape[-2:]
    translate = [round(shift_x * width), round(shift_y * height)]
    moved = reference.affine(clip, angle, translate, scale=1.0, shear=[0.0, 0.0])
    return reference.center_crop(moved, list(CROP)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "draw", [(0, 0, 0), (10, 0, 0), (-7.3, 0.1, -0.05), (4.2, -0.15, 0.15), (90, 0.02, 0.02)]
)
def test_train_transform_is_torchvisions_affine_and_crop(frames, draw):
    transform = train_transform(FixedDraw(*draw), frame_height=100, crop=CROP, degrees=10,
                                translate=0.15)
    clip = apply(transform, frames)
    expected = reference_clip(frames, *draw)
    difference = np.abs(clip.astype(int) - expected)
    # Where a point falls between two pixels, the two may round to different ones.
    assert np.median(difference) == 0
    assert (difference > 4).mean() < 0.01


def test_one_draw_a_clip(frames):
    same = [frames[0]] * 5
    rng = np.random.default_rng(3)
    transform = train_transform(rng, frame_height=100, crop=CROP, degrees=10, translate=0.15)
    clip = apply(transform, same)
    assert (clip == clip[0]).all()
    assert (clip[0] != centre_crop(frames[0], CROP)).any()


def test_draws_cover_their_range(frames):
    rng = np.random.default_rng(0)
    marked = np.zeros((100, 100, 3), np.uint8)
    marked[49:51, 49:51] = 255
    places = []
    for _ in range(200):
        transform = train_transform(rng, frame_height=100, crop=CROP, degrees=10, translate=0.15)
        clip = apply(transform, [marked])
        places.append(np.argwhere(clip[0, :, :, 0] > 0).mean(0) - 41.5)
    spread = np.abs(places).max(0)
    assert (spread > 14).all() and (spread < 17).all()


def test_evaluation_takes_the_centre_and_draws_nothing(frames):
    clip = apply(eval_transform(frame_height=100, crop=CROP), frames)
    expected = reference_clip(frames, 0, 0, 0)
    assert (clip == expected).all()
    plain = v2.functional.center_crop(torch.from_numpy(frames[0]).permute(2, 0, 1), list(CROP))
    assert (clip[0] == plain.permute(1, 2, 0).numpy()).all()


def test_small_frames_are_padded_with_black():
    frame = np.full((50, 201, 3), 9, np.uint8)
    window = centre_crop(frame, CROP)
    expected = v2.functional.center_crop(torch.from_numpy(frame).permute(2, 0, 1), list(CROP))
    assert (window == expected.permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize(("height", "width"), [(480, 640), (50, 80), (100, 10)])
def test_frames_of_any_size_come_to_one_height(height, width):
    scaled = scale_to_height(np.zeros((height, width, 3), np.uint8), 100)
    assert scaled.shape == (100, round(width * 100 / height), 3)
    assert scale_to_height(scaled, None) is scaled

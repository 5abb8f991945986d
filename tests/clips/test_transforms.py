from unittest import mock

import numpy as np
import pytest
import torch
from conftest import make_config
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from clips.transforms import (
    Movement,
    crop_at,
    draw_movement,
    erase_box,
    eval_transform,
    jitter_colours,
    scale_to_height,
    train_transform,
)

CROP = (84, 84)


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
    return [
        np.stack([x, 2 * y, (x + y) // 2 + shift], axis=2).astype(np.uint8) for shift in range(3)
    ]


def reference_clip(frames, movement):
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    clip = clip.flip(3) if movement.is_mirrored else clip
    height, width = clip.shape[-2:]
    translate = [round(movement.shift[0] * width), round(movement.shift[1] * height)]
    moved = reference.affine(clip, movement.angle, translate, movement.scale, [movement.shear, 0.0])
    return reference.center_crop(moved, list(CROP)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "movement",
    [
        Movement(),
        Movement(10),
        Movement(-7.3, (0.1, -0.05)),
        Movement(4.2, (-0.15, 0.15)),
        Movement(90, (0.02, 0.02)),
        Movement(scale=1.2),
        Movement(shear=12),
        Movement(is_mirrored=True),
        Movement(9, (0.1, -0.1), 0.8, -8, True),
    ],
)
def test_train_transform_is_torchvisions_affine_and_crop(frames, movement):
    clip = apply(train_transform(movement, frame_height=100, crop=CROP), frames)
    expected = reference_clip(frames, movement)
    difference = np.abs(clip.astype(int) - expected)
    # Where a point falls between two pixels, the two may round to different ones.
    assert np.median(difference) == 0
    assert (difference > 4).mean() < 0.01


def test_moved_frames_can_be_smooth_and_without_black_edges(frames):
    movement = Movement(7, (0.1, -0.15), 0.9)
    smooth = train_transform(
        movement, frame_height=100, crop=CROP, interpolation="bilinear", padding="border"
    )
    bright = [np.full_like(frame, 200) for frame in frames]
    assert (apply(smooth, bright) == 200).all()
    assert (apply(train_transform(movement, frame_height=100, crop=CROP), bright) == 0).any()
    steps = [
        np.tile((np.arange(frame.shape[1]) > 60)[None, :, None], (frame.shape[0], 1, 3))
        for frame in frames
    ]
    steps = [np.uint8(255 * step) for step in steps]
    assert set(np.unique(apply(smooth, steps))) > {0, 255}


def test_draws_cover_their_range():
    config = make_config(
        affine_degrees=10,
        affine_translate=0.15,
        affine_scale=0.2,
        affine_shear=5,
        horizontal_flip=0.3,
        flip_labels="unchanged",
    )
    rng = np.random.default_rng(0)
    draws = [draw_movement(rng, config) for _ in range(500)]
    values = np.array([[d.angle, *d.shift, d.scale - 1, d.shear] for d in draws])
    largest = np.array([10, 0.15, 0.15, 0.2, 5])
    found = np.abs(values).max(0)
    assert (found <= largest).all() and (found > 0.95 * largest).all()
    assert np.mean([d.is_mirrored for d in draws]) == pytest.approx(0.3, abs=0.06)


def test_what_is_off_draws_nothing():
    """So that switching one augmentation on leaves all other draws as they were."""
    plain = draw_movement(np.random.default_rng(1), make_config())
    with_scale = draw_movement(np.random.default_rng(1), make_config(affine_scale=0.5))
    assert with_scale[:2] == plain[:2] and with_scale.scale != 1


def test_evaluation_takes_the_centre_and_draws_nothing(frames):
    clip = apply(eval_transform(frame_height=100, crop=CROP), frames)
    expected = reference_clip(frames, Movement())
    assert (clip == expected).all()
    plain = v2.functional.center_crop(torch.from_numpy(frames[0]).permute(2, 0, 1), list(CROP))
    assert (clip[0] == plain.permute(1, 2, 0).numpy()).all()


def test_small_frames_are_padded_with_black():
    frame = np.full((50, 201, 3), 9, np.uint8)
    window = crop_at(frame, CROP)
    expected = v2.functional.center_crop(torch.from_numpy(frame).permute(2, 0, 1), list(CROP))
    assert (window == expected.permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize(("height", "width"), [(480, 640), (50, 80), (100, 10)])
def test_frames_of_any_size_come_to_one_height(height, width):
    scaled = scale_to_height(np.zeros((height, width, 3), np.uint8), 100)
    assert scaled.shape == (100, round(width * 100 / height), 3)
    assert scale_to_height(scaled, None) is scaled


def test_crops_at_both_ends_of_the_longer_side(frames):
    for place, columns in ((0.0, slice(0, 84)), (0.5, slice(34, 118)), (1.0, slice(67, 151))):
        assert (crop_at(frames[0], CROP, place) == frames[0][8:92, columns]).all()
    upright = frames[0].transpose(1, 0, 2)
    assert (crop_at(upright, CROP, 1.0) == upright[67:151, 8:92]).all()


@pytest.mark.parametrize(
    "factors, adjust",
    [((1.2, 1, 1), reference.adjust_brightness), ((1, 1, 0.3), reference.adjust_saturation)],
)
def test_colours_are_torchvisions(frames, factors, adjust):
    clip = np.stack(frames)[:, :84, :84] // 2  # so that nothing is cut off
    factor = next(factor for factor in factors if factor != 1)
    expected = adjust(torch.from_numpy(clip).permute(0, 3, 1, 2), factor)
    rng = mock.Mock()
    rng.uniform.return_value = np.array(factors)
    jitter_colours(clip, 0.5, rng)
    difference = np.abs(clip.astype(int) - expected.permute(0, 2, 3, 1).numpy())
    assert difference.max() <= 2  # torchvision cuts fractions off, twice


def test_contrast_spreads_around_the_middle():
    clip = np.array([64, 128, 192], np.uint8).repeat(3).reshape(1, 1, 3, 3)
    rng = mock.Mock()
    rng.uniform.return_value = np.array([1.0, 0.5, 1.0])
    jitter_colours(clip, 0.5, rng)
    assert clip[0, 0, :, 0].tolist() == [96, 128, 160]


def test_erasing_paints_one_box_in_all_frames():
    shares = []
    for seed in range(200):
        clip = np.zeros((3, 84, 84, 5), np.uint8)
        erase_box(clip, np.full(5, 7), np.random.default_rng(seed))
        assert (clip == clip[0]).all() and set(np.unique(clip)) == {0, 7}
        rows, columns = np.nonzero(clip[0, :, :, 0])
        assert (clip[0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == 7).all()
        shares.append((clip == 7).mean())
    assert 0.015 < min(shares) < 0.05 and 0.25 < max(shares) < 0.36

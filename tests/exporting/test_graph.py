"""The scaling and cropping in the exported graph are those of OpenCV and of `clips.transforms`."""

import cv2
import numpy as np
import pytest
import torch
from conftest import make_config

from clips.reading import eval_transforms
from exporting.graph import Crops

SIZES = [(100, 176), (240, 320), (101, 77), (60, 45), (33, 200), (84, 84), (168, 90), (2, 2)]


def natural(height, width):
    """A picture with coarse and fine structure, uint8 [H, W, 3]."""
    rng = np.random.default_rng(height)
    coarse = cv2.resize(rng.integers(0, 256, (5, 7, 3)).astype(np.uint8), (width, height))
    noise = rng.integers(-20, 20, coarse.shape)
    return np.clip(coarse.astype(int) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "keys",
    [
        {"frame_height": 100, "crop_size": 84},
        {"frame_height": 84, "crop_size": [84, 96]},
        {"frame_height": 50, "crop_size": [30, 41], "ncrops": 3},
        {"frame_height": None, "crop_size": 64, "ncrops": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crops_are_those_of_evaluation(keys, size):
    config = make_config(**keys)
    frame = natural(*size)
    expected = np.empty((config.ncrops, *config.crop, 3), np.uint8)
    for transform, window in zip(eval_transforms(config), expected, strict=True):
        transform(frame, window)
    difference = np.abs(Crops(config)(torch.from_numpy(frame)).numpy().astype(int) - expected)
    assert difference.max() <= 1  # OpenCV rounds down a little where it enlarges
    assert difference.mean() < (
        0.15 if config.frame_height and size[0] < config.frame_height else 0.01
    )

import pytest
import torch

from errors import UserError
from model import ConvColumn, count_parameters, describe

PUBLISHED_WIDTHS = ([32, 64, 124, 256], [512, 512, 256])


def conv_column(clip_shape, num_classes=27):
    return ConvColumn(num_classes, clip_shape, *PUBLISHED_WIDTHS, dropout=0.15)


def test_published_stages_parameters_and_operations():
    model = conv_column((18, 84, 84))
    assert count_parameters(model) == 3_886_883
    lines = describe(model, (18, 84, 84)).split("\n")
    shapes = [line[16:40].strip() for line in lines[1:-1]]
    assert shapes == ["3, 18, 84, 84", "32, 9, 41, 41", "64, 4, 19, 19", "124, 2, 8, 8",
                      "256, 1, 3, 3", "512, 1, 1, 1", "512", "256", "27"]
    assert lines[-1].split() == ["total", "8.87", "GFLOP", "a", "clip", "3,886,883"]
    assert model.last_conv.kernel_size == (1, 3, 3)


@pytest.mark.parametrize(
    "clip_shape",
    [(1, 84, 84), (8, 40, 40), (16, 112, 112), (18, 100, 176), (37, 50, 60), (70, 64, 64),
     (5, 4, 4), (2, 5, 90)],
)  # fmt: skip
def test_any_clip_is_reduced_to_one_vector(clip_shape):
    with torch.device("meta"):
        model = conv_column(clip_shape, num_classes=5).eval()
        features = model.last_conv(model.blocks(torch.empty(2, 3, *clip_shape)))
        assert features.shape == (2, 512, 1, 1, 1)
        assert model(torch.empty(2, 3, *clip_shape)).shape == (2, 5)


@pytest.mark.parametrize("clip_shape", [(18, 3, 84), (18, 84, 1), (1, 3, 3)])
def test_too_small_a_clip_names_the_smallest_that_works(clip_shape):
    with pytest.raises(UserError, match=r"crop_size: .* smallest that works is 4 x 4"):
        conv_column(clip_shape)
    conv_column((1, 4, 4))

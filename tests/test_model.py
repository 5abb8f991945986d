import copy

import pytest
import torch
from conftest import make_config as config_with
from torchvision.transforms.functional import InterpolationMode, affine

import train
from model import VIEWS, ConvColumn, build_model, conv_block, normalize_clips, views_of
from networks import stages
from networks.inference import fold_batchnorm
from networks.stages import count_parameters, describe, format_description
from scoring.evaluation import clip_logits
from system.errors import UserError

PUBLISHED_WIDTHS = ([32, 64, 124, 256], [512, 512, 256])


def conv_column(clip_shape, num_classes=27):
    return ConvColumn(num_classes, clip_shape, *PUBLISHED_WIDTHS, dropout=0.15)


def test_published_stages_parameters_and_operations():
    model = conv_column((18, 84, 84))
    assert count_parameters(model) == 3_886_883
    network = describe(model, (18, 84, 84))
    assert [stage.shape for stage in network.stages] == [
        (3, 18, 84, 84),
        (32, 9, 41, 41),
        (64, 4, 19, 19),
        (124, 2, 8, 8),
        (256, 1, 3, 3),
        (512, 1, 1, 1),
        (512,),
        (256,),
        (27,),
    ]
    assert network.num_parameters == 3_886_883 and round(network.flops / 1e7) == 887
    table = format_description(network)
    assert "blocks.1        64, 4, 19, 19" in table and "8.87 GFLOP per clip" in table
    assert model.last_conv.kernel_size == (1, 3, 3)


def test_batches_that_slow_kernels_would_compute_are_known():
    """The second convolution of the first block gives 32 x 18 x 82 x 82 elements per clip."""
    model = conv_column((18, 84, 84))
    network = describe(model, (18, 84, 84))
    most = network.max_clips
    assert most == 554 and most * 32 * 18 * 82 * 82 < 2**31 <= 555 * 32 * 18 * 82 * 82
    plain = format_description(network)
    assert format_description(network, 554) == plain
    warning = format_description(network, 555).removeprefix(plain + "\n")
    assert warning.startswith("warning: 555 clips at once make tensors of more than 2^31 elements")
    assert warning.endswith("raise accumulate_steps, so that a part has at most 554 clips")


def test_training_warns_of_a_batch_that_slow_kernels_compute(write_config, monkeypatch, capsys):
    """The widest tensor of the tiny network has 4 x 4 x 18 x 18 elements per clip."""
    monkeypatch.setattr(stages, "MAX_ELEMENTS", 3 * 4 * 4 * 18 * 18)
    for parts, warns in ((1, True), (2, False)):
        config = write_config(num_epochs=1, model_name=f"{parts} parts", accumulate_steps=parts)
        assert train.main(["-c", config, "-g", "cpu"]) == 0
        assert ("warning: 4 clips at once" in capsys.readouterr().out) == warns


@pytest.mark.parametrize(
    "clip_shape",
    [
        (1, 84, 84),
        (8, 40, 40),
        (16, 112, 112),
        (18, 100, 176),
        (37, 50, 60),
        (70, 64, 64),
        (5, 4, 4),
        (2, 5, 90),
    ],
)
def test_any_clip_is_reduced_to_one_vector(clip_shape):
    with torch.device("meta"):
        model = conv_column(clip_shape, num_classes=5).eval()
        features = model.last_conv(model.blocks(torch.empty(2, 3, *clip_shape)))
        assert features.shape == (2, 512, 1, 1, 1)
        assert model(torch.empty(2, 3, *clip_shape)).shape == (2, 5)


@pytest.mark.parametrize("clip_shape", [(18, 3, 84), (18, 84, 1), (1, 3, 3)])
def test_too_small_a_clip_is_refused(clip_shape):
    with pytest.raises(UserError, match=r"crop_size: .* raise crop_size to 4 x 4"):
        conv_column(clip_shape)
    conv_column((1, 4, 4))


def test_for_inference_folds_batchnorm_and_gives_the_same_logits():
    torch.manual_seed(0)
    model = conv_column((4, 20, 20), num_classes=5)
    for _ in range(3):  # so that the running statistics are of something
        model(torch.randn(8, 3, 4, 20, 20))
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold_batchnorm(model)
    clips = torch.randn(6, 3, 4, 20, 20)
    torch.testing.assert_close(folded(clips), model(clips), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in folded.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_pooling_before_the_activation_gives_the_same_bits():
    """Forward and backward; a block is written there in the tutorial's order."""
    torch.manual_seed(0)
    block = conv_block(3, 8, has_time=True)
    first, second = (torch.randn(2, 3, 6, 20, 20) for _ in range(2))
    in_order = [copy.deepcopy(block[index]) for index in (0, 1, 2, 3, 4, 6, 5)]
    tutorial = torch.nn.Sequential(*in_order)
    for clips in (first, second):
        outputs = [layers(clips) for layers in (block, tutorial)]
        assert torch.equal(*outputs)
        for output in outputs:
            output.square().sum().backward()
    gradients = [[p.grad for p in layers.parameters()] for layers in (block, tutorial)]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_the_input_is_normalised_and_channels_last():
    clips = torch.randint(256, (2, 3, 4, 5, 3), dtype=torch.uint8)  # [N, T, H, W, C]
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    inputs = normalize_clips(clips, torch.device("cpu"), config_with(mean=mean, std=std))
    expected = (clips.double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(inputs.double(), expected.permute(0, 4, 1, 2, 3), atol=1e-6, rtol=0)
    assert inputs.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_background_can_be_subtracted():
    clips = torch.randint(256, (2, 1, 4, 5, 3), dtype=torch.uint8).repeat(1, 3, 1, 1, 1)
    clips[:, 1, 2, 3] ^= 255  # one pixel changes for one frame
    inputs = normalize_clips(clips, torch.device("cpu"), config_with(subtract_background=True))
    torch.testing.assert_close(inputs.mean(2), torch.zeros(2, 3, 4, 5), atol=1e-6, rtol=0)
    moving = inputs.abs().amax((0, 1, 2)) > 1e-6
    assert moving.nonzero().tolist() == [[2, 3]]
    flow = config_with(subtract_background=True, model="two_stream", crop_size=16)
    clips = torch.full((1, 3, 16, 16, 5), 200, dtype=torch.uint8)  # all moves, steadily
    inputs = normalize_clips(clips, torch.device("cpu"), flow)
    assert inputs[:, :3].abs().max() < 1e-6 and inputs[:, 3:].min() > 1
    assert inputs.is_contiguous(memory_format=torch.channels_last_3d)


def test_views_are_the_clip_and_what_torchvision_turns_shifts_and_scales():
    clips = torch.zeros(2, 3, 4, 40, 60)
    clips[:, :, :, 12:22, 30:45] = torch.rand(2, 3, 4, 10, 15)
    views = views_of(clips, len(VIEWS)).unflatten(0, (2, len(VIEWS)))
    assert torch.equal(views[:, 0], clips)
    for view, (degrees, right, down, scale) in enumerate(VIEWS[1:], 1):
        expected = affine(
            clips.flatten(0, 2),
            degrees,
            [right * 60, down * 40],
            scale,
            shear=0,
            interpolation=InterpolationMode.BILINEAR,
        )
        # torchvision shifts by whole pixels
        torch.testing.assert_close(views[:, view].flatten(0, 2), expected, rtol=0, atol=0.3)
        difference = views[:, view].mean((-1, -2)) - expected.view_as(clips).mean((-1, -2))
        assert difference.abs().max() < 1e-3
    assert torch.equal(views_of(clips, 1), clips)
    even = torch.full((1, 3, 2, 8, 8), 0.5)
    torch.testing.assert_close(views_of(even, 4), even.expand(4, -1, -1, -1, -1))


def test_the_scores_of_views_are_averaged():
    config = config_with(clip_size=4, crop_size=20, nviews=3, num_classes=3)
    model = build_model(config, 3).eval()
    windows = torch.randint(0, 256, (4, *config.clip_shape, 3), dtype=torch.uint8)
    device = torch.device("cpu")
    logits = clip_logits(model, windows, 2, device, config)
    with torch.no_grad():
        views = model(views_of(normalize_clips(windows, device, config), 3)).softmax(1)
    torch.testing.assert_close(logits.exp(), views.view(2, 6, 3).mean(1))

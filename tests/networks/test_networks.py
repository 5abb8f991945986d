"""Every network: shapes, sizes as published, gradients everywhere, clips that are too small."""

import numpy as np
import pytest
import torch
from conftest import make_config, network_keys, slow_except
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from config import BACKBONES, FITTED_MODELS, FRAME_MODELS, MODELS
from model import build_model
from networks.frame_networks import TemporalRelationNetwork
from networks.inference import fold_batchnorm
from networks.stages import count_parameters, describe, run_on_meta, to_meta
from system.errors import UserError

SMALL = {"clip_size": 4, "crop_size": 40, "backbone": "mobilenet_v3_small"}
SHORT = [name for name in MODELS if not name.startswith(("mvit", "swin3d_s", "swin3d_b"))]


def small_config(name, **keys):
    options = {key: value for key, value in SMALL.items() if key != "backbone"}
    if name in FRAME_MODELS:
        options = SMALL
    if name == "s3d":
        options = options | {"clip_size": 8}
    return make_config(**network_keys(name), **options | keys)


def use_own_statistics(model, clips):
    """Sets BatchNorm to the statistics of `clips`, as if it had been trained on them."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0
    model.train()(clips)
    model.eval()


@pytest.mark.parametrize(
    "name",
    slow_except(
        [name for name in SHORT if name != "average"],
        [name for name in SHORT if name not in ("mc3_18", "r2plus1d_18", "swin3d_t")],
    ),
)
def test_clips_become_logits_and_every_weight_learns(name):
    torch.manual_seed(0)
    config = small_config(name)
    model = build_model(config, 5).train()
    clips = torch.randn(2, config.num_channels, config.clip_size, 40, 40)
    logits = model(clips)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None and p.requires_grad]
    assert without == []
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(clips), model(clips))
        torch.testing.assert_close(fold_batchnorm(model)(clips), model(clips), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "name", slow_except(MODELS, ["conv3d", "eco", "average", "linear", "trn", "s3d"])
)
def test_the_stage_table_serves_every_network(name):
    size = {"clip_size": 16, "crop_size": 224 if name.startswith("mvit") else 112}
    with torch.device("meta"):
        model = build_model(make_config(**network_keys(name), **size), 27)
    network = describe(model, (16, *[size["crop_size"]] * 2))
    counts = [stage.num_parameters for stage in network.stages]
    loose = sum(p.numel() for p in model.parameters(recurse=False))
    assert sum(counts) + loose == network.num_parameters == count_parameters(model)
    assert network.stages[0].shape[:2] == (3, 16) or name == "two_stream"
    assert network.flops > 1e6 or name == "linear"


@pytest.mark.parametrize(
    "name, keys, num_classes, shape, parameters, gflop",
    # As published, where a multiply-add counts as one operation: on Kinetics-600 in arXiv
    # 1904.02422, on Kinetics-400 in torchvision's documentation and arXiv 1904.02811.
    [
        ("mobilenet3d", {}, 600, (16, 112, 112), 3.12e6, 2 * 0.56),
        ("r3d_18", {}, 400, (16, 112, 112), 33.37e6, 2 * 40.7),
        ("csn", {"depth": 101}, 400, (8, 224, 224), 22.1e6, 2 * 14.1),
    ],
)
def test_sizes_are_the_published_ones(name, keys, num_classes, shape, parameters, gflop):
    frames, *side = shape
    with torch.device("meta"):
        config = make_config(model=name, clip_size=frames, crop_size=side, **keys)
        model = build_model(config, num_classes)
    assert count_parameters(model) == pytest.approx(parameters, rel=0.02)
    with FlopCounterMode(display=False) as counter:
        run_on_meta(to_meta(model), shape)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=0.1)


@pytest.mark.parametrize(
    "name", slow_except([*SHORT, *BACKBONES], ["conv3d", "eco", "csn", "mobilenet_v2"])
)
def test_running_statistics_follow_within_tens_of_steps(name):
    keys = {"model": "cnn_lstm", "backbone": name} if name in BACKBONES else {}
    with torch.device("meta"):
        model = build_model(make_config(**keys) if keys else small_config(name), 5)
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, _BatchNorm))


def test_only_depthwise_kernels_of_csn_see_time_and_space():
    model = build_model(small_config("csn", width=0.5), 5)
    kernels = [module for module in model.layers.modules() if isinstance(module, nn.Conv3d)]
    seeing = [kernel for kernel in kernels if kernel.kernel_size != (1, 1, 1)]
    assert len(seeing) == 8 and all(k.groups == k.in_channels for k in seeing)
    # With the stem and the classifier: the layers that its name counts, shortcuts apart.
    shortcuts = sum(len(layer.shortcut) > 0 for layer in model.layers)
    assert len(kernels) - shortcuts + 2 == 26 and shortcuts == 4


@pytest.mark.parametrize(
    "name, keys, remedy",
    [
        ("mvit_v2_s", {}, "clip_size 16 and crop_size 224 only"),
        ("conv3d", {"crop_size": 3}, "raise crop_size to 4 x 4 or more"),
        ("s3d", {"clip_size": 1}, "s3d cannot use .* raise clip_size"),
    ],
)
def test_clips_that_are_too_small_are_refused(name, keys, remedy):
    with pytest.raises(UserError, match=remedy):
        build_model(small_config(name, **keys), 5)


def test_relations_are_of_ordered_frames_and_repeat_in_evaluation():
    model = TemporalRelationNetwork(small_config("trn", clip_size=6), 3)
    assert model.scales == [6, 5, 4, 3, 2]
    for is_training in (True, False):
        model.train(is_training)
        for scale in model.scales:
            tuples = model.tuples(scale, "cpu")
            assert (tuples.diff(dim=1) > 0).all() and tuples.max() < 6
            assert tuples.shape == (1 if scale == 6 else 3, scale)
    assert torch.equal(model.tuples(2, "cpu"), model.tuples(2, "cpu"))


@pytest.mark.parametrize("name", ["conv3d", *FRAME_MODELS, "mobilenet3d", "csn"])
def test_the_order_of_frames_matters_to_every_approach(name):
    """The order-free part of two_stream apart, reversing a clip moves the logits."""
    torch.manual_seed(0)
    config = small_config(name)
    model = build_model(config, 5)
    clips = torch.randn(4, config.num_channels, 4, 40, 40)
    use_own_statistics(model, clips)
    if name in FITTED_MODELS:
        maps = model.inputs(model.frame_features(clips)).detach().numpy()
        model.fit(maps, np.arange(4), np.arange(4))
    assert (model(clips) - model(clips.flip(2))).abs().max() > 1e-5

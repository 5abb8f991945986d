"""Several networks together."""

import pytest
import torch
from conftest import make_config

from model import build_model
from training.optimization import training_loss

KEYS = {
    "model": "average",
    "members": ["eco", "conv3d", "linear"],
    "backbone": "mobilenet_v3_small",
    "clip_size": 4,
    "crop_size": [32, 48],
    "small_frame_height": 20,
    "block_widths": [4, 8],
    "head_widths": [16, 8],
}

DEFAULT_WIDTHS = {"block_widths": [32, 64, 124, 256], "head_widths": [512, 512, 256]}


def average(**keys):
    return build_model(make_config(**KEYS | keys), 3)


def small_clips(clips):
    size = (clips.shape[2], 20, 30)
    return torch.nn.functional.interpolate(clips, size, mode="area")


@torch.no_grad()
def test_the_answer_is_the_mean_probability_of_the_members():
    network, clips = average().eval(), torch.randn(2, 3, 4, 32, 48)
    members = network.members
    maps = network.backbone(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 4))
    own = [
        members["eco"].classify_features(maps),
        members["conv3d"](small_clips(clips)),
        members["linear"](small_clips(clips)),
    ]
    expected = torch.stack([logits.softmax(1) for logits in own]).mean(0)
    torch.testing.assert_close(network(clips).exp(), expected)


@torch.no_grad()
def test_the_answer_may_be_the_product_of_the_probabilities():
    mean, product = average().eval(), average(combine="product").eval()
    product.load_state_dict(mean.state_dict())
    clips = torch.randn(2, 3, 4, 32, 48)
    small, maps = product.split_features(product.frame_features(clips))
    members = product.members.values()
    own = [
        (each.classify_features(maps) if hasattr(each, "classify_features") else each(small))
        for each in members
    ]
    expected = torch.stack([logits.softmax(1) for logits in own]).prod(0)
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(product(clips).exp(), expected)
    assert not torch.allclose(mean(clips), product(clips))


def test_each_member_learns_as_it_does_alone():
    network = average(members=["eco", "conv3d"], dropout=0.0)
    clips, labels = torch.randn(3, 3, 4, 32, 48), torch.tensor([0, 1, 2])
    logits = network(clips)
    assert logits.shape == (3, 2, 3)
    conv3d = list(network.members["conv3d"].parameters())
    together = torch.autograd.grad(training_loss(logits, labels, 0.1), conv3d)
    alone = training_loss(network.members["conv3d"](small_clips(clips)), labels, 0.1)
    for one, other in zip(together, torch.autograd.grad(alone / 2, conv3d), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_background_is_that_of_the_small_clips_only():
    network, plain = average(subtract_background=True).eval(), average().eval()
    plain.load_state_dict(network.state_dict())
    still = torch.randn(1, 3, 1, 32, 48).expand(-1, -1, 4, -1, -1)
    small, maps = network.split_features(network.frame_features(still))
    assert small.abs().max() < 1e-6 and maps.abs().max() > 0
    assert torch.equal(maps, plain.split_features(plain.frame_features(still))[1])


@torch.no_grad()
def test_networks_on_maps_share_the_2d_network():
    network = average(members=["eco", "kernel_ridge"], **DEFAULT_WIDTHS).eval()
    names = {name.split(".backbone.")[0] for name in network.state_dict() if "backbone." in name}
    assert all(name.startswith("backbone.") for name in names)
    network.members["kernel_ridge"].classifier.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    probabilities = network(torch.randn(2, 3, 4, 32, 48)).exp()
    assert (probabilities[:, 1] > 0.5).all()


def test_what_is_fitted_is_not_trained():
    network = average(members=["eco", "kernel_ridge", "linear"], **DEFAULT_WIDTHS)
    for name in ("kernel_ridge", "linear"):
        member = network.members[name]
        assert not any(value.requires_grad for value in member.parameters())
    assert any(value.requires_grad for value in network.members["eco"].parameters())


def test_the_loss_of_members_is_the_mean_of_theirs():
    logits, labels = torch.randn(5, 2, 3), torch.tensor([0, 1, 2, 0, 1])
    own = [training_loss(logits[:, place], labels, 0.1) for place in (0, 1)]
    torch.testing.assert_close(training_loss(logits, labels, 0.1), sum(own) / 2)
    soft = torch.nn.functional.one_hot(labels, 3).float()
    torch.testing.assert_close(training_loss(logits, soft, 0.1), sum(own) / 2)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"members": ["eco"]}, "average needs two or more, each once"),
        ({"members": ["eco", "eco"]}, "average needs two or more, each once"),
        ({"members": ["eco", "trn"]}, "average takes only one of them"),
        ({"members": ["eco", "kernel_ridge", "cnn_lstm"]}, "average takes only one of them"),
        ({"model": "eco"}, "members: found .* it applies to average, not to eco"),
        (
            {"members": ["eco", "linear"]},
            "block_widths: .* applies to conv3d, not to eco and linear",
        ),
    ],
)
def test_keys_that_do_not_fit(keys, message):
    with pytest.raises(ValueError, match=message):
        make_config(**KEYS | keys)

"""The mean of several networks, and the linear model."""

import math

import numpy as np
import pytest
import torch
from conftest import make_config

from model import build_model
from networks.linear import LinearModel
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


# --- the linear model --------------------------------------------------------------------------


def separable(num_clips, num_classes, rng):
    """Clips whose class is in one corner's brightness, and noise."""
    labels = np.arange(num_clips) % num_classes
    inputs = rng.normal(0, 1, (num_clips, 8 * 16 * 16)).astype(np.float32)
    inputs[np.arange(num_clips), labels] += 12
    return inputs, labels


@torch.no_grad()
@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_linear_model_is_fitted_in_closed_form(num_classes):
    rng = np.random.default_rng(0)
    model = LinearModel(make_config(model="linear"), num_classes)
    inputs, labels = separable(80, num_classes, rng)
    model.fit(inputs, labels)
    unseen, expected = separable(40, num_classes, rng)
    logits = model.classifier(torch.from_numpy(unseen))
    assert (logits.argmax(1).numpy() == expected).mean() > 0.9
    assert 0 <= float(model.log_scale) <= 6 and np.isfinite(float(model.log_scale))
    assert [name for name, value in model.named_parameters() if value.requires_grad] == [
        "log_scale"
    ]


def test_a_class_without_clips_and_a_single_clip_are_no_error():
    model = LinearModel(make_config(model="linear"), 3)
    model.fit(*separable(12, 2, np.random.default_rng(0)))
    assert model.classifier.weight.isfinite().all()
    model.fit(np.zeros((1, 2048), np.float32), np.array([1]))
    assert math.isfinite(float(model.log_scale))


@pytest.mark.parametrize("num_frames", [1, 8, 12])
def test_clips_of_any_length_are_eight_small_grey_frames(num_frames):
    model = LinearModel(make_config(model="linear", clip_size=num_frames), 3)
    clips = torch.arange(num_frames, dtype=torch.float).view(1, 1, -1, 1, 1)
    inputs = model.inputs(clips.expand(2, 3, -1, 20, 30))
    assert inputs.shape == (2, 8 * 16 * 16)
    places = inputs[0].view(8, -1).mean(1)
    assert places.tolist() == sorted(places.tolist())

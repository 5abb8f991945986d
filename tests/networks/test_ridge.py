"""Ridge regressions of pixels and of a 2D network's maps, fitted in closed form."""

import math

import numpy as np
import pytest
import torch
from conftest import make_config

from model import build_model
from networks import ridge
from networks.ridge import LinearModel

MAPS = {"model": "kernel_ridge", "backbone": "mobilenet_v3_small", "clip_size": 8, "crop_size": 48}


def separable(num_clips, num_classes, rng, num_inputs=8 * 16 * 16):
    """Return inputs whose class is in one of them, among noise, and their labels."""
    labels = np.arange(num_clips) % num_classes
    inputs = rng.normal(0, 1, (num_clips, num_inputs)).astype(np.float32)
    inputs[np.arange(num_clips), labels] += 12
    return inputs, labels


def kernel_model(num_classes=3, **keys):
    return build_model(make_config(**MAPS | keys), num_classes).eval()


def trained_names(model):
    return [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and not name.startswith("backbone.")
    ]


@torch.no_grad()
@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_linear_model_is_fitted_in_closed_form(num_classes):
    rng = np.random.default_rng(0)
    model = LinearModel(make_config(model="linear"), num_classes)
    inputs, labels = separable(80, num_classes, rng)
    model.fit(inputs, labels, np.arange(80))
    unseen, expected = separable(40, num_classes, rng)
    logits = model.classifier(torch.from_numpy(unseen))
    assert (logits.argmax(1).numpy() == expected).mean() > 0.9
    assert 0 <= model.log_scale.item() <= 6 and np.isfinite(model.log_scale.item())
    assert trained_names(model) == ["log_scale"]


def test_a_class_without_clips_and_a_single_clip_are_no_error():
    model = LinearModel(make_config(model="linear"), 3)
    inputs, labels = separable(12, 2, np.random.default_rng(0))
    model.fit(inputs, labels, np.arange(12))
    assert model.classifier.weight.isfinite().all()
    model.fit(np.zeros((1, 2048), np.float32), np.array([1]), np.array([0]))
    assert math.isfinite(model.log_scale.item())


@pytest.mark.parametrize("num_frames", [1, 8, 12])
def test_clips_of_any_length_are_eight_small_grey_frames(num_frames):
    model = LinearModel(make_config(model="linear", clip_size=num_frames), 3)
    clips = torch.arange(num_frames, dtype=torch.float).view(1, 1, -1, 1, 1)
    inputs = model.inputs(clips.expand(2, 3, -1, 20, 30))
    assert inputs.shape == (2, 8 * 16 * 16)
    places = inputs[0].view(8, -1).mean(1)
    assert places.tolist() == sorted(places.tolist())


@torch.no_grad()
def test_a_kernel_model_gives_the_solution_of_kernel_ridge_regression():
    model, rng = kernel_model(), np.random.default_rng(0)
    num_inputs = len(model.projection)
    inputs, labels = separable(60, 3, rng, num_inputs)
    unseen = (inputs[:9] + 2 * inputs[20:29]) / 3  # the projection keeps all of them
    clips = np.repeat(np.arange(30), 2)  # two versions of each
    model.fit(inputs, labels, clips)
    model.inputs = lambda features: features
    logits = model.classify_features(torch.from_numpy(unseen)) / model.log_scale.exp()

    std = inputs.std(0) + 1e-3 * inputs.std()
    own, new = ((values - inputs.mean(0)) / std / num_inputs**0.5 for values in (inputs, unseen))
    targets = 2 * np.eye(3)[labels] - 1
    kernel, similar = (
        np.exp(-((some[:, None] - own[None]) ** 2).sum(2) / 2) for some in (own, new)
    )
    dual = np.linalg.solve(kernel + 0.01 * 2 * np.eye(60), targets - targets.mean(0))
    np.testing.assert_allclose(logits, similar @ dual + targets.mean(0), atol=2e-3)
    assert trained_names(model) == ["log_scale"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["linear", "kernel_ridge"])
def test_uneven_classes_count_equally_if_balanced(name):
    """Of two overlapping classes, 90 and 10 inputs, the rare one is found as often."""
    rng = np.random.default_rng(0)
    model = LinearModel(make_config(model="linear"), 2) if name == "linear" else kernel_model(2)
    num_inputs = 2048 if name == "linear" else len(model.projection)
    model.inputs = lambda inputs: inputs

    def draw(*counts):
        labels = np.repeat([0, 1], counts)
        inputs = np.zeros((len(labels), num_inputs), np.float32)
        inputs[:, :2] = rng.normal(labels[:, None], 1.0, (len(labels), 2))
        return inputs, labels

    inputs, labels = draw(90, 10)
    unseen, expected = draw(200, 200)
    recalls = []
    for is_balanced in (False, True):
        model.fit(inputs, labels, np.arange(100), None, is_balanced)
        unseen_inputs = torch.from_numpy(unseen)
        forward = model.forward if name == "linear" else model.classify_features
        found = forward(unseen_inputs).argmax(1).numpy()
        recalls.append([(found == label)[expected == label].mean() for label in (0, 1)])
    (_, rare), (frequent_balanced, rare_balanced) = recalls
    assert rare < 0.3
    assert min(frequent_balanced, rare_balanced) > 0.55


@torch.no_grad()
@pytest.mark.parametrize("num_clips", [1, 2, 7])
def test_few_clips_leave_the_rest_of_the_windows_without_weight(num_clips):
    model = kernel_model()
    inputs, labels = separable(num_clips, 3, np.random.default_rng(0), len(model.projection))
    model.fit(inputs, labels, np.arange(num_clips))
    assert (model.classifier.weight[:, num_clips:] == 0).all()
    assert model(torch.randn(2, 3, 8, 48, 48)).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 8, 12])
@pytest.mark.parametrize("crop", [20, [64, 96]])
def test_places_and_parts_of_a_clip_count_for_themselves(num_frames, crop):
    model = kernel_model(clip_size=num_frames, crop_size=crop)
    maps = model.frame_features(torch.randn(2, 3, num_frames, *np.broadcast_to(crop, 2)))
    inputs = model.inputs(maps)
    assert inputs.shape == (2, len(model.projection))
    assert len(model.projection) == ridge.NUM_FRAMES * 48 * math.prod(model.places)
    if num_frames > 1 and min(model.places) > 1:
        for axis in (1, 3, 4):
            assert not torch.allclose(model.inputs(maps.flip(axis)), inputs)


def test_the_maps_that_it_is_fitted_on_must_not_change():
    assert not any(value.requires_grad for value in kernel_model().backbone.parameters())
    for keys in ({}, {"freeze": 3}):
        with pytest.raises(ValueError, match=r"freeze: .* kernel_ridge is fitted once"):
            make_config(**MAPS, pretrained="x", **keys)


@torch.no_grad()
def test_what_does_not_change_is_no_input_of_centred_maps():
    model = kernel_model(center_features=True)
    still = torch.randn(2, 1, 48, 3, 3).expand(-1, 8, -1, -1, -1)
    assert model.inputs(still).abs().max() < 1e-5


def test_distances_are_computed_in_fp32():
    model = kernel_model()
    inputs, labels = separable(30, 3, np.random.default_rng(0), len(model.projection))
    model.fit(inputs, labels, np.arange(30))
    maps = torch.randn(4, 8, 48, 3, 3)
    with torch.inference_mode():
        exact = model.classify_features(maps)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model.classify_features(maps), exact)


@pytest.mark.parametrize("build", [kernel_model, lambda n: LinearModel(make_config(), n)])
def test_the_scale_is_found_on_groups_that_the_fit_has_not_seen(build):
    """Clips of one person may look alike: then the logits would be too sure of other people."""
    rng, model = np.random.default_rng(0), build(2)
    size = len(model.projection) if hasattr(model, "projection") else 2048
    inputs = np.repeat(rng.normal(0, 1, (40, size)).astype(np.float32), 2, axis=0)
    labels, clips, groups = np.repeat(rng.integers(0, 2, 40), 2), np.arange(80), np.arange(80) // 2
    scales = []
    for own in (groups.astype(str), None, np.full(80, "anna")):
        model.fit(inputs, labels, clips, own)
        scales.append(model.log_scale.item())
    assert scales[1] == scales[2] > scales[0] + 0.5


def test_the_scale_is_found_on_clips_that_the_fit_has_not_seen():
    """Two versions of a clip of noise must not be on both sides: the logits would be sure."""
    rng = np.random.default_rng(0)
    inputs = np.repeat(rng.normal(0, 1, (40, 2048)).astype(np.float32), 2, axis=0)
    labels, model = np.repeat(rng.integers(0, 2, 40), 2), LinearModel(make_config(), 2)
    model.fit(inputs, labels, np.repeat(np.arange(40), 2))
    scale = model.log_scale.item()
    model.fit(inputs, labels, np.arange(80))
    assert model.log_scale.item() > scale + 0.5

"""Averages of probabilities, computed from logarithms."""

import numpy as np
import pytest
import torch
from runs import make_settings, run_folder, write_config

import train
from scoring.evaluation import (
    balanced_accuracy,
    calibration,
    format_balanced,
    format_with_intervals,
    log_mean_probability,
    score,
)
from scoring.intervals import balanced_interval
from training.checkpoint import save_checkpoint

pytestmark = pytest.mark.usefixtures("blank_pictures")


def test_it_is_the_logarithm_of_the_mean():
    logits = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    for dim in (0, 1):
        expected = logits.double().softmax(-1).mean(dim).log()
        found = log_mean_probability(logits, dim)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_probability_that_rounds_to_0_gives_a_finite_loss():
    logits = torch.tensor([[[300.0, 0.0], [250.0, 0.0]]])  # one clip, two windows, two classes
    assert logits.softmax(-1).mean(1).log().isinf().any()
    averaged = log_mean_probability(logits, dim=1)
    assert score(averaged, torch.tensor([1]))["loss"] == pytest.approx(250.7, abs=0.1)


@pytest.mark.parametrize("flags", [["--set", "nclips=2"], ["--set", "ncrops=3"], "ensemble"])
def test_sure_networks_are_scored_with_a_finite_loss(tmp_path, capsys, flags):
    settings = make_settings(tmp_path, num_epochs=1)
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-g", "cpu"]) == 0
    path = run_folder(settings) / "checkpoint.pth.tar"
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["classifier.weight"] *= 1e4
    save_checkpoint(saved, path)
    capsys.readouterr()
    flags = ["--ensemble", str(path), str(path)] if flags == "ensemble" else [*flags, "--resume"]
    assert train.main(["-c", config, "-g", "cpu", "--eval_only", *flags]) == 0
    (line,) = [line for line in capsys.readouterr().out.split("\n") if line.startswith("loss ")]
    assert 100 < float(line.split()[1]) < 1e6


def test_calibration_compares_confidence_and_accuracy():
    shares = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.65, 0.35], [0.35, 0.65]])
    error, bins = calibration(shares.log(), torch.tensor([0, 1, 0, 1]))
    assert [(each.low, each.count) for each in bins] == [(60, 2), (90, 2)]
    assert [each.right for each in bins] == [100, 50]
    assert error == pytest.approx((2 * 35 + 2 * 45) / 4, abs=1e-4)
    unread = torch.full((1, 2), torch.nan)
    again = calibration(torch.cat([shares.log(), unread]), torch.tensor([0, 1, 0, 1, 1]))
    assert again == (error, bins)
    certain = calibration(torch.tensor([[100.0, 0.0]]), torch.tensor([0]))
    assert certain[0] == 0 and certain[1][0].low == 90


def logits_of(predicted, num_classes=3):
    return torch.eye(num_classes)[torch.tensor(predicted)]


def test_balanced_accuracy_is_the_mean_of_the_classes():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 0])
    logits = logits_of([0, 0, 0, 0, 1, 2, 1])
    logits[6] = torch.nan  # could not be read
    assert balanced_accuracy(logits, labels) == pytest.approx(75)  # class 2 has no clips
    assert "balanced accuracy 75.00 % (" in format_with_intervals(logits, labels)
    groups = np.array(["a"] * 7)
    assert format_balanced(logits, labels, groups) == "75.00 % (no interval for clips in groups)"
    assert "balanced" not in format_with_intervals(logits_of([0, 1, 1]), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("sizes", [[57, 57, 8, 8], [50, 2, 2, 2], [20] * 8])
@pytest.mark.parametrize("scores", [[0.5], [0.95, 0.5], [0.98]])
def test_its_interval_covers(sizes, scores):
    rng, scores = np.random.default_rng(0), np.resize(scores, len(sizes))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    found = [
        balanced_interval(rng.random(len(labels)) < scores[labels], labels) for _ in range(100)
    ]
    num_covering = sum(each.low <= 100 * scores.mean() <= each.high for each in found)
    assert num_covering >= 90 and np.mean([each.high - each.low for each in found]) < 60

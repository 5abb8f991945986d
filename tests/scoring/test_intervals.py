"""Confidence intervals, comparisons on the same clips, and the groups of clips."""

import re

import numpy as np
import pytest
import torch
from runs import make_settings, read_csv, run_folder, write_config
from scipy.stats import binomtest

import train
from clips.annotations import groups_of
from scoring.evaluation import last_and_best
from scoring.intervals import accuracy_interval, compare_on_same_clips, mcnemar, wilson
from scoring.results import read_logits
from system.errors import UserError


@pytest.mark.parametrize("right, total", [(0, 10), (7, 10), (10, 10), (49, 112), (1, 1)])
def test_wilsons_interval_is_that_of_scipy(right, total):
    expected = binomtest(right, total).proportion_ci(0.95, "wilson")
    found = wilson(100 * right / total, total)
    assert found == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-3)
    assert wilson(0, 0) == (0, 100)


@pytest.mark.parametrize("first, second", [(0, 0), (3, 12), (12, 3), (5, 5), (0, 1), (400, 460)])
def test_mcnemars_test_is_the_binomial_one(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1
    assert mcnemar(first, second) == pytest.approx(expected)


def test_alike_clips_of_a_group_make_the_interval_wider():
    rng = np.random.default_rng(0)
    groups = np.repeat([f"person {number}" for number in range(12)], 20)
    alike = np.repeat(rng.random(12) < 0.7, 20)  # all of a person's clips, or none
    mixed = rng.permutation(alike)
    plain, by_group, independent = (accuracy_interval(alike), accuracy_interval(alike, groups),
                                    accuracy_interval(mixed, groups))
    share = 100 * alike.mean()
    spread = 196 * np.sqrt(share / 100 * (1 - share / 100) / 12)  # of 12 independent people
    assert by_group.high - by_group.low == pytest.approx(2 * spread, rel=0.15)
    assert by_group.low < share < by_group.high
    assert independent.high - independent.low < 1.3 * (plain.high - plain.low)
    assert plain.method == "Wilson, 240 clips"
    assert by_group.method == "bootstrap over 12 groups"


def test_an_interval_over_seeds_includes_their_spread():
    rng = np.random.default_rng(0)
    same = np.tile(rng.random(400) < 0.6, (5, 1))
    apart = np.stack([rng.random(400) < share for share in (0.2, 0.4, 0.6, 0.8, 1.0)])
    narrow, wide = accuracy_interval(same), accuracy_interval(apart)
    assert narrow.high - narrow.low == pytest.approx(2 * 4.8, abs=0.6)
    assert wide.low < 40 and wide.high > 80
    assert wide.method == "bootstrap over 400 clips and 5 seeds"


def test_without_a_mistake_or_in_one_group_an_interval_is_wilsons():
    right, groups = np.ones(10, bool), np.array(["a"] * 5 + ["b"] * 5)
    assert accuracy_interval(right, groups)[:2] == wilson(100, 10)
    one = accuracy_interval(right, np.array(["a"] * 10))
    assert one == (*wilson(100, 10), "Wilson, 10 clips of one group")
    with_unknown = accuracy_interval([1, 0, np.nan, 1, np.nan])
    assert with_unknown[:2] == pytest.approx(wilson(200 / 3, 3))
    assert with_unknown.method == "Wilson, 3 clips"


def test_networks_are_compared_clip_by_clip():
    first = np.arange(100) < 80
    second = np.arange(100) < 70
    found = compare_on_same_clips(first, second)
    assert found.difference == pytest.approx(10)
    assert (found.only_first, found.only_second) == (10, 0)
    assert found.low > 3 and found.high < 18  # unpaired, the interval would include 0
    assert found.p == pytest.approx(2 / 2**10)
    backwards = compare_on_same_clips(second, first)
    assert backwards.difference == -found.difference and backwards.p == found.p
    seeds = compare_on_same_clips(np.stack([first, second]), second)
    assert seeds.p is None and seeds.low <= 0 < seeds.high  # one of two seeds is no better
    by_group = compare_on_same_clips(first, second, np.repeat(np.arange(10), 10))
    assert by_group.p is None and by_group.low == 0  # all of the difference is in one group


def test_groups_are_found_in_ids():
    ids = ["ann_1.avi", "ann_2.avi", "bob_1.avi"]
    assert groups_of(ids, "^([a-z]+)_").tolist() == ["ann", "ann", "bob"]
    with pytest.raises(UserError, match=r"group: .* in 2 of 3 clips: ann_1.avi, ann_2.avi; corr"):
        groups_of(ids, "(bob)")


@pytest.mark.parametrize("pattern, message", [
    ("([a-z", "group: found .*not a regular expression"),
    ("^[a-z]+_", "group: found .*put the part that names the group in brackets"),
    ("(nobody)", r"group: '\(nobody\)' finds no group in 22 of 22 clips"),
])  # fmt: skip
def test_a_wrong_pattern_is_told_before_training(tmp_path, capsys, pattern, message):
    config = write_config(tmp_path / "config.json", make_settings(tmp_path, group=pattern))
    assert train.main(["-c", config, "-g", "cpu"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_each_accuracy_is_printed_with_its_interval(tmp_path, capsys):
    settings = make_settings(tmp_path, group="(.)$")
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-g", "cpu"]) == 0
    history = read_csv(run_folder(settings) / "history.csv")
    last = {name: float(history[-1][name]) for name in
            ("val_top1", "val_top1_low", "val_top1_high")}  # fmt: skip
    words = (f"top-1 {last['val_top1']:.2f} % (95 % interval {last['val_top1_low']:.1f} to "
             f"{last['val_top1_high']:.1f}) after the last epoch; best of 2 epochs: ")
    assert words in capsys.readouterr().out
    for flags, method in ([], "bootstrap over 7 groups"), (["--set=group=null"], "Wilson, 7 clips"):
        assert train.main(["-c", config, "-g", "cpu", "-e", "--checkpoint", "last", *flags]) == 0
        output = capsys.readouterr().out
        saved = read_logits(run_folder(settings) / "logits.npz")
        right = saved.logits.argmax(1) == saved.labels
        interval = accuracy_interval(right.numpy(), saved.groups)
        assert f"top-1 {100 * right.double().mean():.2f} % ({interval})" in output
        assert f"95 % intervals: {method}" in output
        (text,) = re.findall(r"per-class .*\n  Left +(.*)\n", output)
        of_class = right[saved.labels == 0]
        low, high = wilson(100 * float(of_class.double().mean()), len(of_class))
        assert f"({low:5.1f} to {high:5.1f})   {int(of_class.sum())} of {len(of_class)}" in text
        page = (run_folder(settings) / "report.html").read_text()
        assert f"95 % interval {interval}" in page and f"95 % intervals: {method}" in page
        assert "best of 2 epochs, validation top-1" in page
    assert (saved.groups is None) and torch.is_tensor(saved.labels)


def test_a_history_of_an_earlier_version_has_no_interval():
    rows = [{"epoch": 1, "val_top1": 60.0}, {"epoch": 2, "val_top1": 50.0}]
    assert last_and_best(rows) == ("validation top-1 50.00 % after the last epoch; best of 2 "
                                   "epochs: 60.00 % (epoch 1)")

"""Confidence intervals, comparisons on the same clips, and the groups of clips."""

import re

import numpy as np
import pytest
import torch
from runs import make_settings, read_csv, run_folder, write_config
from scipy.stats import binomtest, t

import train
from benchmarks import coverage
from benchmarks.coverage import Case
from clips.annotations import groups_of
from scoring.evaluation import class_intervals, last_and_best
from scoring.intervals import (
    accuracy_interval,
    clopper_pearson,
    compare_on_same_clips,
    mcnemar,
    student,
    wilson,
)
from scoring.results import read_logits
from system.errors import UserError

EFFECTIVE = "Clopper-Pearson at the effective number of clips, from "


@pytest.mark.parametrize("right, total", [(0, 10), (7, 10), (10, 10), (49, 112), (1, 1)])
@pytest.mark.parametrize("interval, name", [(wilson, "wilson"), (clopper_pearson, "exact")])
def test_intervals_of_independent_clips_are_those_of_scipy(interval, name, right, total):
    expected = binomtest(right, total).proportion_ci(0.95, name)
    found = interval(100 * right / total, total)
    assert found == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-3)
    assert wilson(0, 0) == (0, 100)


@pytest.mark.parametrize("first, second", [(0, 0), (3, 12), (12, 3), (5, 5), (0, 1), (400, 460)])
def test_mcnemars_test_is_the_binomial_one(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1
    assert mcnemar(first, second) == pytest.approx(expected)


# --- by simulation -----------------------------------------------------------------------------

ALIKE = [
    (sizes, correlation)
    for sizes in ((10,) * 5, (10,) * 9, (10,) * 20)
    for correlation in (0, 0.1, 0.3)
]


@pytest.mark.parametrize("score", [0.5, 0.8, 0.91])
@pytest.mark.parametrize("sizes, correlation", [*ALIKE, ((2, 2, 5, 5, 10, 10, 10, 20, 26), 0.3)])
def test_intervals_of_few_groups_cover(score, sizes, correlation):
    covered, width = coverage.coverage(Case(score, sizes, correlation), 300)
    assert covered >= 93
    if not correlation:  # they cost little where clips are not alike after all
        low, high = wilson(100 * score, sum(sizes))
        assert width < {5: 3, 9: 1.8, 20: 1.4}[len(sizes)] * (high - low)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0, 0.06])
@pytest.mark.parametrize("sizes, correlation", [((100,), 0), ((10,) * 9, 0.3)])
def test_intervals_of_few_seeds_cover(num_seeds, spread, sizes, correlation):
    case = Case(0.8, sizes, correlation, num_seeds, spread, are_known=bool(correlation))
    assert coverage.coverage(case, 200)[0] >= 93


@pytest.mark.parametrize("sizes, correlation", ALIKE)
def test_equal_networks_seldom_differ(sizes, correlation):
    assert coverage.false_differences(Case(0.8, sizes, correlation), 300)[0] <= 7


@pytest.mark.parametrize("num_seeds", [1, 3, 5])
def test_equal_networks_seldom_differ_without_groups(num_seeds):
    case = Case(0.8, (200,), num_seeds=num_seeds, are_known=False, spread=0.03 * (num_seeds > 1))
    assert coverage.false_differences(case, 300)[0] <= 7


@pytest.mark.parametrize("shares", [(0.005, 0.005), (0.02, 0), (0.02, 0.02), (0.06, 0.02)])
def test_intervals_of_few_told_apart_clips_cover(shares):
    for num_clips in (30, 100, 500):
        assert coverage.coverage_of_difference(shares, num_clips, 2000)[0] >= 93


def test_the_tables_of_the_simulation(capsys):
    assert coverage.main(["--repeats", "2"]) == 0
    text = capsys.readouterr().out
    assert "| 91 | 0.3 |  | 100.0 (100) |" in text  # two groups say nothing about a third
    assert "| 3 | 3 | 0.1 |  |  | 0.0 (" in text and "| only the first, % |" in text


# --- accuracies --------------------------------------------------------------------------------


def test_alike_clips_of_a_group_make_the_interval_wider():
    rng = np.random.default_rng(0)
    groups = np.repeat([f"person {number}" for number in range(12)], 20)
    alike = np.repeat(rng.random(12) < 0.7, 20)  # all of a person's clips, or none
    mixed = rng.permutation(alike)
    plain, by_group, independent = (
        accuracy_interval(alike),
        accuracy_interval(alike, groups),
        accuracy_interval(mixed, groups),
    )
    share = alike.mean()
    spread = 100 * t(11).ppf(0.975) * np.sqrt(share * (1 - share) / 11)  # of 12 people
    assert 2 * spread * 0.95 < by_group.high - by_group.low < 2 * spread * 1.2
    assert by_group.low < 100 * share < by_group.high
    assert independent.high - independent.low < 1.5 * (plain.high - plain.low)
    assert plain.method == "Wilson, 240 clips"
    assert by_group.method == EFFECTIVE + "12 groups"


def test_a_large_group_counts_as_few():
    right, sizes = np.arange(100) % 5 > 0, [40, 40, 5, 5, 5, 5]
    equal = accuracy_interval(right, np.repeat(range(5), 20))
    unequal = accuracy_interval(right, np.repeat(range(6), sizes))
    assert unequal.high - unequal.low > 1.5 * (equal.high - equal.low)


@pytest.mark.parametrize("num_wrong", [0, 1, 3, 20, 87, 90])
def test_an_interval_of_groups_is_never_narrower_than_that_of_independent_clips(num_wrong):
    right, groups = np.arange(90) >= num_wrong, np.arange(90) % 9
    low, high = wilson(100 * right.mean(), 90)
    for own in (groups, np.arange(90), np.arange(90) // 2):
        found = accuracy_interval(right, own)
        assert 0 <= found.low <= low and high <= found.high <= 100
    seeds = accuracy_interval(np.stack([right] * 3))
    assert seeds.low <= low and high <= seeds.high


def test_an_interval_over_seeds_includes_their_spread():
    rng = np.random.default_rng(0)
    same = np.tile(rng.random(400) < 0.6, (5, 1))
    apart = np.stack([rng.random(400) < share for share in (0.2, 0.4, 0.6, 0.8, 1.0)])
    narrow, wide = accuracy_interval(same), accuracy_interval(apart)
    assert narrow.high - narrow.low == pytest.approx(2 * 4.8, abs=0.6)
    half = 100 * t(4).ppf(0.975) * apart.mean(1).std(ddof=1) / np.sqrt(5)
    assert (wide.high - wide.low) / 2 == pytest.approx(half, rel=0.1)
    assert wide.method == EFFECTIVE + "400 clips and 5 seeds"


def test_without_a_mistake_or_in_one_group():
    right, five = np.ones(50, bool), np.repeat(range(5), 10)
    found = accuracy_interval(right, five)
    assert found.high == 100 and 60 < found.low < 80  # of 5 groups one like no other may be missing
    assert accuracy_interval(~right, five)[:2] == pytest.approx((0, 100 - found.low))
    with_mistake = accuracy_interval(np.arange(50) > 0, five)
    assert with_mistake.low < found.low + 1  # one more right clip does not narrow it by half
    assert accuracy_interval(right, five // 3)[:2] == (pytest.approx(0, abs=1), 100)
    one = accuracy_interval(right, np.array(["a"] * 50))
    assert one == (*wilson(100, 50), "Wilson, 50 clips of one group")
    assert accuracy_interval(np.stack([right] * 2), np.array(["a"] * 50)).method == (
        EFFECTIVE + "50 clips of one group and 2 seeds"
    )
    with_unknown = accuracy_interval([1, 0, np.nan, 1, np.nan])
    assert with_unknown[:2] == pytest.approx(wilson(200 / 3, 3))
    assert with_unknown.method == "Wilson, 3 clips"
    assert accuracy_interval([np.nan], ["a"])[:2] == (0, 100)


def test_the_interval_of_a_class_is_over_its_groups():
    groups = np.repeat(["ann", "bob", "eve", "joe", "kim", "lea"], 40)
    labels = torch.arange(240) % 2
    wrong = torch.from_numpy(np.isin(groups, ["ann", "bob"])) & (labels == 0)
    logits = torch.eye(3)[torch.where(wrong, 1, labels)]
    logits[3] = torch.nan
    left, right, none = class_intervals(logits, labels, groups)
    assert left == accuracy_interval(np.repeat([0, 0, 1, 1, 1, 1], 20), groups[::2])
    assert left.method == EFFECTIVE + "6 groups" and left.high - left.low > 60
    assert right == accuracy_interval(np.ones(119), np.delete(groups[1::2], 1)) and none is None
    assert [each and each.method for each in class_intervals(logits, labels)] == [
        "Wilson, 120 clips",
        "Wilson, 119 clips",
        None,
    ]


# --- comparisons -------------------------------------------------------------------------------


def test_networks_are_compared_clip_by_clip():
    first = np.arange(100) < 80
    second = np.arange(100) < 70
    found = compare_on_same_clips(first, second)
    assert found.difference == pytest.approx(10)
    assert (found.only_first, found.only_second) == (10, 0)
    assert found.low > 3 and found.high < 18  # unpaired, the interval would include 0
    assert found.p == pytest.approx(2 / 2**10) and found.method == "t over 100 clips"
    backwards = compare_on_same_clips(second, first)
    assert backwards.difference == -found.difference and backwards.p == found.p
    assert (backwards.low, backwards.high) == pytest.approx((-found.high, -found.low))
    seeds = compare_on_same_clips(np.stack([first, second]), second)
    assert seeds.p is None and seeds.low <= 0 < seeds.high  # one of two seeds is no better
    assert seeds.method == "t over 100 clips and 2 seeds"


def test_groups_are_compared_by_their_differences():
    first = np.arange(100) < 80
    groups = np.arange(100) % 10
    second = (np.arange(100) < 70) | (groups < 3)
    found = compare_on_same_clips(first, second, groups)
    differences = 10 * np.array(
        [first[groups == one].sum() - second[groups == one].sum() for one in range(10)]
    )
    half = student(9) * differences.std(ddof=1) / np.sqrt(10)
    assert found.difference == pytest.approx(differences.mean())
    assert found.high - found.low == pytest.approx(2 * half)
    assert found.p is None and found.method == "t over 10 groups"
    in_one = compare_on_same_clips(first, np.arange(100) < 70, np.repeat(np.arange(10), 10))
    assert in_one.low < 0 < in_one.high  # all of the difference is in one group


@pytest.mark.parametrize(
    "number, words",
    [(1, "one group is too few"), (2, "2 groups are too few"), (4, "4 groups are too few")],
)
def test_few_groups_give_no_interval_of_a_difference(number, words):
    first, second = np.arange(40) < 30, np.arange(40) < 20
    found = compare_on_same_clips(first, second, np.arange(40) % number)
    assert (found.low, found.high, found.p, found.method) == (None, None, None, words)
    assert str(found) == (
        f"+25.0 points (no interval: {words}); only the one right: 10, only the other: 0 clips"
    )
    assert compare_on_same_clips(first, second, np.arange(40) % 5).low is not None


def test_identical_results_have_an_interval():
    right = np.arange(96) < 60
    for groups, widest in (None, 4), (np.arange(96) % 12, 4):
        for own in (right, np.stack([right] * 3)):
            found = compare_on_same_clips(own, own, groups)
            assert found.difference == 0 and 1 < found.high == -found.low < widest
            assert "+0.0 points (-" in str(found)
    assert compare_on_same_clips([np.nan], [1.0]).low == -100  # no clip, nothing known


def test_the_seeds_of_both_networks_count():
    rng = np.random.default_rng(0)
    first, second = (
        np.stack([rng.random(2000) < share for share in shares])
        for shares in ((0.5, 0.6, 0.7), (0.4, 0.5, 0.6))
    )
    found = compare_on_same_clips(first, second)
    half = 100 * t(4).ppf(0.975) * np.sqrt(2 * 0.1**2 / 3)  # Welch's: four degrees of freedom
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    one = compare_on_same_clips(first, second[:1])
    assert one.method == "t over 2,000 clips and 3 seeds" and one.p is None


def test_groups_are_found_in_ids():
    ids = ["ann_1.avi", "ann_2.avi", "bob_1.avi"]
    assert groups_of(ids, "^([a-z]+)_").tolist() == ["ann", "ann", "bob"]
    with pytest.raises(UserError, match=r"group: .* in 2 of 3 clips: ann_1.avi, ann_2.avi; corr"):
        groups_of(ids, "(bob)")


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("([a-z", "group: found .*not a regular expression"),
        ("^[a-z]+_", "group: found .*put the part that names the group in brackets"),
        ("(nobody)", r"group: '\(nobody\)' finds no group in 22 of 22 clips"),
    ],
)
def test_a_wrong_pattern_is_told_before_training(tmp_path, capsys, pattern, message):
    config = write_config(tmp_path / "config.json", make_settings(tmp_path, group=pattern))
    assert train.main(["-c", config, "-g", "cpu"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_each_accuracy_is_printed_with_its_interval(tmp_path, capsys):
    settings = make_settings(tmp_path, group="(.)$")
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-g", "cpu"]) == 0
    history = read_csv(run_folder(settings) / "history.csv")
    last = {
        name: float(history[-1][name]) for name in ("val_top1", "val_top1_low", "val_top1_high")
    }
    words = (
        f"top-1 {last['val_top1']:.2f} % (95 % interval {last['val_top1_low']:.1f} to "
        f"{last['val_top1_high']:.1f}) after the last epoch; best of 2 epochs: "
    )
    assert words in capsys.readouterr().out
    for flags, method in ([], EFFECTIVE + "7 groups"), (["--set=group=null"], "Wilson, 7 clips"):
        assert train.main(["-c", config, "-g", "cpu", "-e", "--checkpoint", "last", *flags]) == 0
        output = capsys.readouterr().out
        saved = read_logits(run_folder(settings) / "logits.npz")
        right = saved.logits.argmax(1) == saved.labels
        interval = accuracy_interval(right.numpy(), saved.groups)
        assert f"top-1 {100 * right.double().mean():.2f} % ({interval})" in output
        assert f"95 % intervals: {method}" in output
        (text,) = re.findall(rf"per-class .*{method.split(',')[0]}.*\n  Left +(.*)\n", output)
        of_class, own_groups = right[saved.labels == 0], saved.groups
        if own_groups is not None:
            own_groups = own_groups[saved.labels == 0]
        low, high, _ = accuracy_interval(of_class.numpy(), own_groups)
        assert f"({low:5.1f} to {high:5.1f})   {int(of_class.sum())} of {len(of_class)}" in text
        page = (run_folder(settings) / "report.html").read_text()
        assert f"95 % interval {interval}" in page and f"95 % intervals: {method}" in page
        assert f"<small>({int(of_class.sum())} of {len(of_class)}) {low:.1f} to {high:.1f}" in page
        assert 'best of 2 epochs, validation <span class="unbroken">top-1' in page
    assert (saved.groups is None) and torch.is_tensor(saved.labels)


def test_a_history_of_an_earlier_version_has_no_interval():
    rows = [{"epoch": 1, "val_top1": 60.0}, {"epoch": 2, "val_top1": 50.0}]
    assert last_and_best(rows) == (
        "validation top-1 50.00 % after the last epoch; best of 2 epochs: 60.00 % (epoch 1)"
    )

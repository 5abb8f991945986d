"""95 % confidence intervals of accuracies, and comparisons of networks on the same clips.

Clips of one group (a person, a camera) are similar, and several trainings share their clips, so N
clips tell less than N independent ones. `benchmarks/coverage.py` simulates how often each interval
includes the true score.

Shapes: S trainings of one network with different seeds, N clips. All percentages are 0 to 100.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

Z = NormalDist().inv_cdf(0.975)
# With fewer, an interval of a difference is too wide to be of use.
MIN_GROUPS_TO_COMPARE = 5
# Correlation of clips in a group, assumed for the additional group.
ASSUMED_CORRELATION = 0.1


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float
    method: str  # description, with the number of clips or groups

    def __str__(self):
        return f"{self.low:.1f} to {self.high:.1f}"


def wilson(percent: float, num_clips: int) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion of independent clips (Wilson, 1927)."""
    if not num_clips:
        return 0.0, 100.0
    p, spread = percent / 100, Z**2 / num_clips
    middle = (p + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(p * (1 - p) / num_clips + spread / num_clips / 4)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def clopper_pearson(percent: float, num_clips: float) -> tuple[float, float]:
    """Return the exact interval of a proportion (Clopper and Pearson, 1934); N: any number > 0."""
    from scipy.special import betaincinv  # not at the top: the start of a run need not wait for it

    right, wrong = percent / 100 * num_clips, (1 - percent / 100) * num_clips
    low = betaincinv(right, wrong + 1, 0.025) if percent > 0 else 0.0
    high = betaincinv(right + 1, wrong, 0.975) if percent < 100 else 1.0
    return 100 * float(low), 100 * float(high)


def accuracy_interval(right, groups=None) -> Interval:
    """Return the interval of an accuracy.

    right: [N] or [S, N], whether the clip is classified correctly; NaN clips are ignored.
    groups: str [N], for example the person in each clip; None: unknown.
    One training and unknown groups: Wilson's. Otherwise Clopper and Pearson's at the effective
    number of clips, as Korn and Graubard (Survey Methodology, 1998) do for surveys: this many
    independent clips would have the variance observed between groups and between trainings, with
    Student's t for few of them. It is never narrower than Wilson's.
    """
    (right,), groups = _known([right], groups)
    num_seeds, num_clips = right.shape
    percent = 100 * float(right.mean()) if num_clips else 0.0
    low, high = wilson(percent, num_clips)
    num_groups = 0 if groups is None else len(np.unique(groups))
    of_one_group = " of one group" if num_groups == 1 else ""
    if (num_seeds == 1 and num_groups < 2) or not num_clips:
        return Interval(low, high, f"Wilson, {num_clips:,} clips{of_one_group}")
    # Where all are right or all are wrong, assume another result for half a clip of one training.
    p = min(max(percent / 100, 0.5 / num_clips), 1 - 0.5 / num_clips)
    variance, t = p * (1 - p) / num_clips, Z
    if num_groups > 1:
        between, effective_groups = _variance_between(right.mean(0), groups)
        assumed = _variance_of_one_more(percent / 100, num_clips, effective_groups)
        variance, t = max(variance, between + assumed), student(effective_groups - 1)
    square = t**2 * variance + _square_over_seeds([right])  # of half the width
    effective_clips = min(num_clips, p * (1 - p) * Z**2 / square)
    lowest, highest = clopper_pearson(percent, effective_clips)
    what = f"{num_groups} groups" if num_groups > 1 else f"{num_clips:,} clips{of_one_group}"
    seeds = f" and {num_seeds} seeds" if num_seeds > 1 else ""
    return Interval(
        min(low, lowest),
        max(high, highest),
        f"Clopper-Pearson at the effective number of clips, from {what}{seeds}",
    )


def balanced_interval(right, labels) -> Interval:
    """Return the interval of the mean of the classes' accuracies, for independent clips.

    right: [N], whether the clip is classified correctly; labels: int [N]. Clopper and Pearson's at
    the effective number of clips: this many would have the variance of the mean over the classes,
    in each of which one clip more is assumed to be right, and one wrong. It is never narrower
    than that of N clips. In simulations of 2 to 10 classes of 1 to 300 clips, it covers 93 to
    100 %.
    """
    positions = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(positions)
    correct = np.bincount(positions, np.asarray(right, float))
    p = (correct + 1) / (sizes + 2)
    variance = (p * (1 - p) / sizes).sum() / len(sizes) ** 2
    effective_clips = min(len(labels), p.mean() * (1 - p.mean()) / variance)
    low, high = clopper_pearson(100 * float((correct / sizes).mean()), effective_clips)
    return Interval(
        low, high, f"Clopper-Pearson at the effective number of clips, from {len(sizes)} classes"
    )


class Comparison(NamedTuple):
    """The difference between two networks on the same clips."""

    difference: float  # percentage points
    low: float | None  # ... and its interval; None: too few groups
    high: float | None
    only_first: float  # clips that only the first classifies correctly, mean over the seeds
    only_second: float
    p: float | None  # McNemar's exact test; None: it does not apply to groups or several seeds
    method: str  # of the interval, or why it is missing

    def __str__(self):
        interval = f"no interval: {self.method}"
        if self.low is not None:
            interval = f"{self.low:+.1f} to {self.high:+.1f}"
        p = "" if self.p is None else f", McNemar's p {self.p:.2g}"
        return (
            f"{self.difference:+.1f} points ({interval}); only the one right: "
            f"{self.only_first:g}, only the other: {self.only_second:g} clips{p}"
        )


def compare_on_same_clips(first, second, groups=None) -> Comparison:
    """Compare two networks by the differences of clips or groups, and by McNemar's test.

    first, second: [S, N], each with its own S; groups: as in `accuracy_interval`.
    The interval is Student's t over the groups (or clips) and the seeds. It is never narrower than
    that of independent clips plus one clip that only the first network classifies correctly and one
    that only the second does (Bonett and Price, 2012), so that identical results have a width, too.
    Fewer than MIN_GROUPS_TO_COMPARE groups give no interval.
    """
    both, groups = _known([first, second], groups)
    accuracies = [one.mean(0) for one in both]
    only_first = float((accuracies[0] * (1 - accuracies[1])).sum())
    only_second = float((accuracies[1] * (1 - accuracies[0])).sum())
    differences = accuracies[0] - accuracies[1]
    difference = float(differences.mean()) if len(differences) else 0.0
    counts = (100 * difference, None, None, only_first, only_second, None)
    num_groups = len(differences) if groups is None else len(np.unique(groups))
    if groups is not None and num_groups < MIN_GROUPS_TO_COMPARE:
        too_few = "one group is" if num_groups == 1 else f"{num_groups} groups are"
        return Comparison(*counts, f"{too_few} too few")
    num_clips = len(differences) + 2
    middle = difference * len(differences) / num_clips
    variance = (((differences**2).sum() + 2) / num_clips - middle**2) / num_clips
    freedom = num_clips - 1
    if groups is not None:
        between, effective_groups = _variance_between(differences, groups)
        variance, freedom = max(variance, between), effective_groups - 1
    square = student(freedom) ** 2 * variance + _square_over_seeds(both)
    low, high = (100 * min(1.0, max(-1.0, middle + side * math.sqrt(square))) for side in (-1, 1))
    seeds = max(map(len, both))
    p = mcnemar(round(only_first), round(only_second)) if groups is None and seeds == 1 else None
    what = f"{len(differences):,} clips" if groups is None else f"{num_groups} groups"
    words = f"t over {what}" + (f" and {seeds} seeds" if seeds > 1 else "")
    return Comparison(100 * difference, low, high, only_first, only_second, p, words)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    It is a binomial test at 1/2 of the clips that only one of the networks classifies correctly.
    """
    total = only_first + only_second
    tail = sum(math.comb(total, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**total)


def student(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t; its degrees of freedom may be fractional."""
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 0.1), 0.975))  # below 0.1 it is above 10 ** 12


def _known(rights, groups):
    """Return arrays [S, N] and the groups, without the clips that are NaN in any of `rights`."""
    rights = [np.atleast_2d(right).astype(float) for right in rights]
    is_known = ~np.isnan(np.concatenate(rights)).any(0)
    groups = None if groups is None else np.asarray(groups)[is_known]
    return [right[:, is_known] for right in rights], groups


def _variance_between(values, groups) -> tuple[float, float]:
    """Return the variance of the mean of `values` [N] over groups, and their effective number.

    The variance is the jackknife's, which leaves out one group at a time. The effective number is
    that of equally large groups with the same weight (Kish, 1965).
    """
    positions = np.unique(groups, return_inverse=True)[1]
    sizes, sums = np.bincount(positions), np.bincount(positions, values)
    others = (sums.sum() - sums) / (len(values) - sizes)
    variance = (len(sizes) - 1) / len(sizes) * ((others - values.mean()) ** 2).sum()
    return float(variance), float(len(values) ** 2 / (sizes**2).sum())


def _variance_of_one_more(p, num_clips, num_groups) -> float:
    """Return what one more group would add to the variance of the mean between groups.

    Where most clips are right, few groups often lack one in which many are wrong, and then vary
    too little: Clopper and Pearson's interval of 9 groups covers 92 % at a true score of 91 % and a
    correlation of 0.3, with this term 97 %.
    """
    size = num_clips / num_groups
    p = (p * num_groups + 0.5) / (num_groups + 1)  # the additional group is half right
    return size * p * (1 - p) * (1 + (size - 1) * ASSUMED_CORRELATION) / num_clips**2


def _square_over_seeds(rights) -> float:
    """Return the squared half width due to the spread over seeds; rights: [S, N] each.

    For two networks it is that of the difference, with Welch's degrees of freedom (1947).
    """
    several = [right.mean(1) for right in rights if len(right) > 1]
    variances = [float(scores.var(ddof=1)) / len(scores) for scores in several]
    if not any(variances):
        return 0.0
    total = sum(variances)
    freedom = total**2 / sum(
        variance**2 / (len(scores) - 1) for variance, scores in zip(variances, several, strict=True)
    )
    return student(freedom) ** 2 * total

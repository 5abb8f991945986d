"""95 % confidence intervals of accuracies, and comparisons of networks on the same clips.

Shapes: S trainings of one network with different seeds, N clips. All shares are in percent.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

Z = NormalDist().inv_cdf(0.975)
NUM_DRAWS = 4000  # of a bootstrap


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float
    method: str  # in words, with the number of clips or groups

    def __str__(self):
        return f"{self.low:.1f} to {self.high:.1f}"


def wilson(share: float, num_clips: int) -> tuple[float, float]:
    """Return Wilson's score interval of a share of independent clips (Wilson, 1927)."""
    if not num_clips:
        return 0.0, 100.0
    p, spread = share / 100, Z**2 / num_clips
    middle = (p + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(p * (1 - p) / num_clips + spread / num_clips / 4)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def accuracy_interval(right, groups=None) -> Interval:
    """Return the interval of an accuracy: Wilson's, or of a bootstrap over groups and seeds.

    right: [N] or [S, N], whether the clip is classified correctly; NaN: the clip is left out.
    groups: str [N], for example the person in each clip; None: unknown.
    Clips of one group are alike, and so are the clips of several seeds, so whole groups (or clips)
    and whole trainings are drawn. The result is never narrower than Wilson's interval, as that of a
    bootstrap is with few groups or without a mistake.
    """
    (right,), groups = _known([right], groups)
    num_seeds, num_clips = right.shape
    low, high = wilson(100 * float(right.mean()) if num_clips else 0, num_clips)
    num_groups = 0 if groups is None else len(np.unique(groups))
    if num_groups == 1 or (num_groups == 0 and num_seeds == 1):
        of_one_group = " of one group" if num_groups else ""
        return Interval(low, high, f"Wilson, {num_clips:,} clips{of_one_group}")
    lowest, highest = np.quantile(_bootstrap([right], groups), [0.025, 0.975]).tolist()
    what = f"{num_groups} groups" if num_groups else f"{num_clips:,} clips"
    seeds = f" and {num_seeds} seeds" if num_seeds > 1 else ""
    method = f"bootstrap over {what}{seeds}"
    return Interval(min(low, lowest), max(high, highest), method)


class Comparison(NamedTuple):
    """How much better a first network is than a second one on the same clips."""

    difference: float  # percentage points
    low: float  # ... and the paired bootstrap's interval
    high: float
    only_first: float  # clips that only the first classifies correctly, mean over the seeds
    only_second: float
    p: float | None  # McNemar's exact test; None: it does not apply to groups or several seeds

    def __str__(self):
        p = "" if self.p is None else f", McNemar's p {self.p:.2g}"
        return (f"{self.difference:+.1f} points ({self.low:+.1f} to {self.high:+.1f}); only the "
                f"one right: {self.only_first:g}, only the other: {self.only_second:g} clips{p}")


def compare_on_same_clips(first, second, groups=None) -> Comparison:
    """Compare two networks by a paired bootstrap over groups (or clips), and by McNemar's test.

    first, second: [S, N], each with its own S; groups: as in `accuracy_interval`.
    """
    both, groups = _known([first, second], groups)
    if groups is not None and len(np.unique(groups)) == 1:
        groups = None
    shares = [one.mean(0) for one in both]
    only_first = float((shares[0] * (1 - shares[1])).sum())
    only_second = float((shares[1] * (1 - shares[0])).sum())
    draws = np.subtract(*_bootstrap(both, groups))
    p = None
    if groups is None and max(map(len, both)) == 1:
        p = mcnemar(round(only_first), round(only_second))
    difference = float(100 * (shares[0].mean() - shares[1].mean()))
    return Comparison(difference, *np.quantile(draws, [0.025, 0.975]).tolist(), only_first,
                      only_second, p)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    It is the binomial test of clips that one network of two classifies correctly, at 1/2.
    """
    total = only_first + only_second
    tail = sum(math.comb(total, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**total)


def _known(rights, groups):
    """Return arrays [S, N] and the groups, without the clips that are NaN in any of `rights`."""
    rights = [np.atleast_2d(right).astype(float) for right in rights]
    is_known = ~np.isnan(np.concatenate(rights)).any(0)
    groups = None if groups is None else np.asarray(groups)[is_known]
    return [right[:, is_known] for right in rights], groups


def _bootstrap(rights, groups) -> np.ndarray:
    """Return mean accuracies [len(rights), NUM_DRAWS] of groups and seeds drawn with replacement.

    rights: arrays [S, N], each with its own S. The groups of a draw are the same for all.
    """
    num_clips = rights[0].shape[1]
    positions = np.arange(num_clips)
    if groups is not None:
        positions = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(positions)
    sums = [np.stack([np.bincount(positions, row) for row in right]) for right in rights]
    rng = np.random.default_rng(0)
    means = np.zeros((len(rights), NUM_DRAWS))
    for draw in range(NUM_DRAWS):
        drawn = rng.integers(len(sizes), size=len(sizes))
        for number, own in enumerate(sums):
            seeds = rng.integers(len(own), size=len(own))
            means[number, draw] = own[seeds].mean(0)[drawn].sum() / sizes[drawn].sum()
    return 100 * means

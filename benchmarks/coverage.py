"""Simulate how often the 95 % intervals of `scoring/intervals.py` include the true score.

    python benchmarks/coverage.py

A group's true score is drawn from a beta distribution that gives its clips the correlation of the
row, and a training's true score from one that has the standard deviation of the row. The trainings
of one network, or the two networks of a pair, agree on a clip more often than by chance, since some
clips are hard. Shapes: R repetitions, S trainings (seeds), N clips.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from scipy.special import betaincinv, ndtr

from benchmarks import machine
from scoring.intervals import accuracy_interval, compare_on_same_clips
from system.errors import exit_status

SCORES = (0.5, 0.8, 0.91)
CORRELATIONS = (0, 0.1, 0.3)
# Correlation of the trainings' (normal) difficulties of a clip.
ALIKE = 0.7
GROUPS = {
    "2 groups": (10,) * 2,
    "5": (10,) * 5,
    "9": (10,) * 9,
    "20": (10,) * 20,
    "5 unequal": (2, 5, 10, 13, 20),
    "9 unequal": (2, 2, 5, 5, 10, 10, 10, 20, 26),
    "20 unequal": (1,) * 5 + (5,) * 5 + (10,) * 5 + (24,) * 5,
    "9 of 50 clips": (50,) * 9,
}


@dataclass
class Case:
    """What is simulated."""

    score: float = 0.8
    sizes: tuple[int, ...] = (100,)  # clips of each group
    correlation: float = 0  # of the clips of a group
    num_seeds: int = 1
    spread: float = 0  # standard deviation of the trainings' true scores
    are_known: bool = True  # whether the interval uses the groups


def draw(rng, case: Case, repeats: int, num_networks: int = 1) -> list[np.ndarray]:
    """Return which clips each network classifies correctly: bool [R, S, N] of each."""
    num_clips = sum(case.sizes)
    group_of = np.repeat(np.arange(len(case.sizes)), case.sizes)
    difficulty = rng.standard_normal((repeats, 1, num_clips))
    networks = []
    for _ in range(num_networks):
        scores = np.full((repeats, case.num_seeds, 1), case.score)
        if case.spread:
            agreement = case.spread**2 / (case.score * (1 - case.score))
            scores = _beta(rng.random(scores.shape), scores, agreement)
        if case.correlation:
            place = rng.random((repeats, 1, len(case.sizes)))  # the group's rank, of all trainings
            scores = _beta(place, scores, case.correlation)[..., group_of]
        own = rng.standard_normal((repeats, case.num_seeds, num_clips))
        networks.append(ndtr(ALIKE**0.5 * difficulty + (1 - ALIKE) ** 0.5 * own) < scores)
    return networks


def _beta(quantile, mean, correlation):
    """Return a quantile of the beta distribution of scores with this correlation of clips."""
    total = 1 / correlation - 1
    mean = np.clip(mean, 1e-4, 1 - 1e-4)
    return betaincinv(mean * total, (1 - mean) * total, quantile)


def groups_of(case: Case) -> np.ndarray | None:
    return np.repeat(np.arange(len(case.sizes)), case.sizes) if case.are_known else None


def coverage(case: Case, repeats: int, seed: int = 0) -> tuple[float, float]:
    """Return how many percent of the intervals include the true score, and their mean width."""
    (right,) = draw(np.random.default_rng(seed), case, repeats)
    groups = groups_of(case)
    intervals = np.array([accuracy_interval(one, groups)[:2] for one in right])
    low, high = intervals.T
    is_in = (low <= 100 * case.score) & (100 * case.score <= high)
    return 100 * is_in.mean(), (high - low).mean()


def false_differences(case: Case, repeats: int, seed: int = 0) -> tuple[float, float] | None:
    """Return how many percent of the intervals of equal networks exclude 0, and their mean width.

    None: there are too few groups for an interval.
    """
    pairs = zip(*draw(np.random.default_rng(seed), case, repeats, 2), strict=True)
    groups = groups_of(case)
    found = [compare_on_same_clips(*pair, groups) for pair in pairs]
    if found[0].low is None:
        return None
    excludes = [one.low > 0 or one.high < 0 for one in found]
    return 100 * np.mean(excludes), np.mean([one.high - one.low for one in found])


def coverage_of_difference(shares, num_clips, repeats, seed=0) -> tuple[float, float]:
    """Return the coverage and width for pairs that differ on `shares` of the clips.

    shares: fractions of clips that only the first, and only the second, classifies correctly.
    """
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_clips, [*shares, 1 - sum(shares)], repeats)
    results, hits, widths = {}, [], []
    for first, second, _ in counts.tolist():
        if (first, second) not in results:
            one = np.arange(num_clips) < first
            other = np.arange(num_clips) >= num_clips - second
            results[first, second] = compare_on_same_clips(one, other)
        found, truth = results[first, second], 100 * (shares[0] - shares[1])
        hits.append(found.low <= truth <= found.high)
        widths.append(found.high - found.low)
    return 100 * np.mean(hits), np.mean(widths)


# --- the tables --------------------------------------------------------------------------------


def tables(repeats: int) -> str:
    """Return all tables as Markdown."""
    paragraphs = [
        f"`python benchmarks/coverage.py --repeats {repeats}`",
        "Coverage of the 95 % interval in percent, and (in brackets) its mean width in points.",
        "One training, by groups (10 clips of each, where not said):",
        by_groups(repeats),
        "Several trainings, by the standard deviation of their true scores (the interval of one "
        "training is of its own true score only):",
        by_seeds(repeats),
        "Pairs of networks with equal true scores: how many percent of the intervals exclude 0, "
        "and their mean width:",
        by_pairs(repeats),
        "Pairs of one training each, without groups, by the clips that only one of them has right:",
        by_told_apart(repeats),
    ]
    return "\n\n".join(paragraphs) + "\n"


def by_groups(repeats) -> str:
    rows = []
    for score in SCORES:
        for correlation in CORRELATIONS:
            case = Case(score, correlation=correlation)
            without = (
                coverage(replace(case, sizes=(100,), are_known=False), repeats)
                if not correlation
                else None
            )
            rows.append(
                [f"{100 * score:g}", f"{correlation:g}", without]
                + [coverage(replace(case, sizes=sizes), repeats) for sizes in GROUPS.values()]
            )
    return table(["score, %", "correlation", "100 clips, no groups", *GROUPS], rows)


def by_seeds(repeats) -> str:
    rows, seeds = [], (1, 2, 3, 5)
    sets = {
        "100 clips, no groups": Case(are_known=False),
        "500 clips, no groups": Case(sizes=(500,), are_known=False),
        "5 groups, 0.1": Case(sizes=(10,) * 5, correlation=0.1),
        "9 groups, 0.3": Case(sizes=(10,) * 9, correlation=0.3),
    }
    for words, case in sets.items():
        for score in SCORES:
            for spread in (0, 0.03, 0.06):
                case = replace(case, score=score, spread=spread)
                rows.append(
                    [words, f"{100 * score:g}", f"{100 * spread:g}"]
                    + [coverage(replace(case, num_seeds=number), repeats) for number in seeds]
                )
    names = [f"{number} seed{'s' * (number > 1)}" for number in seeds]
    return table(["clips, correlation", "score, %", "spread, points", *names], rows)


def by_pairs(repeats) -> str:
    rows = []
    for num_seeds, spread in (1, 0), (3, 0.03), (5, 0.03):
        for correlation in CORRELATIONS:
            case = Case(correlation=correlation, num_seeds=num_seeds, spread=spread)
            without = (
                false_differences(replace(case, are_known=False), repeats)
                if not correlation
                else None
            )
            rows.append(
                [str(num_seeds), f"{100 * spread:g}", f"{correlation:g}", without]
                + [
                    false_differences(replace(case, sizes=sizes), repeats)
                    for sizes in GROUPS.values()
                ]
            )
    columns = ["seeds", "spread, points", "correlation", "100 clips, no groups", *GROUPS]
    return table(columns, rows)


def by_told_apart(repeats) -> str:
    sizes = (30, 100, 500)
    both = (0.005, 0.005), (0.02, 0), (0.02, 0.02), (0.06, 0.02), (0.1, 0.1), (0.3, 0.1)
    rows = [
        [f"{100 * shares[0]:g}", f"{100 * shares[1]:g}"]
        + [coverage_of_difference(shares, number, repeats) for number in sizes]
        for shares in both
    ]
    return table(
        ["only the first, %", "only the second, %", *(f"{number} clips" for number in sizes)], rows
    )


def table(columns, rows) -> str:
    """Return a Markdown table; cells are strings, pairs of figures, or None."""
    return machine.markdown_table(
        columns,
        [
            [
                cell
                if isinstance(cell, str)
                else ""
                if cell is None
                else f"{cell[0]:.1f} ({cell[1]:.0f})"
                for cell in row
            ]
            for row in rows
        ],
    )


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--repeats",
        type=int,
        default=2000,
        metavar="N",
        help="simulations of each case (%(default)s)",
    )
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    return exit_status(lambda: print(tables(options.repeats)))


if __name__ == "__main__":
    sys.exit(main())

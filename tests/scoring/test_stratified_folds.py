"""Tests of the stratified folds."""

import numpy as np

from scoring.folds import MANY_GROUPS, stratified_folds


def shares_of_classes(labels, groups):
    """Return the share of each class that is in each fold, [folds, classes]; check the groups."""
    folds = stratified_folds(labels, groups, 5, seed=0)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(labels)))
    assert not any(set(groups[train]) & set(groups[test]) for train, test in folds)
    num_classes = labels.max() + 1
    return np.array([np.bincount(labels[test], minlength=num_classes) for _, test in folds]) / (
        np.bincount(labels)
    )


def test_many_small_groups_of_mixed_classes_are_stratified():
    labels, groups = np.random.default_rng(0).integers(0, 8, 1200), np.arange(1200) // 5
    assert abs(shares_of_classes(labels, groups) - 0.2).max() < 0.02


def test_very_many_groups_are_split_by_their_first_class():
    labels = np.arange(2 * (MANY_GROUPS + 1)) // 2 % 8
    groups = np.arange(len(labels)) // 2  # two duplicates each
    assert abs(shares_of_classes(labels, groups) - 0.2).max() < 0.01

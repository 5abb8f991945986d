"""Stratified folds: parts of a set with about the same class proportions."""

import warnings

import numpy as np
import pandas as pd

MANY_GROUPS = 5_000  # with more, the grouped split would take minutes, a millisecond per group


def stratified_folds(labels, groups, num_folds: int, seed: int | None) -> list[tuple]:
    """Return (training, test) positions of each fold with test clips; none if there are too few.

    labels: of N clips, `num_folds` or more of one class. groups: of each clip, never on both
    sides; or None. seed: of the random parts; None, without groups: parts of consecutive clips.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = np.asarray(labels)
    with warnings.catch_warnings():  # about classes that are not in every fold
        warnings.simplefilter("ignore", UserWarning)
        plain = StratifiedKFold(num_folds, shuffle=seed is not None, random_state=seed)
        if groups is None:
            return list(plain.split(labels, labels))
        group_of, names = pd.factorize(np.asarray(groups))  # in the order of appearance
        if len(names) == len(labels):
            return list(plain.split(labels, labels))
        if len(names) <= MANY_GROUPS:
            grouped = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
            found = grouped.split(labels, labels, group_of)
            return [(train, test) for train, test in found if len(test)]
        # Many groups are small, so each counts as one clip, of its first clip's class.
        labels = labels[np.unique(group_of, return_index=True)[1]]
        if np.unique(labels, return_counts=True)[1].max() < num_folds:
            return []
        return [
            tuple(np.flatnonzero(np.isin(group_of, part)) for part in fold)
            for fold in plain.split(labels, labels)
        ]

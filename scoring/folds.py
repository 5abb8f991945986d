"""Stratified folds: parts of a set that have about the same share of each class."""

import warnings

import numpy as np
import pandas as pd

SMALL_GROUP = 1 / 100  # of the clips; groups so small cannot make folds uneven


def stratified_folds(labels, groups, num_folds: int, seed: int) -> list[tuple]:
    """Return (training, test) positions of each fold with test clips; none if there are too few.

    labels: of N clips, `num_folds` or more of one class; groups: of each clip, kept on one side, or
    None.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = np.asarray(labels)
    with warnings.catch_warnings():  # about classes that are not in every fold
        warnings.simplefilter("ignore", UserWarning)
        plain = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
        if groups is None:
            return list(plain.split(labels, labels))
        group_of, _ = pd.factorize(np.asarray(groups))  # in the order of appearance
        if np.bincount(group_of).max() > SMALL_GROUP * len(labels):
            grouped = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
            found = grouped.split(labels, labels, group_of)
            return [(train, test) for train, test in found if len(test)]
        # The grouped one would take minutes for 100,000 groups.
        labels = labels[np.unique(group_of, return_index=True)[1]]
        if np.unique(labels, return_counts=True)[1].max() < num_folds:
            return []
        return [tuple(np.flatnonzero(np.isin(group_of, part)) for part in fold)
                for fold in plain.split(labels, labels)]

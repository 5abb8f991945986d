"""Split clips into training and validation, so that no person or recording is on both sides."""

import re
from collections import Counter, defaultdict

import numpy as np

from clips.annotations import groups_of
from clips.frames import composed
from scoring.folds import stratified_folds
from system.errors import UserError, summarize

NUM_FOLDS = 5  # one of these folds is the validation set
COMMON_PREFIX = r"^([^_. -]+)[_. -]"
FOLDER_PATTERN = r"/([^/]+)/[^/]+$"  # the folder between the class folder and the clip


# --- groups ------------------------------------------------------------------------------------


def group_pattern(rule: str) -> str | None:
    """Return a rule of `--group` as the config key `group`; None if it names a CSV."""
    if rule == "folder":
        return FOLDER_PATTERN
    return None if re.search(r"\.csv:[^:]+$", rule, re.IGNORECASE) else rule


def groups_of_clips(ids: list[str], rule: str) -> list[str]:
    """Return the group of each clip, such as the person in it.

    rule: `folder` for the folder between class folder and clip; `people.csv:person` for a column of
    a CSV that also has `video_id`; or a regular expression as for the config key `group`.
    Raises UserError if a clip has no group, or all are in the same one.
    """
    pattern = group_pattern(rule)
    try:
        if pattern is None:
            groups = _groups_from_csv(ids, *rule.rsplit(":", 1))
        else:
            groups = groups_of(ids, pattern).tolist()
    except re.error as error:
        raise UserError(f"--group {rule}: not a regular expression ({error})") from None
    except IndexError:
        raise UserError(
            f"--group {rule}: put the part that names the group in brackets, as in ^([a-z]+)_"
        ) from None
    if len(set(groups)) == 1:
        raise UserError(
            f"--group {rule}: all clips are in one group, {groups[0]!r}; a split needs "
            "two; choose another rule, or leave it out"
        )
    return groups


def _groups_from_csv(ids, path, column):
    import pandas as pd

    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--group {path}: cannot be read as CSV ({error})") from None
    rows = rows.rename(columns=str.strip).map(str.strip).map(composed)
    missing = {"video_id", column} - set(rows.columns)
    if missing:
        raise UserError(
            f"--group {path}: has no column {summarize(sorted(missing))}, only "
            f"{summarize(rows.columns)}"
        )
    rows = rows[["video_id", column]].drop_duplicates()
    if twice := rows["video_id"][rows["video_id"].duplicated()].tolist():
        raise UserError(
            f"--group {path}: has two groups for {summarize(twice, 3)}; correct it, or "
            "give such a clip's path, as in wave/1.mp4"
        )
    table = dict(rows.itertuples(index=False))
    names = list(map(composed, ids))
    groups = [table.get(clip_id) or table.get(clip_id.rpartition("/")[2]) for clip_id in names]
    without = [clip_id for clip_id, group in zip(ids, groups, strict=True) if not group]
    if without:
        raise UserError(
            f"--group {path}: has no group for {len(without):,} of {len(ids):,} clips: "
            f"{summarize(without, 3)}; add them"
        )
    return groups


def likely_rule(ids: list[str], labels: list[str]) -> str | None:
    """Return a rule for groups that the names suggest, such as a person's name before `_`.

    It is for a hint only: each prefix must be on clips of several classes.
    """
    rule = "folder" if all(clip_id.count("/") > 1 for clip_id in ids) else COMMON_PREFIX
    try:
        groups = groups_of_clips(ids, rule)
    except UserError:
        return None
    classes = defaultdict(set)
    for group, label in zip(groups, labels, strict=True):
        classes[group].add(label)
    is_likely = len(classes) <= len(ids) / 3 and all(len(own) > 1 for own in classes.values())
    return rule if is_likely else None


def joined(groups: list[str], same: list[list[int]]) -> list[str]:
    """Return the groups after joining those that share a duplicate."""
    alias = {}

    def final(group):
        while group in alias:
            group = alias[group]
        return group

    for first, *others in same:
        for other in others:
            one, another = final(groups[first]), final(groups[other])
            if one != another:
                alias[another] = one
    return [final(group) for group in groups]


# --- the split ---------------------------------------------------------------------------------


def choose_validation(labels: list[str], groups: list[str], seed: int) -> np.ndarray:
    """Return which clips are for validation, bool [N]: about a fifth of each class.

    Groups stay together, and one that has all clips of a class is for training. Of the folds of a
    stratified grouped split of the others, it is the one that keeps most classes on both sides,
    then the one whose classes are closest to a fifth.
    Raises UserError if each fold takes all clips of some class from training.
    """
    labels, groups = np.array(labels), np.array(groups)
    counts = Counter(labels.tolist())
    groups_of_class = defaultdict(set)
    for label, group in zip(labels.tolist(), groups.tolist(), strict=True):
        groups_of_class[label].add(group)
    needed = [group for own in groups_of_class.values() if len(own) == 1 for group in own]
    free = np.flatnonzero(~np.isin(groups, needed))
    most = np.unique(labels[free], return_counts=True)[1].max(initial=0)
    num_folds = min(NUM_FOLDS, len(set(groups[free].tolist())), int(most))
    folds = stratified_folds(labels[free], groups[free], num_folds, seed) if num_folds > 1 else []
    best, lowest = None, None
    for part in (free[part] for _, part in folds):
        own = Counter(labels[part].tolist())
        num_untrained = sum(own[name] == counts[name] for name in counts)
        num_unseen = sum(not own[name] for name in counts)
        unevenness = sum(abs(own[name] / counts[name] - 1 / num_folds) for name in counts)
        cost = (num_untrained, num_unseen, unevenness)
        if lowest is None or cost < lowest:
            best, lowest = part, cost
    if lowest is None or lowest[0]:
        raise UserError(
            "--data: no split leaves clips of each class for training; add clips, choose another "
            "--group, or make the folders train/ and val/ yourself"
        )
    is_validation = np.zeros(len(labels), bool)
    is_validation[best] = True
    return is_validation

"""Folds of a data set, for cross-validation, and smaller sets to train on."""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from clips.annotations import groups_of, read_annotations, read_labels
from clips.folders import ClipFolder
from config import Config
from own_clips.settings import training_length
from own_clips.splitting import joined
from scoring.stack import cross_validation_folds
from system.errors import UserError, summarize
from system.files import write_text

PROJECT = Path(__file__).parent.parent  # the paths of configs are relative to it


@dataclass
class Fold:
    """A part of the clips to validate on, with the config keys of its two sets."""

    name: str  # a number, or the group
    keys: list[str]


def make_folds(config: Config, number: str, folder: Path) -> tuple[list[Fold], str]:
    """Split the training and validation clips of `config` into folds; write the sets' CSVs.

    number: of folds, which are stratified and keep the groups of the config together; or `group`:
    one fold per group. The files go to a folder inside `folder` that belongs to these clips and
    folds, so that later trainings on other clips or folds do not mix with these.
    Returns the folds, and a description of the split.
    """
    ids, labels, groups, names, root = _all_clips(config)
    same = root.duplicates(ids.tolist())
    together = groups
    if same:
        together = np.array(joined((ids if groups is None else groups).tolist(), same))
    fold_of, fold_names, words = _assign(labels, together, number, groups is not None)
    if same:
        words += f", {sum(map(len, same)):,} exact duplicates kept together,"
    _print_missing(fold_of, labels, fold_names, names)
    digest = hashlib.sha256("\0".join([*ids, *map(str, labels), *map(str, fold_of)]).encode())
    folder = folder / f"folds-{digest.hexdigest()[:10]}"
    (PROJECT / folder).mkdir(parents=True, exist_ok=True)
    rows = pd.DataFrame({"video_id": ids, "label": np.array(names)[labels]})
    if groups is not None and not config.group:
        rows["group"] = groups
    folds = []
    for fold, name in enumerate(fold_names):
        keys = [f"output_dir={folder}"]
        for set_name, is_in in (("train", fold_of != fold), ("val", fold_of == fold)):
            path = folder / f"{fold + 1}_{set_name}.csv"
            write_text(PROJECT / path, rows[is_in].to_csv(index=False))
            keys += [
                f"{set_name}_data_csv={path}",
                f"{set_name}_data_folder={config.train_data_folder}",
            ]
        folds.append(Fold(name, keys))
    return folds, f"{words} of {len(ids):,} clips"


def _all_clips(
    config: Config,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, list[str], ClipFolder]:
    """Return ids, labels and groups (None: unknown) of both sets, class names, and the folder."""
    if Path(config.train_data_folder) != Path(config.val_data_folder):
        raise UserError(
            "--folds: train_data_folder and val_data_folder differ; the clips of both "
            "sets have to be in one folder"
        )
    names = read_labels(PROJECT / config.labels_csv)
    sets = [
        read_annotations(PROJECT / path, PROJECT / config.train_data_folder, names)
        for path in (config.train_data_csv, config.val_data_csv)
    ]
    ids = np.concatenate([each.ids for each in sets])
    twice = sorted(set(sets[0].ids.tolist()) & set(sets[1].ids.tolist()))
    if twice:
        raise UserError(
            f"--folds: {len(twice):,} clips are in both train_data_csv and "
            f"val_data_csv: {summarize(twice)}; keep each in one of them"
        )
    groups = None
    if config.group:
        groups = groups_of(ids, config.group)
    elif all(each.groups is not None for each in sets):
        groups = np.concatenate([each.groups for each in sets])
    labels = np.concatenate([each.labels for each in sets])
    return ids, labels, groups, names, sets[0].folder


def _assign(labels, groups, number: str, are_known: bool) -> tuple[np.ndarray, list[str], str]:
    """Return the fold of each clip, the folds' names, and a description of the split.

    groups: of clips that stay together, or None; are_known: they are more than exact duplicates.
    """
    if number == "group":
        if not are_known or len(np.unique(groups)) < 2:
            raise UserError(
                "--folds group: needs two groups or more; name them with --group PATTERN"
            )
        names, fold_of = np.unique(groups, return_inverse=True)
        words = f"one of {len(names)} groups left out ({', '.join(names)})"
        return fold_of, names.tolist(), words
    fold_of = np.zeros(len(labels), int)
    for fold, (_, test) in enumerate(cross_validation_folds(labels, groups, int(number))):
        fold_of[test] = fold
    num_folds = int(fold_of.max()) + 1
    if num_folds < int(number):
        raise UserError(f"--folds {number}: there are clips, or groups, for {num_folds} folds only")
    kept = f", {len(np.unique(groups))} groups kept together" if are_known else ""
    return fold_of, [str(fold + 1) for fold in range(num_folds)], f"{num_folds} folds{kept}"


def _print_missing(fold_of, labels, fold_names, class_names) -> None:
    for fold, name in enumerate(fold_names):
        left = np.setdiff1d(np.arange(len(class_names)), labels[fold_of != fold])
        if len(left):
            print(
                f"note: without fold {name} no clip is left to train on of the class "
                f"{summarize(class_names[index] for index in left)}"
            )


def make_smaller_sets(
    config: Config, numbers: list[int], seeds: list[int], folder: Path, given: set[str]
) -> dict[tuple[int, int], list[str]]:
    """Write a CSV with each number of training clips per class, drawn anew for each seed.

    The smaller sets of a seed are parts of its larger ones. Returns the keys that train on a set,
    by number and seed; batch size and epochs are those of `train.py --data`, unless their keys are
    `given`. Raises UserError if a class has fewer clips.
    """
    names = read_labels(PROJECT / config.labels_csv)
    clips = read_annotations(
        PROJECT / config.train_data_csv, PROJECT / config.train_data_folder, names
    )
    rows = pd.DataFrame({"video_id": clips.ids, "label": np.array(names)[clips.labels]})
    counts = rows["label"].value_counts()
    if few := [f"{name} has {count}" for name, count in counts.items() if count < max(numbers)]:
        raise UserError(
            f"--clips_per_class {max(numbers)}: {summarize(few)}; give at most {counts.min()}"
        )
    if clips.groups is not None:
        rows["group"] = clips.groups
    (PROJECT / folder).mkdir(parents=True, exist_ok=True)
    sets = {}
    for number, seed in itertools.product(numbers, seeds):
        shuffled = rows.sample(frac=1, random_state=seed)
        chosen = shuffled.groupby("label").head(number).sort_index()
        path = folder / f"train_{number}-{seed}.csv"
        write_text(PROJECT / path, chosen.to_csv(index=False))
        length = training_length(len(chosen), "cpu")
        keys = [f"{key}={value}" for key, value, _ in length if key not in given]
        sets[number, seed] = [f"train_data_csv={path}", *keys]
    return sets

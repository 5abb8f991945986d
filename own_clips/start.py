"""`train.py --data FOLDER`: from a folder of clips to CSVs and a config in the run's folder."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd

from clips.annotations import groups_of, read_annotations, read_labels
from clips.frames import natural_key
from clips.packs import open_folder
from clips.search import no_films
from config import SET_PREFIXES
from model import build_model
from own_clips.class_folders import labelled_clips
from own_clips.recipes import cross_validated_keys, networks_to_compare, recipe_file, recipe_of
from own_clips.settings import choose_settings, class_balance, uneven_classes
from own_clips.splitting import (
    choose_validation,
    group_pattern,
    groups_of_clips,
    joined,
    likely_rule,
)
from own_clips.survey import ClipStats, survey
from system.config_file import load_config, parse_override
from system.errors import UserError, summarize
from system.files import FolderLock, write_text
from training.freezing import freeze_stages
from training.run_folder import CONFIG_FILE, check_unoccupied, has_run, make_run_folder


def config_for_folder(options, device_type: str, lock: FolderLock) -> str:
    """Return the path of a config that trains on the folder `options.data`; print each choice.

    The config and its CSVs are written to the run's folder, which `lock` locks first. A run that is
    resumed, evaluated or checked keeps those that it has.
    Raises UserError for a folder that cannot be trained on, or a run folder with another run, or
    with one of another folder or groups.
    """
    if not os.path.exists(options.data):
        raise UserError(f"--data {options.data}: no such folder; correct the path")
    place = Path(options.data).resolve()
    name = (place.name if place.is_dir() else place.stem) or "clips"
    given = dict(map(parse_override, options.overrides))
    suited = ["step_jitter=0"] if given.get("sampling") == "segments" else []  # has no step
    overrides = [f"model_name={json.dumps(name)}", *suited, *options.overrides]
    config = load_config(recipe_file(given), overrides)
    path = config.run_folder / CONFIG_FILE
    is_run = path.exists() and has_run(config.run_folder)
    if is_run and (options.command != "train" or options.resume or options.check_data):
        _check_same(options, path)
        return str(path)
    if options.command != "train":
        raise UserError(f"--data {options.data}: {config.run_folder} has no run of it; train first")
    lock.take(config.run_folder)
    if is_run:
        _check_folder(options, path)
    if not options.overwrite:
        check_unoccupied(config.run_folder)

    root = open_folder(options.data)
    clips, stats = _readable_clips(root, config)
    _split(root, clips, options.group, config.seed)
    values = config.model_dump(mode="json", exclude_unset=True)
    lists = _write_lists(root, clips, make_run_folder(config))
    lists["group"] = group_pattern(options.group) if options.group else None
    given = {key: value for key, value in values.items() if key in given}
    labels = clips["label"][clips["part"] == "train"].tolist()
    balance = [each for each in class_balance(labels) if each.key not in given]
    chosen = {}
    if not options.check_data:
        config = config.model_copy(update={each.key: each.value for each in balance})
        chosen = _cross_validated(lists, stats, config, given, device_type, bool(options.quick))
    if chosen:
        values = recipe_of(chosen) | {"model_name": config.model_name} | chosen | given
    values |= lists
    networks = {key: values[key] for key in ("model", "members") if key in values}
    given_keys = networks | given | chosen
    choices = choose_settings(stats, len(labels), device_type, given_keys, bool(options.quick))
    for choice in choices + balance:
        values[choice.key] = choice.value
        print(f"  {choice.key} {json.dumps(choice.value)}: {choice.reason}")
    if "balanced_sampling" not in values and (uneven := uneven_classes(labels)):
        print(f"  {uneven}; --set balanced_sampling=true draws each equally often")
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    print(f"written to {path}: --config {path} repeats this run", flush=True)
    return str(path)


def _readable_clips(root, config) -> tuple[pd.DataFrame, ClipStats]:
    """Return the clips that can be read, and statistics about them; print what is in the folder.

    Raises UserError for a folder that cannot be trained on.
    """
    others = []
    clips, empty = labelled_clips(root, others)
    stats = survey(root, clips["id"].tolist(), config, clips["label"].tolist())
    _check_classes(root, clips, empty, stats.bad)
    clips = clips[~clips["id"].isin(list(stats.bad))].reset_index(drop=True)
    _print_found(root, clips, empty, stats.bad)
    if others:
        print(f"  ignored: {no_films(others)}")
    return clips, stats


def _cross_validated(
    lists: dict, stats, config, given: dict, device_type: str, is_quick: bool
) -> dict:
    """Return the keys that cross-validation within the training clips chooses, if it can."""
    names = read_labels(lists["labels_csv"])
    train = read_annotations(lists["train_data_csv"], lists["train_data_folder"], names)
    networks, samplings = networks_to_compare(train.labels, given, is_quick)
    if not networks:
        return {}
    freeze_stages(build_model(config, len(names)), config)  # a mistake is said first
    if lists["group"]:
        train = replace(train, groups=groups_of(train.ids, lists["group"]))
    return cross_validated_keys(train, stats, config, given, device_type, networks, samplings)


def _check_folder(options, path: Path) -> None:
    """Raise UserError if the config is for another folder than `--data`, maybe of the same name."""
    try:
        folder = json.loads(path.read_text(encoding="utf-8"))["train_data_folder"]
        is_other = Path(folder).resolve() != Path(options.data).resolve()
    except (ValueError, RecursionError, KeyError, TypeError):
        return  # damaged: `load_config` raises where it is needed
    if is_other:
        raise UserError(
            f"--data {options.data}: {path} is for {folder}; choose another name by "
            "--set model_name=NAME"
        )


def _check_same(options, path: Path) -> None:
    """Raise UserError if the config is for another folder than `--data`, or for other groups."""
    _check_folder(options, path)
    config = load_config(path)
    pattern = group_pattern(options.group) if options.group else config.group
    if pattern != config.group:
        raise UserError(
            f"--group {options.group}: the run in {path.parent} was not split by it; "
            "leave it out, or replace the run with --overwrite True"
        )


def _check_classes(root, clips: pd.DataFrame, empty: list[str], bad: dict[str, str]) -> None:
    """Raise UserError for class folders with clips none of which can be read.

    An empty class folder is only left out.
    """
    depth = 2 if clips["part"].any() else 1  # of class folders

    def class_folder(path):
        return "/".join(path.split("/")[:depth])

    is_class = (clips["part"] != "test") & (clips["label"] != "")
    found = {path: class_folder(path) for path in clips["id"][is_class]}
    reasons = {path: bad[path] for path in found if path in bad}
    sound = {folder for path, folder in found.items() if path not in bad}
    reasons |= {
        path: f"{root}/{path}: has no frames and no videos"
        for path in empty
        if path.count("/") >= depth and path.partition("/")[0].lower() != "test"
    }
    few = {path: reason for path, reason in reasons.items() if class_folder(path) not in sound}
    if lost := sorted(set(map(class_folder, few)), key=natural_key):
        raise UserError(
            f"--data {root}: none of the clips in {summarize(lost)} can be read: "
            f"{summarize(few.values(), 3)}; repair them, or remove the class"
        )


def _print_found(root, clips: pd.DataFrame, empty: list[str], bad: dict[str, str]) -> None:
    """Print how many clips each class has, and what is left out."""
    counts = Counter(clips["label"])
    names = [f"{name} {counts[name]:,}" for name in class_names(clips)]
    print(f"{root}: {len(clips):,} clips of {len(names):,} classes: {summarize(names)}")
    if counts[""]:
        print(f"  without a class: {counts['']:,} test clips")
    if bad:
        print(f"  left out, since they cannot be read: {len(bad):,}: {summarize(bad.values(), 3)}")
    if empty:
        print(f"  left out, since there are no clips in them: {summarize(empty)}")


def class_names(clips: pd.DataFrame) -> list[str]:
    """Return the names of the classes in natural order."""
    return sorted(set(clips["label"]) - {""}, key=natural_key)


def _split(root, clips: pd.DataFrame, rule: str | None, seed: int) -> None:
    """Fill in `group`, and `part` if the folder is not split; print how it was split.

    Raises UserError if a class has no clips for training.
    """
    is_grouped = clips["part"] != "test"
    clips["group"] = ""
    if rule:
        clips.loc[is_grouped, "group"] = groups_of_clips(clips["id"][is_grouped].tolist(), rule)
    ids, labels = clips["id"].tolist(), clips["label"].tolist()
    same = root.duplicates(ids)
    is_open = ~clips["part"].isin(["validation"]).any()
    rows = clips.index[clips["part"] != "test"] if is_open else []
    if same:
        print(
            f"  exact duplicates: {sum(map(len, same)):,} clips, such as "
            f"{summarize([ids[position] for position in same[0]], 3)}"
            f"{'; they are kept on one side' if is_open else ''}"
        )
    if is_open:
        groups = clips["group"].tolist() if rule else ids
        groups = joined(groups, same)
        is_validation = choose_validation(
            [labels[row] for row in rows], [groups[row] for row in rows], seed
        )
        clips.loc[rows, "part"] = ["validation" if flag else "train" for flag in is_validation]
    parts = clips["part"].tolist()
    if both := [each for each in same if len({parts[position] for position in each}) > 1]:
        print(
            "  warning: the same clip is in two sets, which makes the score of the second too "
            f"high: {summarize([ids[position] for position in both[0]], 3)}"
            f"{f' and {len(both) - 1:,} more' if len(both) > 1 else ''}; remove one of each"
        )
    _print_split(clips, rule, is_open, seed)


def _print_split(clips, rule, is_open, seed):
    counts = Counter(clips["part"])
    how = f"stratified by class, drawn with seed {seed}" if is_open else "as the folders say"
    print(
        f"  {counts['train']:,} clips for training, {counts['validation']:,} for validation, {how}"
    )
    own = {part: set(clips["group"][clips["part"] == part]) for part in ("train", "validation")}
    if rule:
        print(
            f"  groups ({rule}): {len(own['train'])} for training, {len(own['validation'])} for "
            f"validation ({summarize(sorted(own['validation']), 5)})"
        )
    elif is_open:
        own = clips[clips["part"] != "test"]
        likely = likely_rule(own["id"].tolist(), own["label"].tolist())
        hint = f"the names suggest --group '{likely}'" if likely else "--group names them"
        print(
            "  warning: no groups are given, so a person or recording may be on both sides, "
            f"which makes the validation score too high; {hint}"
        )
    names = set(class_names(clips))
    if missing := names - set(clips["label"][clips["part"] == "train"]):
        raise UserError(f"--data: no training clips of {summarize(sorted(missing))}; add some")
    if unseen := names - set(clips["label"][clips["part"] == "validation"]):
        print(f"  warning: no validation clips of {summarize(sorted(unseen))}; add some")


def _write_lists(root, clips: pd.DataFrame, folder: Path) -> dict[str, str]:
    """Write labels.csv and a CSV for each set; return the config keys that name them."""
    names = class_names(clips)
    write_text(folder / "labels.csv", "\n".join(names) + "\n")
    keys = {"labels_csv": str(folder / "labels.csv")}
    for part, prefix in SET_PREFIXES.items():
        rows = clips[clips["part"] == part]
        if rows.empty:
            continue
        columns = {"id": "video_id", "label": "label"}
        if (rows["label"] == "").any():
            del columns["label"]
        if rows["group"].any():
            columns["group"] = "group"
        text = rows[list(columns)].rename(columns=columns).to_csv(index=False)
        path = folder / f"{part}.csv"
        write_text(path, text)
        keys |= {f"{prefix}_data_folder": str(root), f"{prefix}_data_csv": str(path)}
    return keys

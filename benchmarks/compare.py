"""Train variants of one config with several seeds, and compare their scores in a table.

    python benchmarks/compare.py --config configs/quickstart.json --seeds 0 1 2 \\
        --variant fp32 precision=fp32 --variant bf16 precision=bf16 --save precision

A variant is a name and the keys that it changes; one that sets `seed` runs with that seed only.
Every run is an ordinary run of train.py in `--output`. An interrupted run is resumed and a finished
one is only read, so the same command with one more variant trains only that variant. Scores are
those of the last epoch. `--folds 5` trains on five splits of all clips instead of the config's one,
`--folds group` leaves one group out in each. `--clips_per_class 5 20` trains each variant on 5 and
on 20 training clips per class, which each seed draws anew. `--opposites` adds how often the
direction of a movement is right.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pandas as pd
import torch

from benchmarks import machine
from benchmarks.activations import kept_for_backward
from benchmarks.finished import is_evaluated, is_finished
from benchmarks.folds import PROJECT, Fold, make_folds, make_smaller_sets
from benchmarks.tables import Tested, add_intervals, markdown, packed, report
from clips.annotations import read_labels
from model import build_model
from networks.recompute import recompute_activations
from networks.stages import describe
from scoring.baselines import NAMES as BASELINES
from scoring.baselines import baselines_of_row
from scoring.evaluation import right_clips
from scoring.results import LOGITS_FILE, SavedLogits, read_logits
from system.config_file import load_config
from system.errors import UserError, exit_status
from system.memory import MIB
from training.run_folder import HISTORY_FILE

DATA_KEYS = (
    "train_data_folder",
    "train_data_csv",
    "val_data_folder",
    "val_data_csv",
    "labels_csv",
    "output_dir",
    "group",
)


def main(arguments=None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_status(lambda: run(parse_arguments(arguments), arguments))


def run(options, arguments) -> None:
    about = machine.describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    command = shlex.join(["python", "benchmarks/compare.py", *arguments])
    config = load_config(PROJECT / options.config)
    folds, words = folds_of(options)
    sets, rows, clip_sets, beside = smaller_sets(options), [], [], {}
    for name, number, changes in variants_of(options):
        runs, all_tested, baselines = [], [], []
        for seed in seeds_of(options, changes):
            keys = [*sets.get((number, seed), []), *changes]
            trained = [train(options, name, keys, seed, fold) for fold in folds]
            baselines.append(baselines_of(trained))
            all_tested.append(together([each.saved for each in trained]))
            runs.append(scores_of_seed(seed, trained, all_tested[-1]) | {"keys": keys})
        tested = replace(
            all_tested[0], right=np.concatenate([each.right for each in all_tested])
        )  # [S, N]
        rows.append(summary(options, name, changes, runs) | packed(tested, clip_sets))
        if number:
            rows[-1]["baselines"] = mean_of(baselines)
        else:
            beside = beside or baselines[0]
        contents = about | {
            "command": command,
            "note": options.note,
            "rows": rows,
            "folds": words,
            "training_sets": "drawn anew for each seed" if sets else "",
            "baselines": beside,
            "clip_sets": clip_sets,
            "config": config.model_dump(mode="json", exclude_defaults=True),
        }
        add_intervals(contents)
        print(markdown([rows[-1]]).split("\n")[2], flush=True)
        if options.save:  # after each variant, since the next may take hours
            machine.save(options.save, contents, report(contents))
    print("\n" + report(contents))


def baselines_of(trained: list["Trained"]) -> dict[str, float]:
    """Return the baselines of a seed's runs, in percent of the clips of all folds."""
    counts = [len(each.saved.ids) for each in trained]
    scores = [baselines_of_row(each.last) for each in trained]
    return {
        words: float(np.average([own[name] for own in scores], weights=counts))
        for name, words in BASELINES.items()
        if all(name in own for own in scores)
    }


def mean_of(dicts: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each value that all have."""
    names = [name for name in dicts[0] if all(name in each for each in dicts)]
    return {name: statistics.mean(each[name] for each in dicts) for name in names}


def variants_of(options) -> list[tuple[str, int | None, list[str]]]:
    """Return the name, the number of training clips per class (None: all) and the keys of each.

    With `--clips_per_class`, each variant is trained on every number of clips.
    """
    if not options.clips_per_class:
        return [(name, None, changes) for name, *changes in options.variant]
    return [
        (f"{name}, {number} clips per class", number, changes)
        for number in options.clips_per_class
        for name, *changes in options.variant
    ]


def seeds_of(options, changes) -> list[int]:
    own = [int(change[5:]) for change in changes if change.startswith("seed=")]
    return own or options.seeds


def smaller_sets(options) -> dict[tuple[int, int], list[str]]:
    """Write the sets of `--clips_per_class`; return the keys of each, by number and seed.

    Each seed has its own, so that the scores of several seeds show how much the choice of clips
    matters; all variants of a seed are trained on the same clips.
    """
    if not options.clips_per_class:
        return {}
    if options.folds:
        raise UserError("--clips_per_class, --folds: give one of the two")
    config = load_config(PROJECT / options.config, options.overrides)
    given = {override.split("=")[0] for override in options.overrides}
    seeds = sorted({seed for _, *changes in options.variant for seed in seeds_of(options, changes)})
    return make_smaller_sets(config, options.clips_per_class, seeds, Path(options.output), given)


def folds_of(options) -> tuple[list[Fold | None], str]:
    """Return the folds of `--folds`, and their description; [None]: the config's own sets."""
    if options.group:
        options.overrides.append(f"group={json.dumps(options.group)}")
    if not options.folds:
        return [None], ""
    for name, *changes in options.variant:
        if given := [change for change in changes if change.split("=")[0] in DATA_KEYS]:
            raise UserError(
                f"--variant {name!r}: {given[0]}: --folds has the same clips for all "
                "variants; remove it, or give it with --set"
            )
    config = load_config(PROJECT / options.config, options.overrides)
    return make_folds(config, options.folds, Path(options.output))


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", "-c", required=True, help="the config that is varied")
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "key=value"),
        help="a name for the table, and the keys that differ; once per variant",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: %(default)s)"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="key=value",
        dest="overrides",
        help="keys to change for all variants",
    )
    parser.add_argument(
        "--output", default="trainings/compare", help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--folds",
        type=number_of_folds,
        metavar="N|group",
        help="cross-validation: train on N splits of all clips, or leave out each group once",
    )
    parser.add_argument(
        "--group",
        metavar="PATTERN",
        help="regular expression that finds a clip's group in its id; default: the config's group",
    )
    parser.add_argument(
        "--clips_per_class",
        nargs="+",
        type=int,
        metavar="N",
        help="train on only this many training clips per class, other ones for each seed",
    )
    parser.add_argument(
        "--opposites",
        nargs="+",
        default=[],
        metavar="LABEL=LABEL",
        help="pairs of classes that differ in direction only; scored by pair and direction",
    )
    parser.add_argument("--note", default="", help="a line to write above the table")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    return parser.parse_args(arguments)


def number_of_folds(text: str) -> str:
    if text != "group" and not (text.isdecimal() and int(text) >= 2):
        raise argparse.ArgumentTypeError(f"expected 2 or more, or group, found {text!r}")
    return text


# --- the runs ----------------------------------------------------------------------------------


@dataclass
class Trained:
    """The scores of a finished run's last epoch."""

    last: pd.Series  # row of the history
    saved: SavedLogits  # of its validation clips
    folder: Path


def train(options, name, changes, seed, fold: Fold | None) -> Trained:
    """Train and evaluate one run, unless that has been done."""
    own = [f"model_name={name}-{seed}", f"output_dir={options.output}", f"seed={seed}"]
    if fold:
        own += [*fold.keys, f"model_name={name}-{seed}-{fold.name}".replace("/", "_")]
    keys = [*options.overrides, *changes, *own]
    config = load_config(PROJECT / options.config, keys)
    folder = PROJECT / config.run_folder
    if not is_finished(config, folder):
        run_train(options.config, keys, "--resume", "auto")
    history = pd.read_csv(folder / HISTORY_FILE)
    if not is_evaluated(config, folder, len(history)):
        run_train(options.config, keys, "--eval_only", "True", "--checkpoint", "last")
    return Trained(history.iloc[-1], read_logits(folder / LOGITS_FILE), folder)


def run_train(config, keys, *flags) -> None:
    """Run train.py. Exits if it fails."""
    command = [sys.executable, "train.py", "-c", config, *flags]
    for key in keys:
        command += ["--set", key]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{finished.stderr}")


def together(all_saved: list[SavedLogits]) -> Tested:
    """Join the validation clips of one seed's runs."""
    ids = np.concatenate([saved.ids for saved in all_saved])
    order = np.argsort(ids, kind="stable")
    right = np.concatenate([right_clips(saved.logits, saved.labels) for saved in all_saved])
    groups = None
    if all_saved[0].groups is not None:
        groups = np.concatenate([saved.groups for saved in all_saved])[order]
    return Tested(ids[order], groups, right[None, order])


def scores_of_seed(seed, trained: list[Trained], tested: Tested) -> dict:
    """Return the means over the folds; top-1 is that of all their clips."""
    mean = {
        key: statistics.mean(float(each.last[key]) for each in trained)
        for key in ("val_loss", "top1", "clips_per_second")
    }
    return {
        "seed": seed,
        "top1": 100 * float(np.nanmean(tested.right)),
        "loss": mean["val_loss"],
        "train_top1": mean["top1"],
        "clips_per_second": mean["clips_per_second"],
        "folds": [float(each.last["val_top1"]) for each in trained],
        "folders": [os.path.relpath(each.folder, PROJECT) for each in trained],
    }


def opposites_told_apart(predictions_csvs, opposites) -> dict:
    """Return the percentage of clips classified as their own pair, and of these, correctly.

    opposites: pairs as `LABEL=LABEL`; guessing the direction gets 50 % of it right.
    """
    pair_of = {label: pair for pair in opposites for label in pair.split("=")}
    clips = pd.concat(
        [pd.read_csv(path, dtype=str, keep_default_na=False) for path in predictions_csvs]
    )
    clips = clips[clips["label"].isin(list(pair_of))]
    in_pair = clips[clips["label"].map(pair_of) == clips["predicted"].map(pair_of)]
    right = int((in_pair["label"] == in_pair["predicted"]).sum())
    return {
        "pair": 100 * len(in_pair) / max(1, len(clips)),
        "direction": 100 * right / max(1, len(in_pair)),
    }


def size(options, changes) -> dict:
    """Return GFLOP per clip and number of parameters of a variant, and the memory per clip."""
    config, model = network_of(options, changes)
    network = describe(model, config.clip_shape)
    return {
        "kept_mib_a_clip": kept_a_clip(options, changes),
        "gflop": network.flops / 1e9,
        "parameters": network.num_parameters,
    }


def kept_a_clip(options, changes) -> float:
    """Return the MiB per clip that the network keeps for the backward pass, in fp32 on the CPU."""
    config, model = network_of(options, changes)
    if config.checkpoint_activations:
        recompute_activations(model)
    clips = torch.zeros(2, config.num_channels, *config.clip_shape)
    return kept_for_backward(model, clips) / 2 / MIB


def network_of(options, changes):
    config = load_config(PROJECT / options.config, [*options.overrides, *changes])
    num_classes = config.num_classes or len(read_labels(PROJECT / config.labels_csv))
    return config, build_model(config, num_classes)


def summary(options, name, changes, runs) -> dict:
    """Return the row of a variant, without intervals.

    runs: from `scores_of_seed`, one per seed.
    """
    csvs = [PROJECT / folder / "predictions.csv" for each in runs for folder in each["folders"]]
    opposites = opposites_told_apart(csvs, options.opposites) if options.opposites else {}
    return {
        "variant": name,
        "changes": changes,
        "runs": runs,
        "top1": statistics.mean(each["top1"] for each in runs),
        "top1_range": [min(each["top1"] for each in runs), max(each["top1"] for each in runs)],
        "loss": statistics.mean(each["loss"] for each in runs),
        "train_top1": statistics.mean(each["train_top1"] for each in runs),
        "clips_per_second": statistics.median(each["clips_per_second"] for each in runs),
        **size(options, changes),
        **opposites,
    }


if __name__ == "__main__":
    sys.exit(main())

"""What `train.py --data` scores on a folder of clips, where each training set has its own choice.

    python benchmarks/chosen.py data/my_clips --group '^([a-z]+)_' --folds --save mine_chosen
    python benchmarks/chosen.py data/my_clips --clips_per_class 5 10 --seeds 0 1 2 --save mine_curve

compare.py repeats one config; here, networks and sampling are chosen anew by cross-validation
within each training set, as for a user who has only these clips. `--folds` leaves out each group
once. Otherwise the folder has to have train/ and validation/, and `--clips_per_class` draws a part
of train/ for each seed. An interrupted call continues. Scores are those of the last epoch.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pandas as pd
import torch

from benchmarks import machine
from benchmarks.folds import PROJECT
from benchmarks.tables import as_digits, of_digits, span, table
from clips.annotations import groups_of
from clips.packs import open_folder
from own_clips.class_folders import labelled_clips
from scoring.evaluation import right_clips
from scoring.intervals import accuracy_interval
from scoring.results import LOGITS_FILE, read_logits
from system.errors import UserError, exit_status
from system.files import write_text
from training.run_folder import CONFIG_FILE

FINISHED_FILE = "chosen.json"  # beside a finished run: what it was of, and its seconds


def training_sets(options) -> list[tuple[str, str, int, pd.DataFrame]]:
    """Return (row of the table, name, seed, clips) of each; clips: id, label, part, group."""
    clips, _ = labelled_clips(open_folder(str(options.folder)))
    is_split = (clips["part"] != "").any()
    clips["path"] = [clip_id.split("/", 2 if is_split else 1)[-1] for clip_id in clips["id"]]
    clips["group"] = ""
    if options.group:
        clips["group"] = groups_of(clips["id"].to_numpy(), options.group)
    if options.folds:
        return [
            ("each group left out once", f"{group}-{seed}", seed, _without(clips, group))
            for seed in options.seeds
            for group in sorted(set(clips["group"]))
        ]
    if not (clips["part"] == "validation").any():
        raise UserError(
            f"{options.folder}: has no train/ and validation/; give --folds and --group"
        )
    return [
        (f"{number or 'all'} clips per class", f"{number or 'all'}-{seed}", seed, drawn)
        for number in options.clips_per_class
        for seed in options.seeds
        for drawn in [_some(clips, number, seed) if number else clips]
    ]


def _without(clips: pd.DataFrame, group: str) -> pd.DataFrame:
    parts = np.where(clips["group"] == group, "validation", "train")
    return clips.assign(part=parts)


def _some(clips: pd.DataFrame, number: int, seed: int) -> pd.DataFrame:
    """Return the clips with only so many for training per class, the seed's own."""
    own = clips[clips["part"] == "train"].sample(frac=1, random_state=seed)
    chosen = own.groupby("label").head(number).sort_index()
    return pd.concat([chosen, clips[clips["part"] == "validation"]])


def trained(options, name: str, seed: int, clips: pd.DataFrame) -> dict:
    """Train as a user would, unless that has been done; return the result of each clip."""
    run, folder = (options.output / part / name for part in ("runs", "folders"))
    about = {
        "folder": str(options.folder.resolve()),
        "clips": [f"{row.part}/{row.id}" for row in clips.itertuples()],
        "keys": [f"group={options.group}", *options.overrides],
    }
    if not (run / FINISHED_FILE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        for row in clips.itertuples():
            place = folder / row.part / row.label / row.path
            place.parent.mkdir(parents=True, exist_ok=True)
            os.symlink((options.folder / row.id).resolve(), place)
        start = time.monotonic()
        _train(options, folder, seed)
        seconds = round(time.monotonic() - start)
        write_text(run / FINISHED_FILE, json.dumps(about | {"seconds": seconds}))
    finished = json.loads((run / FINISHED_FILE).read_text())
    if not finished.items() >= about.items():
        raise UserError(f"{run}: is of other clips or keys; choose another --output")
    saved, config = read_logits(run / LOGITS_FILE), json.loads((run / CONFIG_FILE).read_text())
    centered = " without the mean map" if config.get("center_features") else ""
    networks = " + ".join(config.get("members") or [config["model"]])
    return {
        "seed": seed,
        "name": name,
        "ids": "\n".join(saved.ids),
        "groups": None if saved.groups is None else "\n".join(saved.groups),
        "right": as_digits(right_clips(saved.logits, saved.labels)),
        "chosen": f"{networks}{centered}, {config.get('sampling', 'window')}",
        "seconds": finished["seconds"],
    }


def _train(options, folder: Path, seed: int) -> None:
    command = [sys.executable, "train.py", "--data", str(folder), "--overwrite", "True"]
    command += ["--group", options.group] if options.group else []
    for key in [f"seed={seed}", f"output_dir={options.output / 'runs'}", *options.overrides]:
        command += ["--set", key]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if finished.returncode:
        raise UserError(f"{shlex.join(command)}\n{finished.stdout}{finished.stderr}")


def summary(words: str, runs: list[dict]) -> dict:
    """Return a row of the table; runs: of all its training sets."""
    by_seed = [[run for run in runs if run["seed"] == seed] for seed in _seeds(runs)]
    joined = [_joined(own) for own in by_seed]
    right = np.array([clips["right"] for clips in joined])
    groups = None if joined[0]["group"].isna().any() else joined[0]["group"].to_numpy()
    interval = accuracy_interval(right, groups)
    chosen = Counter(run["chosen"] for run in runs).most_common()
    return {
        "training clips": words,
        "seeds": len(by_seed),
        "top1": 100 * float(np.nanmean(right)),
        "top1_interval": [interval.low, interval.high],
        "chosen": "; ".join(f"{name} ({count})" for name, count in chosen),
        "seconds": float(np.median([run["seconds"] for run in runs])),
    }


def _seeds(runs) -> list[int]:
    return sorted({run["seed"] for run in runs})


def _joined(runs) -> pd.DataFrame:
    """Return id, group and result of the clips of one seed's runs, in order of their ids."""
    parts = [
        pd.DataFrame(
            {
                "id": run["ids"].split("\n"),
                "right": of_digits(run["right"]),
                "group": run["groups"] and run["groups"].split("\n"),
            }
        )
        for run in runs
    ]
    return pd.concat(parts).sort_values("id")


def report(contents: dict) -> str:
    columns = {
        "training clips": lambda row: row["training clips"],
        "seeds": lambda row: str(row["seeds"]),
        "validation top-1, %": lambda row: f"{row['top1']:.1f}",
        "95 % interval": lambda row: span(row["top1_interval"], ".1f"),
        "chosen (times)": lambda row: row["chosen"],
        "seconds of a training, median": lambda row: f"{row['seconds']:.0f}",
    }
    head = f"`{contents['command']}`\n\n{contents['machine']}, {contents['versions']}"
    return f"{head}, {contents['date']}\n\n{table(columns, contents['rows'])}\n"


def measure(options, command: str) -> None:
    contents = machine.describe(torch.device("cpu")) | {"command": command, "runs": []}
    for words, name, seed, clips in training_sets(options):
        run = {"row": words} | trained(options, name, seed, clips)
        contents["runs"].append(run)
        score = 100 * np.nanmean(of_digits(run["right"]))
        print(f"{name}: {score:.1f} %, {run['chosen']}", flush=True)
        contents["rows"] = [
            summary(words, [each for each in contents["runs"] if each["row"] == words])
            for words in dict.fromkeys(each["row"] for each in contents["runs"])
        ]
        if options.save:  # after each, since the next takes minutes
            machine.save(options.save, contents, report(contents))
    print("\n" + report(contents))


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="the clips, a folder per class")
    parser.add_argument("--group", metavar="PATTERN", help="as for train.py --data")
    parser.add_argument("--folds", action="store_true", help="leave out each group once")
    parser.add_argument(
        "--clips_per_class", nargs="+", type=int, default=[0], metavar="N", help="(default: all)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="(default: 0)")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", dest="overrides")
    parser.add_argument(
        "--output", type=Path, default=Path("trainings/chosen"), help="(default: %(default)s)"
    )
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    options = parser.parse_args(arguments)
    if options.folds and not options.group:
        parser.error("--folds needs --group")
    options.output = options.output.resolve()
    return options


def main(arguments=None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "benchmarks/chosen.py", *arguments])
    return exit_status(lambda: measure(parse_arguments(arguments), command))


if __name__ == "__main__":
    sys.exit(main())

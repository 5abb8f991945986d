"""Train variants of one config with several seeds, and compare their scores in a table.

    python benchmarks/compare.py --config configs/quickstart.json --seeds 0 1 2 \\
        --variant fp32 precision=fp32 --variant bf16 precision=bf16 --save precision

A variant is a name and the keys that it changes; one that sets `seed` runs with that seed only.
Every run is an ordinary run of train.py in `--output`. An interrupted run is resumed and a finished
one is only read, so the same command with one more variant trains only that variant. `--opposites`
adds how often the direction of a movement is right.
"""

import argparse
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import pandas as pd
import torch

from benchmarks import machine
from benchmarks.memory_a_clip import kept_for_backward
from clips.annotations import read_labels
from model import build_model
from networks.recompute import recompute_activations
from system.config_file import load_config
from system.memory import MIB

PROJECT = Path(__file__).parent.parent


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    about = machine.describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    command = shlex.join(["python", "benchmarks/compare.py", *(arguments or sys.argv[1:])])
    text = f"`{command}`\n\n{about['machine']}, {about['versions']}, {about['date']}\n\n"
    text += f"{options.note}\n\n" if options.note else ""
    rows = []
    for name, *changes in options.variant:
        own_seeds = [int(change[5:]) for change in changes if change.startswith("seed=")]
        runs = [train(options, name, changes, seed) for seed in own_seeds or options.seeds]
        rows.append(summary(name, changes, runs, kept_a_clip(options, changes)))
        print(markdown([rows[-1]]).split("\n")[-1], flush=True)
        if options.save:  # after each variant, since the next may take hours
            contents = about | {"command": command, "note": options.note, "rows": rows}
            machine.save(options.save, contents, text + markdown(rows) + "\n")
    print("\n" + text + markdown(rows))
    return 0


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", "-c", required=True)
    parser.add_argument("--variant", nargs="+", action="append", required=True,
                        metavar=("NAME", "key=value"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", dest="overrides",
                        help="for all variants")
    parser.add_argument("--output", default="trainings/compare", help="(%(default)s)")
    parser.add_argument("--opposites", nargs="+", default=[], metavar="LABEL=LABEL",
                        help="classes that differ in direction only")
    parser.add_argument("--note", default="", help="a line above the table")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and .md")
    return parser.parse_args(arguments)


def train(options, name, changes, seed) -> dict:
    """Train one run unless it is finished already; return its scores."""
    own = [f"model_name={name}-{seed}", f"output_dir={options.output}", f"seed={seed}"]
    keys = [*options.overrides, *changes, *own]
    output = run_train(options.config, keys, "--resume", "auto")
    folder = PROJECT / options.output / f"{name}-{seed}"
    has_predictions = is_newer(folder / "predictions.csv", folder / "checkpoint.pth.tar")
    if options.opposites and not has_predictions:
        run_train(options.config, keys, "--resume", "True", "--eval_only", "True")
    last = pd.read_csv(folder / "history.csv", dtype=str).iloc[-1]
    total = re.search(r"total +([\d.]+) GFLOP (?:a|per) clip +([\d,]+)", output)
    return {
        "seed": seed,
        "top1": float(last["val_top1"]),
        "loss": float(last["val_loss"]),
        "train_top1": float(last["top1"]),
        "clips_per_second": float(last["clips_per_second"]),
        "gflop": float(total[1]),
        "parameters": int(total[2].replace(",", "")),
        **(opposites_told_apart(folder / "predictions.csv", options.opposites)
           if options.opposites else {}),
    }


def run_train(config, keys, *flags) -> str:
    """Run train.py and return what it prints. Exits if it fails."""
    command = [sys.executable, "train.py", "-c", config, *flags]
    for key in keys:
        command += ["--set", key]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{finished.stderr}")
    return finished.stdout


def is_newer(path, other) -> bool:
    return path.exists() and path.stat().st_mtime > other.stat().st_mtime


def opposites_told_apart(predictions_csv, opposites) -> dict:
    """Return the percentage of clips classified as their own pair, and of these, correctly.

    opposites: pairs as `LABEL=LABEL`; guessing the direction gets 50 % of it right.
    """
    pair_of = {label: pair for pair in opposites for label in pair.split("=")}
    clips = pd.read_csv(predictions_csv, dtype=str, keep_default_na=False)
    clips = clips[clips["label"].isin(list(pair_of))]
    in_pair = clips[clips["label"].map(pair_of) == clips["predicted"].map(pair_of)]
    right = int((in_pair["label"] == in_pair["predicted"]).sum())
    return {
        "pair": 100 * len(in_pair) / max(1, len(clips)),
        "direction": 100 * right / max(1, len(in_pair)),
    }


def kept_a_clip(options, changes) -> float:
    """Return the MiB per clip that the network keeps for the backward pass, in fp32 on the CPU."""
    config = load_config(PROJECT / options.config, [*options.overrides, *changes])
    num_classes = config.num_classes or len(read_labels(PROJECT / config.labels_csv))
    model = build_model(config, num_classes)
    if config.checkpoint_activations:
        recompute_activations(model)
    clips = torch.zeros(2, config.num_channels, config.clip_size, *config.crop)
    return kept_for_backward(model, clips) / 2 / MIB


def summary(name, changes, runs, kept_mib) -> dict:
    return {
        "variant": name,
        "changes": changes,
        "runs": runs,
        "top1": statistics.mean(run["top1"] for run in runs),
        "top1_range": [min(run["top1"] for run in runs), max(run["top1"] for run in runs)],
        "loss": statistics.mean(run["loss"] for run in runs),
        "train_top1": statistics.mean(run["train_top1"] for run in runs),
        "kept_mib_a_clip": kept_mib,
        "clips_per_second": statistics.median(run["clips_per_second"] for run in runs),
        "gflop": runs[0]["gflop"],
        "parameters": runs[0]["parameters"],
        **{key: statistics.mean(run[key] for run in runs)
           for key in ("pair", "direction") if key in runs[0]},
    }


def markdown(rows) -> str:
    """Return a table of the scores after the last epoch: mean over the seeds, and their range."""
    columns = {
        "variant": lambda row: row["variant"],
        "seeds": lambda row: str(len(row["runs"])),
        "validation top-1, %": lambda row: f"{row['top1']:.1f}",
        "lowest to highest": lambda row: "{:.1f} to {:.1f}".format(*row["top1_range"]),
        "validation loss": lambda row: f"{row['loss']:.3f}",
        "training top-1, %": lambda row: f"{row['train_top1']:.1f}",
        "parameters": lambda row: f"{row['parameters']:,}",
        "GFLOP per clip": lambda row: f"{row['gflop']:.2f}",
        "MiB per clip kept for backward": lambda row: f"{row['kept_mib_a_clip']:.1f}",
        "training clips/s": lambda row: f"{row['clips_per_second']:.1f}",
    }
    if "pair" in rows[0]:
        columns["right pair, %"] = lambda row: f"{row['pair']:.1f}"
        columns["direction right, % of these"] = lambda row: f"{row['direction']:.1f}"
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cell(row) for cell in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())

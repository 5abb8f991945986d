"""Trains variants of one config with several seeds, and puts what they reach into a table.

    python benchmarks/compare.py --config configs/quickstart.json --seeds 0 1 2 \\
        --variant fp32 precision=fp32 --variant bf16 precision=bf16 --save precision

A variant is a name and the keys that it changes. Every run is an ordinary run of train.py under
`--output`; one that was interrupted goes on, and one that is finished already is only read, so
that the same line with one more variant trains that variant alone.
"""

import argparse
import csv
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from annotations import read_labels
from benchmarks import machine
from config_file import load_config
from memory import MIB, kept_for_backward, recompute_activations
from model import build_model

PROJECT = Path(__file__).parent.parent


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    about = machine.describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    rows = []
    for name, *changes in options.variant:
        runs = [train(options, name, changes, seed) for seed in options.seeds]
        rows.append(summary(name, changes, runs, kept_a_clip(options, changes)))
        print(markdown([rows[-1]]).split("\n")[-1], flush=True)
    command = shlex.join(["python", "benchmarks/compare.py", *(arguments or sys.argv[1:])])
    text = f"`{command}`\n\n{about['machine']}, {about['versions']}, {about['date']}\n\n"
    text += markdown(rows) + "\n"
    print("\n" + text)
    if options.save:
        machine.save(options.save, about | {"command": command, "rows": rows}, text)
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
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and .md")
    return parser.parse_args(arguments)


def train(options, name, changes, seed) -> dict:
    """What one run has reached; it is trained first unless it is finished already."""
    own = [f"model_name={name}-{seed}", f"output_dir={options.output}", f"seed={seed}"]
    command = [sys.executable, "train.py", "-c", options.config, "--resume", "auto"]
    for change in [*options.overrides, *changes, *own]:
        command += ["--set", change]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{name}, seed {seed}: {' '.join(command)}\n{finished.stderr}")
    folder = PROJECT / options.output / f"{name}-{seed}"
    with open(folder / "history.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    total = re.search(r"total +([\d.]+) GFLOP a clip +([\d,]+)", finished.stdout)
    return {
        "seed": seed,
        "top1": float(last["val_top1"]),
        "loss": float(last["val_loss"]),
        "train_top1": float(last["top1"]),
        "clips_per_second": float(last["clips_per_second"]),
        "gflop": float(total[1]),
        "parameters": int(total[2].replace(",", "")),
    }


def kept_a_clip(options, changes) -> float:
    """MiB a clip that the variant's network keeps for the backward pass, in fp32 on the CPU."""
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
    }


def markdown(rows) -> str:
    """Validation top-1 after the last epoch: mean, and lowest to highest of the seeds."""
    lines = ["| variant | validation top-1, % | lowest to highest | validation loss "
             "| training top-1, % | parameters | GFLOP a clip "
             "| MiB a clip kept for backward | training clips/s |",
             "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        low, high = row["top1_range"]
        lines.append(
            f"| {row['variant']} | {row['top1']:.1f} | {low:.1f} to {high:.1f} | {row['loss']:.3f} "
            f"| {row['train_top1']:.1f} | {row['parameters']:,} | {row['gflop']:.2f} "
            f"| {row['kept_mib_a_clip']:.1f} | {row['clips_per_second']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

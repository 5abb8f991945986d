"""Loader, training step, evaluation and memory, side by side with the plain way, in one run.

    python benchmarks/benchmark.py                 on the CPU, or on the GPU if there is one
    python benchmarks/benchmark.py --parts loader  one part of it
    python benchmarks/benchmark.py --parts epoch --epoch_clips 400

Both ways are timed in turn, round by round, and a ratio is the median over the rounds: what else
the machine does then falls on both. The table and `results/<machine>.json` name the machine and
the versions. The limit says what no way of doing it could beat here.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks import epoch, loader, machine, memory, step

PARTS = {"loader": loader.measure, "step": step.measure, "evaluation": step.measure_evaluation,
         "memory": memory.measure, "epoch": epoch.measure}


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for part in options.parts for row in PARTS[part](device, options, folder)]
    table = markdown(rows)
    about = machine.describe(device)
    print(f"\n{about['machine']}, {about['versions']}\n\n{table}")
    if options.save:
        text = f"{about['machine']}, {about['versions']}, {about['date']}\n\n{table}\n"
        machine.save(options.save, about | {"rows": rows}, text)
    return 0


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--device", default=default, help="(%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS,
                        help="(all, but on a CPU no epoch)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--batch_size", type=int, help="(8; on a GPU 100, as Jester's)")
    parser.add_argument("--clips", type=int, default=20_000,
                        help="rows for the memory part (%(default)s; Jester has 118562)")
    parser.add_argument("--epoch_clips", type=int, default=epoch.CLIPS_OF_JESTER)
    parser.add_argument("--num_workers", type=int, default=cores, help="of the epoch (%(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", dest="overrides",
                        help="change keys of the tutorial's config for step and evaluation")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and .md")
    options = parser.parse_args(arguments)
    if not options.parts:
        options.parts = [part for part in PARTS if part != "epoch" or options.device != "cpu"]
    if options.batch_size is None:
        options.batch_size = 8 if options.device == "cpu" else 100
    return options


def markdown(rows) -> str:
    """A table: what | plain way | ours | ratio | limit."""
    lines = ["| what | plain way | ours | ratio | limit |", "|---|---|---|---|---|"]
    for row in rows:
        plain, ours, limit = (format_figure(row.get(key)) for key in ("plain", "ours", "limit"))
        ratio = f"{row['ratio']:.2f}" if row.get("ratio") else ""
        lines.append(f"| {row['what']} | {plain} | {ours} | {ratio} | {limit} |")
    return "\n".join(lines)


def format_figure(value) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        value = statistics.median(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())

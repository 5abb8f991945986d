"""Loader, training step, evaluation and memory, beside the plain way, in one run.

    python benchmarks/benchmark.py                 on the CPU, or on the GPU if there is one
    python benchmarks/benchmark.py --parts loader  one part of it
    python benchmarks/benchmark.py --parts epoch --epoch_clips 400

Both ways are timed in turn, round by round, and a ratio is the median over the rounds, so that
other work on the machine affects both. The table names the machine and the versions; each row is
printed, and saved, as soon as it is known. The limit is what no implementation could beat on this
machine (for steps see limit.py).
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import epoch, loader, machine, memory, step

PARTS = {"loader": loader.measure, "step": step.measure, "evaluation": step.measure_evaluation,
         "memory": memory.measure, "epoch": epoch.measure}


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    device = machine.device_of(options.device)
    about = machine.describe(device)
    title = f"{about['machine']}, {about['versions']}"
    print(f"{title}\n\n{HEADER}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            for row in PARTS[part](device, options, folder):
                rows.append(row)
                print(table_row(row), flush=True)
                if options.save:
                    text = f"{title}, {about['date']}\n\n{markdown(rows)}\n"
                    machine.save(options.save, about | {"rows": rows}, text)
    return 0


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--device", help="(default: a GPU if there is one)")
    parser.add_argument("--parts", nargs="+", choices=PARTS,
                        help="(default: all; on a CPU all but epoch)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--batch_size", type=int, help="(default: 8; on a GPU 100, as for Jester)")
    parser.add_argument("--clips", type=int, default=20_000,
                        help="rows for the memory part (%(default)s; Jester has 118562)")
    parser.add_argument("--epoch_clips", type=int, default=epoch.CLIPS_OF_JESTER)
    parser.add_argument("--epoch_seconds", type=float, metavar="SECONDS",
                        help="stop the epoch after this time (default: do all of it)")
    parser.add_argument("--num_workers", type=int, default=cores, help="in the epoch (%(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", dest="overrides",
                        help="change keys of the tutorial's config for step, evaluation, epoch")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and .md")
    options = parser.parse_args(arguments)
    has_gpu = machine.device_of(options.device).type == "cuda"
    if not options.parts:
        options.parts = [part for part in PARTS if part != "epoch" or has_gpu]
    if options.batch_size is None:
        options.batch_size = 100 if has_gpu else 8
    return options


HEADER = "| what | plain way | ours | ratio | limit |\n|---|---|---|---|---|"


def markdown(rows) -> str:
    """A table: what | plain way | ours | ratio | limit."""
    return "\n".join([HEADER, *map(table_row, rows)])


def table_row(row) -> str:
    plain, ours, limit = (format_figure(row.get(key)) for key in ("plain", "ours", "limit"))
    ratio = f"{row['ratio']:.2f}" if row.get("ratio") else ""
    return f"| {row['what']} | {plain} | {ours} | {ratio} | {limit} |"


def format_figure(value) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        value = statistics.median(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())

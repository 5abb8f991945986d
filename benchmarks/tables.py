"""Print the tables of compare.py again, with intervals from the result of each clip.

    python benchmarks/tables.py benchmarks/results/few_clips_lips8.json

prints the tables of saved results and rewrites the files, with the intervals that
`scoring/intervals.py` computes today. Files that lack the clips' results keep the intervals that
they have. Shapes: S seeds, N clips.
"""

import argparse
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks import machine
from scoring.baselines import NAMES as BASELINES
from scoring.intervals import accuracy_interval, compare_on_same_clips
from system.errors import UserError, exit_status
from system.files import write_text

# More variants are compared with the first one only.
MAX_ALL_PAIRS = 6


@dataclass
class Tested:
    """The validation clips of all folds, sorted by id, and whether each is classified correctly."""

    ids: np.ndarray  # str [N]
    groups: np.ndarray | None  # str [N]
    right: np.ndarray  # float [S, N]; NaN for clips that could not be read


def packed(tested: Tested, clip_sets: list[dict]) -> dict:
    """Return the clips' results as the fields of a row; add its clips to `clip_sets` if new."""
    groups = None if tested.groups is None else "\n".join(tested.groups)
    clips = {"ids": "\n".join(tested.ids), "groups": groups}
    if clips not in clip_sets:
        clip_sets.append(clips)
    right = [as_digits(seed) for seed in tested.right]
    return {"clip_set": clip_sets.index(clips), "right": right}


def as_digits(right) -> str:
    """Return a character for each clip: 1, 0, or - for NaN."""
    return "".join("-" if np.isnan(one) else f"{one:.0f}" for one in right)


def of_digits(text: str) -> list[float]:
    """Return what `as_digits` was given."""
    return [{"0": 0.0, "1": 1.0, "-": np.nan}[one] for one in text]


def unpacked(row: dict, clip_sets: list[dict]) -> Tested:
    """Return the clips' results of a row that `packed` made."""
    clips = clip_sets[row["clip_set"]]
    groups = None if clips["groups"] is None else np.array(clips["groups"].split("\n"))
    return Tested(
        np.array(clips["ids"].split("\n")),
        groups,
        np.array([of_digits(seed) for seed in row["right"]]),
    )


def add_intervals(contents: dict) -> None:
    """Compute the intervals of all rows and pairs, if the clips' results were saved."""
    rows = contents["rows"]
    if not all("right" in row for row in rows):
        return
    tested = {row["variant"]: unpacked(row, contents["clip_sets"]) for row in rows}
    for row in rows:
        own = tested[row["variant"]]
        interval = accuracy_interval(own.right, own.groups)
        row |= {"top1_interval": [interval.low, interval.high], "interval_method": interval.method}
    contents["pairs"] = compared_pairs(tested)


def compared_pairs(tested: dict[str, Tested]) -> list[dict]:
    """Compare the variants that were validated on the same clips, two by two."""
    pairs = itertools.combinations(tested, 2)
    if len(tested) > MAX_ALL_PAIRS:
        first, *others = tested
        pairs = [(first, other) for other in others]
    return [
        {"second": second, "first": first}
        | compare_on_same_clips(
            tested[second].right, tested[first].right, tested[first].groups
        )._asdict()
        for first, second in pairs
        if np.array_equal(tested[first].ids, tested[second].ids)
    ]


# --- Markdown ----------------------------------------------------------------------------------


def report(contents: dict) -> str:
    """Return the text of results/NAME.md. contents: of results/NAME.json."""
    parts = [
        f"`{contents['command']}`",
        ", ".join(contents[name] for name in ("machine", "versions", "date")),
        contents["note"],
    ]
    if contents["folds"]:
        parts.append(f"Cross-validation: {contents['folds']}.")
    if contents.get("training_sets"):  # earlier versions drew one set for all seeds
        parts.append(f"Training clips: {contents['training_sets']}, the same for all variants.")
    values = ", ".join(f"{name} {value:.1f} %" for name, value in contents["baselines"].items())
    parts += [
        f"Baselines, validation top-1: {values}." if values else "",
        markdown(contents["rows"]),
        pairs_table(contents["pairs"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(rows) -> str:
    """Return a table of the scores after the last epoch: means over the seeds, with intervals."""
    columns = {
        "variant": lambda row: row["variant"],
        "seeds": lambda row: str(len(row["runs"])),
        "validation top-1, %": lambda row: f"{row['top1']:.1f}",
        "95 % interval": lambda row: span(row["top1_interval"], ".1f"),
        "lowest to highest seed": lambda row: span(row["top1_range"], ".1f"),
        "validation loss": lambda row: f"{row['loss']:.3f}",
        "training top-1, %": lambda row: f"{row['train_top1']:.1f}",
        "parameters": lambda row: f"{row['parameters']:,}",
        "GFLOP per clip": lambda row: f"{row['gflop']:.2f}",
        "MiB per clip kept for backward": lambda row: f"{row['kept_mib_a_clip']:.1f}",
        "training clips/s": lambda row: f"{row['clips_per_second']:.1f}",
    }
    linear = BASELINES["linear_top1"]
    if linear in rows[0].get("baselines", {}):
        columns[f"{linear}, %"] = lambda row: f"{row['baselines'][linear]:.1f}"
    if "pair" in rows[0]:
        columns["right pair, %"] = lambda row: f"{row['pair']:.1f}"
        columns["direction right, % of these"] = lambda row: f"{row['direction']:.1f}"
    methods = methods_of(row["interval_method"] for row in rows)
    return f"{table(columns, rows)}\n\nLast epoch of each training. 95 % intervals: {methods}."


def pairs_table(pairs) -> str:
    """Return a table of the pairs; an empty string if there are none."""
    columns = {
        "on the same clips": lambda row: f"{row['second']} against {row['first']}",
        "difference, points": lambda row: f"{row['difference']:+.1f}",
        "95 % interval": lambda row: span((row["low"], row["high"]), "+.1f"),
        "clips that only the first has right": lambda row: f"{row['only_first']:.1f}",
        "only the second": lambda row: f"{row['only_second']:.1f}",
        "McNemar's exact p": lambda row: "" if row["p"] is None else f"{row['p']:.3g}",
    }
    methods = methods_of(row["method"] for row in pairs)
    return f"{table(columns, pairs)}\n\n95 % intervals: {methods}." if pairs else ""


def span(limits, form) -> str:
    """Return `1.0 to 2.0`, or `none`."""
    if limits is None or limits[0] is None:
        return "none"
    return f"{limits[0]:{form}} to {limits[1]:{form}}"


def methods_of(methods) -> str:
    return "; ".join(dict.fromkeys(methods))


def table(columns, rows) -> str:
    """Return a Markdown table; columns: by name, what makes a cell of a row."""
    return machine.markdown_table(
        columns, [[cell(row) for cell in columns.values()] for row in rows]
    )


def print_anew(path: Path) -> None:
    """Print the tables of a saved file, and rewrite it and its .md."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        add_intervals(contents)
        text = report(contents)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a file that compare.py --save wrote, or one of an earlier "
            f"version ({error!r}); compare again"
        ) from None
    write_text(path, machine.as_json(contents))
    write_text(path.with_suffix(".md"), text)
    print(text)


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="results/NAME.json, from compare.py --save NAME",
    )
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    return exit_status(lambda: [print_anew(path) for path in options.files] and None)


if __name__ == "__main__":
    sys.exit(main())

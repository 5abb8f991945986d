"""The report: one self-contained HTML page about a run."""

import functools
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from pydantic import ValidationError

from config import IMAGENET_COLOURS, Config
from reporting.confusion_matrix import save_confusion_matrix
from reporting.findings import about_baselines, balanced_figure, time_probe_section
from reporting.line_chart import draw_curves
from reporting.palette import DARK, LIGHT, css_variables
from reporting.speed import column, duration, speed, times_of_starts
from reporting.worst_clips import WrongClip, worst_clips
from scoring import evaluation, results
from scoring.baselines import NAMES as BASELINES
from scoring.baselines import baselines_of_row
from scoring.results import LOGITS_FILE, SavedLogits, read_logits
from system.config_file import parse_override
from system.errors import UserError, escape_surrogates, message_for_user, summarize_validation
from system.files import write_text
from training.run_folder import CONFIG_FILE, HISTORY_FILE, REPORT_FILE, VERSIONS_FILE

TEMPLATE = "report_template.html"
# With more classes, those with the most mistakes are shown.
MAX_CLASSES_IN_MATRIX = 60
NUM_PAIRS = 10


def write_report(folder: str | Path) -> Path:
    """Write the page of a run folder, and return its path.

    Raises UserError if it is not a run folder or one of its files is damaged; OSError if the page
    cannot be written.
    """
    run = read_run_folder(Path(folder))
    page = template().render(contents(run))
    path = run.folder / REPORT_FILE
    write_text(path, escape_surrogates(page))  # of paths in a command line
    return path


@functools.cache
def template():
    """Return the page's template, which is compiled once per process."""
    # Not at the top: the import would slow down the start of a run.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    return environment.get_template(TEMPLATE)


def write_evaluation(folder: Path, annotations, logits, class_names, origin) -> None:
    """Write the result files of a set of clips, which the report shows if it has labels.

    logits: [N, classes]; origin: as for `results.write_logits`, whose file is written last.
    """
    if annotations.has_labels:
        save_confusion_matrix(folder, annotations, logits, class_names)
    results.write_results(folder, annotations, logits, class_names, origin)


def unbroken(text) -> str:
    """Return the text as HTML in which no line ends within "top-1"."""
    from markupsafe import Markup, escape

    text = str(escape(text))  # re.sub on Markup would also escape the inserted text
    return Markup(re.sub(r"[Tt]op-\d+", r'<span class="unbroken">\g<0></span>', text))


def add_report(folder: str | Path) -> None:
    """Write the report at the end of a command; an error is only a warning."""
    try:
        print(f"report: {write_report(folder)}")
    except Exception as error:
        message = message_for_user(error)
        if message is None:
            raise
        print(
            f"warning: no report: {message}; then run `python report.py "
            f"{shlex.quote(str(folder))}`",
            file=sys.stderr,
        )


# --- the run folder ----------------------------------------------------------------------------


@dataclass
class RunFolder:
    """Contents of a run folder; None or empty for a missing file."""

    folder: Path
    config: dict | None  # unchecked: it may be from another version
    starts: list[dict]
    history: list[dict[str, float]]  # one row per epoch; empty cells are left out
    saved: SavedLogits | None

    def command(self, *flags) -> str:
        """Return the train.py command for this run."""
        if self.config is None:
            return shlex.join(["python", "train.py", *flags, "--config", "FILE"])
        words = ["python", "train.py", *flags, "--config", str(self.folder / CONFIG_FILE)]
        output_dir, name = (self.config.get(key, "") for key in ("output_dir", "model_name"))
        own_folder = Path(str(output_dir)) / str(name)
        if own_folder.resolve() != self.folder.resolve():  # it was moved
            words += _override("output_dir", str(self.folder.parent))
            words += _override("model_name", self.folder.resolve().name)
        return shlex.join(words)


def _override(key, text) -> list[str]:
    is_plain = parse_override(f"{key}={text}")[1] == text
    return ["--set", f"{key}={text if is_plain else json.dumps(text)}"]


def read_run_folder(folder: Path) -> RunFolder:
    """Read the files of a run. Raises UserError if there are none, or one is damaged."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; give a run folder, for example trainings/quickstart"
        )
    names = (CONFIG_FILE, HISTORY_FILE, LOGITS_FILE)
    if not any((folder / name).exists() for name in names):
        raise UserError(
            f"{folder}: not a run folder: it has none of {', '.join(names)}; give one "
            "that train.py wrote, for example trainings/quickstart"
        )
    return RunFolder(
        folder,
        _read_json(folder / CONFIG_FILE, dict, "--resume True rewrites it"),
        _read_json(folder / VERSIONS_FILE, list, "delete it") or [],
        _read_history(folder / HISTORY_FILE),
        read_logits(folder / LOGITS_FILE) if (folder / LOGITS_FILE).exists() else None,
    )


def _read_json(path, kind, remedy):
    """Return the content of a JSON file, or None if it does not exist."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from None
    if content is not None and not isinstance(content, kind):
        raise UserError(f"{path}: damaged (not a JSON {kind.__name__}); {remedy}")
    return content


def _read_history(path) -> list[dict[str, float]]:
    import pandas as pd  # not at the top: the start of a run need not wait for it

    try:
        cells = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        rows = [
            {name: float(text) for name, text in row.items() if text}
            for row in cells.to_dict("records")
        ]
        if not all(np.isfinite(row.get("epoch", np.nan)) for row in rows):
            raise ValueError("a row without an epoch")
    except FileNotFoundError:
        return []
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged ({reason}); --resume True rewrites it") from None
    return rows


# --- the page ----------------------------------------------------------------------------------


def contents(run: RunFolder) -> dict:
    """Return the variables of the template."""
    return {
        "name": run.folder.resolve().name,
        "figures": key_figures(run),
        "baselines": about_baselines(run.history[-1] if run.history else None),
        "time": time_probe_section(run.folder, run.config or {}),
        "missing": missing(run),
        "colours": {"light": css_variables(LIGHT), "dark": css_variables(DARK)},
        "curves": draw_curves(run.history),
        "history": history_table(run.history),
        "evaluation": evaluated(run) if run.saved else None,
        "speed": speed(run.history, run.starts),
        "starts": [start for start in run.starts if isinstance(start, dict)],
        "settings": settings(run.config or {}),
    }


def missing(run: RunFolder) -> list[tuple[str, str]]:
    """Return (what the page lacks, the command that adds it)."""
    found = []
    if run.config is None:
        found.append(
            ("The settings: the folder has no config.json, which training writes.", run.command())
        )
    if not run.history:
        found.append(("Curves and speed: no epoch is finished.", run.command("--resume", "auto")))
    if run.saved is None:
        command = run.command("--eval_only", "True", "--checkpoint", "best")
        found.append(
            (
                "Confusion matrix, classes and misclassified clips: the network has not been "
                "evaluated.",
                command,
            )
        )
    return found


def key_figures(run: RunFolder) -> list[tuple[str, str, str]]:
    """Return (name, value, remark) for the top of the page."""
    found = []
    if scored := scored_epochs(run):
        best = f"best of {len(scored)} epochs, validation top-1"
        found = [
            (name, f"{row['val_top1']:.2f} %", _remark(row))
            for name, row in (("last validation top-1", scored[-1]), (best, best_of(scored)))
        ]
        found += [
            (f"baseline: {BASELINES[name]}", f"{value:.2f} %", "validation top-1")
            for name, value in baselines_of_row(scored[-1]).items()
        ]
    if run.saved:
        scores = evaluation.score(run.saved.logits, run.saved.labels)
        intervals = evaluation.score_intervals(run.saved.logits, run.saved.labels, run.saved.groups)
        is_unread = run.saved.logits[:, 0].isnan()
        num_clips = f"{int((~is_unread).sum()):,} clips"
        if is_unread.any():
            num_clips += f" ({int(is_unread.sum()):,} could not be read)"
        found.append(
            (
                "evaluated top-1",
                f"{scores['top1']:.2f} %",
                f"{num_clips}; 95 % interval {intervals['top1']}",
            )
        )
        found.append(balanced_figure(run.saved))
    if run.history:
        goal = (run.config or {}).get("num_epochs")
        remark = f"of {goal}" if isinstance(goal, int) and goal > 0 else "no limit"
        found.append(("epochs", f"{run.history[-1]['epoch']:g}", remark if run.config else ""))
    if times := times_of_starts(run.starts):
        starts = f", in {len(times)} starts" if len(times) > 1 else ""
        found.append(("time of the run", duration(sum(times)), f"to its last epoch{starts}"))
    if speeds := column(run.history, "clips_per_second"):
        found.append(("training clips per second", f"{median(speeds):,.1f}", "median over epochs"))
    return found


def _remark(row) -> str:
    """Return the epoch of a row of the history, and the interval of its validation top-1."""
    if not {"val_top1_low", "val_top1_high"} <= row.keys():  # from an earlier version
        return f"epoch {row['epoch']:g}"
    return (
        f"epoch {row['epoch']:g}; 95 % interval {row['val_top1_low']:.1f} to "
        f"{row['val_top1_high']:.1f}"
    )


def scored_epochs(run: RunFolder) -> list[dict[str, float]]:
    """Return the rows of the history with a validation top-1."""
    return [row for row in run.history if np.isfinite(row.get("val_top1", np.nan))]


def best_of(scored) -> dict[str, float]:
    """Return the first row with the best top-1, whose checkpoint training keeps."""
    return max(scored, key=lambda row: row["val_top1"])


def history_table(history: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Return column names and rows as text."""
    names = list(dict.fromkeys(name for row in history for name in row))
    return names, [[f"{row[name]:.5g}" if name in row else "" for name in names] for row in history]


def settings(config: dict) -> dict[str, list[tuple[str, str, str, str]]]:
    """Return (key, value, default, meaning) of the changed keys and of the default ones."""
    rows = {"changed": [], "default": []}
    for key, value in config.items():
        row, kind = (key, _as_text(value), "", "not a key of this version"), "changed"
        if known := Config.model_fields.get(key):
            default = "" if known.is_required() else _as_text(known.default)
            row = (key, _as_text(value), default, known.description)
            is_default = value in (known.default, IMAGENET_COLOURS.get(key))
            kind = "default" if is_default else "changed"
        rows[kind].append(row)
    return rows


def _as_text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- the evaluation ----------------------------------------------------------------------------


def evaluated(run: RunFolder) -> dict:
    """Return the variables of the section on the evaluation."""
    saved = run.saved
    matrix = evaluation.confusion_matrix(saved.logits, saved.labels)
    pairs = [
        (saved.classes[true], saved.classes[predicted], count)
        for true, predicted, count in results.most_confused(matrix, NUM_PAIRS)
    ]
    scores = evaluation.format_with_intervals(saved.logits, saved.labels, saved.groups)
    intervals = evaluation.class_intervals(saved.logits, saved.labels, saved.groups)
    clips, clips_note = wrong_clips(run)
    return {
        "origin": origin(run),
        "command": run.command("--eval_only", "True", "--checkpoint", "last"),
        "scores": scores.replace("   ", ", "),
        "num_clips": len(saved.ids),
        "skipped": [saved.ids[index] for index in saved.logits[:, 0].isnan().nonzero()[:, 0]],
        "num_wrong": int(matrix.sum() - np.diag(matrix).sum()),
        "classes": class_bars(matrix, saved.classes, intervals),
        "class_intervals": evaluation.method_of_classes(saved.groups),
        "calibration": evaluation.calibration(saved.logits, saved.labels),
        "pairs": pairs,
        "matrix": matrix_rows(matrix, saved.classes),
        "clips": clips,
        "clips_note": clips_note,
    }


def origin(run: RunFolder) -> tuple[str, bool]:
    """Return which weights were evaluated, and whether the last checkpoint may differ."""
    if run.saved.origin is None:
        return (
            "An earlier version of the program wrote these results, which did not record the "
            "weights."
        ), True
    networks = run.saved.origin.networks
    if len(networks) > 1:
        each = ", ".join(map(_describe_weights, networks))
        stack = run.saved.origin.stack
        kind = f"a stack ({stack})" if stack else "the mean"
        return f"Results of {kind} of {len(networks)} networks: {each}.", False
    (network,) = networks
    text = f"Results of the weights of {_describe_weights(network)}."
    if not run.history:
        return text, False
    row = next((row for row in run.history if row["epoch"] == network.epoch), None)
    # history.csv has 8 digits of each value.
    own_row = {name: float(f"{value:.8g}") for name, value in (network.history_row or {}).items()}
    if row != own_row:
        return f"{text} These weights are not from the training that the curves show.", True
    last, scored = run.history[-1]["epoch"], scored_epochs(run)
    if last > network.epoch and not network.step and scored and best_of(scored) == row:
        return f"{text} This is the best epoch; the last one is {last:g}.", False
    if last > network.epoch:
        return f"{text} The last checkpoint is of epoch {last:g}.", True
    return text, False


def _describe_weights(network: results.Weights) -> str:
    epoch = "an unknown epoch" if network.epoch is None else f"epoch {network.epoch}"
    steps = f" and {network.step} steps" if network.step else ""
    return f"{epoch}{steps} ({network.path})"


def class_bars(matrix, classes, intervals) -> list[tuple[str, int, int, str]]:
    """Return (class, correctly classified clips, all its clips, interval), worst class first.

    intervals: one per class, as `evaluation.class_intervals` returns them.
    """
    totals = matrix.sum(1)
    fractions = np.diag(matrix) / np.maximum(totals, 1)
    order = np.argsort(np.where(totals > 0, fractions, 2), kind="stable")  # no clips: last
    return [
        (classes[index], int(matrix[index, index]), int(totals[index]), str(intervals[index] or ""))
        for index in order
    ]


def matrix_rows(matrix, classes) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return (class, [(clips, fraction of the class) per predicted class]) of the matrix."""
    mistakes = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-(mistakes.sum(0) + mistakes.sum(1)), kind="stable")
    shown = np.sort(order[:MAX_CLASSES_IN_MATRIX]).tolist()
    fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    return [
        (
            classes[true],
            [
                (int(matrix[true, predicted]), float(fractions[true, predicted]))
                for predicted in shown
            ],
        )
        for true in shown
    ]


def wrong_clips(run: RunFolder) -> tuple[list[WrongClip], str]:
    """Return the worst clips, and why they have no pictures, or an empty string."""
    folder, config = None, None
    keys = run.saved.origin.config if run.saved.origin else run.config
    try:
        config, note = Config.model_validate({"model_name": "evaluation"} | (keys or {})), ""
    except ValidationError as error:
        names = summarize_validation(error, with_reasons=False)
        note = f"the config is from another version of the program ({names})"
    if keys is None:
        config, note = None, "the folder of the clips is unknown"
    if config:
        folder, _ = config.set_paths("validation")
        if not os.path.exists(folder):
            config, note = (
                None,
                (
                    f"the data folder {folder} does not exist; paths are relative to "
                    "the current folder of the command"
                ),
            )
    return worst_clips(run.saved, folder, config), note

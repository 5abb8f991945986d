"""Charts of measured figures, by matplotlib, in the palette of all pictures."""

import csv
import json
import re
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from docs.svg import FONT, WIDTH, style_sheet
from explaining.time_probe import ORDERS, TimeProbe
from reporting.palette import LIGHT, themed_svg, var
from system.errors import UserError

DOTS_PER_INCH = 72  # so that a point is a pixel
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pictures",
    "font.size": 13,
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["soft"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.labelsize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 14,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 12,
    "xtick.color": LIGHT["soft"],
    "xtick.labelcolor": LIGHT["muted"],
    "xtick.labelsize": 12,
    "ytick.color": LIGHT["soft"],
    "ytick.labelcolor": LIGHT["muted"],
    "ytick.labelsize": 12,
    "axes.facecolor": "none",
    "grid.color": LIGHT["faint"],
    "axes.axisbelow": True,
}


# --- from matplotlib to a picture of ours ------------------------------------------------------


def new_figure(height) -> Figure:
    figure = Figure(
        figsize=(WIDTH / DOTS_PER_INCH, height / DOTS_PER_INCH),
        dpi=DOTS_PER_INCH,
        layout="constrained",
        facecolor="none",
    )
    figure.get_layout_engine().set(w_pad=0.3, h_pad=0.28, wspace=0.06)
    return figure


def to_svg(figure, description) -> str:
    """Return the figure on a card, in the colours of the reader's theme."""
    text = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', themed_svg(figure))
    height = round(figure.get_figheight() * DOTS_PER_INCH)
    card = (
        f"<title>{escape(description)}</title><style>{style_sheet()}"
        f"text{{font-family:{FONT}!important}}</style>"
        f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8" '
        f'style="fill:{var("card")};stroke:{var("edge")}"/>'
    )
    opening_tag, rest = text.split(">", 1)
    return f"{opening_tag}>{card}{rest}"


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a history.csv. Raises UserError if it does not exist."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); train first") from None
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


# --- curves ------------------------------------------------------------------------------------


@matplotlib.rc_context(SETTINGS)
def draw_curves(reference, own) -> str:
    """Draw the published reference run on Jester, beside a quickstart run of this project.

    reference, own: columns of a history.csv.
    """
    figure = new_figure(400)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.75, 1))
    left.set_title("Reference run, Jester (published)")
    right.set_title("Quickstart, built-in gestures")
    for axes, history in ((left, reference), (right, own)):
        epochs = history["epoch"]
        axes.plot(epochs, history["top1"], color=LIGHT["orange"], linewidth=2)
        axes.plot(epochs, history["val_top1"], color=LIGHT["blue"], linewidth=2)
        axes.grid(axis="y")
        axes.set(xlabel="epoch", xlim=(0.98, 1.015 * epochs[-1]), ylim=(0, 104))
        axes.tick_params(length=0)
    left.set_ylabel("top-1, %")
    best = int(reference["val_top1"].argmax())
    ahead = reference["top1"] > reference["val_top1"]
    left.fill_between(
        reference["epoch"],
        reference["val_top1"],
        reference["top1"],
        where=ahead,
        color=LIGHT["soft"],
        alpha=0.35,
        linewidth=0,
    )
    epoch, score = reference["epoch"][best], reference["val_top1"][best]
    left.plot(epoch, score, "o", color=LIGHT["blue"], markersize=8)
    left.annotate(
        f"best: {score:.2f} %, epoch {epoch:.0f}",
        (epoch, score),
        (epoch, 66),
        color=LIGHT["blue"],
        ha="center",
        fontweight="bold",
        arrowprops={"arrowstyle": "-", "color": LIGHT["blue"]},
    )
    gap, end = reference["top1"][-1] - reference["val_top1"][-1], reference["epoch"][-1]
    left.annotate(
        f"overfitting: a gap of\n{gap:.1f} points at the end",
        (0.95 * end, reference["val_top1"][-1] + gap / 2),
        (end, 42),
        ha="right",
        color=LIGHT["muted"],
        arrowprops={"arrowstyle": "-", "color": LIGHT["muted"]},
    )
    _name_lines(left, (0.5 * end, 96), (0.17 * end, 75), "left")
    last = own["epoch"][-1]
    right.set_xticks(own["epoch"][:: max(1, len(own["epoch"]) // 8)])
    _name_lines(right, (last, 88), (0.395 * last, 95), "right")
    right.text(
        last, 20, "movements drawn by a\nprogram: far easier", color=LIGHT["muted"], ha="right"
    )
    return to_svg(figure, "Top-1 accuracy of training and validation over the epochs of two runs")


@matplotlib.rc_context(SETTINGS)
def draw_reference(reference) -> str:
    """Draw loss, top-1 and top-5 of the published run; `reference` as in `draw_curves`."""
    figure = new_figure(290)
    panels = figure.subplots(1, 3)
    titles = {"loss": "Loss", "top1": "Top-1, %", "top5": "Top-5, %"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        for column, colour in ((name, "orange"), (f"val_{name}", "blue")):
            axes.plot(reference["epoch"], reference[column], color=LIGHT[colour], linewidth=1.5)
        axes.grid(axis="y")
        axes.set(xlabel="epoch", ylim=(0, 3.5 if name == "loss" else 104))
        axes.set_title(title)
        axes.tick_params(length=0)
    _name_lines(panels[0], (reference["epoch"][-1], 0.27), (reference["epoch"][-1], 0.78), "right")
    return to_svg(figure, "Loss, top-1 and top-5 of the published run on Jester, over 390 epochs")


def _name_lines(axes, training_place, validation_place, side) -> None:
    """Label the two curves; side: of the text relative to its place."""
    for name, place, colour in (
        ("training", training_place, "orange"),
        ("validation", validation_place, "blue"),
    ):
        axes.text(*place, name, color=LIGHT[colour], ha=side, fontweight="bold")


# --- the time probe ----------------------------------------------------------------------------


@matplotlib.rc_context(SETTINGS)
def draw_time_probe(result: TimeProbe) -> str:
    """Draw the accuracy on the same clips with reordered frames, and the swapped classes."""
    pairs = result.swapped()
    figure = new_figure(max(330, 90 + 30 * len(pairs)))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    accuracies = [result.accuracy(order) for order in ORDERS]
    colours = [LIGHT["blue"], LIGHT["orange"], LIGHT["soft"], LIGHT["soft"]]
    left.barh(ORDERS, accuracies, color=colours, height=0.62)
    chance = 100 / len(result.classes)
    left.axvline(chance, color=LIGHT["muted"], linestyle=(0, (3, 3)), linewidth=1.2)
    for place, accuracy in enumerate(accuracies):
        left.text(max(accuracy, chance) + 2, place, f"{accuracy:.1f} %", va="center")
    left.text(
        chance + 2, 3.72, f"chance: {chance:.1f} %", color=LIGHT["muted"], fontsize=12, va="center"
    )
    left.set(xlim=(0, 122), ylim=(4.0, -0.5), xticks=[], title="Accuracy with the frames …")
    left.tick_params(length=0, labelsize=14, labelcolor=LIGHT["ink"])
    left.spines[["bottom"]].set_visible(False)
    _list_swaps(right, pairs)
    shuffled = pair_and_direction(result, "shuffled")
    if shuffled:
        text = (
            "Shuffled: the right pair for {:.1f} % of the clips,\n"
            "of these the right direction for {:.1f} %"
        )
        right.text(0, max(4, len(pairs) / 2) + 0.1, text.format(*shuffled), va="center")
    names = ", ".join(
        f"{order} {accuracy:.1f} %" for order, accuracy in zip(ORDERS, accuracies, strict=True)
    )
    return to_svg(figure, f"Accuracy with the frames in other orders: {names}")


def pair_and_direction(result: TimeProbe, order) -> tuple[float, float] | None:
    """Return the percent of clips predicted as their class or its opposite; of these, correctly.

    Opposites are classes that are swapped when the frames are reversed; None without any.
    """
    opposite = {name: other for name, other, _ in result.swapped()}
    names = np.array(result.classes)
    labels, predicted = names[result.labels], names[result.predicted[order]]
    in_pair = np.array(
        [
            guess in (label, opposite.get(label))
            for label, guess in zip(labels, predicted, strict=True)
        ]
    )
    if not opposite or not in_pair.any():
        return None
    return 100 * in_pair.mean(), 100 * (predicted == labels)[in_pair].mean()


def _list_swaps(axes, pairs) -> None:
    """Add a line per pair of swapped classes, with the percentage of each one's clips."""
    axes.set_axis_off()
    axes.set_title("Played backwards, what is taken for what")
    shares = {(name, other): share for name, other, share in pairs}
    lines = [
        pair
        for pair in shares
        if pair[::-1] not in shares
        or pair[0] not in [other for _, other in list(shares)[: list(shares).index(pair)]]
    ]
    axes.set(xlim=(0, 1), ylim=(max(4, len(lines)) + 0.5, -0.5))
    for number, (name, other) in enumerate(lines):
        is_mutual = (other, name) in shares
        axes.text(0, number, name, va="center", color=LIGHT["blue"])
        axes.annotate(
            "",
            (0.46, number),
            (0.37, number),
            arrowprops={"arrowstyle": "<->" if is_mutual else "->", "color": LIGHT["muted"]},
        )
        axes.text(0.49, number, other, va="center", color=LIGHT["orange"])
        percent = f"{shares[name, other]:.0f} %"
        if is_mutual:
            percent = f"{shares[name, other]:.0f} and {shares[other, name]:.0f} %"
        axes.text(0.49, number + 0.34, percent, va="center", color=LIGHT["muted"], fontsize=12)
    if not lines:
        axes.text(0, 0, "no class for another", va="center", color=LIGHT["muted"])


# --- tables of benchmarks/compare.py -----------------------------------------------------------


def read_results(path: Path) -> dict:
    """Return the results that compare.py saved. Raises UserError if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


@matplotlib.rc_context(SETTINGS)
def draw_remedies(results, title) -> str:
    """Draw each variant's top-1 and interval, if known, best first, beside the baselines.

    results: from compare.py; the rows' `train_top1` are those of the last epoch's training steps,
    on augmented clips and with dropout.
    """
    baseline, *_ = results["rows"]
    rows = sorted(results["rows"], key=lambda row: row["top1"])
    figure = new_figure(130 + 27 * len(rows))
    axes = figure.add_subplot()
    axes.axvline(baseline["top1"], color=LIGHT["soft"], linestyle=(0, (3, 3)), linewidth=1.2)
    for place, row in enumerate(rows):
        axes.plot(
            row["train_top1"],
            place,
            "o",
            color=LIGHT["orange"],
            markersize=7,
            fillstyle="none",
            markeredgewidth=1.6,
        )
        _draw_score(axes, row, place, LIGHT["blue"])
    axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row is baseline else "normal")
    axes.tick_params(axis="y", length=0, labelsize=13, labelcolor=LIGHT["ink"])
    axes.tick_params(axis="x", length=0)
    axes.set(
        xlim=(0, 104), ylim=(-0.7, len(rows) + 0.9), xticks=range(0, 101, 20), xlabel="top-1, %"
    )
    axes.grid(axis="x")
    axes.spines[["left", "bottom"]].set_visible(False)
    _draw_baselines(axes, results.get("baselines", {}), len(rows) + 0.1)
    axes.set_title(f"{title} ({baseline['variant']} in bold, dashed)")
    for x, text, colour in (
        (0, _legend(rows), "blue"),
        (330, "○ training (augmented, dropout)", "orange"),
    ):
        shown = axes.annotate(
            text,
            (0, 0),
            (x, -44),
            xycoords="axes fraction",
            color=LIGHT[colour],
            textcoords="offset points",
            fontweight="bold",
        )
        shown.set_in_layout(x == 0)
    worst, best = rows[0], rows[-1]
    return to_svg(
        figure,
        f"Validation top-1 of {len(rows)} variants, from {worst['top1']:.1f} % "
        f"({worst['variant']}) to {best['top1']:.1f} % ({best['variant']})",
    )


@matplotlib.rc_context(SETTINGS)
def draw_clips_per_class(curves: dict[str, list], baseline: list, num_all: int) -> str:
    """Draw top-1 over training clips per class for two networks, and for the linear model.

    curves: name -> rows of compare.py, by number of clips, the last of all clips; baseline: percent
    for the same numbers; num_all: clips per class of all, on average.
    """
    figure = new_figure(330)
    axes = figure.add_subplot()
    numbers = [5, 10, 20, num_all]
    lines = [(name, [row["top1"] for row in rows]) for name, rows in curves.items()]
    lines.append(("linear model", baseline))
    ends = _spread([scores[-1] for _, scores in lines], 4.5)
    styles = (("blue", "o-"), ("ink", "o-"), ("muted", "o:"))
    for (name, scores), end, (colour, style) in zip(lines, ends, styles, strict=True):
        axes.plot(numbers, scores, style, color=LIGHT[colour], linewidth=2.2, markersize=7)
        axes.annotate(
            f"{name} {scores[-1]:.1f}",
            (num_all, end),
            (12, 0),
            textcoords="offset points",
            va="center",
            color=LIGHT[colour],
            fontweight="bold",
        )
    axes.set_xscale("log")
    axes.set_xticks(numbers, ["5", "10", "20", f"all ({num_all})"])
    axes.minorticks_off()
    axes.set(xlim=(4.6, 2.6 * num_all), ylim=(0, 80), xlabel="training clips per class")
    axes.set_title("Words said by mouths: validation top-1, %")
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    told = "; ".join(
        f"{name}: {', '.join(f'{score:.1f}' for score in scores)} %" for name, scores in lines
    )
    return to_svg(figure, f"Validation top-1 with 5, 10, 20 and all clips per class. {told}")


def _spread(values, gap) -> list[float]:
    """Return the values, moved apart so that neighbours differ by `gap`."""
    spread, last = list(values), float("-inf")
    for place in sorted(range(len(values)), key=lambda place: values[place]):
        last = spread[place] = max(values[place], last + gap)
    return spread


def _draw_baselines(axes, baselines, top) -> None:
    """Draw a line for each baseline; baselines: percent, by name."""
    for index, (name, percent) in enumerate(baselines.items()):
        axes.axvline(percent, color=LIGHT["muted"], linewidth=1.2)
        axes.text(
            percent + 1,
            top + 0.45 * index,
            f"{name.removeprefix('the ')}: {percent:.1f}",
            fontsize=12,
            color=LIGHT["muted"],
            va="center",
            bbox={"facecolor": LIGHT["card"], "edgecolor": "none", "pad": 0.5},
        )


def _draw_score(axes, row, place, colour) -> None:
    """Draw the mean of a variant's runs as a dot and a number, its interval as a line."""
    if row["top1_interval"]:
        axes.plot(
            row["top1_interval"],
            [place, place],
            color=colour,
            linewidth=5,
            alpha=0.35,
            solid_capstyle="round",
        )
    axes.plot(row["top1"], place, "o", color=colour, markersize=9)
    axes.annotate(
        f"{row['top1']:.1f}",
        (1, place),
        (46, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        va="center",
        color=colour,
    )


def _legend(rows) -> str:
    return "● validation" + ", and its 95 % interval" * any(row["top1_interval"] for row in rows)


@matplotlib.rc_context(SETTINGS)
def draw_approaches(results) -> str:
    """Draw each network's accuracy and interval beside the baselines, and its operations.

    Networks that are not above the most frequent class are left out.
    """
    chance = results.get("baselines", {}).get("the most frequent class", 0)
    rows = [row for row in results["rows"] if row["top1"] > chance + 0.01]  # both are rounded
    rows.sort(key=lambda row: (row["top1"], -row["gflop"]))
    figure = new_figure(130 + 36 * len(rows))
    axes, right = figure.subplots(1, 2, width_ratios=(1.9, 1))
    axes.set_title("Validation top-1, %")
    right.set_title("GFLOP per clip")
    for place, row in enumerate(rows):
        colour = LIGHT["muted" if row["variant"] == "one frame" else "blue"]
        _draw_score(axes, row, place, colour)
        right.barh(place, row["gflop"], color=colour, height=0.5)
        right.annotate(
            f"{row['gflop']:.2f}",
            (row["gflop"], place),
            (6, 0),
            va="center",
            textcoords="offset points",
            color=colour,
        )
    names = [row["variant"].replace("_", " ") for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", labelsize=14, labelcolor=LIGHT["ink"])
    axes.set(xlim=(0, 102), xticks=range(0, 101, 20))
    axes.grid(axis="x")
    _draw_baselines(axes, results.get("baselines", {}), len(rows) - 0.35)
    right.set(xlim=(0, 1.25 * max(row["gflop"] for row in rows)), xticks=[], yticks=[])
    for panel in (axes, right):
        panel.set_ylim(-0.6, len(rows) + 0.4)
        panel.tick_params(length=0)
        panel.spines[["left", "bottom"]].set_visible(False)
    axes.annotate(
        _legend(rows),
        (0, 0),
        (0, -44),
        xycoords="axes fraction",
        textcoords="offset points",
        color=LIGHT["blue"],
        fontweight="bold",
    )
    return to_svg(figure, "Validation top-1 of networks, and the operations that a clip takes")

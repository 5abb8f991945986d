"""Line charts over epochs, as SVG for the page, in the colours of its theme."""

import html
import math
import re
from dataclasses import dataclass

from reporting.palette import LIGHT, themed_svg
from training.run import split_columns

WIDTH, HEIGHT = 420, 240  # pixels; small, so that text is readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 56, 408, 12, 204  # edges of the plotting area
MAX_MARKERS = 60  # with more epochs, markers would hide the line
MAX_VALUE = 1e100  # beyond, distances between values may not be finite
STYLES = {
    "training": {"color": LIGHT["orange"]},
    "validation": {"color": LIGHT["blue"], "linestyle": (0, (3, 1.5))},
}
SETTINGS = {
    "svg.fonttype": "none",
    "figure.dpi": 72,
    "figure.facecolor": "none",
    "font.size": 13,
    "axes.facecolor": "none",
    "axes.labelcolor": LIGHT["muted"],
    "axes.labelpad": 0,
    "axes.autolimit_mode": "round_numbers",
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LIGHT["faint"],
    "grid.linewidth": 1,
    "xtick.bottom": False,
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.left": False,
    "ytick.labelcolor": LIGHT["muted"],
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "lines.markeredgewidth": 0,
}


@dataclass
class LineChart:
    title: str
    curves: list[str]  # names
    svg: str


def draw_curves(history: list[dict]) -> list[LineChart]:
    """Draw the charts for which the history has values."""
    top_k = [name for row in history[-1:] for name in row if re.fullmatch(r"top\d+", name)]
    charts = [("Loss", "loss", "", (None, None))]
    charts += [(f"Top-{name[3:]} accuracy", name, " %", (0, 100)) for name in top_k or ["top1"]]
    charts += [
        ("Learning rate", "learning_rate", "", (0, None)),
        ("Training clips per second", "clips_per_second", "", (0, None)),
    ]
    drawn = [line_chart(title, name, history, unit, limits) for title, name, unit, limits in charts]
    return [chart for chart in drawn if chart]


def line_chart(title, column, history, unit="", limits=(None, None)) -> LineChart | None:
    """Draw a column of the history in training and validation; NaN, inf and empty cells leave gaps.

    limits: minimum and maximum of the axis; None: that of the curves. Returns None if there is no
    number to draw.
    """
    curves = {"training": [], "validation": []}
    for row in history:
        for curve, values in zip(curves.values(), split_columns(row), strict=True):
            curve.append((row["epoch"], _finite(values.get(column))))
    numbers = {
        name: [pair for pair in curve if not math.isnan(pair[1])] for name, curve in curves.items()
    }
    numbers = {name: pairs for name, pairs in numbers.items() if pairs}
    if not numbers:
        return None
    description = f"{title} by epoch: " + "; ".join(
        f"{name} {pairs[0][1]:.4g} in epoch {pairs[0][0]:g}, "
        f"{pairs[-1][1]:.4g} in epoch {pairs[-1][0]:g}"
        for name, pairs in numbers.items()
    )
    has_markers = len(history) <= MAX_MARKERS
    hints = [
        f"{name}, epoch {epoch:g}: {value:.4g}{unit}"
        for name, pairs in numbers.items()
        for epoch, value in pairs
    ]
    svg = _draw({name: curves[name] for name in numbers}, unit, limits, has_markers)
    return LineChart(title, list(numbers), _inline(svg, description, hints))


def _finite(value) -> float:
    return value if value is not None and abs(value) < MAX_VALUE else math.nan


def _draw(curves, unit, limits, has_markers) -> str:
    # Not at the top: the start of a run need not wait for it.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes(
            (LEFT / WIDTH, 1 - BOTTOM / HEIGHT, (RIGHT - LEFT) / WIDTH, (BOTTOM - TOP) / HEIGHT)
        )
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        for name, curve in curves.items():
            axes.plot(
                *zip(*curve, strict=True), marker="o" * has_markers, clip_on=False, **STYLES[name]
            )
        epochs = [epoch for curve in curves.values() for epoch, _ in curve]
        axes.set_xlim(min(epochs), max(epochs)) if len(set(epochs)) > 1 else axes.set_xticks(epochs)
        axes.update_datalim([(epochs[0], limit) for limit in limits if limit is not None])
        axes.autoscale_view(scalex=False)
        axes.set_xlabel("epoch", loc="right")
        return themed_svg(figure)


def _inline(svg, description, hints) -> str:
    """Remove what a page does not need, and add a description and a hint per marker."""
    for superfluous in (
        "<!--.*?-->",
        "<metadata>.*?</metadata>",
        "<defs>.*?</defs>",
        ' (?:id|clip-path|transform|xmlns:xlink)="[^"]*"',
        r' (?:width|height)="[\d.]+pt"',
        r'font-family: [^;"]*;?\s*',
        r"\s+(?=<)",
    ):
        svg = re.sub(superfluous, "", svg, flags=re.DOTALL)
    titles = (html.escape(hint) for hint in hints)
    svg = re.sub(
        '<use xlink:href="[^"]*" x="(.*?)" y="(.*?)" style="(.*?)"/>',
        lambda use: (
            f'<circle cx="{use[1]}" cy="{use[2]}" r="2.5" style="{use[3]}">'
            f"<title>{next(titles)}</title></circle>"
        ),
        svg,
    )
    svg = " ".join(svg.split())
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)

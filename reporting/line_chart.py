"""Layout of line charts over epochs, which the page's template draws as SVG.

Without a plotting library, a chart takes milliseconds and follows the page's light or dark colours.
"""

import itertools
import math
from dataclasses import dataclass, field

WIDTH, HEIGHT = 420, 240  # of the picture; small, so that its text is readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 56, 408, 12, 204  # edges of the plotting area
NUM_TICKS = 5
MAX_MARKERS = 60  # with more epochs, markers would hide the line


@dataclass
class Curve:
    """One line: its (epoch, value) pairs and their coordinates. NaN leaves a gap."""

    name: str
    values: list[tuple[float, float]]
    lines: list[str] = field(default_factory=list)  # `x,y x,y ...`, one per piece without gaps
    dots: list[tuple[float, float, str]] = field(default_factory=list)  # x, y, label


@dataclass
class LineChart:
    title: str
    curves: list[Curve]
    unit: str = ""
    x_ticks: list[tuple[float, str]] = field(default_factory=list)  # position and text
    y_ticks: list[tuple[float, str]] = field(default_factory=list)

    @property
    def description(self) -> str:
        """Description for screen readers."""
        parts = [f"{curve.name} {curve.values[0][1]:.4g} in epoch {curve.values[0][0]:g}, "
                 f"{curve.values[-1][1]:.4g} in epoch {curve.values[-1][0]:g}"
                 for curve in self.curves]
        return f"{self.title} by epoch: {'; '.join(parts)}"


def line_chart(title, columns, history, unit="", limits=(None, None)):
    """Return a LineChart of `columns` ({curve name: column}) of the history's rows.

    limits: minimum and maximum of the axis; None: that of the curves. Returns None if none of the
    columns has a number.
    """
    curves = []
    for name, column in columns.items():
        values = [(row["epoch"], row.get(column, math.nan)) for row in history]
        if numbers := [pair for pair in values if math.isfinite(pair[1])]:
            curves.append((Curve(name, numbers), values))
    if not curves:
        return None
    chart = LineChart(title, [curve for curve, _ in curves], unit)
    epochs = [epoch for curve in chart.curves for epoch, _ in curve.values]
    numbers = [value for curve in chart.curves for _, value in curve.values]
    x_place, chart.x_ticks = _epoch_axis(min(epochs), max(epochs))
    y_place, chart.y_ticks = _value_axis(numbers, limits)
    for curve, values in curves:
        _place(curve, values, x_place, y_place, unit)
    return chart


def _place(curve, values, x_place, y_place, unit) -> None:
    is_known = [math.isfinite(value) for _, value in values]
    for known, group in itertools.groupby(zip(values, is_known, strict=True), lambda pair: pair[1]):
        if known:
            curve.lines.append(" ".join(f"{x_place(epoch):.1f},{y_place(value):.1f}"
                                        for (epoch, value), _ in group))
    if len(curve.values) <= MAX_MARKERS:
        curve.dots = [(round(x_place(epoch), 1), round(y_place(value), 1),
                       f"{curve.name}, epoch {epoch:g}: {value:.4g}{unit}")
                      for epoch, value in curve.values]  # fmt: skip


def _epoch_axis(low, high):
    if low == high:  # a single epoch is in the middle
        low, high = low - 1, high + 1
    step = max(1, nice_step((high - low) / NUM_TICKS))
    ticks = [tick for tick in multiples(low, high, step) if tick == int(tick) and tick >= 1]
    return _axis(low, high, LEFT, RIGHT, ticks)


def _value_axis(numbers, limits):
    low = min(numbers) if limits[0] is None else limits[0]
    high = max(numbers) if limits[1] is None else limits[1]
    if low >= high:
        high = low + max(abs(low), 1e-9) if limits[0] is not None else low + abs(low) / 10 + 1e-9
    step = nice_step(high / NUM_TICKS - low / NUM_TICKS)  # their difference may be inf
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return _axis(low, high, BOTTOM, TOP, multiples(low, high, step))


def _axis(low, high, first, last, ticks):
    def place(value):
        return first + (value - low) / (high - low) * (last - first)

    return place, [(round(place(tick), 1), f"{tick:g}") for tick in ticks]


def nice_step(rough) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def multiples(low, high, step) -> list[float]:
    """Return the multiples of `step` from low to high, without rounding errors of sums."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]

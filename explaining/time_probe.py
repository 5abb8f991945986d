"""Does a network look at time? Its accuracy with the frames in order, and in other orders.

Shapes: N clips, K windows of each, T frames, H, W pixels, C colours.
"""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from clips.annotations import Annotations
from clips.batches import batches_of
from clips.optical_flow import optical_flow
from data_loader import build_loader
from scoring.predictor import Predictor
from system.errors import UserError

ORDERS = ("in order", "reversed", "shuffled", "frozen")
LEAST_SHARE = 0.5  # of a class's reversed clips, for a pair to be called one


@dataclass
class TimeProbe:
    """What a network predicts for clips whose frames come in other orders."""

    classes: list[str]
    labels: np.ndarray  # int64 [N]
    predicted: dict[str, np.ndarray]  # by order, int64 [N]

    def accuracy(self, order) -> float:
        """Percent of the clips that are classified as what they show in order."""
        return 100 * float((self.predicted[order] == self.labels).mean())

    def swapped(self) -> list[tuple[str, str, float]]:
        """(class, class that it is taken for when time runs backwards, percent of its clips).

        Only where it is not taken for that one in order, too.
        """
        found = []
        for index, name in enumerate(self.classes):
            is_of_class = self.labels == index
            if is_of_class.any():
                before, _ = _most_common(self.predicted["in order"][is_of_class])
                other, share = _most_common(self.predicted["reversed"][is_of_class])
                if other not in (index, before) and share >= LEAST_SHARE:
                    found.append((name, self.classes[other], 100 * share))
        return found


def _most_common(predicted) -> tuple[int, float]:
    """The class that was predicted most often, and its share."""
    (index, count), = Counter(predicted.tolist()).most_common(1)
    return index, count / len(predicted)


def probe(predictor: Predictor, annotations: Annotations, seed=0) -> TimeProbe:
    """Classifies every clip once for each order; what is shuffled is the same in every run.

    Raises UserError with the path of a clip that cannot be read.
    """
    loader = build_loader(annotations, predictor.config, False, predictor.device)
    predicted = {order: np.zeros(len(annotations), np.int64) for order in ORDERS}
    for batch in tqdm(batches_of(loader), "time probe", len(loader), leave=False, disable=None):
        if batch.bad:
            raise UserError(batch.bad[0].reason)
        indices, clips = batch.indices.numpy(), batch.clips.numpy()
        rngs = [np.random.default_rng([seed, index]) for index in indices]
        for order in ORDERS:
            windows = [reordered(clip, positions(order, clip.shape[1], rng))
                       for clip, rng in zip(clips, rngs, strict=True)]
            probabilities = predictor.probabilities(np.concatenate(windows), len(windows))
            predicted[order][indices] = probabilities.argmax(1)
    return TimeProbe(predictor.classes, annotations.labels, predicted)


def positions(order, num_frames, rng) -> np.ndarray:
    """Which frame comes at each place, [T]."""
    in_order = np.arange(num_frames)
    return {
        "in order": in_order,
        "reversed": in_order[::-1],
        "shuffled": rng.permutation(num_frames),
        "frozen": np.full(num_frames, num_frames // 2),
    }[order]


def reordered(clip, places) -> np.ndarray:
    """uint8 [K, T, H, W, C] with other frames at each place; flow is that of the new order."""
    result = np.ascontiguousarray(clip[:, places])
    if clip.shape[-1] > 3:
        for window in result:
            window[..., 3:] = optical_flow(window[..., :3])
    return result


# --- shown -------------------------------------------------------------------------------------


def table(result: TimeProbe) -> str:
    lines = [f"{'frames':<12}{'accuracy':>10}"]
    lines += [f"{order:<12}{result.accuracy(order):>8.1f} %" for order in ORDERS]
    pairs = result.swapped()
    if pairs:
        width = max(len(name) for name, _, _ in pairs)
        lines += ["", "backwards, most clips of"]
        lines += [f"  {name:<{width}}  are taken for {other} ({share:.0f} %)"
                  for name, other, share in pairs]  # fmt: skip
    return "\n".join(lines)


def write(result: TimeProbe, folder: Path) -> list[Path]:
    """`time_probe.csv`, a row an order and swapped pair, and `time_probe.png`."""
    path, picture_path = folder / "time_probe.csv", folder / "time_probe.png"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "taken_for", "percent"])
        for order in ORDERS:
            writer.writerow([order, "", f"{result.accuracy(order):.2f}"])
        for name, other, share in result.swapped():
            writer.writerow([name, other, f"{share:.2f}"])
    Image.fromarray(draw(result)).save(picture_path)
    return [path, picture_path]


def draw(result: TimeProbe) -> np.ndarray:
    """Bars of the accuracy by order, with chance as a line. uint8 [H, W, 3]"""
    # Here, since it takes a second that no other use of this room should wait for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(ORDERS, [result.accuracy(order) for order in ORDERS], color="steelblue")
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.axvline(100 / len(result.classes), color="grey", linestyle="--", label="chance")
    axes.set(xlim=(0, 115), xlabel="accuracy, %", title="the same clips, frames in another order")
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]

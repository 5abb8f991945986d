"""Time probe: a network's accuracy with the frames in order, and in other orders.

Shapes: N clips, K windows per clip, T frames, H, W pixels, C channels.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from clips.annotations import Annotations
from clips.batches import batches_of
from clips.transforms import optical_flow
from data_loader import build_loader
from scoring.predictor import Predictor
from system.errors import UserError

ORDERS = ("in order", "reversed", "shuffled", "frozen")
MIN_FRACTION = 0.5  # of a class's reversed clips that get the same other class


@dataclass
class TimeProbe:
    """Predictions for the same clips with their frames in other orders."""

    classes: list[str]
    labels: np.ndarray  # int64 [N]
    predicted: dict[str, np.ndarray]  # by order, int64 [N]

    def accuracy(self, order) -> float:
        """Return the percentage of clips whose prediction is their label."""
        return 100 * float((self.predicted[order] == self.labels).mean())

    def swapped(self) -> list[tuple[str, str, float]]:
        """Return (class, prediction for its reversed clips, percentage of its clips).

        Classes that are also confused in order are left out.
        """
        found = []
        for index, name in enumerate(self.classes):
            is_of_class = self.labels == index
            if is_of_class.any():
                before, _ = _most_common(self.predicted["in order"][is_of_class])
                other, fraction = _most_common(self.predicted["reversed"][is_of_class])
                if other not in (index, before) and fraction >= MIN_FRACTION:
                    found.append((name, self.classes[other], 100 * fraction))
        return found


def _most_common(predicted) -> tuple[int, float]:
    """Return the most frequent prediction and its fraction."""
    ((index, count),) = Counter(predicted.tolist()).most_common(1)
    return index, count / len(predicted)


def probe(predictor: Predictor, annotations: Annotations, seed: int = 0) -> TimeProbe:
    """Classify every clip once per order. The shuffled order depends only on `seed`.

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
            windows = [
                reordered(clip, positions(order, clip.shape[1], rng))
                for clip, rng in zip(clips, rngs, strict=True)
            ]
            probabilities = predictor.probabilities(np.concatenate(windows), len(windows))
            predicted[order][indices] = probabilities.argmax(1)
    return TimeProbe(predictor.classes, annotations.labels, predicted)


def positions(order: str, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return the index of the frame at each position, [T]."""
    in_order = np.arange(num_frames)
    return {
        "in order": in_order,
        "reversed": in_order[::-1],
        "shuffled": rng.permutation(num_frames),
        "frozen": np.full(num_frames, num_frames // 2),
    }[order]


def reordered(clip: np.ndarray, indices) -> np.ndarray:
    """Return the clip, uint8 [K, T, H, W, C], in another order, with that order's optical flow."""
    result = np.ascontiguousarray(clip[:, indices])
    if clip.shape[-1] > 3:
        for window in result:
            window[..., 3:] = optical_flow(window[..., :3])
    return result


# --- output ------------------------------------------------------------------------------------


def table(result: TimeProbe) -> str:
    """Return the accuracies and the swapped pairs as text."""
    lines = [f"{'frames':<12}{'accuracy':>10}"]
    lines += [f"{order:<12}{result.accuracy(order):>8.1f} %" for order in ORDERS]
    pairs = result.swapped()
    if pairs:
        width = max(len(name) for name, _, _ in pairs)
        lines += ["", "reversed, most clips of"]
        lines += [
            f"  {name:<{width}}  are classified as {other} ({percent:.0f} %)"
            for name, other, percent in pairs
        ]
    return "\n".join(lines)


def write(result: TimeProbe, folder: Path) -> list[Path]:
    """Write `time_probe.csv`, one row per order and swapped pair, and `time_probe.png`."""
    path, picture_path = folder / "time_probe.csv", folder / "time_probe.png"
    rows = [(order, "", result.accuracy(order)) for order in ORDERS] + list(result.swapped())
    table = pd.DataFrame(rows, columns=["what", "taken_for", "percent"])
    table.to_csv(path, index=False, float_format="%.2f", lineterminator="\r\n")
    Image.fromarray(draw(result)).save(picture_path)
    return [path, picture_path]


def draw(result: TimeProbe) -> np.ndarray:
    """Draw a bar chart of the accuracies, with chance as a line. uint8 [H, W, 3]"""
    # Not at the top: the import takes a second.
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

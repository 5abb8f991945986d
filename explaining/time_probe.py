"""Time probe: a network's accuracy with the frames in order, and in other orders.

Shapes: N clips, K windows per clip, T frames, H, W pixels, C channels.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from clips.annotations import Annotations
from clips.batches import batches_of
from clips.transforms import optical_flow
from data_loader import build_loader
from networks.inference import fold_batchnorm
from scoring.intervals import Comparison, Interval, accuracy_interval, compare_on_same_clips
from scoring.predictor import Predictor
from system import processes
from system.errors import UserError
from system.files import write_text
from training.run import Run

ORDERS = ("in order", "reversed", "shuffled", "frozen")
MIN_FRACTION = 0.5  # of a class's reversed clips that get the same other class


@dataclass
class TimeProbe:
    """Predictions for the same clips with their frames in other orders."""

    classes: list[str]
    labels: np.ndarray  # int64 [N]
    predicted: dict[str, np.ndarray]  # by order, int64 [N]
    groups: np.ndarray | None = None  # str [N]; None: unknown

    def right(self, order) -> np.ndarray:
        """Return whether each clip's prediction is its label, [N]."""
        return self.predicted[order] == self.labels

    def interval(self, order) -> Interval:
        return accuracy_interval(self.right(order), self.groups)

    def loss(self, order) -> Comparison:
        """Compare the frames in order with those in another order."""
        return compare_on_same_clips(self.right("in order"), self.right(order), self.groups)

    def accuracy(self, order) -> float:
        """Return the percentage of clips whose prediction is their label."""
        return 100 * float(self.right(order).mean())

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

    Every process must call this. Raises UserError with the path of a clip that cannot be read.
    """
    loader = build_loader(annotations, predictor.config, False, predictor.device)
    predicted = {order: np.zeros(len(annotations), np.int64) for order in ORDERS}
    silent = None if processes.is_main() else True
    for batch in tqdm(batches_of(loader), "time probe", len(loader), leave=False, disable=silent):
        if batch.bad:
            raise UserError(batch.bad[0].reason)
        if not len(batch.indices):  # of several processes, one may have a batch fewer
            continue
        indices, clips = batch.indices.numpy(), batch.clips.numpy()
        rngs = [np.random.default_rng([seed, index]) for index in indices]
        for order in ORDERS:
            windows = [
                reordered(clip, positions(order, clip.shape[1], rng))
                for clip, rng in zip(clips, rngs, strict=True)
            ]
            probabilities = predictor.probabilities(np.concatenate(windows), len(windows))
            predicted[order][indices] = probabilities.argmax(1)
    predicted = {
        order: processes.all_sum(torch.from_numpy(of_own_clips)).numpy()
        for order, of_own_clips in predicted.items()
    }
    return TimeProbe(predictor.classes, annotations.labels, predicted, annotations.groups)


def probe_run(run: Run, annotations: Annotations, is_readable: np.ndarray) -> TimeProbe | None:
    """Probe a run's network on at most `time_probe_clips` clips, drawn with the config's seed.

    annotations: the validation set; is_readable: bool [N]. Every process must call this. Returns
    None if there is nothing to reorder: the key is 0, clips have one frame, or none can be read.
    """
    config, indices = run.config, np.flatnonzero(is_readable)
    if not config.time_probe_clips or config.clip_size == 1 or not len(indices):
        return None
    if len(indices) > config.time_probe_clips:
        rng = np.random.default_rng(config.seed)
        indices = np.sort(rng.choice(indices, config.time_probe_clips, replace=False))
    groups = None if annotations.groups is None else annotations.groups[indices]
    sample = replace(
        annotations, ids=annotations.ids[indices], labels=annotations.labels[indices], groups=groups
    )
    # So few clips are read before new workers would have started.
    config = config.model_copy(update={"num_workers": 0})
    network = fold_batchnorm(run.evaluated_model)
    predictor = Predictor(config, run.class_names, network, run.device, run.state.epoch)
    return probe(predictor, sample, config.seed)


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


def write_predictions(result: TimeProbe, path: Path) -> None:
    """Write one row per clip: its label, its group if known, and the prediction for each order."""
    import pandas as pd  # not at the top: the start of a run need not wait for it

    names = np.array(result.classes)
    columns = {"label": names[result.labels]}
    columns |= {} if result.groups is None else {"group": result.groups}
    columns |= {order: names[predicted] for order, predicted in result.predicted.items()}
    write_text(path, pd.DataFrame(columns).to_csv(index=False, lineterminator="\r\n"))


def read_predictions(path: Path) -> TimeProbe | None:
    """Read what `write_predictions` wrote; None: there is no such file.

    Raises UserError if it is damaged. `classes` are those that appear in it.
    """
    import pandas as pd

    if not path.exists():
        return None
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        columns = rows[["label", *ORDERS]]
        classes, numbers = np.unique(columns.to_numpy(str), return_inverse=True)
        if not len(rows) or "" in classes:
            raise ValueError("empty cells, or no rows")
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged ({reason}); delete it") from None
    labels, *predicted = numbers.reshape(columns.shape).T
    groups = rows["group"].to_numpy(str) if "group" in rows else None
    return TimeProbe(classes.tolist(), labels, dict(zip(ORDERS, predicted, strict=True)), groups)


def write(result: TimeProbe, folder: Path) -> list[Path]:
    """Write `time_probe.csv`, one row per order and swapped pair, and `time_probe.png`."""
    import pandas as pd

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
    bars = axes.barh(ORDERS, [result.accuracy(order) for order in ORDERS], color="#0a66c2")
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.axvline(100 / len(result.classes), color="grey", linestyle="--", label="chance")
    axes.set(xlim=(0, 115), xlabel="accuracy, %", title="the same clips, frames in another order")
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]

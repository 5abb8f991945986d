"""Scores of a network on a set of clips, and what is written and printed about them.

Shapes: N clips, K windows a clip (`nclips` x `ncrops`).
"""

import csv
import math
import textwrap
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

import pictures
import processes
from config import Config
from data_loader import batches_of
from device import evaluating, to_network_input
from errors import UserError, first_few
from model import for_inference
from utils import accuracy_ranks, top_k_correct

LOGITS_FILE = "logits.npz"


def compute_logits(model, loader, device, title, note_bad_clips) -> torch.Tensor:
    """Logits float32 [N, classes] of every clip of the loader's set, in CSV order, on the CPU.

    Several windows of a clip are averaged as probabilities; their logarithm serves as logits.
    note_bad_clips: called with each batch; clips that it lets pass have NaN for logits.
    With several processes each computes its part, and all get the whole. Raises UserError if the
    network itself gives NaN for a clip.
    """
    data_set = loader.dataset
    config = data_set.config
    processes.copy_buffers_from_main(model)
    model = for_inference(model)
    logits = torch.zeros(len(data_set), model.num_classes, device=device)
    bad = []
    silent = None if processes.is_main() else True
    for batch in tqdm(batches_of(loader), title, len(loader), leave=False, disable=silent):
        processes.stop_together()
        note_bad_clips(batch)
        if len(batch.indices):
            windows = to_network_input(batch.clips.flatten(0, 1), device, config)
            with evaluating(device, config):
                outputs = model(windows).float()  # [N * K, classes]
            if config.windows_per_video > 1:
                outputs = outputs.view(len(batch.indices), config.windows_per_video, -1)
                outputs = log_mean_probability(outputs, dim=1)
            logits[batch.indices.to(device)] = outputs
        bad += [clip.index for clip in batch.bad]
    logits = logits.cpu()
    _check_logits(logits, data_set.annotations)
    logits[bad] = torch.nan
    return processes.total(logits)


def log_mean_probability(logits, dim) -> torch.Tensor:
    """The logarithm of the probabilities' mean over `dim`; the last dimension is the classes.

    Computed from logarithms, since a probability that rounds to 0 would give a loss of inf.
    """
    return logits.log_softmax(-1).logsumexp(dim) - math.log(logits.shape[dim])


def _check_logits(logits, annotations):
    spoilt = logits.isnan().any(dim=1)
    if spoilt.any():
        raise UserError(
            f"the network computes no numbers but NaN for the clips "
            f"{first_few(annotations.ids[spoilt.numpy()])}; lower lr, or take an earlier checkpoint"
        )


def score(logits, labels) -> dict[str, float]:
    """Mean loss, top-1 and top-5 in percent. logits: [N, classes]; labels: int64 [N].

    Clips without logits (NaN) do not count.
    """
    logits, labels = _with_logits(logits, labels)
    loss = F.cross_entropy(logits.double(), labels).item()
    return {"loss": loss} | {
        f"top{k}": 100 * top_k_correct(logits, labels, k).double().mean().item()
        for k in accuracy_ranks(logits.shape[1])
    }


def confusion_matrix(logits, labels) -> np.ndarray:
    """Counts [true class, predicted class] of the clips that have logits."""
    logits, labels = _with_logits(logits, labels)
    num_classes = logits.shape[1]
    pairs = labels.numpy() * num_classes + logits.argmax(1).numpy()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _with_logits(logits, labels):
    known = ~logits[:, 0].isnan()
    return logits[known], labels[known]


# --- printed -----------------------------------------------------------------------------------


def format_scores(scores: dict[str, float]) -> str:
    """`loss 0.123   top-1 95.00 %   top-5 100.00 %`"""
    accuracies = [f"{name.replace('top', 'top-')} {value:.2f} %"
                  for name, value in scores.items() if name.startswith("top")]
    return "   ".join([f"loss {scores['loss']:.4f}", *accuracies])


def print_report(matrix, class_names, num_pairs=10) -> None:
    """Per-class accuracy, and the classes that are most often taken for another."""
    width = max(map(len, class_names))
    print("\nper-class accuracy")
    for name, row, right in zip(class_names, matrix, np.diag(matrix), strict=True):
        share = f"{100 * right / row.sum():6.2f} %" if row.sum() else "     - %"
        print(f"  {name:<{width}}  {share}   {right} of {row.sum()}")
    pairs = most_confused(matrix, num_pairs)
    print("\nmost confused" if pairs else "\nno clip was taken for another class")
    for true, predicted, count in pairs:
        print(f"  {class_names[true]:<{width}} taken for {class_names[predicted]:<{width}} "
              f"{count:>5} times")


def most_confused(matrix, num_pairs) -> list[tuple[int, int, int]]:
    """(true class, class that it is taken for, how often), the most frequent mistakes first."""
    mistakes = matrix - np.diag(np.diag(matrix))
    pairs = np.argsort(-mistakes, axis=None, kind="stable")[:num_pairs]
    places = zip(*np.unravel_index(pairs, mistakes.shape), strict=True)
    return [(int(true), int(predicted), int(mistakes[true, predicted]))
            for true, predicted in places if mistakes[true, predicted]]


# --- written -----------------------------------------------------------------------------------


def write_results(folder, annotations, logits, class_names, origin=None) -> None:
    """All files about a set of clips, and, where it has labels, the report and the scores.

    origin: as for `write_logits`.
    """
    contents = (annotations, logits, class_names)
    if not annotations.has_labels:
        write_predictions(folder / "test_predictions.csv", *contents)
        write_submission(folder / "test_submission.csv", *contents)
        print(f"{len(annotations):,} clips predicted; no labels, so no accuracy")
        return
    labels = torch.from_numpy(annotations.labels)
    matrix = confusion_matrix(logits, labels)
    write_predictions(folder / "predictions.csv", *contents)
    write_logits(folder / LOGITS_FILE, *contents, origin)
    picture = Image.fromarray(draw_confusion_matrix(matrix, class_names))
    picture.save(folder / "confusion_matrix.png")
    print_report(matrix, class_names)
    print("\n" + format_scores(score(logits, labels)))


def write_predictions(path, annotations, logits, class_names) -> None:
    """A CSV row per clip: id, label (if there are labels), predicted, confidence, top k, scores."""
    k = min(5, len(class_names))
    scores, classes = logits.softmax(1).topk(k, dim=1)
    has_labels = annotations.has_labels
    top_columns = [f"{kind}{rank}" for rank in range(1, k + 1) for kind in ("top", "score")]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        label_column = ["label"] if has_labels else []
        writer.writerow(["id", *label_column, "predicted", "confidence", *top_columns])
        for index, clip_id in enumerate(annotations.ids):
            names = [class_names[i] for i in classes[index].tolist()]
            values = [f"{value:.6f}" for value in scores[index].tolist()]
            if logits[index].isnan().any():  # skipped, since it could not be read
                names, values = [""] * k, [""] * k
            label = [class_names[annotations.labels[index]]] if has_labels else []
            top = [cell for pair in zip(names, values, strict=True) for cell in pair]
            writer.writerow([clip_id, *label, names[0], values[0], *top])


def write_submission(path, annotations, logits, class_names) -> None:
    """`id;label` lines with the predicted label, as the Jester challenge takes them.

    Clips that could not be read are left out.
    """
    lines = [f"{clip_id};{class_names[row.argmax()]}\n"
             for clip_id, row in zip(annotations.ids, logits, strict=True) if not row.isnan().any()]
    Path(path).write_text("".join(lines), encoding="utf-8")


class Weights(BaseModel):
    """Of which checkpoint they are."""

    model_config = ConfigDict(strict=True, ser_json_inf_nan="constants")

    path: str
    epoch: int | None  # epochs finished; None: the checkpoint does not say
    step: int  # and steps of the running one
    history_row: dict[str, int | float] | None  # of the last epoch; its times tell runs apart


class Origin(BaseModel):
    """Which weights an evaluation is of, and how it read its clips."""

    model_config = ConfigDict(strict=True, ser_json_inf_nan="constants")

    networks: Annotated[list[Weights], Field(min_length=1)]  # more than one: an ensemble
    config: dict[str, Any]  # of the first; without the run's name, which changes no figure

    @classmethod
    def of(cls, config: Config, checkpoints):
        """checkpoints: those that `run.load_for` gave."""
        networks = [
            Weights(
                path=checkpoint["path"],
                epoch=checkpoint.get("epoch"),
                step=checkpoint.get("step", 0),
                history_row=(checkpoint.get("history") or [None])[-1],
            )
            for checkpoint in checkpoints
        ]
        return cls(networks=networks,
                   config=config.model_dump(exclude={"model_name", "output_dir"}))


@dataclass
class SavedLogits:
    """What `write_logits` writes."""

    ids: list[str]  # of N clips
    logits: torch.Tensor  # float32 [N, classes]; NaN for clips that could not be read
    labels: torch.Tensor  # int64 [N]
    classes: list[str]
    origin: Origin | None  # None: an earlier version, which did not record it, wrote the file


def write_logits(path, annotations, logits, class_names, origin: Origin | None = None) -> None:
    """ids, logits, labels, classes, origin; `numpy.load` opens the file without pickle."""
    arrays = {"origin": np.array(origin.model_dump_json())} if origin else {}
    np.savez_compressed(path, ids=annotations.ids, logits=logits.numpy(),
                        labels=annotations.labels, classes=np.array(class_names), **arrays)


def read_logits(path) -> SavedLogits:
    """Raises UserError if the file is damaged, or none of `write_logits`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            logits, labels = torch.from_numpy(file["logits"]), torch.from_numpy(file["labels"])
            origin = Origin.model_validate_json(str(file["origin"])) if "origin" in file else None
            saved = SavedLogits(file["ids"].tolist(), logits, labels, file["classes"].tolist(),
                                origin)
        if logits.dtype != torch.float32 or labels.dtype != torch.int64 or \
                logits.shape != (len(labels), len(saved.classes)) or len(saved.ids) != len(labels):
            raise ValueError("its arrays do not belong together")
        if not len(labels) or labels.min() < 0 or labels.max() >= len(saved.classes):
            raise ValueError("its labels are none of its classes")
    except (ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile,
            zlib.error) as error:  # fmt: skip
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: damaged ({reason}); --eval_only writes it anew") from None
    return saved


# --- the confusion matrix as a picture ---------------------------------------------------------

FIELD = 840  # pixels of a side of the matrix, at most
LARGEST_CELL, CELL_WITH_DIGITS, CELL_WITH_NAME = 40, 16, 14  # pixels
MARGIN, LONGEST_NAME, NAME_SIZE = 8, 240, 12  # pixels
# Of a class without clips taken for it, half of them, and all of them.
BLUES = np.array([[247, 251, 255], [107, 174, 214], [8, 48, 107]])


def draw_confusion_matrix(matrix, class_names) -> np.ndarray:
    """A picture of the matrix, each row in percent of its true class. uint8 [H, W, 3].

    Its size is limited, whatever the number of classes: above about 50 the cells have no digits,
    and only one class of two, three ... is named. Training waits for it, hence no matplotlib.
    """
    num_classes = len(class_names)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    cell = min(LARGEST_CELL, FIELD / num_classes)
    every = math.ceil(CELL_WITH_NAME / cell)
    names = _names_in_a_column(class_names, cell, every)
    side, width = names.shape[:2]
    title = "share of each true class (rows) that is taken for each class (columns), %"
    title += f"; one of {every} classes is named" if every > 1 else ""
    lines = textwrap.wrap(title, max(24, (side + width) // 7))
    top, left = MARGIN + 18 * len(lines), MARGIN + width
    longest = max(pictures.font(NAME_SIZE).getlength(line) for line in lines)
    picture_width = max(left + side, MARGIN + math.ceil(longest)) + MARGIN
    picture = np.full((top + side + width + MARGIN, picture_width, 3), 255, np.uint8)
    for number, line in enumerate(lines):
        place = (MARGIN, MARGIN + 18 * number + 6)
        pictures.write_text(picture, place, line, NAME_SIZE, (0, 0, 0))
    picture[top : top + side, MARGIN:left] = names
    picture[top + side : top + side + width, left : left + side] = np.rot90(names)
    picture[top : top + side, left : left + side] = _cells(shares, matrix > 0, cell, side)
    return picture


def _names_in_a_column(class_names, cell, every) -> np.ndarray:
    """The name of one class in `every`, each at the height of its row. uint8 [H, W, 3]"""
    font, rows = pictures.font(NAME_SIZE), range(every // 2, len(class_names), every)
    shown = {row: _shortened(class_names[row], font) for row in rows}
    width = 6 + math.ceil(max(font.getlength(name) for name in shown.values()))
    column = Image.new("RGB", (width, round(cell * len(class_names))), "white")
    canvas = ImageDraw.Draw(column)
    for row, name in shown.items():
        canvas.text((width - 4, (row + 0.5) * cell), name, "black", font, anchor="rm")
    return np.asarray(column)


def _shortened(name, font) -> str:
    while font.getlength(name) > LONGEST_NAME:
        name = f"{name[:-2]}…"
    return name


def _cells(shares, is_shown, cell, side) -> np.ndarray:
    """The matrix in blue, with its numbers where there is room. uint8 [side, side, 3]"""
    colours = np.stack([np.interp(shares, (0, 0.5, 1), levels) for levels in BLUES.T], axis=2)
    how = cv2.INTER_NEAREST if cell >= 1 else cv2.INTER_AREA
    field = cv2.resize(np.rint(colours).astype(np.uint8), (side, side), interpolation=how)
    if cell < CELL_WITH_DIGITS:
        return field
    picture = Image.fromarray(field)
    canvas, font = ImageDraw.Draw(picture), pictures.font(min(NAME_SIZE, int(cell / 2)))
    for row, column in zip(*np.nonzero(is_shown), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        place = ((column + 0.5) * cell, (row + 0.5) * cell)
        canvas.text(place, f"{100 * shares[row, column]:.0f}", colour, font, anchor="mm")
    return np.asarray(picture)

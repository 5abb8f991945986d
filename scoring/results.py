"""What is written and printed about the scores of a set. Shapes: N clips."""

import csv
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from config import Config
from scoring.evaluation import confusion_matrix, format_scores, score
from system.errors import UserError

LOGITS_FILE = "logits.npz"


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

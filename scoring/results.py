"""Files and reports with the scores of a set. Shapes: N clips."""

import zipfile
import zlib
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from config import Config
from scoring.evaluation import (
    class_intervals,
    confusion_matrix,
    format_with_intervals,
    method_of_classes,
)
from system.errors import UserError
from system.files import atomic_write
from training.run_folder import LAST_CHECKPOINT

LOGITS_FILE = "logits.npz"


def print_report(logits, labels, class_names, groups=None, num_pairs=10) -> None:
    """Print the accuracy of each class, and the pairs of classes that are most often confused.

    groups: str [N]; None: unknown.
    """
    matrix = confusion_matrix(logits, labels)
    intervals = class_intervals(logits, labels, groups)
    width = max(map(len, class_names))
    print(f"\nper-class accuracy, with 95 % intervals ({method_of_classes(groups)})")
    for name, row, right, interval in zip(
        class_names, matrix, np.diag(matrix), intervals, strict=True
    ):
        text = "     - %"
        if interval:
            text = f"{100 * right / row.sum():6.2f} % ({interval.low:5.1f} to {interval.high:5.1f})"
        print(f"  {name:<{width}}  {text}   {right} of {row.sum()}")
    pairs = most_confused(matrix, num_pairs)
    print("\nmost confused" if pairs else "\nevery clip is classified correctly")
    for true, predicted, count in pairs:
        print(
            f"  {class_names[true]:<{width}} taken for {class_names[predicted]:<{width}} "
            f"{count:>5} times"
        )


def most_confused(matrix, num_pairs) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, count) in descending order of count."""
    mistakes = matrix - np.diag(np.diag(matrix))
    pairs = np.argsort(-mistakes, axis=None, kind="stable")[:num_pairs]
    places = zip(*np.unravel_index(pairs, mistakes.shape), strict=True)
    return [
        (int(true), int(predicted), int(mistakes[true, predicted]))
        for true, predicted in places
        if mistakes[true, predicted]
    ]


def write_results(folder, annotations, logits, class_names, origin=None) -> None:
    """Write the result files of a set of clips; the logits, for labelled clips only, last.

    origin: as for `write_logits`.
    """
    contents = (annotations, logits, class_names)
    if annotations.has_labels:
        write_predictions(folder / "predictions.csv", *contents)
        write_logits(folder / LOGITS_FILE, *contents, origin)
    else:
        write_predictions(folder / "test_predictions.csv", *contents)
        write_submission(folder / "test_submission.csv", *contents)


def print_results(annotations, logits, class_names) -> None:
    """Print the report and scores of readable clips; without labels, print how many there are."""
    if not annotations.has_labels:
        num_clips = int((~logits[:, 0].isnan()).sum())
        print(f"{num_clips:,} clips predicted; no labels, so no accuracy")
        return
    labels = torch.from_numpy(annotations.labels)
    print_report(logits, labels, class_names, annotations.groups)
    print("\n" + format_with_intervals(logits, labels, annotations.groups))


def write_predictions(path, annotations, logits, class_names) -> None:
    """Write one CSV row per clip: id, label (if there are labels), predicted, confidence, top k.

    Clips that could not be read have empty cells.
    """
    import pandas as pd  # not at the top: a run that only trains writes no predictions

    k = min(5, len(class_names))
    scores, classes = logits.softmax(1).topk(k, dim=1)
    names = np.array(class_names)
    columns = {"id": annotations.ids}
    if annotations.has_labels:
        columns["label"] = names[annotations.labels]
    top = [names[column] for column in classes.T.numpy()]
    probabilities = [np.char.mod("%.6f", column) for column in scores.double().T.numpy()]
    columns |= {"predicted": top[0], "confidence": probabilities[0]}
    for rank in range(k):
        columns |= {f"top{rank + 1}": top[rank], f"score{rank + 1}": probabilities[rank]}
    rows = pd.DataFrame(columns)
    rows.loc[logits.isnan().any(1).numpy(), "predicted":] = ""
    rows.to_csv(path, index=False, lineterminator="\r\n")


def write_submission(path, annotations, logits, class_names) -> None:
    """Write `id;label` lines with the predicted label, the format of the Jester challenge.

    Clips that could not be read are left out.
    """
    import pandas as pd

    labels = np.array(class_names)[logits.argmax(1).numpy()]
    rows = pd.DataFrame({"id": annotations.ids, "label": labels})[~logits.isnan().any(1).numpy()]
    rows.to_csv(path, sep=";", header=False, index=False)


# --- logits ------------------------------------------------------------------------------------


class Weights(BaseModel):
    """The checkpoint that a network's weights are from."""

    model_config = ConfigDict(strict=True, ser_json_inf_nan="constants")

    path: str
    epoch: int | None  # finished epochs; None: the checkpoint does not say
    step: int  # finished steps of the next epoch
    history_row: dict[str, int | float] | None  # of the last epoch; its times identify the run


class Origin(BaseModel):
    """The weights and the input of an evaluation."""

    model_config = ConfigDict(strict=True, ser_json_inf_nan="constants")

    networks: Annotated[list[Weights], Field(min_length=1)]  # several for an ensemble
    config: dict[str, Any]  # of the first, without the run's name
    stack: str | None = None  # the file of the stack that combined them

    @classmethod
    def of(cls, config: Config, checkpoints):
        """Return the origin; checkpoints: from `training.resuming.load_for`."""
        networks = [
            Weights(
                path=checkpoint["path"],
                epoch=checkpoint.get("epoch"),
                step=checkpoint.get("step", 0),
                history_row=(checkpoint.get("history") or [None])[-1],
            )
            for checkpoint in checkpoints
        ]
        return cls(
            networks=networks, config=config.model_dump(exclude={"model_name", "output_dir"})
        )


@dataclass
class SavedLogits:
    """The content of a file that `write_logits` wrote."""

    ids: list[str]  # [N]
    logits: torch.Tensor  # float32 [N, classes]; NaN for clips that could not be read
    labels: torch.Tensor  # int64 [N]
    classes: list[str]
    origin: Origin | None  # None: in files of an earlier version
    groups: np.ndarray | None  # str [N]; None: unknown


def write_logits(path, annotations, logits, class_names, origin: Origin | None = None) -> None:
    """Write ids, logits, labels, classes, and groups and origin if known, atomically.

    `numpy.load` reads them without pickle.
    """
    arrays = {"origin": np.array(origin.model_dump_json())} if origin else {}
    arrays |= {} if annotations.groups is None else {"groups": annotations.groups}
    arrays |= {
        "ids": annotations.ids,
        "logits": logits.numpy(),
        "labels": annotations.labels,
        "classes": np.array(class_names),
    }
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def is_scored(config: Config) -> bool:
    """Return whether the run folder has the results of an evaluation since its last checkpoint."""
    results, last = (config.run_folder / name for name in (LOGITS_FILE, LAST_CHECKPOINT))
    return results.exists() and not (
        last.exists() and last.stat().st_mtime > results.stat().st_mtime
    )


def read_logits(path) -> SavedLogits:
    """Read logits; raise UserError if the file is damaged or not written by `write_logits`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            logits, labels = torch.from_numpy(file["logits"]), torch.from_numpy(file["labels"])
            origin = Origin.model_validate_json(str(file["origin"])) if "origin" in file else None
            groups = file["groups"].astype(str) if "groups" in file else None
            saved = SavedLogits(
                file["ids"].tolist(), logits, labels, file["classes"].tolist(), origin, groups
            )
        lengths = {len(saved.ids), len(labels), len(labels if groups is None else groups)}
        if (
            logits.dtype != torch.float32
            or labels.dtype != torch.int64
            or logits.shape != (len(labels), len(saved.classes))
            or len(lengths) > 1
        ):
            raise ValueError("its arrays do not match")
        if not len(labels) or labels.min() < 0 or labels.max() >= len(saved.classes):
            raise ValueError("its labels are not among its classes")
    except (
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: damaged ({reason}); --eval_only writes it again") from None
    return saved

"""Stacks: a multinomial logistic regression on several networks' probabilities.

A stack is fitted on the validation clips. Its file also has the weights that were fitted without
each fold of these clips, so that no clip is ever scored by weights that were fitted on it.
Shapes: M networks, N clips, K classes.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scoring.folds import stratified_folds
from system.errors import UserError, summarize, summarize_validation
from system.files import write_text
from training.checkpoint import check_classes

STACK_FILE = "stack.json"
MIN_CLIPS = 3  # per class, so that each inner fold has one
NUM_FOLDS, NUM_INNER_FOLDS = 5, 3
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # scikit-learn's C, chosen by cross-validation
MIN_PROBABILITY = 1e-6  # lower ones are clamped, so that no logarithm outweighs the others


class Layer(BaseModel):
    """A linear layer on the logarithms of the networks' probabilities."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    weights: list[list[float]]  # [K, M * K]
    biases: list[float]  # [K]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return logits [N, K]; features: [N, M * K]."""
        return features @ np.array(self.weights).T + np.array(self.biases)


class Member(BaseModel):
    """A checkpoint of a stack."""

    model_config = ConfigDict(strict=True, extra="forbid")

    path: str  # relative to the folder of the stack's file
    sha256: str


class Stack(BaseModel):
    """The contents of a stack's file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    classes: Annotated[list[str], Field(min_length=2)]
    networks: Annotated[list[Member], Field(min_length=2)]
    layer: Layer
    fold_layers: Annotated[list[Layer], Field(min_length=2)]  # each fitted without one fold
    folds: dict[str, int]  # id -> fold of each clip that the stack was fitted on

    @model_validator(mode="after")
    def _check_sizes(self):
        num_classes = len(self.classes)
        num_features = num_classes * len(self.networks)
        for layer in (self.layer, *self.fold_layers):
            if (
                len(layer.biases) != num_classes
                or len(layer.weights) != num_classes
                or any(len(row) != num_features for row in layer.weights)
            ):
                raise ValueError("its weights do not match its classes and networks")
        if not all(0 <= fold < len(self.fold_layers) for fold in self.folds.values()):
            raise ValueError("its folds have no weights")
        return self

    def logits(self, all_logits: torch.Tensor, ids=()) -> torch.Tensor:
        """Return the logarithms of the stack's probabilities, float32 [N, K].

        all_logits: of each network, [M, N, K]; a clip with NaN gets NaN. ids: of the clips, if they
        may be among those that the stack was fitted on.
        """
        inputs = features(all_logits)
        outputs = self.layer(inputs)
        folds = np.array([self.folds.get(clip_id, -1) for clip_id in ids])
        for fold, layer in enumerate(self.fold_layers):
            if (own := np.flatnonzero(folds == fold)).size:
                outputs[own] = layer(inputs[own])
        return torch.from_numpy(outputs).log_softmax(1).float()


def features(all_logits: torch.Tensor) -> np.ndarray:
    """Return the linear layer's input, float64 [N, M * K]; all_logits: [M, N, K]."""
    logarithms = all_logits.double().log_softmax(-1).clamp(min=np.log(MIN_PROBABILITY))
    return logarithms.transpose(0, 1).flatten(1).numpy()


# --- fitting -----------------------------------------------------------------------------------


def fit_stack(all_logits: torch.Tensor, annotations, class_names, members) -> Stack:
    """Fit a stack on the clips of a set that have no NaN in `all_logits`, [M, N, K].

    members: one per network. Raises UserError if a class has too few clips.
    """
    known = ~all_logits.isnan().any(2).any(0).numpy()
    inputs, labels = features(all_logits)[known], annotations.labels[known]
    groups = None if annotations.groups is None else annotations.groups[known]
    counts = np.bincount(labels, minlength=len(class_names))
    few = [name for name, count in zip(class_names, counts, strict=True) if count < MIN_CLIPS]
    if few:
        raise UserError(
            f"--stack: each class needs {MIN_CLIPS} validation clips or more, for "
            f"cross-validation; too few of {summarize(few)}; add clips to val_data_csv"
        )
    layers, folds = [], np.zeros(len(labels), int)
    for number, (train, test) in enumerate(cross_validation_folds(labels, groups, NUM_FOLDS)):
        own_groups = None if groups is None else groups[train]
        layers.append(fit_layer(inputs[train], labels[train], own_groups, len(class_names)))
        folds[test] = number
    return Stack(
        classes=class_names,
        networks=members,
        layer=fit_layer(inputs, labels, groups, len(class_names)),
        fold_layers=layers,
        folds=dict(zip(annotations.ids[known].tolist(), folds.tolist(), strict=True)),
    )


def cross_validation_folds(labels, groups, num_folds) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (training, test) positions of each fold, stratified; no group is in both.

    With fewer clips per class, or groups, than `num_folds` there are fewer folds, or none; a single
    group is split like unknown ones.
    """
    num_groups = 0 if groups is None else len(np.unique(groups))
    counts = np.bincount(labels)
    most = num_groups if num_groups > 1 else counts[counts > 0].min()
    num_folds = min(max(2, min(num_folds, most)), counts.max())
    if num_folds < 2:
        return []
    return stratified_folds(labels, groups if num_groups > 1 else None, num_folds, seed=0)


def fit_layer(inputs, labels, groups, num_classes) -> Layer:
    """Fit a logistic regression; its penalty has the lowest cross-validated loss."""

    def loss(strength) -> float:
        total = 0.0
        for train, test in cross_validation_folds(labels, groups, NUM_INNER_FOLDS):
            layer = _regression(inputs[train], labels[train], strength, num_classes)
            logits = torch.from_numpy(layer(inputs[test]))
            total += torch.nn.functional.cross_entropy(
                logits, torch.from_numpy(labels[test]), reduction="sum"
            ).item()
        return total

    return _regression(inputs, labels, min(STRENGTHS, key=loss), num_classes)


def _regression(inputs, labels, strength, num_classes) -> Layer:
    from sklearn.linear_model import LogisticRegression

    known = np.unique(labels)
    coefficients, intercepts = np.zeros((1, inputs.shape[1])), np.zeros(1)
    if len(known) > 1:
        fitted = LogisticRegression(C=strength, max_iter=2000).fit(inputs, labels)
        coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(known) == 2:  # scikit-learn returns a single row for two classes
        coefficients, intercepts = (
            np.concatenate([-values / 2, values / 2]) for values in (coefficients, intercepts)
        )
    weights = np.zeros((num_classes, inputs.shape[1]))
    # Classes that the fold lacks get a low logit.
    biases = np.full(num_classes, intercepts.min() + np.log(MIN_PROBABILITY))
    weights[known], biases[known] = coefficients, intercepts
    return Layer(weights=weights.tolist(), biases=biases.tolist())


# --- the file ----------------------------------------------------------------------------------


def is_stack(path) -> bool:
    """Return whether the file begins like JSON, as no checkpoint does."""
    try:
        with open(path, "rb") as file:
            return file.read(100).lstrip().startswith(b"{")
    except OSError:
        return False


def refuse_stacks(paths) -> None:
    """Raise UserError if one of several checkpoints is a stack."""
    for path in filter(is_stack, paths):
        raise UserError(f"{path}: a stack, which must be the only checkpoint; give its networks")


def member(path, folder) -> Member:
    """Return a checkpoint as a member of the stack to be written to `folder`."""
    return Member(path=os.path.relpath(path, folder), sha256=_checksum(path))


def write_stack(path, stack: Stack) -> None:
    write_text(path, stack.model_dump_json(indent=1) + "\n")


def read_stack(path, class_names=None, labels_csv=None) -> tuple[Stack, list[str]]:
    """Return the stack at `path`, and the paths of its checkpoints.

    class_names: those of the config's `labels_csv`; None: any. Raises UserError if the file is
    damaged or has other classes, or if a checkpoint is missing or has changed since.
    """
    try:
        stack = Stack.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:  # also pydantic's
        is_invalid = isinstance(error, ValidationError)
        reason = summarize_validation(error, 3) if is_invalid else error
        raise UserError(
            f"{path}: neither a checkpoint nor an intact stack ({reason}); fit it again by "
            "train.py --stack"
        ) from None
    if class_names is not None:
        check_classes({"classes": stack.classes}, class_names, path, labels_csv)
    return stack, [_checked_path(path, each) for each in stack.networks]


def _checked_path(stack_path, network: Member) -> str:
    path = os.path.normpath(os.path.join(os.path.dirname(stack_path), network.path))
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: no such checkpoint, which the stack {stack_path} needs; put it "
            "there, or fit the stack again with train.py --stack"
        )
    if _checksum(path) != network.sha256:
        raise UserError(
            f"{path}: has changed since the stack {stack_path} was fitted on it; fit "
            "the stack again with train.py --stack"
        )
    return path


def _checksum(path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

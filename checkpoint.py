"""Checkpoints: saved whole or not at all, loaded as plain data, whoever made them.

A checkpoint is a dict with at least `epoch` (epochs finished), `arch`, `state_dict` and
`best_prec1`, the keys that checkpoints of this family have always had. Ours add `classes`,
`config`, `optimizer`, `history` and `tensorboard`.
"""

import json
import math
import os
import re
import warnings
from collections import OrderedDict
from pathlib import Path

import torch

from errors import UserError, first_few

PLAIN_TYPES = (str, int, float, bool, type(None), torch.Tensor, torch.nn.Parameter, torch.Size)

# int64 is that of the counters of batches.
WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)

# Names of layers in the published checkpoints -> names in `model.ConvColumn`.
PUBLISHED_NAMES = {
    "conv_layer5": "last_conv",
    "fc5": "hidden.0.0",
    "batch0": "hidden.0.2",
    "fc6": "hidden.1.0",
    "batch1": "hidden.1.2",
    "fc7": "classifier",
}


def save_checkpoint(checkpoint: dict, path) -> None:
    """Writes `checkpoint` to `path` so that the file there is always a whole one."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{path}: checkpoint cannot be written ({error}); the one before is untouched"
        ) from None


def load_checkpoint(path) -> dict:
    """The checkpoint at `path`, its tensors on the CPU.

    Raises UserError if it is missing, damaged, or holds anything but plain data: pickled objects
    are never built, so that a file from a stranger cannot run code.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such checkpoint; correct the path, or start without --resume")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensor that are refused below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything for a file that is not its own
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{path}: no checkpoint, damaged, or with more in it than plain data, which is not "
            f"loaded because it could run code ({type(error).__name__}: {reason})"
        ) from None
    try:
        strange = _first_strange_type(checkpoint)
    except RecursionError:
        strange = "lists that are nested too deep"
    if strange:
        raise UserError(f"{path}: holds {strange}; only plain data is loaded")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(
            f"{path}: no checkpoint of a network: it has no state_dict; choose another file"
        )
    problems = [f"{key}: found {' '.join(repr(checkpoint[key]).split())[:60]}; expected {expected}"
                for key, (fits, expected) in KEYS.items()
                if key in checkpoint and not fits(checkpoint[key])]
    if problems:
        raise UserError(f"{path}: damaged checkpoint: {first_few(problems)}; take an earlier one")
    return checkpoint


def _first_strange_type(value) -> str | None:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    elif isinstance(value, torch.Tensor) and not _is_dense(value):
        return "a sparse or quantized tensor, or one without data"
    elif type(value) in PLAIN_TYPES:
        return None
    elif type(value) not in (list, tuple, OrderedDict):
        return f"an object of type {type(value).__name__}"
    return next(filter(None, map(_first_strange_type, value)), None)


def _is_dense(tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not (
        tensor.is_quantized
    )


def _is_count(value) -> bool:
    return type(value) is int and value >= 0


def _is_finite(value) -> bool:
    # Published checkpoints hold their best score as a tensor.
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return type(value) in (int, float) and math.isfinite(value)


def _is_network(value) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value) and all(
        isinstance(weights, torch.Tensor) for weights in value.values()
    )


def _is_class_list(value) -> bool:
    is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return is_list and len(set(value)) == len(value)


def _is_history(value) -> bool:
    # A loss may be infinite or NaN: a run that diverged can be looked at, too.
    return isinstance(value, list) and all(
        isinstance(row, dict) and {"epoch", "val_loss"} <= set(row)
        and all(isinstance(name, str) for name in row)
        and all(type(figure) in (int, float) for figure in row.values())
        for row in value
    )


def _is_config(value) -> bool:
    try:
        json.dumps(value)
    except TypeError:  # a tensor
        return False
    return isinstance(value, dict)


def _is_log(value) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and _is_count(size) for name, size in value.items()
    )


# What the keys hold where they are there.
KEYS = {
    "epoch": (_is_count, "a number of epochs"),
    "state_dict": (_is_network, "tensors by their names"),
    "best_prec1": (_is_finite, "a percentage"),
    "classes": (_is_class_list, "class names, each once"),
    "history": (_is_history, "a row of figures an epoch, with epoch and val_loss"),
    "config": (_is_config, "the settings of a config file"),
    "optimizer": (lambda value: isinstance(value, dict), "an optimizer's state"),
    "tensorboard": (_is_log, "the size of each event file"),
}


def network_weights(checkpoint: dict) -> dict[str, torch.Tensor]:
    """The weights under our own names, from ours or a published checkpoint, DataParallel or not."""
    return {our_name(name): value for name, value in checkpoint["state_dict"].items()}


def our_name(name: str) -> str:
    """`module.conv_layer2.3.weight` -> `blocks.1.3.weight`; our own names stay as they are."""
    name = name.removeprefix("module.")
    layer, _, rest = name.partition(".")
    if layer in PUBLISHED_NAMES:
        return f"{PUBLISHED_NAMES[layer]}.{rest}"
    block = re.fullmatch(r"conv_layer([1-4])", layer)
    return f"blocks.{int(block[1]) - 1}.{rest}" if block else name


def load_weights(model, weights, path, except_for=()) -> None:
    """Copies `weights` into `model`; the layers named in `except_for` keep their own.

    Raises UserError that names the first differences if the weights are of another network.
    """
    own = model.state_dict()
    skipped = {name for name in own if name.startswith(tuple(except_for))} if except_for else set()
    # Counters of batches came with PyTorch 0.4.1; older checkpoints lack them, evaluation too.
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    problems = [f"{name} is missing" for name in own
                if name not in weights and name not in optional | skipped]
    problems += [f"{name} is unknown" for name in weights if name not in own]
    problems += [
        f"{name} is {list(weights[name].shape)}, the network has {list(own[name].shape)}"
        for name in own
        if name in weights and name not in skipped and weights[name].shape != own[name].shape
    ]
    if problems:
        raise UserError(
            f"{path}: weights of another network: {first_few(problems, 3)}; use the config that "
            "the checkpoint was trained with"
        )
    taken = {name: value for name, value in weights.items() if name not in skipped}
    unusable = [f"{name} ({value.dtype})" for name, value in taken.items()
                if value.dtype not in WEIGHT_TYPES or not value.isfinite().all()]
    if unusable:
        raise UserError(
            f"{path}: weights that are NaN, infinite or of an unusual type: "
            f"{first_few(unusable, 3)}; take an earlier checkpoint"
        )
    model.load_state_dict(taken, strict=False)


def check_classes(checkpoint: dict, class_names, path, labels_csv) -> None:
    """Raises UserError, with both lists' difference, unless the classes are the same, in order."""
    known = checkpoint.get("classes")
    if known is None:
        return _check_class_count(checkpoint, class_names, path, labels_csv)
    if known == class_names:
        return None
    remedy = (
        "use the labels file it was trained with, or start a new run from its weights with "
        '"pretrained" and "new_head": true'
    )
    only_known = [name for name in known if name not in class_names]
    only_asked = [name for name in class_names if name not in known]
    if only_known or only_asked:
        raise UserError(
            f"{path}: knows {len(known)} classes, {labels_csv} names {len(class_names)}; only in "
            f"the checkpoint: {first_few(only_known) or 'none'}; only in {labels_csv}: "
            f"{first_few(only_asked) or 'none'}; {remedy}"
        )
    moved = [f"class {index} is {theirs!r} there, {ours!r} in {labels_csv}"
             for index, (theirs, ours) in enumerate(zip(known, class_names, strict=True))
             if theirs != ours]
    raise UserError(f"{path}: has its classes in another order: {first_few(moved, 3)}; {remedy}")


def _check_class_count(checkpoint, class_names, path, labels_csv):
    """For published checkpoints, which hold no names: the last layer's size must fit at least."""
    last_layer = network_weights(checkpoint).get("classifier.weight")
    if last_layer is not None and last_layer.ndim and len(last_layer) != len(class_names):
        raise UserError(
            f"{path}: has {len(last_layer)} classes, {labels_csv} names {len(class_names)}; use "
            'the labels it was trained with, or "pretrained" with "new_head": true'
        )
    print(f"{path} holds no class names; they are taken to be those of {labels_csv}, in order")

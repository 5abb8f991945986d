"""Checkpoints: saved whole or not at all, loaded as plain data, whoever made them.

A checkpoint is a dict with at least `epoch` (epochs finished), `arch`, `state_dict` and
`best_prec1`, the keys that checkpoints of this family have always had. Ours add `classes`,
`config`, `optimizer`, `history` and `tensorboard`.
"""

import os
import re
from collections import OrderedDict
from pathlib import Path

import torch

from errors import UserError, first_few

PLAIN_TYPES = (str, int, float, bool, type(None), torch.Tensor, torch.nn.Parameter, torch.Size)

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
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint; correct the path, or start without --resume")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything for a file that is not its own
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{path}: no checkpoint, damaged, or with more in it than plain data, which is not "
            f"loaded because it could run code ({type(error).__name__}: {reason})"
        ) from None
    strange = _first_strange_type(checkpoint)
    if strange:
        raise UserError(f"{path}: holds {strange}; only plain data is loaded")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path}: no checkpoint of a network: it has no state_dict")
    return checkpoint


def _first_strange_type(value) -> str | None:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    elif type(value) in PLAIN_TYPES:
        return None
    elif type(value) not in (list, tuple, OrderedDict):
        return f"an object of type {type(value).__name__}"
    return next(filter(None, map(_first_strange_type, value)), None)


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
    if last_layer is not None and len(last_layer) != len(class_names):
        raise UserError(
            f"{path}: has {len(last_layer)} classes, {labels_csv} names {len(class_names)}; use "
            'the labels it was trained with, or "pretrained" with "new_head": true'
        )
    print(f"{path} holds no class names; they are taken to be those of {labels_csv}, in order")

"""Checkpoints: saved whole or not at all, loaded as plain data, whoever made them.

A checkpoint is a dict with at least `state_dict`, and `epoch` (epochs finished), `arch` and
`best_prec1`, the keys that checkpoints of this family have always had. `Contents` lists what ours
add.
"""

import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from system.errors import UserError, first_few

PLAIN_TYPES = (str, int, float, bool, type(None), torch.Tensor, torch.nn.Parameter, torch.Size)
# int64 is that of the counters of batches.
WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class DamagedCheckpointError(UserError):
    """A checkpoint that is missing or cannot be read."""


class Contents(BaseModel):
    """The keys of a checkpoint; published ones have the first four only."""

    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)

    state_dict: dict[str, torch.Tensor]
    epoch: Count = 0  # epochs finished
    arch: str = ""
    best_prec1: Finite = 0.0  # percent; below 0: no epoch is finished yet
    step: Count = 0  # steps finished in the running epoch
    seconds: Finite = 0.0  # that they took
    classes: list[str] | None = None
    train_clips: str | None = None  # digest of the training set
    config: dict[str, bool | int | float | str | list[int | float] | dict[str, str] | None] = {}
    state_dict_ema: dict[str, torch.Tensor] | None = None
    ema_updates: Count = 0
    optimizer: dict = {}
    scaler: dict[str, int | Finite] = {}  # of the loss, for fp16
    metrics: dict[str, Annotated[list[Finite], Field(min_length=2, max_length=2)]] = {}
    history: list[dict[str, int | float]] = []
    bad_clips: list[dict[str, int | str]] = []

    @field_validator("classes")
    @classmethod
    def _are_distinct(cls, names):
        if names is not None and len(set(names)) < len(names):
            raise ValueError("a name occurs more than once")
        return names

    @field_validator("history")
    @classmethod
    def _are_epochs(cls, rows):
        if not all({"epoch", "val_loss"} <= set(row) for row in rows):
            raise ValueError("each row should have epoch and val_loss")
        return rows

    @field_validator("bad_clips")
    @classmethod
    def _are_bad_clips(cls, rows):
        types = {"epoch": int, "set": str, "id": str, "reason": str}
        if not all({name: type(value) for name, value in row.items()} == types for row in rows):
            raise ValueError(f"each row should have {', '.join(types)}")
        return rows


# Names of layers in the published checkpoints -> names in `model.ConvColumn`.
PUBLISHED_NAMES = {
    "conv_layer5": "last_conv",
    "fc5": "hidden.0.0",
    "batch0": "hidden.0.2",
    "fc6": "hidden.1.0",
    "batch1": "hidden.1.2",
    "fc7": "classifier",
}


def save_checkpoint(checkpoint: dict, path, previous_path=None) -> None:
    """Write `checkpoint` to `path` atomically: the file there is always a whole one.

    The previous one is kept as `previous_path`. Raises UserError if the new one
    cannot be written; the old one is then untouched.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if previous_path and path.exists():
            os.replace(path, previous_path)
        os.replace(partial, path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink()
        # For a full disk PyTorch raises a RuntimeError about positions, after the true one.
        reason = error if isinstance(error, OSError) else error.__context__ or error
        raise UserError(
            f"{path}: checkpoint cannot be written ({_first_line(reason)}); the one before is "
            "whole; make room or set output_dir to another disk, then --resume True"
        ) from None


def _flush_folder(folder) -> None:
    """Flush the folder, so that the renaming survives a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(path) -> dict:
    """The checkpoint at `path`, its tensors on the CPU.

    Raises UserError if it has no state_dict, and as `load_checkpoint_or_weights`.
    """
    contents = load_checkpoint_or_weights(path)
    if "state_dict" not in contents:
        raise UserError(_no_state_dict(path))
    return contents


def load_checkpoint_or_weights(path) -> dict:
    """The checkpoint at `path`, or the plain dict of name -> tensor; the tensors on the CPU.

    A plain one, as torchvision's downloads are, has no key `state_dict`.
    Raises UserError if the file holds neither, or anything but plain data: pickled objects are
    never built, so that a file from a stranger cannot run code. DamagedCheckpointError if it is
    missing or cannot be read.
    """
    contents = _load_plain_data(path)
    if isinstance(contents, dict) and "state_dict" in contents:
        return _checked_contents(contents, path)
    if not isinstance(contents, dict) or not _is_all_weights(contents):
        raise UserError(_no_state_dict(path))
    return dict(contents)


def _is_all_weights(contents: dict) -> bool:
    are_names = all(isinstance(name, str) for name in contents)
    return are_names and all(isinstance(value, torch.Tensor) for value in contents.values())


def _no_state_dict(path) -> str:
    return f"{path}: no checkpoint of a network: it has no state_dict; choose another file"


def _load_plain_data(path):
    if not os.path.isfile(path):
        raise DamagedCheckpointError(
            f"{path}: no such checkpoint; correct the path, or start a new run without it"
        )
    is_zip = False
    try:
        is_zip = zipfile.is_zipfile(path)  # checkpoints from before PyTorch 1.6 are none
        if is_zip:
            _check_entries(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensor that are refused below
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything for a file that is not its own
        is_hostile = is_zip and isinstance(error, pickle.UnpicklingError)
        raise (UserError if is_hostile else DamagedCheckpointError)(
            f"{path}: damaged checkpoint, or one with more than plain data, which is not loaded "
            f"because it could run code ({type(error).__name__}: {_first_line(error)}); take an "
            "earlier one"
        ) from None
    try:
        strange = _first_strange_type(contents)
    except RecursionError:
        strange = "lists that are nested too deep"
    if strange:
        raise UserError(f"{path}: contains {strange}; only plain data is loaded")
    return contents


def _check_entries(path) -> None:
    """Raise ValueError if an entry's checksum or size is wrong; `torch.load` compares neither."""
    with zipfile.ZipFile(path) as archive:
        spoilt = archive.testzip()
        sizes = [entry.filename for entry in archive.infolist() if _is_misread(entry)]
    if spoilt or sizes:
        raise ValueError(f"the checksum or an attribute of {spoilt or sizes[0]} is wrong")


def _is_misread(entry: zipfile.ZipInfo) -> bool:
    """Whether PyTorch would take something else for the entry's content than Python, unnoticed."""
    is_folder = entry.external_attr & 0x10
    is_stored = entry.compress_type == zipfile.ZIP_STORED
    return (entry.file_size and is_folder) or (is_stored and entry.file_size != entry.compress_size)


def _checked_contents(checkpoint, path) -> dict:
    best = checkpoint.get("best_prec1")
    if isinstance(best, torch.Tensor) and best.numel() == 1:  # as in published checkpoints
        checkpoint["best_prec1"] = best.item()
    try:
        contents = Contents.model_validate(dict(checkpoint))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
                    for problem in error.errors()]
        raise UserError(
            f"{path}: damaged checkpoint: {first_few(problems, 3)}; take an earlier one"
        ) from None
    return {name: getattr(contents, name) for name in contents.model_fields_set}


def _first_line(error) -> str:
    return str(error).strip().split("\n")[0][:200]


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
    is_plain = tensor.layout == torch.strided and not tensor.is_quantized
    return is_plain and tensor.device.type == "cpu"


def with_averaged_weights(checkpoint: dict) -> dict:
    """The checkpoint with the running mean of its weights in their place, if it has one."""
    if "state_dict_ema" not in checkpoint:
        return checkpoint
    print("using the averaged weights of the checkpoint (ema_decay)")
    return checkpoint | {"state_dict": checkpoint["state_dict_ema"]}


def network_weights(checkpoint: dict) -> dict[str, torch.Tensor]:
    """The weights under our own names, from ours or a published checkpoint, DataParallel or not.

    checkpoint: one of those that `load_checkpoint_or_weights` gives.
    """
    weights = checkpoint.get("state_dict", checkpoint)
    return {our_name(name): value for name, value in weights.items()}


def our_name(name: str) -> str:
    """`module.conv_layer2.3.weight` -> `blocks.1.3.weight`; our own names stay as they are."""
    name = name.removeprefix("module.")
    layer, _, rest = name.partition(".")
    if layer in PUBLISHED_NAMES:
        return f"{PUBLISHED_NAMES[layer]}.{rest}"
    block = re.fullmatch(r"conv_layer([1-4])", layer)
    return f"blocks.{int(block[1]) - 1}.{rest}" if block else name


def load_weights(model, checkpoint: dict, path, except_for=()) -> dict[str, torch.Tensor]:
    """Copy the weights of `checkpoint` into `model`; layers in `except_for` keep their own.

    Returns those that were copied.
    Raises UserError that names the first differences if the weights are of another network.
    """
    own, weights = model.state_dict(), network_weights(checkpoint)
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
    check_usable(taken, path)
    model.load_state_dict(taken, strict=False)
    return taken


def check_usable(weights: dict[str, torch.Tensor], path) -> None:
    """Raises UserError that names the first weights that no network can compute with."""
    unusable = [f"{name} ({value.dtype})" for name, value in weights.items()
                if value.dtype not in WEIGHT_TYPES or not value.isfinite().all()]
    if unusable:
        raise UserError(
            f"{path}: weights that are NaN, infinite or of an unusual type: "
            f"{first_few(unusable, 3)}; take an earlier checkpoint"
        )


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
    """Check the last layer's size, for published checkpoints, which have no class names."""
    last_layer = network_weights(checkpoint).get("classifier.weight")
    if last_layer is not None and last_layer.ndim and len(last_layer) != len(class_names):
        raise UserError(
            f"{path}: has {len(last_layer)} classes, {labels_csv} names {len(class_names)}; use "
            'the labels it was trained with, or "pretrained" with "new_head": true'
        )
    print(f"{path} has no class names; they are taken to be those of {labels_csv}, in order")

"""Checkpoints: saved atomically, and loaded as plain data, even those of strangers.

A checkpoint is a dict with at least `state_dict`; `Contents` lists the keys of ours.
"""

import os
import pickle
import re
import shlex
import warnings
import zipfile
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from clips.frames import composed
from system.errors import UserError, summarize, summarize_validation
from system.files import atomic_write

# int64 is for batch counters.
WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)
Count = Annotated[int, Field(ge=0)]
MAX_DEPTH = 4  # deepest of our checkpoints; others may be endless
Finite = Annotated[float, Field(allow_inf_nan=False)]


# NumPy's numbers and text, which many programs save as scores; they contain no other objects.
NUMPY_SCALARS = [
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDGSU"),
    *(
        (np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar")
        for core in ("core", "_core")
    ),
]
# No program saves these with its weights: they make a pickle run code.
DANGEROUS = re.compile(
    r"(os|posix|nt|sys|subprocess|commands|shutil|socket|pty|runpy|importlib|pickle|marshal|ctypes|code)\.|"
    r"(builtins|__builtin__)\.(eval|exec|compile|open|getattr|setattr|__import__|print|globals)$"
)


class DamagedCheckpointError(UserError):
    """A checkpoint that is missing or cannot be read."""


class Contents(BaseModel):
    """The keys of a checkpoint; published ones have the first four only. Others are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True)

    state_dict: dict[str, torch.Tensor]
    epoch: Count = 0  # finished epochs
    arch: str = ""
    best_prec1: Finite = 0.0  # percent; below 0: no epoch is finished
    step: Count = 0  # finished steps of the current epoch
    seconds: Finite = 0.0  # seconds that they took
    classes: list[str] | None = None
    train_clips: str | None = None  # digest of the training set
    train_pack: str | None = None  # identity of the pack that it is in; empty: it is in none
    config: dict[
        str, bool | int | float | str | list[int | float] | list[str] | dict[str, str] | None
    ] = {}
    state_dict_ema: dict[str, torch.Tensor] | None = None
    ema_updates: Count = 0
    optimizer: dict = {}
    scaler: dict[str, int | Finite] = {}  # of the loss, for fp16
    metrics: dict[str, Annotated[list[Finite], Field(min_length=2, max_length=2)]] = {}
    history: list[dict[str, int | float]] = []
    bad_clips: list[
        Annotated[dict[Literal["epoch", "set", "id", "reason"], int | str], Field(min_length=4)]
    ] = []

    @field_validator("classes")
    @classmethod
    def _in_nfc(cls, names):
        return names and list(map(composed, names))

    @field_validator("history")
    @classmethod
    def _are_epochs(cls, rows):
        if not all({"epoch", "val_loss"} <= set(row) for row in rows):
            raise ValueError("each row should have epoch and val_loss")
        return rows


# What DataParallel, DistributedDataParallel, torch.compile, FSDP, activation checkpointing and
# Lightning add to the names of weights.
WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
# Names of layers in the published checkpoints -> names in `model.ConvColumn`.
PUBLISHED_NAMES = {
    "conv_layer1": "blocks.0",
    "conv_layer2": "blocks.1",
    "conv_layer3": "blocks.2",
    "conv_layer4": "blocks.3",
    "conv_layer5": "last_conv",
    "fc5": "hidden.0.0",
    "batch0": "hidden.0.2",
    "fc6": "hidden.1.0",
    "batch1": "hidden.1.2",
    "fc7": "classifier",
}


def training_set(checkpoint: dict) -> tuple[str | None, str]:
    """Return the digest of the training clips, None: unknown, and the identity of their pack.

    Checkpoints of earlier versions have both in `train_clips`, separated by a space.
    """
    clips, pack = checkpoint.get("train_clips"), checkpoint.get("train_pack")
    if clips and pack is None:
        clips, _, pack = clips.partition(" ")
    return clips, pack or ""


def save_checkpoint(checkpoint: dict, path, previous_path=None) -> None:
    """Write `checkpoint` to `path` atomically; keep the previous file as `previous_path`.

    Raises UserError if it cannot be written; the old one is then untouched.
    """
    try:
        with atomic_write(path, backup=previous_path, sync=True) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:
        # On a full disk PyTorch raises a RuntimeError about positions after the real error.
        reason = error if isinstance(error, OSError) else error.__context__ or error
        raise UserError(
            f"{path}: checkpoint cannot be written ({_first_line(reason)}); the previous one is "
            "intact; make room or set output_dir to another disk, then --resume True"
        ) from None


def load_checkpoint(path, or_weights=False) -> dict:
    """Return the checkpoint at `path`, its tensors on the CPU.

    or_weights: also accept a plain dict of name -> tensor, such as torchvision's downloads.
    Raises UserError if the file is something else or has more than plain data: pickled objects
    are never built, so that a file from a stranger cannot run code. Raises DamagedCheckpointError
    if it is missing or cannot be read.
    """
    contents = _load_plain_data(path)
    if isinstance(contents, dict) and "state_dict" in contents:
        return _checked_contents(contents, path)
    are_weights = isinstance(contents, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in contents.items()
    )
    if not (or_weights and are_weights):
        raise UserError(
            f"{path}: not a network's checkpoint: it has no state_dict; choose another file"
        )
    return dict(contents)


def _load_plain_data(path):
    if not os.path.isfile(path):
        raise DamagedCheckpointError(
            f"{path}: no such checkpoint; correct the path, or start a new run without it"
        )
    is_whole = False
    try:
        if zipfile.is_zipfile(path):  # not so for checkpoints from before PyTorch 1.6
            _check_entries(path)
            is_whole = True
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_SCALARS):
            warnings.simplefilter("ignore")  # about tensor types that are refused later
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything for other files
        # With valid checksums the file is as written; the previous one must not replace it.
        is_refused = is_whole and isinstance(error, pickle.UnpicklingError)
        kind = UserError if is_refused else DamagedCheckpointError
        found = _refused_types(path, error)
        if found and not any(DANGEROUS.match(name) for name in found):
            raise kind(_conversion_message(path, found)) from None
        reason = (
            f"it has {summarize(found, 3)}"
            if found
            else f"{type(error).__name__}: {_first_line(error)}"
        )
        raise kind(
            f"{path}: damaged checkpoint, or one with more than plain data, which is not loaded "
            f"because it could run code ({reason}); take an earlier one"
        ) from None


def _refused_types(path, error) -> list[str]:
    """Return the names of functions and classes in a checkpoint that made `torch.load` refuse it.

    For a checkpoint from before PyTorch 1.6, only the first one.
    """
    first = re.search(r"GLOBAL ([\w.]+)", str(error))
    if not first:
        return []
    # It reads neither older nor damaged checkpoints.
    with suppress(Exception), torch.serialization.safe_globals(NUMPY_SCALARS):
        if found := torch.serialization.get_unsafe_globals_in_checkpoint(path):
            return sorted(found)
    return [first[1]]


def _conversion_message(path, found: list[str]) -> str:
    weights = f"{Path(path).name.partition('.')[0]}_weights.pth.tar"
    code = (
        f"import torch; saved = torch.load({str(path)!r}, 'cpu', weights_only=False); "
        f"torch.save({{'state_dict': saved['state_dict']}}, {weights!r})"
    )
    is_plain = not set('"$`\\!') & set(code)
    return (
        f"{path}: has more than plain data: {summarize(found, 5)}; it is not loaded, since it "
        f"could run code; if you trust its author, copy its weights to {weights} with python -c "
        + (f'"{code}"' if is_plain else shlex.quote(code))
    )


def _check_entries(path) -> None:
    """Raise ValueError if an entry's checksum or size is wrong; `torch.load` checks neither."""
    with zipfile.ZipFile(path) as archive:
        # PyTorch stores files uncompressed, and reads nothing for what looks like a folder.
        misread = (
            entry.filename
            for entry in archive.infolist()
            if entry.external_attr & 0x10 or entry.file_size != entry.compress_size
        )
        if spoilt := archive.testzip() or next(misread, None):
            raise ValueError(f"the checksum or an attribute of {spoilt} is wrong")


def _checked_contents(checkpoint, path) -> dict:
    checkpoint = {
        name: value if str(name).startswith("state_dict") else _plain(value)
        for name, value in checkpoint.items()
    }
    best = checkpoint.get("best_prec1")
    if isinstance(best, torch.Tensor) and best.numel() == 1:  # as in published checkpoints
        checkpoint["best_prec1"] = best.item()
    try:
        contents = Contents.model_validate(checkpoint)
    except ValidationError as error:
        problems = summarize_validation(error, 3)
        raise UserError(f"{path}: damaged checkpoint: {problems}; take an earlier one") from None
    return {name: getattr(contents, name) for name in contents.model_fields_set}


def _plain(value, depth=0):
    """Replace NumPy's numbers and text in a value by Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if depth < MAX_DEPTH and type(value) in (dict, list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        plain = {key: _plain(item, depth + 1) for key, item in items}
        return plain if isinstance(value, dict) else list(plain.values())
    return value


def _first_line(error) -> str:
    return str(error).strip().split("\n")[0][:200]


def with_averaged_weights(checkpoint: dict) -> dict:
    """Return the checkpoint with its averaged weights as `state_dict`, if it has them."""
    if "state_dict_ema" not in checkpoint:
        return checkpoint
    print("using the averaged weights of the checkpoint (ema_decay)")
    return checkpoint | {"state_dict": checkpoint["state_dict_ema"]}


def network_weights(checkpoint: dict) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint, or plain weights, with the names of our networks.

    Replaces the names of published checkpoints and removes those that wrappers added:
    `module._orig_mod.conv_layer2.3.weight` -> `blocks.1.3.weight`. Raises UserError if two weights
    then have the same name.
    """
    weights = {}
    for name, value in checkpoint.get("state_dict", checkpoint).items():
        if name == "n_averaged":  # counter of torch.optim.swa_utils.AveragedModel
            continue
        layer, *rest = [part for part in name.split(".") if part not in WRAPPERS] or [name]
        own_name = ".".join([PUBLISHED_NAMES.get(layer, layer), *rest])
        if own_name in weights:
            raise UserError(
                f"{own_name}: occurs twice in the checkpoint, once as {name}; keep "
                "the weights of one network"
            )
        weights[own_name] = value
    return weights


def load_weights(model, checkpoint: dict, path, except_for=()) -> dict[str, torch.Tensor]:
    """Copy the weights of `checkpoint` into `model`; return those that were copied.

    except_for: prefixes of the weights that `model` keeps.
    Raises UserError that names the first differences if the weights are those of another network.
    """
    own = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(tuple(except_for))
    }
    weights = {
        name: value
        for name, value in network_weights(checkpoint).items()
        if not name.startswith(tuple(except_for))
    }
    problems = [f"{name} is unknown" for name in weights if name not in own]
    # Batch counters came with PyTorch 0.4.1; older checkpoints lack them.
    problems += [
        f"{name} is missing"
        for name in own
        if name not in weights and not name.endswith("num_batches_tracked")
    ]
    problems += [
        f"{name} is {list(weights[name].shape)}, the network has {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        raise UserError(
            f"{path}: weights of another network: {summarize(problems, 3)}; use the config and the "
            "labels that they were trained with, or other weights"
        )
    check_usable(weights, path)
    model.load_state_dict(weights, strict=False)
    return weights


def check_usable(weights: dict[str, torch.Tensor], path) -> None:
    """Raise UserError that names the first weights that cannot be used."""
    unusable = [
        f"{name} ({value.dtype})"
        for name, value in weights.items()
        if value.is_meta
        or value.layout != torch.strided
        or value.dtype not in WEIGHT_TYPES
        or not value.isfinite().all()
    ]
    if unusable:
        raise UserError(
            f"{path}: weights that are NaN, inf or of an unusual type: "
            f"{summarize(unusable, 3)}; take an earlier checkpoint"
        )


def check_classes(checkpoint: dict, class_names, path, labels_csv) -> None:
    """Raise UserError that names the differences unless the classes are the same, in order."""
    known = checkpoint.get("classes")
    if known is None:
        print(f"{path} has no class names; assuming those of {labels_csv}, in order")
        return
    known = list(map(composed, known))
    differences = [
        f"class {index} is {theirs!r} there, {ours!r} in {labels_csv}"
        for index, (theirs, ours) in enumerate(zip_longest(known, class_names))
        if theirs != ours
    ]
    if differences:
        raise UserError(
            f"{path}: has {len(known)} classes, {labels_csv} has {len(class_names)}: "
            f"{summarize(differences, 3)}; use the labels file it was trained with, or start a new "
            'run from its weights with "pretrained" and "new_head": true'
        )

"""Weights that a new run starts from: what the config key `pretrained` names.

That is a checkpoint, a file that is a plain dict of name -> tensor, or the name of torchvision's
weights. A checkpoint has to be of the same network. The others may be of a part of it (the network
that looks at the frames), or of its 2D counterpart, whose kernels are then inflated over time.
"""

import difflib
import os
import re
import sys
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlparse

import torch

from config import MODEL_OPTIONS, Config
from model import NETWORKS
from system import processes
from system.errors import UserError, first_few
from training.checkpoint import (
    check_classes,
    check_usable,
    load_checkpoint_or_weights,
    load_weights,
    network_weights,
    with_averaged_weights,
)

# How torchvision names weights, and the layers of its networks that belong to the classes.
WEIGHTS_NAME = re.compile(r"\w+_Weights\.\w+")
FILE_HEADS = ("fc.", "classifier", "head.")
# Of weights that are inflated, at least this share has to fit; fewer are no start.
LEAST_SHARE = 0.5
# Names of layers in our networks -> in torchvision's 2D networks.
_FRAMES = [(r"backbone\.", "")]
_STREAMS = [(r"(spatial|temporal)\.", "")]
_RESNET_3D = [
    (r"stem\.0\.", "conv1."),
    (r"stem\.1\.", "bn1."),
    # r2plus1d_18 has two convolutions for each of ResNet's; the first is tried.
    (r"(layer\d\.\d)\.conv(\d)\.0\.(0\.)?(?=weight)", r"\1.conv\2."),
    (r"(layer\d\.\d)\.conv(\d)\.1\.(?!\d)", r"\1.bn\2."),
]
SOURCE_NAMES = {
    "cnn_lstm": _FRAMES,
    "trn": _FRAMES,
    "two_stream": _STREAMS,
    "r3d_18": _RESNET_3D,
    "mc3_18": _RESNET_3D,
    "r2plus1d_18": _RESNET_3D,
}


class Placed(NamedTuple):
    """What a network takes of weights that are not a checkpoint of its own."""

    values: dict[str, torch.Tensor]  # by the network's names
    inflated: list[str]
    notes: list[str]  # what the user should know of them


def take_pretrained(model, config: Config, class_names) -> None:
    """Takes the weights of `pretrained`, and says which, and which weights start fresh.

    With `new_head` the last layer keeps its fresh ones.
    Raises UserError if there are no such weights, or if they are of another network.
    """
    source = config.pretrained
    contents = processes.broadcast_from_main(read_source, source)
    if "state_dict" in contents:
        placed = take_checkpoint(model, with_averaged_weights(contents), config, class_names)
    else:
        weights = network_weights(contents)
        check_usable(weights, source)
        placed = place_weights(model, weights, config)
        model.load_state_dict(placed.values, strict=False)
    notes = [*placed.notes, _colour_note(config)]
    print("\n".join([_describe(model, placed, source), *filter(None, notes)]))


def take_checkpoint(model, checkpoint, config: Config, class_names) -> Placed:
    """A checkpoint has every weight, but for those of a new head; else UserError."""
    if not config.new_head:
        check_classes(checkpoint, class_names, config.pretrained, config.labels_csv)
    head = [NETWORKS[config.model].head] if config.new_head else []
    taken = load_weights(model, checkpoint, config.pretrained, except_for=head)
    return Placed(taken, [], [])


def _describe(model, placed: Placed, source) -> str:
    fresh = [name for name in model.state_dict()
             if name not in placed.values and not name.endswith("num_batches_tracked")]
    inflated = f", {len(placed.inflated)} of them inflated over time" if placed.inflated else ""
    starting = f"; {len(fresh)} start fresh: {first_few(fresh)}" if fresh else ""
    return f"weights from {source}: {len(placed.values)} tensors taken{inflated}{starting}"


# --- where they are ----------------------------------------------------------------------------


def read_source(source: str) -> dict:
    """The checkpoint, or the plain dict of weights, that `pretrained` names.

    Raises UserError if it cannot be found, fetched or read.
    """
    if not is_weights_name(source):
        return load_checkpoint_or_weights(source)
    weights = named_weights(source)
    path = fetch(weights)
    try:
        return load_checkpoint_or_weights(path)
    except UserError as error:
        raise UserError(f"{error}; deleted, it is fetched anew from {weights.url}") from None


def is_weights_name(source: str) -> bool:
    return WEIGHTS_NAME.fullmatch(source) is not None and not os.path.exists(source)


def named_weights(name: str):
    """torchvision's weights of that name. Raises UserError that names the nearest."""
    from torchvision import models  # here, since it takes a second that few runs need

    try:
        return models.get_weight(name)
    except (ValueError, KeyError, TypeError):  # the latter two: no such member, no such class
        pass
    known = [f"{type(weights).__name__}.{weights.name}" for model in models.list_models()
             for weights in models.get_model_weights(model)]
    nearest = difflib.get_close_matches(name, known, 1, cutoff=0)[0]
    raise UserError(f'pretrained: torchvision has no weights {name}; did you mean "{nearest}"?')


def fetch(weights) -> str:
    """The path of torchvision's file in torch.hub's folder, where it is put if it is not there.

    Raises UserError that says how to put it there by hand if it cannot be fetched.
    """
    path = os.path.join(torch.hub.get_dir(), "checkpoints",
                        os.path.basename(urlparse(weights.url).path))  # fmt: skip
    if os.path.exists(path):
        return path
    try:
        # Plain data only, so that the server could not run code either; it is read again as any
        # file is, for what is checked there.
        weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except Exception as error:  # the network, the disk, the file's hash
        raise UserError(
            f"pretrained: {weights} cannot be fetched ({error}); get {weights.url} in another way "
            f"and put it to {path}"
        ) from None
    return path


# --- where they go -----------------------------------------------------------------------------


def source_name(own_name: str, model: str, weights) -> str | None:
    """The name in `weights` of what belongs to `own_name` of the network `model`; None: nothing.

    The same name goes first, then that of torchvision's 2D network.
    """
    if own_name in weights:
        return own_name
    for pattern, replacement in SOURCE_NAMES.get(model, []):
        name, count = re.subn(f"^{pattern}", replacement, own_name)
        if count and name in weights:
            return name
    return None


def fitted(value: torch.Tensor, own: torch.Tensor) -> torch.Tensor | None:
    """`value` in the shape of `own`; None if it does not fit.

    A kernel [O, I, H, W] is inflated to [O, I, T, H, W]: repeated over time and divided by T, so
    that a clip of one picture gives what the picture gave. (Carreira and Zisserman, arXiv
    1705.07750)
    """
    if value.shape == own.shape:
        return value
    is_flat = own.ndim == 5 and value.ndim == 4
    if not is_flat or (*own.shape[:2], *own.shape[3:]) != tuple(value.shape):
        return None
    return (value.to(own.dtype) / own.shape[2]).unsqueeze(2).expand_as(own)


@dataclass
class Match:
    """Which weights belong where, and which of those fit."""

    own: dict[str, torch.Tensor]  # the network's
    weights: dict[str, torch.Tensor]  # the file's
    sources: dict[str, str]  # the network's name -> the file's

    def __post_init__(self):
        found = {name: fitted(self.weights[source], self.own[name])
                 for name, source in self.sources.items()}
        self.values = {name: value for name, value in found.items() if value is not None}
        self.inflated = [name for name, source in self.sources.items()
                         if self.own[name].ndim == 5 and self.weights[source].ndim == 4]

    @property
    def used(self) -> set[str]:
        return {self.sources[name] for name in self.values}

    def unknown(self) -> list[str]:
        """The file's weights without a place, as problems."""
        placed = set(self.sources.values())
        return [f"{name} is unknown" for name in self.weights if name not in placed]

    def misfits(self) -> dict[str, str]:
        """The network's names of places that are of another shape -> the problems."""
        return {
            name: f"{source} is {list(self.weights[source].shape)}, the network has "
                  f"{list(self.own[name].shape)}"
            for name, source in self.sources.items() if name not in self.values
        }  # fmt: skip

    def missing(self) -> list[str]:
        return [f"{name} is missing" for name in self.own if name not in self.sources]

    def share(self) -> float:
        """Of the file's numbers, those that are used."""
        count = sum(self.weights[name].numel() for name in self.used)
        return count / sum(value.numel() for value in self.weights.values())


def place_weights(model, weights, config: Config) -> Placed:
    """Finds a place in `model` for each of `weights`; those of another head are left out.

    weights: name -> tensor. Raises UserError that names the first differences if they are of
    another network.
    """
    own, head = model.state_dict(), NETWORKS[config.model].head
    sources = {name: source for name in own
               if (source := source_name(name, config.model, weights)) is not None}
    body = Match(
        {name: value for name, value in own.items() if not name.startswith(head)},
        {name: value for name, value in weights.items() if not name.startswith(FILE_HEADS)},
        {name: source for name, source in sources.items() if not name.startswith(head)},
    )
    _check(body, config)
    last = Match(
        {name: value for name, value in own.items() if name.startswith(head)}, weights,
        {name: source for name, source in sources.items() if name.startswith(head)},
    )  # fmt: skip
    values, notes = _last_layer(last, config)
    inflated = [name for name in body.inflated if name in body.values]
    return Placed(body.values | values, inflated, notes)


def _check(body: Match, config: Config) -> None:
    """Raises UserError if a weight finds no place, or one of another shape.

    Some of those shapes are to be expected; what has them starts fresh.
    """
    unknown, misfits = body.unknown(), body.misfits()
    if not any(body.weights[name].ndim >= 4 for name in body.used):  # no convolution
        _refuse(config, [*unknown, *misfits.values()] or body.missing())
    if body.inflated and body.share() < LEAST_SHARE:
        _refuse(config, [*unknown, *misfits.values()], f"only {body.share():.0%} of them fit: ")
    expected = list(misfits) if body.inflated else []
    if config.model == "two_stream":  # a stack of flow has more channels than a picture
        expected = [_first_of_temporal(body.own)]
    problems = unknown + [text for name, text in misfits.items() if name not in expected]
    if problems:
        _refuse(config, problems)


def _first_of_temporal(own) -> str:
    """The name of the first convolution's weight."""
    return next(name for name, value in own.items()
                if name.startswith("temporal.") and value.ndim == 4)


def _refuse(config: Config, problems, share="") -> None:
    options = [key for key, models in MODEL_OPTIONS.items()
               if config.model in models and key != "dropout"]
    raise UserError(
        f"{config.pretrained}: weights of another network than {config.model}: {share}"
        f"{first_few(problems, 3)}; change pretrained, or {', '.join(['model', *options])}"
    )


def _last_layer(last: Match, config: Config) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The head's values, or none if it starts fresh; and what to say of it."""
    if config.new_head or not last.sources:
        return {}, []
    problems = [*last.misfits().values(), *last.missing()]
    if problems:
        return {}, [f"the last layer starts fresh: {first_few(problems, 3)}"]
    return last.values, [f"{config.pretrained} holds no class names; they are taken to be those "
                         f"of {config.labels_csv}, in order"]


def _colour_note(config: Config) -> str | None:
    """What to set for colours as torchvision's weights were trained with."""
    if not is_weights_name(config.pretrained):
        return None
    transforms = named_weights(config.pretrained).transforms()
    keys = [f'"{key}": {theirs}' for key in ("mean", "std")
            if (theirs := getattr(transforms, key, None)) not in (None, getattr(config, key))]
    if not keys:
        return None
    return f"{config.pretrained}: trained with other colours; set {', '.join(keys)}"

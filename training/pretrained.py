"""Weights that a new run starts from: what the config key `pretrained` names.

That is a checkpoint, a file that is a plain dict of name -> tensor, or the name of torchvision's
weights. A checkpoint has to be of the same network. The others may be of a part of it (the network
that looks at the frames), or of its 2D counterpart, whose kernels are then inflated over time.
"""

import difflib
import os
import re
import sys
from urllib.parse import urlparse

import torch
from torch import nn

from config import MODEL_OPTIONS, Config
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
# Names of layers in our networks -> in torchvision's 2D networks.
_FRAMES = [(r"backbone\.", "")]
_STREAMS = [(r"(spatial|temporal)\.", "")]
_RESNET_3D = [
    (r"stem\.0\.", "conv1."),
    (r"stem\.1\.", "bn1."),
    (r"(layer\d\.\d)\.conv(\d)\.0\.(?=weight)", r"\1.conv\2."),
    (r"(layer\d\.\d)\.conv(\d)\.1\.(?!\d)", r"\1.bn\2."),
]
SOURCE_NAMES = {
    "cnn_lstm": _FRAMES,
    "trn": _FRAMES,
    "two_stream": _STREAMS,
    "r3d_18": _RESNET_3D,
    "mc3_18": _RESNET_3D,
}


def take_pretrained(model: nn.Module, config: Config, class_names) -> None:
    """Copy the weights of `pretrained` into `model`, and print which, and which start fresh.

    With `new_head` the last layer, whose name begins with `model.head_name`, keeps its fresh ones.
    Raises UserError if there are no such weights, or if they are of another network.
    """
    source, notes = config.pretrained, []
    contents = processes.broadcast_from_main(read_source, source)
    own = model.state_dict()
    if "state_dict" in contents:
        checkpoint = with_averaged_weights(contents)
        if not config.new_head:
            check_classes(checkpoint, class_names, source, config.labels_csv)
        head = [model.head_name] if config.new_head else []
        taken, inflated = load_weights(model, checkpoint, source, except_for=head), []
    else:
        weights = network_weights(contents)
        check_usable(weights, source)
        taken, inflated, notes = place_weights(own, weights, model.head_name, config)
        model.load_state_dict(taken, strict=False)
    fresh = [name for name in own
             if name not in taken and not name.endswith("num_batches_tracked")]
    counts = f"weights from {source}: {len(taken)} tensors taken"
    counts += f", {len(inflated)} of them inflated over time" if inflated else ""
    counts += f"; {len(fresh)} start fresh: {first_few(fresh)}" if fresh else ""
    print("\n".join([counts, *notes, *_colour_notes(config)]))


# --- where they are ----------------------------------------------------------------------------


def read_source(source: str) -> dict:
    """The checkpoint, or the plain dict of weights, that `pretrained` names.

    torchvision's are kept in torch.hub's folder. Raises UserError if the weights cannot be found,
    fetched (it says where to put the file) or read.
    """
    if not is_weights_name(source):
        return load_checkpoint_or_weights(source)
    weights = named_weights(source)
    try:
        return weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True,
                                      weights_only=True, map_location="cpu")  # fmt: skip
    except Exception as error:  # the network, the disk, the file's hash or content
        path = os.path.join(torch.hub.get_dir(), "checkpoints",
                            os.path.basename(urlparse(weights.url).path))  # fmt: skip
        reason = str(error).split("\n")[0]
        raise UserError(
            f"pretrained: {weights} cannot be fetched or read ({reason}); get {weights.url} in "
            f"another way and put it to {path}"
        ) from None


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


def place_weights(own, weights, head: str, config: Config):
    """Find a place in a network for each of `weights`; those of another head are left out.

    own, weights: name -> tensor, of the network and of the file; head: how the names of the
    network's last layer begin. Returns the network's new values, the names of those that are
    inflated, and what the user should know. Raises UserError that names the first differences if
    the weights are of another network.
    """
    sources = {name: source for name in own
               if (source := source_name(name, config.model, weights)) is not None}
    values = {name: value for name, source in sources.items()
              if (value := fitted(weights[source], own[name])) is not None}
    misfits = {
        name: f"{source} is {list(weights[source].shape)}, the network has {list(own[name].shape)}"
        for name, source in sources.items() if name not in values
    }  # fmt: skip
    placed = set(sources.values())
    problems = [f"{name} is unknown" for name in weights
                if name not in placed and not name.startswith(FILE_HEADS)]
    fresh = _first_of_temporal(own) if config.model == "two_stream" else None
    problems += [problem for name, problem in misfits.items()
                 if name != fresh and not name.startswith(head)]
    if all(name.startswith(head) for name in values):
        problems += [f"{name} is missing" for name in own if name not in sources]
    if problems:
        options = [key for key, models in MODEL_OPTIONS.items()
                   if config.model in models and key != "dropout"]
        raise UserError(
            f"{config.pretrained}: weights of another network than {config.model}: "
            f"{first_few(problems, 3)}; change pretrained, or {', '.join(['model', *options])}"
        )
    values, notes = _with_or_without_head(values, sources, misfits, own, head, config)
    inflated = [name for name in values if values[name].ndim > weights[sources[name]].ndim]
    return values, inflated, notes


def _with_or_without_head(values, sources, misfits, own, head, config):
    """The values, without the last layer's unless all of it fits and is wanted; and what to say."""
    last = [name for name in own if name.startswith(head)]
    body = {name: value for name, value in values.items() if name not in last}
    if config.new_head or not any(name in sources for name in last):
        return body, []
    problems = [misfits.get(name, f"{name} is missing") for name in last if name not in values]
    if problems:
        return body, [f"the last layer starts fresh: {first_few(problems, 3)}"]
    return values, [f"{config.pretrained} has no class names; they are taken to be those of "
                    f"{config.labels_csv}, in order"]


def _first_of_temporal(own) -> str:
    """The first convolution's weight; a stack of flow has more channels than a picture."""
    return next(name for name, value in own.items()
                if name.startswith("temporal.") and value.ndim == 4)


def _colour_notes(config: Config) -> list[str]:
    """What to set for colours as torchvision's weights were trained with."""
    if not is_weights_name(config.pretrained):
        return []
    transforms = named_weights(config.pretrained).transforms()
    keys = [f'"{key}": {theirs}' for key in ("mean", "std")
            if (theirs := getattr(transforms, key, None)) not in (None, getattr(config, key))]
    if not keys:
        return []
    return [f"{config.pretrained}: trained with other colours; set {', '.join(keys)}"]

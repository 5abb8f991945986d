"""Pretrained weights that a new run starts from, named by the config key `pretrained`.

It names a checkpoint of the same network, a file with a plain dict of name -> tensor, or
torchvision's weights. The latter two may be those of the part of a network that sees single frames,
or of its 2D counterpart, whose kernels are then inflated over time.
"""

import difflib
import os
import re
import sys
from urllib.parse import urlparse

import torch
from torch import nn

from config import Config
from system import processes
from system.errors import UserError, summarize
from training.checkpoint import (
    check_classes,
    check_usable,
    load_checkpoint,
    load_weights,
    network_weights,
    with_averaged_weights,
)

WEIGHTS_NAME = re.compile(r"\w+_Weights\.\w+")  # as torchvision names them
# The classifiers of torchvision's networks.
FILE_HEADS = ("fc.", "classifier", "head.")
# Layer names in our networks and in 3D ResNets -> in torchvision's 2D networks.
NAMES_IN_2D = (
    (r"(backbone|spatial|temporal)\.", ""),
    (r"stem\.0\.", "conv1."),
    (r"stem\.1\.", "bn1."),
    (r"(layer\d\.\d)\.conv(\d)\.0\.(?=weight)", r"\1.conv\2."),
    (r"(layer\d\.\d)\.conv(\d)\.1\.(?!\d)", r"\1.bn\2."),
)


def load_pretrained(model: nn.Module, head: str, config: Config, class_names) -> None:
    """Copy the weights of `pretrained` into `model`, and print which start from random values.

    head: the prefix of the last layer's names, which keeps its random weights with `new_head`.
    Raises UserError if there are no such weights, or if they are those of another network.
    """
    source, reinitialized, notes = config.pretrained, [head] if config.new_head else [], []
    contents = processes.broadcast_from_main(read_source, source)
    if "state_dict" in contents:
        contents = with_averaged_weights(contents)
        if not config.new_head:
            check_classes(contents, class_names, source, config.labels_csv)
    else:
        weights = network_weights(contents)
        contents, num_inflated = match_weights(weights, model.state_dict(), source)
        reinitialized += layers_without_weights(contents, model.state_dict(), head)
        if num_inflated:
            notes.append(f"{num_inflated} of them are inflated over time")
        if head not in reinitialized:
            check_classes({}, class_names, source, config.labels_csv)
    taken = load_weights(model, contents, source, except_for=reinitialized)
    missing = [
        name
        for name in model.state_dict()
        if name not in taken and not name.endswith("num_batches_tracked")
    ]
    notes += [f"{len(missing)} start from random values: {summarize(missing)}"] if missing else []
    print("; ".join([f"weights from {source}: {len(taken)} tensors loaded", *notes]))
    warn_normalization(config)


# --- finding weights ---------------------------------------------------------------------------


def read_source(source: str) -> dict:
    """Return the checkpoint, or the plain dict of weights, that `pretrained` names.

    torchvision's are cached in torch.hub's folder. Raises UserError if the weights cannot be found,
    downloaded (it says where to put the file) or read.
    """
    if not is_weights_name(source):
        return load_checkpoint(source, or_weights=True)
    weights = named_weights(source)
    try:
        return weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, weights_only=True, map_location="cpu"
        )
    except Exception as error:  # the network, the disk, the file's hash or content
        name = os.path.basename(urlparse(weights.url).path)
        reason = str(error).split("\n")[0]
        raise UserError(
            f"pretrained: {weights} cannot be downloaded or read ({reason}); get {weights.url} in "
            f"another way and save it as {os.path.join(torch.hub.get_dir(), 'checkpoints', name)}"
        ) from None


def is_weights_name(source: str) -> bool:
    return WEIGHTS_NAME.fullmatch(source) is not None and not os.path.exists(source)


def named_weights(name: str):
    """Return torchvision's weights `name`. Raises UserError that names the nearest."""
    from torchvision import models  # here, since it takes a second that few runs need

    known = {
        f"{type(weights).__name__}.{key}": weights
        for model in models.list_models()
        for key, weights in models.get_model_weights(model).__members__.items()
    }
    if name not in known:
        nearest = difflib.get_close_matches(name, known, 1, cutoff=0)[0]
        raise UserError(f'pretrained: torchvision has no weights {name}; did you mean "{nearest}"?')
    return known[name]


def warn_normalization(config: Config) -> None:
    """Print the keys to set so that colours are normalized as for torchvision's weights."""
    if not is_weights_name(config.pretrained):
        return
    transforms = named_weights(config.pretrained).transforms()
    keys = [
        f'"{key}": {theirs}'
        for key in ("mean", "std")
        if (theirs := getattr(transforms, key, None)) not in (None, getattr(config, key))
    ]
    if keys:
        print(f"{config.pretrained}: trained with another normalization; set {', '.join(keys)}")


# --- matching weights --------------------------------------------------------------------------


def match_weights(weights: dict, own: dict, source: str) -> tuple[dict, int]:
    """Rename and inflate weights of torchvision or of a part of a network.

    weights: name -> tensor, of the file; own: of the network. Returns the network's new values,
    with any that it does not have, and the number of inflated ones. The file's last layer is left
    out unless the network has it under the same name.
    """
    check_usable(weights, source)
    values, used, num_inflated = {}, set(), 0
    for name, value in own.items():
        names = [name, *(re.sub(f"^{pattern}", other, name) for pattern, other in NAMES_IN_2D)]
        found = next((name for name in names if name in weights), None)
        if found:
            values[name], used = inflated(weights[found], value), used | {found}
            num_inflated += values[name].ndim > weights[found].ndim
    unknown = {
        name: value
        for name, value in weights.items()
        if name not in used and not name.startswith(FILE_HEADS)
    }
    return values | unknown, num_inflated


def inflated(value: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Inflate a kernel [O, I, H, W] to [O, I, T, H, W] if `own` is one; else return `value`.

    It is repeated over time and divided by T, so that a clip of one repeated picture gives the
    same output as the picture. (Carreira and Zisserman, arXiv 1705.07750)
    """
    if own.ndim != 5 or value.ndim != 4 or (*own.shape[:2], *own.shape[3:]) != value.shape:
        return value
    return (value.to(own.dtype) / own.shape[2]).unsqueeze(2).expand_as(own)


def layers_without_weights(values: dict, own: dict, head: str) -> list[str]:
    """Return the prefixes of layers that get no weights from the file.

    These are layers that the file lacks, the last layer if its classes differ, and the first
    convolution of stacked flow, which has more channels than a picture.
    """
    body = [name for name in own if not name.startswith(head)]
    reinitialized = [name for name in body if name not in values]
    if len(reinitialized) == len(body):  # no layer fits
        return [head]
    fits = {name for name in own if name in values and values[name].shape == own[name].shape}
    if not {name for name in own if name.startswith(head)} <= fits:
        reinitialized.append(head)
    of_flow = [name for name in body if name.startswith("temporal.") and name not in fits]
    return reinitialized + of_flow[:1]

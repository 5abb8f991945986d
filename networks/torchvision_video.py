"""The video models of torchvision."""

from torch import nn

from config import Config
from system.errors import UserError


def build_torchvision_video(config: Config, num_classes) -> nn.Module:
    """Build one of torchvision's video models, with random weights.

    Raises UserError for `mvit_*` with other clips than the one shape that they are made for.
    """
    import torchvision  # here, since it takes a second that the other networks need not wait for

    name, (height, width) = config.model, config.crop
    if name.startswith("mvit") and (config.clip_size, height, width) != (16, 224, 224):
        raise UserError(
            f"model: {name} takes clips of clip_size 16 and crop_size 224 only, found "
            f"{config.clip_size} and {height} x {width}; swin3d_t takes any"
        )
    options = {"dropout": config.dropout} if name == "s3d" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if name == "s3d":
        # Its windows of 7 x 7 are the whole picture at 224 pixels; so are these, at any size.
        model.avgpool = nn.AdaptiveAvgPool3d(1)
    return model

"""`ConvColumn`, the tutorial's network, and `build_model`, which builds the config's network.

Shapes: N clips, C channels, T frames, H, W pixels. A network maps float [N, C, T, H, W] to logits
[N, num_classes]; C is 3, or 5 with optical flow.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from config import FITTED_MODELS, FRAME_MODELS, TORCHVISION_VIDEO_MODELS, Config
from networks.average import Average
from networks.csn import ChannelSeparatedResNet
from networks.eco import Eco
from networks.frame_networks import CnnLstm, TemporalRelationNetwork, TwoStream
from networks.mobilenet3d import MobileNet3d
from networks.ridge import KernelRidge, LinearModel
from networks.stages import run_on_meta, stages, to_meta
from networks.torchvision_video import build_torchvision_video
from system.errors import UserError

BATCHNORM_MOMENTUM = 0.1  # of the running statistics: PyTorch's default
# Views of a clip: degrees, shift to the right and down (parts of the picture), scale.
VIEWS = ((0, 0, 0, 1), (5, 0.03, 0.02, 1.05), (-5, -0.03, 0.02, 0.95), (0, 0, -0.04, 1.05))
MIN_SIDE = 4  # pixels that a block needs: 4 -> 2 (no padding) -> 2 (padding) -> 1 (pooling)


class ConvColumn(nn.Module):
    """The tutorial's 3D ConvNet: blocks that halve time and space until one vector is left.

    A block is conv, BatchNorm, LeakyReLU, twice, and max pooling. As many blocks are stacked as
    fit into the clip; the last convolution's kernel covers what remains, which gives
    [N, C, 1, 1, 1]; hidden layers and a linear classifier follow. For 18 frames of 84 x 84 and the
    default widths this is the published network of 3,886,883 parameters at 27 classes.

    clip_shape: (T, H, W); block_widths: channels of each block, the last entry repeated for
    further ones; head_widths: channels of the last convolution, then of each hidden layer.
    Raises UserError if the clip is too small for one block.
    """

    def __init__(self, num_classes, clip_shape, block_widths, head_widths, dropout):
        super().__init__()
        if min(clip_shape[1:]) < MIN_SIDE:
            raise UserError(
                f"crop_size: {clip_shape[1]} x {clip_shape[2]} pixels are too small for this "
                f"network; raise crop_size to {MIN_SIDE} x {MIN_SIDE} or more"
            )
        shape, channels = tuple(clip_shape), 3
        self.blocks = nn.Sequential()
        while min(shape[1:]) >= MIN_SIDE:
            width = block_widths[min(len(self.blocks), len(block_widths) - 1)]
            self.blocks.append(conv_block(channels, width, has_time=shape[0] > 1))
            shape, channels = shape_after_block(shape), width
        self.last_conv = nn.Conv3d(channels, head_widths[0], kernel_size=shape)
        self.hidden = nn.Sequential(
            *(hidden_layer(*widths, dropout) for widths in itertools.pairwise(head_widths))
        )
        self.classifier = nn.Linear(head_widths[-1], num_classes)

    def forward(self, clips):
        features = self.last_conv(self.blocks(clips))  # [N, C, 1, 1, 1]
        return self.classifier(self.hidden(features.flatten(1)))


def conv_block(channels_in, channels_out, has_time):
    """Build a block that halves H and W, and T if `has_time`; otherwise kernels have one frame.

    The tutorial pools after the second LeakyReLU, which does not change which value is largest.
    So pooling first gives the same bits, and leaves LeakyReLU an eighth of the values.
    """
    time = 2 if has_time else 1
    kernel = (time, 3, 3)
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, kernel),
        nn.BatchNorm3d(channels_out),
        nn.LeakyReLU(inplace=True),
        nn.Conv3d(channels_out, channels_out, kernel, padding=(time - 1, 1, 1)),
        nn.BatchNorm3d(channels_out),
        nn.MaxPool3d((time, 2, 2)),
        nn.LeakyReLU(inplace=True),
    )


def shape_after_block(shape) -> tuple[int, int, int]:
    """Return (T, H, W) after `conv_block`: its first convolution trims, its pooling halves."""
    frames, height, width = shape
    return max(1, frames // 2), (height - 2) // 2, (width - 2) // 2


def hidden_layer(inputs, outputs, dropout):
    return nn.Sequential(
        nn.Linear(inputs, outputs), nn.LeakyReLU(), nn.BatchNorm1d(outputs), nn.Dropout(dropout)
    )


class Network(NamedTuple):
    """How to build a network, and the prefixes of its classifier and of its pretrained part."""

    build: Callable  # (config, number of classes) -> module
    head: str = "classifier"  # prefix of the classifier's names
    pretrained: str = ""  # prefix of what `pretrained` usually fills; empty: all but the classifier


def build_conv3d(config: Config, num_classes) -> nn.Module:
    return ConvColumn(
        num_classes, config.clip_shape, config.block_widths, config.head_widths, config.dropout
    )


def build_average(config: Config, num_classes) -> nn.Module:
    """Build the networks `members`, which answer together."""
    members = {}
    for name in config.members:
        keys = {"model": name}
        if name not in FRAME_MODELS:
            keys["crop_size"] = list(config.small_crop)
        members[name] = NETWORKS[name].build(config.model_copy(update=keys), num_classes)
        # It is too sure on clips that it was fitted on. (An optimizer needs some parameter; alone,
        # it has a learning rate of 0.)
        if name in FITTED_MODELS and not config.is_fitted:
            members[name].log_scale.requires_grad_(False)
    size = config.crop, config.small_crop
    return Average(members, *size, config.subtract_background, config.combine)


NETWORKS = {
    "conv3d": Network(build_conv3d),
    "eco": Network(Eco, pretrained="backbone."),
    "cnn_lstm": Network(CnnLstm, pretrained="backbone."),
    # Its heads are `classifiers`.
    "trn": Network(TemporalRelationNetwork, pretrained="backbone."),
    # The temporal stream's first layer, of optical flow, is new.
    "two_stream": Network(TwoStream, pretrained="spatial."),
    "kernel_ridge": Network(KernelRidge, pretrained="backbone."),
    "linear": Network(LinearModel),
    "average": Network(build_average, "members.", pretrained="backbone."),
    "mobilenet3d": Network(MobileNet3d),
    "csn": Network(ChannelSeparatedResNet),
    **{
        name: Network(build_torchvision_video, head)
        for name, head in TORCHVISION_VIDEO_MODELS.items()
    },
}


def pretrained_stages(model: nn.Module, config: Config) -> list[tuple[str, nn.Module]]:
    """Return the stages of the network that `freeze` and `pretrained_lr_scale` apply to."""
    network = NETWORKS[config.model]
    return [
        (name, stage)
        for name, stage in stages(model)
        if name.startswith(network.pretrained) and not name.startswith(network.head)
    ]


def build_model(config: Config, num_classes: int) -> nn.Module:
    """Build the network `config.model`. Raises UserError for clips too small for it."""
    model = NETWORKS[config.model].build(config, num_classes)
    # torchvision's s3d and mobilenet_v3 use 0.001 and 0.01, so that running statistics lag
    # behind for hundreds of steps: in evaluation, a trained network is at chance level.
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = BATCHNORM_MOMENTUM
    try:
        run_on_meta(to_meta(model), config.clip_shape)
    except (RuntimeError, ValueError):
        height, width = config.crop
        raise UserError(
            f"clip_size, crop_size: {config.model} cannot use clips of {config.clip_size} frames "
            f"of {height} x {width} pixels; raise clip_size or crop_size"
        ) from None
    return model


def normalize_clips(clips, device, config: Config) -> torch.Tensor:
    """Normalize clips on the device: uint8 [N, T, H, W, C] -> float32 [N, C, T, H, W].

    Features of a frozen backbone, fp16 [N, T, ...], only become float32.

    With `subtract_background`, the mean frame of each clip is subtracted, but not from its optical
    flow, which is 0 where nothing moves; `average` does it for members that need it. The result is
    in channels-last memory format, which is fastest for convolutions.
    """
    if clips.is_floating_point():
        return clips.to(device, non_blocking=True).float()
    mean, std = _per_channel(config.input_mean, device), _per_channel(config.input_std, device)
    clips = clips.to(device, non_blocking=True).permute(0, 4, 1, 2, 3).float()
    clips = clips.div_(255).sub_(mean).div_(std)
    if config.subtract_background and config.model != "average":
        clips[:, :3] -= clips[:, :3].mean(2, keepdim=True)
    return clips


def _per_channel(values: tuple, device) -> torch.Tensor:
    """Return per-channel constants, float32 [1, C, 1, 1, 1].

    They are filled in on the device: a copy in each step would wait for it. They are not cached:
    what is made while a network is exported or compiled has no values.
    """
    constants = [torch.full((), value, dtype=torch.float32, device=device) for value in values]
    return torch.stack(constants).view(1, -1, 1, 1, 1)


def views_of(clips, num_views: int) -> torch.Tensor:
    """Return views of each clip, the first of which is the clip: [N, ...] -> [N * views, ...].

    The others are rotated, shifted and scaled by the same for all frames. Averaging the scores over
    views is test-time augmentation. clips: float [N, C, T, H, W].
    """
    if num_views == 1:
        return clips
    num_clips, _, num_frames, height, width = clips.shape
    x, y = (torch.linspace(1 / side - 1, 1 - 1 / side, side) for side in (width, height))
    places = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], 2)  # [H, W, (x, y)]
    frames = clips.transpose(1, 2).flatten(0, 1)
    views = [frames]
    for degrees, right, down, scale in VIEWS[1:num_views]:
        cosine, sine = (function(math.radians(degrees)) for function in (math.cos, math.sin))
        ratio = height / width
        turn = torch.tensor([[cosine, sine * ratio], [-sine / ratio, cosine]]) / scale
        grid = (places - 2 * torch.tensor([right, down])) @ turn.T
        grid = grid.to(clips.device).expand(len(frames), -1, -1, -1)
        views.append(F.grid_sample(frames, grid, padding_mode="border", align_corners=False))
    together = torch.stack(views, 1).unflatten(0, (num_clips, num_frames))  # [N, T, views, ...]
    views = together.permute(0, 2, 3, 1, 4, 5).flatten(0, 1)
    return views.contiguous(memory_format=torch.channels_last_3d)

"""From a checkpoint to a network in evaluation mode, for all commands that use one."""

import sys
from typing import NamedTuple

import torch
from torch import nn

from config import INPUT_AND_NETWORK_KEYS, Config
from model import build_model
from networks.convolution_check import replace_wrong_convolutions
from networks.inference import fold_batchnorm
from system import processes
from system.config_file import config_of_checkpoint
from system.device import check_precision, has_tf32, to_device
from system.errors import UserError
from training.checkpoint import load_checkpoint, load_weights, with_averaged_weights
from training.pretrained import with_normalization
from training.resuming import load_for
from training.run import print_changed_keys

CLIPS_AT_ONCE = 8  # in the batches of commands other than `--eval_only`


class LoadedNetwork(NamedTuple):
    """A trained network, with the input and classes of its checkpoint."""

    network: nn.Module  # on the device, folded for inference
    config: Config  # of the network and its input
    classes: list[str]
    checkpoint: dict  # with averaged weights if it has any; `path`: its file


def load_network(
    path,
    device: torch.device,
    config: Config | None = None,
    class_names=None,
    takes_own_input=False,
) -> LoadedNetwork:
    """Load the network of the checkpoint at `path`, with averaged weights if it has any.

    config, class_names: of the run that evaluates; None: both are the checkpoint's.
    takes_own_input: the network and its input still follow the checkpoint, as in an ensemble.
    Every process must call this. Raises UserError if the checkpoint cannot be read, has other
    classes or another network's weights, or lacks what it needs to be used alone.
    """
    checkpoint = processes.broadcast_from_main(_read, path, config, class_names)
    checkpoint = with_averaged_weights(checkpoint)
    own_config = _config_for(checkpoint, config, takes_own_input, device)
    classes = class_names or checkpoint["classes"]
    check_precision(own_config.eval_precision, device)
    model = build_model(own_config, len(classes))
    load_weights(model, checkpoint, checkpoint["path"])
    num_clips = own_config.videos_per_eval_batch if config else CLIPS_AT_ONCE
    replace_wrong_convolutions(
        to_device(model, device),
        own_config.clip_shape,
        num_clips * own_config.inputs_per_video,
        device,
        own_config.eval_precision,
        training=False,
    )
    return LoadedNetwork(fold_batchnorm(model), own_config, classes, checkpoint)


def _read(path, config: Config | None, class_names) -> dict:
    if config is not None:
        return load_for(path, config, class_names)
    checkpoint = load_checkpoint(path)
    if not checkpoint.get("classes") or not checkpoint.get("config"):
        raise UserError(
            f"{path}: has no class names or no config, so it cannot be used alone; evaluate it "
            "with train.py --eval_only, or train with this program"
        )
    return checkpoint | {"path": str(path)}


def _config_for(checkpoint: dict, config: Config | None, takes_own_input: bool, device) -> Config:
    """Return the config of the checkpoint's network and its input.

    Keys that an older version did not save have their defaults, also in an ensemble. Used alone,
    a tf32 network computes in fp32 on a device without tf32.
    """
    if config is not None and not takes_own_input:
        config = with_normalization(config, checkpoint)
        print_changed_keys(config, checkpoint)
        return config
    if not checkpoint.get("config"):  # a published one, in an ensemble
        return config
    own = config_of_checkpoint(checkpoint["path"], checkpoint["config"])
    if config is None and own.eval_precision == "tf32" and not has_tf32(device):
        print(
            f"note: {checkpoint['path']}: is evaluated in tf32 (eval_precision), which this "
            "device does not have; computing in fp32",
            file=sys.stderr,
        )
        own = own.model_copy(update={"eval_precision": "fp32"})
    if config is None:
        # The commands that use a checkpoint alone have no flag for this limit.
        limit = max(own.max_frame_pixels, Config.model_fields["max_frame_pixels"].default)
        return own.model_copy(update={"max_frame_pixels": limit})
    # Speeds are for training only, and may conflict with the sampling of the checkpoint.
    keys = {key: getattr(own, key) for key in INPUT_AND_NETWORK_KEYS}
    return config.model_copy(update={"step_jitter": 0.0} | keys)

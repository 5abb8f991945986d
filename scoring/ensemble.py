"""Logits of one set, by a checkpoint's network or by those of several, averaged (`--ensemble`).

The data, and how they are evaluated, are the config's. Of several networks, each gets the clips as
its own checkpoint says. Shapes: N clips.
"""

from functools import partial

import torch

from clips.bad_clips import BadClips
from config import INPUT_AND_NETWORK_KEYS, Config
from data_loader import build_loader
from model import build_model
from networks.convolution_check import replace_wrong_convolutions
from scoring.evaluation import compute_logits, format_scores, log_mean_probability, score
from scoring.results import Origin
from system import processes
from system.config_file import config_of_checkpoint
from system.device import to_device
from training.checkpoint import load_weights, with_averaged_weights
from training.resuming import load_for


def load_to_evaluate(path, config: Config, class_names) -> dict:
    """The checkpoint at `path`, for all processes, with averaged weights if it has any.

    Raises UserError if it cannot be read, or knows other classes.
    """
    return with_averaged_weights(processes.broadcast_from_main(load_for, path, config, class_names))


def checkpoint_logits(checkpoint, config: Config, class_names, annotations, device, set_name):
    """Logits float32 [N, classes] of the config's network with the checkpoint's weights.

    All else in the checkpoint, which training needs, is left alone. Raises UserError if the weights
    are of another network.
    """
    model = to_device(build_model(config, len(class_names)), device)
    load_weights(model, checkpoint, checkpoint["path"])
    num_windows = config.videos_per_eval_batch * config.windows_per_video
    replace_wrong_convolutions(model, (config.clip_size, *config.crop), num_windows, device,
                               config.eval_precision, training=False)  # fmt: skip
    loader = build_loader(annotations, config, False, device)
    bad_clips = BadClips(config)
    note = partial(bad_clips.note, annotations=annotations, set_name=set_name, epoch=1)
    logits = compute_logits(model, loader, device, set_name, note)
    bad_clips.report(annotations, set_name, epoch=1)
    return logits


def ensemble_logits(paths, config: Config, class_names, annotations, device, set_name):
    """Logits float32 [N, classes], the logarithm of the mean probabilities, and their Origin.

    What each network reaches alone is printed where the set has labels. Raises UserError if a
    checkpoint cannot be read, or knows other classes.
    """
    all_logits, members = [], []
    for path in paths:
        checkpoint = load_to_evaluate(path, config, class_names)
        member = config_of_member(config, checkpoint)
        logits = checkpoint_logits(checkpoint, member, class_names, annotations, device, set_name)
        if annotations.has_labels:
            print(f"alone: {format_scores(score(logits, torch.from_numpy(annotations.labels)))}")
        all_logits.append(logits)
        members.append(Origin.of(member, [checkpoint]))
    networks = [network for member in members for network in member.networks]
    origin = members[0].model_copy(update={"networks": networks})
    return log_mean_probability(torch.stack(all_logits), dim=0), origin


def config_of_member(config: Config, checkpoint) -> Config:
    """The config with the checkpoint's own network and input; a published one names none."""
    saved = checkpoint.get("config", {})
    own = {key: saved[key] for key in INPUT_AND_NETWORK_KEYS if key in saved}
    return config_of_checkpoint(checkpoint["path"], config.model_dump() | own)

"""Several networks' scores of one set, averaged: `--eval_only True --ensemble FILE FILE`.

Each network gets the clips as its own checkpoint says; the data, and how they are evaluated, are
the config's. Shapes: N clips.
"""

from functools import partial

import torch

import processes
from bad_clips import BadClips
from checkpoint import load_weights, with_averaged_weights
from config import INPUT_AND_NETWORK_KEYS, Config
from config_file import config_of_checkpoint
from data_loader import build_loader
from device import to_device
from evaluation import Origin, compute_logits, format_scores, log_mean_probability, score
from model import build_model
from run import load_for


def ensemble_logits(paths, config: Config, class_names, annotations, device, set_name):
    """Logits float32 [N, classes], the logarithm of the mean probabilities, and their Origin.

    What each network reaches alone is printed where the set has labels. Raises UserError if a
    checkpoint cannot be read, or knows other classes.
    """
    all_logits, members = [], []
    for path in paths:
        asked = config.model_copy(update={"checkpoint": path})
        checkpoint = with_averaged_weights(processes.from_main(load_for, asked, class_names))
        member = config_of_member(config, checkpoint)
        model = build_model(member, len(class_names))
        load_weights(model, checkpoint, path)
        loader = build_loader(annotations, member, False, device)
        bad_clips = BadClips(member)
        note = partial(bad_clips.note, annotations=annotations, set_name=set_name, epoch=1)
        logits = compute_logits(to_device(model, device), loader, device, set_name, note)
        bad_clips.report(annotations, set_name, epoch=1)
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

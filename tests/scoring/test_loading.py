"""Checkpoints that are used alone, with the config that they hold."""

import pytest
import torch
from conftest import make_config

from model import build_model
from scoring.loading import load_network
from training.checkpoint import save_checkpoint


@pytest.mark.parametrize("saved, limit", [(16_000_000, 7680 * 4320), (10**9, 10**9)])
def test_a_checkpoint_alone_takes_films_of_8k_as_no_flag_sets_the_limit(tmp_path, saved, limit):
    config = make_config(max_frame_pixels=saved)
    network = build_model(config, 2)
    path = tmp_path / "a.pth.tar"
    save_checkpoint(
        {
            "epoch": 1,
            "arch": config.model,
            "state_dict": network.state_dict(),
            "best_prec1": 0.0,
            "classes": ["Left", "Right"],
            "config": config.model_dump(),
        },
        path,
    )
    loaded = load_network(path, torch.device("cpu"))
    assert loaded.config.max_frame_pixels >= limit

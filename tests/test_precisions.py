"""The demo's own config, on fewer clips, learns the same in each precision that the machine has."""

import json
import math
from typing import get_args
from unittest import mock

import pytest
import torch
from runs import PROJECT, read_csv, run_folder, write_config

import demo_data
import train
from config import Config

CLIPS = {"train": 48, "validation": 16, "test": 8}
CHANGES = {"num_epochs": 2, "num_workers": 0, "batch_size": 16, "lr": 0.001, "warmup_epochs": 0.5}
ALL = get_args(Config.model_fields["precision"].annotation)


ON_THE_CPU = [
    pytest.param("cpu", name, id=f"cpu-{name}", marks=pytest.mark.slow)
    for name in ("auto", "bf16", "fp16")
]
ON_A_GPU = [pytest.param("0", name, id=f"gpu-{name}", marks=[pytest.mark.gpu]) for name in ALL]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Keys of the demo's config for a few clips."""
    folder = tmp_path_factory.mktemp("demo") / "set"
    demo_data.write_data_set(folder, CLIPS, processes=1)
    text = (PROJECT / "configs" / "quickstart.json").read_text()
    return json.loads(text.replace("data/demo", str(folder))) | CHANGES


@pytest.fixture(scope="module")
def in_fp32(demo, tmp_path_factory):
    return train_demo(demo, "fp32", "cpu", tmp_path_factory.mktemp("fp32"))


def train_demo(demo, precision, gpus, folder) -> list[dict]:
    """The history of a run. What is allocated for gradients is full of NaN before."""
    keys = demo | {"precision": precision, "output_dir": str(folder)}
    backward = torch.Tensor.backward

    def backward_in_used_memory(*arguments, **options):
        fill_freed_memory()
        return backward(*arguments, **options)

    with mock.patch.object(torch.Tensor, "backward", backward_in_used_memory):
        config = write_config(folder / "config.json", keys)
        assert train.main(["-c", config, "-g", gpus, "--overwrite", "True"]) == 0
    rows = read_csv(run_folder(keys) / "history.csv")
    return [{name: float(value) for name, value in row.items()} for row in rows]


def fill_freed_memory():
    """An operation that leaves a part of its result unwritten then shows."""
    tensors = [torch.full((2**power,), math.nan) for power in range(6, 22) for _ in range(4)]
    del tensors


@pytest.mark.parametrize("gpus, precision", [*ON_THE_CPU, *ON_A_GPU])
def test_the_demo_learns_as_in_fp32(demo, in_fp32, tmp_path, gpus, precision):
    history = train_demo(demo, precision, gpus, tmp_path)
    assert len(history) == 2 and in_fp32[1]["loss"] < in_fp32[0]["loss"]
    tolerance = 0.15 if precision == "fp16" else 0.1  # its first scales leave steps out
    for row, expected in zip(history, in_fp32, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=tolerance)
        # After so few steps, rounding alone changes it by a fifth.
        assert math.isfinite(row["val_loss"])

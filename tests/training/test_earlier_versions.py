"""A checkpoint and a config of an earlier version, which every later one must be able to use.

`tests/fixtures` has a run of two epochs that was stopped in its second one, and the history of the
same version when it went on: it was written before keys, callbacks and modules had today's names.
"""

import shutil
from pathlib import Path

import pytest
import torch
from runs import make_settings, read_csv

import train
from scoring.predictor import load_predictor

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The run's folder, beside its data."""
    monkeypatch.chdir(tmp_path)
    make_settings(Path("."))
    folder = Path("trainings/tiny")
    folder.mkdir(parents=True)
    shutil.copy(FIXTURES / "checkpoint.pth.tar", folder)
    return folder


def test_a_run_of_an_earlier_version_is_resumed_to_the_same_figures(folder):
    config = str(FIXTURES / "config.json")
    assert train.main(["--config", config, "-g", "cpu", "--resume"]) == 0
    found, expected = (read_csv(path / "history.csv") for path in (folder, FIXTURES))
    assert len(found) == len(expected) == 2
    for row, old in zip(found, expected, strict=True):
        for name in ("loss", "top1", "val_loss", "val_top1", "val_linear_top1"):
            assert float(row[name]) == pytest.approx(float(old[name]), rel=1e-3), name


def test_its_checkpoint_predicts(folder):
    predictor = load_predictor(folder / "checkpoint.pth.tar", torch.device("cpu"))
    assert predictor.classes == ["Left", "Right", "Still"]
    assert predictor.config.clip_shape == (4, 20, 20) and predictor.config.baseline_clips == 500

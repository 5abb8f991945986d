"""The time probe: other orders of the same frames, and what a network makes of them."""

import csv

import numpy as np
import pytest
import torch
from conftest import CLASSES, write_data_set
from PIL import Image
from runs import make_settings, run_folder, write_config

import explain
import train
from optical_flow import REST, optical_flow
from time_probe import TimeProbe, positions, reordered, table


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("explain")
    data = write_data_set(root / "more", {"train": 30, "validation": 9}, num_frames=(7, 10))
    settings = make_settings(root, checkpoint_minutes=10) | data
    assert train.main(["-c", write_config(root / "config.json", settings), "-g", "cpu"]) == 0
    return settings


def test_orders():
    rng = np.random.default_rng(0)
    assert positions("in order", 4, rng).tolist() == [0, 1, 2, 3]
    assert positions("reversed", 4, rng).tolist() == [3, 2, 1, 0]
    assert sorted(positions("shuffled", 4, rng)) == [0, 1, 2, 3]
    assert positions("frozen", 4, rng).tolist() == [2, 2, 2, 2]


def test_flow_is_computed_anew_for_the_new_order():
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 255, (8, 8, 1)), np.ones((6, 6, 3))).astype(np.uint8)
    colours = np.stack([np.roll(picture, 2 * t, axis=1) for t in range(4)])
    clip = np.concatenate([colours, optical_flow(colours)], axis=3)[None]
    forward, backward, frozen = (reordered(clip, places) for places in
                                 ([0, 1, 2, 3], [3, 2, 1, 0], [2, 2, 2, 2]))  # fmt: skip
    assert (forward == clip).all()
    assert np.median(forward[0, :3, 12:36, 12:36, 3]) > REST > np.median(
        backward[0, :3, 12:36, 12:36, 3])  # fmt: skip
    assert (frozen[..., 3:] == REST).all()


def test_pairs_that_swap_are_named():
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    predicted = {"in order": labels, "reversed": np.array([1, 1, 0, 0, 0, 2, 2]),
                 "shuffled": labels, "frozen": np.zeros(7, int)}  # fmt: skip
    result = TimeProbe(CLASSES, labels, predicted)
    assert result.accuracy("in order") == 100
    assert result.accuracy("frozen") == pytest.approx(300 / 7)
    assert [(a, b, round(share)) for a, b, share in result.swapped()] == [
        ("Left", "Right", 67), ("Right", "Left", 100)]  # fmt: skip
    assert "Right  are taken for Left (100 %)" in table(result)


def test_the_probe_in_order_is_the_evaluation(trained, tmp_path, capsys):
    checkpoint = str(run_folder(trained) / "checkpoint.pth.tar")
    assert explain.main(["-c", checkpoint, "-g", "cpu", "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    saved = torch.load(checkpoint, weights_only=True)
    with open(tmp_path / "time_probe.csv", newline="") as file:
        rows = {row["what"]: float(row["percent"]) for row in csv.DictReader(file)}
    assert rows["in order"] == pytest.approx(saved["history"][-1]["val_top1"], abs=0.01)
    assert f"{rows['frozen']:.1f} %" in shown
    assert Image.open(tmp_path / "time_probe.png").size == (600, 300)


def test_mistakes(trained, tmp_path, capsys):
    checkpoint = str(run_folder(trained) / "checkpoint.pth.tar")
    assert explain.main(["-c", str(tmp_path / "none.tar")]) == 2
    assert "no such checkpoint" in capsys.readouterr().err
    assert explain.main(["-c", checkpoint, "--data", "nowhere", "none.csv", "-g", "cpu"]) == 2
    assert "none.csv" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert explain.main(["-c", checkpoint, "-g", "cpu", "-o", str(tmp_path / "file")]) == 2
    assert "set --output" in capsys.readouterr().err

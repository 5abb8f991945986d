"""What the most frequent class and a linear model score, and how a run shows it."""

from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, draw_frames, make_config, write_clip
from runs import make_settings, read_csv, run_folder, write_config

import train
from clips.annotations import read_annotations
from scoring.baselines import baselines

pytestmark = pytest.mark.usefixtures("blank_pictures")


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
    found = baselines(training, validation, make_config())
    assert found == {"most_frequent_top1": 30.0, "linear_top1": 100.0}
    assert baselines(training, validation, make_config(baseline_clips=8)) == found


def test_clips_that_cannot_be_read_are_left_out(tmp_path):
    training = bright_and_dark(tmp_path / "train", (5, 5))
    for number in range(3):
        (tmp_path / "train" / "clips" / str(number) / "00003.jpg").write_bytes(b"")
    assert baselines(training, training, make_config())["linear_top1"] == 100


def test_one_class_gives_no_linear_model(tmp_path):
    training = bright_and_dark(tmp_path / "train", (4, 0))
    assert baselines(training, training, make_config()) == {"most_frequent_top1": 100.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    settings = make_settings(folder, baseline_clips=10, lr=1e-6, last_lr=0)
    return settings, write_config(folder / "config.json", settings)


def test_a_run_says_them_before_and_after(run, capfd):
    settings, config = run
    assert train.main(["-c", config, "-g", "cpu", "--set", "num_epochs=1"]) == 0
    output = capfd.readouterr().out
    before, after = output.split("epoch   1")
    assert "baselines, validation top-1: the most frequent class 42.9 %, a linear model" in before
    row = read_csv(run_folder(settings) / "history.csv")[0]
    best = max(float(row["val_most_frequent_top1"]), float(row["val_linear_top1"]))
    assert ("is below the" in after) == (float(row["val_top1"]) < best)


def test_a_resumed_run_keeps_them(run, monkeypatch, capfd):
    settings, config = run
    monkeypatch.setattr("scoring.baselines.baselines", lambda *_: 1 / 0)
    assert train.main(["-c", config, "-g", "cpu", "--resume", "auto"]) == 0
    rows = read_csv(run_folder(settings) / "history.csv")
    assert len(rows) == 2 and rows[0]["val_linear_top1"] == rows[1]["val_linear_top1"]


def test_a_warning_names_the_baseline_that_was_not_reached(tmp_path, capfd):
    """Labels that say which side is bright, and a network that cannot move."""
    rng = np.random.default_rng(0)
    settings = make_settings(tmp_path, baseline_clips=100, lr=1e-9, last_lr=0, num_epochs=1)
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


# --- clips that cannot be read -----------------------------------------------------------------

SKIP = {"on_bad_clip": "skip", "max_bad_share": 0.99}
CONTENTS = {"zero bytes": b"", "text": b"404 not found", "cut": None, "a folder": "folder"}


def damage(settings, numbers, content=b"", only_last=False):
    """Replace the frames of clips; 1 to 22 are for training, 23 to 29 for validation."""
    for number in numbers:
        frames = sorted(Path(settings["train_data_folder"], str(number)).iterdir())
        for frame in frames[-1:] if only_last else frames:
            data = frame.read_bytes()
            frame.unlink()
            if content == "folder":
                frame.mkdir()
            else:
                frame.write_bytes(data[: len(data) // 2] if content is None else content)


def error_of(settings, tmp_path, capfd, *flags) -> str:
    """The one message of a training that ends before anything is written."""
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-g", "cpu", *flags]) == 2
    output = capfd.readouterr()
    assert output.err.count("\n") == 1 and output.err.startswith("error: ")
    assert "Traceback" not in output.err and "epoch   1" not in output.out
    return output.err


@pytest.mark.parametrize("skip", [{}, SKIP], ids=["stop", "skip"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(content, id=name, marks=[pytest.mark.slow] * (name != "zero bytes"))
        for name, content in CONTENTS.items()
    ],
)
@pytest.mark.parametrize(
    ("name", "numbers"),
    [("train", range(1, 23)), ("validation", range(23, 30)), ("train", range(1, 30))],
)
def test_no_clip_of_a_set_can_be_read(tmp_path, capfd, content, name, numbers, skip):
    settings = make_settings(tmp_path, baseline_clips=100, **skip)
    damage(settings, numbers, content)
    error = error_of(settings, tmp_path, capfd)
    num_clips = {"train": 22, "validation": 7}[name]
    assert f"clips: none of the {num_clips} {name} clips can be read: " in error
    assert f"clips/{numbers[0]}/" in error and f"and {num_clips - 3} more" in error
    assert "correct the data folder" in error and not run_folder(settings).exists()


@pytest.mark.parametrize("skip", [{}, SKIP], ids=["stop", "skip"])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (range(2, 30), "epoch 1 has no step, since only one of 22 clips in"),
        (
            range(3, 30),
            "no train clip of 'Still' (7) can be read: ",
        ),  # one of each other class is left
        (
            [number for number in range(1, 23) if number % 3 != 1],
            "no train clip of 'Right' (7), 'Still' (7) can be read: ",
        ),
        ([24, 27], "no validation clip of 'Right' (2) can be read: "),
        ([29], "no validation clip of 'Still'"),
    ],
)
def test_a_class_that_cannot_be_read_is_named(tmp_path, capfd, numbers, message, skip):
    settings = make_settings(tmp_path, baseline_clips=100, **skip)
    if numbers == [29]:
        numbers = [number for number in range(23, 30) if (number - 23) % 3 == 2]
    damage(settings, numbers)
    assert message in error_of(settings, tmp_path, capfd)


def test_a_clip_that_would_stop_the_run_stops_it_before_the_first_step(tmp_path, capfd):
    settings = make_settings(tmp_path, baseline_clips=100)
    damage(settings, [23, 29])
    error = error_of(settings, tmp_path, capfd)
    assert "clips/23/" in error and "nor can 1 more of the 7 validation clips be read: 29" in error


def test_damage_that_the_epoch_does_not_read_stops_nothing(tmp_path, capfd):
    """The window in the middle of a long clip does not have its last frame."""
    settings = make_settings(tmp_path, baseline_clips=100, num_epochs=1, step_size=1)
    damage(settings, [23], only_last=True)
    assert train.main(["-c", write_config(tmp_path / "c.json", settings), "-g", "cpu"]) == 0
    assert "baselines, validation" in capfd.readouterr().out


@pytest.mark.parametrize("numbers", [range(1, 23), range(23, 30)])
def test_without_baselines_no_clip_at_all_is_noticed_early(tmp_path, capfd, numbers):
    settings = make_settings(tmp_path, baseline_clips=0)
    damage(settings, numbers)
    assert f"clips/{numbers[0]}/" in error_of(settings, tmp_path, capfd)
    assert not run_folder(settings).exists()  # it was before the first step


def test_a_class_that_vanishes_in_an_epoch_is_named(tmp_path, capfd):
    settings = make_settings(tmp_path, baseline_clips=0, **SKIP)
    damage(settings, [24, 27])
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-g", "cpu"]) == 2
    assert "no validation clip of 'Right' (2) can be read" in capfd.readouterr().err


def test_baselines_without_readable_clips_have_no_linear_model(tmp_path):
    training = bright_and_dark(tmp_path / "train", (5, 5))
    broken = bright_and_dark(tmp_path / "broken", (2, 3))
    for path in (tmp_path / "broken" / "clips").glob("*/*"):
        path.write_bytes(b"")
    assert baselines(training, broken, make_config()) == {"most_frequent_top1": 60.0}
    assert baselines(broken, training, make_config()) == {"most_frequent_top1": 50.0}

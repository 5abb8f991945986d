"""Benchmarks of the choice of a recipe: on each training set anew, and where classes are uneven."""

import json

import numpy as np
import pytest
from own_folders import OVERRIDES, write_class_folders

import train
from benchmarks import chosen, machine, uneven


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    return tmp_path


def options_of(root, tmp_path, *flags):
    return chosen.parse_arguments([str(root), "--output", str(tmp_path / "out"), *flags])


def test_each_group_is_left_out_once(tmp_path):
    root = write_class_folders(tmp_path / "clips", num_clips=3)
    options = options_of(root, tmp_path, "--folds", "--group", "^([a-z]+)_", "--seeds", "0", "1")
    sets = chosen.training_sets(options)
    assert [name for _, name, _, _ in sets] == [
        f"{person}-{seed}" for seed in (0, 1) for person in ("anna", "bo", "cy")
    ]
    for _, name, _, clips in sets:
        held_out = clips[clips["part"] == "validation"]
        assert set(held_out["group"]) == {name.partition("-")[0]} and len(held_out) == 3
        assert len(clips) == 9


def test_parts_of_the_training_clips_are_those_of_the_seed(tmp_path):
    names = [f"train/{name}" for name in "abc"]
    root = write_class_folders(tmp_path / "clips", num_clips=5, names=names)
    for name in "abc":
        (root / "val" / name).mkdir(parents=True)
        (root / "train" / name / "bo_4").rename(root / "val" / name / "bo_4")
    flags = ("--clips_per_class", "2", "3", "--seeds", "0", "1")
    sets = chosen.training_sets(options_of(root, tmp_path, *flags))
    drawn = {name: set(clips["id"][clips["part"] == "train"]) for _, name, _, clips in sets}
    assert [len(ids) for ids in drawn.values()] == [6, 6, 9, 9]
    assert drawn["2-0"] < drawn["3-0"] and drawn["2-0"] != drawn["2-1"]
    for *_, clips in sets:
        assert clips["id"][clips["part"] == "validation"].tolist() == [
            f"val/{name}/bo_4" for name in "abc"
        ]


@pytest.mark.slow
def test_a_recipe_is_chosen_for_each_training_set_once(results, tmp_path, capfd):
    root = write_class_folders(tmp_path / "clips", num_clips=4, people=("anna", "bo"))
    keys = OVERRIDES[1::2]
    flags = ["--folds", "--group", "^([a-z]+)_", "--output", str(tmp_path / "out")]
    arguments = [str(root), *flags, "--save", "x", "--set", *keys]
    assert chosen.main(arguments) == 0
    checkpoints = sorted(tmp_path.glob("out/runs/*/checkpoint.pth.tar"))
    times = [path.stat().st_mtime_ns for path in checkpoints]
    assert [path.parent.name for path in checkpoints] == ["anna-0", "bo-0"]
    assert chosen.main(arguments) == 0
    assert [path.stat().st_mtime_ns for path in checkpoints] == times
    text = (results / "x.md").read_text()
    assert "| each group left out once | 1 |" in text and "conv3d, window (2)" in text
    runs = json.loads((results / "x.json").read_text())["runs"]
    found = [(len(run["right"]), set(run["groups"].split("\n"))) for run in runs]
    assert found == [(6, {"anna"}), (6, {"bo"})]
    assert "95 % interval" in capfd.readouterr().out
    assert chosen.main([*arguments, "dropout=0.1"]) == 2
    assert "anna-0: is of other clips or keys; choose another --output" in capfd.readouterr().err


def test_classes_get_from_most_to_least_clips():
    labels = np.repeat(np.arange(4), 30)
    found = uneven.uneven_part(labels, 16, 2, np.random.default_rng(0))
    counts = np.bincount(labels[found])
    assert sorted(counts.tolist()) == [2, 4, 8, 16] and counts.tolist() != [16, 8, 4, 2]
    assert len(set(found.tolist())) == 30


@pytest.mark.slow
@pytest.mark.usefixtures("blank_pictures")
def test_ways_to_train_on_uneven_classes_are_compared(results, tmp_path, monkeypatch, capsys):
    root = write_class_folders(tmp_path / "clips", num_clips=8)
    flags = ["--check_data", "--set", f"output_dir={tmp_path / 'runs'}"]
    assert train.main(["--data", str(root), *flags]) == 0
    monkeypatch.setattr(uneven, "NUM_STEPS", 2)
    flags = ["--most", "6", "--least", "2", "--seeds", "0", "1", "--save", "x"]
    assert uneven.main(["-c", str(tmp_path / "runs/clips/config.json"), *flags]) == 0
    text = (results / "x.md").read_text()
    rows = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| ")][2:]
    ways = [way for _, way in rows]
    assert ways == [uneven.PLAIN, uneven.SAMPLING, uneven.WEIGHTS, uneven.PLAIN, uneven.SAMPLING]
    assert text in capsys.readouterr().out

"""Cross-validation with benchmarks/compare.py: the folds, what is trained, and the tables."""

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_config
from runs import make_settings, read_csv, write_config

import train
from benchmarks import compare, machine, tables
from benchmarks.folds import make_folds
from scoring.intervals import accuracy_interval, compare_on_same_clips
from scoring.results import read_logits
from system.errors import UserError

PEOPLE = ("ann", "bob", "eve")


@pytest.fixture
def config(tmp_path):
    """A config for 12 training and 6 validation clips of three people."""
    settings = make_settings(tmp_path, num_epochs=1, batch_size=12)
    clips, number = Path(settings["train_data_folder"]), 0
    for key, num_clips in (("train_data_csv", 12), ("val_data_csv", 6)):
        rows = Path(settings[key]).read_text().splitlines()[:num_clips]
        named = []
        for row in rows:
            clip_id, label = row.split(";")
            if not (clips / clip_id).exists():
                shutil.copytree(clips / "1", clips / clip_id)
            name = f"{PEOPLE[number // 3 % 3]}_{number}"
            (clips / clip_id).rename(clips / name)
            named.append(f"{name};{label}")
            number += 1
        Path(settings[key]).write_text("\n".join(named))
    return write_config(tmp_path / "config.json", settings)


def loaded(config, **changes):
    return make_config(**json.loads(Path(config).read_text()) | changes)


def sets_of(fold):
    """The ids of a fold's training and validation clips."""
    paths = dict(key.split("=", 1) for key in fold.keys)
    return [pd.read_csv(paths[key], dtype=str) for key in ("train_data_csv", "val_data_csv")]


def test_each_clip_is_validated_once_and_never_trained_on(config, tmp_path):
    folds, words = make_folds(loaded(config), "3", tmp_path)
    assert words == "3 folds of 18 clips" and [fold.name for fold in folds] == ["1", "2", "3"]
    validated = []
    for fold in folds:
        training, validation = sets_of(fold)
        assert not set(training["video_id"]) & set(validation["video_id"])
        assert len(training) + len(validation) == 18
        assert validation["label"].value_counts().tolist() == [2, 2, 2]  # stratified
        validated += validation["video_id"].tolist()
    assert len(set(validated)) == len(validated) == 18


@pytest.mark.parametrize(
    "number, words",
    [
        ("group", "one of 3 groups left out (ann, bob, eve) of 18 clips"),
        ("2", "2 folds, 3 groups kept together of 18 clips"),
    ],
)
def test_no_group_is_on_both_sides(config, tmp_path, number, words):
    folds, found = make_folds(loaded(config, group="^([a-z]+)_"), number, tmp_path)
    assert found == words
    for fold in folds:
        training, validation = (set(rows["video_id"].str[:3]) for rows in sets_of(fold))
        assert training | validation == set(PEOPLE) and not training & validation
        assert number != "group" or validation == {fold.name}


def test_groups_of_the_csvs_are_kept_together(config, tmp_path):
    for path in map(Path, (loaded(config).train_data_csv, loaded(config).val_data_csv)):
        rows = [row.split(";") for row in path.read_text().splitlines()]
        text = "\n".join(f"{name},{label},{name[:3]}" for name, label in rows)
        path.write_text(f"video_id,label,group\n{text}\n")
    for number in ("group", "2"):
        folds, words = make_folds(loaded(config), number, tmp_path)
        assert "3 groups" in words
        for fold in folds:
            training, validation = (set(rows["group"]) for rows in sets_of(fold))
            assert training | validation == set(PEOPLE) and not training & validation


def test_exact_duplicates_are_in_one_fold(config, tmp_path):
    settings, copies = loaded(config), ["ann_0", "bob_3", "eve_15"]
    clips = Path(settings.train_data_folder)
    for copy in copies[1:]:
        shutil.rmtree(clips / copy)
        shutil.copytree(clips / "ann_0", clips / copy)
    for frame in (clips / "bob_4").iterdir():  # a clip that cannot be read is no obstacle
        frame.unlink()
    folds, words = make_folds(settings, "3", tmp_path)
    assert words == "3 folds, 3 exact duplicates kept together, of 18 clips"
    for fold in folds:
        training, validation = sets_of(fold)
        assert set(training.columns) == {"video_id", "label"}
        assert training["video_id"].isin(copies).sum() in (0, 3)
        assert len(validation) >= 4


def test_other_clips_have_other_folders(config, tmp_path):
    first, _ = make_folds(loaded(config), "3", tmp_path)
    again, _ = make_folds(loaded(config), "3", tmp_path)
    other, _ = make_folds(loaded(config), "2", tmp_path)
    assert first == again and first[0].keys != other[0].keys


def test_a_class_that_a_fold_lacks_is_said(config, tmp_path, capsys):
    for path in map(Path, (loaded(config).train_data_csv, loaded(config).val_data_csv)):
        path.write_text(
            "\n".join(
                row
                for row in path.read_text().splitlines()
                if row.startswith("ann") or not row.endswith(";Left")
            )
        )
    make_folds(loaded(config, group="^([a-z]+)_"), "group", tmp_path)
    assert (
        "note: without fold ann no clip is left to train on of the class Left"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "number, changes, message",
    [
        ("group", {}, "--folds group: needs two groups or more"),
        ("group", {"group": "(_)"}, "--folds group: needs two groups or more"),
        ("7", {}, "--folds 7: there are clips, or groups, for 6 folds only"),
        ("3", {"val_data_folder": "elsewhere"}, "--folds: train_data_folder and val_data_folder"),
        ("3", {"val_data_csv": "train"}, "--folds: 12 clips are in both"),
    ],
)
def test_mistakes(config, tmp_path, number, changes, message):
    if changes.get("val_data_csv"):
        changes = {"val_data_csv": loaded(config).train_data_csv}
    with pytest.raises(UserError, match=message):
        make_folds(loaded(config, **changes), number, tmp_path)


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Trainings run in this process; the list of their flags and keys."""
    calls = []

    def run_train(config, keys, *flags):
        calls.append((flags[0], dict(key.split("=", 1) for key in keys)["model_name"]))
        sets = [f"--set={key}" for key in keys]
        assert train.main(["-c", config, "-g", "cpu", *flags, *sets]) == 0

    monkeypatch.setattr(compare, "run_train", run_train)
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    return calls


@pytest.mark.slow
def test_one_group_is_left_out_in_each_fold(config, tmp_path, calls, capsys):
    command = [
        "-c",
        config,
        "--output",
        str(tmp_path / "runs"),
        "--seeds",
        "0",
        "--folds",
        "group",
        "--group",
        "^([a-z]+)_",
        "--save",
        "test",
        "--variant",
        "plain",
    ]
    assert compare.main(command) == 0
    assert calls == [("--resume", f"plain-0-{name}") for name in PEOPLE]
    calls.clear()
    assert compare.main([*command, "--variant", "faster", "lr=0.02"]) == 0
    assert {name for _, name in calls} == {f"faster-0-{name}" for name in PEOPLE}

    saved = json.loads((tmp_path / "results" / "test.json").read_text())
    folders = [[Path(folder) for folder in row["runs"][0]["folders"]] for row in saved["rows"]]
    right = []
    for row, own in zip(saved["rows"], folders, strict=True):
        logits = [read_logits(folder / "logits.npz") for folder in own]
        right.append(np.concatenate([each.logits.argmax(1) == each.labels for each in logits]))
        assert row["top1"] == pytest.approx(100 * right[-1].mean()) and len(right[-1]) == 18
        assert row["interval_method"] == (
            "Clopper-Pearson at the effective number of clips, from 3 groups"
        )
        assert row["runs"][0]["folds"] == pytest.approx(
            [float(read_csv(folder / "history.csv")[-1]["val_top1"]) for folder in own]
        )
    groups = np.repeat(PEOPLE, 6)
    found = compare_on_same_clips(right[1], right[0], groups)
    (pair,) = saved["pairs"]
    assert (pair["first"], pair["second"], pair["p"]) == ("plain", "faster", None)
    assert pair["difference"] == pytest.approx(found.difference)
    assert (pair["low"], pair["method"]) == (None, "3 groups are too few")
    for row, own in zip(saved["rows"], right, strict=True):
        assert row["top1_interval"] == list(accuracy_interval(own, groups)[:2])
    text = (tmp_path / "results" / "test.md").read_text()
    assert "Cross-validation: one of 3 groups left out (ann, bob, eve) of 18 clips." in text
    assert "| faster against plain | " in text and "| 95 % interval |" in text
    assert "95 % intervals: 3 groups are too few." in text
    assert text in capsys.readouterr().out


# --- saved results -----------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """Results of two variants with three seeds each, of 40 clips of 8 people; without intervals."""
    groups = np.repeat([f"person {number}" for number in range(8)], 5)
    clips = tables.Tested(
        np.array([f"clip {number}" for number in range(40)]),
        groups,
        np.random.default_rng(0).choice([0, 1, np.nan], (3, 40)),
    )
    rows, clip_sets = [], []
    for name in ("first", "second"):
        rows.append(
            {
                "variant": name,
                "runs": [1, 2, 3],
                "top1": 50.0,
                "top1_range": [40.0, 60.0],
                "loss": 1.0,
                "train_top1": 70.0,
                "parameters": 1000,
                "gflop": 0.1,
                "kept_mib_a_clip": 1.0,
                "clips_per_second": 100.0,
            }
        )
        rows[-1] |= tables.packed(clips, clip_sets)
        clips.right = 1 - clips.right
    assert len(clip_sets) == 1
    contents = {
        "machine": "a machine",
        "versions": "python 3",
        "date": "today",
        "command": "c",
        "note": "",
        "folds": "",
        "baselines": {},
        "rows": rows,
        "clip_sets": clip_sets,
    }
    path = tmp_path / "saved.json"
    path.write_text(json.dumps(contents))
    return path, clips


def test_tables_are_printed_anew_from_saved_results(saved, capsys):
    path, clips = saved
    assert tables.main([str(path)]) == 0
    rows, (pair,) = (json.loads(path.read_text())[key] for key in ("rows", "pairs"))
    expected = [accuracy_interval(one, clips.groups) for one in (clips.right, 1 - clips.right)]
    assert [row["top1_interval"] for row in rows] == [list(each[:2]) for each in expected]
    found = compare_on_same_clips(1 - clips.right, clips.right, clips.groups)._asdict()
    assert pair == {"second": "second", "first": "first"} | found
    text = path.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    assert f"| 50.0 | {expected[0]} |" in text and f"95 % intervals: {found['method']}." in text
    assert tables.main([str(path)]) == 0 and path.with_suffix(".md").read_text() == text


def test_a_file_without_the_clips_results_keeps_its_intervals(saved, capsys):
    path, _ = saved
    contents = json.loads(path.read_text()) | {"pairs": []}
    for row, interval in zip(contents["rows"], (None, [45.0, 55.0]), strict=True):
        del row["right"]
        row |= {"top1_interval": interval, "interval_method": "none where clips lack"}
    path.write_text(json.dumps(contents))
    assert tables.main([str(path)]) == 0
    text = capsys.readouterr().out
    assert "| 50.0 | none |" in text and "| 50.0 | 45.0 to 55.0 |" in text
    assert "95 % intervals: none where clips lack." in text
    assert json.loads(path.read_text()) == contents


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": [{}]}'])
def test_a_file_of_another_kind_is_refused(tmp_path, capsys, text):
    path = tmp_path / "other.json"
    assert tables.main([str(path)]) == 2 and "cannot be read" in capsys.readouterr().err
    path.write_text(text)
    assert tables.main([str(path)]) == 2
    assert f"{path}: not a file that compare.py --save wrote" in capsys.readouterr().err
    assert path.read_text() == text


def test_what_is_finished_is_not_repeated_and_what_has_changed_is_refused(
    config, tmp_path, calls, capsys
):
    command = ["-c", config, "--output", str(tmp_path / "runs"), "--seeds", "0"]
    assert compare.main([*command, "--variant", "plain", "--variant", "other", "lr=0.02"]) == 0
    assert len(calls) == 2 and "McNemar's exact p" in capsys.readouterr().out
    folder = tmp_path / "runs" / "plain-0"
    best = ["-c", str(folder / "config.json"), "-g", "cpu", "-e", "--checkpoint", "best"]
    assert train.main(best) == 0  # as somebody may do: the table is of the last epoch all the same
    calls.clear()
    assert compare.main([*command, "--variant", "plain"]) == 0
    assert calls == [("--eval_only", "plain-0")]
    assert compare.main([*command, "--variant", "plain", "dropout=0.5"]) == 2
    assert f"{folder}: trained with another dropout" in capsys.readouterr().err
    assert compare.main([*command, "--variant", "plain", "num_workers=1"]) == 0
    assert len(calls) == 1
    validation, training = (
        Path(getattr(loaded(config), f"{prefix}_data_csv")) for prefix in ("val", "train")
    )
    validation.write_text("\n".join(validation.read_text().splitlines()[1:]))
    assert compare.main([*command, "--variant", "plain"]) == 0
    assert calls[1:] == [("--eval_only", "plain-0")]
    training.write_text("\n".join(training.read_text().splitlines()[1:]))
    assert compare.main([*command, "--variant", "plain"]) == 2
    assert f"{folder}: trained on other clips than {training} lists" in capsys.readouterr().err


def test_smaller_training_sets_are_parts_of_larger_ones(config, tmp_path, calls, capsys):
    command = [
        "-c",
        config,
        "--output",
        str(tmp_path / "runs"),
        "--seeds",
        "0",
        "1",
        "--save",
        "test",
        "--clips_per_class",
        "1",
        "3",
        "--set",
        "baseline_clips=50",
        "num_epochs=1",
        "--variant",
        "plain",
        "batch_size=4",
    ]
    assert compare.main(command) == 0
    sets = {}
    for number, seed in itertools.product((1, 3), (0, 1)):
        rows = read_csv(tmp_path / "runs" / f"train_{number}-{seed}.csv")
        sets[number, seed] = {row["video_id"]: row["label"] for row in rows}
        assert set(Counter(sets[number, seed].values()).values()) == {number}
    for seed in (0, 1):
        assert sets[1, seed].items() < sets[3, seed].items()
    assert sets[1, 0] != sets[1, 1] and sets[3, 0] != sets[3, 1]
    saved = json.loads((tmp_path / "results" / "test.json").read_text())
    assert "Training clips: drawn anew for each seed, " in tables.report(saved)
    for row, number in zip(saved["rows"], (1, 3), strict=True):
        for seed, each in enumerate(row["runs"]):
            used = json.loads((Path(each["folders"][0]) / "config.json").read_text())
            assert used["train_data_csv"] == str(tmp_path / "runs" / f"train_{number}-{seed}.csv")
    linear = "a linear model"
    scores = [
        float(read_csv(Path(each["folders"][0]) / "history.csv")[0]["val_linear_top1"])
        for each in saved["rows"][1]["runs"]
    ]
    assert saved["rows"][1]["baselines"][linear] == pytest.approx(sum(scores) / 2)
    assert [row["variant"] for row in saved["rows"]] == [
        "plain, 1 clips per class",
        "plain, 3 clips per class",
    ]
    output = capsys.readouterr().out
    assert f"| {linear}, % |" in output and "Baselines" not in output
    folder = tmp_path / "runs" / "plain, 3 clips per class-0"
    assert json.loads((folder / "config.json").read_text())["num_epochs"] == 1
    assert compare.main([*command, "--folds", "2"]) == 2
    assert "give one of the two" in capsys.readouterr().err
    command[command.index("3")] = "5"
    assert compare.main(command) == 2
    assert "--clips_per_class 5: " in (error := capsys.readouterr().err) and "has 4" in error


def test_variants_of_folds_have_the_same_clips(config, tmp_path, capsys):
    command = ["-c", config, "--output", str(tmp_path), "--folds", "2", "--variant", "one"]
    assert compare.main([*command, "val_data_csv=x.csv"]) == 2
    assert "--variant 'one': val_data_csv=x.csv: --folds has the same" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare.main([*command[:-3], "1", "--variant", "one"])
    assert "expected 2 or more, or group, found '1'" in capsys.readouterr().err

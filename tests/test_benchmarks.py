"""The benchmark runs, at a small size, and its table holds what it should."""

import json

import pytest

from benchmarks import benchmark, compare, machine

SMALL = ["clip_size=4", "crop_size=20", "block_widths=[4]", "head_widths=[8]"]


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    return tmp_path


def run(*arguments):
    return benchmark.main(["--device", "cpu", "--rounds", "1", *arguments])


def test_loader_step_and_evaluation(results, capsys):
    parts = ["loader", "step", "evaluation"]
    assert run("--parts", *parts, "--batch_size", "4", "--save", "test", "--set", *SMALL) == 0
    table = (results / "test.md").read_text()
    assert table.split("\n\n")[1] in capsys.readouterr().out
    saved = json.loads((results / "test.json").read_text())
    assert {"machine", "versions", "date", "rows"} == set(saved)
    assert [row["what"].split(",")[0] for row in saved["rows"]] == [
        "loader", "loader with optical flow (two_stream): µs a frame", "training step",
        "evaluation"]  # fmt: skip
    (with_flow,) = [saved["rows"].pop(1)]
    assert with_flow["ours"][0] > saved["rows"][0]["ours"][0]
    for row in saved["rows"]:
        assert row["what"] in table
        assert row["plain"][0] > 0 and row["ours"][0] > 0 and row["ratio"] > 0
    loader, training, evaluation = saved["rows"]
    assert loader["share_of_limit"] > 0
    assert "batch 4:" in training["what"] and "batch 8:" in evaluation["what"]


@pytest.mark.slow
def test_memory_of_a_worker_and_a_whole_epoch(results):
    assert run("--parts", "memory", "epoch", "--clips", "1000", "--epoch_clips", "12",
               "--batch_size", "4", "--num_workers", "1", "--save", "test") == 0  # fmt: skip
    saved = json.loads((results / "test.json").read_text())
    assert [row["what"].split(",")[0].split(" of ")[0] for row in saved["rows"]] == [
        "loader worker", "start to first batch request", "epoch", "Jester's 118", "epoch",
        "epoch"]  # fmt: skip
    assert all(row["ours"] >= 0 for row in saved["rows"])


def test_opposites_are_told_apart_by_the_direction(tmp_path):
    clips = [("Left", "Left"), ("Left", "Right"), ("Right", "Right"), ("Right", "Up"),
             ("Up", "Down"), ("Still", "Still")]  # fmt: skip
    rows = [f"{number},{label},{predicted}" for number, (label, predicted) in enumerate(clips)]
    path = tmp_path / "predictions.csv"
    path.write_text("\n".join(["id,label,predicted", *rows]))
    found = compare.opposites_told_apart(path, ["Left=Right", "Up=Down"])
    assert found == {"pair": 80.0, "direction": 50.0}


@pytest.mark.slow
def test_a_comparison_trains_what_is_new_and_writes_what_it_has(
        results, tmp_path, write_config, monkeypatch):
    common = ["-c", write_config(num_epochs=1), "--output", str(tmp_path / "runs"), "--seeds", "0",
              "1", "--opposites", "Left=Right", "--note", "a note", "--save", "test",
              "--variant", "plain"]  # fmt: skip
    assert compare.main(common) == 0
    assert compare.main([*common, "--variant", "one", "seed=3", "lr=0.01"]) == 0
    saved = json.loads((results / "test.json").read_text())
    assert [(row["variant"], [run["seed"] for run in row["runs"]]) for row in saved["rows"]] == [
        ("plain", [0, 1]), ("one", [3])]  # fmt: skip
    assert all(0 <= row["direction"] <= 100 for row in saved["rows"])
    table = (results / "test.md").read_text()
    assert "a note" in table and "| one | 1 | " in table and "| right pair, % |" in table

    # All is finished: read, not trained again; and what is there stays if the next one fails.
    flags = []
    monkeypatch.setattr(compare, "run_train", _noting(compare.run_train, flags))
    with pytest.raises(SystemExit, match="lr: found -1"):
        compare.main([*common, "--variant", "wrong", "lr=-1"])
    assert flags == [("--resume", "auto")] * 3
    assert "| plain | 2 | " in (results / "test.md").read_text()


def _noting(function, flags):
    def noting(config, keys, *own_flags):
        flags.append(own_flags)
        return function(config, keys, *own_flags)

    return noting

"""The benchmark runs, at a small size, and its table holds what it should."""

import json

import pytest

from benchmarks import benchmark, machine

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

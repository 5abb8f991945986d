"""The benchmark runs, at a small size, and its table holds what it should."""

import functools
import json

import pytest

from benchmarks import benchmark, step


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The tutorial's network is left out: seconds a step."""
    make_config = step.make_config

    def small_config(batch_size):
        return make_config(batch_size).model_copy(
            update={"clip_size": 4, "crop_size": 20, "block_widths": [4], "head_widths": [8]}
        )

    monkeypatch.setattr(step, "make_config", small_config)
    small_batch = functools.partial(step.make_batch, clip_shape=(4, 20, 20))
    monkeypatch.setattr(step, "make_batch", small_batch)
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    return tmp_path


def run(*arguments):
    return benchmark.main(["--device", "cpu", "--rounds", "1", *arguments])


def test_loader_step_and_evaluation(small, capsys):
    parts = ["loader", "step", "evaluation"]
    assert run("--parts", *parts, "--batch_size", "4", "--save", "test") == 0
    table = (small / "test.md").read_text()
    assert table.split("\n\n")[1] in capsys.readouterr().out
    saved = json.loads((small / "test.json").read_text())
    assert {"machine", "versions", "date", "rows"} == set(saved)
    assert [row["what"].split(",")[0] for row in saved["rows"]] == [
        "loader", "training step", "evaluation"]  # fmt: skip
    for row in saved["rows"]:
        assert row["what"] in table
        assert row["plain"][0] > 0 and row["ours"][0] > 0 and row["ratio"] > 0
    loader, training, evaluation = saved["rows"]
    assert 0 < loader["share_of_limit"] <= 1.5
    assert "batch 4:" in training["what"] and "batch 8:" in evaluation["what"]


@pytest.mark.slow
def test_memory_of_a_worker_and_a_whole_epoch(small):
    assert run("--parts", "memory", "epoch", "--clips", "1000", "--epoch_clips", "12",
               "--batch_size", "4", "--num_workers", "1", "--save", "test") == 0  # fmt: skip
    saved = json.loads((small / "test.json").read_text())
    assert [row["what"].split(",")[0].split(" of ")[0] for row in saved["rows"]] == [
        "loader worker", "start to first batch request", "epoch", "Jester's 118", "epoch",
        "epoch"]  # fmt: skip
    assert all(row["ours"] >= 0 for row in saved["rows"])

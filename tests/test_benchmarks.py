"""The benchmark runs, at a small size, and its table holds what it should."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import make_config
from torch import nn

from benchmarks import benchmark, compare, epoch, limit, machine, smoothing

CPU = torch.device("cpu")
SMALL = ["clip_size=4", "crop_size=20", "block_widths=[4]", "head_widths=[8]"]


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    return tmp_path


def run(*arguments):
    return benchmark.main(["--device", "cpu", "--rounds", "1", *arguments])


@pytest.mark.slow
def test_loader_step_and_evaluation(results, capsys, monkeypatch):
    monkeypatch.setattr(limit, "apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setitem(limit.SIDES, "cpu", (512,))
    parts = ["loader", "step", "evaluation"]
    assert run("--parts", *parts, "--batch_size", "4", "--save", "test", "--set", *SMALL) == 0
    table = (results / "test.md").read_text()
    assert table.split("\n\n")[1] in capsys.readouterr().out
    saved = json.loads((results / "test.json").read_text())
    assert {"machine", "versions", "date", "rows"} == set(saved)
    assert [row["what"].split(",")[0] for row in saved["rows"]] == [
        "loader", "loader with optical flow (two_stream): µs per frame", "training step",
        "evaluation"]  # fmt: skip
    (with_flow,) = [saved["rows"].pop(1)]
    assert with_flow["ours"][0] > saved["rows"][0]["ours"][0]
    for row in saved["rows"]:
        assert row["what"] in table
        assert row["plain"][0] > 0 and row["ours"][0] > 0 and row["ratio"] > 0
    loader, training, evaluation = saved["rows"]
    assert loader["share_of_limit"] > 0
    assert "batch 4:" in training["what"] and "batch 8:" in evaluation["what"]
    for row in (training, evaluation):
        assert "GFLOP per clip at" in row["what"] and 0 < row["share_of_limit"] < 1


def test_each_row_is_printed_and_saved_as_soon_as_it_is_known(results, monkeypatch, capsys):
    def rows(_device, _options, _folder):
        yield {"what": "first", "ours": 1.0}
        assert "| first |  | 1 |  |  |" in capsys.readouterr().out
        assert "| first |" in (results / "test.md").read_text()
        raise KeyError("the second")

    monkeypatch.setitem(benchmark.PARTS, "memory", rows)
    with pytest.raises(KeyError, match="the second"):
        run("--parts", "memory", "--save", "test")
    assert [row["what"] for row in json.loads((results / "test.json").read_text())["rows"]] == [
        "first"]  # fmt: skip


@pytest.mark.slow
def test_memory_of_a_worker_and_a_whole_epoch(results):
    assert run("--parts", "memory", "epoch", "--clips", "1000", "--epoch_clips", "12",
               "--batch_size", "4", "--num_workers", "1", "--save", "test",
               "--set", *SMALL) == 0  # fmt: skip
    saved = json.loads((results / "test.json").read_text())
    assert [row["what"].split(",")[0].split(" of ")[0] for row in saved["rows"]] == [
        "loader worker", "start to first batch request", "epoch", "Jester's 118", "epoch",
        "epoch"]  # fmt: skip
    assert all(row["ours"] >= 0 for row in saved["rows"])


@pytest.mark.slow
def test_an_epoch_can_be_cut_short(results):
    assert run("--parts", "epoch", "--epoch_clips", "20000", "--batch_size", "4", "--num_workers",
               "1", "--epoch_seconds", "1", "--save", "test", "--set", *SMALL) == 0  # fmt: skip
    rows = json.loads((results / "test.json").read_text())["rows"]
    assert len(rows) == 3 and all(row["ours"] >= 0 for row in rows)
    assert "of 5,000 steps" in rows[0]["what"] and rows[0]["ours"] > 1


def test_an_epoch_reads_its_metrics_rarely(tmp_path):
    options = SimpleNamespace(epoch_clips=400, batch_size=4, num_workers=0, overrides=["seed=3"])
    with mock.patch.object(epoch, "DRAWN_CLIPS", 1):
        keys = json.loads(Path(epoch.write_config(tmp_path, CPU, options)).read_text())
    assert keys["print_freq"] == epoch.STEPS_BETWEEN_LINES and keys["seed"] == 3


def test_a_gpu_has_a_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert machine.device_of("cuda") == torch.device("cuda", 2)


def test_what_a_process_raises_is_told():
    with pytest.raises(ValueError, match="invalid literal"):
        machine.in_turn_apart({"ours": (int, ("x",))}, 1, CPU)


# --- the limit -----------------------------------------------------------------------------------


def test_products_with_the_padding_are_no_work():
    """2 frames of 3 x 3 with a kernel of 2 x 3 x 3: of 3 frames, two meet one frame only."""
    conv = nn.Conv3d(2, 4, (2, 3, 3), padding=1, bias=False)
    with torch.no_grad(), limit.Work(is_fused=False) as work:
        conv.to("meta")(torch.empty(5, 2, 2, 3, 3, device="meta"))
    ones = torch.ones(1, 1, 2, 3, 3)
    pairs = nn.functional.conv3d(ones, torch.ones(1, 1, 2, 3, 3), padding=1).sum().int()
    assert work.operations == 2 * 5 * 4 * 2 * pairs


def test_bytes_are_those_that_operations_read_and_write():
    values = 5 * 2 * 4 * 6 * 6
    with torch.no_grad(), limit.Work(is_fused=False) as work:
        nn.LeakyReLU()(torch.empty(5, 2, 4, 6, 6, device="meta")).view(-1)
    assert sum(work.accesses) == 4 * 2 * values and work.operations == 0
    norm = nn.BatchNorm3d(2).to("meta")
    with torch.no_grad(), limit.Work(is_fused=False) as work:
        norm(torch.empty(5, 2, 4, 6, 6, device="meta"))
    assert sorted(work.accesses)[-3:] == [4 * values] * 3
    with torch.no_grad(), limit.Work(is_fused=True) as work:
        norm(torch.empty(5, 2, 4, 6, 6, device="meta"))
    assert work.accesses == []


def test_the_limit_is_the_slower_of_memory_and_products():
    config = make_config()
    work = limit.count(config, 100, 27, True, torch.bfloat16)
    megabytes = sum(work.accesses) / 100 / 1e6
    assert 330 < megabytes < 360  # per clip of the tutorial's network, counted by hand: 336
    # Three times the forward pass's 7.97 GFLOP, but for the gradient of the clips themselves.
    assert 2.9 * 7.97 < work.operations / 100 / 1e9 < 3 * 7.97
    assert sum(limit.count(config, 100, 27, False, torch.bfloat16).accesses) < 1e8 * megabytes / 4
    compiled = limit.count(make_config(compile=True), 100, 27, True, torch.bfloat16)
    assert sum(compiled.accesses) < sum(work.accesses) / 3
    fast = limit.Speed(operations=8e14, bandwidth=3e12, cache=0)
    highest, reason = limit.clips_per_second(work, 100, fast)
    assert highest == pytest.approx(3e12 / (megabytes * 1e6)) and "MB per clip at 3,000" in reason
    cached, _ = limit.clips_per_second(work, 100, fast._replace(cache=50_000_000))
    assert highest < cached < 1.5 * highest
    highest, reason = limit.clips_per_second(work, 100, limit.Speed(6e10, math.inf, 0))
    assert 2.4 < highest < 2.7 and "GFLOP per clip at 0.06" in reason


def test_the_limit_is_the_best_of_all_measurements(monkeypatch):
    measured = iter([limit.Speed(2.0, 5.0, 1), limit.Speed(3.0, 4.0, 1)])
    monkeypatch.setattr(limit, "apart", lambda *_: next(measured))
    monkeypatch.setattr(limit, "_speeds", {})
    assert limit.speed_of(CPU, "fp32") == limit.Speed(2.0, 5.0, 1)
    assert limit.speed_of(CPU, "fp32") == limit.Speed(3.0, 5.0, 1)


def test_opposites_are_told_apart_by_the_direction(tmp_path):
    clips = [("Left", "Left"), ("Left", "Right"), ("Right", "Right"), ("Right", "Up"),
             ("Up", "Down"), ("Still", "Still")]  # fmt: skip
    rows = [f"{number},{label},{predicted}" for number, (label, predicted) in enumerate(clips)]
    path = tmp_path / "predictions.csv"
    path.write_text("\n".join(["id,label,predicted", *rows]))
    found = compare.opposites_told_apart([path], ["Left=Right", "Up=Down"])
    assert found == {"pair": 80.0, "direction": 50.0}


@pytest.mark.slow
def test_a_comparison_trains_what_is_new_and_writes_what_it_has(
        results, tmp_path, write_config, monkeypatch, capsys):
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
    monkeypatch.setattr(compare, "run_train", lambda *call: flags.append(call))
    assert compare.main([*common, "--variant", "wrong", "lr=-1"]) == 2
    assert "lr: found -1" in capsys.readouterr().err and flags == []
    assert "| plain | 2 | " in (results / "test.md").read_text()


# --- smoothing ---------------------------------------------------------------------------------


def test_smoothing_takes_away_flashes():
    scores = np.full((24, 3), [0.0, 1.0, 0.0])
    scores[8] = [1.0, 0.0, 0.0]
    assert smoothing.verdicts(scores, 0, 0.8) == [1] * 8 + [0] + [1] * 15
    assert smoothing.count(smoothing.verdicts(scores, 0, 0.8), 1, {0}) == (True, 1)
    smooth = smoothing.verdicts(scores, 0.25, 0.8)
    assert smooth[8] is None and smoothing.count(smooth, 1, {0}) == (True, 0)
    assert smoothing.count([None, 0, 0, None, 0], 1, {0}) == (False, 2)


def test_smoothing_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(smoothing, "CLIPS_EACH", 6)
    arguments = ["--epochs", "1", "--gestures", "2", "--data", str(tmp_path / "mine")]
    assert smoothing.main(arguments) == 0
    table = capsys.readouterr().out.partition("2 gestures: ")[2]
    assert table.count("\n| ") == 1 + len(smoothing.SECONDS)
    assert (tmp_path / "mine" / "trainings" / "mine" / "report.html").exists()

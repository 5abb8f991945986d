"""Each section of the benchmark runs in a small size, and its report holds what it should."""

import json
import math
import os
import re
import string
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from browser import needs_chromium
from conftest import make_config
from torch import nn

import train
from benchmarks import (
    activations,
    benchmark,
    compare,
    drawn_mouths,
    epoch,
    first_verdict,
    frozen,
    limit,
    loader,
    machine,
    memory,
    packs,
    random_kernels,
    smoothing,
    teaching,
)
from networks import convolution_check
from system.config_file import load_config

CPU = torch.device("cpu")


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    return tmp_path


# --- small scripts -----------------------------------------------------------------------------


def test_kernels_that_tell_directions_are_counted(capsys):
    edge = torch.tensor([[-1.0, 0, 1]] * 3)
    layer = nn.Conv3d(3, 3, (2, 3, 3))
    for number, (first, second) in enumerate(((-1, 1), (1, 1), (1, 0.5))):
        kernel = torch.stack([first * edge, second * edge])
        layer.weight.data[number] = kernel
    assert sorted(random_kernels.opposite(nn.Sequential(layer))) == [False, False, True]
    random_kernels.compare(random_kernels.parse_arguments(["--networks", "100"]))
    counted = re.search(r"random: (\d+) of 300 kernels .* \((\d+\.\d) %\)", capsys.readouterr().out)
    assert 15 < int(counted[1]) < 60 and float(counted[2]) == round(int(counted[1]) / 3, 1)


# --- the sections ------------------------------------------------------------------------------


class InThisProcess:
    """Stands in for a pool of one process."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture
def measure(results, monkeypatch):
    """Measures a section in this process and in a small size; returns its results."""
    monkeypatch.setattr(machine, "start_process", InThisProcess)
    monkeypatch.setattr(machine, "_made", {})
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: None)
    monkeypatch.setitem(limit.SIDES, "cpu", (256,))
    monkeypatch.setattr(activations, "CASES", (("conv3d", (4, 20, 20)),))
    monkeypatch.setattr(loader, "NUM_CLIPS", 2)
    monkeypatch.setattr(epoch, "DRAWN_CLIPS", 2)
    monkeypatch.setattr(memory, "seconds_to_import_torch", lambda: 1.0)
    monkeypatch.setattr(subprocess, "run", run_in_this_process)
    for name, value in {
        "DRAWN_CLIPS": 3,
        "CLIPS_OF_JESTER": 300,
        "HOLE": 2**33,
        "READS": 20,
        "DROP_CACHES": results / "none",
    }.items():
        monkeypatch.setattr(packs, name, value)

    def measure(name, *arguments):
        benchmark.Report("test", {"machine": "this one"}).start(name)
        flags = ["--section", name, "--report", "test", "--device", "cpu", "--small"]
        assert benchmark.main([*flags, "--num_workers", "0", *arguments]) == 0
        return json.loads((results / "test.json").read_text())["sections"][name]["results"]

    return measure


def run_in_this_process(command, **options):
    """Stands in for `subprocess.run` where the command is one of ours."""
    if command[1:3] == ["-m", "benchmarks.memory"]:
        return memory.main(*command[3:])
    if command[1] == "train.py":
        return SimpleNamespace(returncode=train.main([*command[2:], "-g", "cpu"]), stderr="")
    return RUN(command, **options)


RUN = subprocess.run


def names_of(rows) -> list[str]:
    return [row["what"].split(":")[0] for row in rows]


def test_loader(measure):
    ours, with_flow = measure("loader")
    assert ours["plain"][0] > 0 and ours["ratio"] > 0 and ours["share of limit"] > 0
    assert with_flow["ours"][0] > ours["ours"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "section, what",
    [
        ("step", "training step, batch 4, fp32"),
        ("evaluation", "evaluation, batch 8, fp32"),
        ("compiled", "training step, batch 4, fp32"),
    ],
)
def test_steps(measure, section, what, results):
    row, *others = measure(section, "--set", "precision=fp32")
    assert row["what"].startswith(f"{what}: clips/s (limit: ")
    assert row["plain"][0] > 0 and row["ratio"] == row["ours"][0] / row["plain"][0]
    assert 0 < row["share of limit"] == row["ours"][0] / row["limit"] < 1
    assert names_of(others) == ([f"{what}"] if section == "compiled" else [])
    assert f"| {row['what']} | " in (results / "test.md").read_text()


@pytest.mark.slow
def test_each_precision_has_a_row(measure):
    rows = measure("step", "--precisions", "fp32", "bf16")
    assert [row["what"].split(":")[0][-4:] for row in rows] == ["fp32", "bf16"]


@pytest.mark.slow
def test_an_epoch(measure):
    rows = measure("epoch", "--set", "precision=fp32")
    assert set(names_of(rows)) == {
        "epoch of 12 clips, 0 workers",
        "Jester's 118,562 clips at that speed",
    }
    speed, _, waiting, peak = (row["ours"] for row in rows)
    assert speed > 0 and 0 < waiting < 100 and peak > 50


def test_memory_of_a_worker(measure):
    growth, start = measure("memory")
    # A worker may also give a few pages back.
    assert min(growth["plain"], growth["ours"]) > -1 and start["ratio"] > 0


@pytest.mark.slow
def test_convolutions(measure, monkeypatch):
    monkeypatch.setattr(convolution_check, "FLOP_ON_CPU", 1e8)
    checked = measure("checks", "--precisions", "bf16", "fp32")
    assert [row["what"] for row in checked] == ["bf16"] and checked[0]["convolutions"] == 5
    times = measure("convolutions", "--set", "precision=fp32")
    assert len(times) == 5 and all(row["weight gradient, ms"] > 0 for row in times)


@pytest.mark.slow
def test_packs(measure):
    rows = measure("packs")
    assert names_of(rows) == [
        "loader, one worker, warm",
        "reading alone, warm",
        "copying and deleting, warm",
        "packing a folder, warm",
        "packing a tar.gz file, warm",
        "opening 10,800 frames, warm",
        "opening 10,800 frames",
        "a forked worker that reads 20 of its clips",
    ]
    assert rows[1]["ratio"] > 0 and rows[5]["pack"] > 0


def test_memory_for_the_backward_pass(measure):
    (row,) = measure("activations")
    assert row["what"] == "conv3d, 4 x 20 x 20"
    assert 0 < row["with checkpoint_activations"] < row["MiB per clip"]


@needs_chromium
@pytest.mark.slow
def test_the_wait_for_a_verdict_is_measured(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(first_verdict, "SECONDS_BEFORE", (0,))
    assert first_verdict.main(["--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    network, verdict = map(float, re.findall(r"after ([\d.]+) s \(", shown))
    assert 0 < network < verdict


@pytest.mark.slow
def test_features_of_a_frozen_backbone(results, monkeypatch):
    monkeypatch.setattr(machine, "start_process", InThisProcess)
    monkeypatch.setattr(frozen, "NUM_CLIPS", 6)
    monkeypatch.setattr(frozen, "TIMED_CLIPS", 2)
    monkeypatch.setattr(frozen, "SMALL", 24)
    keys = {"batch_size": 4, "num_workers": 0, "crop_size": 32, "frame_height": 32, "num_epochs": 1}
    keys["backbone_layer"] = "blocks.1"  # a few layers, since compiling takes seconds for each
    monkeypatch.setattr(frozen, "KEYS", frozen.KEYS | keys)
    *ways, epochs = frozen.measure(CPU, SimpleNamespace(overrides=[], rounds=1), results)
    names = [row["what"] for row in ways]
    assert "32 pixels, channels last" in names[0] and "24 pixels, as in training" in names[-1]
    assert any("and compiled" in name for name in names)
    assert any("onnxruntime" in name for name in names)
    assert all(row["ratio"] > 0 for row in (*ways, epochs))


def test_outcomes_of_gpu_tests(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "PROJECT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text(
        "import pytest\npytestmark = pytest.mark.gpu\n"
        "def test_right(): pass\ndef test_wrong(): assert 0\n"
    )
    (tmp_path / "tests" / "test_none.py").write_text("raise ImportError")
    outcomes = {}
    with pytest.raises(RuntimeError, match=r"failures in test_one\.py"):
        for row in benchmark.run_gpu_tests(CPU, None, tmp_path):
            outcomes[row["what"]] = row["outcome"]
    assert outcomes == {"test_one.py: test_right": "passed", "test_one.py: test_wrong": "failure"}


# --- the command -------------------------------------------------------------------------------

STAND_IN = """
import json, subprocess, sys, time
from pathlib import Path
name, report = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--section", "--report"))
path = Path(report + ".json")
contents = json.loads(path.read_text())
results = contents["sections"][name]["results"]
results.append({"what": name, "figure": 1})
with open("CALLS", "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
if name == "epoch":
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    results.append({"what": "sleeper", "figure": sleeper.pid})
path.write_text(json.dumps(contents))
if name == "step":
    raise SystemError("the driver is gone")
if name == "epoch":
    time.sleep(600)
"""


@pytest.fixture
def run(results, monkeypatch):
    """Runs the command, with a stand-in for its sections; returns its status and the sections."""
    path = results / "stand_in.py"
    path.write_text(STAND_IN.replace("CALLS", str(results / "calls")))
    monkeypatch.setattr(benchmark, "COMMAND", [sys.executable, str(path)])
    # Long enough for the stand-in to start.
    short = benchmark.SECTIONS["epoch"]._replace(seconds=20)
    monkeypatch.setitem(benchmark.SECTIONS, "epoch", short)

    def run(*arguments):
        name = str(results / "test")
        status = benchmark.main(["--device", "cpu", "--save", name, *arguments])
        return status, json.loads((results / "test.json").read_text())["sections"]

    return run


@pytest.mark.slow
def test_a_section_that_fails_or_hangs_leaves_the_others(run, results, capsys):
    status, saved = run("--sections", "checks", "step", "epoch", "tests", "loader")
    assert status == 1 and {name: section["status"] for name, section in saved.items()} == {
        "checks": "done",
        "step": "failed",
        "epoch": "cut off after 20 s",
        "tests": benchmark.NEEDS_GPU,
        "loader": "done",
    }
    assert "SystemError: the driver is gone" in saved["step"]["error"]
    assert [len(section["results"]) for section in saved.values()] == [1, 1, 2, 0, 1]
    assert not is_running(saved["epoch"]["results"][1]["figure"])
    text = (results / "test.md").read_text()
    assert "## A training step\n\n`step`: failed, " in text and "the driver is gone" in text
    assert "| epoch | 1 |" in text and text in capsys.readouterr().out


def test_what_is_done_is_not_repeated(run, results):
    assert run("--sections", "loader", "tests", "--set", "precision=fp32")[0] == 0
    status, saved = run("--sections", "loader", "checks", "--minutes", "0")
    assert status == 1 and saved["checks"]["status"].startswith("left out: no time is left")
    status, saved = run("--sections", "loader", "checks")
    assert status == 0 and len(saved["loader"]["results"]) == 1 == len(saved["checks"]["results"])
    calls = map(json.loads, (results / "calls").read_text().splitlines())
    first, second = map(benchmark.parse_arguments, calls)  # as a section's process does
    assert (first.section, second.section) == ("loader", "checks")
    assert first.overrides == ["precision=fp32"] and first.report == str(results / "test")


def is_running(pid) -> bool:
    for _ in range(600):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:  # it has ended
            return False
        if stat.rpartition(")")[2].split()[0] == "Z":
            return False
        time.sleep(0.1)
    return True


def test_figures_have_three_digits():
    assert list(map(benchmark.format_figure, [None, 3, [1.0, 2.0, 9.0], 0.01234, 2381.4])) == [
        "",
        "3",
        "2",
        "0.0123",
        "2,381",
    ]


def test_a_gpu_has_a_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert machine.device_of("cuda") == torch.device("cuda", 2)


@pytest.mark.slow
def test_a_process_tells_what_it_raises_and_shares_no_settings():
    with (
        pytest.raises(ValueError, match="invalid literal"),
        machine.Subprocesses({"ours": (int, ("x",))}, CPU),
    ):
        pass
    assert machine.in_subprocess(os.getpid) != os.getpid()


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


# --- comparisons -------------------------------------------------------------------------------


def test_opposites_are_told_apart_by_the_direction(tmp_path):
    clips = [
        ("Left", "Left"),
        ("Left", "Right"),
        ("Right", "Right"),
        ("Right", "Up"),
        ("Up", "Down"),
        ("Still", "Still"),
    ]
    rows = [f"{number},{label},{predicted}" for number, (label, predicted) in enumerate(clips)]
    path = tmp_path / "predictions.csv"
    path.write_text("\n".join(["id,label,predicted", *rows]))
    found = compare.opposites_told_apart([path], ["Left=Right", "Up=Down"])
    assert found == {"pair": 80.0, "direction": 50.0}


def test_a_comparison_trains_what_is_new_and_writes_what_it_has(
    results, tmp_path, write_config, monkeypatch, capsys
):
    monkeypatch.setattr(subprocess, "run", run_in_this_process)
    common = [
        "-c",
        write_config(num_epochs=1),
        "--output",
        str(tmp_path / "runs"),
        "--seeds",
        "0",
        "1",
        "--opposites",
        "Left=Right",
        "--note",
        "a note",
        "--save",
        "test",
        "--variant",
        "plain",
    ]
    assert compare.main(common) == 0
    assert compare.main([*common, "--variant", "one", "seed=3", "lr=0.01"]) == 0
    saved = json.loads((results / "test.json").read_text())
    assert [(row["variant"], [run["seed"] for run in row["runs"]]) for row in saved["rows"]] == [
        ("plain", [0, 1]),
        ("one", [3]),
    ]
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


@pytest.mark.slow
def test_drawn_mouths_are_the_same_letters_by_other_people(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn_mouths, "SETS", {"train": (2, 2), "val": (1, 1)})
    num_clips = 26 * (2 * 2 + 1)
    assert drawn_mouths.draw_set(tmp_path / "one") == num_clips
    drawn_mouths.draw_set(tmp_path / "two")
    one, two = (sorted((tmp_path / name).glob("*/*/*/*.jpg")) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    clips = {path.parent for path in one}
    assert len(clips) == num_clips
    assert {clip.parent.name for clip in clips if "val" in clip.parts} == {*string.ascii_uppercase}
    lengths = [len([*clip.iterdir()]) for clip in clips]
    assert 18 <= min(lengths) < max(lengths) <= 28
    assert cv2.imread(str(one[0])).shape == (64, 64, 3)


def test_smoothing_takes_away_flashes():
    scores = np.full((24, 3), [0.0, 1.0, 0.0])
    scores[8] = [1.0, 0.0, 0.0]
    assert smoothing.verdicts(scores, 0, 0.8) == [1] * 8 + [0] + [1] * 15
    assert smoothing.count(smoothing.verdicts(scores, 0, 0.8), 1, {0}) == (True, 1)
    smooth = smoothing.verdicts(scores, 0.25, 0.8)
    assert smooth[8] is None and smoothing.count(smooth, 1, {0}) == (True, 0)
    assert smoothing.count([None, 0, 0, None, 0], 1, {0}) == (False, 2)


@pytest.mark.slow
def test_smoothing_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(smoothing, "CLIPS_EACH", 6)
    arguments = ["--epochs", "1", "--gestures", "2", "--seeds", "0", "3"]
    assert smoothing.main([*arguments, "--data", str(tmp_path / "mine")]) == 0
    table = capsys.readouterr().out.partition("4 gestures: ")[2]
    assert table.count("\n| ") == 1 + len(smoothing.SECONDS)
    assert (tmp_path / "mine" / "trainings" / "mine" / "report.html").exists()


# --- teaching ----------------------------------------------------------------------------------


def test_networks_for_the_page_are_measured_once_and_saved(results, monkeypatch, capsys):
    monkeypatch.setattr(teaching, "drawn_clips", lambda pair, seed, options: ([], [None] * 40))
    monkeypatch.setattr(teaching, "write_clips", lambda folder, clips: None)
    measured = []

    def trained_and_tested(training, changes, unseen, seed):
        measured.append((changes, seed))
        return {
            "clips": 40,
            "right": 40 - seed,
            "right_verdicts": 30,
            "wrong_verdicts": seed,
            "seconds": 2.0,
        }

    monkeypatch.setattr(teaching, "trained_and_tested", trained_and_tested)
    flags = [
        "--pairs",
        "a,b",
        "--seeds",
        "0",
        "--networks",
        "conv3d",
        "kernel_ridge, without the clip's mean map",
        "--save",
        "x",
    ]
    assert teaching.main(flags) == 0
    assert teaching.main([*flags, "--seeds", "0", "1"]) == 0
    assert [seed for _, seed in measured] == [0, 0, 1, 1]
    text = (results / "x.md").read_text()
    assert "| conv3d | 40, 39 | 79 of 80 (93 to 100 %) | 60 | 1 | 2.0 |" in text
    assert text in capsys.readouterr().out


def test_what_the_page_would_train_is_a_config_of_the_network(tmp_path, monkeypatch):
    clips = [(name, [np.full((24, 32, 3), 9 * k, np.uint8)] * 9) for k in range(5) for name in "ab"]
    training = teaching.write_clips(tmp_path / "mine", clips)
    for changes in teaching.NETWORKS.values():
        teaching.write_config(training, changes, seed=3)
        config = load_config(training.config_path)
        assert config.model_dump().items() >= changes.items() and config.seed == 3
        assert config.num_epochs == (1 if changes.get("model") == "kernel_ridge" else 30)

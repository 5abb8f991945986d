"""Waiting for data is measured and said; `--profile` writes a trace and a table."""

import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_config
from runs import PROJECT, make_settings, run_folder, write_config

import train
from callbacks import Progress
from clips.annotations import Annotations
from clips.folders import PlainFolder
from config import Config
from data_loader import build_loader
from system import processes
from system.profiling import StepProfile, WaitingTime, waiting_hint

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when it is told to; a list of its one reading."""
    reading = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: reading[0])
    return reading


def slow_batches(num_batches, clock):
    for batch in range(num_batches):
        clock[0] += 2
        yield batch


def test_only_the_time_before_a_batch_comes_is_waiting(clock):
    waiting = WaitingTime(CPU)
    waiting.begin()
    for _ in slow_batches(5, clock):
        waiting.end()
        clock[0] += 3
        waiting.begin()
    assert clock[0] == 25
    assert waiting.seconds == 10


def test_the_hint_names_what_to_change_and_is_given_once(capsys, monkeypatch, clock):
    monkeypatch.setattr(processes, "available_cores", lambda: 8)
    few, many = make_config(num_workers=2), make_config(num_workers=8, frame_height=100)
    assert "frame_height (100)" in waiting_hint(0.5, 100, make_config())  # as many as there are
    assert "raise num_workers (2; 8 cores" in waiting_hint(0.5, 100, few)
    assert "50 % of the time" in waiting_hint(0.5, 100, few)
    assert "frame_height (100)" in waiting_hint(0.5, 100, many)
    assert waiting_hint(0.19, 100, few) is None
    assert waiting_hint(0.5, 5, few) is None  # that was the workers' start

    progress = Progress()
    for epoch in range(2):
        state = SimpleNamespace(epoch=epoch, step=0)
        run = SimpleNamespace(config=few, device=CPU, state=state)
        progress.on_epoch_start(run, range(25))
        for batch in slow_batches(25, clock):
            progress.on_batch(run, batch)
            state.step += 1
            progress.waiting.begin()
        assert progress._waiting_fraction(clock[0]) == 1  # of this epoch: steps take no time here
        progress.on_validation_start(run)
    assert capsys.readouterr().out.count("raise num_workers") == 1


# --- cores -------------------------------------------------------------------------------------


@pytest.fixture
def cores(monkeypatch, tmp_path):
    """Sets which cores the process may run on, and its container's limit."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def set_cores(number, limit="max 100000"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(number)), raising=False)
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
        monkeypatch.setattr(processes, "CPU_QUOTA", tmp_path / "cpu.max")

    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # the machine's, which says nothing
    return set_cores


def test_cores_are_those_that_the_process_may_use(cores, monkeypatch):
    cores(12)
    assert processes.cores_per_process() == processes.loader_workers(None) == 12
    cores(12, limit="250000 100000")
    assert processes.available_cores() == 2
    cores(12, limit="50000 100000")
    assert processes.available_cores() == 1
    cores(64)
    assert processes.loader_workers(None) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # of this machine; WORLD_SIZE counts all of them
    monkeypatch.setenv("WORLD_SIZE", "32")
    assert processes.cores_per_process() == processes.loader_workers(None) == 8
    cores(4)
    assert processes.cores_per_process() == processes.loader_workers(None) == 1


def test_more_workers_than_cores_are_lowered_and_reported(cores, capsys):
    cores(2)
    assert [processes.loader_workers(number) for number in (0, 1, 2, 9, 9)] == [0, 1, 2, 2, 2]
    assert capsys.readouterr().out == ""
    for number in (None, 0, 2, 9):
        processes.report_workers(number)
    assert capsys.readouterr().out == (
        "num_workers: 9 in the config, 2 started: one per core for each process\n"
    )


def test_the_launcher_shares_the_cores(cores, monkeypatch):
    cores(6)
    monkeypatch.setattr(processes, "elastic_launch", lambda *_: lambda *_: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    processes.launch("train.py", [], None, num_processes=2)
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("name", ["config.json", "quickstart.json"])
def test_shipped_configs_start_on_two_cores_without_a_warning(name, cores, recwarn):
    cores(2)
    keys = json.loads((PROJECT / "configs" / name).read_text())
    config = Config(**{key: value for key, value in keys.items() if key != "$schema"})
    clips = Annotations(
        np.array(["1"] * 600), np.zeros(600, int), PlainFolder(""), 0, ("Left", "Right")
    )
    for training in (True, False):
        assert build_loader(clips, config, training, CPU).num_workers == 2
    assert [str(warning.message) for warning in recwarn] == []


# --- progress and profile ----------------------------------------------------------------------


def test_the_progress_line_says_how_much_was_waiting(tmp_path, capsys):
    settings = make_settings(tmp_path, print_freq=1, num_epochs=1)
    assert train.main(["-c", write_config(tmp_path / "config.json", settings), "-g", "cpu"]) == 0
    lines = [line for line in capsys.readouterr().out.split("\n") if "  step " in line]
    assert len(lines) == 3
    assert all("% waiting for data" in line for line in lines)


@pytest.mark.parametrize(
    "num_epochs, expected", [(1, 0), (2, 3), pytest.param(4, 8, marks=pytest.mark.slow)]
)
def test_profile_writes_a_trace_and_a_table_and_trains_on(tmp_path, capsys, num_epochs, expected):
    """Three steps of warm-up, then up to eight of one epoch; here it has three or eleven."""
    batch_size = 2 if expected == 8 else 8
    settings = make_settings(
        tmp_path,
        num_epochs=num_epochs,
        batch_size=batch_size,
        model_name="tiny" if expected else "short",
    )
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-g", "cpu", "--profile"]) == 0
    output = capsys.readouterr().out
    assert f"{num_epochs} epochs are done" in output
    trace = run_folder(settings) / "profile" / "process_0.pt.trace.json"
    assert trace.exists() == bool(expected)
    if not expected:
        return
    events = json.loads(trace.read_text())["traceEvents"]
    sections = ["copy", "normalise", "forward", "backward", "optimizer", "wait for data"]
    for name in sections:
        count = sum(
            event.get("name") == name and event.get("cat") == "user_annotation" for event in events
        )
        assert count == expected, name
    table = output[output.index(f"mean of {expected} steps") :].split("\n")
    assert [line[:20].strip() for line in table[1:9]] == [*sections, "other", "whole step"]
    milliseconds = [float(line[20:].split()[0]) for line in table[1:9]]
    assert min(milliseconds[:-2]) > 0 and milliseconds[-2] >= 0
    assert sum(milliseconds[:-1]) == pytest.approx(milliseconds[-1], abs=0.1)


def test_a_profile_without_a_folder_costs_and_writes_nothing():
    profile = StepProfile()
    for _ in range(20):
        profile.wait()
        profile.batch_arrived()
        with profile.section("forward"):
            pass
    profile.close()
    assert profile.profiler is None and profile.sections == {}

"""Waiting for data is measured and said; `--profile` writes a trace and a table."""

import json
import os
import time

import pytest
import torch
from conftest import make_config
from runs import make_settings, run_folder, write_config

import train
from callbacks import Progress
from profiling import StepProfile, WaitingTime, waiting_hint

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
    for _ in waiting.over(slow_batches(5, clock)):
        clock[0] += 3
    assert clock[0] == 25
    assert waiting.seconds == 10


def test_the_hint_names_what_to_change_and_is_given_once(capsys, monkeypatch, clock):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    few, many = make_config(num_workers=2), make_config(num_workers=8, frame_height=100)
    assert "raise num_workers (2; 8 cores" in waiting_hint(0.5, 100, few)
    assert "50 % of the time" in waiting_hint(0.5, 100, few)
    assert "frame_height (100)" in waiting_hint(0.5, 100, many)
    assert waiting_hint(0.19, 100, few) is None
    assert waiting_hint(0.5, 5, few) is None  # that was the workers' start

    monkeypatch.setattr(Progress, "_has_hinted", False)
    for epoch in range(2):
        progress = Progress(epoch, 0, 25, few, CPU)
        for step, _ in enumerate(progress.over(slow_batches(25, clock)), 1):
            progress.step = step
        progress.close()
    assert capsys.readouterr().out.count("raise num_workers") == 1


def test_the_progress_line_says_how_much_was_waiting(tmp_path, capsys):
    settings = make_settings(tmp_path, print_freq=1, num_epochs=1)
    assert train.main(["-c", write_config(tmp_path / "config.json", settings), "-g", "cpu"]) == 0
    lines = [line for line in capsys.readouterr().out.split("\n") if "  step " in line]
    assert len(lines) == 3
    assert all("% waiting for data" in line for line in lines)


@pytest.mark.parametrize("num_epochs, expected", [(1, 0), (2, 3), (4, 8)])
def test_profile_writes_a_trace_and_a_table_and_trains_on(tmp_path, capsys, num_epochs, expected):
    """Three steps of warm-up, then up to eight of one epoch; here it has three or eleven."""
    batch_size = 2 if expected == 8 else 8
    settings = make_settings(tmp_path, num_epochs=num_epochs, batch_size=batch_size,
                             model_name="tiny" if expected else "short")  # fmt: skip
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-g", "cpu", "--profile"]) == 0
    output = capsys.readouterr().out
    assert f"{num_epochs} epochs are done" in output
    trace = run_folder(settings) / "profile" / "process_0.pt.trace.json"
    assert trace.exists() == bool(expected)
    if not expected:
        return
    events = json.loads(trace.read_text())["traceEvents"]
    sections = ["wait for data", "copy", "forward", "backward", "optimizer"]
    for name in sections:
        count = sum(event.get("name") == name and event.get("cat") == "user_annotation"
                    for event in events)  # fmt: skip
        assert count == expected + (name == "wait for data" and expected == 3), name
    table = output[output.index(f"mean of {expected} steps"):].split("\n")
    assert [line[:20].strip() for line in table[1:8]] == [*sections, "other", "whole step"]
    milliseconds = [float(line[20:].split()[0]) for line in table[1:8]]
    assert sum(milliseconds[:-1]) == pytest.approx(milliseconds[-1], abs=0.1)


def test_a_profile_without_a_folder_costs_and_writes_nothing():
    profile = StepProfile()
    for _ in profile.over(range(20)):
        with profile.section("forward"):
            pass
    assert profile.seconds == {}

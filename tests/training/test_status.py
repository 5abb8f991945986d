"""`status.json`: each moment of a run has its state, and how it ended."""

import json
import os
from datetime import datetime

import pytest
from runs import PowerCut, make_settings, power_cut, run_folder, train_until, write_config

import train
from training import status
from training.run_folder import STATUS_FILE
from training.status import read_status

pytestmark = pytest.mark.usefixtures("blank_pictures")


@pytest.fixture
def written(monkeypatch):
    """The states in the order in which they are written, with epochs, steps and messages."""
    found = []
    write = status.write_text

    def record(path, text):
        write(path, text)
        values = json.loads(text)
        found.append((values["state"], values["epoch"], values["step"], values["message"]))

    monkeypatch.setattr(status, "write_text", record)
    monkeypatch.setattr(status.StatusFile, "SECONDS_BETWEEN_UPDATES", 0.0)
    return found


def test_each_moment_is_written(tmp_path, written):
    settings = make_settings(tmp_path, num_epochs=1)
    assert train.main(["-c", write_config(tmp_path / "config.json", settings), "-g", "cpu"]) == 0
    assert written == [
        ("starting", 0, 0, ""),
        ("training", 0, 0, ""),
        ("training", 0, 1, ""),
        ("training", 0, 2, ""),
        ("training", 0, 3, ""),
        ("validating", 0, 3, ""),
        ("training", 1, 0, ""),
        ("done", 1, 0, "1 epochs are done"),
    ]
    found = read_status(run_folder(settings))
    assert (found.process_id, found.num_steps, found.num_epochs) == (os.getpid(), 3, 1)
    assert found.scores["epoch"] == 1 and 0 <= found.scores["val_top1"] <= 100
    assert abs(datetime.fromisoformat(found.time).timestamp() - datetime.now().timestamp()) < 600
    assert not list(run_folder(settings).glob("*.partial"))


def test_a_failure_is_written_with_its_message(tmp_path, written):
    settings = make_settings(tmp_path, num_epochs=2, lr=1e6, precision="fp32")
    assert train.main(["-c", write_config(tmp_path / "config.json", settings), "-g", "cpu"]) == 2
    state, epoch, _, message = written[-1]
    assert (state, epoch) == ("failed", 0) and "lower lr" in message, written


def test_a_signal_is_written(tmp_path, monkeypatch):
    settings = make_settings(tmp_path, num_epochs=2)
    config = write_config(tmp_path / "config.json", settings)
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="with 143"):
        train_until(
            ["-c", config, "-g", "cpu"],
            1,
            1,
            lambda: patch.setattr(train.stopping, "requested", lambda: 15),
        )
    found = read_status(run_folder(settings))
    assert (found.state, found.message, found.epoch, found.step) == ("stopped", "SIGTERM", 1, 2)
    assert train.main(["-c", config, "-g", "cpu", "--resume"]) == 0
    assert read_status(run_folder(settings)).state == "done"


def test_a_bug_is_written(tmp_path):
    settings = make_settings(tmp_path, num_epochs=1)
    config = write_config(tmp_path / "config.json", settings)
    train_until(["-c", config, "-g", "cpu"], 0, 1, power_cut)
    found = read_status(run_folder(settings))
    assert found.state == "failed" and PowerCut.__name__ in found.message


@pytest.mark.parametrize("content", [None, "", "{", '{"state": "asleep"}', "[]"])
def test_a_status_that_cannot_be_read_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / STATUS_FILE).write_text(content)
    assert read_status(tmp_path) is None


def test_a_message_may_name_a_path_of_any_bytes(tmp_path):
    """Otherwise the error that ends the run would be hidden by that of its status."""
    status.write_status(tmp_path, "failed", message="clips/\udcff: cannot be read")
    assert read_status(tmp_path).message == "clips/\\udcff: cannot be read"

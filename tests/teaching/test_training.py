"""Trainings that the page starts, stops and finds again. `train.py` is a small script here."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from teach_page import jpegs

from system.config_file import load_config
from system.errors import UserError
from teaching import starter
from teaching import training as training_module
from teaching.data_set import DataSet
from teaching.training import MAX_EPOCHS, Training
from training.run_folder import STATUS_FILE
from training.status import read_status, write_status

# Writes its arguments and a history, then does what `mode` says.
SCRIPT = """
if __name__ == "__main__":
    import json, os, signal, sys, time
    from pathlib import Path
    mode_file = Path(__file__).with_name("mode")
    while mode_file.read_text() in ("", "say nothing"):
        time.sleep(0.02)
    mode = mode_file.read_text()
    config = json.loads(Path(sys.argv[2]).read_text())
    folder = Path(config["output_dir"], config["model_name"])
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("arguments.json").write_text(json.dumps(sys.argv[1:]))
    folder.joinpath("history.csv").write_text("epoch,seconds,top1,val_top1,loss\\n1,0.5,50.0,nan,2\\n")
    def write_status(state, message="", **steps):
        status = {"state": state, "message": message, "process_id": os.getpid(), "time": "now"}
        status |= steps
        folder.joinpath("status.json").write_text(json.dumps(status))
    def stop(*_):
        folder.joinpath("checkpoint.pth.tar").touch()
        write_status("stopped", "SIGTERM")
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    if mode == "features":
        write_status("computing features", step=6, num_steps=24)
        print("epoch 1")
        while True:
            time.sleep(0.02)
    if mode == "fail early":
        sys.exit("error: labels_csv: it is wrong\\n  in two lines")
    write_status("training")
    print("epoch 1")
    while mode == "wait":
        time.sleep(0.02)
    if mode == "fail":
        write_status("failed", "the disk is full")
        sys.exit(2)
    folder.joinpath("checkpoint.pth.tar").touch()
    folder.joinpath("report.html").touch()
    write_status("done")
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the script; returns a function that says what it is to do."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "train.py").write_text(SCRIPT)
    monkeypatch.setattr(training_module, "PROJECT", tmp_path / "project")
    monkeypatch.setattr(starter, "MODULES", ("train",))
    return (tmp_path / "project" / "mode").write_text


@pytest.fixture
def make_training(tmp_path, project):
    data = DataSet(tmp_path / "mine")
    made = []

    def make():
        made.append(Training(data, "cpu", "cpu"))
        return made[-1]

    yield make
    for training in made:
        training.close()
    data.close()


@pytest.fixture
def training(make_training):
    training = make_training()
    for name in ("wave", "nothing"):
        for _ in range(5):
            training.data_set.add(name, jpegs(range(0, 180, 10), 120, 160))
    return training


def until(training, condition) -> dict:
    end = time.monotonic() + 120
    while not condition(found := training.progress()):
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def has_begun(found):
    return "epoch 1" in found["log"]


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_training_runs_to_its_end(training, project, is_prepared):
    assert training.progress()["state"] == "none"
    project("end")
    if is_prepared:
        training.prepare()
        training.prepare()  # a page was opened again
        number = training.starter.process.pid
    training.start(is_resumed=False)
    assert not is_prepared or training.process.pid == number
    found = until(training, lambda found: found["state"] != "running")
    assert found["state"] == "done" and found["has_report"] and found["has_network"]
    assert not found["can_resume"] and found["log"] == "epoch 1\n"
    # JSON has no NaN
    assert found["history"] == [{"epoch": 1, "seconds": 0.5, "top1": 50, "val_top1": None}]
    assert found["num_epochs"] == MAX_EPOCHS
    arguments = json.loads((training.current_run / "arguments.json").read_text())
    config = str(training.snapshot / "config.json")
    assert arguments == ["--config", config, "--overwrite", "True", "-g", "cpu"]
    assert found["num_validation"] == 2 and not found["can_use"]
    # Other commands work on the data set itself.
    config = load_config(training.config_path, sets=["train", "validation"])
    assert config.train_data_folder == str(training.data_set.folder / "clips")


@pytest.mark.parametrize(
    "given, networks, crop",
    [({}, ["conv3d", "eco"], (80, 112)), ({"model": "conv3d"}, ["conv3d"], (40, 52))],
)
def test_the_config_is_the_recipe_for_few_clips_on_these_clips(
    training, project, given, networks, crop
):
    project("end")
    keys = {
        "model_name": "another place",
        "train_data_folder": "x",
        "train_data_csv": "x",
        "val_data_folder": "x",
        "val_data_csv": "x",
        "labels_csv": "x",
        "lr": 0.5,
    }
    training.config_path.write_text(json.dumps(keys))
    for _ in range(2):  # the second time, its own keys are there
        found = json.loads(training.config_path.read_text())
        training.config_path.write_text(json.dumps(found | given))
        training.start(is_resumed=False)
        until(training, lambda found: found["state"] == "done")
        config = load_config(training.config_path, sets=["train", "validation"])
        assert config.run_folder == training.data_set.folder / "trainings" / "mine"
        assert config.networks == networks and config.crop == crop
        assert config.combine == ("mean" if given else "product")
        assert config.lr == 0.5 and config.optimizer == "adamw" and config.precision == "fp32"
        assert config.sampling == "window" and config.clip_size == 12 and config.batch_size == 8
        assert config.time_probe_clips == config.picture_baseline_clips == 0  # so that it is quick


def test_a_renamed_folder_has_its_training(training, project, tmp_path):
    project("end")
    training.start(is_resumed=False)
    until(training, lambda found: found["state"] == "done")
    shutil.copytree(training.data_set.folder, tmp_path / "renamed")
    data = DataSet(tmp_path / "renamed")
    found = Training(data, "cpu", "cpu").progress()
    data.close()
    assert found["state"] == "done" and found["history"] and found["has_network"]


def test_a_copied_folder_goes_on_with_its_own_training(training, project, tmp_path):
    project("wait")
    training.start(is_resumed=False)
    until(training, has_begun)
    training.close()
    path = training.snapshot / "config.json"
    values = json.loads(path.read_text())
    del values["colour_jitter"]  # as an earlier version wrote it
    path.write_text(json.dumps(values))
    shutil.copytree(training.data_set.folder, tmp_path / "copy")
    before = (training.current_run / "arguments.json").read_text()
    data = DataSet(tmp_path / "copy")
    copy = Training(data, "cpu", "cpu")
    project("end")
    copy.start(is_resumed=True)
    assert until(copy, lambda found: found["state"] != "running")["state"] == "done"
    data.close()
    assert (training.current_run / "arguments.json").read_text() == before
    assert "--resume" in (copy.run_folder / "arguments.json").read_text()
    config = load_config(copy.snapshot / "config.json", sets=["train", "validation"])
    assert config.train_data_folder == str(tmp_path / "copy" / "snapshot" / "clips")
    assert config.colour_jitter == 0  # its recipe stays what it was


def test_how_many_features_are_computed_is_told(training, project):
    project("features")
    training.start(is_resumed=False)
    found = until(training, lambda found: found["features"] is not None and has_begun(found))
    assert found["features"] == 0.25
    os.kill(read_status(training.current_run).process_id, signal.SIGKILL)
    found = until(training, lambda found: found["state"] != "running")
    assert found["state"] == "failed" and found["features"] is None
    assert found["error"] == "epoch 1"  # the end of its messages


def test_a_training_that_was_killed_is_said_to_be(training, project):
    project("wait")
    training.start(is_resumed=False)
    until(training, has_begun)
    os.kill(read_status(training.current_run).process_id, signal.SIGKILL)
    found = until(training, lambda found: found["state"] != "running")
    assert found["state"] == "failed" and "it may have been killed" in found["error"]


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("fail early", "error: labels_csv: it is wrong\n  in two lines"),
        ("fail", "the disk is full"),
    ],
)
def test_a_failure_is_said(training, project, mode, error):
    project("fail")  # its status must not be taken for that of the next training
    training.start(is_resumed=False)
    until(training, lambda found: found["state"] != "running")
    project(mode)
    training.start(is_resumed=False)
    found = until(training, lambda found: found["state"] != "running")
    assert found["state"] == "failed" and found["error"] == error
    training.config_path.write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        training.start(is_resumed=False)


def test_a_running_training_is_found_again_stopped_and_gone_on_with(
    training, project, make_training
):
    project("wait")
    training.prepare()
    training.start(is_resumed=False)
    until(training, has_begun)
    later = make_training()  # after the server was killed and started again
    assert later.progress()["state"] == "running"
    for one in (training, later):
        one.prepare()
        assert not one.starter.process  # it would be in the way
    for one in (training, later):
        with pytest.raises(UserError, match="already running"):
            one.start(is_resumed=False)
    later.stop()
    for one in (training, later):
        found = until(one, lambda found: found["state"] != "running")
        assert found["state"] == "stopped" and found["can_resume"]
    config = json.loads(training.config_path.read_text())
    later.data_set.add("wave", jpegs([1, 2]))
    project("end")
    later.start(is_resumed=True)
    assert until(later, lambda found: found["state"] != "running")["state"] == "done"
    arguments = json.loads((training.current_run / "arguments.json").read_text())
    assert arguments[2:4] == ["--resume", "True"]
    assert json.loads(training.config_path.read_text()) == config


def train_to(training, project, mode, is_resumed=False):
    project(mode)
    training.start(is_resumed)
    if mode == "wait":
        until(training, has_begun)
        training.stop()
    return until(training, lambda found: found["state"] != "running")


def test_a_network_is_kept_until_the_next_one_is_done(training, project, make_training):
    train_to(training, project, "end")
    good = training.checkpoint
    good.write_text("good")
    project("say nothing")
    training.start(is_resumed=False)
    found = training.progress()  # what the run before said is not there meanwhile
    assert not found["history"] and not found["log"]
    assert found["has_network"] and not found["has_report"]
    project("wait")
    found = until(training, has_begun)
    training.stop()
    found = until(training, lambda found: found["state"] != "running")
    assert found["state"] == "stopped" and found["can_resume"] and found["can_use"]
    assert training.checkpoint.read_text() == "good"
    assert train_to(training, project, "fail early")["state"] == "failed"
    assert training.checkpoint.read_text() == "good"
    train_to(training, project, "wait")
    training.use()
    assert training.checkpoint == good and good.read_text() == ""
    with pytest.raises(UserError, match="no stopped training"):
        training.use()
    found = training.progress()  # the stopped one can still go on
    assert found["state"] == "stopped" and found["can_resume"] and not found["can_use"]
    good.write_text("good")
    assert train_to(training, project, "end", is_resumed=True)["state"] == "done"
    training.run_folder.rename(training.run_folder.with_name("half"))
    training.old_run.parent.mkdir()  # a replacement was interrupted
    training.run_folder.with_name("half").rename(training.old_run)
    assert make_training().progress()["state"] == "done" and good.exists()


def test_a_first_training_that_was_stopped_keeps_its_network(training, project, make_training):
    assert train_to(training, project, "wait")["has_network"]
    training.checkpoint.write_text("good")
    project("wait")
    training.start(is_resumed=False)
    assert training.progress()["has_network"] and training.checkpoint.read_text() == "good"
    until(training, has_begun)
    assert training.progress()["history"]  # of the new training
    training.stop()
    found = until(training, lambda found: found["state"] != "running")
    assert found["can_resume"] and found["can_use"]  # the new one
    assert make_training().checkpoint.read_text() == "good"
    found = train_to(training, project, "fail early")
    assert found["has_network"] and not found["can_resume"] and not found["can_use"]
    assert training.checkpoint.read_text() == "good"
    train_to(training, project, "wait")
    assert train_to(training, project, "end", is_resumed=True)["state"] == "done"
    assert training.checkpoint.read_text() == "" and not training.new_run.exists()


def test_clips_that_are_removed_meanwhile_are_there_for_the_training(training, project):
    project("wait")
    training.start(is_resumed=False)
    until(training, has_begun)
    training.data_set.remove(["1"])
    training.make_room()
    config = load_config(training.snapshot / "config.json", sets=["train", "validation"])
    frames = sorted(os.listdir(os.path.join(config.train_data_folder, "1")))
    assert config.train_data_folder == str(training.snapshot / "clips") and len(frames) == 18
    training.close()
    training.make_room()  # nothing needs it any more
    assert not (training.snapshot / "clips" / "1").exists()
    assert (training.snapshot / "clips" / "2").exists()


def test_results_are_read_from_the_file_of_predictions(training):
    with pytest.raises(UserError, match="no results yet"):
        training.results()
    training.run_folder.mkdir(parents=True)
    (training.run_folder / "predictions.csv").write_text(
        'id,label,predicted,confidence\r\n3,wave,"a, b",0.9\r\n9,wave,wave,0.6\r\n5,wave,,\r\n'
    )
    assert training.progress()["has_results"]
    assert training.results() == {
        "classes": ["a, b", "wave"],
        "clips": [
            {"id": "3", "label": "wave", "predicted": "a, b"},
            {"id": "9", "label": "wave", "predicted": "wave"},
        ],
    }


def test_a_process_that_only_has_an_old_number_is_not_stopped(training, project):
    project("end")
    training.start(is_resumed=False)
    until(training, lambda found: found["state"] == "done")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        write_status(training.current_run, "training")
        path = training.current_run / STATUS_FILE
        path.write_text(path.read_text().replace(str(os.getpid()), str(other.pid)))
        assert read_status(training.current_run).process_id == other.pid
        training.process = None
        training.stop()
        found = training.progress()
        assert found["state"] == "failed" and "it may have been killed" in found["error"]
        other.communicate(b"\n")
    assert other.returncode == 0


def test_the_server_stops_it_and_waits_until_all_is_saved(training, project):
    project("wait")
    training.start(is_resumed=False)
    until(training, has_begun)
    training.close()
    assert (training.current_run / "checkpoint.pth.tar").exists()
    assert training.progress()["state"] == "stopped"


def test_five_clips_of_two_gestures_are_needed(training, project):
    project("end")
    training.data_set.remove(["1"])
    with pytest.raises(UserError, match=r"record more of wave \(4\)"):
        training.start(is_resumed=False)
    assert training.progress()["state"] == "none"

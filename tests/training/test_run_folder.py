"""Who may write a run folder, and what is left of a run that is replaced."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import PROJECT, make_settings, run_folder, write_config

import explain
import train

pytestmark = pytest.mark.usefixtures("blank_pictures")

HOLDER = """
import sys, time
from pathlib import Path
from system.files import FolderLock

with FolderLock() as lock:
    lock.take(Path(sys.argv[1]))
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The settings of a finished run that has been evaluated, stacked, explained and tested."""
    root = tmp_path_factory.mktemp("replaced")
    settings = make_settings(root, num_epochs=1, batch_size=4, checkpoint_minutes=10)
    shutil.copy(root / "data" / "validation.csv", root / "data" / "test.csv")
    settings["test_data_csv"] = str(root / "data" / "test.csv")
    config, folder = write_config(root / "config.json", settings), run_folder(settings)
    for flags in (
        ["--profile"],
        ["--eval_only", "--checkpoint", "last"],
        ["--test_only", "--checkpoint", "last"],
    ):
        assert train.main(["-c", config, "-g", "cpu", *flags]) == 0
    assert (
        explain.main(
            ["--checkpoint", str(folder / "checkpoint.pth.tar"), "--clips", "1", "-g", "cpu"]
        )
        == 0
    )
    for name in ("stack.json", "bad_clips.csv", "history.csv.partial"):
        (folder / name).write_text("of the run that is gone")
    return settings


def copy_of(settings, tmp_path) -> tuple[Path, list[str]]:
    """A copy of the run folder, and the arguments that train in it."""
    own = settings | {"output_dir": str(tmp_path)}
    shutil.copytree(run_folder(settings), run_folder(own))
    return run_folder(own), ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu"]


def files_in(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_overwrite_leaves_nothing_of_the_run_that_is_gone(trained, tmp_path):
    folder, arguments = copy_of(trained, tmp_path)
    before = files_in(folder)
    assert {
        "logits.npz",
        "predictions.csv",
        "confusion_matrix.png",
        "test_predictions.csv",
        "test_submission.csv",
        "explained/time_probe.png",
    } <= before
    assert any(name.startswith("profile/") for name in before)
    for path in folder.rglob("*.*"):
        if path.suffix in (".csv", ".json", ".html", ".partial", ".npz", ".png"):
            path.write_text("of the run that is gone")
    assert train.main([*arguments, "--overwrite"]) == 0
    assert {name for name in files_in(folder) if not name.startswith("tensorboard/")} == {
        "config.json",
        "versions.json",
        "history.csv",
        "checkpoint.pth.tar",
        "model_best.pth.tar",
        "report.html",
        "status.json",
        "logits.npz",
        "predictions.csv",
        "confusion_matrix.png",
    }
    assert not (folder / "explained").exists() and not (folder / "profile").exists()
    for name in files_in(folder):
        assert b"of the run that is gone" not in (folder / name).read_bytes(), name


def test_overwrite_keeps_the_files_of_others(trained, tmp_path):
    folder, arguments = copy_of(trained, tmp_path)
    others = [
        "notes.txt",
        "explained/mine.png",
        "tensorboard/other/events.out.1",
        "tensorboard/train/notes.txt",
        "profile/mine.json",
        "wave/1.mp4",
    ]
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(name)
    assert train.main([*arguments, "--overwrite"]) == 0
    assert all((folder / name).read_text() == name for name in others)
    assert not list(folder.glob("explained/*.gif"))


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume", "auto"], ["--resume"]])
def test_a_second_training_is_refused_and_loses_nothing(trained, tmp_path, capsys, flags):
    folder, arguments = copy_of(trained, tmp_path)
    if not flags:  # the first epoch is not finished yet
        shutil.rmtree(folder)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        before = {name: (folder / name).read_bytes() for name in files_in(folder)}
        assert train.main([*arguments, *flags]) == 2
        assert f"is being written by process {holder.pid} on " in capsys.readouterr().err
        assert {name: (folder / name).read_bytes() for name in files_in(folder)} == before
        if flags == ["--resume"]:  # one may evaluate meanwhile
            assert train.main([*arguments, "--eval_only", "--checkpoint", "best"]) == 0
    finally:
        holder.kill()
        holder.wait()
    if flags == ["--resume"]:
        assert train.main([*arguments, *flags, "--set", "num_epochs=2"]) == 0
        assert not (folder / "run.lock").exists()

"""A run that dies and is resumed ends as the same run that was never stopped: bit for bit.

The long form: `python -m pytest -m slow tests/training/test_resume.py`.
"""

import io
import itertools
import json
import os
import shutil
import signal
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from conftest import slow_except
from runs import (
    Command,
    PowerCut,
    differences,
    make_settings,
    run_folder,
    train_until,
    write_config,
)

import train
from system import processes, stopping
from training.checkpoint import load_checkpoint, save_checkpoint

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return make_settings(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def whole_run(settings, tmp_path_factory):
    """Gives the folder of the run with these keys that was never stopped; each is trained once."""
    folders = {}

    def train_whole(num_processes=1, **keys):
        name = str((num_processes, *sorted(keys.items())))
        if name not in folders:
            own = settings | keys | {"output_dir": str(tmp_path_factory.mktemp("whole"))}
            config = write_config(Path(own["output_dir"]) / "config.json", own)
            if num_processes == 1:
                assert train.main(["-c", config, "-g", "cpu"]) == 0
            else:
                run_several(config, "train.py")
            folders[name] = run_folder(own)
        return folders[name]

    return train_whole


def run_several(config, *start, expected_status=0):
    status, output, errors = Command(config, start=(*TORCHRUN, *start)).finish()
    assert status == expected_status, output + errors


# --- the grid ----------------------------------------------------------------------------------


class Case(NamedTuple):
    num_workers: int
    augmented: bool
    precision: str
    accumulate_steps: int
    num_processes: int
    mid_epoch: bool
    other_workers: bool  # 2 instead of 0 after the resume, or the other way round

    def recipe(self) -> dict:
        """The keys that make a difference to the result."""
        movement = {} if self.augmented else {"affine_degrees": 0.0, "affine_translate": 0.0}
        return movement | {"precision": self.precision, "accumulate_steps": self.accumulate_steps}

    def __str__(self):
        return ", ".join(
            [
                f"{self.num_workers} workers{', then others' if self.other_workers else ''}",
                *(["augmented"] if self.augmented else []),
                self.precision,
                *(["in parts"] if self.accumulate_steps > 1 else []),
                f"{self.num_processes} processes",
                "mid-epoch" if self.mid_epoch else "epoch end",
            ]
        )


VALUES = ((0, 2), (True, False), ("fp32", "bf16"), (1, 2), (1, 2), (True, False), (True, False))
# 16 cases in which each three of the seven factors have all their combinations: a 2^(7-3) design of
# resolution IV. (Box and Hunter, Technometrics 3, 1961)
GRID = [
    Case(*(values[level] for values, level in zip(VALUES, levels, strict=True)))
    for a, b, c, d in itertools.product((0, 1), repeat=4)
    for levels in [(a, b, c, d, a ^ b ^ c, b ^ c ^ d, a ^ c ^ d)]
]
# Each factor in both its values, but for two processes, which take half a minute per case here and
# have a short case in test_processes.py.
SHORT = [
    Case(0, True, "fp32", 1, 1, mid_epoch=True, other_workers=True),
    Case(2, False, "bf16", 2, 1, mid_epoch=False, other_workers=False),
]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=[] if case in SHORT else pytest.mark.slow)
        for case in dict.fromkeys(SHORT + GRID)
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(case, settings, whole_run, tmp_path):
    """It dies in the last step of its second epoch, from which nothing must be left."""
    recipe = case.recipe()
    own = settings | recipe | {"output_dir": str(tmp_path), "num_workers": case.num_workers}
    # Without checkpoints within the epoch, its first two steps are lost, too.
    own["checkpoint_minutes"] = 0 if case.mid_epoch else 1000
    first = write_config(tmp_path / "first.json", own)
    if case.other_workers:
        own["num_workers"] = 2 - case.num_workers
    second = write_config(tmp_path / "second.json", own)

    if case.num_processes == 1:
        train_until(["-c", first, "-g", "cpu"], epoch=1, step=2)
    else:
        run_several(first, "tests/runs.py", "1", "2", expected_status=1)
    stopped_at = load_checkpoint(run_folder(own) / "checkpoint.pth.tar")
    assert (stopped_at["epoch"], stopped_at["step"]) == (1, 2 if case.mid_epoch else 0)
    if case.num_processes == 1:
        assert train.main(["-c", second, "-g", "cpu", "--resume", "True"]) == 0
    else:
        run_several(second, "train.py", "--resume", "auto")

    whole = whole_run(case.num_processes, **recipe)
    assert differences(whole, run_folder(own)) == []


# --- deaths at chosen places -------------------------------------------------------------------


def test_a_run_that_dies_in_every_step(settings, whole_run, tmp_path):
    own = settings | {"output_dir": str(tmp_path), "schedule": "cosine", "warmup_epochs": 0.5}
    arguments = ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu", "-r", "auto"]
    for epoch, step in itertools.product(range(2), range(3)):
        train_until(arguments, epoch, step)
    assert train.main(arguments) == 0
    assert differences(whole_run(schedule="cosine", warmup_epochs=0.5), run_folder(own)) == []


FILE_OPERATIONS = ["replace", "fsync", "truncate"]
# At the start, around a checkpoint within an epoch, at the first epoch's end, and at the run's end.
DEATHS = [0, 1, 3, 8, 9, *range(14, 24), *range(36, 49)]
SHORT_DEATHS = [17]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=[] if number in SHORT_DEATHS else pytest.mark.slow)
        for number in DEATHS
    ],
)
def test_a_run_that_dies_between_two_file_operations(number, settings, whole_run, tmp_path):
    """Before the one with this number, and at the same one again after the resume."""
    own = settings | {"output_dir": str(tmp_path)}
    arguments = ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu", "-r", "auto"]
    deaths = 0
    for _ in range(2):
        left = [number]
        with ExitStack() as stack:
            for name in FILE_OPERATIONS:
                function = die_when_none_are_left(left, getattr(os, name))
                stack.enter_context(mock.patch.object(os, name, function))
            try:
                assert train.main(arguments) == 0
            except PowerCut:
                deaths += 1
    assert deaths
    assert train.main(arguments) == 0
    assert differences(whole_run(), run_folder(own)) == []


def die_when_none_are_left(left, function):
    def call_or_die(*arguments):
        if left[0] == 0:
            raise PowerCut
        left[0] -= 1
        return function(*arguments)

    return call_or_die


@pytest.mark.parametrize("schedule", slow_except(["cosine", "plateau"], ["plateau"]))
@pytest.mark.parametrize("epoch", slow_except([0, 1], [0]))
def test_a_run_that_is_stopped_in_validation(
    schedule, epoch, settings, whole_run, tmp_path, monkeypatch
):
    """After the last epoch's steps no other follows that would set the learning rate."""
    own = settings | {"output_dir": str(tmp_path), "schedule": schedule, "batch_size": 6}
    arguments = ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu", "-r", "auto"]
    calls = itertools.count()

    def stop_in_the_second_batch():
        if next(calls) == 2 * epoch + 1:
            raise stopping.Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(processes, "stop_together", stop_in_the_second_batch)
        assert train.main(arguments) == 128 + signal.SIGTERM
    assert load_checkpoint(run_folder(own) / "checkpoint.pth.tar")["step"] == 4
    assert train.main(arguments) == 0
    assert differences(whole_run(schedule=schedule, batch_size=6), run_folder(own)) == []


def test_a_run_that_is_stopped_before_its_first_step(settings, whole_run, tmp_path, monkeypatch):
    """Where the optimizer has no state yet."""
    own = settings | {"output_dir": str(tmp_path)}
    arguments = ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu", "-r", "auto"]

    def stop(_loader):
        raise stopping.Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train, "batches_of", stop)
        assert train.main(arguments) == 128 + signal.SIGTERM
    assert load_checkpoint(run_folder(own) / "checkpoint.pth.tar")["step"] == 0
    assert train.main(arguments) == 0
    assert differences(whole_run(), run_folder(own)) == []


def test_a_start_that_dies_while_it_writes_leaves_a_folder_to_start_in(settings, tmp_path):
    own = settings | {"output_dir": str(tmp_path)}
    arguments = ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu", "-r", "auto"]
    train_until(arguments, epoch=0, step=1)
    before = (run_folder(own) / "versions.json").read_text()

    @contextmanager
    def write_half(path, *_, **__):
        file = io.BytesIO()
        yield file
        Path(f"{path}.partial").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
        raise PowerCut

    with mock.patch("system.files.atomic_write", write_half), pytest.raises(PowerCut):
        train.main(arguments)
    assert (run_folder(own) / "versions.json").read_text() == before
    assert train.main(arguments) == 0
    assert len(json.loads((run_folder(own) / "versions.json").read_text())) == 2


def test_what_others_put_beside_the_curves_stays(settings, whole_run, tmp_path):
    """TensorBoard's own plugins have folders below those of the log."""
    own = settings | {"output_dir": str(tmp_path)}
    arguments = ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu", "-r", "auto"]
    train_until(arguments, epoch=1, step=1)
    log = run_folder(own) / "tensorboard"
    others = [log / "plugins/profile/one/trace.json", log / "pictures/events.out.tfevents.1"]
    for path in others:
        path.parent.mkdir(parents=True)
        path.touch()
    train_until(arguments, epoch=1, step=2)
    assert train.main(arguments) == 0
    assert differences(whole_run(), run_folder(own)) == []
    assert all(path.exists() for path in others)


# --- resume auto -------------------------------------------------------------------------------


def test_resume_auto_starts_a_run_and_goes_on_with_one(settings, whole_run, tmp_path, capsys):
    own = settings | {"output_dir": str(tmp_path)}
    arguments = ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu", "--resume"]
    folder = run_folder(own)
    train_until([*arguments, "auto"], epoch=0, step=0)
    # A start that died before its first checkpoint left all but that.
    assert (folder / "config.json").exists() and not list(folder.glob("*.tar"))
    capsys.readouterr()
    assert train.main([*arguments, "True"]) == 2
    assert "no such checkpoint" in capsys.readouterr().err
    train_until([*arguments, "auto"], epoch=0, step=2)
    assert "checkpoint.pth.tar: " not in capsys.readouterr().out
    assert train.main([*arguments, "auto"]) == 0
    assert f"{folder / 'checkpoint.pth.tar'}: 0 epochs, 2 steps" in capsys.readouterr().out
    assert differences(whole_run(), folder) == []
    # Once more, as a scheduler would: there is nothing left to do.
    assert train.main([*arguments, "auto"]) == 0
    assert differences(whole_run(), folder) == []


def test_resume_auto_prefers_the_runs_own_checkpoint(settings, whole_run, tmp_path, capsys):
    """`checkpoint` names another run's, from which this one came."""
    other = whole_run() / "checkpoint.pth.tar"
    keys = {"checkpoint": str(other), "num_epochs": 4}
    for name in ("whole", "parts"):
        own = settings | keys | {"output_dir": str(tmp_path / name)}
        arguments = ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu", "-r", "auto"]
        if name == "parts":
            train_until(arguments, epoch=3, step=1)
            capsys.readouterr()
        assert train.main(arguments) == 0
        assert f"checkpoint {run_folder(own)}" in capsys.readouterr().out or name == "whole"
    assert differences(tmp_path / "whole/tiny", tmp_path / "parts/tiny") == []
    assert load_checkpoint(tmp_path / "parts/tiny/checkpoint.pth.tar")["epoch"] == 4


@pytest.mark.parametrize("name", ["checkpoint.pth.tar", "model_best.pth.tar"])
def test_resume_auto_starts_a_run_whose_config_names_a_checkpoint_of_its_own(
    name, settings, whole_run, tmp_path
):
    """As configs in circulation do, before there is any."""
    own = settings | {"output_dir": str(tmp_path), "checkpoint": str(tmp_path / "tiny" / name)}
    arguments = ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu", "-r", "auto"]
    train_until(arguments, epoch=1, step=1)
    assert train.main(arguments) == 0
    assert differences(whole_run(), run_folder(own)) == []


def test_resume_auto_goes_on_with_a_run_that_died_in_its_first_save(settings, whole_run, tmp_path):
    """Between the best checkpoint and the last."""
    own = settings | {"output_dir": str(tmp_path), "checkpoint_minutes": 1000}
    arguments = ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu", "-r", "auto"]
    replace = os.replace

    def die_before(source, target):
        if Path(target).name == "checkpoint.pth.tar":
            raise PowerCut
        replace(source, target)

    with mock.patch.object(os, "replace", die_before), pytest.raises(PowerCut):
        train.main(arguments)
    assert [path.name for path in run_folder(own).glob("*.tar")] == ["model_best.pth.tar"]
    train_until(arguments, epoch=1, step=2)
    assert train.main(arguments) == 0
    assert differences(whole_run(), run_folder(own)) == []


# --- nothing is lost ---------------------------------------------------------------------------


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("flags", [[], ["--resume", "True"], ["--resume", "auto"]])
@pytest.mark.parametrize("left", slow_except(["best and history", "history"], ["history"]))
def test_a_run_without_its_last_checkpoint_is_not_deleted(
    left, flags, settings, whole_run, tmp_path, capsys
):
    own = settings | {"output_dir": str(tmp_path)}
    folder = Path(shutil.copytree(whole_run(), run_folder(own)))
    for path in folder.glob("*.tar"):
        if path.name != "model_best.pth.tar" or left == "history":
            path.unlink()
    arguments = ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu"]
    before = contents(folder)
    assert train.main([*arguments, *flags]) == 2
    error = capsys.readouterr().err
    assert contents(folder) == before
    if flags == ["--resume", "True"]:
        assert f"{folder / 'checkpoint.pth.tar'}: no such checkpoint" in error
    else:
        assert f"{folder}: already has a run" in error and "--overwrite True" in error
        assert ("--checkpoint best" in error) == (left != "history")
    if left != "history":
        best = load_checkpoint(folder / "model_best.pth.tar")["epoch"]
        assert train.main([*arguments, "--resume", "True", "--checkpoint", "best"]) == 0
        assert f"model_best.pth.tar: {best} epochs" in capsys.readouterr().out
    elif flags:
        assert train.main([*arguments, "--resume", "auto", "--overwrite", "True"]) == 0
    else:
        assert train.main([*arguments, "--overwrite", "True"]) == 0
    assert differences(whole_run(), folder) == []


def test_a_start_that_failed_before_it_saved_is_no_run(settings, whole_run, tmp_path, capsys):
    own = settings | {"output_dir": str(tmp_path), "checkpoint_minutes": 1000}
    broken = Path(shutil.copytree(settings["train_data_folder"], tmp_path / "clips"))
    for frame in (broken / "9").iterdir():
        frame.write_bytes(b"")
    failing = write_config(tmp_path / "failing.json", own | {"train_data_folder": str(broken)})
    config = write_config(tmp_path / "config.json", own)
    for _ in range(2):
        assert train.main(["-c", failing, "-g", "cpu"]) == 2
        assert "0 bytes" in capsys.readouterr().err
        assert not list(run_folder(own).glob("*.tar"))
    (run_folder(own) / "versions.json").write_text("half of it")
    (run_folder(own) / "notes.txt").write_text("of mine")
    (run_folder(own) / "predictions.csv").write_text("of another network")
    assert train.main(["-c", config, "-g", "cpu", "--resume"]) == 2
    assert "no such checkpoint" in capsys.readouterr().err
    assert train.main(["-c", config, "-g", "cpu"]) == 0
    assert (run_folder(own) / "notes.txt").read_text() == "of mine"
    (run_folder(own) / "notes.txt").unlink()
    assert len(json.loads((run_folder(own) / "versions.json").read_text())) == 1
    assert differences(whole_run(), run_folder(own)) == []


# --- what a checkpoint is of -------------------------------------------------------------------


def test_a_new_run_has_a_best_of_its_own(settings, whole_run, tmp_path, capsys):
    """However good the other run was whose checkpoint it starts from."""
    saved = load_checkpoint(whole_run() / "checkpoint.pth.tar")
    save_checkpoint(saved | {"best_prec1": 100.0}, tmp_path / "other.pth.tar")
    keys = {"checkpoint": str(tmp_path / "other.pth.tar"), "output_dir": str(tmp_path)}
    arguments = ["-g", "cpu", "--resume", "True"]
    own = settings | keys | {"model_name": "over"}
    config = write_config(tmp_path / "over.json", own)
    assert train.main(["-c", config, *arguments]) == 0  # it has no epoch of its own
    assert "training is over: 2 epochs are done; no epoch in" in capsys.readouterr().out
    own = settings | keys | {"num_epochs": 3}
    config = write_config(tmp_path / "config.json", own)
    train_until(["-c", config, *arguments], epoch=2, step=1)
    assert train.main(["-c", config, "-g", "cpu", "--resume", "auto"]) == 0
    best = load_checkpoint(run_folder(own) / "model_best.pth.tar")
    assert best["epoch"] == 3 and best["best_prec1"] == best["history"][-1]["val_top1"]


def test_an_epoch_is_finished_with_the_clips_that_it_was_begun_with(
    settings, whole_run, tmp_path, capsys
):
    clips = tmp_path / "train.csv"
    shutil.copy(settings["train_data_csv"], clips)
    own = settings | {"output_dir": str(tmp_path), "train_data_csv": str(clips)}
    arguments = ["-c", write_config(tmp_path / "config.json", own), "-g", "cpu", "-r", "auto"]
    train_until(arguments, epoch=1, step=1)
    text = clips.read_text()
    lines = text.splitlines(keepends=True)
    other_label = lines[0].replace("Left", "Right")
    for edited in (lines[1:], lines[::-1], [other_label, *lines[1:]]):
        clips.write_text("".join(edited))
        before = contents(run_folder(own))
        assert train.main(arguments) == 2
        error = capsys.readouterr().err
        assert f"the clips of {clips}" in error and "restore it to finish this epoch" in error
        assert contents(run_folder(own)) == before
    # Under another name they are still the same clips.
    clips.rename(tmp_path / "renamed.csv")
    (tmp_path / "renamed.csv").write_text(text)
    arguments += ["--set", f"train_data_csv={tmp_path / 'renamed.csv'}"]
    assert train.main([*arguments, "--set", "batch_size=4"]) == 2
    assert "batch_size: " in capsys.readouterr().err
    assert train.main(arguments) == 0
    assert differences(whole_run(), run_folder(own)) == []
    # Between two epochs they may be others.
    (tmp_path / "renamed.csv").write_text("".join(lines[1:]))
    assert train.main([*arguments, "--set", "num_epochs=3"]) == 0
    assert "changed since the checkpoint: the training clips" in capsys.readouterr().out

"""Signals, full disks and damaged checkpoints: a run stops cleanly, and resumes as if it had not.

The long form: `python -m pytest -m slow tests/system/test_stopping.py`.
"""

import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from runs import (
    PROJECT,
    SLOW_STEPS,
    Command,
    PowerCut,
    differences,
    make_settings,
    run_folder,
    train_until,
    write_config,
)

import train
from clips.batches import TrainBatches
from training.checkpoint import DamagedCheckpointError, load_checkpoint, save_checkpoint
from training.loss_watch import StopOnBadLoss

CHECKPOINT, PREVIOUS = "checkpoint.pth.tar", "checkpoint_previous.pth.tar"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return make_settings(tmp_path_factory.mktemp("stopping"))


@pytest.fixture(scope="module")
def whole_run(settings):
    """The folder of the run that was never stopped."""
    return resumed(settings, Path(settings["output_dir"]))


def resumed(settings, folder, **changes) -> Path:
    """Finishes the run in `folder` and returns its folder."""
    own = settings | {"output_dir": str(folder)} | changes
    config = write_config(folder / "resume.json", own)
    assert train.main(["-c", config, "-g", "cpu", "--resume", "auto"]) == 0
    return run_folder(own)


# --- signals -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow_settings(settings, tmp_path_factory):
    """Of a run whose steps take a tenth of a second, so that a signal finds one at work."""
    folder = tmp_path_factory.mktemp("slow") / "trainings"
    return settings | {
        "output_dir": str(folder),
        "block_widths": [32, 64],
        "print_freq": 1,
        "max_frame_pixels": 20_000_000,
    }


@pytest.fixture(scope="module")
def whole_slow_run(slow_settings):
    return resumed(slow_settings, Path(slow_settings["output_dir"]))


class Moment(NamedTuple):
    """When a signal comes: so many seconds after a text was printed; and to whom."""

    text: str
    delay: float
    signal_number: int
    num_workers: int
    to_group: bool
    slow_set: str | None = None  # whose clips take seconds to read, so that the loader waits


MOMENTS = {
    "training": Moment("step 1/3", 0.05, signal.SIGTERM, 0, False),
    "training, whole group": Moment("epoch 2/2  step 1/3", 0, signal.SIGINT, 2, True),
    "validation": Moment("step 3/3", 0.7, signal.SIGINT, 0, True, "validation"),
    "workers wait": Moment("step 2/3", 0.7, signal.SIGTERM, 2, True, "train"),
    "loader waits": Moment("step 2/3", 0.7, signal.SIGINT, 0, False, "train"),
    "building": Moment("validation: 7 clips", 0, signal.SIGTERM, 2, True),
    "workers start": Moment("GFLOP", 0, signal.SIGINT, 2, True),
}
SHORT = ["training"]


@pytest.fixture(scope="module")
def cpu_seconds_to_import():
    """The CPU time that train.py's imports take, which tells how fast the machine is."""
    before = cpu_seconds_of_children()
    subprocess.run([sys.executable, "-c", "import train"], cwd=PROJECT, check=True)
    return cpu_seconds_of_children() - before


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in MOMENTS],
)
def test_a_signal_stops_a_run_that_can_be_resumed(
    name, slow_settings, whole_slow_run, cpu_seconds_to_import, tmp_path
):
    moment = MOMENTS[name]
    own = slow_settings | {"output_dir": str(tmp_path), "num_workers": moment.num_workers}
    if moment.slow_set:
        key = {"train": "train_data_folder", "validation": "val_data_folder"}[moment.slow_set]
        own[key] = slow_clips(own, moment.slow_set, tmp_path / "slow")
    before = cpu_seconds_of_children()
    command = Command(write_config(tmp_path / "config.json", own), start=("-c", SLOW_STEPS))
    command.wait_for(moment.text)
    time.sleep(moment.delay)
    command.send(moment.signal_number, moment.to_group)
    status, output, errors = command.finish()
    assert status == 128 + moment.signal_number and not errors, output + errors
    # A loop that waits, or another epoch, would take longer; this holds beside other work, too.
    assert cpu_seconds_of_children() - before < 30 * cpu_seconds_to_import
    assert not command.has_left_processes()
    assert "training is over" not in output
    if "step" in moment.text:
        assert f"stopped by {signal.Signals(moment.signal_number).name} after epoch" in output
        load_checkpoint(run_folder(own) / CHECKPOINT)
    assert differences(whole_slow_run, resumed(slow_settings, tmp_path)) == []


def cpu_seconds_of_children() -> float:
    """Of those that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def slow_clips(settings, set_name, folder) -> str:
    """A folder of clips like that of the settings, but some take two seconds each to decode.

    Those of the last step of the first epoch, which the sound ones therefore can replace when the
    run is resumed, or the whole validation set.
    """
    clips = Path(settings["train_data_folder"])
    batches = TrainBatches(22, settings["batch_size"], seed=0)
    batches.start_at(0, 2)
    ids = {"train": [key.index + 1 for key in next(iter(batches))], "validation": range(23, 30)}
    slow = [str(number) for number in ids[set_name]]
    folder.mkdir()
    Image.fromarray(np.full((4000, 4000, 3), 90, np.uint8)).save(folder / "huge.png")
    for clip in clips.iterdir():
        if clip.name not in slow:
            (folder / clip.name).symlink_to(clip)
            continue
        (folder / clip.name).mkdir()
        for frame in range(1, 9):
            (folder / clip.name / f"{frame:05}.png").symlink_to(folder / "huge.png")
    return str(folder)


# train.py, which tells when it begins to import PyTorch.
TOLD_IMPORTS = """
import runpy, sys
class Teller:
    def find_spec(name, *_):
        if name == "torch":
            print("the imports begin", flush=True)
sys.meta_path.insert(0, Teller)
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_while_python_imports(number, slow_settings, whole_slow_run, tmp_path):
    """Of PyTorch on; Python itself handles a signal that comes before train.py's first lines."""
    shutil.copytree(whole_slow_run, tmp_path / "tiny")
    before = (tmp_path / "tiny" / CHECKPOINT).read_bytes()
    config = write_config(tmp_path / "config.json", slow_settings | {"output_dir": str(tmp_path)})
    for delay in (0, 0.1, 0.2, 0.4, 0.8):
        command = Command(config, "--resume", "auto", start=("-c", TOLD_IMPORTS))
        command.wait_for("the imports begin")
        time.sleep(delay)
        command.send(number, to_group=True)
        assert command.finish() == (128 + number, "the imports begin\n", "")
    assert (tmp_path / "tiny" / CHECKPOINT).read_bytes() == before


ENDLESS_STEP = """
from system import stopping
stopping.install()
import sys, torch, train
def endless_step(*_):
    print("the step begins", flush=True)
    matrix, is_told = torch.ones(100, 100), False
    while True:
        matrix @ matrix
        if stopping.requested() and not is_told:
            print("it has been asked to stop", flush=True)
            is_told = True
train.train_step = endless_step
sys.exit(train.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("pauses", [[0.6], [0.1] * 600], ids=["two", "many"])
def test_a_second_ctrl_c_leaves_at_once(pauses, slow_settings, whole_slow_run, tmp_path):
    """A step that never ends, and with it what one Ctrl-C waits for, on a machine of any speed.

    Those within half a second of the first may be its echo; the next one counts.
    """
    config = write_config(tmp_path / "config.json", slow_settings | {"output_dir": str(tmp_path)})
    command = Command(config, start=("-c", ENDLESS_STEP))
    command.wait_for("the step begins")
    command.send(signal.SIGINT, to_group=True)
    command.wait_for("it has been asked to stop")
    for pause in pauses:
        time.sleep(pause)
        if command.process.poll() is not None:
            break
        command.send(signal.SIGINT, to_group=True)
    status, output, errors = command.finish()
    assert status == 130 and not errors, output
    assert "stopped by" not in output  # which is said once the step is finished and saved
    assert differences(whole_slow_run, resumed(slow_settings, tmp_path)) == []


@pytest.mark.slow
def test_a_signal_when_all_is_done_changes_nothing(slow_settings, whole_slow_run, tmp_path):
    own = slow_settings | {"output_dir": str(tmp_path), "num_workers": 2}
    command = Command(write_config(tmp_path / "config.json", own))
    command.wait_for("training is over")
    for _ in range(5):
        command.send(signal.SIGTERM, to_group=True)
        time.sleep(0.02)
    status, _, errors = command.finish()
    assert status in (0, -signal.SIGTERM) and not errors  # the latter once Python itself has ended
    assert differences(whole_slow_run, run_folder(own)) == []


# --- damaged checkpoints -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(settings, tmp_path_factory):
    """The folder of a run that died in the middle of its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    own = settings | {"output_dir": str(folder)}
    train_until(["-c", write_config(folder / "config.json", own), "-g", "cpu"], epoch=1, step=2)
    return run_folder(own)


@pytest.fixture
def copy_of_stopped(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "tiny"))


def flipped(data, position, bit=4):
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


DAMAGE = {
    "missing": None,
    "empty": lambda data: b"",
    "two bytes": lambda data: data[:2],
    "half": lambda data: data[: len(data) // 2],
    "last byte lost": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),  # of a length that was written before the content
    "end of zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "beginning of zeros": lambda data: bytes(4096) + data[4096:],
    "flipped bit in the pickle": lambda data: flipped(data, data.index(b"state_dict") + 3),
    "flipped bit in a weight": lambda data: flipped(data, len(data) // 2),
    "flipped bit in the directory": lambda data: flipped(data, data.rindex(b"PK\1\2") + 1),
}


# Others like these are found in the same way.
SHORT_DAMAGE = ("missing", "half", "flipped bit in a weight")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in SHORT_DAMAGE)) for name in DAMAGE],
)
def test_the_checkpoint_before_serves_if_the_last_is_damaged(
    name, settings, whole_run, copy_of_stopped, tmp_path, capsys
):
    path, before = copy_of_stopped / CHECKPOINT, copy_of_stopped / PREVIOUS
    if DAMAGE[name]:
        path.write_bytes(DAMAGE[name](path.read_bytes()))
    else:
        path.unlink()
    assert differences(whole_run, resumed(settings, tmp_path)) == []
    errors = capsys.readouterr().err
    assert f"warning: {path}: " in errors and f"the previous one, {before}" in errors


@pytest.mark.slow
def test_any_flipped_bit_and_any_cut_is_found_or_harmless(tmp_path):
    """Bits of times and padding that nobody reads may change; what is loaded may not."""
    path = tmp_path / CHECKPOINT
    weights = {"weight": torch.arange(5.0), "num_batches_tracked": torch.tensor(3)}
    save_checkpoint({"state_dict": weights, "epoch": 1, "arch": "conv3d"}, path)
    data, content = path.read_bytes(), str(load_checkpoint(path))
    found = 0
    for position, bit in itertools.product(range(len(data)), range(8)):
        path.write_bytes(flipped(data, position, bit))
        try:
            assert str(load_checkpoint(path)) == content, (position, bit)
        except DamagedCheckpointError:
            found += 1
    assert found > 3 * len(data)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedCheckpointError):
            load_checkpoint(path)


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_one_before(
    settings, whole_run, copy_of_stopped, tmp_path, monkeypatch
):
    """The resumed run dies at its first save, between the renaming of the old and the new one."""
    (copy_of_stopped / CHECKPOINT).write_bytes(b"")
    replace = os.replace

    def die_before(source, target):
        if Path(source).name == f"{CHECKPOINT}.partial":
            raise PowerCut
        replace(source, target)

    config = write_config(tmp_path / "config.json", settings | {"output_dir": str(tmp_path)})
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(os, "replace", die_before)
        train.main(["-c", config, "-g", "cpu", "--resume", "auto"])
    load_checkpoint(copy_of_stopped / PREVIOUS)
    assert differences(whole_run, resumed(settings, tmp_path)) == []


class Trap:
    """Unpickling it makes a folder: what a hostile pickle could do at will."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", [CHECKPOINT, PREVIOUS])
@pytest.mark.parametrize(
    "flags",
    [
        ["--resume", "True"],
        ["--resume", "auto"],
        ["--resume", "--eval_only"],
        ["--resume", "auto", "--eval_only"],
        ["--resume", "--test_only"],
    ],
)
def test_a_hostile_checkpoint_in_the_run_folder_runs_nothing(
    name, flags, settings, copy_of_stopped, tmp_path, capsys
):
    trap = tmp_path / "trap"
    content = torch.load(copy_of_stopped / CHECKPOINT, weights_only=True)
    torch.save(content | {"arch": Trap(trap)}, copy_of_stopped / name)
    if name == PREVIOUS:
        (copy_of_stopped / CHECKPOINT).unlink()
    test_set = {f"test_data_{kind}": settings[f"val_data_{kind}"] for kind in ("folder", "csv")}
    own = settings | test_set | {"output_dir": str(tmp_path)}
    assert train.main(["-c", write_config(tmp_path / "c.json", own), "-g", "cpu", *flags]) == 2
    assert "could run code" in capsys.readouterr().err and not trap.exists()


# --- disks -------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a file system of its own, of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "size=2m")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def mount(folder, options):
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")


def fill(folder, bytes_left):
    """Takes all of a disk but a few bytes."""
    free = os.statvfs(folder)
    size = free.f_bavail * free.f_frsize - bytes_left
    with open(folder / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


# A checkpoint takes about 25 pages of 4096 bytes, the other files one to three each; a start frees
# those of the log, which it writes anew.
@pytest.mark.parametrize(
    "pages_left",
    [
        pytest.param(pages, marks=[] if pages == 6 else pytest.mark.slow)
        for pages in (0, 1, 2, 3, 5, 6, 8, 11, 14, 17, 20)
    ],
)
def test_a_full_disk_stops_the_run_and_loses_nothing(
    pages_left, settings, whole_run, small_disk, tmp_path, capsys
):
    """Twice, since a scheduler would try again before anyone has made room."""
    config = write_config(tmp_path / "config.json", settings | {"output_dir": str(small_disk)})
    train_until(["-c", config, "-g", "cpu"], epoch=1, step=pages_left % 3)
    fill(small_disk, 4096 * pages_left)
    for _ in range(2):
        capsys.readouterr()
        assert train.main(["-c", config, "-g", "cpu", "--resume", "auto"]) == 2
        errors = capsys.readouterr().err
        assert "No space left on device" in errors and str(small_disk) in errors
        load_checkpoint(small_disk / "tiny" / CHECKPOINT)
    (small_disk / "filler").unlink()
    assert differences(whole_run, resumed(settings, small_disk)) == []


def test_a_folder_that_turns_read_only_stops_the_run_and_loses_nothing(
    settings, whole_run, small_disk, tmp_path, capsys, monkeypatch
):
    """Files are open there, so it cannot be mounted anew; another file system takes its place."""
    config = write_config(tmp_path / "config.json", settings | {"output_dir": str(small_disk)})
    train_step = train.train_step

    def step_and_lock(run, *rest):
        if (run.state.epoch, run.state.step) == (1, 1):
            mount(small_disk / "tiny", "ro")
        return train_step(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", step_and_lock)
        assert train.main(["-c", config, "-g", "cpu"]) == 2
    errors = capsys.readouterr().err
    assert f"{small_disk / 'tiny' / CHECKPOINT}: checkpoint cannot be written" in errors
    assert "Read-only file system" in errors
    assert train.main(["-c", config, "-g", "cpu"]) == 2
    assert "Read-only file system" in capsys.readouterr().err
    subprocess.run(["umount", small_disk / "tiny"], check=True)
    saved = load_checkpoint(small_disk / "tiny" / CHECKPOINT)
    assert (saved["epoch"], saved["step"]) == (1, 1)
    assert differences(whole_run, resumed(settings, small_disk)) == []


# --- losses that are no numbers ----------------------------------------------------------------


def test_a_learning_rate_that_is_too_high_stops_the_run(settings, tmp_path, capsys):
    own = settings | {"output_dir": str(tmp_path), "lr": 1e6, "num_epochs": 20}
    assert train.main(["-c", write_config(tmp_path / "config.json", own), "-g", "cpu"]) == 2
    errors = capsys.readouterr().err
    assert "learning rate of 1e+06" in errors and "epoch" in errors and "step" in errors
    saved = load_checkpoint(run_folder(own) / CHECKPOINT)
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_a_gradient_that_is_no_number_is_not_saved(settings, copy_of_stopped, tmp_path, capsys):
    path = copy_of_stopped / CHECKPOINT
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["classifier.weight"] *= 1e37  # a loss of 1e37, and a gradient beyond all
    save_checkpoint(saved, path)
    before = path.read_bytes()
    config = write_config(tmp_path / "config.json", settings | {"output_dir": str(tmp_path)})
    assert train.main(["-c", config, "-g", "cpu", "--resume", "auto"]) == 2
    assert "is NaN or inf in epoch 2, step 3, at a learning rate" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_network_that_computes_nan_is_not_scored(settings, copy_of_stopped, tmp_path, capsys):
    """Clips that it knows no answer for would else be taken for clips that were skipped."""
    path = copy_of_stopped / CHECKPOINT
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["hidden.0.2.weight"].fill_(3e38)
    saved["state_dict"]["classifier.weight"][:, ::2] = 3e38  # infinity minus infinity
    saved["state_dict"]["classifier.weight"][:, 1::2] = -3e38
    save_checkpoint(saved, path)
    config = write_config(tmp_path / "config.json", settings | {"output_dir": str(tmp_path)})
    assert train.main(["-c", config, "-g", "cpu", "--resume", "--eval_only"]) == 2
    assert "logits contain NaN or inf for the clips 23, 24" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_before_the_optimizer(
    settings, copy_of_stopped, tmp_path, capsys, monkeypatch
):
    path = copy_of_stopped / CHECKPOINT
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["classifier.weight"].fill_(3e38)  # finite, but the logits will not be
    save_checkpoint(saved, path)
    before, seen = path.read_bytes(), []
    train_step = train.train_step

    def watch(run, batch, counts, callbacks):
        ids = next(each.ids for each in callbacks if isinstance(each, StopOnBadLoss))
        seen.extend([run, ids[batch.indices].tolist()])
        return train_step(run, batch, counts, callbacks)

    monkeypatch.setattr(train, "train_step", watch)
    config = write_config(tmp_path / "config.json", settings | {"output_dir": str(tmp_path)})
    assert train.main(["-c", config, "-g", "cpu", "--resume", "auto"]) == 2
    errors = capsys.readouterr().err
    run, ids = seen
    assert "in epoch 2, step 3, at a learning rate of 0.003" in errors
    assert f"with the clips {', '.join(ids)};" in errors and len(ids) == 6
    for name, value in run.model.named_parameters():
        assert torch.equal(value, saved["state_dict"][name])
    assert path.read_bytes() == before


KILLED_WITH_A_LOCK = """
import os, time
from torch.utils.data import DataLoader, dataloader
from clips import batches

class Iterator(dataloader._MultiProcessingDataLoaderIter):
    def __setattr__(self, name, value):  # before its workers are started
        global iterator
        iterator = self
        super().__setattr__(name, value)

class Clips:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        with iterator._workers_done_event._cond:  # as PyTorch's own code for a moment, per batch
            os.write(told, b".")
            time.sleep(600)

dataloader._MultiProcessingDataLoaderIter = Iterator
heard, told = os.pipe()
loader = DataLoader(Clips(), batch_size=None, num_workers=1, persistent_workers=True)
running = batches.start_workers(loader)
os.read(heard, 1)
batches.end_workers()
del iterator, running, loader  # as a function's end does
print("ended", flush=True)
"""


@pytest.mark.slow
def test_a_worker_that_is_killed_with_a_lock_keeps_nobody_waiting():
    ended = subprocess.run(
        [sys.executable, "-c", KILLED_WITH_A_LOCK],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ended\n", "")

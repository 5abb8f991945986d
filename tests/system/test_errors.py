"""What ended a command is told by what it is: a closed pipe, a full disk, a lost process, memory.

The messages for mistakes in the input are those of test_bad_input.py.
"""

import errno
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from pydantic import BaseModel, ValidationError, model_validator
from runs import PROJECT, SLOW_STEPS, differences, make_settings, run_folder, write_config

import train
from system import processes, stopping
from system.errors import UserError, exit_status, message_for_user, summarize_validation
from training.checkpoint import load_checkpoint

LOST = "another process of this run has ended"
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"
KILLED = "DataLoader worker (pid 7) is killed by signal: "


def test_a_problem_in_a_file_is_named_by_its_key_and_reason():
    class Saved(BaseModel):
        epoch: int
        folds: dict[str, int]

        @model_validator(mode="after")
        def check(self):
            if not self.folds:
                raise ValueError("no folds")
            return self

    with pytest.raises(ValidationError) as found:
        Saved.model_validate({"epoch": "x", "folds": {"a": "y", "b": "z"}})
    assert summarize_validation(found.value, 2, with_reasons=False) == "epoch, folds.a and 1 more"
    words = summarize_validation(found.value)
    assert all(f"{key}: Input should be" in words for key in ("epoch", "folds.a", "folds.b"))
    with pytest.raises(ValidationError) as found:
        Saved.model_validate({"epoch": 1, "folds": {}})
    for with_reasons in (False, True):
        assert "no folds" in summarize_validation(found.value, 3, with_reasons)


# --- told apart --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, expected",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "make room"),
        (
            PermissionError(errno.EACCES, "Permission denied", "history.csv"),
            "history.csv: cannot be",
        ),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), LOST),
        (dist.DistStoreError("wait timeout after 600000ms"), LOST),
        (dist.DistBackendError("NCCL error: ncclRemoteError: A call failed"), LOST),
        (RuntimeError(f"{GLOO}pair.cc:561] Connection closed by peer [127.0.0.1]:3064"), LOST),
        (RuntimeError(f"{GLOO}pair.cc:545] Read error [127.0.0.1]:3064: Connection reset"), LOST),
        (RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 3000ms for recv"), LOST),
        (RuntimeError(f"Gloo connectFullMesh failed with {GLOO}pair.cc:1] no error"), LOST),
        (RuntimeError(f"{KILLED}Killed. "), "lower num_workers or batch_size"),
        (RuntimeError(f"{KILLED}Bus error. It is possible that"), "--ipc=host"),
        (
            RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on "
                "device (28)"
            ),
            "--shm-size",
        ),
        (RuntimeError("InvalidCxxCompiler: No working C++ compiler found in"), "one, such as g++"),
        (
            UnicodeEncodeError("ascii", "run/\xfc", 4, 5, "not in range"),
            "run/\\xfc': has characters",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "batch_size"),
    ],
)
def test_an_error_is_told_by_what_it_is(error, expected):
    assert expected in message_for_user(error)


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "Broken pipe"),  # nothing that a disk does
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        RuntimeError("Timed out waiting for a bug"),
        RuntimeError("No space left in the table of bugs"),
    ],
)
def test_an_error_that_only_sounds_like_one_is_a_bug(error):
    if isinstance(error, OSError):
        error.filename = "trainings/tiny"
    assert message_for_user(error) is None


# --- shared memory -----------------------------------------------------------------------------


@pytest.mark.slow
def test_too_little_shared_memory_is_a_message_that_names_the_remedy(tmp_path):
    """As in a container that was started without --ipc=host; one batch needs more."""
    settings = make_settings(tmp_path, num_workers=1, crop_size=200, frame_height=200)
    config = write_config(tmp_path / "config.json", settings)
    small = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", small], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        f'{small} && exec "$@"',
        "sh",
        sys.executable,
        "train.py",
        "-c",
        config,
        "-g",
        "cpu",
    ]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("error: /dev/shm") and "--ipc=host" in ended.stderr


# --- output ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("streams, unbuffered", [("stdout", ""), ("both", "1")])
def test_a_closed_pipe_stops_the_run_with_all_saved(streams, unbuffered, tmp_path, monkeypatch):
    """`train.py | head`, and `train.py 2>&1 | head`: as SIGPIPE would end any other command."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = make_settings(tmp_path, print_freq=1)
    config = write_config(tmp_path / "config.json", settings)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_STEPS, "-c", config, "-g", "cpu"],
        cwd=PROJECT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if streams == "both" else subprocess.PIPE,
    )
    while "step 1/3" not in process.stdout.readline():
        pass
    process.stdout.close()
    assert process.wait(600) == 128 + signal.SIGPIPE
    assert streams == "both" or process.stderr.read() == ""
    saved = load_checkpoint(run_folder(settings) / "checkpoint.pth.tar")
    assert saved["epoch"] < 2
    assert train.main(["-c", config, "-g", "cpu", "--resume"]) == 0
    whole = settings | {"output_dir": str(tmp_path / "whole")}
    assert train.main(["-c", write_config(tmp_path / "whole.json", whole), "-g", "cpu"]) == 0
    assert differences(run_folder(whole), run_folder(settings)) == []


@pytest.mark.slow
def test_output_to_a_full_disk_is_named(tmp_path):
    settings = make_settings(tmp_path)
    command = [sys.executable, "train.py", "-c", write_config(tmp_path / "config.json", settings)]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, cwd=PROJECT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: standard output: cannot be written"), ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_obstacle(closed, tmp_path):
    settings = make_settings(tmp_path, num_epochs=1)
    config = write_config(tmp_path / "config.json", settings)
    command = f"{sys.executable} train.py -c {config} -g cpu {closed}"
    assert subprocess.run(["sh", "-c", command], cwd=PROJECT).returncode == 0
    assert load_checkpoint(run_folder(settings) / "checkpoint.pth.tar")["epoch"] == 1


def test_exit_statuses():
    def fail(error):
        raise error

    assert exit_status(lambda: None) == 0 and exit_status(lambda: 3) == 3
    assert exit_status(lambda: fail(UserError("a mistake"))) == 2
    assert exit_status(lambda: fail(KeyboardInterrupt())) == 130
    assert exit_status(lambda: fail(stopping.Stopped(signal.SIGTERM))) == 143
    with pytest.raises(RuntimeError, match="a bug"):
        exit_status(lambda: fail(RuntimeError("a bug")))


def test_a_program_ends_without_a_search_for_garbage():
    code = (
        "import atexit, gc\nfrom system.errors import end_program\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000, gc.get_count()[2]))\n"
        "end_program(3)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True)
    assert (ended.returncode, ended.stdout.split()[0]) == (3, b"True")


def test_a_mistake_is_told_by_one_process_only(capsys):
    def fail():
        raise UserError("a mistake")

    for is_reporter in (lambda: True, lambda: False):
        assert exit_status(fail, is_reporter) == 2
    assert capsys.readouterr().err == "error: a mistake\n"


# --- leaving -----------------------------------------------------------------------------------


def test_the_process_group_is_told_whether_the_command_succeeded(tmp_path, monkeypatch):
    """With NCCL, destroying the group waits for the others, who may wait for this process."""
    calls = []
    monkeypatch.setattr(processes, "shutdown", lambda has_failed: calls.append(has_failed))
    settings = make_settings(tmp_path, num_epochs=1)
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-g", "cpu", "--set", "lr=-1"]) == 2 and calls == [True]
    assert train.main(["-c", config, "-g", "cpu"]) == 0 and calls == [True, False]

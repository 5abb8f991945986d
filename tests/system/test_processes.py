"""Training and evaluation over several processes: the same figures, one voice, and no hanging.

Each start of torchrun takes seconds, so one does much, and many tests look at what came of it.
The long form: `python -m pytest -m slow tests/system/test_processes.py`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import two_hosts
from conftest import TINY_NETWORK, make_config, write_data_set
from runs import PROJECT, differences, write_config
from torch import nn

import train
from clips.batches import TrainBatches
from model import build_model
from scoring import evaluation
from system import processes
from system.device import choose_device
from system.errors import UserError
from training.checkpoint import load_checkpoint

# What makes the number of processes show in a run is left out. Of the 24 clips the last batch has
# 6, and two processes have parts of 5 and 4 clips.
ANY_NUMBER = {"affine_degrees": 0.0, "affine_translate": 0.0, "dropout": 0.0, "batch_size": 9}
# BatchNorm over each process's own clips is that of one process that computes in parts.
IN_PARTS = ANY_NUMBER | {"batch_size": 8}
EVALUATIONS = {
    "one clip a batch": {"batch_size": 2, "nclips": 2},
    "three clips a batch": {"batch_size": 3},
    "one batch": {"batch_size": 64},
    "two windows": {"batch_size": 6, "nclips": 2},
    "bf16": {"batch_size": 2, "precision": "bf16"},
    "one clip": {"batch_size": 2, "val_data_csv": "one.csv"},
}
# Mistakes that end in one message, whichever process meets them; and what it says.
MISTAKES = {
    "gpu number": ["-g 0: torchrun assigns a GPU to each process", "CUDA_VISIBLE_DEVICES"],
    "flag": ["--resume", "expected True or False, found 'maybe'"],
    "check": ["--check_data", "without torchrun"],
    "config": ["2 problems", "lr:", "batch_sise", '"batch_size"'],
    "small batch": ["batch_size: found 7", "2 processes need at least 8"],
    "occupied": ["already has a run"],
    "too small": ["crop_size: 3 x 3 pixels are too small"],
    "bad training clip": ["clips/broken/00001.jpg: file is empty"],
    "bad validation clip": ["clips/broken/00001.jpg: file is empty"],
    "no number": ["the loss or its gradient is NaN or inf in epoch 1, step 2"],
}


class Project:
    """A data set, and the flags of runs on it."""

    def __init__(self, folder):
        self.folder = folder
        sets = {"train": 24, "validation": 11, "test": 5}
        self.settings = (
            write_data_set(folder, sets)
            | TINY_NETWORK
            | {
                "output_dir": str(folder / "trainings"),
                "num_workers": 0,
                "num_epochs": 2,
                "batch_size": 8,
                "schedule": "constant",
                "lr": 0.003,
                "checkpoint_minutes": 0,
            }
        )
        self.write_csv("one.csv", "validation.csv", {}, 1)
        self.write_broken_clips()

    def flags(self, name, *flags, device="cpu", **changes) -> list[str]:
        """For the run called `name`; CSVs are named without their folder."""
        changes = {
            key: str(self.folder / value) if key.endswith("_csv") else value
            for key, value in changes.items()
        }
        path = self.folder / f"{len(list(self.folder.iterdir()))}.json"
        config = write_config(path, self.settings | {"model_name": name} | changes)
        return ["--config", config, "-g", device, *flags]

    def run_folder(self, name) -> Path:
        return self.folder / "trainings" / name

    def path_of(self, name) -> str:
        """The last checkpoint of a run."""
        return str(self.run_folder(name) / "checkpoint.pth.tar")

    def history(self, name) -> list[dict]:
        return load_checkpoint(self.path_of(name))["history"]

    def write_csv(self, name, source, replaced, num_lines=None):
        """A copy of another CSV, with some ids replaced, or cut short."""
        rows = [line.split(";") for line in (self.folder / source).read_text().split()][:num_lines]
        rows = [(replaced.get(number, row[0]), *row[1:]) for number, row in enumerate(rows)]
        (self.folder / name).write_text("".join(";".join(row) + "\n" for row in rows))

    def write_broken_clips(self):
        """CSVs with a clip that cannot be read, where the second of two processes finds it."""
        folder = self.folder / "clips" / "broken"
        folder.mkdir()
        (folder / "00001.jpg").touch()
        first_batch = self.training_batches()[0]
        self.write_csv("train_broken.csv", "train.csv", {first_batch[1]: "broken"})
        self.write_csv("validation_broken.csv", "validation.csv", {6: "broken"})

    def training_batches(self) -> list[list[int]]:
        """Positions of the clips in the batches of the first epoch."""
        return [[key.index for key in keys] for keys in TrainBatches(24, 8, seed=0)]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("processes"))


# --- starting several processes ----------------------------------------------------------------


def run_python(*arguments):
    """Runs Python to its end, and ends it, with all that it has started, if it hangs."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PROJECT}:{PROJECT}/tests"}
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=PROJECT,
        text=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        output = process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        process.terminate()  # a launcher that is killed leaves its processes behind
        raise AssertionError(f"it hangs: {process.communicate()}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


def torchrun(num_processes, *arguments, restarts=0):
    return run_python(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        num_processes,
        "--max-restarts",
        restarts,
        *arguments,
    )


LAUNCH = """
import sys
from system import stopping
stopping.install()
from system import processes
sys.exit(processes.launch(sys.argv[1], sys.argv[2:], None, num_processes=2))
"""


def launch(*arguments):
    """As `-g 0,1` does it, but on the CPU."""
    return run_python("-c", LAUNCH, *arguments)


SLOW_MAIN = """
import sys, time
from datetime import timedelta
import torch
from torch.distributed.nn import functional  # which `join` imports
from system import processes
processes.rendezvous()  # imports may take one of them longer
processes.TIMEOUT = timedelta(seconds=4)
processes.join(torch.device("cpu"))
assert processes.broadcast_from_main(lambda: time.sleep(6) or 7) == 7
processes.shutdown()
"""


@pytest.mark.slow
def test_the_others_wait_for_long_work_of_the_main_process(tmp_path):
    """Such as the baselines of thousands of long videos, which take longer than the time limit."""
    (tmp_path / "slow.py").write_text(SLOW_MAIN)
    process = torchrun(2, tmp_path / "slow.py")
    assert process.returncode == 0, process.stderr


def test_half_of_torchruns_environment_is_a_mistake(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert train.main(["-c", "configs/quickstart.json"]) == 2
    assert "LOCAL_RANK is set in the environment, but not RANK" in capsys.readouterr().err


class Job:
    """Commands for `several.py`, by name, and what came of them."""

    def __init__(self, project, name, commands):
        self.path = project.folder / f"{name}.job"
        self.path.write_text(json.dumps(list(commands.values())))
        self.names = list(commands)
        self.arguments = [PROJECT / "tests" / "several.py", self.path]

    def results(self, num_processes, start=0) -> dict[str, list[dict]]:
        """Of each command, by rank; of the first start, or after a restart."""
        paths = [self.path.with_suffix(f".{start}.{rank}.json") for rank in range(num_processes)]
        by_rank = [json.loads(path.read_text()) for path in paths if path.exists()]
        return dict(zip(self.names, zip(*by_rank, strict=False), strict=False))


def run_job(project, num_processes, commands) -> dict[str, list[dict]]:
    job = Job(project, f"{num_processes} processes", commands)
    process = torchrun(num_processes, *job.arguments)
    results = job.results(num_processes)
    assert results.keys() == commands.keys(), process.stdout + process.stderr
    return results


def evaluations(project, number) -> dict[str, dict]:
    """Commands that evaluate one and the same checkpoint, for so many processes."""
    same = {"checkpoint": project.path_of("same 1")}
    commands = {
        name: project.flags(f"{name} {number}", "-e", "-r", **same | changes)
        for name, changes in EVALUATIONS.items()
    }
    return commands | {"test set": project.flags(f"test set {number}", "-t", "-r", **same)}


def as_commands(flags: dict[str, list[str]]) -> dict[str, dict]:
    return {name: {"flags": of_one} for name, of_one in flags.items()}


@pytest.fixture(scope="module")
def one(project):
    """What one process does, for comparison."""
    runs = {
        "same": project.flags("same 1", **ANY_NUMBER),
        "parts": project.flags("parts 1", **IN_PARTS, accumulate_steps=2),
        "accumulated": project.flags("accumulated 1", **IN_PARTS, accumulate_steps=4),
    }
    for flags in (runs | evaluations(project, 1)).values():
        assert train.main(flags) == 0


@pytest.fixture(scope="module")
def two(project, one):
    flags = {
        "same": project.flags("same 2", **ANY_NUMBER, sync_batchnorm=True),
        "parts": project.flags("parts 2", **IN_PARTS),
        "accumulated": project.flags("accumulated 2", **IN_PARTS, accumulate_steps=2),
        "whole": project.flags("whole 2"),
    }
    mistakes = {
        "gpu number": project.flags("mistake", device="0"),
        "flag": project.flags("mistake", "--resume", "maybe"),
        "check": project.flags("mistake", "--check_data"),
        "config": project.flags("mistake", lr=-1.0, batch_sise=8),
        "small batch": project.flags("mistake", batch_size=7, accumulate_steps=2),
        "occupied": project.flags("whole 2"),
        "too small": project.flags("mistake", crop_size=3),
        "bad training clip": project.flags("bad", "--overwrite", train_data_csv="train_broken.csv"),
        "bad validation clip": project.flags(
            "bad",
            "-e",
            "-r",
            batch_size=4,
            val_data_csv="validation_broken.csv",
            checkpoint=project.path_of("same 1"),
        ),
    }
    commands = as_commands(flags | evaluations(project, 2) | mistakes) | {
        "no number": {
            "flags": project.flags("no number"),
            "fault": "lose_a_number",
            "at": [0, 1],
            "rank": 1,
        },
        "watched": {"flags": project.flags("watched", checkpoint_minutes=10.0), "watch": True},
    }
    return run_job(project, 2, commands)


@pytest.fixture(scope="module")
def three(project, one):
    flags = {
        "same": project.flags("same 3", **ANY_NUMBER, sync_batchnorm=True),
        "whole": project.flags("whole 3"),
    }
    interrupted = {"flags": project.flags("interrupted 3"), "fault": "power_cut", "at": [1, 1]}
    commands = as_commands(flags | evaluations(project, 3)) | {
        "interrupted": interrupted,
        "resumed": {"flags": [*interrupted["flags"], "--resume"]},
    }
    return run_job(project, 3, commands)


@pytest.fixture(params=["two", "three"])
def several(request):
    """The number of processes, and what came of their commands."""
    return {"two": 2, "three": 3}[request.param], request.getfixturevalue(request.param)


# --- figures -----------------------------------------------------------------------------------


def figures(project, name, *keys):
    return [[row[key] for key in keys] for row in project.history(name)]


def check_gradients(project, name, other_name):
    """Adam follows gradients of any scale in the same way; its running means show the scale."""
    means = []
    for path in (project.path_of(name), project.path_of(other_name)):
        states = load_checkpoint(path)["optimizer"]["state"].values()
        means.append(torch.cat([state["exp_avg"].flatten() for state in states]))
    assert (means[0] - means[1]).norm() < 0.02 * means[0].norm()


def check_curve(project, results, name, number):
    assert [result["status"] for result in results[name]] == [0] * number
    for key, tolerance in (("loss", 1e-5), ("top1", 0), ("val_loss", 1e-3)):
        expected = figures(project, f"{name} 1", key)
        assert figures(project, f"{name} {number}", key) == [
            pytest.approx(row, abs=tolerance) for row in expected
        ]
    check_gradients(project, f"{name} 1", f"{name} {number}")


def test_two_processes_train_as_one_does(project):
    """Alone, with the quick tests: the others share two long jobs."""
    assert train.main(project.flags("quick 1", **ANY_NUMBER)) == 0
    flags = {"quick": project.flags("quick 2", **ANY_NUMBER, sync_batchnorm=True)}
    check_curve(project, run_job(project, 2, as_commands(flags)), "quick", 2)


@pytest.mark.slow
def test_training_gives_the_same_curve(project, several):
    number, results = several
    check_curve(project, results, "same", number)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parts", "accumulated"])
def test_each_process_has_its_part_of_a_batch(project, two, name):
    assert [result["status"] for result in two[name]] == [0, 0]
    expected, found = (figures(project, f"{name} {number}", "loss", "top1") for number in (1, 2))
    # BatchNorm over two clips leaves next to nothing of a gradient, and Adam makes much of that.
    tolerance = 1e-5 if name == "parts" else 1e-3
    assert found == [pytest.approx(row, abs=tolerance) for row in expected]
    check_gradients(project, f"{name} 1", f"{name} 2")


def test_batchnorm_over_all_processes_is_for_gpus(project, capsys, monkeypatch):
    flags = {"sync_batchnorm": True, "num_epochs": 1}
    assert train.main(project.flags("synchronised", **flags)) == 2
    assert "sync_batchnorm: found true; on the CPU" in capsys.readouterr().err
    assert not project.run_folder("synchronised").exists()
    # Of a network that was trained so, nothing is synchronised in evaluation.
    assert train.main(project.flags("plain", num_epochs=1)) == 0
    assert train.main(project.flags("plain", "-e", "-r", **flags)) == 0

    monkeypatch.setattr(processes, "world_size", lambda: 2)
    for model in ("conv3d", "cnn_lstm"):
        network = build_model(make_config(model=model, clip_size=4, crop_size=32), 3)
        number = count(network, nn.modules.batchnorm._BatchNorm)
        processes.synchronise_batchnorm(network, torch.device("cuda"))
        assert count(network, nn.SyncBatchNorm) == number > 4


def count(network, kind) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.slow
def test_one_exchange_for_each_step(two):
    """Besides the gradients; and the pass before the first step leaves no trace."""
    for result in two["watched"]:
        watched = result["watched"]
        # Between the two epochs there are the validation, and a checkpoint.
        first, second, *between, last, very_last = watched["calls"]
        assert len(between) == 1 and "broadcast" in between[0]
        assert [first, second, last, very_last] == 4 * [["all_gather"]]
        assert set(watched["buffers"]) == {0.0}
        assert watched["views"] and not watched["broadcast_buffers"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EVALUATIONS, "test set"])
def test_evaluation_writes_the_same_bytes(project, several, name):
    number, results = several
    assert [result["status"] for result in results[name]] == [0] * number
    expected, found = (
        {
            path.name: path.read_bytes().replace(f"{name} {count}".encode(), b"run")
            for path in project.run_folder(f"{name} {count}").iterdir()
        }
        for count in (1, number)
    )
    assert found == expected
    assert expected.keys() == (
        {"test_predictions.csv", "test_submission.csv"}
        if name == "test set"
        else {"predictions.csv", "logits.npz", "confusion_matrix.png", "report.html"}
    )


@pytest.mark.slow
def test_validation_scores_are_those_of_one_process(project, two):
    """Even where each process has BatchNorm statistics of its own while it trains."""
    flags = project.flags("whole 2 by 1", "-e", "-r", checkpoint=project.path_of("whole 2"))
    assert train.main(flags) == 0
    saved = np.load(project.run_folder("whole 2 by 1") / "logits.npz")
    scores = evaluation.score(*(torch.from_numpy(saved[name]) for name in ("logits", "labels")))
    last = project.history("whole 2")[-1]
    assert scores == {name: last[f"val_{name}"] for name in scores}


# --- one voice ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_only_the_main_process_writes_and_prints(several):
    _, results = several
    for name in ("whole", "one batch", "test set"):
        main, *others = results[name]
        assert main["written"] and "clips" in main["stdout"]
        for result in others:
            assert (result["stdout"], result["stderr"]) == ("", "")
            # Each process resets its own peak of memory, by a file that is none.
            assert set(result["written"]) <= {os.devnull, "/proc/self/clear_refs"}


@pytest.mark.slow
def test_the_threads_of_a_process_group_end_before_python_does(several):
    """One that still wants the GIL then would abort a process that has finished."""
    _, results = several
    for name in results:
        if results[name][0]["status"] != "power cut":
            for result in results[name]:
                assert not [thread for thread in result["threads"] if "gloo" in thread], name


EXITS = """
import json, os, socket, sys
import train

def run(rank, port):
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2,
           "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()})
    sys.setswitchinterval(100)  # so that threads of C++ that need the GIL are late
    sys.exit(train.main(sys.argv[1:]))

statuses = []
for _ in range(10):
    with socket.create_server(("localhost", 0)) as server:
        port, children = server.getsockname()[1], []
    for rank in range(2):
        children.append(os.fork())
        if not children[-1]:
            run(rank, port)
    statuses += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print("statuses", json.dumps(statuses))
"""


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--overwrite"], ["-e", "-r"]], ids=["training", "evaluation"])
def test_each_of_twenty_processes_that_finish_exits_with_0(project, one, flags):
    flags = project.flags("exits", *flags, num_epochs=1, checkpoint=project.path_of("same 1"))
    process = run_python("-c", EXITS, *flags)
    statuses = process.stdout.rpartition("statuses ")[2]
    assert json.loads(statuses) == [0] * 20, process.stdout + process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_once(project, two, name):
    assert [result["status"] for result in two[name]] == [2, 2]
    told = "".join(result["stderr"] for result in two[name])
    assert told.count("error: ") == 1 and told.startswith("error: ")
    assert "Traceback" not in told and all(fragment in told for fragment in MISTAKES[name])
    assert not project.run_folder("mistake").exists()


@pytest.mark.slow
def test_a_loss_that_is_no_number_names_the_clips_of_its_process(project, two):
    ids = [line.split(";")[0] for line in (project.folder / "train.csv").read_text().split()]
    own = [ids[index] for index in project.training_batches()[1][1::2]]
    told = "".join(result["stderr"] for result in two["no number"])
    assert f"with the clips {', '.join(own)};" in told


# --- a process that dies -----------------------------------------------------------------------


@pytest.mark.slow
def test_three_processes_resume_exactly(project, three):
    statuses = [three[name][0]["status"] for name in ("whole", "interrupted", "resumed")]
    assert statuses == [0, "power cut", 0]
    assert "checkpoint.pth.tar: 1 epochs, 1 steps" in three["resumed"][0]["stdout"]
    assert differences(project.run_folder("whole 3"), project.run_folder("interrupted 3")) == []


def check_killed(project, rank, num_workers=0):
    """A process is killed; the others end soon, torchrun starts all again, and they resume."""
    name = f"killed {rank}"
    flags = project.flags(name, "--resume", "auto", num_workers=num_workers)
    job = Job(
        project, name, {"train": {"flags": flags, "fault": "kill", "at": [1, 1], "rank": rank}}
    )
    process = torchrun(2, *job.arguments, restarts=2)
    output = process.stdout + process.stderr
    assert process.returncode == 0 and "Traceback" not in output, output
    (first,) = job.results(2)["train"]
    check_lost(first)
    seconds = first["ended"] - float(job.path.with_suffix(".killed").read_text())
    print(f"the other process ended {seconds:.1f} seconds after rank {rank} was killed")
    assert seconds < 120  # far less than processes.TIMEOUT
    main, other = job.results(2, start=1)["train"]
    assert main["status"] == other["status"] == 0
    assert "checkpoint.pth.tar: 1 epochs, 1 steps" in main["stdout"]
    assert differences(project.run_folder("whole 2"), project.run_folder(name)) == []
    assert not has_processes(job.path)


def check_lost(result):
    """Another process has gone: one message, and status 2."""
    assert result["status"] == 2 and result["stderr"].count("\n") == 1, result["stderr"]
    assert result["stderr"].startswith("error: another process of this run has ended")


def has_processes(text) -> bool:
    """Whether a process with `text` in its command line is there, and still is 60 s later."""
    for _ in range(600):
        lines = list(map(read_command_line, Path("/proc").glob("[0-9]*")))
        if not any(str(text).encode() in line for line in lines):
            return False
        time.sleep(0.1)
    return True


def read_command_line(process) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


@pytest.mark.slow
def test_the_others_end_and_resume_when_one_is_killed(project, two):
    check_killed(project, rank=1)


@pytest.mark.slow
def test_the_others_end_and_resume_when_the_main_one_is_killed(project, two):
    """The reader of a dead process holds its connections until it sees that, after 5 seconds."""
    check_killed(project, rank=0, num_workers=1)


@pytest.mark.slow
def test_two_hosts_of_which_one_is_killed_and_started_again(project):
    missing = two_hosts.why_not()
    if missing:
        pytest.skip(missing)
    flags = {name: project.flags(name, "--resume", "auto") for name in ("hosts", "killed host")}
    whole = Job(project, "hosts", {"train": {"flags": flags["hosts"]}})
    fault = {"fault": "kill_host", "at": [1, 1], "rank": 1}
    killed = Job(project, "killed host", {"train": {"flags": flags["killed host"], **fault}})
    again = Job(project, "started again", {"train": {"flags": flags["killed host"]}})

    with two_hosts.two_hosts() as (first, second):
        check_ended(first.torchrun(*whole.arguments), second.torchrun(*whole.arguments))
        survivor, victim = first.torchrun(*killed.arguments), second.torchrun(*killed.arguments)
        assert victim.wait(600) == -signal.SIGKILL
        check_ended(survivor, second.torchrun(*again.arguments))

    check_lost(killed.results(2)["train"][0])
    resumed = killed.results(2, start=1)["train"][0]
    assert "checkpoint.pth.tar: 1 epochs, 1 steps" in resumed["stdout"]
    assert differences(project.run_folder("hosts"), project.run_folder("killed host")) == []


@pytest.mark.slow
def test_the_demonstration_of_two_hosts():
    if two_hosts.why_not():
        pytest.skip(two_hosts.why_not())
    shown = run_python("tests/two_hosts.py")
    assert shown.returncode == 0 and shown.stderr == "", shown.stdout + shown.stderr
    before, after = shown.stdout.split("--- the second host is killed, and starts again")
    assert before.count("\nepoch ") == 3 and "2 x CPU" in before
    # Until the signal comes, the run goes on.
    assert re.search(r"checkpoint\.pth\.tar: [3-5] epochs", after) and "training is over" in after
    assert after.endswith("--- both hosts have finished the run\n")


def test_the_demonstration_of_two_hosts_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(two_hosts, "why_not", lambda: "needs root")
    assert two_hosts.main() == 2
    assert "this one needs root" in capsys.readouterr().err


def check_ended(*torchruns):
    """Both go on at the same time, so that neither may wait to be read."""
    outputs = [process.communicate(timeout=900)[0] for process in torchruns]
    assert [process.returncode for process in torchruns] == [0, 0], outputs


# --- signals -----------------------------------------------------------------------------------


def check_stopped(project, name, start, number, **fault):
    """A signal comes to one process, or the launcher: all stop after one and the same step."""
    job = Job(
        project,
        f"{name} {fault['at']}",
        {"train": {"flags": project.flags(name, "--resume", "auto"), **fault}},
    )
    process = start(*job.arguments)
    results = job.results(2)["train"]
    assert [result["status"] for result in results] == [128 + number] * 2, process.stderr
    assert "".join(result["stderr"] for result in results) == ""
    epoch, step = fault["at"]
    stopped = f"stopped by {signal.Signals(number).name} after epoch {epoch}, step {step + 1}"
    assert f"{stopped}; all is saved" in results[0]["stdout"]
    return process.returncode


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_two_gpus_start_the_launcher(project, two_gpus, monkeypatch):
    launched = []
    monkeypatch.setattr(processes, "launch", lambda *arguments: launched.append(arguments) or 7)
    flags = project.flags("mistake", device="0,1")
    assert train.main(flags) == 7
    assert launched == [(train.__file__, flags, [0, 1])]


def test_a_gpu_that_is_not_there_is_a_mistake(project, two_gpus, capsys, monkeypatch):
    assert train.main(project.flags("mistake", device="0,2")) == 2
    assert "-g 0,2: this machine has GPUs 0 to 1" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="this machine has 2 GPUs; start that many"):
        choose_device(None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device(None) == torch.device("cuda", 1)
    assert choose_device("cpu") == choose_device(None, use_gpu=False) == torch.device("cpu")


def test_without_a_gpu_the_cpu_is_used(project, capsys):
    flags = project.flags("without", device="0,1", num_epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert train.main(flags) == 0
    told = capsys.readouterr()
    assert told.err == "warning: -g 0,1: this machine has no CUDA GPU; using the CPU\n"
    assert told.out.startswith("1 x CPU")


@pytest.mark.parametrize("flags", [["-g", "0,1"], ["-g0,1"], ["--gpus=0,1"], ["--gpu", "0,1"]])
def test_the_launcher_takes_the_gpus_it_is_told(flags, monkeypatch):
    """In the children `-g` would be a mistake; and the GPUs may be a scheduler's choice of all."""
    started = []

    def start(config, _program):
        started.append((config.nproc_per_node, config.max_restarts))
        return lambda *arguments: started.append(arguments)

    monkeypatch.setattr(processes, "elastic_launch", start)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for visible, expected in (("", "2,0"), ("5,6,7", "7,5"), ("GPU-a,GPU-b,GPU-c", "GPU-c,GPU-a")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert processes.launch("train.py", ["-c", "a.json", *flags, "--resume"], [2, 0]) == 0
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    assert started == 3 * [(2, 0), ("train.py", "-c", "a.json", "--resume")]


@pytest.mark.slow
def test_the_launcher_passes_on_a_mistake(project):
    """On the CPU, where two GPUs cannot be had."""
    process = launch("train.py", *project.flags("mistake", lr=-1.0))
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert process.stderr.count("error: ") == 1 and "lr: " in process.stderr


@pytest.mark.slow
def test_signals(project, two):
    def two_processes(*arguments):
        return torchrun(2, *arguments)

    name = "signals"
    terminate, interrupt = signal.SIGTERM, signal.SIGINT
    at_launcher = {"fault": "terminate_launcher", "at": [0, 0], "rank": 0}
    assert check_stopped(project, name, launch, terminate, **at_launcher) == 128 + terminate
    at_torchrun = {"fault": "interrupt_launcher", "at": [0, 2], "rank": 0}
    check_stopped(project, name, two_processes, interrupt, **at_torchrun)
    at_one = {"fault": "terminate", "at": [1, 1], "rank": 1}
    check_stopped(project, name, two_processes, terminate, **at_one)
    process = torchrun(2, "train.py", *project.flags(name, "--resume", "auto"))
    assert process.returncode == 0, process.stderr
    assert differences(project.run_folder("whole 2"), project.run_folder(name)) == []

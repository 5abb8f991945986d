"""Runs of train.py: how they are started, and how two of them are compared, bit for bit."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from unittest import mock

import torch
from conftest import TINY_NETWORK, write_data_set
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

import train
from system import processes

PROJECT = Path(train.__file__).parent
# What differs between two equal runs: the time and memory that they took, and where they lie.
WALL_TIMES = ("seconds", "clips_per_second", "peak_memory_mib")
PLACES = ("config", "tensorboard", "seconds")


# --- what a run leaves -------------------------------------------------------------------------


def run_folder(settings) -> Path:
    return Path(settings["output_dir"]) / settings["model_name"]


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def without_times(history):
    return [{key: value for key, value in row.items() if key not in WALL_TIMES} for row in history]


def curves(folder):
    """{(writer, tag): [(step, value), ...]} as the event files hold them, wall times left out.

    Read from the files' own records: TensorBoard's reader hides what stands there twice.
    """
    found = {}
    for name in ("train", "validation"):
        for path in sorted((folder / "tensorboard" / name).iterdir()):
            for record in RawEventFileLoader(str(path)).Load():
                event = Event.FromString(record)
                for value in event.summary.value:
                    if value.tag not in WALL_TIMES:
                        points = found.setdefault((name, value.tag), [])
                        points.append((event.step, _content(value)))
    return found


def _content(value):
    """The number of a scalar, the bytes of a picture; the hyper-parameters name the place."""
    if value.HasField("simple_value"):
        return value.simple_value
    return value.image.encoded_image_string if value.HasField("image") else None


def results(folder) -> dict:
    """All that a finished run leaves that must not depend on where it was interrupted, by name."""
    found = {"history.csv": without_times(read_csv(folder / "history.csv"))}
    found |= {f"curve {name}": points for name, points in curves(folder).items()}
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
        if not (folder / name).exists():
            continue
        saved = torch.load(folder / name, weights_only=True)
        saved["history"] = without_times(saved["history"])
        found |= _flat({key: saved[key] for key in saved if key not in PLACES}, name)
    if (folder / "bad_clips.csv").exists():
        found["bad_clips.csv"] = read_csv(folder / "bad_clips.csv")
    found["files"] = sorted(
        path.name for path in folder.iterdir() if path.name != "checkpoint_previous.pth.tar"
    )
    return found


def _flat(value, name) -> dict:
    if not isinstance(value, dict):
        return {name: value}
    items = [_flat(inner, f"{name} {key}") for key, inner in value.items()]
    return {key: inner for item in items for key, inner in item.items()}


def differences(folder, other_folder) -> list[str]:
    """What two finished runs differ in, by name; for weights, with the largest difference."""
    first, second = results(folder), results(other_folder)
    found = sorted(first.keys() ^ second.keys())
    for name in first.keys() & second.keys():
        one, other = first[name], second[name]
        if not isinstance(one, torch.Tensor):
            found += [] if one == other else [f"{name}: {str(one)[:200]} and {str(other)[:200]}"]
        elif not torch.equal(one, other):
            found.append(f"{name}: by {(one.double() - other.double()).abs().max():g}")
    return sorted(found)


# --- starting runs -----------------------------------------------------------------------------


def make_settings(folder, **changes) -> dict:
    """Data of 22 training and 7 validation clips, and the keys of a config that trains on them.

    Three steps an epoch, the last one smaller, with a checkpoint after each.
    """
    return (
        write_data_set(folder / "data", {"train": 22, "validation": 7})
        | TINY_NETWORK
        | {
            "model_name": "tiny",
            "output_dir": str(folder / "trainings"),
            "batch_size": 8,
            "num_workers": 0,
            "num_epochs": 2,
            "schedule": "constant",
            "lr": 0.003,
            "eval_batch_size": 4,
            "checkpoint_minutes": 0,
            **changes,
        }
    )


def write_config(path, settings) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(settings))
    return str(path)


class PowerCut(BaseException):
    """Ends a run as if its process had died, without the process."""


def power_cut(*_):
    raise PowerCut


def train_until(arguments, epoch, step, die=power_cut) -> None:
    """Trains in this process, and dies in a step; both count from 0.

    What the step had changed when it died is lost with the process, as the batch was. Of several
    processes the main one dies, which others have lost then: it may still be saving when they are
    already in that step.
    """
    train_step = train.train_step

    def step_or_die(run, *rest):
        if (run.state.epoch, run.state.step) == (epoch, step) and processes.is_main():
            die()
        return train_step(run, *rest)

    with mock.patch.object(train, "train_step", step_or_die), suppress(PowerCut):
        status = train.main(arguments)
        raise AssertionError(f"the run ended before it could be interrupted, with {status}")


# `train.py` with steps of a second: long enough for what comes from outside to find it at work.
SLOW_STEPS = """
from system import stopping
stopping.install()
import sys, time, train
train_step = train.train_step
def slow_step(*arguments):
    time.sleep(1)
    return train_step(*arguments)
train.train_step = slow_step
sys.exit(train.main())
"""


class Command:
    """`python train.py` as a process of its own, in a process group of its own."""

    def __init__(self, config, *arguments, start=("train.py",)):
        self.process = subprocess.Popen(
            [sys.executable, *start, "--config", config, "-g", "cpu", *arguments],
            cwd=PROJECT,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.output = ""

    def wait_for(self, text) -> None:
        """Until a line of the output holds `text`."""
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} never came:\n{self.output}{self.process.stderr.read()}")

    def send(self, number, to_group=False) -> None:
        (os.killpg if to_group else os.kill)(self.process.pid, number)

    def finish(self, seconds=600):
        """Exit status, stdout and stderr; what is still running after `seconds` is killed."""
        try:
            rest, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            rest, errors = self.process.communicate()
            errors += f"\nstill running {seconds} seconds later"
        return self.process.returncode, self.output + rest, errors

    def has_left_processes(self) -> bool:
        """Whether anything of its process group is still there a moment after its end."""
        for _ in range(600):
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.1)
        return True


def die_for_real():
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    # `runs.py EPOCH STEP FLAGS`: train.py FLAGS, until it is killed in that step.
    train_until(sys.argv[3:], int(sys.argv[1]), int(sys.argv[2]), die_for_real)

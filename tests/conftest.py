"""A small data set in Jester's layout, and configs for it: all that the tests train on."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from config import Config
from reporting import confusion_matrix, curves, line_chart
from system import device

torch.set_num_threads(1)  # the networks here are too small for more
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that tests start

CLASSES = ["Left", "Right", "Still"]
TINY_NETWORK = {
    "clip_size": 4,
    "step_size": 2,
    "frame_height": 24,
    "crop_size": 20,
    "block_widths": [4, 8],
    "head_widths": [16, 8],
    "precision": "fp32",  # as CPUs with and without bf16 compute alike
    "baseline_clips": 0,
}


def slow_except(cases, quick) -> list:
    """Return the parameters of a test; those that are not `quick` run with the slow tests."""
    marks = [pytest.mark.slow]
    return [pytest.param(case, marks=[] if case in quick else marks) for case in cases]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def process_as_it_was():
    """Each test begins with the same seeds, and leaves the settings of the process to the next.

    Commands, which set some of them for the life of their process, run in the tests' own.
    """
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    flags, environment = (cudnn.benchmark, cudnn.deterministic), dict(os.environ)
    device.number_format.cache_clear()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    cudnn.benchmark, cudnn.deterministic = flags
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="module")
def blank_pictures():
    """Runs draw blank charts and matrices: drawing them takes as long as such a small training.

    For modules that do not look at them; those of `reporting/` do.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_chart, "_draw", lambda *_: "<svg ></svg>")
        for module in (confusion_matrix, curves):
            patch.setattr(
                module, "draw_confusion_matrix", lambda *_: np.full((8, 8, 3), 255, np.uint8)
            )
        yield


def network_keys(name) -> dict:
    """The keys of a config that name a network; an average needs members."""
    members = {"members": ["eco", "conv3d"]} if name == "average" else {}
    return {"model": name} | members


def make_config(**keys) -> Config:
    """A config without data."""
    paths = ["train_data_folder", "train_data_csv", "val_data_folder", "val_data_csv", "labels_csv"]
    return Config(**dict.fromkeys(paths, "") | {"model_name": "a run"} | keys)


def draw_frames(label, num_frames, rng, height=24, width=32) -> np.ndarray:
    """A bright square that moves left, right, or stays. uint8 [T, H, W, 3]."""
    frames = rng.integers(0, 60, (num_frames, height, width, 3), np.uint8)
    speed = {"Left": -1, "Right": 1, "Still": 0}[label]
    start = rng.integers(0, width)
    top = rng.integers(2, height - 10)
    for position, frame in enumerate(frames):
        columns = (start + speed * position + np.arange(8)) % width
        frame[top : top + 8, columns] = 230
    return frames


def write_clip(folder, frames, suffix=".jpg"):
    folder = Path(folder)
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, 1):
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), 95)
        (folder / f"{number:05d}{suffix}").write_bytes(data)


def write_data_set(root, clips_per_set, seed=0, num_frames=(6, 12)):
    """Frames and CSVs below `root`; returns the config keys that point to them."""
    rng = np.random.default_rng(seed)
    clip_id = 0
    for set_name, num_clips in clips_per_set.items():
        lines = []
        for number in range(num_clips):
            clip_id += 1
            label = CLASSES[number % len(CLASSES)]
            length = rng.integers(*num_frames, endpoint=True)
            write_clip(root / "clips" / str(clip_id), draw_frames(label, length, rng))
            lines.append(str(clip_id) if set_name == "test" else f"{clip_id};{label}")
        (root / f"{set_name}.csv").write_text("\n".join(lines) + "\n")
    (root / "labels.csv").write_text("\n".join(CLASSES) + "\n")
    paths = {"labels_csv": str(root / "labels.csv")}
    for set_name, prefix in (("train", "train"), ("validation", "val"), ("test", "test")):
        paths[f"{prefix}_data_folder"] = str(root / "clips")
        paths[f"{prefix}_data_csv"] = str(root / f"{set_name}.csv")
    return paths


@pytest.fixture(scope="session")
def data_set(tmp_path_factory):
    """Config keys of 14 training, 7 validation and 5 test clips of three classes."""
    root = tmp_path_factory.mktemp("data")
    return write_data_set(root, {"train": 14, "validation": 7, "test": 5})


@pytest.fixture
def settings(data_set, tmp_path):
    """The keys of a config that trains a tiny network for two epochs."""
    return (
        data_set
        | TINY_NETWORK
        | {
            "model_name": "tiny",
            "output_dir": str(tmp_path / "trainings"),
            "batch_size": 4,
            "num_workers": 0,
            "num_epochs": 2,
            "schedule": "constant",
            "lr": 0.003,
        }
    )


@pytest.fixture
def write_config(settings, tmp_path):
    """Writes a config file with some keys changed (None removes a key); returns its path."""

    def write(name="config.json", **changes):
        values = {key: value for key, value in (settings | changes).items() if value is not None}
        path = tmp_path / name
        path.write_text(json.dumps(values))
        return str(path)

    return write

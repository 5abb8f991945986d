"""What export.py writes: whole, described, checked against the checkpoint, and usable alone."""

import ast
import errno
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import venv
import wave
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES, draw_frames
from exported import RUNTIME, exported, load_classify, needs_runtime
from movies import write_video

from clips.folders import open_clip
from exporting import checking, graph, package
from exporting.about import _network_text, _nothing_text, _pretrained_text
from exporting.package import (
    CDN,
    CDN_HASHES,
    CDN_VERSION,
    RUNTIME_FILES,
    UserError,
    export,
    integrity,
    runtime_of,
)
from scoring.predictor import load_predictor
from training.checkpoint import load_checkpoint

PROJECT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow  # each trains, exports and checks a network
FILES = {"README.md", "classify.py", "index.html", "network.onnx"}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return exported(tmp_path_factory)


def read_about(path):
    (entry,) = onnx.load(path).metadata_props
    assert entry.key == "about"
    return json.loads(entry.value)


# --- the folder --------------------------------------------------------------------------------


def test_classify_gives_what_predict_gives(made):
    classifier = load_classify(made.folder).Classifier(made.folder / "network.onnx")
    predictor = load_predictor(made.checkpoint, torch.device("cpu"))
    folder = made.settings["val_data_folder"]
    for clip_id in ("23", *(f"{name}.webm" for name in CLASSES)):
        source = open_clip(f"{folder}/{clip_id}", predictor.config)
        film = f"{folder}/{clip_id}"
        if clip_id == "23":
            film = np.stack(list(source.frames_at(range(len(source)))))
        expected = dict(zip(CLASSES, predictor.scores(source).whole, strict=True))
        assert classifier(film) == pytest.approx(expected, abs=0.02), clip_id


def test_the_check_says_so(made):
    found = made.agreement
    assert found.num_clips == found.num_same == 10 and found.num_unread == 0
    assert found.difference < 0.01 and not found.are_random
    assert found.windows_per_second > 0
    assert found.sentence() in " ".join((made.folder / "README.md").read_text().split())
    fractions = [fraction for fraction, _ in made.progress]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert any("comparing clip 10 of 10" in text for _, text in made.progress)


def test_metadata_say_what_a_caller_needs(made):
    about = read_about(made.folder / "network.onnx")
    assert about["classes"] == CLASSES and about["frame_rate"] == 12
    assert (about["frames"], about["step"], about["windows"]) == (4, 2, 2)
    assert about["crop"] == [20, 20] and about["frame_height"] == 24
    assert about["training_clips"] == {"Left": 8, "Right": 7, "Still": 7}
    row = load_checkpoint(made.checkpoint)["history"][-1]
    assert about["validation"]["top1"] == row["val_top1"]
    assert about["validation"]["interval_95"] == [row["val_top1_low"], row["val_top1_high"]]
    assert about["live"] == {
        "seconds": 3.0,
        "frames": 36,
        "smoothing_seconds": 0.25,
        "threshold": 0.8,
    }
    assert about["versions"]["torch"] == torch.__version__ and about["exported"].startswith("20")


def test_the_card_says_what_was_not_in_the_training_clips(made):
    card = " ".join((made.folder / "README.md").read_text().split())
    assert "| Left | 8 | | Right | 7 | | Still | 7 |" in card
    assert "People, rooms, light" in card and "No class is “nothing”" in card
    assert re.search(r"[\d.]+ % of 10 clips .* \(95 % interval [\d.]+ to [\d.]+ %\)", card)
    assert all(f"`{name}`" in card or name in card for name in FILES - {"README.md"})
    assert "is only what was recorded as such" in _nothing_text(["a", "Nothing"])
    assert "The training started from" not in card  # it started from random weights
    network = {"model": "average", "members": ["conv3d", "eco"], "backbone": "efficientnet_lite0"}
    assert _network_text(network) == "average of conv3d and eco"
    text = _pretrained_text(network | {"pretrained": "imagenet"})
    assert "ImageNet weights of efficientnet_lite0 (Apache License 2.0)" in text
    assert "weights `file.pth`" in _pretrained_text(network | {"pretrained": "file.pth"})


def test_the_folder_works_where_its_three_packages_are_alone(made, tmp_path):
    """A new environment, with links to numpy, onnxruntime, av, and what these need."""
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    for name in needed({"numpy", "onnxruntime", "av"}):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    shutil.copytree(made.folder, tmp_path / "gestures")
    film = write_video(tmp_path / "a.mp4", draw_frames("Left", 20, np.random.default_rng(0)))

    def run(*command):
        command = [tmp_path / "venv/bin/python", "-I", *command]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert "No module named 'torch'" in run("-c", "import torch").stderr
    assert "classify.py VIDEO..." in run("gestures/classify.py").stderr
    shown = run("gestures/classify.py", film)
    assert shown.returncode == 0, shown.stderr
    assert re.match(rf"{film} (Left|Right|Still) [\d.]+%", shown.stdout)
    (tmp_path / "b.mp4").write_text("no film")
    with wave.open(str(tmp_path / "c.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 800, "NONE", ""))
        sound.writeframes(bytes(1600))
    shutil.copyfile(film, tmp_path / "film.mp4")  # as a camera that is unplugged
    for command in (["no.mp4"], ["b.mp4"], ["c.wav"], ["--camera"]):
        for flags in ([], ["--camera"])[: 1 + (command[0] != "--camera")]:
            shown = run("gestures/classify.py", *flags, *command)
            assert shown.returncode == 1 and shown.stderr.count("\n") == 1, shown.stderr
            assert command[-1] in shown.stderr and "Traceback" not in shown.stderr
    shown = run("gestures/classify.py", "--camera", "film.mp4")
    assert (shown.returncode, shown.stderr) == (1, "film.mp4: has ended\n")
    shutil.move(film, tmp_path / "gestures" / "video.mp4")
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "classify" in block)
    here = "import os, sys; os.chdir('gestures'); sys.path.insert(0, '')\n"
    shown = run("-c", here + code)
    assert shown.returncode == 0 and set(ast.literal_eval(shown.stdout)) == {*CLASSES}


def needed(names, found=()) -> set[str]:
    """The names of packages, and of those that they require here."""
    found = set(found)
    for name in names - found:
        lines = importlib.metadata.distribution(name).requires or ()
        others = {re.match(r"[\w.-]+", line)[0] for line in lines if ";" not in line}
        found |= needed(others, {*found, name})
    return found


# --- other outputs -----------------------------------------------------------------------------


@pytest.fixture
def quick_graph(made, monkeypatch):
    """The graph of the folder in the place of a new one, which takes ten seconds."""

    def build(predictor, checkpoint):
        model = onnx.load(made.folder / "network.onnx")
        del model.metadata_props[:]
        return model

    monkeypatch.setattr(graph, "build_graph", build)
    monkeypatch.setattr(checking, "SPEED_SECONDS", 0)


@pytest.fixture
def checkpoint(made, tmp_path):
    """Makes a copy of the checkpoint with some keys changed."""

    def change(config=(), **keys):
        saved = load_checkpoint(made.checkpoint)
        saved |= {"config": saved["config"] | dict(config)} | keys
        torch.save(saved, tmp_path / "changed.pth.tar")
        return tmp_path / "changed.pth.tar"

    return change


def test_a_zip_has_the_same_files(made, quick_graph, tmp_path):
    export(made.checkpoint, tmp_path / "new" / "gestures.zip")
    with zipfile.ZipFile(tmp_path / "new" / "gestures.zip") as archive:
        assert set(archive.namelist()) == FILES and archive.testzip() is None
        assert CDN in archive.read("index.html").decode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["gestures.zip"]


def test_an_older_export_is_replaced_and_other_folders_are_not(made, quick_graph, tmp_path):
    export(made.checkpoint, tmp_path / "gestures")
    (tmp_path / "gestures" / "README.md").write_text("old")
    export(made.checkpoint, tmp_path / "gestures")
    assert (tmp_path / "gestures" / "README.md").read_text().startswith("# 3 classes")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "README.md").write_text("mine")
    (tmp_path / "file").touch()
    (tmp_path / "folder.zip").mkdir()
    for name, problem in (
        ("photos", "has other files"),
        ("file", "is a file"),
        ("net.onnx", "give a folder, such as net/, or net.zip"),
        ("folder.zip", "is a folder"),
    ):
        with pytest.raises(UserError, match=problem):
            export(made.checkpoint, tmp_path / name)
    assert (tmp_path / "photos" / "README.md").read_text() == "mine"


def test_a_network_that_differs_is_not_offered(made, quick_graph, checkpoint, tmp_path):
    weights = load_checkpoint(made.checkpoint)["state_dict"]
    weights["classifier.bias"][0] += 1
    with pytest.raises(UserError, match="differs from the checkpoint's, so nothing is written"):
        export(checkpoint(state_dict=weights), tmp_path / "gestures")
    assert not (tmp_path / "gestures").exists()


def test_without_its_clips_noise_is_compared_and_the_card_says_so(
    quick_graph, checkpoint, tmp_path
):
    gone = {"train_data_csv": "gone.csv", "val_data_csv": "gone.csv"}
    found = export(checkpoint(gone), tmp_path / "gestures")
    assert found.are_random and "the validation clips are not here" in found.sentence()
    card = " ".join((tmp_path / "gestures" / "README.md").read_text().split())
    assert found.sentence() in card and "How many there were of each class is unknown" in card
    assert read_about(tmp_path / "gestures" / "network.onnx")["training_clips"] is None


def test_training_clips_that_have_changed_are_not_counted(quick_graph, checkpoint, tmp_path):
    export(checkpoint(train_clips="0" * 32), tmp_path / "gestures")
    about = read_about(tmp_path / "gestures" / "network.onnx")
    assert about["training_clips"] is None
    assert about["validation"]["clips"] is None  # of those that were scored, too


def test_a_full_disk_names_the_output(made, quick_graph, tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(package, "_write_others", no_room)
    with pytest.raises(UserError, match=f"--output {tmp_path}/a.zip: the disk is full; make room"):
        export(made.checkpoint, tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_clip_is_counted(made, quick_graph, checkpoint, tmp_path):
    folder = tmp_path / "clips"
    shutil.copytree(made.settings["val_data_folder"], folder)
    (folder / "Left.webm").write_bytes(b"not a film")
    found = export(checkpoint({"val_data_folder": str(folder)}), tmp_path / "gestures")
    assert (found.num_clips, found.num_unread) == (9, 1)
    assert "1 more could not be read" in found.sentence()


# --- the runtime -------------------------------------------------------------------------------


def test_a_runtime_is_copied_and_its_hashes_are_in_the_page(made, quick_graph, tmp_path):
    npm = tmp_path / "package"
    (npm / "dist").mkdir(parents=True)
    (npm / "package.json").write_text('{"version": "9.9.9"}')
    for name in RUNTIME_FILES:
        (npm / "dist" / name).write_text(name)
    export(made.checkpoint, tmp_path / "gestures", npm)
    page = (tmp_path / "gestures" / "index.html").read_text()
    for name in RUNTIME_FILES:
        assert (tmp_path / "gestures" / "runtime" / name).read_text() == name
        assert integrity(name.encode()) in page
    assert CDN not in page and "cdn." not in page
    assert "onnxruntime-web 9.9.9 is beside it" in (tmp_path / "gestures/README.md").read_text()
    (npm / "dist" / RUNTIME_FILES[0]).unlink()
    with pytest.raises(UserError, match="not the npm package onnxruntime-web"):
        runtime_of(npm)


@needs_runtime
def test_the_hashes_of_the_cdn_are_those_of_the_package():
    found = runtime_of(Path(RUNTIME))
    assert found["version"] == CDN_VERSION
    assert tuple(found["files"].values()) == CDN_HASHES

"""predict.py: folders, videos, several networks, and paths that cannot be classified."""

import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from conftest import CLASSES, draw_frames, write_clip, write_data_set
from movies import write_sound, write_video
from PIL import Image
from runs import make_settings, run_folder, write_config

import predict
import train
from checkpoint import load_checkpoint
from frames import FramesInMemory
from predictor import averaged, load_predictor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two small networks; returns their settings."""
    root = tmp_path_factory.mktemp("predict")
    data = write_data_set(root / "data", {"train": 45, "validation": 9}, num_frames=(7, 10))
    both = []
    for seed in (0, 1):
        own = make_settings(root / str(seed)) | data | {
            "seed": seed, "num_epochs": 6, "model_name": f"net{seed}", "output_dir": str(root),
        }  # fmt: skip
        assert train.main(["-c", write_config(root / f"{seed}.json", own), "-g", "cpu"]) == 0
        both.append(own)
    return both


@pytest.fixture
def checkpoint(trained):
    return str(run_folder(trained[0]) / "checkpoint.pth.tar")


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_checkpoint_alone_predicts_what_the_evaluation_did(trained, checkpoint, tmp_path):
    settings = trained[0]
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-e", "True", "-r", "True", "-g", "cpu"]) == 0
    expected = rows_of(run_folder(settings) / "predictions.csv")
    clips = [f"{settings['val_data_folder']}/{row['id']}" for row in expected]
    output = tmp_path / "found.csv"
    assert predict.main(["-c", checkpoint, "-g", "cpu", "-o", str(output), *clips]) == 0
    found = rows_of(output)
    assert [row["path"] for row in found] == clips
    for one, other in zip(found, expected, strict=True):
        assert one["predicted"] == other["predicted"]
        assert float(one["score1"]) == pytest.approx(float(other["score1"]), abs=1e-5)


def test_an_ensemble_is_evaluated_as_it_predicts(trained, tmp_path, capsys):
    files = [str(run_folder(settings) / "checkpoint.pth.tar") for settings in trained]
    # The config's own network and clip are not the checkpoints', whose own count.
    changes = {"output_dir": str(tmp_path), "block_widths": [3], "clip_size": 2}
    config = write_config(tmp_path / "config.json", trained[0] | changes)
    assert train.main(["-c", config, "-e", "--ensemble", *files, "-g", "cpu"]) == 0
    assert capsys.readouterr().out.count("alone: loss") == 2
    expected = rows_of(tmp_path / "net0" / "predictions.csv")
    clips = [f"{trained[0]['val_data_folder']}/{row['id']}" for row in expected]
    output = tmp_path / "found.csv"
    assert predict.main(["-c", files[0], "-c", files[1], "-g", "cpu", "-o", str(output),
                         *clips]) == 0  # fmt: skip
    for one, other in zip(rows_of(output), expected, strict=True):
        assert float(one["score1"]) == pytest.approx(float(other["score1"]), abs=1e-5)


@pytest.mark.parametrize(("flags", "message"), [
    (["--ensemble", "a"], "it goes with --eval_only"),
    (["--ensemble", "a", "-e", "-r"], "takes the place of --resume"),
    (["-e", "--ensemble", "no such file"], "no such checkpoint"),
])
def test_mistakes_with_an_ensemble(trained, tmp_path, capsys, flags, message):
    config = write_config(tmp_path / "config.json", trained[0] | {"output_dir": str(tmp_path)})
    assert train.main(["-c", config, "-g", "cpu", *flags]) == 2
    assert message in capsys.readouterr().err


def test_clips_as_videos_are_classified_as_their_folders(checkpoint, tmp_path):
    rng = np.random.default_rng(5)
    folders, videos = tmp_path / "folders", tmp_path / "videos"
    videos.mkdir()
    for number in range(12):
        frames = draw_frames(CLASSES[number % 3], 9, rng)
        write_clip(folders / str(number), frames)
        write_video(videos / f"{number}.mp4", frames)
    found = {}
    for kind in (folders, videos):
        output = tmp_path / f"{kind.name}.json"
        assert predict.main(["-c", checkpoint, "-g", "cpu", "-o", str(output), str(kind)]) == 0
        found[kind] = json.loads(output.read_text())
    by_number = [{row["path"].split("/")[-1].removesuffix(".mp4"): row for row in rows}
                 for rows in found.values()]  # fmt: skip
    assert by_number[0].keys() == by_number[1].keys()
    shares = [[rows[key]["scores"][rows[key]["predicted"]] for key in sorted(rows)]
              for rows in by_number]  # fmt: skip
    assert np.abs(np.subtract(*shares)).max() < 0.05
    clear = [key for key, row in by_number[0].items()
             if np.subtract(*sorted(row["scores"].values())[:-3:-1]) > 0.05]  # fmt: skip
    assert len(clear) >= 5
    for key in clear:
        assert by_number[0][key]["predicted"] == by_number[1][key]["predicted"]


def test_several_networks_are_averaged(trained, tmp_path):
    write_clip(tmp_path / "clip", draw_frames("Left", 9, np.random.default_rng(0)))
    paths = [str(run_folder(own) / "checkpoint.pth.tar") for own in trained]
    output = tmp_path / "found.json"
    both = ["-c", paths[0], "-c", paths[1]]
    assert predict.main([*both, "-g", "cpu", "-o", str(output), str(tmp_path / "clip")]) == 0
    together = json.loads(output.read_text())[0]["scores"]
    alone = []
    for path in paths:
        arguments = ["-c", path, "-g", "cpu", "-o", str(output), str(tmp_path / "clip")]
        assert predict.main(arguments) == 0
        alone.append(json.loads(output.read_text())[0]["scores"])
    for name in CLASSES:
        assert together[name] == pytest.approx((alone[0][name] + alone[1][name]) / 2, abs=1e-6)
    assert alone[0] != alone[1]


def test_a_long_video_is_looked_at_in_pieces(checkpoint):
    predictor = load_predictor(checkpoint, CPU)  # a window is 7 frames
    assert predictor.spans(14) == [(0, 14)]
    spans = predictor.spans(40)
    assert spans[0] == (0, 7) and spans[-1] == (33, 40)
    assert {b[0] - a[0] for a, b in itertools.pairwise(spans)} == {3}

    rng = np.random.default_rng(0)
    frames = np.concatenate([draw_frames("Left", 30, rng), draw_frames("Still", 30, rng)])
    scores = averaged([predictor.scores(FramesInMemory(list(frames)))])
    assert scores.frames.shape == (60, 3)
    np.testing.assert_allclose(scores.frames.sum(1), 1, atol=1e-6)
    assert scores.whole.sum() == pytest.approx(1, abs=1e-6)
    assert np.abs(scores.frames[5] - scores.frames[-5]).max() > 0.05


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_the_annotated_clip_can_be_opened(checkpoint, tmp_path, suffix):
    write_clip(tmp_path / "clip", draw_frames("Right", 9, np.random.default_rng(0)))
    path = tmp_path / f"shown{suffix}"
    arguments = ["-c", checkpoint, "-g", "cpu", "--save", str(path), str(tmp_path / "clip")]
    assert predict.main(arguments) == 0
    if suffix == ".gif":
        assert Image.open(path).n_frames == 9
        return
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 9 and pictures[0].shape == (240 + 3 * 22, 320, 3)


def test_what_cannot_be_classified_is_told_and_the_rest_is_done(checkpoint, tmp_path, capsys):
    rng = np.random.default_rng(0)
    write_clip(tmp_path / "good", draw_frames("Left", 9, rng))
    write_clip(tmp_path / "mixed", draw_frames("Left", 9, rng))
    write_video(tmp_path / "mixed" / "a.mp4", draw_frames("Left", 9, rng))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "nothing").mkdir()
    write_clip(tmp_path / "short", draw_frames("Left", 1, rng))  # the network looks at 7 frames
    write_sound(tmp_path / "sound.mp4")
    write_video(tmp_path / "still.mp4", draw_frames("Left", 1, rng))
    whole = Path(write_video(tmp_path / "cut.avi", draw_frames("Left", 20, rng))).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    names = ["good", "mixed", "empty.mp4", "notes.txt", "nothing", "missing", "short", "sound.mp4",
             "still.mp4", "cut.avi"]  # fmt: skip
    paths = [str(tmp_path / name) for name in names]
    assert predict.main(["-c", checkpoint, "-g", "cpu", *paths]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.strip().split("\n")) == 1 and "good" in captured.out
    errors = captured.err.strip().split("\n")
    assert errors[-1] == "error: 9 of 10 could not be classified"
    for name, problem in (("mixed", "holds frames and other clips"), ("empty.mp4", "empty"),
                          ("notes.txt", "neither a video"), ("nothing", "no frames"),
                          ("missing", "no such file"), ("short", "1 frames at 12 a second"),
                          ("sound.mp4", "no video in it"), ("still.mp4", "a single frame"),
                          ("cut.avi", "cut off")):  # fmt: skip
        assert any(name in line and problem in line for line in errors), name


def test_a_missing_camera_and_unusable_checkpoints(checkpoint, trained, tmp_path, capfd):
    assert predict.main(["-c", checkpoint, "-g", "cpu", "--camera", "97"]) == 2
    assert "--camera 97: OpenCV finds no such camera" in capfd.readouterr().err
    saved = load_checkpoint(checkpoint)
    write_clip(tmp_path / "clip", draw_frames("Left", 9, np.random.default_rng(0)))
    for name, change, problem in (
        ("without.tar", {"classes": None}, "holds no class names"),
        ("others.tar", {"classes": ["a", "b", "c"]}, "knows other classes than"),
        ("newer.tar", {"config": saved["config"] | {"new_key": 1}}, "another version (new_key)"),
    ):
        contents = {key: value for key, value in (saved | change).items() if value is not None}
        torch.save(contents, tmp_path / name)
        arguments = ["-c", checkpoint, "-c", str(tmp_path / name), str(tmp_path / "clip")]
        assert predict.main([*arguments, "-g", "cpu"]) == 2
        assert problem in capfd.readouterr().err


def test_a_camera_is_classified_live(checkpoint, tmp_path, monkeypatch, capsys):
    """OpenCV plays a file in the place of the device, a frame a second by its clock."""
    frames = draw_frames("Left", 40, np.random.default_rng(0))
    path = write_video(tmp_path / "a.avi", frames, codec="mjpeg", pix_fmt="yuvj420p")
    opened, ticks = cv2.VideoCapture, itertools.count(1)
    monkeypatch.setattr(predict.cv2, "VideoCapture", lambda number: opened(path))
    monkeypatch.setattr(predict.cv2, "getTickCount", lambda: next(ticks) * cv2.getTickFrequency())
    assert predict.main(["-c", checkpoint, "-g", "cpu", "--camera", "0"]) == 2
    shown = capsys.readouterr()
    assert "--camera 0: gives no more pictures" in shown.err
    lines = shown.out.strip("\r\n ").split("\r")
    assert len(lines) == 39 and all("Left" in line and "%" in line for line in lines)


def test_a_reader_that_has_seen_enough_is_no_mistake(checkpoint, tmp_path):
    write_clip(tmp_path / "clip", draw_frames("Left", 9, np.random.default_rng(0)))
    clip, script = str(tmp_path / "clip"), predict.__file__
    command = [sys.executable, "-u", script, "-c", checkpoint, "-g", "cpu", clip]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")

"""predict.py: folders, videos, several networks, and paths that cannot be classified."""

import csv
import http.server
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import datetime
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from conftest import CLASSES, draw_frames, make_config, write_clip, write_data_set
from movies import write_sound, write_video
from PIL import Image
from runs import make_settings, run_folder, write_config

import pack
import predict
import train
from clips.folders import clip_at
from clips.frames import FramesInMemory
from clips.search import find_clips
from explaining.pictures import save_gif
from explaining.score_overlay import save_mp4
from scoring import camera as camera_module
from scoring.camera import Camera, predict_live
from scoring.predictor import Predictor, Scores, averaged, load_predictor
from system.errors import UserError
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("blank_pictures")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two small networks; returns their settings."""
    root = tmp_path_factory.mktemp("predict")
    data = write_data_set(root / "data", {"train": 45, "validation": 9}, num_frames=(7, 10))
    both = []
    for seed in (0, 1):
        own = (
            make_settings(root / str(seed))
            | data
            | {"seed": seed, "num_epochs": 6, "model_name": f"net{seed}", "output_dir": str(root)}
        )
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
    assert (
        predict.main(["-c", files[0], "-c", files[1], "-g", "cpu", "-o", str(output), *clips]) == 0
    )
    for one, other in zip(rows_of(output), expected, strict=True):
        assert float(one["score1"]) == pytest.approx(float(other["score1"]), abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ensemble", "a"], "needs --eval_only"),
        (["--ensemble", "a", "-e", "-r"], "replaces --resume"),
        (["-e", "--ensemble", "no such file"], "no such checkpoint"),
    ],
)
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
    by_number = [
        {row["path"].split("/")[-1].removesuffix(".mp4"): row for row in rows}
        for rows in found.values()
    ]
    assert by_number[0].keys() == by_number[1].keys()
    shares = [
        [rows[key]["scores"][rows[key]["predicted"]] for key in sorted(rows)] for rows in by_number
    ]
    assert np.abs(np.subtract(*shares)).max() < 0.05
    clear = [
        key
        for key, row in by_number[0].items()
        if np.subtract(*sorted(row["scores"].values())[:-3:-1]) > 0.1  # so no class can overtake
    ]
    assert len(clear) >= 3
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


def test_the_scores_of_a_long_video_over_time_are_those_of_parts(checkpoint):
    predictor = load_predictor(checkpoint, CPU)  # a window is 7 frames
    assert predictor.spans(14) == [(0, 14)]
    spans = predictor.spans(40)
    assert spans[0] == (0, 7) and spans[-1] == (33, 40)
    assert {b[0] - a[0] for a, b in itertools.pairwise(spans)} == {3}

    rng = np.random.default_rng(0)
    frames = np.concatenate([draw_frames("Left", 30, rng), draw_frames("Still", 30, rng)])
    scores = averaged([predictor.scores(FramesInMemory(list(frames)), over_time=True)])
    assert scores.frames.shape == (60, 3)
    np.testing.assert_allclose(scores.frames.sum(1), 1, atol=1e-6)
    assert scores.whole.sum() == pytest.approx(1, abs=1e-6)
    assert np.abs(scores.frames[5] - scores.frames[-5]).max() > 0.05


def test_short_clips_are_padded_as_in_evaluation(trained, checkpoint, tmp_path, capsys):
    rng = np.random.default_rng(0)
    lengths = {"1": 1, "2": 6, "3": 7, "4": 9}  # the network looks at 7 frames
    for name, length in lengths.items():
        write_clip(tmp_path / "clips" / name, draw_frames("Left", length, rng))
    (tmp_path / "set.csv").write_text("".join(f"{name};Left\n" for name in lengths))
    own = trained[0] | {
        "val_data_folder": str(tmp_path / "clips"),
        "checkpoint": checkpoint,
        "val_data_csv": str(tmp_path / "set.csv"),
        "output_dir": str(tmp_path),
    }
    config = write_config(tmp_path / "config.json", own)
    assert train.main(["-c", config, "-e", "-r", "-g", "cpu"]) == 0
    told = "short clips (fewer than 7 frames), padded with their last frame: 2 of 4"
    assert f"validation: {told}\n" in capsys.readouterr().out
    output = tmp_path / "found.csv"
    both = ["-c", checkpoint, "-c", checkpoint]
    assert predict.main([*both, "-g", "cpu", "-o", str(output), str(tmp_path / "clips")]) == 0
    assert capsys.readouterr().err == f"note: {told}\n"
    for one, other in zip(
        rows_of(output), rows_of(run_folder(own) / "predictions.csv"), strict=True
    ):
        assert one["predicted"] == other["predicted"]
        assert float(one["score1"]) == pytest.approx(float(other["score1"]), abs=1e-5)


# --- which clips, and where they are saved -----------------------------------------------------


def touch_clips(root, *names):
    """Folders of one frame, and videos, both empty: for what goes by names only."""
    for name in names:
        path = root / name if "." in name else root / name / "1.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_clips_are_found_in_class_folders(tmp_path):
    touch_clips(tmp_path, "Left/2", "Left/1", "Right/3.mp4", "Right/deeper/4", ".hidden/5", "6.avi")
    (tmp_path / "Left" / "notes.txt").touch()
    clips, problems = find_clips(tmp_path)
    found = [str(Path(clip).relative_to(tmp_path)) for clip in clips]
    assert found == ["6.avi", "Left/1", "Left/2", "Right/3.mp4", "Right/deeper/4"]
    assert problems == []
    assert find_clips(tmp_path / "Left" / "1") == ([clip_at(tmp_path / "Left" / "1")], [])


def test_what_is_no_clip_in_a_folder_is_told_and_the_rest_is_found(tmp_path):
    touch_clips(tmp_path, "good", "classes/good", "classes/mixed", "classes/mixed/a.mp4")
    (tmp_path / "classes" / "empty").mkdir()
    (tmp_path / "classes" / "round").symlink_to(tmp_path)
    clips, problems = find_clips(tmp_path)
    assert clips == [clip_at(tmp_path / "classes" / "good"), clip_at(tmp_path / "good")]
    empty, mixed = problems
    assert empty.startswith(f"{tmp_path}/classes/empty: contains no frames")
    assert mixed.startswith(f"{tmp_path}/classes/mixed: has both frames and other clips (a.mp4)")


@pytest.mark.parametrize(
    "names, places",
    [
        (["A/1", "A/2.avi"], ["1", "2"]),
        (["A/x", "B/x"], ["A/x", "B/x"]),
        (["A/Left/x.mp4", "A/Right/x.mp4"], ["Left/x", "Right/x"]),
        (["A/x", "A/x.avi", "A/y.avi"], ["x", "x.avi", "y.avi"]),
        (["A/clip.v1", "A/clip.v2"], ["clip.v1", "clip.v2"]),
    ],
)
def test_no_two_clips_are_saved_to_one_file(names, places):
    clips = [Path(name) for name in names]
    found = predict.places_for(Path("out"), clips)
    assert found == {
        clip: Path("out", f"{place}.mp4") for clip, place in zip(clips, places, strict=True)
    }


def test_the_same_path_twice_is_one_clip(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("A/1", "B/1"):
        write_clip(tmp_path / name, draw_frames("Left", 9, rng))
    paths = ["A", "B", "./A/1", str(tmp_path / "B")]
    assert predict.main(["-c", checkpoint, "-g", "cpu", "--save", "out", *paths]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    saved = sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.*"))
    assert saved == ["A/1.mp4", "B/1.mp4"]


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_the_clip_with_its_scores_can_be_opened(checkpoint, tmp_path, suffix):
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


@pytest.mark.parametrize("rate", [0.4, 1.5, 12.0, 23.976, 29.97, 30000 / 1001, 120.0])
def test_a_saved_film_plays_at_the_clips_rate(tmp_path, rate):
    """At which it is neither faster nor slower than the clip."""
    pictures = [np.full((32, 32, 3), 20 * number, np.uint8) for number in range(12)]
    save_mp4(tmp_path / "a.mp4", pictures, rate)
    with av.open(str(tmp_path / "a.mp4")) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(rate, rel=1e-5)
    np.testing.assert_allclose(times, np.arange(12) / rate, atol=1e-3)
    save_gif(tmp_path / "a.gif", pictures, rate)
    with Image.open(tmp_path / "a.gif") as gif:
        durations = []
        for number in range(gif.n_frames):
            gif.seek(number)
            durations.append(gif.info["duration"])
    assert min(durations) >= 20 and sum(durations) == pytest.approx(12 / rate * 1000, abs=10)


def test_scores_of_networks_of_two_frame_rates_are_aligned_in_time():
    fast, slow = (
        Scores(["a", "b"], np.array([0.5, 0.5]), np.eye(2)[[0] * half + [1] * half])
        for half in (6, 3)
    )
    for first, second in ((fast, slow), (slow, fast)):
        assert (averaged([first, second]).frames == first.frames).all()


def test_results_are_written_for_any_path_and_only_where_they_can_be(checkpoint, tmp_path, capsys):
    clip = os.fsdecode(os.fsencode(tmp_path) + b"/\xff \xc3\xa9")
    write_clip(Path(clip), draw_frames("Left", 9, np.random.default_rng(0)))
    command = ["-c", checkpoint, "-g", "cpu", clip]
    assert predict.main([*command, "-o", str(tmp_path / "new" / "a.csv")]) == 0
    assert rows_of(tmp_path / "new" / "a.csv")[0]["path"].endswith("/\\udcff é")
    capsys.readouterr()
    (tmp_path / "b.mp4").mkdir()
    for flags, problem in (
        (["-o", str(tmp_path)], "is a folder"),
        (["--save", "a.avi"], "expected .gif or .mp4"),
        (["--save", str(tmp_path / "b.mp4")], "cannot be written"),
    ):
        assert predict.main([*command, *flags]) == 2
        assert problem in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main([*command, "--top", "0"])
    assert "--top: expected 1 or more, found '0'" in capsys.readouterr().err


def test_nothing_that_is_read_is_overwritten(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = shutil.copy(checkpoint, "own.tar")
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", draw_frames("Left", 9, np.random.default_rng(0)))
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    write_clip(tmp_path / "clips" / "1", draw_frames("Left", 9, np.random.default_rng(0)))
    assert pack.main(["clips.zip", "clips"]) == 0
    shutil.rmtree("clips")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert predict.main(["-c", own, "-g", "cpu", "clips.zip", "-o", "clips.zip"]) == 2
    assert "would overwrite clips.zip" in capsys.readouterr().err
    for flags in (["--save", "."], ["--save", "link.mp4"], ["-o", "a.mp4"], ["-o", own]):
        clips = ["a.mp4"] if "link.mp4" in flags else ["a.mp4", "b.mp4"]
        assert predict.main(["-c", own, "-g", "cpu", *clips, *flags]) == 2
        assert ": would overwrite " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_no_film_is_counted_and_named(checkpoint, tmp_path, capsys):
    rng = np.random.default_rng(0)
    write_video(
        tmp_path / "CLIP.MTS", draw_frames("Left", 9, rng), codec="mpeg2video", pix_fmt="yuv420p"
    )
    pictures = list(map(Image.fromarray, draw_frames("Left", 9, rng)))
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=80)
    for name in ("a.txt", "thumb.jpg", "index.ts"):
        (tmp_path / name).write_text("no film")
    assert predict.main(["-c", checkpoint, "-g", "cpu", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "CLIP.MTS" in captured.out and "a.webp" in captured.out
    assert "note: ignored: 3 files that are not videos: " in captured.err
    assert all(name in captured.err for name in ("a.txt", "thumb.jpg", "index.ts"))


def test_what_cannot_be_classified_is_told_and_the_rest_is_done(checkpoint, tmp_path, capsys):
    rng = np.random.default_rng(0)
    write_clip(tmp_path / "good", draw_frames("Left", 9, rng))
    write_clip(tmp_path / "mixed", draw_frames("Left", 9, rng))
    write_video(tmp_path / "mixed" / "a.mp4", draw_frames("Left", 9, rng))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "nothing").mkdir()
    write_sound(tmp_path / "sound.mp4")
    write_video(tmp_path / "still.mp4", draw_frames("Left", 1, rng))
    whole = Path(write_video(tmp_path / "cut.avi", draw_frames("Left", 20, rng))).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    names = [
        "good",
        "mixed",
        "empty.mp4",
        "notes.txt",
        "nothing",
        "missing",
        "sound.mp4",
        "still.mp4",
        "cut.avi",
    ]
    paths = [str(tmp_path / name) for name in names]
    assert predict.main(["-c", checkpoint, "-g", "cpu", *paths]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.strip().split("\n")) == 1 and "good" in captured.out
    errors = captured.err.strip().split("\n")
    assert errors[-1] == "error: 8 of 9 cannot be classified"
    for name, problem in (
        ("mixed", "has both frames and other clips"),
        ("empty.mp4", "empty"),
        ("notes.txt", "not a video"),
        ("nothing", "contains no frames"),
        ("missing", "no such file"),
        ("sound.mp4", "no video stream in it"),
        ("still.mp4", "a single frame"),
        ("cut.avi", "cut off"),
    ):
        assert any(name in line and problem in line for line in errors), name


def test_a_missing_camera_and_unusable_checkpoints(checkpoint, trained, tmp_path, capfd):
    assert predict.main(["-c", checkpoint, "-g", "cpu", "--camera", "97"]) == 2
    assert "--camera 97: OpenCV finds no such camera" in capfd.readouterr().err
    saved = load_checkpoint(checkpoint)
    write_clip(tmp_path / "clip", draw_frames("Left", 9, np.random.default_rng(0)))
    for name, change, problem in (
        ("without.tar", {"classes": None}, "has no class names"),
        ("others.tar", {"classes": ["a", "b", "c"]}, "classes are not those of"),
        ("newer.tar", {"config": saved["config"] | {"new_key": 1}}, "another version (new_key)"),
    ):
        contents = {key: value for key, value in (saved | change).items() if value is not None}
        torch.save(contents, tmp_path / name)
        arguments = ["-c", checkpoint, "-c", str(tmp_path / name), str(tmp_path / "clip")]
        assert predict.main([*arguments, "-g", "cpu"]) == 2
        assert problem in capfd.readouterr().err


# --- live --------------------------------------------------------------------------------------


class PlayedCamera:
    """A video file in the place of a camera, `pace` frames a second by a clock of its own.

    The clock goes on in `pass_time` alone, a frame at a time, once the last one was taken; and for
    the first `num_waited_for` frames by itself, as the command waits for them. At its end,
    `pass_time` returns once the command's thread has noticed it.
    """

    def __init__(self, path, pace, num_waited_for):
        self.file, self.pace, self.num_waited_for = cv2.VideoCapture(path), pace, num_waited_for
        self.num_asked = self.num_shown = 0
        self.is_over, self.changed = False, threading.Condition()

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return True

    def read(self):
        self.reader = threading.current_thread()
        with self.changed:
            self.num_asked += 1
            if self.num_asked <= self.num_waited_for:
                self.num_shown = self.num_asked
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.num_shown >= self.num_asked)
            is_read, picture = self.file.read()
            self.is_over = not is_read
            self.changed.notify_all()
            return is_read, picture

    def clock(self):
        return self.num_shown / self.pace

    def pass_time(self, seconds):
        for _ in range(round(seconds * self.pace)):
            with self.changed:
                self.num_shown += 1
                self.changed.notify_all()
                assert self.changed.wait_for(
                    lambda: self.num_asked > self.num_shown or self.is_over, timeout=120
                ), "nobody takes the camera's pictures"
            if self.is_over:
                self.reader.join(120)

    def release(self):
        self.file.release()


class SlowPredictor:
    """Notes which frames it is given, by their brightness, and takes seconds to look at them."""

    def __init__(self, camera, seconds, **keys):
        self.camera, self.seconds, self.seen = camera, seconds, []
        self.predictor = Predictor(make_config(**keys), CLASSES, None, CPU, epoch=1)
        self.config, self.gesture_length = self.predictor.config, self.predictor.gesture_length

    def scores(self, source):
        frames = source.frames_at(range(len(source)))
        self.seen.append([round(frame.mean() / 2) for frame in frames])
        self.camera.pass_time(self.seconds)
        return Scores(CLASSES, np.full(3, 1 / 3), np.full((len(source), 3), 1 / 3))


@pytest.fixture
def play_camera(tmp_path, monkeypatch):
    """Puts a PlayedCamera of 120 frames, each brighter than the last, in the place of OpenCV's."""

    def play(pace, num_waited_for):
        frames = np.stack([np.full((24, 32, 3), 2 * number, np.uint8) for number in range(120)])
        path = write_video(tmp_path / "a.avi", frames, codec="ffv1", pix_fmt="bgr0")
        camera = PlayedCamera(path, pace, num_waited_for)
        monkeypatch.setattr(cv2, "VideoCapture", lambda number: camera)
        monkeypatch.setattr(camera_module, "monotonic", camera.clock)
        monkeypatch.setattr(camera_module, "RECONNECT_AFTER", ())
        return camera

    return play


def test_a_slow_network_sees_movements_at_their_own_speed(play_camera):
    camera = play_camera(pace=24, num_waited_for=13)  # 7 frames at 12 a second
    slow = SlowPredictor(camera, seconds=1, clip_size=4, step_size=2)
    with pytest.raises(UserError, match="--camera 0: sends no more pictures"):
        predict_live([slow], 0)
    assert [frames[-1] for frames in slow.seen] == [12, 36, 60, 84, 108]  # the newest there was
    assert [len(frames) for frames in slow.seen] == [7, 19, 31, 36, 36]  # 3 seconds at most
    assert all(set(np.diff(frames)) == {2} for frames in slow.seen)


def test_a_camera_slower_than_the_network_repeats_frames(play_camera):
    camera = play_camera(pace=8, num_waited_for=5)
    slow = SlowPredictor(camera, seconds=9, clip_size=4, step_size=2)
    with pytest.raises(UserError, match="sends no more pictures"):
        predict_live([slow], 0)
    assert slow.seen[0] == [0, 0, 1, 2, 2, 3, 4]
    assert slow.seen[1][-4:] == [74, 74, 75, 76] and len(slow.seen[1]) == 36


def test_the_live_window_is_as_long_as_the_networks_clip(play_camera):
    camera = play_camera(pace=12, num_waited_for=69)
    slow = SlowPredictor(camera, seconds=1, clip_size=18, step_size=4)
    segments = SlowPredictor(camera, seconds=0, clip_size=5, step_size=9, sampling="segments")
    with pytest.raises(UserError, match="sends no more pictures"):
        predict_live([slow, segments], 0)
    assert {len(frames) for frames in slow.seen} == {69}
    assert slow.seen[0] == list(range(69)) and slow.seen[1] == list(range(12, 81))
    assert {len(frames) for frames in segments.seen} == {45}


def test_a_camera_is_classified_live(checkpoint, tmp_path, monkeypatch, capsys):
    frames = draw_frames("Left", 40, np.random.default_rng(0))
    path = write_video(tmp_path / "a.avi", frames, codec="mjpeg", pix_fmt="yuvj420p")
    camera = PlayedCamera(path, pace=12, num_waited_for=7)
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: camera)
    monkeypatch.setattr(camera_module, "monotonic", camera.clock)
    monkeypatch.setattr(camera_module, "RECONNECT_AFTER", ())
    scores = Predictor.scores

    def scores_in_time(predictor, source):
        camera.pass_time(1 / 12)
        return scores(predictor, source)

    monkeypatch.setattr(Predictor, "scores", scores_in_time)
    assert predict.main(["-c", checkpoint, "-g", "cpu", "--camera", "0"]) == 2
    shown = capsys.readouterr()
    assert "--camera 0: sends no more pictures" in shown.err
    lines = [line for line in shown.out.strip("\r\n ").split("\r") if "\n" not in line]
    assert len(lines) == 34 and all("Left" in line and "%" in line for line in lines)


@pytest.fixture
def brightness(monkeypatch):
    """Makes the networks see the brightness of the newest picture, from 0 to 1, as Left."""

    def scores(predictor, source):
        (frame,) = source.frames_at([len(source) - 1])
        left = frame.mean() / 255
        return Scores(CLASSES, np.array([left, 1 - left, 0.0]))

    monkeypatch.setattr(Predictor, "scores", scores)


class Devices:
    """Cameras that OpenCV opens one after the other: each a list of brightnesses, or None."""

    def __init__(self, *each):
        self.each, self.opened = list(each), []

    def __call__(self, address, *_):
        self.opened.append(address)
        self.pictures = self.each.pop(0) if self.each else None
        self.is_open, self.rest = self.pictures is not None, list(self.pictures or ())
        return self

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return self.is_open

    def read(self):
        time.sleep(0.001)
        return (
            (True, np.full((4, 4, 3), self.rest.pop(0), np.uint8)) if self.rest else (False, None)
        )

    def get(self, _):
        return 0.0

    def release(self):
        pass


def test_a_lost_camera_is_opened_again_and_its_pictures_are_forgotten(monkeypatch, capsys):
    devices = Devices([1, 2, 3], None, [4, 5])
    monkeypatch.setattr(cv2, "VideoCapture", devices)
    monkeypatch.setattr(camera_module, "RECONNECT_AFTER", (0, 0, 0))
    camera = Camera("rtsp://user:secret@host/1", seconds=60)
    camera.thread.join(120)
    assert devices.opened == ["rtsp://user:secret@host/1"] * 6  # and three times at the end
    assert list(camera.pictures) == [] and camera.wait_for_more(0)
    with pytest.raises(UserError, match=r"^--camera rtsp://host/1: sends no more pictures$"):
        camera.wait_for_more(0)
    camera.close()
    messages = capsys.readouterr().err.splitlines()
    assert messages[:2] == [
        "--camera rtsp://host/1: sends no pictures; trying again",
        "--camera rtsp://host/1: is connected again",
    ]


def test_changes_of_the_verdict_are_json_lines(
    checkpoint, brightness, monkeypatch, capsys, tmp_path
):
    """Left, no verdict, Right; then the camera is lost, which ends the verdict, and there again."""
    saved = load_checkpoint(checkpoint)
    averaged_weights = tmp_path / "averaged.pth.tar"  # which is said, but not on stdout
    torch.save(saved | {"state_dict_ema": saved["state_dict"]}, averaged_weights)
    monkeypatch.setattr(cv2, "VideoCapture", Devices())
    looks = iter([255, 255, 128, 0, 0, "lost", 0, "lost", "lost"])

    class Watched:
        def __init__(self, address, seconds):
            self.address = address

        def wait_for_more(self, seconds):
            self.look = next(looks, None)
            if self.look is None:
                raise UserError("over")
            return self.look == "lost"

        def newest(self, rate, most):
            return FramesInMemory([np.full((4, 4, 3), self.look, np.uint8)])

        def close(self):
            pass

    monkeypatch.setattr(camera_module, "Camera", Watched)
    monkeypatch.setattr(camera_module, "SMOOTHING_SECONDS", 1e-9)
    flags = ["-g", "cpu", "--camera", "http://host", "--json"]
    assert predict.main(["-c", str(averaged_weights), *flags]) == 2
    shown = capsys.readouterr()
    assert "using the averaged weights" in shown.err
    rows = [json.loads(line) for line in shown.out.splitlines()]
    found = [(row["verdict"], row["probability"]) for row in rows]
    assert found == [
        ("Left", 1),
        (None, None),
        ("Right", 1),
        (None, None),
        ("Right", 1),
        (None, None),
    ]
    times = [datetime.fromisoformat(row["time"]) for row in rows]
    assert times == sorted(times) and all(time.tzinfo for time in times)


def test_a_camera_may_be_at_an_address(checkpoint, brightness, tmp_path, monkeypatch, capsys):
    """A film from a server is shown at its own speed: each of two pictures for two seconds.

    The network looks at the newest picture when it can, so a slow machine may miss a short one.
    """
    frames = np.concatenate([np.full((24, 32, 32, 3), value, np.uint8) for value in (0, 255)])
    write_video(tmp_path / "a.mp4", frames)
    monkeypatch.setattr(camera_module, "RECONNECT_AFTER", ())
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.mp4"
        assert predict.main(["-c", checkpoint, "-g", "cpu", "--camera", address, "--json"]) == 2
        server.shutdown()
    shown = capsys.readouterr()
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert [row["verdict"] for row in rows if row["verdict"]] == ["Right", "Left"]
    assert f"--camera {address}: sends no more pictures" in shown.err


def test_json_is_for_a_camera(checkpoint, capsys):
    with pytest.raises(SystemExit):
        predict.main(["-c", checkpoint, "clip", "--json"])
    assert "--json is for --camera" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_mistake(checkpoint, tmp_path):
    write_clip(tmp_path / "clip", draw_frames("Left", 9, np.random.default_rng(0)))
    clip, script = str(tmp_path / "clip"), predict.__file__
    command = [sys.executable, "-u", script, "-c", checkpoint, "-g", "cpu", clip]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")

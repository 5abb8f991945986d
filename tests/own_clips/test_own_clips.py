"""`train.py --data FOLDER`: what is found, how it is split, what is chosen, and whole runs."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, draw_frames, make_config, write_clip
from movies import write_video
from own_folders import do_train, write_class_folders
from PIL import Image

import pack
import train
from clips.annotations import read_annotations, read_labels
from clips.packs import open_folder
from clips.sampling import sample_window
from own_clips.class_folders import labelled_clips
from own_clips.settings import choose_settings, class_balance
from own_clips.survey import ClipStats, survey

pytestmark = pytest.mark.usefixtures("blank_pictures")

# --- what is found -----------------------------------------------------------------------------


def empty_video(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_clips_are_videos_and_folders_of_frames_at_any_depth(tmp_path):
    for name in ("wave/10.mp4", "wave/2.MP4", "wave/anna/1.avi", "clap/x/y/z.webm"):
        empty_video(tmp_path / name)
    write_clip(tmp_path / "clap" / "1", draw_frames("Left", 2, np.random.default_rng(0)))
    for name in ("clap/notes.txt", "clap/.hidden/1.mp4", ".cache/1.mp4", "readme.md"):
        empty_video(tmp_path / name)
    (tmp_path / "empty").mkdir()
    clips, empty = labelled_clips(open_folder(tmp_path))
    assert clips.values.tolist() == [
        ["clap/1", "clap", ""],
        ["clap/x/y/z.webm", "clap", ""],
        ["wave/2.MP4", "wave", ""],
        ["wave/10.mp4", "wave", ""],
        ["wave/anna/1.avi", "wave", ""],
    ]
    assert empty == ["empty"]


@pytest.mark.parametrize("validation", ["val", "validation", "Valid"])
def test_folders_may_be_split_already(tmp_path, validation):
    for name in ("train/a/1.mp4", "train/b/1.mp4", f"{validation}/a/2.mp4", "test/b/3.mp4"):
        empty_video(tmp_path / name)
    clips, _ = labelled_clips(open_folder(tmp_path))
    parts = dict(zip(clips["id"], clips["part"], strict=True))
    assert parts == {
        "train/a/1.mp4": "train",
        "train/b/1.mp4": "train",
        f"{validation}/a/2.mp4": "validation",
        "test/b/3.mp4": "test",
    }


def test_test_clips_need_no_class(tmp_path):
    for name in ("train/a/1.mp4", "train/b/1.mp4", "val/a/2.mp4", "test/3.mp4"):
        empty_video(tmp_path / name)
    clips = labelled_clips(open_folder(tmp_path))[0].set_index("id")
    assert clips.loc["test/3.mp4"].tolist() == ["", "test"]
    assert clips["label"].tolist() == ["", "a", "b", "a"]


@pytest.mark.parametrize("other", [("bus/1.mp4",), ("bus/anna/1.mp4",), ("test/1.mp4",)])
def test_a_class_may_be_called_train(tmp_path, other):
    for name in ("train/1.mp4", *other):
        empty_video(tmp_path / name)
    clips, _ = labelled_clips(open_folder(tmp_path))
    assert set(clips["label"]) == {other[0].split("/")[0], "train"}


def test_links_that_lead_in_a_circle_end(tmp_path):
    for name in ("a/1.mp4", "b/1.mp4"):
        empty_video(tmp_path / name)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "above").symlink_to(tmp_path)
    (tmp_path / "b" / "itself").symlink_to("itself")
    (tmp_path / "b" / "2.mp4").symlink_to("2.mp4")
    clips, _ = labelled_clips(open_folder(tmp_path))
    assert clips["id"].tolist() == ["a/1.mp4", "b/1.mp4", "b/2.mp4"]


def beside_a_split(*names):
    def make(root):
        for name in ("train/a/1.mp4", "train/b/1.mp4", "val/a/2.mp4", *names):
            empty_video(root / name)

    return make


def clips_directly(root):
    write_clip(root / "1", draw_frames("Left", 2, np.random.default_rng(0)))


WRONG_FOLDERS = {
    "nothing": (lambda root: None, "it has no videos and no folders of frames"),
    "videos": (lambda root: empty_video(root / "1.mp4"), "there are clips directly in it (1.mp4)"),
    "frames": (clips_directly, "there are clips directly in it (1)"),
    "one class": (lambda root: empty_video(root / "wave/1.mp4"), "only 'wave' has clips"),
    "no clips": (lambda root: empty_video(root / "wave/1.txt"), "it has no videos"),
    "a set too many": (beside_a_split("more/a/1.mp4"), "more/a/1.mp4 are in no class folder"),
    "no class folder": (beside_a_split("val/3.mp4"), "val/3.mp4 are in no class folder"),
    "space": (lambda root: empty_video(root / "wave /1.mp4"), "'wave /1.mp4'"),
    "line end": (lambda root: empty_video(root / "a/1\n2.mp4"), "control characters"),
    "not UTF-8": (lambda root: empty_video(root / "a" / os.fsdecode(b"\xff.mp4")), "not UTF-8"),
}


@pytest.mark.parametrize("name", WRONG_FOLDERS)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, capfd, name):
    make, message = WRONG_FOLDERS[name]
    (tmp_path / "clips").mkdir()
    make(tmp_path / "clips")
    assert do_train(tmp_path / "clips", tmp_path) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: --data {tmp_path / 'clips'}: ") and message in error
    assert not (tmp_path / "runs").exists()


# --- what is chosen ----------------------------------------------------------------------------


def chosen(
    num_clips=100,
    device="cpu",
    frames=60,
    rate=25.0,
    size=(144, 180),
    moving=0.5,
    labels=None,
    **given,
):
    """frames, moving: of each of 9 clips, or of all."""
    stats = ClipStats(
        np.broadcast_to(frames, 9),
        np.full(9, rate),
        np.tile(size, (9, 1)),
        np.broadcast_to(moving, 9),
        {},
        labels,
    )
    choices = choose_settings(stats, num_clips, device, given)
    return {choice.key: choice.value for choice in choices}


def test_windows_span_most_of_short_clips_and_are_repeated_in_long_ones():
    video = chosen(frames=60)
    assert video["frame_rate"] == 25 and 1 <= video["clip_size"] * video["step_size"] / 25 <= 2
    assert chosen(frames=10)["step_size"] == 1
    long = chosen(frames=25 * 60)
    assert long["step_size"] <= 0.2 * 25 and long["nclips"] == 10 > video["nclips"]
    folders = chosen(frames=36, rate=np.nan)
    assert folders["step_size"] == 2 and "frame_rate" not in folders


ALIKE = [8, 8, 8, 9, 9, 9, 10, 10, 10]
SPREAD = [2, 4, 6, 8, 11, 11, 14, 21, 63]  # as words are


def test_frames_for_a_2d_network_are_larger_if_clips_are_few():
    few, many = (chosen(number, frames=12, size=(64, 64), model="eco") for number in (40, 800))
    assert few["crop_size"] == [128, 128] and many["crop_size"] == [96, 96]
    assert few["feature_versions"] == 8 and many["feature_versions"] == 3
    assert chosen(40, model="eco", crop_size=64)["feature_versions"] == 8
    both = {"model": "average", "members": ["eco", "conv3d"]}
    assert chosen(40, **both)["feature_versions"] == 16
    # 3,000 windows, on which it is fitted
    assert chosen(40, model="kernel_ridge")["feature_versions"] == 16
    assert chosen(400, model="kernel_ridge")["feature_versions"] == 7


def test_what_is_fitted_in_closed_form_has_one_epoch():
    assert chosen(model="kernel_ridge")["num_epochs"] == 1
    assert chosen(model="average", members=["linear", "kernel_ridge"])["num_epochs"] == 1
    assert chosen(model="average", members=["linear", "eco"])["num_epochs"] > 1


@pytest.mark.parametrize(
    "frames, longest",
    [(ALIKE, 8), (1, 1), (2, 2), (7, 7), ([12, 12, 13, 13, 14, 15, 16, 17, 18], 12), (SPREAD, 8)],
)
@pytest.mark.parametrize(
    "given",
    [{}, {"step_size": 2}, {"step_size": 5}, {"sampling": "segments"}, {"frame_rate": 12.5}],
    ids=str,
)
def test_no_window_is_longer_than_short_clips(frames, longest, given):
    choices = {"step_size": 1} | given | chosen(frames=frames, **given)
    if "frame_rate" in given:
        frames, longest = np.array(frames) / 2, max(1, longest // 2)
    clip_size, step = choices["clip_size"], choices["step_size"]
    if given.get("sampling") == "segments":
        # From each part of a shorter clip the same frame may come twice, but nothing is padded.
        assert clip_size == min(12, np.median(frames))
        assert "step_size" not in chosen(frames=frames, **given)
        assert choices["nclips"] <= max(1, np.median(frames) // clip_size)
        return
    assert (clip_size - 1) * step < longest
    assert clip_size == 1 + (longest - 1) // step  # and not much shorter
    windows = sample_window(int(np.median(frames)), clip_size, step, None, choices["nclips"])
    assert len({tuple(window) for window in windows.tolist()}) == choices["nclips"]


def test_what_is_given_is_kept_and_the_rest_suits_it():
    choices = chosen(frames=90, rate=30.0, frame_rate=10, clip_size=24)
    assert choices["step_size"] == 1 and not {"frame_rate", "clip_size"} & set(choices)
    assert chosen(frame_height=96)["crop_size"] == [96, 120]
    assert chosen(crop_size=64)["frame_height"] == chosen(crop_size=[64, 32])["frame_height"] == 64
    assert chosen(frame_height=None)["crop_size"] == [144, 180]


def test_a_background_that_fills_the_picture_is_subtracted(tmp_path):
    assert chosen(moving=0.1)["subtract_background"] and not chosen()["subtract_background"]
    frames = np.full((8, 32, 32, 3), 90, np.uint8)
    for number, frame in enumerate(frames):
        frame[8:16, 2 * number : 2 * number + 8] = 200
    write_clip(tmp_path / "still", frames)
    write_clip(
        tmp_path / "shaking",
        np.stack([np.roll(frame, 4 * number) + 20 * number for number, frame in enumerate(frames)]),
    )
    still, shaking = (
        survey(open_folder(tmp_path), [name], make_config()).moving_shares[0]
        for name in ("still", "shaking")
    )
    assert 0.1 < still < 0.25 and shaking > 0.9


def test_the_background_is_kept_where_clips_would_be_alike_without_it():
    two = np.array(["a"] * 5 + ["b"] * 4)
    assert not chosen(moving=0.0)["subtract_background"]  # one frame each, or a still scene
    assert not chosen(moving=0.0, labels=two)["subtract_background"]
    some = [0.1, 0, 0.1, 0.1, 0.1, 0.1, 0, 0.1, 0.1]
    assert not chosen(moving=some)["subtract_background"]
    assert not chosen(moving=some, labels=two)["subtract_background"]
    nothing = np.array(["nothing" if share == 0 else "a" for share in some])
    assert chosen(moving=some, labels=nothing)["subtract_background"]  # a class of its own
    nothing[6] = ""  # a test clip without a class may be of that one
    assert chosen(moving=some, labels=nothing)["subtract_background"]
    assert chosen(moving=0.02)["subtract_background"]


def test_maps_keep_their_mean_where_nothing_else_would_be_left():
    network = {"model": "average", "members": ["conv3d", "kernel_ridge"]}
    assert "center_features" not in chosen(**network)
    for still in ({"frames": 1}, {"clip_size": 1}, {"moving": 0.0}):
        assert chosen(**network, **still)["center_features"] is False
        assert "center_features" not in chosen(model="conv3d", **still)


@pytest.mark.parametrize("num_frames", [1, 8])
def test_pictures_and_still_scenes_keep_their_background(tmp_path, capfd, num_frames):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for number in range(6):
            picture = rng.integers(0, 255, (1, 32, 32, 3), np.uint8)
            write_clip(tmp_path / "clips" / name / str(number), picture.repeat(num_frames, 0))
    flags = [
        "--data",
        str(tmp_path / "clips"),
        "-g",
        "cpu",
        "--check_data",
        "--set",
        "model=conv3d",
        "--set",
        f"output_dir={tmp_path / 'runs'}",
    ]
    assert train.main(flags) in (0, 1)
    config = json.loads((tmp_path / "runs" / "clips" / "config.json").read_text())
    assert not config["subtract_background"] and config["clip_size"] == num_frames
    assert "subtract_background false: nothing moves in " in capfd.readouterr().out


def test_a_step_is_affordable():
    wide, high, small = chosen(), chosen(size=(640, 360)), chosen(size=(20, 20))
    assert wide["crop_size"][0] < wide["crop_size"][1]
    assert high["crop_size"][0] > high["crop_size"][1]
    assert small["crop_size"] == [20, 20]
    assert chosen(size=(38, 50))["frame_height"] == 36  # a pack of that height has no 40
    assert chosen(size=(100, 1000))["crop_size"][1] <= 2 * wide["crop_size"][0] + 4
    large, small_too = chosen(size=(720, 1280)), chosen(size=(72, 128))
    assert large["crop_size"] == small_too["crop_size"]  # whatever the camera's
    assert chosen(2000, device="cuda")["num_epochs"] > chosen(2000)["num_epochs"]
    assert chosen(num_clips=50)["num_epochs"] > chosen(num_clips=5000)["num_epochs"]


def test_no_batch_is_much_smaller_than_the_others():
    for num_clips in range(8, 300):
        size = chosen(num_clips)["batch_size"]
        assert 4 <= size <= 16 and -num_clips % size <= num_clips / size, num_clips


# --- whole runs --------------------------------------------------------------------------------


def test_a_run_is_repeated_by_its_config(tmp_path, capfd):
    root = write_class_folders(tmp_path / "clips")
    assert do_train(root, tmp_path, "--group", "^([a-z]+)_") == 0
    output = capfd.readouterr().out
    assert "18 clips of 3 classes: Left 6, Right 6, Still 6" in output
    assert "validation (" in output and "baselines" not in output
    folder = tmp_path / "runs" / "clips"
    names = read_labels(folder / "labels.csv")
    people = []
    for name in ("train", "validation"):
        ids = read_annotations(folder / f"{name}.csv", root, names).ids
        people.append({clip_id.split("/")[1][:2] for clip_id in ids})
    assert people[0] and people[1] and not people[0] & people[1]
    assert do_train(root, tmp_path) == 2
    assert "already has a run" in capfd.readouterr().err
    config = str(folder / "config.json")
    assert train.main(["--config", config, "-g", "cpu", "--set", "model_name=again"]) == 0
    first, second = (
        torch.load(path / "checkpoint.pth.tar")["state_dict"]
        for path in (folder, tmp_path / "runs" / "again")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert do_train(root, tmp_path, "--eval_only", "True", "--checkpoint", "last") == 0
    assert (folder / "report.html").exists() and (folder / "predictions.csv").exists()
    assert do_train(root, tmp_path, "--check_data") in (0, 1)
    checkpoints = [str(folder / f"{name}.pth.tar") for name in ("checkpoint", "model_best")]
    assert do_train(root, tmp_path, "--eval_only", "--ensemble", *checkpoints) == 0
    assert do_train(root, tmp_path, "--overwrite") == 0
    capfd.readouterr()
    assert do_train(root, tmp_path, "--check_data", "--group", "^(..)") == 2
    assert "--group ^(..): the run in" in capfd.readouterr().err
    other = write_class_folders(tmp_path / "other" / "clips")
    assert do_train(other, tmp_path, "--eval_only", "--checkpoint", "last") == 2
    assert f"config.json is for {root}; choose another name" in capfd.readouterr().err


def test_a_check_without_a_run_looks_anew(tmp_path, capfd):
    root = write_class_folders(tmp_path / "clips")
    flags = ["--data", str(root), "--check_data", "--set", f"output_dir={tmp_path / 'runs'}"]
    assert train.main([*flags, "--set", "model=csn"]) in (0, 1)
    config = json.loads((tmp_path / "runs" / "clips" / "config.json").read_text())
    assert config["model"] == "csn" and "block_widths" not in config
    shutil.rmtree(root / "Left" / "anna_0")
    capfd.readouterr()
    assert train.main([*flags, "--group", "^([a-z]+)_"]) in (0, 1)
    assert "17 clips of 3 classes" in (output := capfd.readouterr().out) and "groups (" in output


def test_sampling_can_be_set(tmp_path, capfd):
    """No key of the recipe, which the user has not set, stands in the way."""
    root = write_class_folders(tmp_path / "clips")
    assert do_train(root, tmp_path, "--set", "sampling=segments") == 0
    config = json.loads((tmp_path / "runs" / "clips" / "config.json").read_text())
    assert config["sampling"] == "segments" and config["step_jitter"] == 0
    assert "step_jitter 0.0: segments have no step" in capfd.readouterr().out
    assert (
        do_train(
            root, tmp_path, "--set", "sampling=segments", "--set", "step_jitter=0.2", "--overwrite"
        )
        == 2
    )
    assert "step_jitter: found 0.2; it needs sampling window" in capfd.readouterr().err


@pytest.mark.parametrize("rule", ["^([a-z]+)_", "folder", "csv"])
def test_test_clips_need_no_group(tmp_path, capfd, rule):
    root, rng = tmp_path / "clips", np.random.default_rng(0)
    rows = []
    for part, people in (("train", ("anna", "bo")), ("val", ("cy", "dee"))):
        for label in CLASSES:
            for person in people:
                clip_id = f"{part}/{label}/{person}/{person}_1"
                write_clip(root / clip_id, draw_frames(label, 8, rng))
                rows.append(f"{clip_id},{person}")
    for name in ("17", "18"):
        write_clip(root / "test" / name, draw_frames("Left", 8, rng))
    if rule == "csv":
        (tmp_path / "people.csv").write_text("\n".join(["video_id,person", *rows]))
        rule = f"{tmp_path / 'people.csv'}:person"
    assert do_train(root, tmp_path, "--group", rule) == 0
    assert f"groups ({rule}): 2 for training, 2 for validation" in capfd.readouterr().out
    assert do_train(root, tmp_path, "--test_only", "--checkpoint", "last") == 0
    shutil.rmtree(tmp_path / "runs")
    write_clip(root / "train" / "Left" / "17", draw_frames("Left", 8, rng))
    if rule != "folder":  # a clip for training does need one
        assert do_train(root, tmp_path, "--group", rule) == 2


def test_a_test_set_without_classes_is_predicted(tmp_path):
    root = tmp_path / "clips"
    for part in ("train", "val"):
        write_class_folders(root / part)
    write_clip(root / "test" / "1.avi", draw_frames("Left", 8, np.random.default_rng(0)))
    assert do_train(root, tmp_path) == 0
    assert do_train(root, tmp_path, "--test_only", "--checkpoint", "last") == 0
    rows = (tmp_path / "runs" / "clips" / "test_predictions.csv").read_text().splitlines()
    assert len(rows) == 2 and rows[1].startswith("test/1.avi,")


def test_a_pack_of_class_folders_is_like_the_folder(tmp_path, capfd):
    root = write_class_folders(tmp_path / "clips")
    assert pack.main([str(tmp_path / "packed.zip"), str(root)]) == 0
    capfd.readouterr()
    assert do_train(root, tmp_path) == 0 and do_train(tmp_path / "packed.zip", tmp_path) == 0
    weights = [
        torch.load(tmp_path / "runs" / name / "checkpoint.pth.tar")["state_dict"]
        for name in ("clips", "packed")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_pack_of_videos_keeps_their_frame_rate(tmp_path, capfd):
    rng = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "clips" / CLASSES[number % 2]
        folder.mkdir(exist_ok=True, parents=True)
        write_video(folder / f"{number}.mp4", draw_frames("Left", 9, rng, 32, 32), rate=20)
    packed = str(tmp_path / "packed.zip")
    assert pack.main([packed, str(tmp_path / "clips"), "--frame_rate", "20", "--height", "24"]) == 0
    assert do_train(packed, tmp_path) == 0
    assert "frame_rate 20.0: the median of the videos" in capfd.readouterr().out


def test_names_may_have_anything_in_them(tmp_path):
    names = ['wave, "hi"', "拍手; x", "it's 1"]
    root = write_class_folders(tmp_path / "my clips, new", names=names)
    for index, name in enumerate(names):
        os.rename(root / name / "anna_0", root / name / f'a,"b;{index} é')
    assert do_train(root, tmp_path) == 0
    folder = tmp_path / "runs" / "my clips, new"
    assert sorted(read_labels(folder / "labels.csv")) == sorted(names)
    assert do_train(root, tmp_path, "--eval_only", "--checkpoint", "best") == 0
    predictions = (folder / "predictions.csv").read_text().replace('""', '"')
    assert all(name in predictions for name in names)


def test_animated_pictures_are_films_and_what_is_no_film_is_counted(tmp_path, capfd):
    rng, root = np.random.default_rng(0), tmp_path / "clips"
    for label, number in itertools.product(CLASSES[:2], range(6)):
        path = root / label / f"{number}.{'gif' if number % 2 else 'webp'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = list(map(Image.fromarray, draw_frames(label, 9, rng)))
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50)
    for name in ("a.txt", "thumb.jpg", "Thumbs.db"):
        (root / CLASSES[0] / name).write_bytes(b"")
    (root / "notes.txt").write_text("")
    assert do_train(root, tmp_path) == 0
    printed = capfd.readouterr().out
    assert f"{root}: 12 clips of 2 classes: {CLASSES[0]} 6, {CLASSES[1]} 6\n" in printed
    assert "ignored: 4 files that are not videos: " in printed and "frame_rate 20.0" in printed
    assert do_train(root, tmp_path, "--check_data") == 0
    assert "12 clips examined" not in capfd.readouterr().err
    packed = str(tmp_path / "packed.zip")
    assert pack.main([packed, str(root), "--frame_rate", "20"]) == 0
    printed = capfd.readouterr().out
    assert "12 clips, 108 frames" in printed
    assert "left out: 4 files that are not videos: " in printed


def test_class_folders_with_accents_composed_and_apart_are_one_class(tmp_path):
    names = [
        f"{part}/{unicodedata.normalize(form, name)}/1.mp4"
        for name in ("Hände", "naïf")
        for part, form in (("train", "NFC"), ("val", "NFD"))
    ]
    for name in names:
        empty_video(tmp_path / name)
    clips, _ = labelled_clips(open_folder(tmp_path))
    assert sorted(clips["id"]) == sorted(names)
    assert Counter(clips["label"]) == {"Hände": 2, "naïf": 2}


def test_few_unreadable_videos_are_left_out_and_many_refused(tmp_path, capfd):
    root = tmp_path / "clips"
    rng = np.random.default_rng(0)
    for label in CLASSES[:2]:
        for number in range(6):
            (root / label).mkdir(exist_ok=True, parents=True)
            write_video(root / label / f"{number}.mp4", draw_frames(label, 8, rng, 32, 32))
    data = (root / "Left" / "1.mp4").read_bytes()
    (root / "Left" / "1.mp4").write_bytes(data[: len(data) // 2])
    assert do_train(root, tmp_path) == 0
    output = capfd.readouterr().out
    assert "left out, since they cannot be read: 1" in output and "1.mp4" in output
    assert "Left 5, Right 6" in output
    for number in range(2, 5):
        (root / "Right" / f"{number}.mp4").write_bytes(b"")
    assert do_train(root, tmp_path, "--overwrite") == 2
    assert "4 of 12 clips cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize("part", ["", "train"])
def test_a_class_that_cannot_be_read_is_named(tmp_path, capfd, part):
    root, above = tmp_path / "clips", tmp_path / "clips" / part
    write_class_folders(above, num_clips=12)
    for name in CLASSES if part else ():
        (root / "val" / name).mkdir(parents=True)
        (above / name / "anna_0").rename(root / "val" / name / "anna_0")
    for number in range(2):  # few of all clips, but all of a class
        write_clip(above / "Wave" / f"cy_{number}", np.zeros((3, 24, 32, 3), np.uint8))
    for frame in (above / "Wave").glob("*/*"):
        frame.write_bytes(b"")
    wave = f"{part}/Wave" if part else "Wave"
    assert do_train(root, tmp_path) == 2
    error = capfd.readouterr().err
    assert f"none of the clips in {wave} can be read: {root}/{wave}/cy_0/" in error
    assert "remove the class" in error and not (tmp_path / "runs").exists()
    for frame in (above / "Wave").glob("*/*"):
        frame.unlink()
    assert do_train(root, tmp_path) == 2
    assert f"{wave}/cy_0: has no frames and no videos" in capfd.readouterr().err
    shutil.rmtree(above / "Wave")
    (above / "Wave").mkdir()  # prepared for clips to come
    assert do_train(root, tmp_path) == 0
    assert f"left out, since there are no clips in them: {wave}" in capfd.readouterr().out


def test_many_unreadable_clips_are_counted_and_their_class_is_named(tmp_path, capfd):
    root = write_class_folders(tmp_path / "clips")
    for frame in (root / "Left").glob("*/*"):
        frame.write_bytes(b"")
    assert do_train(root, tmp_path) == 2
    assert "6 of 18 clips cannot be read, all those in Left, such as " in capfd.readouterr().err
    for frame in root.glob("*/*/*"):
        frame.write_bytes(b"")
    assert do_train(root, tmp_path) == 2
    error = capfd.readouterr().err
    assert "18 of 18 clips cannot be read, all those in Left, Right, Still, such as " in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "flags", [pytest.param([], marks=pytest.mark.slow), ["--overwrite"], ["--resume", "auto"]]
)
def test_a_folder_of_the_same_name_does_not_take_over_a_run(tmp_path, capfd, flags):
    root = write_class_folders(tmp_path / "clips")
    assert do_train(root, tmp_path) == 0
    folder = tmp_path / "runs" / "clips"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = write_class_folders(tmp_path / "other" / "clips")
    assert do_train(other, tmp_path, *flags) == 2
    assert f"config.json is for {root}; choose another name" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert do_train(other, tmp_path, *flags, "--set", "model_name=other") == 0


def test_two_folders_of_one_name_at_once(tmp_path, capfd, monkeypatch):
    """The second comes while the first stats at its clips, before it has written anything."""
    root = write_class_folders(tmp_path / "clips")
    folder = tmp_path / "runs" / "clips"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom pathlib import Path\n"
            "from system.files import FolderLock\nFolderLock().take(Path(sys.argv[1]))\n"
            "print('locked', flush=True)\ninput()",
            str(folder),
        ],
        cwd=Path(train.__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        holder.stdout.readline()
        for flags in ([], ["--overwrite"], ["--check_data"]):
            assert do_train(root, tmp_path, *flags) == 2
            error = capfd.readouterr().err
            assert f"{folder}: is being written by process {holder.pid} on " in error
        assert [path.name for path in folder.iterdir()] == ["run.lock"]
    finally:
        holder.kill()
        holder.wait()
    assert do_train(root, tmp_path) == 0


def test_groups_on_both_sides_of_folders_that_are_split_are_said_once(tmp_path, capfd):
    root = write_class_folders(tmp_path / "clips", names=[f"train/{name}" for name in CLASSES])
    for name in CLASSES:
        (root / "val" / name).mkdir(parents=True)
        (root / "train" / name / "bo_4").rename(root / "val" / name / "bo_4")
    assert do_train(root, tmp_path, "--group", "^([a-z]+)_") == 0
    assert capfd.readouterr().out.count("warning: 1 groups are both in training and val") == 1


@pytest.mark.parametrize("counts, is_uneven", [((14, 5), False), ((15, 5), True)])
def test_uneven_classes_are_drawn_equally_often(counts, is_uneven):
    found = class_balance(["wave"] * counts[0] + ["nod"] * counts[1])
    assert [(key, value) for key, value, _ in found] == [("balanced_sampling", True)] * is_uneven
    assert all("from 5 training clips of nod to 15 of wave" in reason for *_, reason in found)


def test_rather_uneven_classes_are_said(tmp_path, capfd):
    root = write_class_folders(tmp_path / "clips", num_clips=4)
    for number in range(4, 9):
        shutil.copytree(root / CLASSES[0] / "anna_0", root / CLASSES[0] / f"anna_{number}")
    shutil.rmtree(root / CLASSES[2])
    assert do_train(root, tmp_path, "--check_data", "True") == 0
    said = capfd.readouterr().out
    assert "  classes are uneven, from 3 training clips of Right to " in said
    assert "--set balanced_sampling=true draws each equally often" in said

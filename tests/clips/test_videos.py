"""Video files: their frames at the training's frame rate, and every way to be damaged."""

import multiprocessing

import numpy as np
import pytest
import torch
from conftest import CLASSES, make_config, write_clip, write_data_set
from movies import cut_without_encoding, write_sound, write_video
from PIL import Image

from clips.annotations import read_annotations
from clips.batches import ClipKey
from clips.folders import clip_at
from clips.frames import FrameError
from clips.videos import VideoFile
from data_loader import VideoFolder
from doctor.data_doctor import examine_clip

FRAMES = np.stack([np.full((48, 64, 3), 6 * number, np.uint8) for number in range(36)])


def numbers(video, positions=None):
    positions = range(len(video)) if positions is None else positions
    return [round(frame.mean() / 6) for frame in video.frames_at(positions)]


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.mp4", {}),
        ("a.mov", {}),
        ("a.mkv", {}),
        ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("a.webm", {"codec": "libvpx", "pix_fmt": "yuv420p", "b": "2M"}),
    ],
)
def test_every_frame_of_every_format(tmp_path, name, options):
    video = VideoFile(write_video(tmp_path / name, FRAMES, **options), 12, 10**6)
    assert numbers(video) == list(range(36))
    assert next(video.frames_at([3])).shape == (48, 64, 3)


B_FRAMES = {"pix_fmt": "yuv420p", "b": "3M", "g": "12", "bf": "2"}


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.mpg", {"codec": "mpeg1video", "rate": 24}),
        ("a.mpg", {"codec": "mpeg2video", "rate": 24}),
        ("a.mp4", {"codec": "mpeg2video"}),
        ("a.avi", {"codec": "mpeg4"}),
        ("a.avi", {}),
        ("a.mp4", {}),
        ("a.mp4", {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}),
        ("a.mp4", {"codec": "libx265", "x265-params": "log-level=error"}),
    ],
)
def test_each_frame_is_found_wherever_reading_starts(tmp_path, name, options):
    options = B_FRAMES | options
    path = write_video(tmp_path / name, FRAMES, **options)
    video = VideoFile(path, options.get("rate", 12), 10**6)
    assert numbers(video) == list(range(36))
    assert [numbers(video, [position]) for position in range(36)] == [[n] for n in range(36)]
    assert numbers(video, range(14, 26)) == list(range(14, 26))


def test_a_cut_video_has_only_what_is_shown(tmp_path):
    whole = write_video(tmp_path / "a.mp4", FRAMES, g="18", sc_threshold="0")
    video = VideoFile(cut_without_encoding(whole, tmp_path / "b.mp4", 26 / 12), 12, 10**6)
    assert numbers(video) == list(range(26, 36)) and numbers(video, [4]) == [30]


def test_only_what_is_asked_for_is_read(tmp_path):
    video = VideoFile(write_video(tmp_path / "a.mp4", FRAMES, g="8"), 12, 10**6)
    assert numbers(video, [20, 22, 35]) == [20, 22, 35]
    assert numbers(video, [5]) == [5]
    assert numbers(video, []) == []


@pytest.mark.parametrize(
    "rate, expected", [(24, list(range(1, 36, 2))), (6, sorted([*range(36)] * 2))]
)
def test_videos_are_resampled_to_the_rate_of_training(tmp_path, rate, expected):
    video = VideoFile(write_video(tmp_path / "a.mp4", FRAMES, rate=rate), 12, 10**6)
    assert numbers(video) == expected


def test_frames_are_those_of_the_folder_but_for_compression(tmp_path):
    rng = np.random.default_rng(0)
    frames = np.kron(rng.integers(0, 255, (12, 6, 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    video = VideoFile(write_video(tmp_path / "a.mp4", frames), 12, 10**6)
    found = np.stack(list(video.frames_at(range(12))))
    assert np.abs(found.astype(int) - frames).mean() < 3


def damaged(tmp_path, name):
    path = tmp_path / "a.mp4"
    if name == "sound":
        return write_sound(path)
    noise = np.random.default_rng(0).integers(0, 255, (36, 48, 64, 3), np.uint8)
    write_video(path, noise[: 1 if name == "one frame" else 36], movflags="faststart")
    data = path.read_bytes()
    if name == "cut off":
        path.write_bytes(data[: len(data) * 2 // 3])
    if name == "empty":
        path.write_bytes(b"")
    if name == "text":
        path.write_text("no video " * 99)
    return str(path)


@pytest.mark.parametrize(
    "name, problem",
    [
        ("empty", "empty (0 bytes)"),
        ("text", "cannot be decoded"),
        ("sound", "no video stream in it"),
        ("one frame", "a single frame"),
        ("cut off", "cannot be decoded"),
        ("missing", "cannot be decoded"),
    ],
)
def test_a_video_that_cannot_be_used_says_why(tmp_path, name, problem):
    path = str(tmp_path / "b.mp4") if name == "missing" else damaged(tmp_path, name)
    with pytest.raises(FrameError) as error:
        list(VideoFile(path, 12, 10**6).frames_at(range(36)))
    assert str(error.value).startswith(path) and problem in str(error.value)


def test_large_frames_are_refused_before_decoding(tmp_path):
    path = write_video(tmp_path / "a.mp4", FRAMES)
    with pytest.raises(FrameError, match="max_frame_pixels"):
        VideoFile(path, 12, 48 * 64 - 1)


# --- as a data set -----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_a_video_in_the_csv_is_read_as_its_folder_would_be(tmp_path, training):
    rng = np.random.default_rng(0)
    frames = np.kron(rng.integers(0, 255, (20, 6, 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    write_clip(tmp_path / "1", frames, ".jpg")
    write_video(tmp_path / "1.mp4", frames)
    (tmp_path / "set.csv").write_text("1;Left\n1.mp4;Left\n")
    config = make_config(clip_size=4, frame_height=48, crop_size=40)
    annotations = read_annotations(tmp_path / "set.csv", tmp_path, CLASSES)
    data_set = VideoFolder(annotations, config, training)
    same_draw = [ClipKey(0, 0)] if training else [ClipKey(0, 0), ClipKey(0, 1)]
    if training:  # what is drawn depends on the place in the CSV
        annotations.ids[:] = annotations.ids[::-1].copy()
        (from_video,) = data_set.__getitems__(same_draw).clips
        annotations.ids[:] = annotations.ids[::-1].copy()
        (from_folder,) = data_set.__getitems__(same_draw).clips
    else:
        from_folder, from_video = data_set.__getitems__(same_draw).clips
    assert (from_folder.double() - from_video.double()).abs().mean() < 4
    assert not torch.equal(from_folder, torch.zeros_like(from_folder))


def test_a_damaged_video_is_a_bad_clip(tmp_path):
    data = write_data_set(tmp_path / "data", {"train": 3})
    path = tmp_path / "data" / "clips" / "wave.mp4"
    path.write_bytes(b"")
    (tmp_path / "data" / "train.csv").write_text("1;Left\nwave.mp4;Right\n")
    config = make_config(**data | {"clip_size": 4, "frame_height": 24, "crop_size": 20})
    annotations = read_annotations(config.train_data_csv, config.train_data_folder, CLASSES)
    batch = VideoFolder(annotations, config, True).__getitems__([ClipKey(0, 0), ClipKey(0, 1)])
    assert batch.indices.tolist() == [0]
    assert batch.bad[0].reason.startswith(f"{path}: empty")


def test_the_doctor_examines_videos(tmp_path):
    path = write_video(tmp_path / "a.mp4", FRAMES)
    result = examine_clip(clip_at(path), 36, make_config())
    assert (result.num_frames, result.findings, dict(result.sizes)) == (36, [], {(64, 48): 36})
    short = examine_clip(clip_at(path), 37, make_config())
    assert [kind for kind, *_ in short.findings] == ["short clip"]
    bad = examine_clip(clip_at(damaged(tmp_path, "cut off")), 36, make_config())
    assert [kind for kind, *_ in bad.findings] == ["unreadable clip"]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_the_doctor_examines_animated_pictures(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    pictures = list(map(Image.fromarray, FRAMES[:12]))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50)
    result = examine_clip(clip_at(path), 12, make_config(frame_rate=20))
    assert (result.num_frames, result.findings, dict(result.sizes)) == (12, [], {(64, 48): 12})
    path.write_bytes(path.read_bytes()[:-100])
    bad = examine_clip(clip_at(path), 12, make_config(frame_rate=20))
    assert [kind for kind, *_ in bad.findings] == ["unreadable clip"]


def test_the_doctor_knows_frames_named_by_decimals(tmp_path):
    names = ["0.jpg", "0.25.jpg", "0.5.jpg", "2.jpg"]
    for name, frame in zip(names, FRAMES, strict=False):
        Image.fromarray(frame).save(tmp_path / name)
    assert examine_clip(clip_at(tmp_path), 4, make_config()).findings == []
    Image.fromarray(FRAMES[9]).save(tmp_path / "0.5.png")
    doubled = examine_clip(clip_at(tmp_path), 4, make_config())
    assert [detail for _, detail, _ in doubled.findings] == ["more than once: 0.5"]


def test_a_forked_worker_reads_videos_as_the_main_process_did_before(tmp_path):
    """PyAV 19 kept a converter with threads, for which a forked process waited forever."""
    frames = np.random.default_rng(0).integers(0, 256, (4, 144, 180, 3), np.uint8)
    path = write_video(tmp_path / "clip.mp4", frames)
    expected = list(VideoFile(path, 12, 10**6).frames_at([0, 1]))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(_read_two_frames, [path]).get(timeout=120)
    assert np.array_equal(found, expected)


def _read_two_frames(path):
    return list(VideoFile(path, 12, 10**6).frames_at([0, 1]))

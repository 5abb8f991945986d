"""Each kind of clip and of folder has what the protocols declare."""

import inspect
import os
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import draw_frames, make_config, write_clip
from movies import write_video
from PIL import Image

from clips.films import AnimatedPicture
from clips.folders import ClipFolder, FrameSource, PlainFolder, clip_at
from clips.frames import FrameFolder, FramesInMemory
from clips.packing import Packing, pack
from clips.packs import Pack, PackedFrames, open_folder
from clips.videos import VideoFile

FRAMES = draw_frames("Left", 6, np.random.default_rng(0))


def members(protocol) -> list[str]:
    own = set(vars(protocol)) | set(inspect.get_annotations(protocol))
    return [name for name in own if name == "__len__" or not name.startswith("_")]


@pytest.fixture
def folder(tmp_path):
    """A folder with a clip of each kind that is on a disk."""
    write_clip(tmp_path / "clips" / "frames", FRAMES)
    write_clip(tmp_path / "clips" / "copy", FRAMES)
    (tmp_path / "clips" / "copy" / "notes.txt").touch()
    write_video(tmp_path / "clips" / "video.mp4", FRAMES)
    first, *others = map(Image.fromarray, FRAMES)
    first.save(
        tmp_path / "clips" / "picture.gif", save_all=True, append_images=others, duration=100
    )
    return tmp_path / "clips"


@pytest.fixture
def packed(folder, tmp_path):
    for name in ("video.mp4", "picture.gif"):
        (folder / name).unlink()
    bar = nullcontext(SimpleNamespace(update=lambda num_bytes: None))
    return pack(tmp_path / "clips.zip", [folder], Packing(), lambda total: bar)


def check_source(source, kind, native_rate):
    assert type(source) is kind and all(hasattr(source, name) for name in members(FrameSource))
    assert source.native_rate == (native_rate and pytest.approx(native_rate)) and len(source) == 6
    frames = list(source.frames_at([0, 5]))
    assert [(frame.shape, frame.dtype) for frame in frames] == [((24, 32, 3), np.uint8)] * 2


@pytest.mark.parametrize(
    ("name", "kind", "native_rate"),
    [
        ("frames", FrameFolder, None),
        ("video.mp4", VideoFile, 12),
        ("picture.gif", AnimatedPicture, 10),
    ],
)
def test_each_clip_on_a_disk_is_a_source_of_frames(folder, name, kind, native_rate):
    config = make_config(frame_rate=native_rate or 12)
    for clip in (PlainFolder(str(folder)).clip(name), clip_at(folder / name)):
        assert str(clip) == os.fspath(clip) == str(folder / name)
        check_source(clip.open(config), kind, native_rate)


def test_frames_in_memory_are_a_source_of_frames():
    check_source(FramesInMemory(FRAMES), FramesInMemory, None)


@pytest.mark.parametrize("is_packed", [False, True])
def test_each_folder_of_clips_answers_the_same_questions(folder, request, is_packed):
    packed = request.getfixturevalue("packed")  # which leaves the same clips in the folder
    path = packed.path if is_packed else folder
    found = open_folder(path)
    assert type(found) is (Pack if is_packed else PlainFolder)
    assert all(hasattr(found, name) for name in members(ClipFolder))
    assert str(found) == os.fspath(found) == str(path)
    assert bool(found.identity) == is_packed and found.frame_rate is None
    assert sorted(found.search().ids) == ["copy", "frames"]
    assert found.siblings(["frames"]) == {"copy", "frames"}
    assert found.duplicates(["frames", "copy"]) == [[0, 1]]
    assert found.other_files("frames") == []
    assert found.other_files("copy") == ([] if is_packed else ["notes.txt"])
    found.check(make_config())
    check_source(
        found.open("frames", make_config()), PackedFrames if is_packed else FrameFolder, None
    )

"""Packs: the format, reading them, and each kind of damage."""

import os
import pickle
import random
import shutil
import subprocess
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import CLASSES, draw_frames, make_config, write_clip
from torch.utils.data import DataLoader

from clips import packs
from clips.annotations import read_annotations
from clips.batches import ClipKey, TrainBatches, as_it_is
from clips.folders import PlainFolder, clip_at
from clips.frames import FrameError, FrameFolder
from clips.packing import Packing, PackWriter, pack
from clips.packs import INDEX_NAME, Pack, PackedFrames, open_folder
from clips.search import find_clips
from config import Config
from data_loader import VideoFolder
from system.errors import UserError

MAX_PIXELS = 10**6

needs_unzip = pytest.mark.skipif(shutil.which("unzip") is None, reason="needs unzip")


def no_bar(total):
    return nullcontext(SimpleNamespace(update=lambda num_bytes: None))


def make_pack(target, source, **options) -> Pack:
    return pack(Path(target), [Path(source)], Packing(**options), no_bar)


def files_below(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Frames in class folders, with names in several scripts, and a damaged and an empty frame."""
    root = tmp_path_factory.mktemp("packs") / "frames"
    rng = np.random.default_rng(0)
    for number, place in enumerate(["left/1", "left/10", "right/2", "手势/片段", "жест/ü ö;,"]):
        write_clip(root / place, draw_frames("Left", 4 + 4 * number, rng))
    (root / "left/1/00002.jpg").write_bytes(b"\xff\xd8\xffno picture")
    (root / "right/2/00003.jpg").write_bytes(b"")
    (root / "right/empty").mkdir()
    return root


@pytest.fixture(scope="module")
def packed(folder) -> Pack:
    return make_pack(folder.parent / "frames.zip", folder)


# --- the format --------------------------------------------------------------------------------


@needs_unzip
def test_any_zip_tool_tests_and_restores_it(folder, packed, tmp_path):
    with zipfile.ZipFile(packed.path) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[-1] == INDEX_NAME
        archive.extractall(tmp_path / "python")
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    for command in (["unzip", "-tq", packed.path], ["unzip", "-q", packed.path, "-d", "unzip"]):
        subprocess.run(command, cwd=tmp_path, check=True, env=environment, capture_output=True)
    for restored in (tmp_path / "python", tmp_path / "unzip"):
        (restored / INDEX_NAME).unlink()
        assert files_below(restored) == files_below(folder)
        assert (restored / "right/empty").is_dir()


def test_the_same_frames_make_the_same_file(folder, packed, tmp_path):
    make_pack(tmp_path / "again.zip", folder)
    assert (tmp_path / "again.zip").read_bytes() == Path(packed.path).read_bytes()


def test_what_is_in_it(packed):
    lengths = dict(zip(packed.ids(), packed.lengths(), strict=True))
    assert lengths == {
        "left/1": 4,
        "left/10": 8,
        "right/2": 12,
        "手势/片段": 16,
        "жест/ü ö;,": 20,
        "right/empty": 0,
    }
    assert packed.about["clips"] == 6 and packed.about["frames"] == 60


def test_frames_are_those_of_the_folder(folder, packed):
    for clip_id in ("left/10", "手势/片段", "жест/ü ö;,"):
        expected = FrameFolder(folder / clip_id, MAX_PIXELS)
        frames = PackedFrames(packed.clip(clip_id), MAX_PIXELS)
        assert len(frames) == len(expected) and frames.names == expected.names
        for positions in (range(len(frames)), [1, 3, 7], [7, 2, 2], []):
            for one, other in zip(
                frames.frames_at(positions), expected.frames_at(positions), strict=True
            ):
                assert np.array_equal(one, other)


@pytest.mark.parametrize(
    "clip_id, position", [("left/1", 1), ("right/2", 2), ("right/empty", 0), ("left/none", 0)]
)
def test_a_bad_frame_is_the_error_that_it_is_in_the_folder(folder, packed, clip_id, position):
    errors = []
    config = make_config()
    for path in (clip_at(folder / clip_id), packed.clip(clip_id)):
        with pytest.raises(FrameError) as caught:
            list(path.open(config).frames_at([position]))
        errors.append(str(caught.value))
    at_folder, at_pack = (
        error.replace(str(root), "") for error, root in zip(errors, (folder, packed), strict=True)
    )
    assert at_pack.startswith(f"/{clip_id}")
    assert at_folder == at_pack or clip_id == "left/none"


def test_frames_that_are_near_are_read_together(packed):
    frames = PackedFrames(packed.clip("жест/ü ö;,"), MAX_PIXELS)
    size = max(frames.sizes)
    for gap, largest, num_reads in ((2**17, 2**23, 1), (size // 2, 2**23, 3), (2**17, size, 3)):
        with (
            mock.patch.multiple(packs, MAX_GAP=gap, MAX_READ=largest),
            mock.patch.object(os, "pread", wraps=os.pread) as pread,
        ):
            assert len(list(frames.read([2, 9, 16]))) == 3
        assert pread.call_count == num_reads


@pytest.mark.slow
@needs_unzip
def test_zip64_beyond_4_gb(tmp_path):
    """Thousands of clips behind a hole that takes no room on the disk."""
    path, contents = tmp_path / "large.zip", {}
    with open(path, "wb") as file, open(tmp_path / "central", "w+b") as central:
        writer = PackWriter(file, central)
        writer.add_clip("clips/first", [("1.jpg", b"first")])
        hole = 5 * 2**30
        file.seek(hole, os.SEEK_CUR)
        writer.position += hole
        writer.add_clip("clips/second", [("1.jpg", b"second")])
        for number in range(70_000):  # more than ZIP's 16 bits can count
            contents[str(number)] = str(number).encode()
            writer.add_clip(f"clips/{number}", [("1.jpg", contents[str(number)])])
        writer.finish()
    assert path.stat().st_size > hole and path.stat().st_blocks * 512 < 100 * 2**20
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 70_003
        for number in (0, 777, 69_999):
            assert archive.read(f"clips/{number}/1.jpg") == contents[str(number)]
    listed = subprocess.run(["unzip", "-Z1", path], check=True, capture_output=True, text=True)
    assert listed.stdout.count("\n") == 70_003
    large = Pack(path)
    for clip_id in ("0", "777", "69999"):
        frames = PackedFrames(large.clip(clip_id), MAX_PIXELS)
        assert frames.content(0) == contents[clip_id] and frames.names == ["1.jpg"]
    large.check_directory()


# --- damage ------------------------------------------------------------------------------------


def frame_spans(pack) -> list[tuple[str, int, int]]:
    """(path, first byte, last + 1) of each frame in the file."""
    found = []
    for clip_id, length in zip(pack.ids(), pack.lengths(), strict=True):
        if length:
            frames = PackedFrames(pack.clip(clip_id), MAX_PIXELS)
            found += [
                (frames.path(place), offset, offset + size)
                for place, (offset, size) in enumerate(
                    zip(frames.offsets, frames.sizes, strict=True)
                )
                if size
            ]
    return found


def flipped(data: bytes, position, bit) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def test_each_flipped_bit_in_a_frame_is_one_bad_frame_with_its_path(packed, tmp_path):
    data, draw = Path(packed.path).read_bytes(), random.Random(0)
    path = tmp_path / "frames.zip"
    for name, start, end in draw.sample(frame_spans(packed), 40):
        path.write_bytes(flipped(data, draw.randrange(start, end), draw.randrange(8)))
        broken, problems = Pack(path), []
        for clip_id, length in zip(broken.ids(), broken.lengths(), strict=True):
            frames = PackedFrames(broken.clip(clip_id), MAX_PIXELS) if length else None
            for position in range(length):
                try:
                    frames.content(position)
                except FrameError as error:
                    problems.append(str(error))
        expected = name.replace(packed.path, str(path))
        assert [problem.partition(": ")[0] for problem in problems] == [expected]
        assert "damaged" in problems[0]


def test_each_flipped_bit_after_the_frames_is_an_error(packed, tmp_path):
    data, path = Path(packed.path).read_bytes(), tmp_path / "frames.zip"
    about = packed.about
    central = about["index_offset"] + about["index_bytes"]
    end = data.rindex(b"PK\6\6")
    of_index = random.Random(0).sample(range(8 * about["index_offset"], 8 * central), 200)
    for place in (*of_index, *range(8 * end, 8 * len(data), 3)):
        path.write_bytes(flipped(data, *divmod(place, 8)))
        with pytest.raises(FrameError, match=f"^{path}: .*(damaged|cut off|later version)"):
            Pack(path).ids()
    for place in random.Random(1).sample(range(8 * central, 8 * end), 50):
        path.write_bytes(flipped(data, *divmod(place, 8)))
        assert Pack(path).ids() == packed.ids()  # not needed to read it
        with pytest.raises(FrameError, match="directory of the frames is damaged"):
            Pack(path).check_directory()


def test_a_cut_anywhere_is_an_error(packed, tmp_path):
    data, path, draw = Path(packed.path).read_bytes(), tmp_path / "frames.zip", random.Random(0)
    places = [*draw.sample(range(len(data)), 200), *range(len(data) - 700, len(data))]
    for place in places:
        path.write_bytes(data[:place])
        with pytest.raises(FrameError, match=f"^{path}: .*(cut off|damaged|not a pack)"):
            Pack(path).ids()
    path.write_bytes(data + b"\0")
    with pytest.raises(FrameError, match="damaged at its end"):
        Pack(path).ids()


def test_a_pack_that_is_cut_off_while_it_is_open_is_an_error(packed, tmp_path):
    path = shutil.copy(packed.path, tmp_path)
    cut = Pack(path)
    cut.ids()
    os.truncate(path, 2000)
    with pytest.raises(FrameError, match="cut off"):
        list(PackedFrames(cut.clip("left/10"), MAX_PIXELS).frames_at([7]))


def test_what_is_no_pack_is_said(tmp_path):
    path = tmp_path / "frames.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1/1.jpg", b"frame")
    with pytest.raises(FrameError, match=r"a ZIP file but not a pack.*pack\.py"):
        Pack(path).ids()
    for content in (b"", b"text" * 1000):
        path.write_bytes(content)
        with pytest.raises(FrameError, match="not a pack"):
            Pack(path).ids()
    with pytest.raises(FrameError, match="No such file"):
        Pack(tmp_path / "none.zip").ids()
    later = packs.comment_of({"version": 2, "index_offset": 0, "index_bytes": 0})
    path.write_bytes(b"PK\3\4" + packs.end_records(0, 0, 0, later))
    with pytest.raises(FrameError, match="later version"):
        Pack(path).ids()


# --- use ---------------------------------------------------------------------------------------


def test_it_is_pickled_as_its_path_and_recognised(folder, packed, tmp_path):
    path = shutil.copy(packed.path, tmp_path)
    kept = Pack(path)
    data = pickle.dumps(kept.clip("left/10"))
    assert len(data) < 300
    clip = pickle.loads(data)
    assert os.fspath(clip) == str(clip) == f"{path}/left/10" and clip.folder is not kept
    assert pickle.loads(data).folder is clip.folder  # opened once in a process
    first = PackedFrames(clip, MAX_PIXELS).content(0)

    make_pack(tmp_path / "other.zip", folder / "left")
    os.replace(tmp_path / "other.zip", path)
    assert PackedFrames(kept.clip("left/10"), MAX_PIXELS).content(0) == first
    other = pickle.dumps(kept)
    packs._pack_once.cache_clear()
    with pytest.raises(FrameError, match="another pack has replaced it"):
        pickle.loads(other).ids()


def test_frames_that_do_not_suit_the_config_are_refused(folder, tmp_path):
    small = make_pack(tmp_path / "small.zip", folder, height=20)
    for height in (20, 12, None):
        small.check(make_config(frame_height=height))
    with pytest.raises(UserError, match=r"^frame_height: found 24, but .*small.zip.* 20; lower"):
        small.open("left/10", make_config(frame_height=24))


def test_clips_are_found_in_it(folder, packed, monkeypatch):
    monkeypatch.chdir(folder.parent)
    clips, problems = find_clips("frames.zip")
    assert problems == [] and all(str(clip.folder) == "frames.zip" for clip in clips)
    found, _ = find_clips("frames")
    assert [clip.id for clip in clips if clip.id != "right/empty"] == [
        Path(path).relative_to("frames").as_posix() for path in found
    ]
    assert [clip.id for clip in find_clips("frames.zip/left")[0]] == ["left/1", "left/10"]
    assert [str(clip) for clip in find_clips("frames.zip/left/1")[0]] == ["frames.zip/left/1"]
    with pytest.raises(UserError, match=r"frames.zip: has no clip lef; .*--list"):
        find_clips("frames.zip/lef")


def test_a_csv_is_checked_against_it(folder, packed, tmp_path):
    flat = make_pack(tmp_path / "left.zip", folder / "left")
    csv = tmp_path / "set.csv"
    csv.write_text("10;Left\n1;Left\n")
    annotations = read_annotations(csv, flat.path, CLASSES)
    assert annotations.clip(0) == annotations.folder.clip("10")
    csv.write_text("10;Left\n3;Left\n")
    with pytest.raises(UserError, match=r"1 of 2 clips have no folder in .*left.zip: 3"):
        read_annotations(csv, flat.path, CLASSES)
    for data_folder in (folder, packed.path):  # the same, whatever it is
        csv.write_text("left/10;Left\n")
        assert read_annotations(csv, data_folder, CLASSES).ids.tolist() == ["left/10"]
        csv.write_text("left/../10;Left\n")
        with pytest.raises(UserError, match=r"'left/\.\./10'; an id names a clip"):
            read_annotations(csv, data_folder, CLASSES)


@pytest.fixture(scope="module")
def packed_set(data_set):
    """The keys of `data_set`, with the clips in one pack."""
    source = Path(data_set["train_data_folder"])
    made = make_pack(source.parent / "clips.zip", source)
    return data_set | {f"{prefix}_data_folder": made.path for prefix in ("train", "val", "test")}


@pytest.mark.parametrize(
    "num_workers, context",
    [(0, None), (2, "fork"), (4, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)],
)
def test_workers_read_the_same_clips(settings, packed_set, num_workers, context):
    batches = []
    for keys in (settings, settings | packed_set):
        config = Config(**keys)
        annotations = read_annotations(config.train_data_csv, config.train_data_folder, CLASSES)
        loader = DataLoader(
            VideoFolder(annotations, config, training=True),
            batch_sampler=TrainBatches(len(annotations), 4, 0),
            collate_fn=as_it_is,
            num_workers=num_workers,
            multiprocessing_context=context,
        )
        batches.append(list(loader))
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.clips, other.clips) and torch.equal(one.labels, other.labels)
        assert one.bad == other.bad == [] and one.num_short == other.num_short
    assert len(batches[0]) == 4


def test_a_worker_that_opens_another_pack_says_so(settings, packed_set, tmp_path):
    """Where workers are spawned, the file may have been replaced before they start."""
    path = shutil.copy(packed_set["train_data_folder"], tmp_path)
    config = Config(**settings | {"train_data_folder": path})
    annotations = read_annotations(config.train_data_csv, path, CLASSES)
    data_set = pickle.dumps(VideoFolder(annotations, config, training=False))
    make_pack(path, Path(settings["train_data_folder"]) / "1")
    packs._pack_once.cache_clear()
    batch = pickle.loads(data_set).__getitems__([ClipKey(0, 0)])
    assert "another pack has replaced it" in batch.bad[0].reason


def test_a_folder_is_left_as_it_is(tmp_path):
    assert open_folder(tmp_path) == PlainFolder(str(tmp_path))
    assert open_folder(tmp_path / "none.zip") == PlainFolder(str(tmp_path / "none.zip"))

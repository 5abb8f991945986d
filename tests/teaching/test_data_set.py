"""The data set behind the page: it is the project's own at any time, and nothing is lost."""

import errno
import io
import os
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from conftest import CLASSES, TINY_NETWORK, draw_frames, make_config, write_data_set
from movies import write_video
from PIL import Image
from teach_page import jpegs

import train
from clips.annotations import read_annotations, read_labels
from system.errors import UserError
from teaching import data_set as data_set_module
from teaching.data_set import MAX_CLIPS, REMOVED, UNFINISHED, DataSet, DiskFullError
from teaching.pictures import MAX_FRAMES, MAX_PIXELS

NAMES = ['wave, "hi"', "拍手; x", "'quoted' <b>", "👨‍👩‍👧"]  # the last is joined of three


@pytest.fixture
def open_folder(tmp_path):
    """Opens the folder `mine`, again and again; the one that was open is closed."""
    opened = []

    def open_it():
        if opened:
            opened.pop().close()
        opened.append(DataSet(tmp_path / "mine"))
        return opened[0]

    yield open_it
    if opened:
        opened[0].close()


def lists(folder) -> dict:
    """{set: [(id, class)]} as train.py reads them."""
    names = read_labels(folder / "labels.csv")
    found = {}
    for name in ("train", "validation"):
        rows = read_annotations(folder / f"{name}.csv", folder / "clips", names)
        assert not rows.num_dropped
        found[name] = [
            (clip_id, names[label]) for clip_id, label in zip(rows.ids, rows.labels, strict=True)
        ]
    return found


def test_clips_are_saved_as_every_command_reads_them(open_folder, tmp_path):
    data = open_folder()
    pictures = jpegs([10, 20, 30])
    for _ in range(5):
        for name in NAMES:
            data.add(f" {name} ", pictures)
    folder = tmp_path / "mine"
    found = lists(folder)
    assert Counter(name for _, name in found["train"]) == dict.fromkeys(NAMES, 4)
    assert Counter(name for _, name in found["validation"]) == dict.fromkeys(NAMES, 1)
    assert [path.name for path in sorted((folder / "clips" / "20").iterdir())] == [
        "00001.jpg",
        "00002.jpg",
        "00003.jpg",
    ]
    assert (folder / "clips" / "1" / "00002.jpg").read_bytes() == pictures[1]
    before = data.clips
    assert open_folder().clips == before


def test_a_folder_made_by_hand_opens_and_keeps_its_split(open_folder, tmp_path):
    paths = write_data_set(tmp_path / "mine", {"train": 9, "validation": 3, "test": 2})
    write_video(
        tmp_path / "mine" / "clips" / "wave.mp4", draw_frames("Left", 9, np.random.default_rng(0))
    )
    with open(paths["train_data_csv"], "a") as file:
        file.write("wave.mp4;Left\n")
    texts = {path: path.read_bytes() for path in (tmp_path / "mine").glob("*.csv")}
    before = lists(tmp_path / "mine")
    data = open_folder()
    assert {path: path.read_bytes() for path in texts} == texts
    assert data.counts() == {"Left": 5, "Right": 4, "Still": 4}
    assert data.add("Left", jpegs([1, 2])) == "15"  # 13 and 14 are test clips
    after = lists(tmp_path / "mine")
    assert {name: sorted(rows) for name, rows in after.items()} == {
        "train": sorted([*before["train"], ("15", "Left")]),
        "validation": before["validation"],
    }
    data.remove(["wave.mp4"])
    assert not (tmp_path / "mine" / "clips" / "wave.mp4").exists()


def test_columns_that_would_be_lost_are_refused(open_folder, tmp_path):
    paths = write_data_set(tmp_path / "mine", {"train": 3, "validation": 3})
    text = "video_id,label,group\n1,Left,ann\n2,Right,bob\n"
    Path(paths["train_data_csv"]).write_text(text)
    with pytest.raises(UserError, match="has columns that this page cannot keep: group"):
        open_folder()
    assert Path(paths["train_data_csv"]).read_text() == text


def csvs(folder) -> dict:
    return {path.name: path.read_text() for path in folder.glob("*.csv")}


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_on_a_full_disk_no_half_a_clip_is_left_and_clips_can_be_removed(
    open_folder, tmp_path, monkeypatch
):
    data, clips = open_folder(), tmp_path / "mine" / "clips"
    ids = [data.add("a", jpegs([1, 2])) for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(DiskFullError, match="full, so this clip of “a” was not saved; remove"):
            data.add("a", jpegs([1, 2]))
    assert not list((clips / UNFINISHED).iterdir())
    assert not data.remove([ids[0]])
    write = data_set_module.atomic_write
    monkeypatch.setattr(
        data_set_module,
        "atomic_write",
        lambda *given: full_disk() if (clips / ids[1]).exists() else write(*given),
    )
    assert data.remove([ids[1]])  # where the lists have room only once its files are gone
    assert list(data.clips) == [ids[2]] == list(open_folder().clips)
    assert not data.removed and not (clips / ids[1]).exists()
    monkeypatch.undo()
    assert open_folder().add("a", jpegs([1, 2])) == "4"


def test_removed_clips_come_back_where_they_were(open_folder, tmp_path):
    data = open_folder()
    for name in "aabab":
        data.add(name, jpegs([1, 2]))
    before, csvs_before = dict(data.clips), csvs(tmp_path / "mine")
    data.remove(["1", "3"])
    assert list(data.clips) == ["2", "4", "5"] and not (tmp_path / "mine" / "clips" / "3").exists()
    data.restore(["3"])
    data.restore(["1"])
    assert list(data.clips.items()) == list(before.items())
    assert csvs(tmp_path / "mine") == csvs_before
    with pytest.raises(UserError, match="no removed clip 1"):
        data.restore(["1"])


def test_a_clip_comes_back_as_its_class_is_now(open_folder):
    data = open_folder()
    ids = [data.add("wave", PAIR) for _ in range(6)]
    data.remove(ids[:1])
    data.enable("wave", False)
    data.restore(ids[:1])
    assert not data.counts() and len(data.clips) == 6
    data.remove(ids[1:2])
    data.remove(ids[2:3])
    data.enable("wave", True)
    data.restore(ids[1:2])
    assert not data.disabled() and data.counts() == {"wave": 5}
    data.rename("wave", "hello")
    data.restore(ids[2:3])
    assert data.counts() == {"hello": 6} and not data.disabled()
    assert Counter(own_set for _, own_set in data.clips.values()) == {"train": 5, "validation": 1}
    data.enable("hello", False)
    for some in (ids[:3], ids[3:]):  # all of them: then they are what they were
        data.remove(some)
    data.restore(ids[:3])
    data.restore(ids[3:])
    assert data.disabled() == {"hello"} and not data.counts()
    data.enable("hello", True)
    data.remove(ids)
    data.add("HELLO", PAIR)
    data.restore(ids)
    assert data.counts() == {"HELLO": 7}


@pytest.mark.parametrize("function", ["atomic_write", "rename"])
def test_clips_that_cannot_come_back_yet_can_later(open_folder, tmp_path, monkeypatch, function):
    data = open_folder()
    ids = [data.add("a", PAIR) for _ in range(4)]
    data.remove(ids[:3])
    before, rename = csvs(tmp_path / "mine"), Path.rename
    with monkeypatch.context() as patch:
        if function == "rename":
            patch.setattr(
                "pathlib.Path.rename",
                lambda *paths: full_disk() if paths[1].name == "2" else rename(*paths),
            )
        else:
            patch.setattr(data_set_module, "atomic_write", full_disk)
        with pytest.raises(OSError, match="No space"):
            data.restore(ids[:3])
    assert list(data.clips) == ids[3:] and csvs(tmp_path / "mine") == before
    assert not data.path("1").exists()
    data.restore(ids[:3])
    assert list(data.clips) == ids and all(data.path(clip_id).exists() for clip_id in ids)


class FullDisk:
    """A file that is open, on a disk that is full."""

    def write(self, _):
        full_disk()


def test_on_a_full_disk_all_lists_stay_what_they_were(open_folder, tmp_path, monkeypatch):
    data = open_folder()
    for name in "aabb" * 5:
        data.add(name, PAIR)
    before, write = csvs(tmp_path / "mine"), data_set_module.atomic_write
    for number in range(4):  # the list for which there is no room
        left = iter(range(number, -1, -1))
        with monkeypatch.context() as patch:

            @contextmanager
            def write_some(path, left=left):
                with write(path) as file:
                    yield file if next(left) else FullDisk()

            patch.setattr(data_set_module, "atomic_write", write_some)
            with pytest.raises(OSError, match="No space"):
                data.enable("a", False)
        assert csvs(tmp_path / "mine") == before and data.counts() == {"a": 10, "b": 10}
        assert not list((tmp_path / "mine").glob("*.partial"))


@pytest.mark.parametrize("is_on", [False, True])
def test_an_interrupted_switch_loses_no_clip(open_folder, tmp_path, monkeypatch, is_on):
    data = open_folder()
    for name in "abc" * 6:
        data.add(name, PAIR)
    data.enable("c", False)
    data.enable("a", not is_on)
    clips, replace = dict(data.clips), os.replace
    for number in range(5):  # lists that are replaced before the interruption
        left = iter(range(number, -1, -1))
        with monkeypatch.context() as patch:
            patch.setattr(
                os, "replace", lambda *paths, left=left: replace(*paths) if next(left) else die()
            )
            with suppress(KeyboardInterrupt):
                data.enable("a", is_on)
        data = open_folder()
        assert list(data.clips) == list(clips)
        assert data.counts()["a"] in (0, 6) and data.counts()["b"] == 6
        data.enable("a", not is_on)
    assert dict(data.clips) == clips


def die(*_):
    raise KeyboardInterrupt


def test_classes_are_renamed_switched_off_and_one_whatever_the_case(open_folder, tmp_path):
    data = open_folder()
    for name in ("Wave", "\u3000wave ", "WAVE", "Left\u3000\tHand", "left\u00a0hand", "other"):
        data.add(name, jpegs([1, 2]))
    assert data.counts() == {"Wave": 3, "Left Hand": 2, "other": 1}
    with pytest.raises(UserError, match="already a gesture “Wave”"):
        data.rename("other", "wAVE")
    data.rename("Wave", "wave")  # its own name in other case
    data.rename("other", "another")
    with pytest.raises(UserError, match="no gesture “other”"):
        data.enable("other", False)
    before = dict(data.clips)
    data.enable("wave", False)
    assert data.counts() == {"Left Hand": 2, "another": 1} and data.disabled() == {"wave"}
    assert read_labels(tmp_path / "mine" / "labels.csv") == ["another", "Left Hand"]
    data = open_folder()
    assert data.disabled() == {"wave"} and len(data.clips) == 6
    data.enable("wave", True)
    assert data.clips == before and not (tmp_path / "mine" / "disabled.csv").exists()


def test_a_snapshot_stays_what_it_was(open_folder, tmp_path):
    data = open_folder()
    for name in "aabbcc":
        data.add(name, jpegs([1, 2]))
    clip = tmp_path / "mine" / "clips" / "2"
    clip.rename(tmp_path / "elsewhere")
    clip.symlink_to(tmp_path / "elsewhere")
    data.enable("c", False)
    folder = tmp_path / "mine" / "snapshot"
    data.snapshot(folder)
    before = csvs(folder)
    assert before["train.csv"].count("\n") == 1 + 4
    assert (folder / "clips" / "1" / "00001.jpg").stat().st_nlink == 2  # no room is needed
    data.remove(["1"])
    assert csvs(folder) == before
    assert all((folder / "clips" / name / "00002.jpg").is_file() for name in "1234")
    assert (folder / "clips" / "2").resolve() == folder / "clips" / "2"  # the linked clip's files
    (tmp_path / "elsewhere" / "00001.jpg").unlink()
    (tmp_path / "elsewhere" / "00002.jpg").unlink()
    (tmp_path / "elsewhere").rmdir()
    with pytest.raises(UserError, match="the files of clip 2 are gone"):
        data.snapshot(folder)
    assert csvs(folder) == before


def test_a_folder_that_was_deleted_meanwhile_saves_nothing(open_folder, tmp_path):
    data = open_folder()
    data.add("a", jpegs([1, 2]))
    (tmp_path / "mine").rename(tmp_path / "elsewhere")
    for change in (lambda: data.add("a", jpegs([1, 2])), lambda: data.remove(["1"])):
        with pytest.raises(UserError, match="was deleted or moved while this page was open"):
            change()
    assert not (tmp_path / "mine").exists()


def test_a_linked_clip_can_be_removed(open_folder, tmp_path):
    data = open_folder()
    for _ in range(2):
        data.add("a", jpegs([1, 2]))
    clip = tmp_path / "mine" / "clips" / "1"
    clip.rename(tmp_path / "elsewhere")
    clip.symlink_to(tmp_path / "elsewhere")
    data.remove(["1"])
    data.remove(["2"])
    assert not data.clips and sorted(os.listdir(tmp_path / "elsewhere")) == [
        "00001.jpg",
        "00002.jpg",
    ]


def test_any_clip_can_be_removed_and_its_number_is_not_used_again(open_folder, tmp_path):
    data = open_folder()
    ids = [data.add(name, jpegs([1, 2])) for name in ("a", "b", "a")]
    data.remove([ids[2]])
    data.remove([ids[0]])
    assert data.add("a", jpegs([1, 2])) == "4"
    assert open_folder().clips == {"2": ("b", "train"), "4": ("a", "train")}
    hidden = tmp_path / "mine" / "clips" / REMOVED
    assert not hidden.exists()  # it was deleted when the folder was opened again
    visible = [path.name for path in (tmp_path / "mine" / "clips").glob("[!.]*")]
    assert sorted(visible) == ["2", "4"]
    with pytest.raises(UserError, match="no clip 1"):
        data.remove(["1"])


@pytest.mark.parametrize("function", ["atomic_write", "rename"])
def test_an_interruption_leaves_what_was_there(open_folder, tmp_path, monkeypatch, function):
    def die(*_):
        raise OSError("the disk is full")

    data = open_folder()
    for name in "aaaaabb":
        data.add(name, jpegs([1, 2]))
    before = dict(data.clips)
    with monkeypatch.context() as patch:
        if function == "rename":
            patch.setattr("pathlib.Path.rename", die)
        else:
            patch.setattr(data_set_module, "atomic_write", die)
        with pytest.raises(OSError, match="full"):
            data.add("c", jpegs([1, 2]))
    assert data.clips == before
    data = open_folder()
    assert data.clips == before and lists(tmp_path / "mine")
    assert not (tmp_path / "mine" / "clips" / UNFINISHED).exists()
    new = data.add("c", jpegs([3, 4]))  # beside the folder of the clip that is in no list
    assert new in data.clips and new not in before


def png():
    data = io.BytesIO()
    Image.new("RGB", (32, 24)).save(data, "PNG")
    return data.getvalue()


def large():
    return simplejpeg.encode_jpeg(np.zeros((480, MAX_PIXELS // 480 + 1, 3), np.uint8))


PAIR = jpegs([1, 2])
REFUSED = {
    "no name": (" ", PAIR, "a gesture's name"),
    "joiners": ("\u200d\u200c", PAIR, "a gesture's name"),
    "a long name": ("x" * 61, PAIR, "a gesture's name"),
    "a zero-width space": ("a\u200bb", PAIR, "a gesture's name"),
    "control": ("a\x1b[0m", PAIR, "a gesture's name"),
    "one frame": ("a", PAIR[:1], "2 to 120 frames, not 1"),
    "too many": ("a", PAIR * 61, f"2 to {MAX_FRAMES} frames, not 122"),
    "text": ("a", [PAIR[0], b"<script>"], "only JPEG"),
    "png": ("a", [PAIR[0], png()], "only JPEG"),
    "cut": ("a", [PAIR[0], PAIR[1][:-30]], "damaged JPEG"),
    "large": ("a", [PAIR[0], large()], "641 x 480 pixels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_clip_is_refused(open_folder, tmp_path, case):
    name, pictures, message = REFUSED[case]
    data = open_folder()
    with pytest.raises(UserError, match=message):
        data.add(name, pictures)
    assert not data.clips and not list((tmp_path / "mine" / "clips").iterdir())


def test_there_is_a_limit_to_clips(open_folder, monkeypatch):
    assert MAX_CLIPS == 2000
    monkeypatch.setattr(data_set_module, "MAX_CLIPS", 1)
    data = open_folder()
    data.add("a", PAIR)
    with pytest.raises(UserError, match="already 1 clips"):
        data.add("a", PAIR)


def test_a_folder_with_other_things_or_in_use_is_refused(open_folder, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(UserError, match=r"it has cat\.jpg but no folder `clips`"):
        DataSet(tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    open_folder()
    with pytest.raises(UserError, match=r"open in another teach\.py"):
        DataSet(tmp_path / "mine")


def test_a_class_without_validation_clips_gets_some(open_folder, tmp_path):
    data = open_folder()
    for _ in range(5):
        for name in "ab":
            data.add(name, PAIR)
    sets = lists(tmp_path / "mine")
    data.balance()
    assert lists(tmp_path / "mine") == sets
    data.remove([next(clip_id for clip_id, name in sets["validation"] if name == "a")])
    data.balance()
    for rows in lists(tmp_path / "mine").values():
        assert {name for _, name in rows} == {"a", "b"}


def test_a_thumbnail_shows_the_clip_in_order(open_folder):
    data = open_folder()
    clip_id = data.add("a", jpegs(range(0, 240, 10), height=120, width=160))
    strip = simplejpeg.decode_jpeg(data.strip(clip_id, make_config()))
    assert strip.shape == (60, 12 * 80, 3)
    means = strip.reshape(60, 12, 80, 3).mean((0, 2, 3))
    assert (np.diff(means) > 10).all() and means[0] < 5 and means[-1] > 225


def test_a_removed_clip_keeps_its_thumbnail_until_it_is_deleted(open_folder):
    data = open_folder()
    clip_id = data.add("a", PAIR)
    strip = data.strip(clip_id, make_config())
    data.remove([clip_id])
    assert data.strip(clip_id, make_config()) == strip  # a page may ask late
    data.empty_trash()
    with pytest.raises(UserError, match="there is no clip 1"):
        data.strip(clip_id, make_config())


def test_train_py_trains_on_it(open_folder, tmp_path, write_config):
    data, rng = open_folder(), np.random.default_rng(0)
    for number in range(12):
        frames = draw_frames(CLASSES[number % 2], 8, rng)
        data.add(NAMES[number % 2], [simplejpeg.encode_jpeg(frame, 95) for frame in frames])
    folder = tmp_path / "mine"
    config = write_config(
        **TINY_NETWORK,
        train_data_csv=str(folder / "train.csv"),
        num_epochs=1,
        val_data_csv=str(folder / "validation.csv"),
        labels_csv=str(folder / "labels.csv"),
        train_data_folder=str(folder / "clips"),
        val_data_folder=str(folder / "clips"),
    )
    assert train.main(["--config", config, "-g", "cpu"]) == 0

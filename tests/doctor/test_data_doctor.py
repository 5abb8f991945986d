"""The data doctor finds each kind of problem, names it once, and leaves the data as it was."""

import csv
import functools
import hashlib
import io
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

import train
from clips.folders import clip_at
from config import Config
from doctor import data_doctor
from doctor.data_doctor import check_data
from doctor.data_report import KINDS
from system.errors import UserError

pytestmark = pytest.mark.usefixtures("blank_pictures")

CLIPS = {
    "train": {"1": "Left", "2": "Right", "3": "Left", "4": "Right"},
    "validation": {"5": "Left", "6": "Right"},
    "test": {"7": None},
}
NUM_FRAMES = 3


@functools.cache
def jpeg(*seed, width=48, height=32) -> bytes:
    """A JPEG of noise that is the same for the same `seed`."""
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return simplejpeg.encode_jpeg(picture, quality=90)


def encode(image_format, **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), "teal").save(buffer, image_format, **options)
    return buffer.getvalue()


def huge_png(side=20_000) -> bytes:
    """A sound, tiny file that decodes to `side` x `side` grey pixels: a picture bomb."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # one bit a pixel
    pixels = zlib.compress(bytes((1 + side // 8) * side), 1)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def huge_jpeg(side=20_000) -> bytes:
    """A small JPEG whose header says `side` x `side` pixels."""
    data = bytearray(jpeg(99))
    start_of_frame = data.index(b"\xff\xc0")  # marker, length (2 bytes), precision (1), size
    data[start_of_frame + 5 : start_of_frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def damaged_inside() -> bytes:
    """A JPEG with a sound header and a sound end, but restart markers where none belong."""
    data = bytearray(jpeg(99))
    middle = len(data) // 2
    data[middle : middle + 8] = b"\xff\xd3\xff\xd5\xff\xd1\xff\xd7"
    return bytes(data)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A sound data set; the report goes to the folder beside it."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    for set_name, clips in CLIPS.items():
        for clip_id in clips:
            clip = root / "clips" / clip_id
            clip.mkdir(parents=True)
            for number in range(1, NUM_FRAMES + 1):
                (clip / f"{number:05}.jpg").write_bytes(jpeg(int(clip_id), number))
        rows = [f"{clip_id};{label}" if label else clip_id for clip_id, label in clips.items()]
        (root / f"{set_name}.csv").write_text("\n".join(rows) + "\n")
    (root / "labels.csv").write_text("Left\nRight\n")
    return root


def make_config(data, **changes) -> Config:
    values = {
        "model_name": "doctor",
        "labels_csv": str(data / "labels.csv"),
        "num_workers": 0,
        "clip_size": NUM_FRAMES,
        "step_size": 1,
        "max_frame_pixels": 48 * 32,
    }
    for set_name, prefix in (("train", "train"), ("validation", "val"), ("test", "test")):
        values[f"{prefix}_data_csv"] = str(data / f"{set_name}.csv")
        values[f"{prefix}_data_folder"] = str(data / "clips")
    return Config(**{**values, **changes})


def examine(data, **changes):
    """Exit status and findings: (severity, set, clip, frame, kind, detail)."""
    status = check_data(make_config(data, **changes))
    with open("data_report.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["severity", "set", "clip", "frame", "kind", "detail"]
    return status, rows


def add_line(data, name, line):
    path = data / f"{name}.csv"
    path.write_text(path.read_text() + line + "\n")


def replace_frame(content):
    return lambda data: (data / "clips/2/00002.jpg").write_bytes(content)


def rename_frame(old, new):
    return lambda data: (data / "clips/2" / old).rename(data / "clips/2" / new)


def empty_clip(data, clip_id="5"):
    for path in (data / "clips" / clip_id).iterdir():
        path.unlink()


def remove_clip(data, clip_id="5"):
    empty_clip(data, clip_id)
    (data / "clips" / clip_id).rmdir()


def remove_validation_clips(data):
    (data / "validation.csv").write_text("\n")
    for clip_id in CLIPS["validation"]:
        remove_clip(data, clip_id)


def replace_by(make):
    """Puts something that is not a file in the place of a frame; `make` gets its path."""

    def plant(data):
        path = data / "clips/2/00002.jpg"
        path.unlink()
        make(path)

    return plant


def link_clip_to_itself(data):
    remove_clip(data)
    (data / "clips/5").symlink_to("5")


def copy_clip(data):
    for path in (data / "clips/1").iterdir():
        (data / "clips/6" / path.name).write_bytes(path.read_bytes())


def copy_clip_but_for_a_byte(data):
    copy_clip(data)
    path = data / "clips/6/00002.jpg"
    content = bytearray(path.read_bytes())
    content[content.index(b"JFIF") + 6] ^= 1  # the minor version, which no decoder minds
    path.write_bytes(content)


def write(name, content):
    return lambda data: (data / name).write_bytes(content)


def add(name, *lines):
    return lambda data: [add_line(data, name, line) for line in lines]


def give_groups(data):
    (data / "train.csv").write_text(
        "video_id,label,group\n1,Left,anna\n2,Right,bo\n3,Left,bo\n4,Right,dee\n"
    )
    (data / "validation.csv").write_text("video_id,label,group\n5,Left,bo\n6,Right,cy\n")


def give_strange_name(data):
    path = data / "clips/2/00002.jpg"
    path.unlink()
    path.with_name("2\n\udcff\x1b.jpg").write_bytes(b"")


def rename_all(pattern):
    """Renames the frames 1, 2, 3 of clip 2 to pattern.format(1), ..."""

    def plant(data):
        for number in range(1, NUM_FRAMES + 1):
            rename_frame(f"{number:05}.jpg", pattern.format(number))(data)

    return plant


def file_beside(name, content=b"?"):
    return write(f"clips/2/{name}", content)


BROKEN = ("error", "train", "2", "00002.jpg")

# What is planted in the sound data set -> the only finding, without its detail, and a word of that.
CASES = {
    "labels missing": (
        lambda data: (data / "labels.csv").unlink(),
        ("error", "labels", "", "", "unusable labels file"),
        "labels_csv cannot be read",
    ),
    "duplicate labels": (
        add("labels", "Left"),
        ("error", "labels", "", "", "unusable labels file"),
        "2 lines",
    ),
    "wrong delimiter": (
        write("validation.csv", b"5,Left\n6,Right\n"),
        ("error", "validation", "", "", "unreadable clip list"),
        "line 1: expected id;label",
    ),
    "no CSV": (
        lambda data: (data / "test.csv").unlink(),
        ("error", "test", "", "", "unreadable clip list"),
        "cannot be read",
    ),
    "id leads out": (
        add("train", "../secret;Left"),
        ("error", "train", "", "", "unusable id"),
        "'../secret' on line 5",
    ),
    "duplicate id": (
        add("train", "3;Left"),
        ("error", "train", "3", "", "duplicate id"),
        "line 3, 5",
    ),
    "nothing left": (
        remove_validation_clips,
        ("error", "validation", "", "", "too few clips"),
        "0 usable",
    ),
    "class without clips": (
        add("labels", "Up"),
        ("error", "train", "", "", "class without clips"),
        "'Up'",
    ),
    "missing clip": (remove_clip, ("error", "validation", "5", "", "missing clip"), "clips/5"),
    "clip is a loop": (
        link_clip_to_itself,
        ("error", "validation", "5", "", "missing clip"),
        "clips/5",
    ),
    "empty clip": (
        empty_clip,
        ("error", "validation", "5", "", "empty clip"),
        "clip folder is empty",
    ),
    "folder as frame": (replace_by(Path.mkdir), (*BROKEN, "unreadable frame"), "not a file"),
    "pipe as frame": (
        replace_by(getattr(os, "mkfifo", None)),
        (*BROKEN, "unreadable frame"),
        "not a file",
    ),
    "link in a circle": (
        replace_by(lambda path: path.symlink_to(path.name)),
        (*BROKEN, "unreadable frame"),
        "not a file",
    ),
    "zero bytes": (replace_frame(b""), (*BROKEN, "damaged frame"), "0 bytes"),
    "truncated": (replace_frame(jpeg(99)[:1000]), (*BROKEN, "damaged frame"), "damaged JPEG"),
    "damaged inside": (replace_frame(damaged_inside()), (*BROKEN, "damaged frame"), "damaged JPEG"),
    "text as frame": (
        replace_frame(b"not found\n" * 9),
        (*BROKEN, "damaged frame"),
        "not a picture",
    ),
    "other format": (replace_frame(encode("GIF")), (*BROKEN, "damaged frame"), "not a picture"),
    "picture bomb": (replace_frame(huge_png()), (*BROKEN, "oversized frame"), "pixels"),
    "JPEG bomb": (replace_frame(huge_jpeg()), (*BROKEN, "oversized frame"), "20000 x 20000"),
    "number left out": (
        rename_frame("00003.jpg", "00004.jpg"),
        ("error", "train", "2", "", "misnumbered frames"),
        "2 to 4",
    ),
    "number doubled": (
        file_beside("1.jpg", jpeg(77)),
        ("error", "train", "2", "", "misnumbered frames"),
        "more than once: 1",
    ),
    "mixed sizes": (
        replace_frame(jpeg(99, width=16, height=16)),
        ("error", "train", "2", "", "mixed frame sizes"),
        "2 sizes: 48 x 32 (2 frames), 16 x 16",
    ),
    "clip in two sets": (
        add("validation", "1;Left"),
        ("error", "validation", "1", "", "clip in two sets"),
        "'1' of train",
    ),
    "content in two sets": (
        copy_clip,
        ("error", "validation", "6", "", "content in two sets"),
        "'1' of train",
    ),
    "clip without group": (
        write("train.csv", b"video_id,label,group\n1,Left,anna\n2,Right,\n3,Left,bo\n4,Right, \n"),
        ("error", "train", "", "", "clip without group"),
        "2 clips, on line 3, 5",
    ),
    "group in two sets": (
        give_groups,
        ("note", "validation", "", "", "group in two sets"),
        "'bo': 1 clip, and 2 of train",
    ),
    "unknown label": (
        add("train", "8;Up", "9;Up"),
        ("note", "train", "", "", "unknown label"),
        "'Up' (2 rows)",
    ),
    "short clip": (
        lambda data: (data / "clips/2/00003.jpg").unlink(),
        ("note", "train", "2", "", "short clip"),
        "2 frames; training needs 3",
    ),
    "late first number": (
        rename_frame("00001.jpg", "00004.jpg"),
        ("note", "train", "2", "", "late first number"),
        "2",
    ),
    "no number": (
        rename_frame("00003.jpg", "last.jpg"),
        ("note", "train", "2", "", "unnumbered frames"),
        "'last.jpg'",
    ),
    "another file": (
        file_beside("notes.txt"),
        ("note", "train", "2", "", "other files"),
        "'notes.txt'",
    ),
    "unlisted folder": (
        lambda data: (data / "clips/8").mkdir(),
        ("note", "train", "8", "", "unlisted folder"),
        "is not in any CSV",
    ),
    "newline in a name": (
        give_strange_name,
        ("error", "train", "2", r"2\n\udcff\x1b.jpg", "damaged frame"),
        "0 bytes",
    ),
    # Nothing to find:
    "PNG named .jpg": (replace_frame(encode("PNG")), None, None),  # its content decides
    "frames from zero": (rename_frame("00003.jpg", "00000.jpg"), None, None),
    "numbers not padded": (rename_all("frame-{}.jpg"), None, None),
    "other numbers around": (rename_all("take2_{}_of_3.jpg"), None, None),
    "hidden file": (file_beside(".DS_Store"), None, None),
    "hidden folder": (lambda data: (data / "clips/.cache").mkdir(), None, None),
    "almost a copy": (copy_clip_but_for_a_byte, None, None),
    "labels in the test set": (write("test.csv", b"7;Left\n"), None, None),
}


@pytest.mark.parametrize("name", CASES)
def test_finds_what_is_planted_and_nothing_else(data, capsys, name):
    plant, expected, words = CASES[name]
    if name == "pipe as frame" and not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    plant(data)
    status, findings = examine(data)
    # Two sizes in a clip are two sizes in the set as well.
    findings = [row for row in findings if row[4] != "several frame sizes"]
    if expected is None:
        assert (status, findings) == (0, [])
        return
    assert [tuple(row[:5]) for row in findings] == [expected]
    assert words in findings[0][5]
    assert status == (2 if expected[0] == "error" else 0)
    output = capsys.readouterr().out
    severity, set_name, clip, frame, kind, detail = findings[0]
    shown = "/".join(part for part in (clip, frame) if part) or detail
    assert f"{severity}: {kind}\n  {set_name} (1): {shown}\n  -> {KINDS[kind][1]}\n" in output


def test_sound_data_passes(data, capsys):
    assert examine(data) == (0, [])
    output = capsys.readouterr().out
    assert f"train: 4 clips examined in {data / 'clips'}\n" in output
    assert "  12 frames; a clip has 3 to 3, mean 3.0\n  pixels: 48 x 32 (12 frames)\n" in output
    assert output.endswith("No problems found; report: data_report.csv\n")
    assert not Path("data_report.csv.partial").exists()


def plant_several(data):
    for number in range(3, NUM_FRAMES + 12):
        (data / "clips/3" / f"{number:05}.jpg").write_bytes(b"")
    replace_frame(jpeg(99)[:1000])(data)
    remove_clip(data)
    copy_clip(data)
    add_line(data, "train", "99;Left")
    add_line(data, "train", "100;Down")


def test_problems_are_counted_by_set_and_ten_are_named(data, capsys):
    plant_several(data)
    status, findings = examine(data)
    assert status == 2
    assert sum(row[4] == "damaged frame" for row in findings) == 13
    output = capsys.readouterr().out
    shown = ", ".join(f"3/{number:05}.jpg" for number in range(3, 12))
    assert f"error: damaged frame\n  train (13): 2/00002.jpg, {shown} and 3 more\n" in output
    assert "error: missing clip\n  train (1): 99\n  validation (1): 5\n" in output
    assert output.endswith("\n16 errors, 1 note; report: data_report.csv\n")


def test_the_report_is_the_same_with_any_number_of_processes(data):
    plant_several(data)
    reports = []
    for num_workers in (0, 1, 2):
        check_data(make_config(data, num_workers=num_workers), f"{num_workers}.csv")
        reports.append(Path(f"{num_workers}.csv").read_bytes())
    assert reports[0] == reports[1] == reports[2]


def test_the_data_stays_as_it_is(data):
    def state():
        paths = sorted(data.rglob("*"))
        return [
            (
                path,
                path.stat().st_mtime_ns,
                path.stat().st_mode,
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None,
            )
            for path in paths
        ]

    plant_several(data)
    before = state()
    examine(data)
    assert state() == before


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"clip_size": 3, "step_size": 2}, 5),
        ({"clip_size": 2, "step_size": 3}, 4),
        ({"clip_size": 2, "step_size": 2}, None),
        ({"clip_size": 3, "step_size": 2, "sampling": "segments"}, None),
        ({"clip_size": 4, "step_size": 1, "sampling": "segments"}, 4),
    ],
)
def test_a_clip_is_short_if_training_would_pad_it(data, changes, needed):
    status, findings = examine(data, **changes)
    assert status == 0
    details = {row[5] for row in findings if row[4] == "short clip"}
    assert details == ({f"3 frames; training needs {needed}"} if needed else set())
    assert len(findings) == (7 if needed else 0)


def test_frame_sizes_of_different_clips_are_a_note(data):
    for number in range(1, NUM_FRAMES + 1):
        path = data / "clips/5" / f"{number:05}.jpg"
        path.write_bytes(jpeg(5, number, width=40))
    detail = "2 sizes: 40 x 32 (3 frames), 48 x 32 (3 frames)"
    expected = ["note", "validation", "", "", "several frame sizes", detail]
    assert examine(data) == (0, [expected])


@pytest.mark.parametrize(
    ("changes", "set_name", "kind", "words"),
    [
        ({"num_classes": 3}, "labels", "unusable labels file", "num_classes is 3"),
        ({"val_data_folder": "nowhere"}, "validation", "unreadable data folder", "'nowhere'"),
        ({"test_data_folder": None}, "test", "unreadable data folder", "test_data_folder: ''"),
    ],
)
def test_mistakes_in_the_config_are_findings(data, changes, set_name, kind, words):
    status, findings = examine(data, **changes)
    (finding,) = (row for row in findings if row[0] == "error")
    assert (status, finding[1], finding[4]) == (2, set_name, kind)
    assert words in finding[5]


def test_a_mistake_in_a_clip_list_ends_the_check_as_it_ends_training(data):
    add_line(data, "train", "99;Left")
    Path("config.json").write_text(make_config(data).model_dump_json())
    for flags in ([], ["--check_data"]):
        assert train.main(["-c", "config.json", "-g", "cpu", *flags]) == 2


def test_a_set_that_is_not_in_the_config_is_passed_over(data):
    remove_clip(data, "7")
    assert examine(data, test_data_csv=None, test_data_folder=None) == (0, [])


def test_groups_of_a_pattern_are_compared_too(data, capsys):
    status, findings = examine(data, group="([0-9])")
    assert (status, findings) == (0, [])
    _, findings = examine(data, group="^([1-46])|.")
    assert [row[1:] for row in findings] == [
        ["validation", "", "", "clip without group", findings[0][-1]]
    ]
    assert "finds no group in 1 of 2 clips: 5" in findings[0][-1]


def test_the_same_names_below_two_roots_are_two_clips(data):
    (data / "validation").mkdir()
    for clip_id in CLIPS["validation"]:
        (data / "clips" / clip_id).rename(data / "validation" / str(int(clip_id) - 4))
    (data / "validation.csv").write_text("1;Left\n2;Right\n")
    folder = str(data / "validation")
    assert examine(data, val_data_folder=folder) == (0, [])
    (data / "link").symlink_to(data / "clips")
    _, findings = examine(data, val_data_folder=str(data / "link"))
    assert [row[2] for row in findings if row[4] == "clip in two sets"] == ["1", "2"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(13, "Permission denied"), "unreadable frame"),
        (MemoryError("full"), "unreadable clip"),
    ],
)
def test_what_a_worker_cannot_read_is_a_finding(data, monkeypatch, error, kind):
    def fail(path):
        raise error

    monkeypatch.setattr(Path, "read_bytes", fail)
    result = data_doctor.examine_clip(clip_at(data / "clips/1"), NUM_FRAMES, make_config(data))
    assert result.digest is None
    assert {finding[0] for finding in result.findings} == {kind}
    assert error.args[-1] in result.findings[0][1]


def test_a_report_that_cannot_be_written_is_a_user_error(data):
    with pytest.raises(UserError, match=r"nowhere/report\.csv: the report cannot be written"):
        check_data(make_config(data), "nowhere/report.csv")
    Path("folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder\.csv: the report cannot be written"):
        check_data(make_config(data), "folder.csv")
    assert not list(Path().glob("*.partial"))


START = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from doctor.data_doctor import check_data
from system.config_file import load_config
if __name__ == "__main__":
    check_data(load_config("config.json"))
"""


@pytest.fixture
def slow_run(data):
    """A run of minutes in a process group of its own, at work on its first clips."""
    (data / "slow.jpg").write_bytes(SLOW_PICTURE)
    for clip_id in CLIPS["train"]:
        for number in range(NUM_FRAMES + 1, 1500):
            os.link(data / "slow.jpg", data / "clips" / clip_id / f"{number:05}.jpg")
    config = make_config(data, num_workers=1, max_frame_pixels=10**8)
    Path("config.json").write_text(config.model_dump_json())
    project = Path(data_doctor.__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", START],
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(project)},
    )
    while not workers_of(process.pid):
        assert process.poll() is None
        time.sleep(0.1)
    yield process
    if process.poll() is None:
        process.kill()
    process.stderr.close()


SLOW_PICTURE = huge_png(side=3_000)


def workers_of(pid) -> list[int]:
    """The children that ignore Ctrl-C, as workers do; the imports start others, which end soon."""

    def is_worker(number):
        try:
            status = Path(f"/proc/{number}/status").read_text()
        except OSError:  # it has ended
            return False
        ignored = int(re.search(r"^SigIgn:\s*(\w+)", status, re.MULTILINE)[1], 16)
        return ignored >> (signal.SIGINT - 1) & 1

    return [child for child in children_of(pid) if is_worker(child)]


def children_of(pid) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:  # it has ended
        return []
    return [int(child) for child in children.split()]


needs_proc = pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs Linux's /proc"
)


@pytest.mark.slow
@needs_proc
def test_ctrl_c_ends_at_once_without_a_word_from_the_workers(slow_run):
    time.sleep(0.3)
    os.killpg(slow_run.pid, signal.SIGINT)
    _, errors = slow_run.communicate(timeout=120)
    assert errors.count("Traceback") == 1 and "KeyboardInterrupt" in errors
    assert not list(Path().glob("data_report.csv*"))


@pytest.mark.slow
@needs_proc
def test_a_dead_worker_is_a_user_error(slow_run):
    os.kill(workers_of(slow_run.pid)[0], signal.SIGKILL)
    _, errors = slow_run.communicate(timeout=120)
    assert "UserError" in errors and "clips/1: a worker process died at this clip" in errors

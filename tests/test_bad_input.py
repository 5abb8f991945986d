"""Every mistake of a user ends in one message that names it and the remedy, and in status 2.

Each row of a table plants one mistake in a small, sound project that holds a finished run, starts
the real command, and says what must stand in the message. Nothing may be written or lost.
"""

import csv
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

import train
from clips import reading
from config import Config

pytestmark = pytest.mark.usefixtures("blank_pictures")
LABELS = ("Left", "Right", "Still")
SETS = {"train": range(1, 7), "validation": range(7, 11), "test": range(11, 13)}
NUM_FRAMES, FRAME_HEIGHT, FRAME_WIDTH = 6, 24, 32
CONFIG = {
    "model_name": "tiny",
    "output_dir": "trainings",
    "train_data_folder": "data/clips",
    "train_data_csv": "data/train.csv",
    "val_data_folder": "data/clips",
    "val_data_csv": "data/validation.csv",
    "test_data_folder": "data/clips",
    "test_data_csv": "data/test.csv",
    "labels_csv": "data/labels.csv",
    "num_workers": 0,
    "clip_size": 4,
    "step_size": 1,
    "crop_size": 16,
    "frame_height": FRAME_HEIGHT,
    "block_widths": [4],
    "head_widths": [8, 8],
    "batch_size": 4,
    "num_epochs": 1,
}
RUN = "trainings/tiny"
CHECKPOINT = f"{RUN}/checkpoint.pth.tar"
EVALUATE = ("--eval_only", "--resume")
PREDICT = ("--test_only", "--resume")
RESUME = ("--resume", "--set", "num_epochs=2")
LOST = object()  # stands for a key to take out


class Row(NamedTuple):
    """A mistake: how it is planted, what the message must hold, and the flags, if not training."""

    plant: callable
    fragments: list
    arguments: tuple = ()


# --- the project, and how to run in it -------------------------------------------------------


def jpeg(*seed) -> bytes:
    """A picture of coarse noise that is the same for the same `seed`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return simplejpeg.encode_jpeg(np.kron(pixels, np.ones((4, 4, 1), np.uint8)), quality=90)


def write_data():
    for number in (number for numbers in SETS.values() for number in numbers):
        clip = Path(f"data/clips/{number}")
        clip.mkdir(parents=True)
        for frame in range(1, NUM_FRAMES + 1):
            (clip / f"{frame:05}.jpg").write_bytes(jpeg(number, frame))
    Path("data/labels.csv").write_text("\n".join(LABELS) + "\n")
    for name, numbers in SETS.items():
        label = (lambda _: "") if name == "test" else (lambda n: f";{LABELS[n % 3]}")
        Path(f"data/{name}.csv").write_text("".join(f"{n}{label(n)}\n" for n in numbers))
    Path("config.json").write_text(json.dumps(CONFIG))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sound_project(tmp_path_factory, one_thread):
    """Data, config and a finished run; only copied, never touched, by the commands neither."""
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data()
        assert train.main(["--config", "config.json", "-g", "cpu"]) == 0
    before = contents(folder)
    yield folder
    assert contents(folder) == before


@pytest.fixture
def project(sound_project, tmp_path, monkeypatch):
    """A copy of the sound project, as the folder that commands run in."""
    monkeypatch.chdir(copy_project(sound_project, tmp_path / "project"))


def copy_project(source, folder) -> Path:
    """Clips are only linked to, which is quicker; `own_clip` makes a copy of one."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("clips"))
    clips = folder / "data/clips"
    clips.mkdir()
    for clip in (source / "data/clips").iterdir():
        (clips / clip.name).symlink_to(clip)
    return folder


def own_clip(number) -> Path:
    """The clip's folder, of which nothing is linked to any longer."""
    clip = Path(f"data/clips/{number}")
    source = clip.resolve()
    clip.unlink()
    return Path(shutil.copytree(source, clip))


@pytest.fixture
def command(project, capfd):
    """Runs train.py in this process: (status, stdout, stderr), Python's warnings included."""

    def run(*arguments):
        if "-g" not in arguments:
            arguments += ("-g", "cpu")
        capfd.readouterr()
        with warnings.catch_warnings():
            # As Python itself does; from 3.12 on, it deprecates forks of a process with threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            # pytest would keep them to itself; the user would see them.
            warnings.showwarning = lambda message, *_: print("warning:", message, file=sys.stderr)
            try:
                status = train.main(["--config", "config.json", *map(str, arguments)])
            except SystemExit as stop:  # argparse
                status = stop.code
        return status, *capfd.readouterr()

    return run


def contents(folder=".") -> dict[str, str]:
    """A hash of every file below `folder`, and an empty one of every folder."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(Path(folder).rglob("*"))
    }


def check_message(result, fragments):
    """One message: `error: ...` and, below it, nothing but indented lines of the same message."""
    status, stdout, stderr = result
    assert "Traceback" not in stdout + stderr, stderr
    assert status == 2, (status, stdout, stderr)
    first, *others = stderr.splitlines()
    assert first.startswith("error: ")
    assert all(line.startswith("  ") for line in others), stderr
    for fragment in fragments:
        assert fragment in stderr, f"{fragment!r} is not in: {stderr}"


def check_refused(command, row):
    """The mistake is refused, whether there is a run already or not, and leaves no trace.

    With --overwrite the run would be lost if the mistake were found too late.
    """
    row.plant()
    variants = [row.arguments] if row.arguments else [["--overwrite"], []]
    for arguments in variants:
        if not arguments:
            shutil.rmtree("trainings", ignore_errors=True)
        before = contents()
        check_message(command(*arguments), row.fragments)
        assert contents() == before


def all_of(*tables):
    """Rows of several tables as parameters, named by their keys."""
    return [pytest.param(row, id=name) for table in tables for name, row in table.items()]


# --- what can be planted ---------------------------------------------------------------------


def nothing():
    pass


def write(path, content):
    """Text is written as UTF-8, with its line ends as they are."""
    data = content.encode() if isinstance(content, str) else content

    def plant():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)

    return plant


def remove(*paths):
    def plant():
        for path in map(Path, paths):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    return plant


def folder_instead(path):
    def plant():
        remove(path)()
        Path(path).mkdir()

    return plant


def configure(**changes):
    """Changes keys of the config file; LOST takes one out."""

    def plant():
        values = json.loads(Path("config.json").read_text()) | changes
        values = {key: value for key, value in values.items() if value is not LOST}
        Path("config.json").write_text(json.dumps(values))

    return plant


def both(*plants):
    def plant():
        for one in plants:
            one()

    return plant


# --- frames ----------------------------------------------------------------------------------


def damaged_inside() -> bytes:
    """Sound at both ends, but with restart markers in the middle, where none belong."""
    data = bytearray(jpeg(99))
    middle = len(data) // 2 + 50
    data[middle : middle + 8] = b"\xff\xd3\xff\xd5\xff\xd1\xff\xd7"
    return bytes(data)


def jpeg_bomb(side=20_000) -> bytes:
    """A small file whose header declares `side` x `side` pixels."""
    data = jpeg(99)
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", side, side) + data[start + 4 :]


def png_bomb(side=20_000) -> bytes:
    """A small and sound file that decodes to `side` x `side` black pixels."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((1 + side // 8) * side), 1))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def png(width, height) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


FRAME = "00003.jpg"  # every window of 4 of the 6 frames has the third


def frame_is(content):
    return lambda clip: (clip / FRAME).write_bytes(content)


def frame_is_folder(clip):
    (clip / FRAME).unlink()
    (clip / FRAME).mkdir()


def frame_is_broken_link(clip):
    (clip / FRAME).unlink()
    (clip / FRAME).symlink_to("nowhere")


def no_frames(clip):
    for path in clip.iterdir():
        path.unlink()


def no_pictures(clip):
    for path in clip.iterdir():
        path.rename(path.with_suffix(".svg"))


# What is planted in one clip, and what the message must hold besides the path.
FRAMES = {
    "empty clip": (no_frames, ["empty", "drop its CSV row"]),
    "other kinds of file": (no_pictures, ["no frames", "'00001.svg'", "convert"]),
    "truncated": (frame_is(jpeg(99)[:-300]), [FRAME, "damaged JPEG", "extract the frame again"]),
    "header only": (frame_is(jpeg(99)[:100]), [FRAME, "damaged JPEG", "extract the frame again"]),
    "zero bytes": (frame_is(b""), [FRAME, "0 bytes", "extract the frame again"]),
    "text": (frame_is(b"404 not found\n"), [FRAME, "not a picture", "extract the frame again"]),
    "damaged inside": (
        frame_is(damaged_inside()),
        [FRAME, "damaged JPEG", "extract the frame again"],
    ),
    "jpeg bomb": (frame_is(jpeg_bomb()), [FRAME, "20000 x 20000", "max_frame_pixels", "shrink"]),
    "png bomb": (frame_is(png_bomb()), [FRAME, "20000 x 20000", "max_frame_pixels", "shrink"]),
    "a line of pixels": (frame_is(png(4000, 1)), [FRAME, "4000 x 1 pixels", "extract it again"]),
    "a folder": (frame_is_folder, [FRAME, "cannot be read", "directory"]),
    "a broken link": (frame_is_broken_link, [FRAME, "cannot be read"]),
}


@pytest.mark.parametrize("name", FRAMES)
def test_unusable_frame_stops_evaluation(command, name):
    plant, fragments = FRAMES[name]
    plant(own_clip(9))
    before = contents()
    check_message(command(*EVALUATE), ["data/clips/9", *fragments])
    assert contents() == before


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@pytest.mark.parametrize("name", FRAMES)
def test_unusable_frame_stops_training_and_leaves_checkpoints(command, name):
    plant, fragments = FRAMES[name]
    plant(own_clip(3))
    before = contents()
    memory = peak_memory()
    check_message(command(*RESUME), ["data/clips/3", *fragments])
    assert peak_memory() - memory < 200_000_000, "a decoded bomb takes six times as many bytes"
    after = contents()
    kept = [path for path in before if path.endswith((".tar", "history.csv", ".jpg", "s.csv"))]
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}


def test_unusable_frame_in_a_new_run_leaves_no_checkpoint(command):
    shutil.rmtree("trainings")
    frame_is(b"")(own_clip(3))
    check_message(command(), [f"data/clips/3/{FRAME}", "0 bytes"])
    assert not list(Path(RUN).glob("*.tar*")) and not Path(RUN, "history.csv").exists()


@pytest.mark.parametrize("name", ["truncated", "a folder", "empty clip"])
def test_unusable_frame_in_a_worker_gives_the_same_message(command, name):
    plant, fragments = FRAMES[name]
    plant(own_clip(9))
    check_message(command(*EVALUATE, "--set", "num_workers=2"), ["error: data/clips/9", *fragments])


# --- clip lists and labels -------------------------------------------------------------------


def add_lines(path, *lines):
    return lambda: Path(path).write_text(Path(path).read_text() + "\n".join(lines) + "\n")


def relabel(path, function):
    return lambda: Path(path).write_text(function(Path(path).read_text()))


def link_clip_to_itself():
    remove("data/clips/3")()
    Path("data/clips/3").symlink_to("3")


HEADER = "video_id,label,frames,label_id,shape,format\n"
TRAIN, VALIDATION = "data/train.csv", "data/validation.csv"
NO_FOLDER = ["no folder in data/clips", "add the folders or drop the rows"]
NOT_BELOW = ["not paths below the data folder", "names a clip, such as 12 or wave/12.mp4"]

CLIP_LISTS = {
    "missing clip": Row(remove("data/clips/3"), [TRAIN, "1 of 6 clips", ": 3;", *NO_FOLDER]),
    "missing clips": Row(
        add_lines(TRAIN, *(f"{n};Left" for n in range(100, 125))),
        [
            TRAIN,
            "25 of 31 clips",
            ": 100, 101, 102, 103, 104, 105, 106, 107, 108, 109 and 15 more",
            *NO_FOLDER,
        ],
    ),
    "missing validation clip": Row(
        remove("data/clips/9"), [VALIDATION, "1 of 4 clips", ": 9;", *NO_FOLDER]
    ),
    "a clip is a file": Row(
        both(remove("data/clips/3"), write("data/clips/3", "frames")), [TRAIN, ": 3;", *NO_FOLDER]
    ),
    "a clip is a link in a circle": Row(link_clip_to_itself, [TRAIN, ": 3;", *NO_FOLDER]),
    "commas": Row(
        relabel(TRAIN, lambda text: text.replace(";", ",")),
        [TRAIN, "line 1", "'1,Right'", "separate the two with one semicolon"],
    ),
    "tabs": Row(
        relabel(TRAIN, lambda text: text.replace(";", "\t")), [TRAIN, "line 1", "semicolon"]
    ),
    "three columns": Row(
        add_lines(TRAIN, "1;2;Left"), [TRAIN, "line 7", "expected id;label", "'1;2;Left'"]
    ),
    "label missing": Row(add_lines(TRAIN, "1"), [TRAIN, "line 7", "expected id;label"]),
    "binary": Row(write(TRAIN, bytes(range(256)) * 9), [TRAIN, "not UTF-8", "save it as UTF-8"]),
    "latin 1": Row(
        write(TRAIN, "1;Rückwärts\n".encode("latin-1")), [TRAIN, "not UTF-8", "save it as UTF-8"]
    ),
    "utf 16": Row(
        write(TRAIN, "1;Left\n".encode("utf-16")), [TRAIN, "not UTF-8", "save it as UTF-8"]
    ),
    "utf 16 without a mark": Row(write(TRAIN, "1;Left\n2;Right\n".encode("utf-16-le")), [TRAIN]),
    "quote left open": Row(
        write(TRAIN, '"1;Left\n' + "2;Right\n" * 20_000), [TRAIN, "not a CSV file"]
    ),
    "duplicate ids": Row(
        add_lines(TRAIN, "1;Left", "3;Left"),
        [TRAIN, "2 ids are listed more than once: 1, 3", "keep one line for each"],
    ),
    "id leads out": Row(add_lines(TRAIN, "../x;Left"), [TRAIN, "'../x'", *NOT_BELOW]),
    "id is the folder above": Row(add_lines(TRAIN, "..;Left"), [TRAIN, "'..'", *NOT_BELOW]),
    "id with a backslash": Row(add_lines(TRAIN, "..\\x;Left"), [TRAIN, *NOT_BELOW]),
    "absolute id": Row(add_lines(TRAIN, "/etc;Left"), [TRAIN, "'/etc'", *NOT_BELOW]),
    "empty id": Row(add_lines(TRAIN, ";Left"), [TRAIN, "''", *NOT_BELOW]),
    "very long id": Row(add_lines(TRAIN, "1" * 5000 + ";Left"), [TRAIN, *NO_FOLDER]),
    "id with a zero byte": Row(add_lines(TRAIN, "1\0;Left"), [TRAIN]),
    "no label known": Row(
        relabel(TRAIN, str.lower),
        [TRAIN, "no clips left", "(left, right, still)", "labels_csv", "use the same spelling"],
    ),
    "no label known in validation": Row(
        relabel(VALIDATION, str.upper), [VALIDATION, "no clips left", "use the same spelling"]
    ),
    "empty list": Row(write(TRAIN, ""), [TRAIN, "no clips", "empty", "add"]),
    "blank list": Row(write(VALIDATION, "\n \n"), [VALIDATION, "no clips", "empty", "add"]),
    "one training clip": Row(
        write(TRAIN, "1;Left\n"), ["train_data_csv", "not enough", "2 or more"]
    ),
    "header without labels": Row(
        write(TRAIN, "video_id,frames\n1,6\n"), [TRAIN, "line 1", "no label column", "add"]
    ),
    "header only": Row(write(TRAIN, HEADER), [TRAIN, "no clips", "empty", "add"]),
    "fewer columns than the header": Row(
        write(TRAIN, HEADER + "1,Left,6,0,x,jpg\n2\n"), [TRAIN, "line 3", "fewer columns"]
    ),
    "header layout leads out": Row(
        write(TRAIN, HEADER + "../x,Left,6,0,x,jpg\n"), [TRAIN, "'../x'", *NOT_BELOW]
    ),
    "commas in the test list": Row(
        write("data/test.csv", "11,Left\n"),
        ["data/test.csv", "line 1", "comma", "separate with semicolons"],
        PREDICT,
    ),
    "missing test clip": Row(
        add_lines("data/test.csv", "99"), ["data/test.csv", ": 99;", *NO_FOLDER], PREDICT
    ),
    "empty test list": Row(
        write("data/test.csv", "\n"), ["data/test.csv", "no clips", "empty"], PREDICT
    ),
}

LABEL_FILES = {
    "duplicate": Row(
        add_lines("data/labels.csv", "Left"),
        ["data/labels.csv", "labels_csv", "'Left' is on 2 lines", "a different name"],
    ),
    "blank in the middle": Row(
        write("data/labels.csv", "Left\n\nRight\nStill\n"),
        ["data/labels.csv", "line 2 is blank", "a different name"],
    ),
    "blank at the start": Row(
        write("data/labels.csv", "\nLeft\nRight\n"), ["data/labels.csv", "line 1 is blank"]
    ),
    "empty": Row(write("data/labels.csv", ""), ["data/labels.csv", "line 1 is blank"]),
    "one name": Row(write("data/labels.csv", "Left\n"), ["data/labels.csv", "at least two"]),
    "binary": Row(
        write("data/labels.csv", b"\xff\xd8\xff\xe0"), ["data/labels.csv", "save it as UTF-8"]
    ),
    "a folder": Row(folder_instead("data/labels.csv"), ["labels_csv", "no such file"]),
    "another number than num_classes": Row(
        configure(num_classes=27),
        ["num_classes", "found 27", "data/labels.csv names 3 classes", "leave the key out"],
    ),
}


@pytest.mark.parametrize("row", all_of(CLIP_LISTS, LABEL_FILES))
def test_unusable_clip_list_or_labels(command, row):
    check_refused(command, row)


# What must work all the same: how it is planted, and how many training clips are left.
SOUND_LISTS = {
    "blank lines": (relabel(TRAIN, lambda text: "\n\n" + text.replace("\n", "\n \n")), 6),
    "windows line ends": (
        lambda: [
            Path(p).write_bytes(Path(p).read_bytes().replace(b"\n", b"\r\n"))
            for p in (TRAIN, VALIDATION, "data/labels.csv")
        ],
        6,
    ),
    "byte order mark": (
        lambda: [
            Path(p).write_text(Path(p).read_text(), encoding="utf-8-sig")
            for p in (TRAIN, VALIDATION, "data/labels.csv", "config.json")
        ],
        6,
    ),
    "no line end at the end": (relabel(TRAIN, str.rstrip), 6),
    "spaces around": (relabel(TRAIN, lambda text: text.replace(";", " ; ")), 6),
    "labels that are left out": (add_lines(TRAIN, "98;Up", "99;Down"), 6),
    "header layout": (
        write(TRAIN, HEADER + '1,Left,6,0,"(24, 32)",jpg\n2,Right,6,1,"(24, 32)",jpg\n'),
        2,
    ),
    "blank label lines at the end": (add_lines("data/labels.csv", "", " "), 6),
}


@pytest.mark.parametrize("name", SOUND_LISTS)
def test_harmless_differences_in_files_are_read(command, name):
    plant, num_clips = SOUND_LISTS[name]
    plant()
    shutil.rmtree("trainings")
    status, stdout, stderr = command()
    assert (status, stderr) == (0, "")
    assert f"train: {num_clips} clips" in stdout


def test_labels_of_a_test_set_are_passed_over(command):
    Path("data/test.csv").write_text("11;Left\n12;Right\n")
    status, stdout, stderr = command(*PREDICT)
    assert (status, stderr) == (0, "")
    assert "2 clips predicted; no labels, so no accuracy" in stdout


# --- configs ---------------------------------------------------------------------------------


def config_text(text):
    return write("config.json", text)


def config_with(text):
    """The sound config with `text` in front of its other keys."""
    return config_text("{" + text + "," + json.dumps(CONFIG)[1:])


def wrong(key, value, *fragments):
    """A value that is reported in the customary way."""
    return Row(configure(**{key: value}), [f"  {key}: found {json.dumps(value)}; ", *fragments])


CONFIGS = {
    "missing": Row(remove("config.json"), ["config.json", "cannot be read", "check --config"]),
    "a folder": Row(folder_instead("config.json"), ["config.json", "check --config"]),
    "empty": Row(config_text(""), ["config.json", "not valid JSON", "line 1"]),
    "not JSON": Row(config_text("lr: 0.1\n"), ["config.json", "not valid JSON", "line 1"]),
    "trailing comma": Row(config_text('{"lr": 0.1,\n}'), ["config.json", "not valid JSON", "line"]),
    "binary": Row(config_text(b"\x80\x02}q\x00."), ["config.json", "cannot be read"]),
    "list": Row(config_text("[1, 2]"), ["config.json", "expected a JSON object", "list"]),
    "null": Row(config_text("null"), ["config.json", "expected a JSON object"]),
    "doubled key": Row(
        config_with('"lr": 0.1, "lr": 0.2'), ["config.json", "lr", "twice", "remove one"]
    ),
    "NaN": Row(config_with('"lr": NaN'), ["config.json", "lr: found NaN; expected"]),
    "Infinity": Row(config_with('"lr": -Infinity'), ["config.json", "lr: found -Infinity"]),
    "infinite by its exponent": Row(config_with('"lr": 1e999'), ["lr", "finite number"]),
    "deep list": Row(config_text("[" * 100_000), ["config.json", "not valid JSON"]),
    "deep object": Row(config_text('{"a":' * 100_000), ["config.json", "not valid JSON"]),
    "deep value": Row(config_with('"lr": ' + "[" * 900 + "]" * 900), ["  lr: found [[[", "number"]),
    "number of 5000 digits": Row(
        config_with('"lr": ' + "1" * 5000), ["config.json", "not valid JSON"]
    ),
    "misspelt key": Row(
        configure(batchsize=3), ["  batchsize: unknown key (found 3)", 'you mean "batch_size"?']
    ),
    "unknown key": Row(configure(zzz=1), ["  zzz: unknown key (found 1); remove it"]),
    "key missing": Row(configure(labels_csv=LOST), ["  labels_csv: missing; Class names"]),
    "text for a number": wrong("lr", "0.1", "number"),
    "number for text": wrong("model_name", 5, "string"),
    "fraction for a whole number": wrong("batch_size", 4.5, "integer"),
    "true for a number": wrong("clip_size", True, "integer"),
    "number for true": wrong("amsgrad", 1, "boolean"),
    "null for a number": wrong("lr", None, "number"),
    "list for a number": wrong("num_epochs", [1], "integer"),
    "unknown choice": wrong("schedule", "cosinus", "'plateau', 'cosine' or 'constant'"),
    "negative": wrong("lr", -1, "greater than 0"),
    "zero": wrong("batch_size", 0, "greater than or equal to 1"),
    "too high": wrong("dropout", 1.5, "less than 1"),
    "huge": wrong("clip_size", 10**30, "less than or equal to"),
    "two colours": wrong("mean", [0.5, 0.5], "3 items"),
    "crop of three sides": wrong("crop_size", [16, 16, 16], "2 items"),
    "crop of text": wrong("crop_size", "16", "integer"),
    "an item of a list": Row(
        configure(block_widths=[8, 0]), ["1 problem\n  block_widths.1: found 0; expected greater"]
    ),
    "folder as name": wrong("model_name", "a/b", "pattern"),
    "folder above as name": Row(configure(model_name=".."), ["  model_name: found '..'", "name"]),
    "zero byte in a name": wrong("model_name", "a\0b", "pattern"),
    "no epochs": Row(configure(num_epochs=0), ["num_epochs: found 0; expected -1 or at least 1"]),
    "cosine without an end": Row(
        configure(num_epochs=-1, schedule="cosine"), ["num_epochs: found -1", "number of epochs"]
    ),
    "warm-up without an end": Row(
        configure(warmup_epochs=3), ["warmup_epochs", "less than num_epochs (1)"]
    ),
    "last_lr above lr": Row(configure(last_lr=0.5), ["last_lr: found 0.5", "at most lr"]),
    "more parts than clips": Row(
        configure(accumulate_steps=3), ["accumulate_steps: found 3", "batch_size (4)"]
    ),
    "new_head alone": Row(configure(new_head=True), ["new_head", "pretrained"]),
    "batch of one": Row(configure(batch_size=1), ["batch_size", "BatchNorm needs two"]),
    "folder missing": Row(
        configure(val_data_folder="nowhere"),
        ["  val_data_folder: no such folder: 'nowhere'; correct the path"],
    ),
    "clip list missing": Row(
        remove(TRAIN), [f"  train_data_csv: no such file: '{TRAIN}'; correct the path"]
    ),
    "clip list is a folder": Row(
        configure(train_data_csv="data/clips"), ["  train_data_csv: no such file"]
    ),
    "path too long": Row(
        configure(val_data_csv="x" * 5000), ["  val_data_csv: no such file", "correct the path"]
    ),
    "zero byte in a path": Row(
        configure(train_data_folder="a\0b"), ["  train_data_folder: no such folder"]
    ),
    "crop too small": Row(configure(crop_size=3), ["crop_size: 3 x 3", "raise crop_size", "4 x 4"]),
    "crop too narrow": Row(configure(crop_size=[16, 2]), ["crop_size: 16 x 2", "4 x 4"]),
    "several at once": Row(
        configure(
            lr=-1,
            batchsize=3,
            clip_size="4",
            labels_csv="gone.csv",
            val_data_folder="none",
            train_data_csv=LOST,
        ),
        [
            "config.json: 6 problems",
            "  lr: ",
            "  batchsize: ",
            "  clip_size: ",
            "  labels_csv: ",
            "  val_data_folder: ",
            "  train_data_csv: ",
        ],
    ),
    "several that do not go together": Row(
        configure(num_epochs=-1, schedule="cosine", last_lr=0.5, new_head=True),
        ["config.json: 3 problems", "  num_epochs: ", "  last_lr: ", "  new_head: "],
    ),
    "test set not named": Row(
        configure(test_data_csv=LOST, test_data_folder=LOST),
        ["  test_data_csv: missing", "  test_data_folder: missing", "required by"],
        PREDICT,
    ),
    "test folder missing": Row(
        configure(test_data_folder="nowhere"), ["  test_data_folder: no such folder"], PREDICT
    ),
}


def override(text, *fragments):
    return Row(nothing, fragments, ("--overwrite", "--set", text))


OVERRIDES = {
    "without a value": override("lr", "--set lr", "key=value"),
    "without a key": override("=3", "--set =3", "key=value"),
    "unknown key": override("batchsize=3", "batchsize: unknown key", '"batch_size"'),
    "wrong type": override("lr=fast", '  lr: found "fast"; expected'),
    "NaN": override("lr=NaN", "  lr: found NaN; expected"),
    "empty value": override("lr=", '  lr: found ""; expected'),
    "deep": override("lr=" + "[" * 100_000, "  lr: found ", "expected"),
    "5000 digits": override("lr=" + "1" * 5000, "  lr: found ", "expected"),
}


@pytest.mark.parametrize("row", all_of(CONFIGS, OVERRIDES))
def test_unusable_config(command, row):
    check_refused(command, row)


def test_every_key_is_checked_and_all_are_named_at_once(command):
    keys = [key for key in Config.model_fields if key != "flip_labels"]  # takes pairs of names
    configure(**{key: {"found": "this"} for key in keys}, flip_labels=3)()
    lines = [f'  {key}: found {{"found": "this"}}; expected ' for key in keys]
    lines.append("  flip_labels: found 3; expected a valid dictionary")
    check_message(command(), [f"config.json: {len(keys) + 1} problems", *lines])


# --- the command line ------------------------------------------------------------------------


COMMAND_LINES = {
    "evaluation and test": Row(
        nothing, ["--eval_only and --test_only", "choose one"], (*EVALUATE, "--test_only")
    ),
    "evaluation without resume": Row(
        nothing, ["--eval_only", "add --resume True"], ("--eval_only", "True")
    ),
    "test without resume": Row(nothing, ["--test_only", "add --resume True"], ("--test_only",)),
    "GPU by name": Row(nothing, ["-g x", "GPU number", "cpu"], ("-g", "x", "--overwrite")),
    "negative GPU": Row(nothing, ["-g -1", "GPU number", "cpu"], ("-g", "-1", "--overwrite")),
    "the same GPU twice": Row(
        nothing, ["-g 0,0", "GPU numbers", "cpu"], ("-g", "0,0", "--overwrite")
    ),
    "GPUs in part by name": Row(
        nothing, ["-g 0,x", "GPU numbers", "cpu"], ("-g", "0,x", "--overwrite")
    ),
    "resume and overwrite": Row(
        nothing, ["--resume and --overwrite", "choose one"], ("--resume", "--overwrite")
    ),
    "no GPU number": Row(nothing, ["-g", "GPU number", "cpu"], ("-g", "", "--overwrite")),
    "run exists": Row(
        nothing,
        [f"{RUN}: already has a run", "--resume True", "model_name", "--overwrite"],
        ("--resume", "False"),
    ),
    "run exists in part": Row(
        both(remove(CHECKPOINT), remove(f"{RUN}/config.json")),
        [f"{RUN}: already has a run", "--overwrite"],
        ("--resume", "False"),
    ),
    "output folder below a file": Row(
        nothing,
        ["config.json/tiny", "cannot be written", "choose another place"],
        ("--set", "output_dir=config.json"),
    ),
    "output folder in /proc": Row(
        nothing,
        ["/proc/tiny", "cannot be written", "choose another place"],
        ("--set", "output_dir=/proc"),
    ),
    "output folder with a zero byte": Row(
        configure(output_dir="a\0b"), ["output_dir"], ("--resume", "False")
    ),
    "run name too long": Row(
        configure(model_name="x" * 300), ["cannot be written"], ("--resume", "False")
    ),
    "run folder is a file": Row(
        both(remove(RUN), write(RUN, "a file")),
        [RUN, "cannot be written", "choose another place"],
        ("--resume", "False"),
    ),
    "versions damaged": Row(
        write(f"{RUN}/versions.json", "{"), [f"{RUN}/versions.json", "delete"], RESUME
    ),
    "versions of another kind": Row(
        write(f"{RUN}/versions.json", "{}"), [f"{RUN}/versions.json", "delete"], RESUME
    ),
    "output cannot be written": Row(
        lambda: (Path(RUN, "predictions.csv").unlink(), Path(RUN, "predictions.csv").mkdir()),
        [f"{RUN}/predictions.csv", "written"],
        EVALUATE,
    ),
    "checkpoint is a folder": Row(
        configure(checkpoint=RUN), [f"{RUN}: no such checkpoint", "correct the path"], EVALUATE
    ),
    "results below a file": Row(
        configure(output_dir="config.json", checkpoint=CHECKPOINT),
        ["config.json/tiny", "cannot be written", "another place"],
        EVALUATE,
    ),
}


@pytest.mark.parametrize("row", all_of(COMMAND_LINES))
def test_unusable_command_line_or_run_folder(command, row):
    check_refused(command, row)


@pytest.mark.parametrize(
    "arguments", [("--use_gpu", "maybe"), ("--resume", "perhaps"), ("--unknown",), ("surplus",)]
)
def test_argparse_refuses(command, arguments):
    before = contents()
    status, _, stderr = command("--overwrite", *arguments)
    assert status == 2 and "Traceback" not in stderr
    assert "error: " in stderr.splitlines()[-1] and arguments[-1] in stderr
    assert contents() == before


@pytest.mark.parametrize("gpus", ["0", "0,1"])
def test_gpu_on_a_machine_without_one_is_a_warning(command, monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, stdout, stderr = command("-g", gpus, "--overwrite")
    assert status == 0 and "training is over" in stdout
    assert stderr == f"warning: -g {gpus}: this machine has no CUDA GPU; using the CPU\n"


def test_results_of_a_checkpoint_from_elsewhere_get_a_folder(command):
    configure(checkpoint="downloaded.pth.tar", model_name="other")()
    shutil.copy(CHECKPOINT, "downloaded.pth.tar")
    status, _, stderr = command(*EVALUATE)
    assert (status, stderr) == (0, "")
    assert Path("trainings/other/predictions.csv").exists()


@pytest.mark.parametrize("name", ["history.csv.partial", "checkpoint.pth.tar.partial"])
def test_trouble_with_writing_while_training_is_a_message_too(command, name):
    """A folder in its place stands for a full disk, which a test cannot have."""
    Path(RUN, name).mkdir()
    before = {path: text for path, text in contents().items() if path.endswith(".tar")}
    check_message(command(*RESUME), [f"{RUN}/{name.removesuffix('.partial')}", "written"])
    assert {path: contents()[path] for path in before} == before


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
        cv2.error("(-4:Insufficient memory) Failed to allocate 17179344900 bytes"),
    ],
)
def test_too_little_memory_is_a_message_too(command, monkeypatch, error):
    def run_out(*_):
        raise error

    monkeypatch.setattr(train, "start_run", run_out)
    check_message(command("--overwrite"), ["out of memory", "lower batch_size"])


def test_a_loss_that_is_no_number_names_the_clips(command):
    kept = Path(CHECKPOINT).read_bytes()
    check_message(
        command(*RESUME, "--set", "mean=[1e38, 1e38, 1e38]"),
        ["is NaN or inf in epoch 2, step 1", "with the clips ", "lower lr"],
    )
    assert Path(CHECKPOINT).read_bytes() == kept


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bugs_keep_their_traceback(command, monkeypatch, num_workers):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(reading, "eval_transform", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        command(*EVALUATE, "--set", f"num_workers={num_workers}")


def test_rows_of_an_older_version_stay_in_the_history(command):
    with_part("history", lambda rows: rows[0].pop("seconds"))()
    status, _, stderr = command(*RESUME)
    assert (status, stderr) == (0, "")
    with open(f"{RUN}/history.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert not first["seconds"] and second["seconds"]


SKIP = ("--set", "on_bad_clip=skip", "--set", "max_bad_share=0.9")


def test_a_batch_of_bad_clips_can_be_skipped(command):
    for number in (7, 8):
        frame_is(b"")(own_clip(number))
    status, stdout, stderr = command(*EVALUATE, *SKIP, "--set", "batch_size=2")
    assert (status, stderr) == (0, "") and "validation: 2 clips skipped" in stdout


def test_too_many_bad_clips_are_not_skipped(command):
    frame_is(b"")(own_clip(9))
    check_message(
        command(*EVALUATE, "--set", "on_bad_clip=skip"),
        ["data/clips: 1 of the 4 validation clips", "max_bad_share (0.01)", ": 9;", "--check_data"],
    )


def test_an_epoch_without_a_step_is_refused(command):
    for number in range(1, 6):
        frame_is(b"")(own_clip(number))
    check_message(
        command("--overwrite", *SKIP), ["epoch 1 has no step", "train_data_csv", "--check_data"]
    )


def test_resume_beyond_the_last_epoch_ends_at_once(command):
    change_checkpoint(lambda saved: saved.update(epoch=7))()
    status, stdout, stderr = command("--resume")
    assert (status, stderr) == (0, "") and "training is over: 7 epochs are done" in stdout


# --- checkpoints -----------------------------------------------------------------------------


class Trap:
    """Unpickling it makes a folder: what a hostile pickle could do at will."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


def change_checkpoint(change):
    """Loads the run's checkpoint, hands it to `change`, and saves it again."""

    def plant():
        saved = torch.load(CHECKPOINT, weights_only=True)
        replaced = change(saved)
        torch.save(saved if replaced is None else replaced, CHECKPOINT)

    return plant


def with_keys(**changes):
    def change(saved):
        saved.update(changes)
        for key in [key for key, value in changes.items() if value is LOST]:
            del saved[key]

    return change_checkpoint(change)


def with_part(key, change):
    def change_part(saved):
        change(saved[key])

    return change_checkpoint(change_part)


def with_weights(change):
    return with_part("state_dict", change)


def with_optimizer(change):
    return with_part("optimizer", change)


def overwritten(start, stop):
    """Inverts a part of the checkpoint, given as fractions of it."""

    def plant():
        data = bytearray(Path(CHECKPOINT).read_bytes())
        for place in range(int(start * len(data)), int(stop * len(data))):
            data[place] ^= 255
        Path(CHECKPOINT).write_bytes(data)

    return plant


def cut_to(fraction):
    def plant():
        data = Path(CHECKPOINT).read_bytes()
        Path(CHECKPOINT).write_bytes(data[: int(fraction * len(data))])

    return plant


def zip_of(**files) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def nested(depth) -> bytes:
    """A checkpoint that is a list in a list in a list ..., which no pickler would write."""
    pickled = b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
    return zip_of(**{"data.pkl": pickled, "version": "3\n", "byteorder": "little"})


def in_a_circle():
    value = []
    value.append(value)
    return value


DAMAGED = [CHECKPOINT, "damaged checkpoint", "take an earlier one"]
NO_WEIGHTS = [CHECKPOINT, "no state_dict"]

# Files that are no checkpoint; refused alike wherever one is loaded.
FILES = {
    "missing": Row(remove(CHECKPOINT), [CHECKPOINT, "no such checkpoint", "correct the path"]),
    "a folder": Row(folder_instead(CHECKPOINT), [CHECKPOINT, "no such checkpoint"]),
    "empty": Row(write(CHECKPOINT, b""), DAMAGED),
    "text": Row(write(CHECKPOINT, "version https://git-lfs.github.com/spec/v1\n"), DAMAGED),
    "truncated": Row(cut_to(0.7), DAMAGED),
    "start only": Row(cut_to(0.01), DAMAGED),
    "damaged at the end": Row(overwritten(0.99, 1), DAMAGED),
    "damaged in the middle": Row(overwritten(0.5, 0.51), [*DAMAGED, "checksum"]),
    "random bytes": Row(
        write(CHECKPOINT, np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()),
        DAMAGED,
    ),
    "trap": Row(with_keys(classes=Trap()), [*DAMAGED, "could run code"]),
    "trap in a plain pickle": Row(
        write(CHECKPOINT, pickle.dumps({"state_dict": Trap()})), [*DAMAGED, "could run code"]
    ),
    "plain pickle of a list": Row(write(CHECKPOINT, pickle.dumps([1, 2])), DAMAGED),
    "zip without a pickle": Row(write(CHECKPOINT, zip_of(notes="hello")), DAMAGED),
    "a list": Row(change_checkpoint(lambda _: [1, 2]), NO_WEIGHTS),
    "tensor": Row(change_checkpoint(lambda _: torch.zeros(3)), NO_WEIGHTS),
    "without weights": Row(with_keys(state_dict=LOST), NO_WEIGHTS),
    "only weights": Row(change_checkpoint(lambda saved: saved["state_dict"]), NO_WEIGHTS),
    "weights in a list": Row(with_keys(state_dict=[torch.zeros(3)]), [CHECKPOINT, "state_dict"]),
    "deep": Row(write(CHECKPOINT, nested(5000)), NO_WEIGHTS),
    "in a circle": Row(with_keys(history=in_a_circle()), [*DAMAGED, "history"]),
    # What loading with weights_only lets through beyond plain data:
    "set": Row(with_keys(classes={"Left"}), [*DAMAGED, "classes"]),
    "bytes": Row(with_keys(arch=bytearray(b"x")), [*DAMAGED, "arch"]),
    "complex number": Row(with_keys(best_prec1=1j), [*DAMAGED, "best_prec1"]),
    "device": Row(with_keys(config={"device": torch.device("cpu")}), [*DAMAGED, "config.device"]),
    "type of numbers": Row(with_keys(config={"model": torch.half}), [*DAMAGED, "config.model"]),
    "storage": Row(with_keys(arch=torch.zeros(2).untyped_storage()), [*DAMAGED, "arch"]),
    "sparse tensor": Row(with_keys(arch=torch.eye(2).to_sparse()), [*DAMAGED, "arch"]),
    "tensor without data": Row(
        with_weights(lambda w: w.update({"classifier.bias": torch.empty(3, device="meta")})),
        [CHECKPOINT, "of an unusual type: classifier.bias"],
    ),
}

# Checkpoints of something else, or with damaged values.
WEIGHTS = {
    "another architecture": Row(
        configure(block_widths=[6], head_widths=[8, 9]),
        [
            CHECKPOINT,
            "another network",
            "blocks.0.0.weight is [4, 3, 2, 3, 3], the network has [6, 3, 2, 3, 3]",
            "more; use the config and the labels that",
        ],
    ),
    "weights missing": Row(
        with_weights(lambda w: w.pop("last_conv.bias")),
        ["another network", "last_conv.bias is missing", "use the config and the labels that"],
    ),
    "weights too many": Row(
        with_weights(lambda w: w.update({"extra.weight": torch.zeros(2)})),
        ["another network", "extra.weight is unknown", "use the config and the labels that"],
    ),
    "number for a tensor": Row(
        with_weights(lambda w: w.update({"last_conv.bias": 3})),
        [CHECKPOINT, "damaged", "state_dict.last_conv.bias"],
    ),
    "number for a name": Row(
        with_weights(lambda w: w.update({5: torch.zeros(2)})),
        [CHECKPOINT, "damaged", "state_dict.5"],
    ),
    "whole numbers for weights": Row(
        with_weights(lambda w: w.update({"last_conv.bias": torch.zeros(8, dtype=torch.int32)})),
        [CHECKPOINT, "last_conv.bias", "int32"],
    ),
    "complex weights": Row(
        with_weights(lambda w: w.update({"last_conv.bias": torch.zeros(8, dtype=torch.cfloat)})),
        [CHECKPOINT, "last_conv.bias", "complex64"],
    ),
    "NaN in weights": Row(
        with_weights(lambda w: w["last_conv.bias"].fill_(float("nan"))),
        [CHECKPOINT, "last_conv.bias", "NaN"],
    ),
    "another class count": Row(
        both(add_lines("data/labels.csv", "Up"), add_lines(TRAIN, "11;Up")),
        [
            CHECKPOINT,
            "has 3 classes, data/labels.csv has 4",
            "class 3 is None there, 'Up' in data/labels.csv",
            "new_head",
        ],
    ),
    "another class": Row(
        relabel("data/labels.csv", lambda text: text.replace("Still", "Up")),
        ["class 2 is 'Still' there, 'Up' in data/labels.csv", "new_head"],
    ),
    "another class order": Row(
        write("data/labels.csv", "Left\nStill\nRight\n"),
        [
            "has 3 classes",
            "class 1 is 'Right' there, 'Still' in data/labels.csv",
            "class 2 is 'Still' there, 'Right' in",
            "new_head",
        ],
    ),
    "classes doubled": Row(
        with_keys(classes=["Left", "Right", "Still", "Left"]), [CHECKPOINT, "classes"]
    ),
    "classes a number": Row(with_keys(classes=3), [CHECKPOINT, "damaged", "classes"]),
    "classes are numbers": Row(with_keys(classes=[1, 2, 3]), [CHECKPOINT, "classes"]),
    "no class names, another count": Row(
        both(with_keys(classes=LOST), add_lines("data/labels.csv", "Up")),
        [CHECKPOINT, "classifier.weight is [3, 8], the network has [4, 8]", "labels"],
    ),
    "no class names, a flat classifier": Row(
        both(
            with_keys(classes=LOST),
            with_weights(lambda w: w.update({"classifier.weight": torch.tensor(1.0)})),
        ),
        [CHECKPOINT, "classifier.weight is []"],
    ),
}


def damaged_key(key, value):
    expected = ["damaged checkpoint", key, "take an earlier one"]
    return Row(with_keys(**{key: value}), [CHECKPOINT, *expected])


STATES = {
    "epoch is text": damaged_key("epoch", "3"),
    "epoch is negative": damaged_key("epoch", -1),
    "epoch is a fraction": damaged_key("epoch", 1.5),
    "epoch is NaN": damaged_key("epoch", float("nan")),
    "epoch is true": damaged_key("epoch", True),
    "epoch is null": damaged_key("epoch", None),
    "best_prec1 is text": damaged_key("best_prec1", "85"),
    "best_prec1 is NaN": damaged_key("best_prec1", float("nan")),
    "best_prec1 is two numbers": damaged_key("best_prec1", torch.zeros(2)),
    "history of numbers": damaged_key("history", [1, 2]),
    "history is a number": damaged_key("history", 5),
    "history without losses": damaged_key("history", [{"epoch": 1}]),
    "history of text": damaged_key("history", [{"epoch": 1, "val_loss": "low"}]),
    "config is a list": damaged_key("config", [1]),
    "tensors in config": damaged_key("config", {"lr": torch.zeros(2)}),
    "metrics are numbers": damaged_key("metrics", {"loss": 1.5}),
    "metrics are NaN": damaged_key("metrics", {"loss": [float("nan"), float("nan")]}),
    "bad clips without ids": damaged_key("bad_clips", [{"epoch": 1, "set": "train"}]),
    "lists of tensors in config": damaged_key("config", {"head_widths": [torch.zeros(2)]}),
    "optimizer is a list": damaged_key("optimizer", [1]),
    "optimizer is null": damaged_key("optimizer", None),
    "optimizer of nothing": Row(
        with_keys(optimizer={}), [CHECKPOINT, "optimizer", "another network", "pretrained"]
    ),
    "optimizer without state": Row(
        with_optimizer(lambda o: o["state"].clear()), [CHECKPOINT, "optimizer", "pretrained"]
    ),
    "optimizer lacks a parameter": Row(
        with_optimizer(lambda o: o["state"].pop(2)), [CHECKPOINT, "optimizer", "pretrained"]
    ),
    "optimizer lacks a mean": Row(
        with_optimizer(lambda o: o["state"][2].pop("exp_avg")),
        [CHECKPOINT, "optimizer", "exp_avg", "pretrained"],
    ),
    "optimizer of another network": Row(
        with_optimizer(lambda o: o["state"][2].update(exp_avg=torch.zeros(7))),
        [CHECKPOINT, "optimizer", "exp_avg", "pretrained"],
    ),
    "optimizer of numbers": Row(
        with_optimizer(lambda o: o["state"].update({2: 7})), [CHECKPOINT, "optimizer", "pretrained"]
    ),
    "optimizer with another algorithm": Row(
        both(
            configure(amsgrad=True),
            with_optimizer(lambda o: [s.pop("max_exp_avg_sq") for s in o["state"].values()]),
        ),
        [CHECKPOINT, "optimizer", "max_exp_avg_sq"],
    ),
}


OTHER_WAYS_TO_LOAD = {
    "evaluate": EVALUATE,
    "predict": PREDICT,
    "pretrained": ("--set", f"pretrained={CHECKPOINT}", "--overwrite"),
}


@pytest.mark.parametrize("row", all_of(FILES))
def test_file_that_is_no_checkpoint(command, row):
    check_refused(command, row._replace(arguments=RESUME))


@pytest.mark.parametrize("way", OTHER_WAYS_TO_LOAD)
@pytest.mark.parametrize(
    "name", ["missing", "truncated", "trap", "trap in a plain pickle", "without weights"]
)
def test_file_that_is_no_checkpoint_wherever_it_is_loaded(command, name, way):
    check_refused(command, FILES[name]._replace(arguments=OTHER_WAYS_TO_LOAD[way]))


@pytest.mark.parametrize("name", ["another architecture", "weights missing", "NaN in weights"])
def test_pretrained_weights_of_another_network(command, name):
    row = WEIGHTS[name]
    check_refused(command, row._replace(arguments=OTHER_WAYS_TO_LOAD["pretrained"]))


@pytest.mark.parametrize(
    "arguments", [pytest.param(RESUME, id="resume"), pytest.param(EVALUATE, id="evaluate")]
)
@pytest.mark.parametrize("row", all_of(WEIGHTS))
def test_checkpoint_of_another_network(command, row, arguments):
    check_refused(command, row._replace(arguments=arguments))


@pytest.mark.parametrize("row", all_of(STATES))
def test_damaged_state_is_not_resumed(command, row):
    check_refused(command, row._replace(arguments=RESUME))


def test_published_checkpoint_with_a_tensor_as_best_score_is_resumed(command):
    """What checkpoints in circulation hold: no classes, no optimizer, `module.` names."""

    def publish(saved):
        weights = {f"module.{name}": value for name, value in saved["state_dict"].items()}
        return {
            "epoch": 1,
            "arch": "ConvColumn",
            "state_dict": OrderedDict(weights),
            "best_prec1": torch.tensor(50.0),
        }

    change_checkpoint(publish)()
    status, stdout, stderr = command(*RESUME)
    assert (status, stderr) == (0, "")
    assert "has no class names" in stdout and "no optimizer state" in stdout


# --- in a process of its own -----------------------------------------------------------------


@pytest.mark.slow
def test_the_command_itself_gives_the_same_message_and_status(project, sound_project):
    """Two mistakes, each in a project of its own, by the real command with two workers."""
    mistakes = {
        "frame": (
            lambda: FRAMES["truncated"][0](own_clip(3)),
            ["--overwrite"],
            [f"error: data/clips/3/{FRAME}: damaged JPEG", "extract the frame again"],
        ),
        "trap": (FILES["trap"].plant, PREDICT, [f"error: {CHECKPOINT}", "could run code"]),
    }
    processes = {}
    for name, (plant, arguments, _) in mistakes.items():
        folder = copy_project(sound_project, Path.cwd().with_name(name))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            plant()
        processes[name] = subprocess.Popen(
            [
                sys.executable,
                train.__file__,
                "--config",
                "config.json",
                "-g",
                "cpu",
                "--set",
                "num_workers=2",
                *arguments,
            ],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    for name, process in processes.items():
        stdout, stderr = process.communicate(timeout=120)
        check_message((process.returncode, stdout, stderr), mistakes[name][2])
        assert not Path.cwd().with_name(name).joinpath("trapped").exists()

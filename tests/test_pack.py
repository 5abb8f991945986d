"""The command pack.py: its sources, what it refuses, and that it writes the whole file or none."""

import fcntl
import gzip
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from conftest import draw_frames, write_clip
from movies import write_video
from PIL import Image

import pack
from clips.frames import decode_frame
from clips.packs import INDEX_NAME, Pack, PackedFrames
from clips.videos import VideoFile

PROJECT = Path(pack.__file__).parent
MAX_PIXELS = 10**6


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`clips` in the current folder, with some files that are no frames."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in (1, 2, 10):
        write_clip(tmp_path / "clips" / str(number), draw_frames("Left", 12, rng))
    (tmp_path / "clips/2/00003.jpg").write_bytes(b"\xff\xd8\xffdamaged")
    (tmp_path / "clips/2/.hidden.jpg").write_bytes(b"hidden")
    (tmp_path / "clips/10/notes.txt").write_text("no frame")
    return tmp_path / "clips"


def run(*arguments) -> int:
    return pack.main(list(map(str, arguments)))


def error_of(capsys, *arguments) -> str:
    """The message of a command that fails and leaves nothing behind."""
    before = sorted(Path().iterdir())
    assert run(*arguments) == 2
    assert sorted(Path().iterdir()) == before
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def contents(path) -> dict[str, list[tuple[str, bytes]]]:
    """The frames of each clip of a pack: names and bytes."""
    found, made = {}, Pack(path)
    for clip_id, length in zip(made.ids(), made.lengths(), strict=True):
        found[clip_id] = []
        if length:
            frames = PackedFrames(made.clip(clip_id), MAX_PIXELS)
            found[clip_id] = [
                (frames.names[position], data) for position, data in frames.read(range(length))
            ]
    return found


def frames_below(folder) -> dict[str, list[tuple[str, bytes]]]:
    return {
        clip.name: [(frame.name, frame.read_bytes()) for frame in sorted(clip.glob("0*.jpg"))]
        for clip in folder.iterdir()
    }


def write_tar(path, folder, mode="w:gz", root="20bn-set"):
    """The files in an order of their own, as a file system lists them."""
    with tarfile.open(path, mode) as archive:
        archive.add(folder, root, recursive=False)
        for clip in sorted(folder.iterdir()):
            archive.add(clip, f"{root}/{clip.name}", recursive=False)
            for frame in sorted(clip.iterdir(), reverse=True):
                archive.add(frame, f"{root}/{clip.name}/{frame.name}")
    return path


def split(path, size, names) -> list[Path]:
    data, parts = path.read_bytes(), []
    for number, name in zip(range(0, len(data), size), names, strict=False):
        parts.append(path.with_name(name))
        parts[-1].write_bytes(data[number : number + size])
    assert sum(part.stat().st_size for part in parts) == len(data)
    return parts


# --- sources -----------------------------------------------------------------------------------


def test_a_folder(folder, capsys):
    assert run("mine.zip", "clips") == 0
    assert contents("mine.zip") == frames_below(folder)
    output = capsys.readouterr().out
    assert "mine.zip: 3 clips, 36 frames, 0.1 MB; packed in" in output
    assert "left out: 1 hidden files: .hidden.jpg\n" in output
    assert "left out: 1 files of other kinds: notes.txt\n" in output
    assert run("mine.zip", "--list") == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["    12 1", "    12 2", "    12 10"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_file(folder, mode, capsys):
    write_tar(Path("set.tar"), folder, mode)
    assert run("mine.zip", "set.tar") == 0
    assert contents("mine.zip") == frames_below(folder)
    assert "left out: 1 hidden files: 20bn-set/2/.hidden.jpg\n" in capsys.readouterr().out
    assert zipfile.ZipFile("mine.zip").namelist()[0].startswith("20bn-set/")


@pytest.mark.parametrize(
    "names",
    [
        [f"set-{number:02d}" for number in range(99)],
        [f"set.tgz.{number}" for number in range(1, 99)],
        [f"x{a}{b}" for a in "ab" for b in "abcdefghijklmnopqrstuvwxyz"],
    ],
)
def test_the_parts_of_an_archive(folder, names, capsys):
    whole = write_tar(Path("set.tgz"), folder)
    parts = split(whole, whole.stat().st_size // 28, names)
    random.Random(0).shuffle(parts)
    assert run("mine.zip", *parts) == 0
    assert contents("mine.zip") == frames_below(folder)
    missing = sorted(parts, key=lambda part: len(str(part)))[3]
    parts.remove(missing)
    message = error_of(capsys, "other.zip", *parts)
    assert "the part after this one is missing" in message or "not a whole" in message


def test_a_zip_file_and_a_pack(folder, capsys):
    with zipfile.ZipFile("set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.*"), reverse=True):
            archive.write(path, path.relative_to(folder.parent))
        archive.writestr("__MACOSX/clips/1/00001.jpg", b"")
    assert run("mine.zip", "set.zip") == 0
    assert contents("mine.zip") == frames_below(folder)
    assert run("again.zip", "mine.zip") == 0
    assert Path("again.zip").read_bytes() == Path("mine.zip").read_bytes()
    assert INDEX_NAME in capsys.readouterr().out


def test_videos_become_frames(folder, capsys):
    Path("videos").mkdir()
    rng = np.random.default_rng(0)
    greys = np.kron(rng.integers(0, 255, (40, 6, 8, 1)), np.ones((1, 8, 8, 3)))
    path = write_video(Path("videos/wave.mp4"), greys.astype(np.uint8), rate=24)
    Path("videos/bad.avi").write_bytes(b"no video")
    shutil.copytree("clips/1", "videos/frames")
    assert "give --frame_rate" in error_of(capsys, "mine.zip", "videos")
    assert run("mine.zip", "videos", "--frame_rate", 12) == 0
    printed = capsys.readouterr().out
    assert "videos at 12 frames per second" in printed and "videos/bad.avi" in printed
    found, expected = contents("mine.zip"), VideoFile(path, 12, MAX_PIXELS)
    assert found["frames"] == frames_below(folder)["1"] and found["bad.avi"] == []
    assert len(found["wave.mp4"]) == len(expected) == 20
    for (_, data), frame in zip(found["wave.mp4"], expected.frames_at(range(20)), strict=True):
        assert np.abs(decode_frame(data, MAX_PIXELS).astype(int) - frame).mean() < 3


def test_tall_frames_are_shrunk_and_others_copied(folder, capsys):
    write_clip(folder / "3", draw_frames("Left", 3, np.random.default_rng(0), 48, 64), ".jpg")
    (folder / "3/00001.jpg").rename(folder / "3/00001.png")  # not what its name says
    write_tar(Path("set.tgz"), folder)
    for source in ("clips", "set.tgz"):
        assert run("mine.zip", source, "--height", 24, "--quality", 90) == 0
        found, frames = contents("mine.zip"), frames_below(folder)
        assert all(found[name] == frames[name] for name in ("1", "2", "10"))
        assert [name for name, _ in found["3"]] == ["00001.jpg", "00002.jpg", "00003.jpg"]
        for _, data in found["3"]:
            assert simplejpeg.decode_jpeg_header(data)[:2] == (24, 32)
        about = Pack("mine.zip").about
        assert about["height"] == 24 and about["quality"] == 90
        printed = capsys.readouterr().out
        assert "taller ones shrunk to 24 pixels" in printed
        assert "1 cannot be decoded" in printed and "2/00003.jpg: damaged JPEG" in printed
    assert run("again.zip", "mine.zip") == 0  # which is still known
    assert Pack("again.zip").about["height"] == 24


def test_packing_again_at_another_height(folder, capsys):
    """Frames are never taller than what the pack says, which is what training checks."""
    assert run("small.zip", "clips", "--height", "40", "--quality", "80") == 0
    assert run("same.zip", "small.zip", "--height", "90") == 0
    assert run("smaller.zip", "small.zip", "--height", "30") == 0
    told = [
        (Pack(name).about["height"], Pack(name).about["quality"])
        for name in ("same.zip", "smaller.zip")
    ]
    assert told == [(40, 80), (30, 95)]


def test_a_link_to_a_pack_stays_a_link(folder):
    Path("disk").mkdir()
    Path("mine.zip").symlink_to("disk/mine.zip")
    assert run("mine.zip", "clips") == 0
    assert Path("mine.zip").is_symlink() and contents("disk/mine.zip") == frames_below(folder)


def test_links_to_nowhere_are_no_obstacle(folder):
    (folder / "1/.#lock").symlink_to("nowhere")
    assert run("mine.zip", "clips") == 0


def test_frames_that_are_too_large_are_packed_as_they_are(folder, capsys):
    assert run("mine.zip", "clips/1", "--height", "20", "--max_frame_pixels", "500") == 0
    assert "12 cannot be decoded" in capsys.readouterr().out
    assert run("mine.zip", "clips/1", "--height", "20") == 0
    assert "cannot be decoded" not in capsys.readouterr().out


def test_folders_without_frames_are_kept(folder, capsys):
    (folder / "empty").mkdir()
    write_tar(Path("set.tgz"), folder)
    for source in ("clips", "set.tgz"):
        assert run("mine.zip", source) == 0
        assert contents("mine.zip")["empty"] == []
    assert "4 clips, 36 frames" in capsys.readouterr().out


# --- damaged archives --------------------------------------------------------------------------


def test_a_flipped_bit_in_a_gzip_stream_is_found(folder, capsys):
    """Also where the tar file has nothing any more, which tarfile does not read."""
    data = write_tar(Path("set.tgz"), folder).read_bytes()
    draw = random.Random(0)
    for place in [*draw.sample(range(80, 8 * len(data)), 12), 8 * len(data) - 40]:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        Path("bad.tgz").write_bytes(changed)
        assert "bad.tgz: damaged, cut off, or not a whole" in error_of(capsys, "a.zip", "bad.tgz")


def test_several_gzip_members_are_one_file(folder):
    data = gzip.decompress(write_tar(Path("set.tgz"), folder).read_bytes())
    half = len(data) // 2 + 77
    Path("two.tgz").write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    assert run("mine.zip", "two.tgz") == 0
    assert contents("mine.zip") == frames_below(folder)


def test_archives_that_are_not_whole_are_refused(folder, capsys):
    data = write_tar(Path("set.tar"), folder, "w").read_bytes()
    with tarfile.open("set.tar") as archive:
        ends = [info.offset for info in archive.getmembers()]
    for cut in (*ends[1::7], ends[5] + 100, ends[5] + 600):  # also between two members
        Path("cut.tar").write_bytes(data[:cut])
        assert "cut.tar: damaged, cut off" in error_of(capsys, "mine.zip", "cut.tar")
    Path("two.tar").write_bytes(data + data)
    assert "second archive" in error_of(capsys, "mine.zip", "two.tar")
    damaged = bytearray(data)
    damaged[ends[20] + 3] ^= 1  # a header: tarfile would take it for the end
    Path("bad.tar").write_bytes(damaged)
    assert "damage" in error_of(capsys, "mine.zip", "bad.tar")
    Path("text.tar").write_text("no archive" * 99)
    assert "text.tar" in error_of(capsys, "mine.zip", "text.tar")
    with zipfile.ZipFile("set.zip", "w") as archive:
        archive.writestr("1/1.jpg", b"frame" * 9)
    changed = bytearray(Path("set.zip").read_bytes())
    changed[50] ^= 1
    Path("set.zip").write_bytes(changed)
    assert "set.zip: damaged" in error_of(capsys, "mine.zip", "set.zip")


def test_a_zip_file_that_lacks_clips_is_refused(folder, capsys):
    """zipfile reads what the directory has left, and only the last of two archives."""
    for name in ("1", "2"):
        with zipfile.ZipFile(f"part{name}", "w") as archive:
            archive.writestr(f"{name}/1.jpg", b"frame" * 9)
            archive.writestr(f"{name}/2.jpg", b"frame" * 9)
    first, second = Path("part1").read_bytes(), Path("part2").read_bytes()
    assert "part1: a ZIP file in parts" in error_of(capsys, "a.zip", "part1", "part2")
    Path("both").write_bytes(first + second)
    assert "something is before its first file" in error_of(capsys, "a.zip", "both")
    entry = first.rfind(b"PK\1\2", 0, first.rfind(b"PK\1\2"))
    changed = bytearray(first)
    changed[entry + 32] = len(first) - first.rfind(b"PK\1\2") - 22  # the next is its comment
    Path("lost").write_bytes(changed)
    assert "1 of 2 files are in its directory" in error_of(capsys, "a.zip", "lost")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_in_a_compressed_zip_file_is_named(folder, capsys, method):
    with zipfile.ZipFile("set.zip", "w", method) as archive:
        archive.writestr("1/1.jpg", Path("clips/1/00001.jpg").read_bytes())
    data = Path("set.zip").read_bytes()
    for place in range(60, len(data) - 200, 97):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        Path("set.zip").write_bytes(changed)
        assert "set.zip: damaged" in error_of(capsys, "mine.zip", "set.zip")


def write_members(path, *members):
    """A tar file of (name, content or, for a link, None)."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "1.jpg"
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def animated_webp() -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pictures[0].save(buffer, "WEBP", save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    "members, problem",
    [
        ([("a/1.jpg", b"1"), ("b/1.jpg", b"2"), ("a/2.jpg", b"3")], "a: the clip occurs twice"),
        ([("a/1.jpg", b"1"), ("a/1.jpg", b"2")], "a: two frames have the same name"),
        ([("a/1.jpg", b"1"), ("a/2.jpg", None)], "a/2.jpg: is a link; unpack the archive"),
        ([("1.jpg", b"1")], "1.jpg: is in no folder"),
        ([("../a/1.jpg", b"1")], "points outside the archive"),
        ([("a/1.mp4", b"1")], "a/1.mp4: is a video; unpack the archive"),
        ([("a/1.webp", animated_webp())], "a/1.webp: is animated; unpack the archive"),
        ([("a/1.gif", b"1")], "a/1.gif: is a video; unpack the archive"),
        ([("a/readme.txt", b"1")], "no frames"),
        ([("a/1.jpg", b"1"), ("a/b/1.jpg", b"2")], "a: has both frames and other clips"),
        ([("a/\udcff.jpg", b"1")], "is not valid UTF-8"),
    ],
)
def test_what_an_archive_must_not_have(tmp_path, monkeypatch, capsys, members, problem):
    monkeypatch.chdir(tmp_path)
    write_members("set.tar", *members)
    assert problem in error_of(capsys, "mine.zip", "set.tar")


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["mine.zip", "none"], "none: no such file or folder"),
        (["clips", "clips"], "clips: give the pack to write first"),
        (["none/mine.zip", "clips"], "none/mine.zip: there is no folder none"),
        (["mine.zip", "clips", "clips"], "clips: a pack is made of one folder"),
        (["mine.zip", "mixed"], "mixed: has both frames and other clips"),
        (["mine.zip", "clips", "--frame_rate", "12"], "--frame_rate: there are no videos in clips"),
        (["mine.zip", "clips", "--height", "0"], "--height: found 0; expected 1"),
        (["mine.zip", "clips", "--quality", "101"], "--quality: found 101; expected 1 to 100"),
        (["mine.zip", "a.tgz", "b.tgz"], "a.tgz, b.tgz: not the numbered parts of one archive"),
        (
            ["precious.zip", "clips"],
            "precious.zip: a pack that is cut off, or a ZIP file but not a pack",
        ),
        (["none.zip", "--check"], "none.zip: cannot be read (No such file"),
    ],
)
def test_a_mistake_is_named(folder, capsys, arguments, problem):
    shutil.copytree("clips/1", "mixed")
    (Path("mixed") / "inner").mkdir()
    for name in ("a.tgz", "b.tgz"):
        Path(name).touch()
    with zipfile.ZipFile("precious.zip", "w") as archive:
        archive.writestr("1/1.jpg", b"not to be replaced")
    precious = Path("precious.zip").read_bytes()
    assert f"error: {problem}" in error_of(capsys, *arguments)
    assert Path("precious.zip").read_bytes() == precious


def test_check_names_damaged_frames(folder, capsys):
    assert run("mine.zip", "clips") == 0 and run("mine.zip", "--check") == 0
    assert "none damaged" in capsys.readouterr().out
    data = bytearray(Path("mine.zip").read_bytes())
    frames = PackedFrames(Pack("mine.zip").clip("10"), MAX_PIXELS)
    for position in (3, 7):
        data[frames.offsets[position] + 9] ^= 4
    Path("mine.zip").write_bytes(data)
    assert run("mine.zip", "--check") == 2
    output = capsys.readouterr()
    assert "2 damaged" in output.out
    assert [line.partition(": damaged")[0] for line in output.err.splitlines() if line] == [
        "error: mine.zip/10/00004.jpg",
        "error: mine.zip/10/00008.jpg",
    ]


# --- the whole file or none --------------------------------------------------------------------


def test_one_process_writes_a_pack(folder, capsys):
    with open("mine.zip.part", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is writing this pack" in error_of(capsys, "mine.zip", "clips")
    assert run("mine.zip", "clips") == 0  # what a killed process left is in nobody's way
    assert not Path("mine.zip.part").exists()


def test_room_on_the_disk_is_checked_first(folder, capsys, monkeypatch):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    message = error_of(capsys, "mine.zip", "clips")
    assert "mine.zip: needs 0.0 GB, but" in message and "make room" in message


LIMITED = """
import resource, signal, sys, pack
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(pack.main(sys.argv[2:]))
"""


def test_a_disk_that_fills_up_leaves_the_old_pack(folder):
    assert run("mine.zip", "clips/1") == 0
    old = Path("mine.zip").read_bytes()
    assert run("whole.zip", "clips") == 0
    for limit in (1, os.path.getsize("whole.zip") - 1):
        ended = subprocess.run(
            [sys.executable, "-c", LIMITED, str(limit), "mine.zip", "clips"],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
        )
        assert ended.returncode == 2 and "mine.zip: cannot be read or written" in ended.stderr
        assert Path("mine.zip").read_bytes() == old and not list(Path().glob("*.part"))


SLOW = """
import sys, pack
from clips import packing
add_clip = packing.PackWriter.add_clip
def report(writer, *rest):
    add_clip(writer, *rest)
    writer.file.flush()
    print(len(writer.clips), flush=True)
packing.PackWriter.add_clip = report
pack.stopping.install()
sys.exit(pack.main(sys.argv[1:]))
"""


@pytest.fixture
def started(folder):
    """A function that starts `pack.py mine.zip many`, which tells after each clip."""
    for number in range(300):
        Path(f"many/{number}").mkdir(parents=True)
        shutil.copy("clips/1/00001.jpg", f"many/{number}")

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", SLOW, "mine.zip", "many"],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
        )

    return start


def stop_at(process, num_clips, number) -> int:
    for line in process.stdout:
        if line == f"{num_clips}\n":
            process.send_signal(number)
            break
    process.stdout.close()  # it fills up no pipe, and goes no further
    return process.wait(60)


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_leaves_the_old_pack(started, number, status):
    assert run("mine.zip", "clips/1") == 0
    old = Path("mine.zip").read_bytes()
    assert stop_at(started(), 20, number) == status
    assert Path("mine.zip").read_bytes() == old
    assert Path("mine.zip.part").exists() == (number == signal.SIGKILL)


@pytest.mark.slow
def test_30_kills_leave_the_old_pack_or_the_new_one(started):
    assert run("mine.zip", "clips/1") == 0 and run("new.zip", "many") == 0
    whole = {Path(name).read_bytes() for name in ("mine.zip", "new.zip")}
    draw = random.Random(0)
    for kill in range(30):
        stop_at(started(), 300 if kill % 5 == 0 else draw.randrange(1, 300), signal.SIGKILL)
        assert Path("mine.zip").read_bytes() in whole
    assert run("mine.zip", "many") == 0
    assert Path("mine.zip").read_bytes() == Path("new.zip").read_bytes()

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_frames, write_clip
from PIL import Image, ImageOps

from clips import frames
from clips.frames import FrameError, list_frames, natural_key, read_frame

MAX_PIXELS = 100_000


@pytest.fixture
def picture():
    """A smooth uint8 [40, 60, 3] picture, so that JPEG keeps it nearly as it is."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=2).astype(np.uint8)


def test_natural_order_in_any_padding_and_case():
    names = ["10.jpg", "9.JPG", "00002.jpeg", "1.Png", "frame11.jpg", "frame2.jpg"]
    assert sorted(names, key=natural_key) == [
        "1.Png", "00002.jpeg", "9.JPG", "10.jpg", "frame2.jpg", "frame11.jpg"
    ]  # fmt: skip


def test_list_frames_takes_each_frame_once_and_nothing_else(tmp_path):
    write_clip(tmp_path / "clip", draw_frames("Left", 12, np.random.default_rng(0)), ".JPG")
    (tmp_path / "clip" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "clip" / "notes.txt").write_text("")
    assert list_frames(tmp_path / "clip") == [f"{number:05d}.JPG" for number in range(1, 13)]


@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"subsampling": 0}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("L", "PNG", {}),
        ("RGB", "BMP", {}),
        ("RGB", "WEBP", {}),
    ],
)
def test_every_kind_of_picture_loads(tmp_path, picture, mode, file_format, options):
    image = Image.fromarray(picture).convert(mode)
    quality = {"quality": 95} if file_format in ("JPEG", "WEBP") else {}
    image.save(tmp_path / "frame", file_format, **quality, **options)
    frame = read_frame(tmp_path / "frame", MAX_PIXELS)
    assert frame.shape == (40, 60, 3) and frame.dtype == np.uint8
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(frame - expected).mean() < 4


def test_grey_pictures_of_16_bits_keep_their_shades(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "depth.png")
    frame = read_frame(tmp_path / "depth.png", MAX_PIXELS)
    assert np.array_equal(frame, np.repeat((ramp >> 8)[..., None], 3, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / "frame", "JPEG", quality=95, exif=exif)
    frame = read_frame(tmp_path / "frame", MAX_PIXELS)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "frame")))
    assert frame.shape == upright.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    assert np.abs(frame - upright.astype(int)).max() < 4


def jpeg_bytes(picture, mode="RGB", exif=None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, "JPEG", quality=90, exif=exif or b"")
    return buffer.getvalue()


def damaged_inside(data) -> bytes:
    """`data` with zeros in its entropy-coded part and its proper end."""
    return data[: len(data) // 2] + bytes(len(data) // 4) + data[-len(data) // 4 :]


@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:-2],
     damaged_inside, lambda data: b"GIF89a" + data, lambda data: b"no picture", ],
    ids=["empty", "half", "no end", "damaged inside", "other format", "text"],
)  # fmt: skip
def test_damaged_frames_are_refused_with_their_path(tmp_path, picture, spoil):
    path = tmp_path / "00001.jpg"
    path.write_bytes(spoil(jpeg_bytes(picture)))
    with pytest.raises(FrameError, match=r"00001\.jpg: .*extract the frame again"):
        read_frame(path, MAX_PIXELS)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_damage_is_found_with_exif_and_in_every_colour_space(tmp_path, picture, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "00001.jpg"
    path.write_bytes(damaged_inside(jpeg_bytes(picture, mode, exif)))
    with pytest.raises(FrameError, match="damaged JPEG"):
        read_frame(path, MAX_PIXELS)


def test_a_named_pipe_is_no_frame_and_no_halt(tmp_path):
    os.mkfifo(tmp_path / "00001.jpg")
    with pytest.raises(FrameError, match="file is empty"):
        read_frame(tmp_path / "00001.jpg", MAX_PIXELS)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_pixel_cap_is_checked_before_decoding(tmp_path, file_format):
    Image.new("L", (4000, 3000)).save(tmp_path / "frame", file_format)
    with pytest.raises(FrameError, match=r"4000 x 3000 pixels .* max_frame_pixels"):
        read_frame(tmp_path / "frame", MAX_PIXELS)


ROOMS = ("clips", "doctor", "explaining", "networks", "reporting", "scoring", "system", "training")
IMPORT_ALL = """
import cv2, importlib, pathlib, sys
from PIL import Image
before = cv2.getNumThreads(), Image.MAX_IMAGE_PIXELS
for room in sys.argv[1:]:
    for path in pathlib.Path(room).glob("*.py"):
        importlib.import_module(f"{room}.{path.stem}".removesuffix(".__init__"))
import predict, train
from clips.frames import prepare_decoders
assert (cv2.getNumThreads(), Image.MAX_IMAGE_PIXELS) == before, "changed by an import"
prepare_decoders()
assert (cv2.getNumThreads(), Image.MAX_IMAGE_PIXELS) == (1, None)
"""


def test_importing_the_project_sets_up_no_decoder():
    project = Path(frames.__file__).parent.parent
    subprocess.run([sys.executable, "-c", IMPORT_ALL, *ROOMS], cwd=project, check=True)

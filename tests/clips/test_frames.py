import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
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
        "1.Png",
        "00002.jpeg",
        "9.JPG",
        "10.jpg",
        "frame2.jpg",
        "frame11.jpg",
    ]


@pytest.mark.parametrize(
    "names",
    [
        [
            "0.png",
            "0.25.png",
            "0.5.png",
            "0.75.png",
            "1.png",
            "1.25.png",
            "9.5.png",
            "10.png",
            "10.5.png",
        ],
        ["0.0.jpg", "0.5.jpg", "0.75.jpg", "1.0.jpg", "1.125.jpg", "10.0.jpg"],
        ["0.png", "0.50.png", "1.png", "1.50.png", "10.00.png"],
        ["v1.5_t0.5s.png", "v1.5_t0.75s.png", "v1.5_t1s.png", "v1.5_t10.25s.png"],
        ["frame 0,125.png", "frame 0,5.png", "frame 1.png"],
        ["a-00-01-2.25.png", "a-00-01-2.5.png", "a-00-02-0.125.png"],
        # no decimals, but counters, versions and dates
        ["1.2.3.png", "1.2.10.png", "1.10.1.png", "2.0.0.png"],
        ["v1.5_frame2.png", "v1.5_frame10.png", "v1.10_frame1.png"],
        ["2024.05.01.png", "2024.05.2.png", "2024.10.01.png"],
        ["clip.1.png", "clip.2.png", "clip.10.png"],
        ["shot1.1.png", "shot1.2.png", "shot1.9.png", "shot1.10.png", "shot1.11.png"],
        ["a.png", "b1.5.png", "b1.25.png"],
    ],
)
def test_frames_named_by_decimals_are_in_the_order_of_the_numbers(tmp_path, names):
    for name in reversed(names):
        (tmp_path / name).touch()
    expected = sorted(names, key=natural_key) if names[0] == "a.png" else names
    assert list_frames(tmp_path) == expected


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
        ("RGB", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("L", "TIFF", {}),
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


def test_tiff_files_are_frames(tmp_path, picture):
    for name in ("10.TIF", "9.tiff", "8.gif"):
        Image.fromarray(picture).save(tmp_path / name)
    assert list_frames(tmp_path) == ["9.tiff", "10.TIF"]


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif"])
def test_several_pictures_in_one_file_are_no_frame(tmp_path, picture, name):
    pictures = [Image.fromarray(picture // part) for part in (1, 2, 3)]
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:])
    with pytest.raises(FrameError, match=r"a\.\w+: (an animated picture|3 pictures in one file)"):
        read_frame(tmp_path / name, MAX_PIXELS)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_known_range_are_no_frame(tmp_path, dtype):
    Image.fromarray(np.ones((8, 8), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(FrameError, match=r"32-bit .* save it with 8 or 16 bits"):
        read_frame(tmp_path / "a.tif", MAX_PIXELS)


def segment(marker, content) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize(
    "others",
    [
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<x/>" * 2000),
        segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000))
        + segment(0xED, b"Photoshop 3.0\0" * 300),
        segment(0xFE, b"Exif\0\0 in a comment"),
        b"\0\0\x17",
        b"\xff\xff",
    ],
    ids=["XMP", "ICC and more", "comment", "extra bytes", "fill"],
)
def test_exif_rotation_is_found_behind_anything(picture, others):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg_bytes(picture, exif=exif)
    data = data[:2] + others + data[2:]
    expected = frames.decode_frame(jpeg_bytes(picture), MAX_PIXELS)
    assert np.array_equal(frames.decode_frame(data, MAX_PIXELS), np.rot90(expected, -1))


def test_exif_in_another_segment_or_in_the_scan_turns_nothing(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes()
    plain = jpeg_bytes(picture)
    expected = frames.decode_frame(plain, MAX_PIXELS)
    for data in (plain[:2] + segment(0xED, content) + plain[2:], plain + segment(0xE1, content)):
        assert np.array_equal(frames.decode_frame(data, MAX_PIXELS), expected)


# --- headers with oddities -----------------------------------------------------------------------

MANY = {"optimize": True, "restart_marker_rows": 1}  # kinds of segments, in one file


def place_of(data, marker, skipped=2) -> int:
    return data.index(bytes((0xFF, marker))) + skipped


def patched(data, place, content) -> bytes:
    return data[:place] + content + data[place + len(content) :]


def scan_parameters(data, content):
    start = place_of(data, 0xDA)
    return patched(data, start + data[start + 1] - 3, content)


def inserted(marker, content):
    def insert(data):
        place = place_of(data, marker, 0)
        return data[:place] + content + data[place:]

    return insert


ODDITIES = {
    "no selection": lambda data: scan_parameters(data, b"\0\0\0"),
    "bits": lambda data: scan_parameters(data, b"\0\x3f\x11"),
    "any selection": lambda data: scan_parameters(data, b"\x3f\x01\x20"),
    "JFIF 7.1": lambda data: patched(data, place_of(data, 0xE0) + 7, b"\7"),
    "Adobe 7": lambda data: data[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\7") + data[20:],
    "bytes first": lambda data: data[:2] + b"\0\x12\x34" + data[2:],
    "bytes before tables": inserted(0xDB, b"\x12\x34\x56"),
    "zeros before the frame": inserted(0xC0, bytes(40)),
    "bytes before codes": inserted(0xC4, b"\x12"),
    "bytes before the scan": inserted(0xDA, b"\x21\x43\x65"),
    "length of a comment": inserted(0xDB, b"\xff\xfe\0\x04longer than it says"),
    "second start": inserted(0xDB, b"\xff\xd8"),
}


@pytest.mark.parametrize("options", [{}, MANY, {"subsampling": 0}], ids=["plain", "many", "444"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", ODDITIES)
def test_oddities_in_a_header_leave_the_pixels_as_they_are(picture, mode, options, name):
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    odd = ODDITIES[name](data)
    if (name, mode) != ("Adobe 7", "L"):  # which it says nothing about
        with pytest.raises(ValueError):  # or nothing is tested
            simplejpeg.decode_jpeg(odd, "RGB", strict=True)
    assert np.array_equal(
        frames.decode_frame(odd, MAX_PIXELS), frames.decode_frame(data, MAX_PIXELS)
    )


def test_extra_bytes_in_a_progressive_header_are_passed_over(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    assert np.array_equal(
        frames.decode_frame(inserted(0xC2, b"\0\0\0")(data), MAX_PIXELS),
        frames.decode_frame(data, MAX_PIXELS),
    )


@pytest.mark.parametrize("name", ["no selection", "bytes before the scan", "JFIF 7.1"])
def test_damage_behind_an_odd_header_is_an_error(picture, name):
    odd = ODDITIES[name](jpeg_bytes(picture))
    for data in (damaged_inside(odd), odd[:-2], odd[: len(odd) * 3 // 4]):
        with pytest.raises(FrameError, match="damaged JPEG"):
            frames.decode_frame(data, MAX_PIXELS)


@pytest.mark.parametrize("options", [{}, MANY, {"progressive": True}], ids=["plain", "many", "pro"])
def test_damage_is_found_as_by_a_decoder_that_minds_each_warning(picture, options):
    rng = np.random.default_rng(0)
    noisy = np.clip(picture + rng.integers(-9, 9, picture.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", **options)
    whole, num_refused = buffer.getvalue(), 0
    expected = frames.decode_frame(whole, MAX_PIXELS)
    start = place_of(whole, 0xDA)
    for place in rng.integers(2, len(whole) - 2, 1500).tolist():
        if start + 2 < place + 8 and place < start + 12:
            continue  # the parameters themselves, with what follows them
        data = patched(whole, place, rng.bytes(8))[: len(whole)]
        try:
            strict = simplejpeg.decode_jpeg(data, "RGB", strict=True)
        except ValueError:
            strict, num_refused = None, num_refused + 1
        try:
            found = frames.decode_frame(data, 10**9)
        except FrameError:
            assert strict is None or max(strict.shape) > 100 * min(strict.shape[:2])
            continue
        assert np.array_equal(found, strict if strict is not None else expected)
    assert num_refused > 300


def jpeg_bytes(picture, mode="RGB", exif=None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, "JPEG", quality=90, exif=exif or b"")
    return buffer.getvalue()


def damaged_inside(data) -> bytes:
    """`data` with zeros in its entropy-coded part and its proper end."""
    return data[: len(data) // 2] + bytes(len(data) // 4) + data[-len(data) // 4 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-2],
        damaged_inside,
        lambda data: b"GIF89a" + data,
        lambda data: b"no picture",
    ],
    ids=["empty", "half", "no end", "damaged inside", "other format", "text"],
)
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


PACKAGES = (
    "clips",
    "doctor",
    "explaining",
    "networks",
    "reporting",
    "scoring",
    "system",
    "training",
)
IMPORT_ALL = """
import cv2, importlib, pathlib, sys
from PIL import Image
before = cv2.getNumThreads(), Image.MAX_IMAGE_PIXELS
for package in sys.argv[1:]:
    for path in pathlib.Path(package).glob("*.py"):
        importlib.import_module(f"{package}.{path.stem}".removesuffix(".__init__"))
import predict, train
from clips.frames import prepare_decoders
assert (cv2.getNumThreads(), Image.MAX_IMAGE_PIXELS) == before, "changed by an import"
prepare_decoders()
assert (cv2.getNumThreads(), Image.MAX_IMAGE_PIXELS) == (1, None)
"""


def test_importing_the_project_sets_up_no_decoder():
    project = Path(frames.__file__).parent.parent
    subprocess.run([sys.executable, "-c", IMPORT_ALL, *PACKAGES], cwd=project, check=True)

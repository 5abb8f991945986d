"""Which files are films, animated pictures as clips, and what is passed over beside them."""

import itertools
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import draw_frames, make_config
from movies import write_video
from PIL import Image

from clips.films import (
    ANIMATED_SUFFIXES,
    VIDEO_SUFFIXES,
    AnimatedPicture,
    is_video,
    num_pictures,
    sort_files,
)
from clips.folders import clip_at, open_clip
from clips.frames import FrameError
from clips.search import find_clips, no_films
from clips.videos import VideoFile

# How a file with such a suffix is made: the container, and a codec that it takes.
CONTAINERS = {
    "mp4": ("libx264", (".mp4", ".m4v", ".mp4v", ".insv", ".lrv", ".f4v", ".mj2")),
    "mov": ("libx264", (".mov", ".qt")),
    "3gp": ("h263", (".3gp", ".3gpp")),
    "3g2": ("libx264", (".3g2",)),
    "flv": ("flv1", (".flv",)),
    "avi": ("mpeg4", (".avi", ".divx", ".xvid")),
    "matroska": ("libx264", (".mkv", ".mk3d")),
    "webm": ("libvpx", (".webm",)),
    "ogg": ("libvpx", (".ogv", ".ogm", ".ogx")),
    "nut": ("mpeg4", (".nut",)),
    "mxf": ("mpeg2video", (".mxf",)),
    "asf": ("wmv2", (".wmv", ".asf", ".dvr-ms")),
    "wtv": ("mpeg2video", (".wtv",)),
    "rm": ("rv10", (".rm", ".rmvb")),
    "dv": ("dvvideo", (".dv", ".dif")),
    "ivf": ("libvpx", (".ivf",)),
    "yuv4mpegpipe": ("rawvideo", (".y4m",)),
    "dvd": ("mpeg2video", (".mpg", ".mpeg", ".mpe", ".m2p", ".vob", ".evo", ".mod", ".tod")),
    "mpeg1video": ("mpeg1video", (".m1v",)),
    "mpeg2video": ("mpeg2video", (".m2v", ".mpv", ".mp2v")),
    "mpegts": ("mpeg2video", (".ts", ".mts", ".m2ts", ".m2t", ".tp", ".trp")),
    "mjpeg": ("mjpeg", (".mjpg", ".mjpeg")),
    "h264": ("libx264", (".h264", ".264", ".avc")),
    "hevc": ("libx265", (".h265", ".265", ".hevc")),
}


def write_film(path, container, codec, num_frames=6):
    height, width = (576, 720) if codec == "dvvideo" else (144, 176)
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for number in range(num_frames):
            picture = np.full((height, width, 3), 30 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


@pytest.mark.parametrize("container", CONTAINERS)
def test_each_listed_suffix_can_be_opened(tmp_path, container):
    codec, suffixes = CONTAINERS[container]
    for suffix in suffixes:
        path = tmp_path / f"CLIP{suffix.upper()}"
        write_film(path, container, codec)
        assert is_video(path)
        with av.open(str(path)) as file:
            assert len(list(file.decode(video=0))) >= 5, suffix
    assert list(map(Path, find_clips(tmp_path)[0])) == sorted(tmp_path.iterdir())


def test_each_suffix_on_the_list_is_tried():
    tried = {suffix for _, suffixes in CONTAINERS.values() for suffix in suffixes}
    assert tried == set(VIDEO_SUFFIXES)


def test_typescript_is_no_film_and_a_damaged_stream_is_one(tmp_path):
    write_film(tmp_path / "film.ts", "mpegts", "mpeg2video")
    (tmp_path / "index.ts").write_text("export const name = 'é';\n" * 400, encoding="utf-8")
    (tmp_path / "module.mts").write_text("export {};\n")
    (tmp_path / "empty.ts").write_bytes(b"")
    (tmp_path / "noise.mts").write_bytes(np.random.default_rng(0).bytes(5000))
    others = []
    clips, problems = find_clips(tmp_path, others)
    assert [Path(clip).name for clip in clips] == ["empty.ts", "film.ts", "noise.mts"]
    assert [path.name for path in others] == ["index.ts", "module.mts"] and not problems
    for name in ("empty.ts", "noise.mts"):
        with pytest.raises(FrameError, match=name):
            open_clip(tmp_path / name, make_config())


# --- animated pictures ---------------------------------------------------------------------------

FORMATS = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG"}


def animate(path, frames, duration=80, **options):
    """frames: uint8 RGB [T, H, W, 3]; duration: milliseconds, of all or of each."""
    pictures = [Image.fromarray(frame) for frame in frames]
    kind = FORMATS[path.suffix]
    if kind == "WEBP":
        options = {"lossless": True} | options
    pictures[0].save(
        path, kind, save_all=True, append_images=pictures[1:], duration=duration, **options
    )
    return path


@pytest.fixture
def frames():
    """uint8 RGB [7, 24, 32, 3], each of few colours, so that a palette keeps it as it is."""
    return np.stack(
        [
            np.full((24, 32, 3), (30 * number, 200 - 20 * number, 90), np.uint8)
            for number in range(7)
        ]
    )


@pytest.mark.parametrize("suffix", ANIMATED_SUFFIXES)
def test_an_animated_picture_is_read_frame_by_frame(tmp_path, frames, suffix):
    path = animate(tmp_path / f"a{suffix}", frames)
    assert is_video(path) and num_pictures(path) == 2
    clip = open_clip(path, make_config(frame_rate=12.5))
    assert isinstance(clip, AnimatedPicture) and (len(clip), clip.native_rate) == (7, 12.5)
    assert np.array_equal(np.stack(list(clip.frames_at(range(7)))), frames)
    assert np.array_equal(np.stack(list(clip.frames_at([1, 4, 4, 6]))), frames[[1, 4, 4, 6]])
    assert list(clip.frames_at([])) == []


@pytest.mark.parametrize("suffix", ANIMATED_SUFFIXES)
def test_pictures_are_shown_as_long_as_they_say(tmp_path, frames, suffix):
    path = animate(tmp_path / f"a{suffix}", frames[:3], duration=[100, 300, 200])
    clip = AnimatedPicture(path, 10, 10**6)
    shown = np.stack(list(clip.frames_at(range(len(clip)))))
    assert np.array_equal(shown, frames[[0, 1, 1, 1, 2, 2]])
    assert len(AnimatedPicture(path, 5, 10**6)) == 3


@pytest.mark.parametrize("suffix", ANIMATED_SUFFIXES)
def test_pictures_without_a_duration_are_shown_for_a_tenth_of_a_second(tmp_path, frames, suffix):
    clip = AnimatedPicture(animate(tmp_path / f"a{suffix}", frames, duration=0), 10, 10**6)
    assert (len(clip), clip.native_rate) == (7, 10)


def test_a_gif_is_as_the_video_decoder_shows_it(tmp_path):
    path = animate(tmp_path / "a.gif", draw_frames("Left", 9, np.random.default_rng(0)))
    with av.open(str(path)) as file:
        expected = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    clip = AnimatedPicture(path, 12.5, 10**6)
    assert np.array_equal(np.stack(list(clip.frames_at(range(9)))), np.stack(expected))


def test_transparent_places_are_white_in_each_picture(tmp_path):
    pictures = [Image.new("RGBA", (20, 20)) for _ in range(3)]
    for number, picture in enumerate(pictures):
        picture.paste((250, 0, 0, 255), (number, 0, number + 4, 4))
    for suffix, kind in FORMATS.items():
        pictures[0].save(
            tmp_path / f"a{suffix}",
            kind,
            save_all=True,
            disposal=2,
            append_images=pictures[1:],
            duration=100,
        )
        clip = AnimatedPicture(tmp_path / f"a{suffix}", 10, 10**6)
        for number, frame in enumerate(clip.frames_at(range(3))):
            assert (frame[10:] == 255).all() and (frame[0, number, 1:] < 10).all(), suffix


def test_the_default_image_of_an_apng_is_not_shown(tmp_path, frames):
    path = animate(tmp_path / "a.apng", frames, default_image=True)
    clip = AnimatedPicture(path, 12.5, 10**6)
    assert np.array_equal(np.stack(list(clip.frames_at(range(len(clip))))), frames[1:])


@pytest.mark.parametrize("suffix", ANIMATED_SUFFIXES)
def test_a_cut_anywhere_is_an_error(tmp_path, frames, suffix):
    rng = np.random.default_rng(0)
    noisy = np.repeat(rng.integers(0, 255, (7, 6, 8, 3), np.uint8).repeat(4, 1), 4, 2)
    whole = animate(tmp_path / f"a{suffix}", noisy).read_bytes()
    path = tmp_path / f"cut{suffix}"
    for size in rng.integers(0, len(whole) - 1, 80).tolist():
        path.write_bytes(whole[:size])
        with pytest.raises(FrameError, match=r"cut\.\w+: .*make or convert the file again"):
            clip = AnimatedPicture(path, 12.5, 10**6)
            list(clip.frames_at(range(len(clip))))


def test_animations_that_cannot_be_used_say_why(tmp_path, frames):
    still = animate(tmp_path / "still.gif", frames[:1])
    assert not is_video(still) and num_pictures(still) == 1
    with pytest.raises(FrameError, match=r"still.gif: a single picture: no movement"):
        AnimatedPicture(still, 10, 10**6)
    large = animate(tmp_path / "large.webp", frames)
    with pytest.raises(FrameError, match=r"large.webp: 32 x 24 pixels are more than max_frame_pi"):
        AnimatedPicture(large, 10, 100)
    long = animate(tmp_path / "long.webp", frames, duration=4 * 10**6)
    with pytest.raises(FrameError, match=r"long.webp: .* 8 hours"):
        AnimatedPicture(long, 10, 10**6)
    data = bytearray(animate(tmp_path / "bomb.gif", frames).read_bytes())
    place = data.index(b"\x2c\0\0\0\0\x20\0\x18\0")
    data[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    (tmp_path / "bomb.gif").write_bytes(data)
    with pytest.raises(FrameError, match=r"bomb.gif: damaged: a picture is larger than the whole"):
        AnimatedPicture(tmp_path / "bomb.gif", 10, 10**6)
    (tmp_path / "text.gif").write_text("no picture")
    assert is_video(tmp_path / "text.gif")
    with pytest.raises(FrameError, match=r"text.gif: neither GIF nor WebP nor APNG"):
        AnimatedPicture(tmp_path / "text.gif", 10, 10**6)


# --- what is beside them -------------------------------------------------------------------------


def test_animated_webp_files_in_a_folder_are_films_and_still_ones_frames(tmp_path, frames):
    for folder in ("films", "stills", "both"):
        (tmp_path / folder).mkdir()
    for number, folder in itertools.product(range(3), ("films", "both")):
        animate(tmp_path / folder / f"{number}.webp", frames)
    for number in range(3):
        Image.fromarray(frames[number]).save(tmp_path / "stills" / f"{number}.webp")
    Image.fromarray(frames[0]).save(tmp_path / "both" / "thumb.webp")
    (tmp_path / "both" / "cut.webp").write_bytes((tmp_path / "films" / "0.webp").read_bytes()[:99])
    others = []
    clips, problems = find_clips(tmp_path, others)
    assert [str(Path(clip).relative_to(tmp_path)) for clip in clips] == [
        "both/0.webp",
        "both/1.webp",
        "both/2.webp",
        "both/cut.webp",
        "films/0.webp",
        "films/1.webp",
        "films/2.webp",
        "stills",
    ]
    assert not problems and others == [tmp_path / "both" / "thumb.webp"]


@pytest.mark.parametrize(
    "films, pictures",
    [
        (["1.mp4"], ["thumb.jpg"]),
        (["1.mp4"], ["1.jpg"]),
        (["1.mp4"], ["1.mp4.png", "cover1.png", "cover2.png"]),
        (["1.mp4", "2.gif"], ["IMG_0007.JPG"]),
        (["a.mp4", "b.mp4", "c.mp4"], ["a.jpg", "b.jpg", "c.jpg", "folder.jpg"]),
    ],
)
def test_thumbnails_beside_films_are_passed_over(tmp_path, frames, films, pictures):
    for name in films:
        path = tmp_path / "wave" / name
        path.parent.mkdir(exist_ok=True)
        animate(path, frames) if name.endswith(".gif") else path.touch()
    for name in (*pictures, "Thumbs.db", "notes.txt"):
        (tmp_path / "wave" / name).touch()
    others = []
    clips, problems = find_clips(tmp_path, others)
    assert [Path(clip).name for clip in clips] == films and not problems
    assert sorted(path.name for path in others) == sorted([*pictures, "Thumbs.db", "notes.txt"])
    assert no_films(others).startswith(f"{len(others)} files that are not videos: ")
    assert no_films(others[:1]).startswith("1 file that is not a video: ")


def test_frames_beside_a_film_are_still_refused(tmp_path):
    for name in ("00001.jpg", "00002.jpg", "00003.jpg", "a.mp4"):
        (tmp_path / name).touch()
    clips, problems = find_clips(tmp_path)
    assert not clips and "has both frames and other clips (a.mp4)" in problems[0]


def test_a_preview_of_frames_is_passed_over(tmp_path, frames):
    for name in ("00001.jpg", "00002.jpg"):
        (tmp_path / name).touch()
    animate(tmp_path / "preview.gif", frames)
    others = []
    assert find_clips(tmp_path, others) == ([clip_at(tmp_path)], [])
    assert others == [tmp_path / "preview.gif"]


def test_sorting_keeps_each_file_once(tmp_path, frames):
    animate(tmp_path / "a.gif", frames)
    write_video(tmp_path / "b.mp4", draw_frames("Left", 3, np.random.default_rng(0)))
    names = ["b.mp4", "a.gif", "c.jpg", "d.txt", "e.webp"]
    assert sort_files(tmp_path, names) == (["b.mp4", "a.gif", "e.webp"], ["c.jpg"], ["d.txt"])
    assert isinstance(open_clip(tmp_path / "b.mp4", make_config()), VideoFile)

"""Films as people have them: what a player shows without an error is read, the rest is named."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from movies import cut_without_encoding, write_video

from clips import video_packets
from clips.frames import FrameError
from clips.videos import VideoFile

FRAMES = np.stack([np.full((48, 64, 3), 6 * number, np.uint8) for number in range(36)])
MPEG = {"pix_fmt": "yuv420p", "b": "3M", "g": "12", "bf": "2"}
OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}
# A display matrix (a, b, c, d) for each of the eight orientations, and what it does.
ORIENTATIONS = {
    (1, 0, 0, 1): lambda frame: frame,
    (-1, 0, 0, 1): lambda frame: frame[:, ::-1],
    (1, 0, 0, -1): lambda frame: frame[::-1],
    (-1, 0, 0, -1): lambda frame: frame[::-1, ::-1],
    (0, 1, -1, 0): lambda frame: np.rot90(frame, -1),
    (0, -1, 1, 0): lambda frame: np.rot90(frame),
    (0, 1, 1, 0): lambda frame: frame.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda frame: frame[::-1, ::-1].transpose(1, 0, 2),
}


def numbers(video, positions=None):
    positions = range(len(video)) if positions is None else positions
    return [round(frame.mean() / 6) for frame in video.frames_at(positions)]


def copy_packets(source, path, change=lambda packets: packets, **options):
    """Copy a film's packets, as `change` returns them, in the order of decoding."""
    with av.open(str(source)) as original, av.open(str(path), "w", **options) as container:
        stream = original.streams.video[0]
        copied = container.add_stream_from_template(stream)
        for packet in change([packet for packet in original.demux(stream) if packet.size]):
            packet.stream = copied
            container.mux(packet)
    return path


def patched(path, old, new, count=1):
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new, count))
    return path


# --- AVI ---------------------------------------------------------------------------------------


def packed(packets):
    """As DivX and XviD write B-frames: with the frame before, an empty packet in their place."""
    result, datas = [], [bytes(packet) for packet in packets]
    start = datas[0].index(b"\0\0\1\xb6")
    datas[0] = datas[0][:start] + b"\0\0\1\xb2DivX503b1393p" + datas[0][start:]
    kinds = [data[data.index(b"\0\0\1\xb6") + 4] >> 6 for data in datas]
    for number, data in enumerate(datas):
        follows = number + 1 < len(datas) and kinds[number + 1] == 2
        if kinds[number] == 2:  # it is in the packet before
            data = b"\0\0\1\xb6\x16\xd0\x07"
        if kinds[number] != 2 and follows:
            data += datas[number + 1]
        packet = av.Packet(data)
        packet.pts = packet.dts = number
        packet.time_base, packet.is_keyframe = packets[0].time_base, number == 0
        result.append(packet)
    return result


def test_packed_b_frames_of_divx(tmp_path):
    plain = write_video(tmp_path / "a.avi", FRAMES, codec="mpeg4", **MPEG | {"bf": "1", "g": "36"})
    path = copy_packets(plain, tmp_path / "b.avi", packed)
    video = VideoFile(path, 12, 10**6)
    found = numbers(video)
    assert found[:34] == list(range(34)) and len(found) in (35, 36)
    assert numbers(video, [30, 31]) == [30, 31]


@pytest.mark.parametrize(
    "codec, options",
    [("mjpeg", {"pix_fmt": "yuvj420p"}), ("libx264", {"g": "1", "pix_fmt": "yuv420p"})],
)
def test_a_dropped_frame_of_avi_keeps_the_one_before(tmp_path, codec, options):
    plain = write_video(tmp_path / "a.avi", FRAMES, codec=codec, **options)

    def without_some(packets):
        return [packet for number, packet in enumerate(packets) if number not in (5, 6, 20)]

    video = VideoFile(copy_packets(plain, tmp_path / "b.avi", without_some), 12, 10**6)
    expected = [4 if number in (5, 6) else 19 if number == 20 else number for number in range(36)]
    assert numbers(video) == expected
    assert [numbers(video, [number]) for number in (6, 20, 35)] == [[4], [19], [35]]


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4"])
def test_an_avi_that_is_cut_off_says_so(tmp_path, codec):
    path = tmp_path / "a.avi"
    write_video(path, FRAMES, codec=codec, pix_fmt={"mjpeg": "yuvj420p"}.get(codec, "yuv420p"))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"idx1") * 2 // 3])
    with pytest.raises(FrameError, match=r"cut off: has \d+ of 36 frames"):
        VideoFile(path, 12, 10**6)


def test_the_palette_of_an_avi_is_kept_after_seeking(tmp_path):
    path = tmp_path / "a.avi"
    colours = np.random.default_rng(0).integers(0, 256, (16, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        stream.pix_fmt = "pal8"
        for number in range(16):
            palette = np.zeros((256, 4), np.uint8)
            palette[:, 0] = 255
            palette[:16, 1:] = colours
            frame = av.VideoFrame.from_ndarray(
                (np.full((48, 64), number, np.uint8), palette), format="pal8"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    video = VideoFile(path, 12, 10**6)
    for positions in (range(16), [9], [15]):
        found = [frame[0, 0].tolist() for frame in video.frames_at(positions)]
        assert found == [colours[number].tolist() for number in positions]


# --- MP4 and Matroska --------------------------------------------------------------------------


def test_tags_may_be_in_any_encoding(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, FRAMES)
    patched(path, b"VideoHandler", "Видео".encode("cp1251").ljust(12, b"\xc2"))
    assert numbers(VideoFile(path, 12, 10**6)) == list(range(36))


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_frames_are_turned_and_mirrored_as_the_display_matrix_says(tmp_path, matrix):
    rng = np.random.default_rng(0)
    frames = np.kron(rng.integers(0, 256, (4, 6, 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    path = tmp_path / "a.mp4"
    write_video(path, frames)
    sound = np.stack(list(VideoFile(path, 12, 10**6).frames_at(range(4))))
    data, (a, b, c, d) = path.read_bytes(), (65536 * number for number in matrix)
    place = data.index(b"tkhd") + 4 + 40
    new = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:place] + new + data[place + 36 :])
    found = np.stack(list(VideoFile(path, 12, 10**6).frames_at(range(4))))
    assert np.array_equal(found, [ORIENTATIONS[matrix](frame) for frame in sound])


@pytest.mark.parametrize("start, duration", [(0, 1.5), (0.5, 1), (0.5, 5)])
def test_an_edit_list_trims_either_end(tmp_path, start, duration):
    path = tmp_path / "a.mp4"
    write_video(path, FRAMES, **{"x264-params": "bframes=2:keyint=12"})
    data = bytearray(path.read_bytes())
    scale = int.from_bytes(data[data.index(b"mvhd") + 16 :][:4], "big")
    place = data.index(b"elst") + 12
    ticks = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big")
    first = int.from_bytes(data[place + 4 : place + 8], "big")
    data[place : place + 8] = struct.pack(">Ii", int(duration * scale), first + int(start * ticks))
    path.write_bytes(data)
    video = VideoFile(path, 12, 10**6)
    shown = list(range(round(12 * start), min(36, round(12 * (start + duration)))))
    assert numbers(video) == shown
    assert numbers(video, [len(shown) - 1]) == shown[-1:]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".flv"])
def test_a_cut_in_an_open_group_of_pictures_is_no_damage(tmp_path, suffix):
    write_video(tmp_path / "a.mp4", FRAMES, **OPEN_GROUPS, pix_fmt="yuv420p")
    path = cut_without_encoding(tmp_path / "a.mp4", tmp_path / f"b{suffix}", 1)
    video = VideoFile(path, 12, 10**6)
    assert numbers(video)[-20:] == list(range(16, 36))
    assert numbers(video, [len(video) - 4]) == [32]


def noise_film(path, **options):
    noise = np.random.default_rng(0).integers(0, 255, (36, 48, 64, 3), np.uint8)
    return write_video(path, noise, pix_fmt="yuv420p", **options)


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.mp4", {}),
        ("a.mkv", OPEN_GROUPS),
        ("a.ts", {}),
        ("a.mpg", {"codec": "mpeg2video", "rate": 24}),
        ("a.avi", {"codec": "mpeg4", "bf": "2"}),
    ],
)
def test_damage_in_the_middle_is_named(tmp_path, name, options):
    path = tmp_path / name
    noise_film(path, **options)
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 4, len(data) * 3 // 4, len(data) // 16):
        data[place : place + 300] = bytes(reversed(data[place : place + 300]))
    path.write_bytes(data)
    with pytest.raises(FrameError, match=r"damaged|cannot be decoded|cut off"):
        list(VideoFile(path, 12, 10**6).frames_at(range(30)))


def test_a_cover_picture_is_not_the_film(tmp_path):
    cover, film = tmp_path / "cover.mp4", tmp_path / "film.mp4"
    write_video(cover, FRAMES[:1], codec="mjpeg", pix_fmt="yuvj420p")
    write_video(film, FRAMES)
    path = tmp_path / "both.mp4"
    with av.open(str(cover)) as one, av.open(str(film)) as other, av.open(str(path), "w") as both:
        sources = one.streams.video[0], other.streams.video[0]
        copies = [both.add_stream_from_template(source) for source in sources]
        copies[0].disposition = av.stream.Disposition.attached_pic
        for container, source, copy in zip((one, other), sources, copies, strict=True):
            for packet in container.demux(source):
                if packet.size:
                    packet.stream = copy
                    both.mux(packet)
    assert numbers(VideoFile(path, 12, 10**6)) == list(range(36))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_memory_does_not_depend_on_a_clock_that_jumps(tmp_path, suffix):
    def late(packets):
        for packet in packets[1:]:
            packet.pts = packet.dts = packet.pts + int(100_000 / packet.time_base)
        return packets

    plain = write_video(tmp_path / "a.mp4", FRAMES, codec="mpeg4", pix_fmt="yuv420p")
    path = copy_packets(plain, tmp_path / f"b{suffix}", late)
    with pytest.raises(FrameError, match="its clock jumps: 36 frames in 10"):
        VideoFile(path, 12, 10**6)


def test_a_clock_that_jumps_in_a_stream_goes_on(tmp_path):
    def late(packets):
        for packet in packets[20:]:
            packet.pts += int(20_000 / packet.time_base)
            packet.dts += int(20_000 / packet.time_base)
        return packets

    plain = write_video(tmp_path / "a.ts", FRAMES, codec="mpeg2video", pix_fmt="yuv420p", g="6")
    video = VideoFile(copy_packets(plain, tmp_path / "b.ts", late), 12, 10**6)
    assert numbers(video) == list(range(36)) and numbers(video, [30]) == [30]


def test_frames_without_times_are_named_with_the_remedy(tmp_path):
    path = write_video(tmp_path / "a.h264", FRAMES)
    with pytest.raises(FrameError, match=r"no times.*ffmpeg -framerate 25 -i RAW -c copy NEW.mp4"):
        VideoFile(path, 12, 10**6)


@pytest.mark.parametrize(
    "suffix, codec", [("mp4", "libx264"), ("flv", "flv"), ("wmv", "wmv2"), ("rm", "rv10")]
)
def test_a_second_film_in_the_file_is_not_lost_in_silence(tmp_path, suffix, codec):
    path, short = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, FRAMES.shape, np.uint8)
    write_video(path, noise, codec=codec, pix_fmt="yuv420p")
    VideoFile(path, 12, 10**6)
    write_video(short, FRAMES[:4], codec=codec, pix_fmt="yuv420p")
    path.write_bytes(path.read_bytes() + short.read_bytes())
    with pytest.raises(FrameError, match="another video follows"):
        VideoFile(path, 12, 10**6)


@pytest.mark.parametrize("name", ["12:30:05.mp4", "2024-05-01T12:30/a.mp4", "http:/a.mp4"])
def test_a_path_with_a_colon_is_a_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(Path(write_video(tmp_path / "b.mp4", FRAMES)).read_bytes())
    for path in (name, tmp_path / name):
        assert numbers(VideoFile(path, 12, 10**6), [3]) == [3]


@pytest.mark.parametrize(
    "aspect, size", [("2/1", (48, 128)), ("1/2", (48, 32)), ("1000/1", (48, 64)), ("1/1", (48, 64))]
)
def test_pixels_that_are_not_square_are_applied(tmp_path, aspect, size):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for frame in FRAMES[:4]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert next(VideoFile(path, 12, 10**6).frames_at([1])).shape[:2] == size


# --- MPEG program and transport streams --------------------------------------------------------

STREAMS = [
    ("a.mpg", {"codec": "mpeg2video", "rate": 24}),
    ("a.ts", {"codec": "mpeg2video"}),
    ("a.ts", OPEN_GROUPS),
    ("a.ts", {"x264-params": "keyint=12"}),
]


@pytest.mark.parametrize("name, options", STREAMS)
def test_a_window_of_a_stream_needs_only_the_packets_near_it(tmp_path, monkeypatch, name, options):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (480, 48, 64, 1)) + np.arange(480)[:, None, None, None] % 16 * 12
    options = MPEG | options
    path = write_video(tmp_path / name, np.repeat(noise, 3, 3).astype(np.uint8), **options)
    video = VideoFile(path, options.get("rate", 12), 10**6)
    whole, count = list(video.frames_at(range(len(video)))), 0

    def counted(self, packet):
        nonlocal count
        count += 1
        return mark(self, packet)

    mark = video_packets.PacketIndex._mark
    monkeypatch.setattr(video_packets.PacketIndex, "_mark", counted)
    for start in (100, 250, 300, 400):
        found = list(video.frames_at(range(start, start + 4)))
        assert np.array_equal(found, whole[start : start + 4])
    assert 16 < count < 480


@pytest.mark.parametrize("name, options", STREAMS)
def test_two_films_joined_by_cat_are_one(tmp_path, name, options):
    path, options = tmp_path / name, MPEG | options
    write_video(path, FRAMES, **options)
    path.write_bytes(path.read_bytes() * 2)
    video = VideoFile(path, options.get("rate", 12), 10**6)
    assert numbers(video) == [*range(36), *range(36)]
    assert numbers(video, [3, 30, 40, 70]) == [3, 30, 4, 34]


def test_a_recording_that_begins_between_key_frames(tmp_path):
    path = tmp_path / "a.ts"
    write_video(path, FRAMES, **MPEG | {"codec": "mpeg2video"})
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 4 // 188 * 188 :])
    video = VideoFile(path, 12, 10**6)
    found = numbers(video)
    assert 12 <= found[0] <= 14 and found == list(range(found[0], 36))

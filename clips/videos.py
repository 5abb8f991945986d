"""Video files as clips: their frames at the frame rate of training, decoded on demand.

A damaged video is an error, never a shorter or a grey clip.
"""

import mmap
import os
import struct
from bisect import bisect_right

import av
import numpy as np

from clips.films import is_video as is_video
from clips.frames import FrameError, check_size
from clips.video_packets import MPEG_FORMATS, PacketIndex, SeekError, open_film

SAME_TIME = 1e-6  # seconds
MAX_EMPTY = 3  # packets at the end without a picture
# Maximum frames at the training's rate, per frame in the file and in addition: a jumping clock
# gives more.
MAX_REPEATS = 100
MAX_STILL = 10_000
MAX_STRETCH = 4  # maximum ratio of a pixel's sides; otherwise, the file is wrong
# Formats whose packets are in the order of the file up to its end, and the part that may follow.
SEQUENTIAL = (*MPEG_FORMATS, "flv", "asf")
MAX_REST = 0.25
# The first bytes of films of which players show only the first, however short the next one is.
STARTS = {"flv": b"FLV\1", "asf": bytes.fromhex("3026b2758e66cf11"), "rm": b".RMF"}


class VideoFile:
    """The frames of a video, resampled to `frame_rate` frames per second.

    max_pixels: larger frames are refused before decoding. Raises FrameError with the path if the
    file is not a video, is cut off, or has a single frame.
    """

    def __init__(self, path, frame_rate: float, max_pixels: int):
        self.path, self.frame_rate, self.max_pixels = path, frame_rate, max_pixels
        with _Translated(self), open_film(path) as (container, stream):
            self.size = self._size(stream)
            self._index = PacketIndex(path, container, stream)
            self._tick = float(stream.time_base)
            _check_complete(path, container, stream, self._index.packets)
        with _Translated(self):
            self._times = self._shown_times()  # in ticks
        if not self._times:
            raise self._error("no frames in it")
        seconds = (self._times[-1] - self._times[0]) * self._tick
        if seconds <= 0:
            raise self._error("a single frame: no movement to classify")
        self.native_rate = (len(self._times) - 1) / seconds  # frames per second
        # With the duration of the last frame.
        seconds *= len(self._times) / (len(self._times) - 1)
        num_frames = seconds * frame_rate
        if num_frames > MAX_REPEATS * len(self._times) + MAX_STILL:
            raise self._error(f"its clock jumps: {len(self._times):,} frames in {seconds:,.0f} s")
        self._num_frames = max(2, round(num_frames))

    def __len__(self):
        return self._num_frames

    def frames_at(self, positions):
        """Yield the frames at ascending `positions`, uint8 RGB [H, W, 3] each, upright."""
        wanted = [self._time_at(position) for position in positions]
        shown = None  # the frame that is shown until the next one
        for time, frame in self._frames_from(wanted[0]) if wanted else ():
            while wanted and wanted[0] < time:  # its own packet has no picture
                yield self._picture(shown or frame)
                wanted.pop(0)
            if wanted and wanted[0] == time:
                picture = self._picture(frame)
                while wanted and wanted[0] == time:
                    yield picture
                    wanted.pop(0)
            if not wanted:
                return
            shown, shown_time = frame, time
        if not wanted:
            return
        if shown is None or self._num_after(shown_time) > MAX_EMPTY:
            raise self._error(f"cut off: it ends before {wanted[0] * self._tick:.2f} s")
        for _ in wanted:
            yield self._picture(shown)

    def _time_at(self, position):
        """Return the time of the frame that is shown in the middle of a resampled frame."""
        middle = int(((position + 0.5) / self.frame_rate + SAME_TIME) / self._tick)
        return self._times[bisect_right(self._times, self._times[0] + middle) - 1]

    def _num_after(self, time):
        return len(self._times) - bisect_right(self._times, time)

    def _shown_times(self):
        """Return the times of all frames, without those that cannot be decoded at the start.

        A film that was cut without encoding may begin with frames that need earlier ones.
        """
        index = self._index
        times = index.times()
        if not times:
            if index.packets:
                raise ValueError(
                    "its frames have no times, as in a raw stream; give it a "
                    "container (ffmpeg -framerate 25 -i RAW -c copy NEW.mp4)"
                )
            return []
        if index.clock == "dts":
            return self._counted_times(times)
        if index.starts_clean:
            return times
        key_time, shown = index.packets[index.first_key].pts, []
        for time, _frame in self._decoded(0, False):
            shown.append(time)
            if key_time is None or time >= key_time:
                break
        return shown + [time for time in times if time > shown[-1]] if shown else []

    def _counted_times(self, times):
        """Return the times at which the decoder shows frames: later than their packets."""
        first = next((time for time, _ in self._decoded(0, False)), times[0])
        delay, num_packets = bisect_right(times, first) - 1, len(times)
        self._index.step = max(1, (times[-1] - times[0]) // max(1, len(times) - 1))
        for _ in range(delay):
            times.append(self._next_time(times[-1], len(times) == num_packets))
        return times[delay:]

    def _next_time(self, last, is_first):
        """Return the time of a delayed frame, after that of the previous one.

        As in ffmpeg, a chunk of AVI lasts one tick.
        """
        return last + (1 if is_first and self._index.format == "avi" else self._index.step)

    def _frames_from(self, time: int):
        """Yield (time, frame), starting at `time` or earlier.

        Decoding starts at the last key frame before it. If seeking does not find that, packets are
        counted from the beginning of the film; damage is only reported if it occurs there, too.
        """
        start, last, error = self._index.start_for(time), None, None
        tries = [(start, True), (start, False), (0, False)] if start else [(0, False)]
        for start, is_sought in tries:
            try:
                for found, frame in self._decoded(start, is_sought):
                    if start and last is None and found > time:
                        break
                    if last is None or found > last:
                        yield found, frame
                        last = found
                else:
                    if last is not None or not start:
                        return
            except SeekError:
                continue
            except FrameError as problem:
                error = problem
        if error:
            raise error

    def _decoded(self, start: int, is_sought: bool):
        """Yield (time, frame) of all frames that can be decoded from packet `start` on.

        Raises FrameError where the file is damaged.
        """
        index, last = self._index, None
        key = start or index.first_key
        with _Translated(self):
            for number, packet in index.packets_from(start, is_sought):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    if number is None or not index.is_leading(number, key):
                        raise
                    frames = []
                for place, frame in enumerate(frames):
                    last = self._time_of(frame, last, place == 0)
                    if frame.is_corrupt:
                        key_time = index.packets[key].pts
                        if index.clock == "pts" and key_time is not None and last < key_time:
                            continue
                        raise ValueError(f"damaged at {last * self._tick:.2f} s")
                    yield last, frame

    def _time_of(self, frame, last, is_first):
        """Return the time of a frame, in ticks; last: that of the previous frame, or None."""
        time = frame.pts if self._index.clock == "pts" else frame.dts
        if time is None:
            time = self._index.times()[0] if last is None else self._next_time(last, is_first)
        return time

    def _size(self, stream) -> tuple[int, int]:
        """Return the width and height at which frames are shown; pixels may not be square."""
        width, height = stream.codec_context.width, stream.codec_context.height
        if not (width and height):
            raise ValueError("its frames have no size; the file may be cut off")
        if not stream.time_base:
            raise ValueError("it has no clock; the file may be cut off")
        check_size(height, width, self.max_pixels)
        aspect = stream.sample_aspect_ratio
        if aspect and 1 / MAX_STRETCH <= aspect <= MAX_STRETCH:
            width = max(1, round(width * aspect))
        check_size(height, width, self.max_pixels)
        return width, height

    def _picture(self, frame) -> np.ndarray:
        """Return the frame as an array of the film's size, upright."""
        width, height = self.size
        with _Translated(self):
            check_size(frame.height, frame.width, self.max_pixels)
            # From version 19 on, PyAV keeps one converter per thread. If that had threads, it would
            # wait forever in a forked worker, which does not have them; and they cost more than
            # they save.
            picture = frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)
        return np.ascontiguousarray(_turned(picture, frame))

    def _error(self, problem) -> FrameError:
        return FrameError(f"{self.path}: {problem}; record or convert the video again")


def _turned(picture, frame):
    """Rotate and mirror a picture by its frame's display matrix. (ISO 14496-12)"""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = struct.unpack("=9i", bytes(matrix))[:5]  # x' = a x + c y, y' = b x + d y
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


class _Translated:
    """Context manager that raises a FrameError with the video's path for other errors."""

    def __init__(self, video):
        self.video = video

    def __enter__(self):
        return self

    def __exit__(self, _kind, error, _traceback):
        if isinstance(error, (av.error.FFmpegError, OSError)):
            problem = getattr(error, "strerror", None) or error
            raise self.video._error(f"cannot be decoded ({problem})") from None
        # UserErrors are ValueErrors; those of this video have its path already.
        if isinstance(error, ValueError) and not str(error).startswith(f"{self.video.path}: "):
            raise self.video._error(str(error)) from None


# --- whether the file is whole ------------------------------------------------------------------


def _check_complete(path, container, stream, packets) -> None:
    """Raise ValueError if a video is cut off, or if another one follows that players do not show.

    packets: all those of the stream. A header may count more: frames that an edit list leaves out,
    and frames that AVI dropped, which are chunks without data.
    """
    name, num_packets = container.format.name, len(packets)
    is_short = stream.frames > num_packets
    if is_short and "mp4" in name:
        with open_film(path, ignore_editlist="1") as (whole, film):
            num_packets = sum(packet.size > 0 for packet in whole.demux(film))
        is_short = film.frames > num_packets
    elif is_short and name == "avi":
        is_short = len(getattr(stream, "index_entries", ())) > num_packets or _is_cut_riff(path)
    if is_short:
        raise ValueError(f"cut off: has {num_packets} of {stream.frames} frames")
    if (
        ("mp4" in name and _num_headers(path) > 1)
        or (name in SEQUENTIAL and packets and _rest(path, packets[-1]) > MAX_REST)
        or (name in STARTS and packets and _is_followed(path, packets[-1], STARTS[name]))
    ):
        raise ValueError(
            "another video follows that cannot be read; join them with ffmpeg's concat"
        )


def _rest(path, packet) -> float:
    """Return how much of the file follows the packet."""
    if packet.position is None:
        return 0
    return 1 - (packet.position + packet.size) / os.path.getsize(path)


def _is_followed(path, packet, start: bytes) -> bool:
    """Return whether another film's first bytes come somewhere after the packet begins."""
    if packet.position is None:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(start, packet.position) >= 0


def _num_headers(path) -> int:
    """Return how many films the boxes of an MP4 file describe. (ISO 14496-12)"""
    end, place, found = os.path.getsize(path), 0, 0
    with open(path, "rb") as file:
        while len(start := file.read(16)) >= 8:
            size, kind = int.from_bytes(start[:4], "big"), start[4:8]
            if size == 1:
                size = int.from_bytes(start[8:], "big")
            if size < 8 or place + size > end:
                break
            found += kind == b"moov"
            place += size
            file.seek(place)
    return found


def _is_cut_riff(path) -> bool:
    """Return whether the file is shorter than its RIFF chunks say."""
    end, place = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while file.read(4) == b"RIFF":
            place += 8 + int.from_bytes(file.read(4), "little")
            if place > end:
                return True
            place += place % 2
            file.seek(place)
    return False

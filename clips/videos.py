"""Video files as clips: their frames at the frame rate of training, decoded on demand.

A damaged video is an error, never a shorter or a grey clip.
"""

import os

import av
import numpy as np

from clips.films import is_video as is_video
from clips.frames import FrameError, check_size

SAME_TIME = 1e-6  # seconds


class VideoFile:
    """The frames of a video, resampled to `frame_rate` frames per second.

    max_pixels: larger frames are refused before decoding. Raises FrameError with the path if the
    file is not a video, is cut off, or has a single frame.
    """

    def __init__(self, path, frame_rate: float, max_pixels: int):
        self.path, self.frame_rate = path, frame_rate
        with self._opened() as (container, stream):
            self._check_stream(stream, max_pixels)
            packets = [(packet.pts * packet.time_base, packet.is_discard)
                       for packet in container.demux(stream) if packet.pts is not None]
            if stream.frames > len(packets):
                raise self._error(f"cut off: {len(packets)} of {stream.frames} frames are there")
            # Those to discard are before the cut of a video that was cut without re-encoding.
            times = sorted(float(time) for time, is_discard in packets if not is_discard)
            # AVI stores no times: they are counted up in the order of decoding.
            is_scrambled = container.format.name == "avi" and stream.codec_context.has_b_frames
            self._times_in_order = times if is_scrambled else None
            # Times after a seek are wrong in the former, and guessed in MPEG program streams.
            self._can_seek = not is_scrambled and container.format.name != "mpeg"
        if not times:
            raise self._error("no frames in it")
        if times[-1] <= times[0]:
            raise self._error("a single frame: no movement to classify")
        self.native_rate = (len(times) - 1) / (times[-1] - times[0])  # frames per second
        self.times = self._resampled(np.array(times))

    def __len__(self):
        return len(self.times)

    def frames_at(self, positions):
        """Yield the frames at ascending `positions`, uint8 RGB [H, W, 3] each, upright."""
        wanted = [self.times[position] for position in positions]
        for time, frame in self._frames_from(wanted[0]) if wanted else ():
            if time >= wanted[0] - SAME_TIME:
                picture = _upright(frame)
                while wanted and time >= wanted[0] - SAME_TIME:
                    wanted.pop(0)
                    yield picture
            if not wanted:
                return
        if wanted:
            raise self._error(f"cut off: it ends before {wanted[0]:.2f} s")

    def _frames_from(self, start: float):
        """Yield (time, frame), from the frame at `start` seconds on or from an earlier one.

        Decoding starts at the last key frame before, as far as seeking finds it. With open groups
        of pictures it may land after `start`, or where frames refer to others that were not
        decoded: then it starts at the beginning.
        """
        if self._can_seek:
            frames, found = self._decoded(start), None
            try:
                for found in frames:
                    if found[0] >= start - SAME_TIME:
                        break
            except FrameError:  # if it is damage, it is there from the beginning, too
                found = None
            if found and abs(found[0] - start) <= SAME_TIME:
                yield found
                yield from frames
                return
            frames.close()
        yield from self._decoded(None)

    def _decoded(self, start: float | None):
        """Yield (time, frame) from the key frame that seeking `start` finds; None: from the first.

        Raises FrameError where the file is damaged.
        """
        with self._opened() as (container, stream):
            if start is not None:
                container.seek(int(start / stream.time_base), stream=stream)
            for number, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    raise self._error("damaged" if frame.time is None else
                                      f"damaged at {frame.time:.2f} s")
                time = frame.time
                if self._times_in_order:
                    time = self._times_in_order[min(number, len(self._times_in_order) - 1)]
                if time is not None:
                    yield time, frame

    def _resampled(self, times) -> np.ndarray:
        """Return the times of the frames shown in the middle of each resampled frame."""
        # Including the duration of the last frame.
        seconds = (times[-1] - times[0]) * len(times) / (len(times) - 1)
        middles = times[0] + (np.arange(max(2, round(seconds * self.frame_rate))) + 0.5) \
            / self.frame_rate
        return times[np.searchsorted(times, middles, side="right") - 1]

    def _check_stream(self, stream, max_pixels):
        width, height = stream.codec_context.width, stream.codec_context.height
        if not (width and height):
            raise self._error("its frames have no size; the file may be cut off")
        try:
            check_size(height, width, max_pixels)
        except FrameError as error:
            raise self._error(str(error)) from None

    def _opened(self):
        return _Opened(self)

    def _error(self, problem) -> FrameError:
        return FrameError(f"{self.path}: {problem}; record or convert the video again")


class _Opened:
    """Context manager of a container and its video stream; decoder errors become FrameErrors."""

    def __init__(self, video):
        self.video, self.container = video, None

    def __enter__(self):
        try:
            if os.path.getsize(self.video.path) == 0:
                raise self.video._error("empty (0 bytes)")
            self.container = av.open(str(self.video.path))
        except (av.error.FFmpegError, OSError) as error:
            raise self._translated(error) from None
        if not self.container.streams.video:
            self.container.close()
            raise self.video._error("no video stream in it")
        stream = self.container.streams.video[0]
        if stream.codec_context is None:
            self.container.close()
            raise self.video._error("unknown codec, or cut off")
        stream.codec_context.options = {"err_detect": "explode"}  # damage is an error
        stream.codec_context.thread_count = 1  # there is a loader worker for each core
        return self.container, stream

    def __exit__(self, _kind, error, _traceback):
        self.container.close()
        if isinstance(error, av.error.FFmpegError):
            raise self._translated(error) from None

    def _translated(self, error) -> FrameError:
        return self.video._error(f"cannot be decoded ({getattr(error, 'strerror', error)})")


def _upright(frame) -> np.ndarray:
    """Return the frame as an array, rotated as its rotation tag says."""
    quarter_turns = round(frame.rotation / 90) % 4
    # From version 19 on, PyAV keeps a thread's converter. With threads of its own it would wait
    # forever in a forked worker, which does not have them; and they cost more than they save.
    picture = frame.to_ndarray(format="rgb24", threads=1)
    return np.ascontiguousarray(np.rot90(picture, quarter_turns))

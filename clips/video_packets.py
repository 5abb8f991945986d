"""The packets of a video file: its stream, its clock, and where decoding may start.

A file is demuxed once, without decoding. After that, packets are identified by their numbers,
whatever the demuxer reports after a seek.
"""

import os
import zlib
from bisect import bisect_left
from contextlib import contextmanager
from typing import NamedTuple

import av
from av.stream import Disposition

# Formats whose times may jump, in a recording or where two files were joined, and that have no
# index: seek in them by the position in the file.
MPEG_FORMATS = ("mpeg", "mpegts")
MAX_GAP = 10  # seconds without a frame in these formats; ffmpeg's -dts_delta_threshold
MAX_STEPS_BACK = 10  # frames by which times for decoding may go back without a jump
MAX_SKIPPED = 5000  # packets between the end of a seek and its target
# Where times are counted: packets from a key frame to the first requested frame, and codecs whose
# decoders delay an unknown number of frames after a seek.
MARGIN = 20
MAX_EMPTY_SIZE = 19  # bytes of an MPEG-4 packet without a picture
DEEP_REORDERING = ("h264", "hevc")


class SeekError(Exception):
    """Seeking did not find the packet."""


class Packet(NamedTuple):
    """A packet's properties; times are in ticks of the stream."""

    pts: int | None
    dts: int | None
    position: int | None  # in the file
    size: int  # bytes
    mark: int | None  # distinguishes it from others of its size
    is_key: bool  # can be decoded on its own
    is_clean: bool  # and nothing after it refers to earlier packets
    is_discarded: bool  # to be decoded, but not shown


@contextmanager
def open_film(path, is_strict=True, **options):
    """Yield the container of the video at `path`, and its stream with the film.

    is_strict: decoding raises an error for anything missing. Raises ValueError with the problem,
    and av.error.FFmpegError or OSError.
    """
    if os.path.getsize(path) == 0:
        raise ValueError("empty (0 bytes)")
    # Without the protocol's name, a path with a colon would be a URL.
    with av.open(
        f"file:{path}", metadata_errors="replace", options={"protocol_whitelist": "file", **options}
    ) as container:
        stream = _choose_stream(container.streams.video)
        if is_strict:
            stream.codec_context.options = {"err_detect": "explode"}
        stream.codec_context.thread_count = 1  # there is a loader worker for each core
        yield container, stream


def _choose_stream(streams):
    """Return the stream that ffmpeg shows: not a cover, and the default one or the largest."""
    stills = Disposition.attached_pic | Disposition.timed_thumbnails
    films = [stream for stream in streams if not stream.disposition & stills]
    if not films:
        raise ValueError("only a cover picture in it" if streams else "no video stream in it")
    films = [stream for stream in films if stream.codec_context is not None]
    if not films:
        raise ValueError("unknown codec, or cut off")

    def score(stream):
        is_default = bool(stream.disposition & Disposition.default)
        return stream.codec_context.width * stream.codec_context.height + 5_000_000 * is_default

    return max(films, key=score)


class PacketIndex:
    """The packets of a film, in the order of decoding.

    clock: "pts", or "dts" where the file does not store when frames are shown; a frame then has the
    time of the last packet that the decoder was given for it. step: ticks of a typical frame.
    first_key: the first packet that can be decoded on its own. starts_clean: the film begins with
    it, and nothing after it needs anything from before.
    """

    def __init__(self, path, container, stream):
        self.path, self.format, self.codec = path, container.format.name, stream.codec_context.name
        self._palettes = {}
        rate = stream.average_rate or stream.guessed_rate or 25
        self.step = max(1, round(1 / (rate * stream.time_base)))
        packets = self._scanned(container, stream)
        self.packets = self._without_jumps(packets, MAX_GAP / stream.time_base)
        self._keys = [number for number, packet in enumerate(self.packets) if packet.is_key]
        self.first_key = self._keys[0] if self._keys else 0
        self.first_trailing = next(
            (
                number
                for number in range(self.first_key + 1, len(packets))
                if not self.is_leading(number, self.first_key)
            ),
            len(packets),
        )
        self.starts_clean = self.first_trailing <= 1 and all(
            packet.is_clean for packet in packets[:1]
        )
        self.clock = "dts" if self._is_counted(stream.codec_context.has_b_frames) else "pts"
        self._number_at = {
            getattr(packet, self.clock): number for number, packet in enumerate(self.packets)
        }

    def _scanned(self, container, stream):
        header = stream.codec_context.extradata or b""
        # AVI stores no times for showing; what FFmpeg guesses is the time of the next packet.
        is_in_order = self.format == "avi" and not stream.codec_context.has_b_frames
        packets = []
        for packet in container.demux(stream):
            if packet.size:
                if packet.has_sidedata("palette"):
                    self._palettes[len(packets)] = packet.get_sidedata("palette")
                is_key = packet.is_keyframe and _is_intra(packet, self.codec)
                is_clean = is_key and (self.codec != "h264" or _has_idr(bytes(packet), header))
                pts = packet.dts if is_in_order else packet.pts
                packets.append(
                    Packet(
                        pts,
                        packet.dts,
                        packet.pos,
                        packet.size,
                        self._mark(packet),
                        is_key,
                        is_clean,
                        packet.is_discard,
                    )
                )
        return packets

    def _mark(self, packet):
        # The positions of packets of a program stream are not the same after a seek.
        return zlib.crc32(packet) if self.format in MPEG_FORMATS else packet.pos

    def _without_jumps(self, packets, max_gap):
        """Continue the clock where it jumps back, or ahead in MPEG streams, as players do."""
        if self.format not in MPEG_FORMATS:
            max_gap = float("inf")
        offset, previous, result = 0, None, []
        for packet in packets:
            if packet.dts is not None:
                least = None if previous is None else previous - MAX_STEPS_BACK * self.step
                if least is not None and not least < packet.dts + offset < previous + max_gap:
                    offset = previous + self.step - packet.dts
                previous = packet.dts + offset
            if offset:
                pts, dts = (None if time is None else time + offset for time in packet[:2])
                packet = packet._replace(pts=pts, dts=dts)
            result.append(packet)
        return result

    def _is_counted(self, has_b_frames) -> bool:
        """Return whether times are those of decoding, though frames are shown in another order."""
        if any(packet.pts is None for packet in self.packets[self.first_trailing :]):
            return True
        return has_b_frames and (
            self.format == "avi"
            or (
                self.codec not in DEEP_REORDERING
                and all(packet.pts == packet.dts for packet in self.packets)
            )
        )

    def is_leading(self, number: int, start: int) -> bool:
        """Return whether a packet may need others from before the key frame `start`."""
        pts, start_pts = self.packets[number].pts, self.packets[start].pts
        is_shown_before = pts is None or start_pts is None or pts < start_pts
        return number < self.first_key or (number > start and is_shown_before)

    def times(self) -> list[int]:
        """Return the times of the packets with pictures to show, ascending."""
        times = [
            getattr(packet, self.clock)
            for packet in self.packets
            # A single byte, in DivX and XviD, means no picture.
            if packet.size > 1 and not packet.is_discarded
        ]
        return sorted(time for time in times if time is not None)

    def start_for(self, time: int) -> int:
        """Return the number of the packet at which decoding must start for the frame at `time`."""
        number = self._number_at.get(time, 0)
        if self.clock == "dts":
            number = 0 if self.codec in DEEP_REORDERING else number - MARGIN
        for key in reversed(self._keys[: bisect_left(self._keys, number + 1)]):
            key_time = getattr(self.packets[key], self.clock)
            if key_time is not None and key_time <= time:
                return key if key > self.first_key else 0
        return 0

    # --- reading again -------------------------------------------------------------------------

    def packets_from(self, start: int, is_sought: bool):
        """Yield (number, packet), from packet `start` on, with the times of the index.

        The last one flushes the decoder; its number is None. is_sought: seek, and raise SeekError
        if that does not find the packets; otherwise, demux the file from its beginning.
        """
        # H.264 may refer to earlier pictures that no shown picture needs. If that is not an
        # error, its decoder marks damaged frames; other decoders do not.
        is_strict = self.codec != "h264" or self.packets[start or self.first_key].is_clean
        with open_film(self.path, is_strict) as (container, stream):
            if is_sought:
                self._seek(container, stream, start)
            number = None if is_sought else 0
            for count, packet in enumerate(container.demux(stream)):
                if not packet.size:
                    if packet.dts is None and packet.pts is None:
                        break
                    continue
                if number is None and self._is_number(packet, start):
                    number = start
                if number is None and count > MAX_SKIPPED:
                    break
                if number is None:
                    continue
                if is_sought and not self._is_number(packet, number):
                    raise SeekError
                if number >= start and number < len(self.packets):
                    yield number, self._prepared(packet, number, number == start)
                number += 1
            if number is None:
                raise SeekError
            yield None, packet

    def _seek(self, container, stream, start):
        sought = self.packets[start]
        if self.clock == "dts":  # may define how all are packed, as in DivX and XviD
            next(container.demux(stream)).decode()
        try:
            if self.format in MPEG_FORMATS:
                place = next(
                    (
                        packet.position
                        for packet in self.packets[start::-1]
                        if packet.position is not None
                    ),
                    0,
                )
                container.seek(place, unsupported_byte_offset=True)
            else:
                container.seek(getattr(sought, self.clock), stream=stream)
        except (av.error.FFmpegError, TypeError, OverflowError):
            raise SeekError from None

    def _is_number(self, packet, number):
        known = self.packets[number] if number < len(self.packets) else None
        return known and packet.size == known.size and self._mark(packet) == known.mark

    def _prepared(self, packet, number, is_first):
        known = self.packets[number]
        if known.pts is not None and packet.pts != known.pts:
            packet.pts = known.pts
        if known.dts is not None and packet.dts != known.dts:
            packet.dts = known.dts
        # A demuxer returns a palette once, and seeking drops it.
        palettes = [place for place in self._palettes if place <= number] if is_first else ()
        if palettes and not packet.has_sidedata("palette"):
            packet.set_sidedata(self._palettes[max(palettes)])
        return packet


def _has_idr(data: bytes, header: bytes) -> bool:
    """Return whether H.264 data has an IDR slice, after which nothing refers to earlier data."""
    if not header.startswith(b"\1"):  # start codes (annex B of the standard)
        return any(part[0] & 31 == 5 for part in data.split(b"\0\0\1")[1:] if part)
    place, num_bytes = 0, (header[4] & 3) + 1  # lengths (ISO 14496-15)
    while place + num_bytes < len(data):
        start = place + num_bytes
        if data[start] & 31 == 5:
            return True
        place = start + int.from_bytes(data[place:start], "big")
    return False


def _is_intra(packet, codec) -> bool:
    """Return whether a key packet is one; AVI's index also marks empty MPEG-4 packets."""
    if codec != "mpeg4":
        return True
    data = bytes(packet)
    start = data.find(b"\0\0\1\xb6")
    return len(data) > MAX_EMPTY_SIZE and 0 <= start < len(data) - 4 and data[start + 4] >> 6 == 0

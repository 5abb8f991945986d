"""Whether all of a video file can be read: it may be cut off, or two files may have been joined."""

import mmap
import os

from clips.video_packets import MPEG_FORMATS, open_film

# Formats whose packets are in the order of the file up to its end, and the part that may follow.
SEQUENTIAL = (*MPEG_FORMATS, "flv", "asf")
MAX_REST = 0.25
# The first bytes of films of which players show only the first, however short the next one is.
STARTS = {"flv": b"FLV\1", "asf": bytes.fromhex("3026b2758e66cf11"), "rm": b".RMF"}


def check_complete(path, container, stream, packets) -> None:
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
        raise ValueError(f"cut off: {num_packets} of {stream.frames} frames are there")
    if ("mp4" in name and _num_headers(path) > 1) or \
            (name in SEQUENTIAL and packets and _rest(path, packets[-1]) > MAX_REST) or \
            (name in STARTS and packets and _is_followed(path, packets[-1], STARTS[name])):
        raise ValueError("another film follows that cannot be read; join films by ffmpeg's concat")


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

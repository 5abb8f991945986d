"""Check that a video file is complete: it may be cut off, or two files may have been joined."""

import os

from clips.video_packets import MPEG_FORMATS, open_film

# Formats whose packets are in file order up to its end, and the fraction that may follow.
SEQUENTIAL = (*MPEG_FORMATS, "flv", "asf")
MAX_REST = 0.25


def check_complete(path, container, stream, packets) -> None:
    """Raise ValueError if a video is cut off, or if another one follows that players do not show.

    packets: all packets of the stream. A header may count more: frames that an edit list leaves
    out, and frames that AVI dropped, which are chunks without data.
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
    if ("mp4" in name and _num_headers(path) > 1) or \
            (name in SEQUENTIAL and packets and _rest(path, packets[-1]) > MAX_REST):
        raise ValueError("another film follows that cannot be read; join films by ffmpeg's concat")


def _rest(path, packet) -> float:
    """Return the fraction of the file after the packet."""
    if packet.position is None:
        return 0
    return 1 - (packet.position + packet.size) / os.path.getsize(path)


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
    """Return whether the file is shorter than its RIFF chunks declare."""
    end, place = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while file.read(4) == b"RIFF":
            place += 8 + int.from_bytes(file.read(4), "little")
            if place > end:
                return True
            place += place % 2
            file.seek(place)
    return False

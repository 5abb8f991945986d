"""Whether a video file has all the data that it promises."""

import os

from clips.video_packets import open_film


def check_complete(path, container, stream, num_packets: int) -> None:
    """Raise ValueError if a video is cut off. The stream's packets were read, `num_packets`.

    Headers may count more frames: those that an edit list does not show, and AVI's dropped frames,
    which are chunks without data.
    """
    is_short = stream.frames > num_packets
    name = container.format.name
    if is_short and "mp4" in name:
        with open_film(path, ignore_editlist="1") as (whole, film):
            num_packets = sum(packet.size > 0 for packet in whole.demux(film))
        is_short = film.frames > num_packets
    elif is_short and name == "avi":
        is_short = len(getattr(stream, "index_entries", ())) > num_packets or _is_cut_riff(path)
    if is_short:
        raise ValueError(f"cut off: {num_packets} of {stream.frames} frames are there")


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

"""Video files, for tests."""

import av
import numpy as np


def write_video(path, frames, rate=12, codec="libx264", pix_fmt="yuv444p", **options) -> str:
    """frames: uint8 RGB [T, H, W, 3]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = pix_fmt, {"crf": "5"} | options
        for frame in np.ascontiguousarray(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def cut_without_encoding(source, path, start) -> str:
    """Copy a video's packets from `start` seconds on, with those from the key frame before."""
    with av.open(str(source)) as original, av.open(str(path), "w") as container:
        stream = original.streams.video[0]
        copied = container.add_stream_from_template(stream)
        offset = int(start / stream.time_base)
        original.seek(offset, stream=stream)
        for packet in original.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
                packet.stream = copied
                container.mux(packet)
    return str(path)


def write_sound(path) -> str:
    """A file with sound and no pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)

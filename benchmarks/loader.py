"""The loader on one thread: read, decode, affine transform, crop, copy into the batch."""

import statistics
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch

import demo_data
from benchmarks.machine import alternate
from benchmarks.plain import PlainVideoFolder
from clips.annotations import read_annotations
from clips.batches import ClipKey
from clips.frames import list_frames, prepare_decoders, read_frame
from config import Config
from data_loader import VideoFolder

NUM_CLIPS = 16
FRAME_BYTES = 4_900  # mean size of a Jester frame
WIDTH = 176


def measure(device, options, folder) -> list[dict]:
    """Return µs per frame, the plain way and ours; the limit is reading and decoding alone."""
    prepare_decoders()
    config = write_clips(Path(folder) / "loader", NUM_CLIPS)
    names = Path(config.labels_csv).read_text().split("\n")[:-1]
    annotations = read_annotations(config.train_data_csv, config.train_data_folder, names)
    clips = [(str(clip_id), 0) for clip_id in annotations.ids]
    plain = PlainVideoFolder(
        config.train_data_folder, clips, clip_size=18, step_size=2, crop_size=84
    )
    ours = VideoFolder(annotations, config, training=True)
    paths = [Path(annotations.clip(index)) for index in range(len(annotations))]
    keys = [ClipKey(0, index) for index in range(len(annotations))]
    chosen = [path / name for path in paths for name in list_frames(path)[:36:2]]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    flow_config = config.model_copy(update={"model": "two_stream"})
    flow = VideoFolder(annotations, flow_config, training=True)
    seconds = alternate(
        {
            "flow": lambda: flow.__getitems__(keys),
            "plain": lambda: torch.stack([plain[index][0] for index in range(len(clips))]),
            "ours": lambda: ours.__getitems__(keys),
            "limit": lambda: read_all(chosen, config.max_frame_pixels),
        },
        options.rounds,
        torch.device("cpu"),
    )
    torch.set_num_threads(threads)
    row = {name: [1e6 * s / len(chosen) for s in values] for name, values in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(row["plain"], row["ours"], strict=True))
    share = statistics.median(a / b for a, b in zip(row["limit"], row["ours"], strict=True))
    what = "loader, one worker: µs per frame (limit: read and decode alone)"
    with_flow = "loader with optical flow (two_stream): µs per frame"
    flow_row = {"what": with_flow, "ours": row.pop("flow")}
    return [row | {"what": what, "ratio": ratio, "share of limit": share}, flow_row]


def read_all(paths, max_pixels) -> None:
    for path in paths:
        read_frame(path, max_pixels)


def write_clips(folder: Path, num_clips: int) -> Config:
    """Write clips of 40 frames of 176 x 100 pixels and about 4.9 KB, as in Jester."""
    lines = []
    for number in range(num_clips):
        rng = np.random.default_rng(number)
        gesture = demo_data.GESTURES[number % len(demo_data.GESTURES)]
        frames = demo_data.draw_clip(gesture, rng)
        clip = folder / "clips" / str(number)
        clip.mkdir(parents=True)
        for position in range(40):
            frame = cv2.resize(frames[position % len(frames)], (WIDTH, 100))
            (clip / f"{position + 1:05d}.jpg").write_bytes(_encode(frame))
        lines.append(f"{number};{gesture}\n")
    (folder / "labels.csv").write_text("".join(f"{name}\n" for name in demo_data.GESTURES))
    (folder / "train.csv").write_text("".join(lines))
    paths = {f"{prefix}_data_folder": str(folder / "clips") for prefix in ("train", "val")}
    paths |= {f"{prefix}_data_csv": str(folder / "train.csv") for prefix in ("train", "val")}
    return Config(model_name="benchmark", labels_csv=str(folder / "labels.csv"), **paths)


def _encode(frame) -> bytes:
    """Return the frame as JPEG, with the quality closest to Jester's file size."""
    for quality in range(98, 40, -3):
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality, "RGB", "420")
        if len(data) <= FRAME_BYTES:
            break
    return data

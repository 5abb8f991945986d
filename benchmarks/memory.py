"""Start-up time, and unshared memory of a loader worker, with as many clips as Jester has.

Each case runs in a separate process (`python -m benchmarks.memory ...`), which reads a whole epoch
of one-frame clips with one worker, looks up the worker's unshared memory and writes a JSON file.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader

PROJECT = Path(__file__).parent.parent
FEW_CLIPS = 10


def measure(_device, options, folder) -> list[dict]:
    """Return MB more per worker than with ten clips, and seconds to the first batch request."""
    large, small = (write_clips(Path(folder) / str(n), n) for n in (options.clips, FEW_CLIPS))
    figures = {
        (way, config): run_child(way, config)
        for way in ("plain", "ours")
        for config in (large, small)
    }
    megabytes = {
        way: figures[way, large]["megabytes"] - figures[way, small]["megabytes"]
        for way in ("plain", "ours")
    }
    start = {way: figures[way, large]["seconds"] for way in ("plain", "ours")}
    clips = f"{options.clips:,} clips"
    return [
        megabytes
        | {
            "what": f"loader worker, {clips}: unshared MB more than with ten",
            "limit": 0.0,
            "ratio": megabytes["plain"] / max(megabytes["ours"], 0.1),
        },
        start
        | {
            "what": f"start to first batch request, {clips}: s (limit: importing torch)",
            "limit": seconds_to_import_torch(),
            "ratio": start["plain"] / start["ours"],
        },
    ]


def write_clips(folder: Path, num_clips: int) -> str:
    """Write links to one clip of one frame, and a config; returns the path of the config."""
    frame = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    (folder / "one").mkdir(parents=True)
    (folder / "clips").mkdir()
    (folder / "one" / "00001.jpg").write_bytes(simplejpeg.encode_jpeg(frame, 90))
    for clip_id in range(num_clips):
        os.symlink("../one", folder / "clips" / str(clip_id))
    (folder / "labels.csv").write_text("a\nb\n")
    rows = "".join(f"{clip_id};{'ab'[clip_id % 2]}\n" for clip_id in range(num_clips))
    (folder / "train.csv").write_text(rows)
    config = {
        "model_name": "memory",
        "output_dir": str(folder),
        "clip_size": 1,
        "crop_size": 16,
        "frame_height": None,
        "num_workers": 1,
        "labels_csv": str(folder / "labels.csv"),
    }
    for prefix in ("train", "val"):
        config |= {
            f"{prefix}_data_folder": str(folder / "clips"),
            f"{prefix}_data_csv": str(folder / "train.csv"),
        }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder / "config.json")


def run_child(way: str, config_path: str) -> dict[str, float]:
    """Return the figures of one way, by their names in `main`."""
    result = Path(config_path).with_name(f"{way}.json")
    command = [sys.executable, "-m", "benchmarks.memory", way, config_path, str(time.monotonic())]
    subprocess.run([*command, str(result)], cwd=PROJECT, check=True)
    return json.loads(result.read_text())


def seconds_to_import_torch() -> float:
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.monotonic() - start


# --- in the child ------------------------------------------------------------------------------


def plain_loader(config_path) -> DataLoader:
    from benchmarks.plain import PlainVideoFolder

    config = json.loads(Path(config_path).read_text())
    labels = Path(config["labels_csv"]).read_text().split()
    clips = []
    for line in Path(config["train_data_csv"]).read_text().splitlines():
        clip_id, label = line.split(";")
        if os.path.isdir(os.path.join(config["train_data_folder"], clip_id)):
            clips.append((clip_id, labels.index(label)))
    data_set = PlainVideoFolder(config["train_data_folder"], clips, 1, 1, 16)
    return DataLoader(
        data_set, batch_size=100, shuffle=True, num_workers=1, persistent_workers=True
    )


def our_loader(config_path) -> DataLoader:
    from data_loader import build_loader, read_class_names, read_set
    from system.config_file import load_config

    config = load_config(config_path, sets=["train", "validation"])
    class_names = read_class_names(config)
    annotations = read_set(config, "train", class_names)
    read_set(config, "validation", class_names)
    return build_loader(annotations, config, True, torch.device("cpu"))


def unshared_megabytes(pid: int | str = "self", kind: str = "Private_") -> float:
    """Return the MiB that a process does not share with others; Private_Dirty: written ones."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def main(way: str, config_path: str, started: str, result: str) -> None:
    loader = {"plain": plain_loader, "ours": our_loader}[way](config_path)
    seconds = time.monotonic() - float(started)
    iterator = iter(loader)
    for _ in iterator:
        pass
    (worker,) = iterator._workers
    megabytes = unshared_megabytes(worker.pid)
    Path(result).write_text(json.dumps({"seconds": seconds, "megabytes": megabytes}))


if __name__ == "__main__":
    main(*sys.argv[1:])

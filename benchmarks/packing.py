"""Reading from a pack and from a folder, packing, and a pack of 5.3 million frames.

    python benchmarks/packing.py --save packing
    python benchmarks/packing.py --parts loader --data FOLDER

The rows are on drawn frames of Jester's size; FOLDER replaces them where frames are only read. Cold
means that Linux's caches are dropped before each round, which only root can do.
"""

import argparse
import gc
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks import benchmark, loader, machine
from clips.annotations import read_annotations
from clips.batches import ClipKey
from clips.frames import decode_frame, list_frames, prepare_decoders, read_file
from clips.packing import Packing, PackWriter, pack
from clips.packs import Pack, PackedFrames
from data_loader import VideoFolder
from system.memory import MIB, peak_bytes

MAX_PIXELS = 16_000_000
FRAMES_PER_CLIP, CLIPS_OF_JESTER = 36, 148_092
HOLE = 24 * 2**30  # bytes that Jester's frames have, but these have not
READS = 500  # clips that a worker reads
DROP_CACHES = Path("/proc/sys/vm/drop_caches")  # see proc(5)
HEADER = "| what | folder | pack | ratio | limit |\n|---|---|---|---|---|"


def make_pack(target, *sources) -> Pack:
    bar = nullcontext(SimpleNamespace(update=lambda num_bytes: None))
    return pack(Path(target), [Path(source) for source in sources], Packing(), lambda total: bar)


# --- the loader --------------------------------------------------------------------------------


def measure_loader(options, folder) -> list[dict]:
    """µs per frame through the loader, and of reading alone: from a folder, and from a pack."""
    prepare_decoders()
    config = loader.write_clips(folder / "loader", options.clips)
    names = Path(config.labels_csv).read_text().split("\n")[:-1]
    packed = make_pack(folder / "loader.zip", config.train_data_folder)
    on_folder, on_pack = (
        VideoFolder(read_annotations(config.train_data_csv, place, names), config, training=True)
        for place in (config.train_data_folder, packed.path)
    )
    batches = [[ClipKey(0, index) for index in range(start, min(start + 16, len(on_folder)))]
               for start in range(0, len(on_folder), 16)]
    contents = [data for clip in packed.ids()
                for _, data in PackedFrames(packed.clip(clip), MAX_PIXELS).read(range(0, 36, 2))]
    ways = {
        "plain": lambda: [on_folder.__getitems__(keys) for keys in batches],
        "ours": lambda: [on_pack.__getitems__(keys) for keys in batches],
        "limit": lambda: [decode_frame(data, MAX_PIXELS) for data in contents],
    }
    seconds = machine.in_turn(ways, options.rounds, torch.device("cpu"))
    rows = [row("loader, one worker, warm: µs per frame (limit: decode alone)", len(contents),
                seconds)]
    if options.data:
        packed = make_pack(folder / "data.zip", options.data)
    source = Path(options.data or config.train_data_folder)
    return [*rows, *measure_reading(options, source, packed),
            measure_copying(options, source, packed)]


def measure_reading(options, folder, packed) -> list[dict]:
    """As `measure_loader`, of reading alone, with and without the files' pages in memory."""
    ids = packed.ids()
    ways = {"plain": lambda: read_folders(folder, ids), "ours": lambda: read_pack(packed, ids)}
    num_frames = read_pack(packed, ids)
    seconds = machine.in_turn(ways, options.rounds, torch.device("cpu"))
    rows = [row("reading alone, warm: µs per frame", num_frames, seconds)]
    if not os.access(DROP_CACHES, os.W_OK):
        return rows
    seconds = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, function in ways.items():
            os.sync()
            DROP_CACHES.write_text("3")
            seconds[name].append(machine.seconds_of(function, torch.device("cpu")))
    return [*rows, row("reading alone, cold: µs per frame", num_frames, seconds)]


def measure_copying(options, folder, packed) -> dict:
    """µs per frame of copying, with the files' pages in memory, and of deleting the copy."""
    copy = Path(f"{packed}.copy")

    def copy_folder():
        shutil.copytree(folder, copy)
        shutil.rmtree(copy)

    def copy_pack():
        shutil.copyfile(packed, copy)
        copy.unlink()

    seconds = machine.in_turn({"plain": copy_folder, "ours": copy_pack}, options.rounds,
                              torch.device("cpu"))  # fmt: skip
    return row("copying and deleting, warm: µs per frame", sum(packed.lengths()), seconds)


def row(what, count, seconds) -> dict:
    """A row of the table; seconds: of each way in each round, for `count` frames."""
    found = {name: [1e6 * each / count for each in values] for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(found["plain"], found["ours"], strict=True)]
    return found | {"what": what, "ratio": statistics.median(ratios)}


def shuffled(ids) -> list[str]:
    return random.Random(0).sample(ids, len(ids))


def read_folders(folder, ids) -> int:
    """Reads every second frame of each clip; returns how many."""
    count = 0
    for clip_id in shuffled(ids):
        names = list_frames(folder / clip_id)[:36:2]
        count += sum(read_file(f"{folder}/{clip_id}/{name}") is not None for name in names)
    return count


def read_pack(packed, ids) -> int:
    count = 0
    for clip_id in shuffled(ids):
        frames = PackedFrames(packed.clip(clip_id), MAX_PIXELS)
        count += sum(1 for _ in frames.read(range(len(frames))[:36:2]))
    return count


# --- packing -----------------------------------------------------------------------------------


def measure_packing(options, folder) -> list[dict]:
    """MB/s of packing a folder, and the same frames in a compressed tar file."""
    config = loader.write_clips(folder / "packing", options.clips)
    archive = folder / "clips.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(config.train_data_folder, "clips")
    rows = []
    for source, what in ((config.train_data_folder, "a folder"), (archive, "a tar.gz file")):
        target, speeds = folder / "packed.zip", []
        for _ in range(options.rounds):
            start = time.perf_counter()
            make_pack(target, source)
            speeds.append(target.stat().st_size / (time.perf_counter() - start) / 1e6)
        rows.append({"what": f"packing {what}, warm: MB/s", "ours": speeds})
    return rows


# --- as many frames as Jester has --------------------------------------------------------------


def measure_scale(options, folder) -> list[dict]:
    """Opening time and memory of a pack with Jester's number of clips and frames."""
    path = folder / "many.zip"
    seconds, peak = machine.apart(write_many, path, options.many_clips)
    opened, own, of_worker = machine.apart(open_many, path)
    count = f"{FRAMES_PER_CLIP * options.many_clips:,} frames"
    return [
        {"what": f"writing {count} of one byte: seconds", "ours": seconds},
        {"what": f"writing {count}: peak memory in MiB", "ours": peak},
        {"what": f"opening {count}: seconds, warm", "ours": opened},
        {"what": f"opening {count}: memory in MiB", "ours": own},
        {"what": f"a forked worker that reads {READS} of its clips: further memory in MiB",
         "ours": of_worker},
    ]  # fmt: skip


def write_many(path, num_clips) -> tuple[float, float]:
    """Writes a pack whose frames are as far apart as Jester's, by a hole in the file."""
    start = time.perf_counter()
    clip = [(f"{number:05d}.jpg", b"x") for number in range(1, FRAMES_PER_CLIP + 1)]
    with open(path, "wb", buffering=2**20) as file, tempfile.TemporaryFile() as central:
        writer = PackWriter(file, central)
        for number in range(num_clips):
            if number == 1000:
                file.seek(HOLE, os.SEEK_CUR)
                writer.position += HOLE
            writer.add_clip(str(number), clip)
        writer.finish()
    return time.perf_counter() - start, peak_bytes(torch.device("cpu")) / MIB


def open_many(path) -> tuple[float, float, float]:
    """Returns the seconds of opening it, its memory, and what a forked worker needs besides."""
    gc.collect()
    before = private_memory()
    packed = Pack(path)
    num_clips = packed.about["clips"]  # opens it; its index is in the page cache now
    own = private_memory() - before
    start = time.perf_counter()
    Pack(path).ids()
    seconds = time.perf_counter() - start
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=read_many, args=(packed, num_clips, queue))
    worker.start()
    worker.join()
    return seconds, own, queue.get()


def read_many(packed, num_clips, queue) -> None:
    def read(number):
        return list(PackedFrames(packed.clip(str(number)), MAX_PIXELS).read(range(0, 36, 2)))

    draw = random.Random(0)
    read(draw.randrange(2000, num_clips))  # the first one imports and allocates
    before = private_memory()
    for _ in range(READS):
        read(draw.randrange(2000, num_clips))
    queue.put(private_memory() - before)


def private_memory() -> float:
    """MiB that this process has written, and shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


# --- the command -------------------------------------------------------------------------------

PARTS = {"loader": measure_loader, "packing": measure_packing, "scale": measure_scale}


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    about, rows = machine.describe(torch.device("cpu")), []
    title = f"{about['machine']}, {about['versions']}"
    print(f"{title}\n\n{HEADER}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for part in options.parts:
            for each in PARTS[part](options, Path(folder)):
                rows.append(each)
                print(benchmark.table_row(each), flush=True)
    if options.save:
        lines = "\n".join([HEADER, *map(benchmark.table_row, rows)])
        machine.save(options.save, about | {"rows": rows}, f"{title}, {about['date']}\n\n{lines}\n")
    return 0


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--clips", type=int, default=200, help="that are drawn (%(default)s)")
    parser.add_argument("--many_clips", type=int, default=CLIPS_OF_JESTER, help="(%(default)s)")
    parser.add_argument("--data", metavar="FOLDER", help="read these clips instead of drawn ones")
    parser.add_argument("--folder", help="where to write, on the disk to measure (default: /tmp)")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and .md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

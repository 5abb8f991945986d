"""Reading clips from a pack and from a folder, packing, and a pack of 5.3 million frames.

Frames are drawn, of Jester's size. Cold means that Linux's caches are dropped before each round,
which only root can do.
"""

import gc
import multiprocessing
import os
import random
import shutil
import statistics
import tarfile
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks import loader, machine
from benchmarks.memory import unshared_megabytes
from clips.annotations import read_annotations
from clips.batches import ClipKey
from clips.frames import decode_frame, list_frames, prepare_decoders, read_file
from clips.packing import Packing, PackWriter, pack
from clips.packs import Pack, PackedFrames
from data_loader import VideoFolder

CPU = torch.device("cpu")
MAX_PIXELS = 16_000_000
DRAWN_CLIPS = 200
FRAMES_PER_CLIP, CLIPS_OF_JESTER = 36, 148_092  # of all its sets
HOLE = 24 * 2**30  # bytes by which Jester's frames are larger
READS = 500  # clips that a worker reads
DROP_CACHES = Path("/proc/sys/vm/drop_caches")  # see proc(5)


def measure(_device, options, folder):
    """Yield rows of reading and copying (folder, pack, ratio), packing, and opening a large one."""
    torch.set_num_threads(1)
    prepare_decoders()
    config = loader.write_clips(folder, DRAWN_CLIPS)
    packed = make_pack(folder / "clips.zip", config.train_data_folder)
    yield measure_loader(options, config, packed)
    yield from measure_reading(options, Path(config.train_data_folder), packed)
    yield measure_copying(options, config.train_data_folder, packed)
    yield from measure_packing(options, config.train_data_folder, folder)
    yield from measure_opening(folder / "many.zip")


def make_pack(target, *sources) -> Pack:
    bar = nullcontext(SimpleNamespace(update=lambda num_bytes: None))
    return pack(Path(target), [Path(source) for source in sources], Packing(), lambda total: bar)


# --- reading -----------------------------------------------------------------------------------


def measure_loader(options, config, packed) -> dict:
    """Return µs per frame through the loader; the limit is decoding alone."""
    names = Path(config.labels_csv).read_text().split("\n")[:-1]
    on_folder, on_pack = (
        VideoFolder(read_annotations(config.train_data_csv, place, names), config, training=True)
        for place in (config.train_data_folder, packed.path)
    )
    batches = [
        [ClipKey(0, index) for index in range(start, min(start + 16, len(on_folder)))]
        for start in range(0, len(on_folder), 16)
    ]
    contents = [
        data
        for clip in packed.ids()
        for _, data in PackedFrames(packed.clip(clip), MAX_PIXELS).read(range(0, 36, 2))
    ]
    ways = {
        "folder": lambda: [on_folder.__getitems__(keys) for keys in batches],
        "pack": lambda: [on_pack.__getitems__(keys) for keys in batches],
        "limit": lambda: [decode_frame(data, MAX_PIXELS) for data in contents],
    }
    seconds = machine.alternate(ways, options.rounds, CPU)
    return row(
        "loader, one worker, warm: µs per frame (limit: decode alone)", len(contents), seconds
    )


def measure_reading(options, folder, packed):
    """Yield µs per frame of reading alone, with and without the files' pages in memory."""
    ids = packed.ids()
    ways = {"folder": lambda: read_folders(folder, ids), "pack": lambda: read_pack(packed, ids)}
    num_frames = read_pack(packed, ids)
    seconds = machine.alternate(ways, options.rounds, CPU)
    yield row("reading alone, warm: µs per frame", num_frames, seconds)
    if not os.access(DROP_CACHES, os.W_OK):
        return
    seconds = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, function in ways.items():
            os.sync()
            DROP_CACHES.write_text("3")
            seconds[name].append(machine.seconds_of(function, CPU))
    yield row("reading alone, cold: µs per frame", num_frames, seconds)


def measure_copying(options, folder, packed) -> dict:
    """Return µs per frame of copying, with the files' pages in memory, and deleting the copy."""
    copy = Path(f"{packed}.copy")

    def copy_folder():
        shutil.copytree(folder, copy)
        shutil.rmtree(copy)

    def copy_pack():
        shutil.copyfile(packed, copy)
        copy.unlink()

    seconds = machine.alternate({"folder": copy_folder, "pack": copy_pack}, options.rounds, CPU)
    return row("copying and deleting, warm: µs per frame", sum(packed.lengths()), seconds)


def row(what, count, seconds) -> dict:
    """Return a row of the table; seconds: of each way in each round, for `count` frames."""
    found = {name: [1e6 * each / count for each in values] for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(found["folder"], found["pack"], strict=True)]
    return {"what": what, **found, "ratio": statistics.median(ratios)}


def shuffled(ids) -> list[str]:
    return random.Random(0).sample(ids, len(ids))


def read_folders(folder, ids) -> int:
    """Read every second frame of each clip; return how many."""
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


def measure_packing(options, clips, folder):
    """Yield MB/s of packing a folder, and the same frames in a compressed tar file."""
    archive = folder / "clips.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(clips, "clips")
    for source, what in ((clips, "a folder"), (archive, "a tar.gz file")):
        target, speeds = folder / "packed.zip", []
        for _ in range(options.rounds):
            start = time.perf_counter()
            make_pack(target, source)
            speeds.append(target.stat().st_size / (time.perf_counter() - start) / 1e6)
        yield {"what": f"packing {what}, warm: MB/s", "pack": speeds}


# --- as many frames as Jester has --------------------------------------------------------------


def measure_opening(path):
    """Yield time and memory of opening a pack with Jester's number of clips and frames."""
    machine.in_subprocess(write_many, path)
    seconds, own, of_worker = machine.in_subprocess(open_many, path)
    count = f"{FRAMES_PER_CLIP * CLIPS_OF_JESTER:,} frames"
    yield {"what": f"opening {count}, warm: seconds", "pack": seconds}
    yield {"what": f"opening {count}: memory in MiB", "pack": own}
    yield {
        "what": f"a forked worker that reads {READS} of its clips: further memory in MiB",
        "pack": of_worker,
    }


def write_many(path) -> None:
    """Write a pack whose frames are as far apart as Jester's, by holes in the file."""
    clip = [(f"{number:05d}.jpg", b"x") for number in range(1, FRAMES_PER_CLIP + 1)]
    with open(path, "wb", buffering=2**20) as file, tempfile.TemporaryFile() as central:
        writer = PackWriter(file, central)
        for number in range(CLIPS_OF_JESTER):
            if number == 100:
                file.seek(HOLE, os.SEEK_CUR)
                writer.position += HOLE
            writer.add_clip(str(number), clip)
        writer.finish()


def open_many(path) -> tuple[float, float, float]:
    """Return the seconds of opening it, its memory, and a forked worker's further memory."""
    gc.collect()
    before = unshared_megabytes(kind="Private_Dirty")
    packed = Pack(path)
    num_clips = packed.about["clips"]  # opens it; the index is now in the page cache
    own = unshared_megabytes(kind="Private_Dirty") - before
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
    read(draw.randrange(num_clips // 2, num_clips))  # the first one imports and allocates
    before = unshared_megabytes(kind="Private_Dirty")
    for _ in range(READS):
        read(draw.randrange(num_clips // 2, num_clips))
    queue.put(unshared_megabytes(kind="Private_Dirty") - before)

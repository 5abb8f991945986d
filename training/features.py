"""Features of a frozen backbone, computed once per clip and kept in files in the run folder.

With `feature_versions` V > 0, version v of a training clip is the clip as epoch v augments it, and
epoch e trains on version e modulo V; so with as many versions as epochs, training sees the clips
that it would see without this. Validation clips have one version, all their evaluation windows.

Shapes: V versions, N clips, K windows per clip, T frames, C channels, h, w: those of the backbone's
maps, which are fp16 [T, C, h, w] per window, or [T, F] if it ends with a vector.
"""

import hashlib
import math
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from clips.batches import BadClip, Batch, ClipKey, batches_of
from clips.frames import FrameError
from clips.sampling import short_clips_note
from config import FEATURE_KEYS, Config
from data_loader import VideoFolder, batch_loader
from model import normalize_clips
from networks.inference import fold_batchnorm
from networks.stages import num_channels, to_meta
from system import processes, stopping
from system.chunk_file import ChunkFile, JournaledFile, SharedFile, journal_of, read_journal
from system.device import computing_in, precision_name
from system.errors import UserError, summarize
from system.memory import format_bytes
from training.run_folder import FEATURES_FOLDER

FRAMES_PER_CHUNK = 256  # of one process at a time; a killed run loses no more than a few of these
FRAMES_AT_ONCE = 32  # through the backbone, so that its activations stay in the cache
SECONDS_BETWEEN_LINES = 10.0  # if the output is not a terminal
SPARE = 0.9  # of the free disk space that features may fill; checkpoints need some


# --- the loop's data ---------------------------------------------------------------------------


class FeatureSet(Dataset):
    """The features of one set of clips, in batches like those of `VideoFolder`."""

    def __init__(self, annotations, config: Config, training: bool, window_shape: tuple[int, ...]):
        """window_shape: of a window's features, (T, ...)."""
        self.videos = VideoFolder(annotations, config, training)
        self.annotations, self.config, self.training = annotations, config, training
        self.num_versions = config.feature_versions if training else 1
        self.clip_shape = (self.videos.input_shape[0], *window_shape)  # (K, T, ...)
        self.labels = np.full((self.num_versions, len(self)), -1, np.int64)
        self.bad: dict[tuple[int, int], str] = {}  # (version, clip) -> why it cannot be read
        self.features: np.ndarray | None = None  # fp16 [V, N, K, T, ...]

    def __len__(self):
        return len(self.annotations)

    def __getitem__(self, key):
        """Return a clip itself and its label, as `VideoFolder` does."""
        return self.videos[key]

    def __getitems__(self, keys: list[ClipKey]) -> Batch:
        """Return a batch of fp16 [N, K, T, ...] with the features of one epoch's clips."""
        version = keys[0].epoch % self.num_versions if keys else 0
        indices = np.array([key.index for key in keys], np.int64)
        reasons = [self.bad.get((version, key.index)) for key in keys]
        good = indices[np.array([reason is None for reason in reasons], bool)]
        return Batch(
            torch.from_numpy(np.array(self.features[version, good])),
            torch.from_numpy(self.labels[version, good]),
            torch.from_numpy(good),
            [BadClip(key.index, why) for key, why in zip(keys, reasons, strict=True) if why],
        )

    def open(self, file: ChunkFile) -> None:
        """Open the file with the features of all clips."""
        self.features = file.array(self.shape, np.float16)
        for chunk in file.chunks.values():
            version, start = chunk["version"], chunk["start"]
            self.labels[version, start : start + len(chunk["labels"])] = chunk["labels"]
            self.bad |= {(version, index): why for index, why in chunk["bad"]}

    @property
    def name(self) -> str:
        return "train" if self.training else "validation"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_versions, len(self), *self.clip_shape)

    @property
    def network_shape(self) -> tuple[int, ...]:
        """Return the shape of the head's input for a clip, (T, ...)."""
        return self.clip_shape[1:]

    @property
    def clip_bytes(self) -> int:
        return 2 * math.prod(self.clip_shape)

    @property
    def num_bytes(self) -> int:
        return 2 * math.prod(self.shape)

    @property
    def frames_per_clip(self) -> int:
        return math.prod(self.clip_shape[:2])


# --- which features ----------------------------------------------------------------------------


def window_shape(model, config: Config) -> tuple[int, ...]:
    """Return the shape of a window's features, (T, ...), computed without data."""
    clip = torch.empty(1, num_channels(model), *config.clip_shape, device="meta")
    with torch.no_grad():
        return tuple(to_meta(model).frame_features(clip).shape[1:])


def describe(features: FeatureSet, model, precision: str) -> dict:
    """Return what the features depend on; features of another description are computed again."""
    annotations = features.annotations
    return {
        "clips": annotations.digest(),
        "folder": str(Path(annotations.folder).resolve()),
        "frames": annotations.folder.identity,
        "weights": weights_digest(model.backbone),
        "precision": precision,
        "shape": list(features.shape),
        "frames_per_chunk": FRAMES_PER_CHUNK,
        "colours": [*features.config.input_mean, *features.config.input_std],
    } | features.config.model_dump(include=set(FEATURE_KEYS), mode="json")


def weights_digest(module) -> str:
    """Return a hash of a module's parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def backbone_function(model, device, config: Config, precision: str) -> Callable:
    """Return the function that computes features on the device, in `precision`.

    It maps windows, uint8 [N, T, H, W, C], to their features, fp16 [N, T, ...] on the CPU.
    """
    network = fold_batchnorm(model)

    def compute(windows: torch.Tensor) -> torch.Tensor:
        clips = normalize_clips(windows, device, config)  # [N, C, T, H, W]
        frames = clips.transpose(1, 2).flatten(0, 1)[:, :, None]  # clips of one frame
        with torch.inference_mode(), computing_in(device, precision):
            parts = [network.frame_features(part).half() for part in frames.split(FRAMES_AT_ONCE)]
        return torch.cat(parts).cpu().view(*windows.shape[:2], *parts[0].shape[2:])

    return compute


# --- computing them ----------------------------------------------------------------------------


def compute_features(run, train_set, validation_set) -> list[FeatureSet] | None:
    """Compute the features of both sets, or finish computing them, with a frozen backbone.

    Several processes each compute a part. Returns None if the disk is too small, after saying so.
    Raises FrameError for a bad clip unless `on_bad_clip` is skip, Stopped after a signal, and
    UserError for features that are NaN or inf.
    """
    config, model, device = run.config, run.model, run.device
    shape = window_shape(model, config)
    sets = [
        FeatureSet(train_set, config, True, shape),
        FeatureSet(validation_set, config, False, shape),
    ]
    # As training and evaluation without this compute them.
    precisions = [precision_name(p, device) for p in (config.precision, config.eval_precision)]
    files = [
        open_file(features, model, precision)
        for features, precision in zip(sets, precisions, strict=True)
    ]
    if not has_room(sets, files, config.run_folder / FEATURES_FOLDER):
        return None
    for features, file, precision in zip(sets, files, precisions, strict=True):
        compute = backbone_function(model, device, config, precision)
        try:
            compute_set(features, file, compute, device)
        finally:
            file.close()
    return sets


def open_file(features: FeatureSet, model, precision: str) -> ChunkFile:
    """Open the file of a set's features; `chunks` are those that are finished already.

    The main process writes the file in the run folder. The others read it, or, on a machine that
    does not see it, keep a copy in a temporary file.
    """
    path = features.config.run_folder / FEATURES_FOLDER / f"{features.name}.f16"
    opened = []

    def open_in_main():
        file = JournaledFile(path, describe(features, model, precision))
        if file.changed:
            print(f"{path}: is of other {summarize(file.changed)}; computed again", flush=True)
        opened.append(file)
        return file.id, file.chunks

    number, chunks = processes.broadcast_from_main(open_in_main)
    if opened:
        return opened[0]
    file = SharedFile(path) if has_file(path, number) else ChunkFile()
    file.chunks = chunks
    return file


def has_file(path: Path, number: str) -> bool:
    """Return whether this process sees the file with this id."""
    return path.exists() and read_journal(journal_of(path))[0].get("id") == number


def has_room(sets: list[FeatureSet], files: list[ChunkFile], folder: Path) -> bool:
    """Print the size of the features; return whether each process has the room for its files."""
    own, needed = folder, sum(features.num_bytes for features in sets)
    if isinstance(files[0], JournaledFile):
        needed -= sum(chunk["size"] for file in files for chunk in file.chunks.values())
    elif isinstance(files[0], SharedFile):
        needed = 0
    else:
        own = Path(tempfile.gettempdir())
    room = int(SPARE * shutil.disk_usage(own).free)
    rows = processes.all_gather_ints(needed=needed, room=room)
    total = format_bytes(sum(features.num_bytes for features in sets))
    train, validation = sets
    print(
        f"features: {len(train):,} training clips in {train.num_versions} versions and "
        f"{len(validation):,} validation clips, {total} in {folder}",
        flush=True,
    )
    for number, row in enumerate(rows):
        if row["needed"] > row["room"]:
            place = f"the temporary folder of process {number}" if number else str(folder)
            print(
                f"warning: feature_versions: there is room for {format_bytes(row['room'])} of "
                f"features in {place}, not for {format_bytes(row['needed'])}; they are computed in "
                "each step, which is slower; lower feature_versions, crop_size or clip_size, or "
                "make room, for example by another output_dir",
                flush=True,
            )
            return False
    return True


class Chunks:
    """The unfinished chunks of a set, dealt to the processes in turn: a loader's batch sampler.

    A chunk has clips of one version. It is the same for any number of processes and after a
    resume, and so are its features: libraries round differently in batches of other sizes.
    """

    def __init__(self, features: FeatureSet, finished: dict[int, dict]):
        self.features = features
        self.clips_per_chunk = max(1, FRAMES_PER_CHUNK // features.frames_per_clip)
        self.chunks_per_version = -(-len(features) // self.clips_per_chunk)
        # A clip that could not be read may have been repaired.
        self.todo = [
            number
            for number in range(features.num_versions * self.chunks_per_version)
            if number not in finished or finished[number]["bad"]
        ]

    def clips(self, number: int) -> tuple[int, range]:
        """Return the version and the clips of a chunk."""
        version, place = divmod(number, self.chunks_per_version)
        start = place * self.clips_per_chunk
        return version, range(start, min(start + self.clips_per_chunk, len(self.features)))

    def own(self, turn: int) -> int | None:
        """Return this process's chunk in a turn."""
        place = turn * processes.world_size() + processes.rank()
        return self.todo[place] if place < len(self.todo) else None

    def __len__(self):
        return -(-len(self.todo) // processes.world_size())

    def __iter__(self):
        for turn in range(len(self)):
            number = self.own(turn)
            version, clips = (0, ()) if number is None else self.clips(number)
            yield [ClipKey(version, index) for index in clips]


def compute_set(features: FeatureSet, file: ChunkFile, compute: Callable, device) -> None:
    """Compute what a set's file lacks, and open it for the loop; every process must call this.

    compute: from `backbone_function`.
    """
    copy_finished(file)
    chunks = Chunks(features, file.chunks)
    loader = batch_loader(features.videos, chunks, device)
    with stopping.deferred(), Progress(features, chunks) as progress:
        for turn, batch in enumerate(batches_of(loader)):
            processes.stop_together()
            own, own_data = compute_chunk(features, chunks, chunks.own(turn), batch, compute)
            all_data = processes.all_gather_bytes(own_data)
            for chunk, data in zip(processes.all_gather([own]), all_data, strict=True):
                if chunk is not None:
                    check_chunk(chunk, features)
                    file.write(chunk, data[: chunk["size"]].numpy())
                    progress.update(chunk)
    if isinstance(file, JournaledFile):
        file.sync()
    processes.wait_for_all()  # then the others open it
    features.open(file)
    if num_short := sum(chunk["num_short"] for chunk in file.chunks.values()):
        note = short_clips_note(num_short, len(features) - len(features.bad), features.config)
        print(f"{features.name}: {note}")


def copy_finished(file: ChunkFile) -> None:
    """Copy the chunks that are finished to the processes that do not see the main one's file."""
    is_separate = not isinstance(file, JournaledFile | SharedFile)
    if not processes.all_max(is_separate=is_separate)["is_separate"]:
        return
    for _, chunk in sorted(file.chunks.items()):
        data = torch.empty(chunk["size"], dtype=torch.uint8)
        if processes.is_main():
            data = torch.from_numpy(np.array(file.array(chunk["size"], np.uint8, chunk["offset"])))
        file.write(chunk, processes.broadcast_bytes(data).numpy())


def compute_chunk(features: FeatureSet, chunks: Chunks, number, batch: Batch, compute):
    """Return what the journal says of a chunk, and its features as bytes, uint8 [size].

    number: None returns None, and bytes for the exchange, in which each process has as many.
    batch: the chunk's clips; those that cannot be read have features of 0.
    """
    data = torch.zeros(chunks.clips_per_chunk, *features.clip_shape, dtype=torch.float16)
    if number is None:
        return None, data.view(torch.uint8).flatten()
    version, clips = chunks.clips(number)
    labels = torch.full((len(clips),), -1)
    if len(batch.indices):
        places = batch.indices - clips.start
        values = compute(batch.clips.flatten(0, 1))  # [N * K, T, ...]
        data[places] = values.view(len(places), *features.clip_shape)
        labels[places] = batch.labels
    about = {
        "chunk": number,
        "offset": (version * len(features) + clips.start) * features.clip_bytes,
        "size": len(clips) * features.clip_bytes,
        "version": version,
        "start": clips.start,
        "labels": labels.tolist(),
        "bad": batch.bad,
        "num_short": batch.num_short if version == 0 else 0,
        "is_finite": bool(data.isfinite().all()),
    }
    return about, data.view(torch.uint8).flatten()


def check_chunk(chunk: dict, features: FeatureSet) -> None:
    """Raise FrameError for a bad clip that stops the run, UserError for features beyond fp16."""
    if chunk["bad"] and features.config.on_bad_clip == "stop":
        raise FrameError(chunk["bad"][0][1])
    if not chunk["is_finite"]:
        ids = features.annotations.ids[chunk["start"] :][: len(chunk["labels"])]
        raise UserError(
            f"feature_versions: the backbone's features of {features.name} clips "
            f"{summarize(ids)} contain NaN, inf or more than fp16 can hold; set it to 0, or use "
            "other weights"
        )


class Progress:
    """A bar with frames per second and the time left, or a line from time to time."""

    def __init__(self, features: FeatureSet, chunks: Chunks):
        frames = features.frames_per_clip
        self.frames, self.title = frames, f"features of {features.name} clips"
        todo = sum(len(chunks.clips(number)[1]) for number in chunks.todo)
        total = features.num_versions * len(features)
        self.bar = tqdm(
            total=total * frames,
            initial=(total - todo) * frames,
            desc=self.title,
            unit=" frames",
            leave=False,
            disable=None if processes.is_main() else True,  # None: only in a terminal
        )
        self.todo, self.done = todo * frames, 0

    def __enter__(self):
        self.start = self.shown = time.perf_counter()
        return self

    def update(self, chunk: dict) -> None:
        count = len(chunk["labels"]) * self.frames
        self.done += count
        self.bar.update(count)
        now = time.perf_counter()
        if self.bar.disable and now - self.shown > SECONDS_BETWEEN_LINES and self.done < self.todo:
            self.shown, rate = now, self.done / (now - self.start)
            left = tqdm.format_interval((self.todo - self.done) / rate)
            print(
                f"{self.title}: {self.done:,}/{self.todo:,} frames, {rate:,.0f} frames/s, "
                f"{left} left",
                flush=True,
            )

    def __exit__(self, kind, error, _):
        self.bar.close()
        seconds = time.perf_counter() - self.start
        if self.done:
            rate = f"{seconds:.1f} s, {self.done / seconds:,.0f} frames/s"
            print(f"{self.title}: {self.done:,} frames in {rate}", flush=True)
        if isinstance(error, stopping.Stopped):
            name = signal.Signals(error.signal_number).name
            print(
                f"stopped by {name}; {self.todo - self.done:,} frames are left, which the same "
                "command computes",
                flush=True,
            )


def delete_features(folder: Path) -> None:
    """Delete the features in a run folder."""
    for path in (folder / FEATURES_FOLDER).glob("*.f16*"):
        path.unlink()
    with suppress(OSError):  # it has other files, or does not exist
        (folder / FEATURES_FOLDER).rmdir()

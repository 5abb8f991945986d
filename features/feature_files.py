"""The files of features in the run folder: what they depend on, and whether there is room."""

import hashlib
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from config import FEATURE_KEYS
from features.feature_set import FRAMES_PER_CHUNK, FeatureSet
from system import processes
from system.chunk_file import ChunkFile, JournaledFile, SharedFile, journal_of, read_journal
from system.device import precision_name
from system.errors import summarize
from system.memory import format_bytes
from training.run_folder import FEATURES_FOLDER

SPARE = 0.9  # of the free disk space that features may fill; checkpoints need some


def open_file(features: FeatureSet, model, device) -> ChunkFile:
    """Open the file of a set's features; `chunks` are those that are finished already.

    The main process writes the file in the run folder. The others read it, or, on a machine that
    does not see it, keep a copy in a temporary file.
    """
    path = features.config.run_folder / FEATURES_FOLDER / f"{features.name}.f16"
    opened = []

    def open_in_main():
        file = JournaledFile(path, describe(features, model, device))
        if file.changed:
            print(
                f"{path}: was computed with other {summarize(file.changed)}; computing again",
                flush=True,
            )
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


def has_room(sets: list[FeatureSet], files: list[ChunkFile]) -> bool:
    """Print the size of the features; return whether each process has the room for its files."""
    folder = sets[0].config.run_folder / FEATURES_FOLDER
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
                f"warning: feature_versions: the features need {format_bytes(row['needed'])}, but "
                f"{place} has room for {format_bytes(row['room'])}; so they are computed in each "
                "step, which is slower; lower feature_versions, crop_size or clip_size, or make "
                "room, for example with another output_dir",
                flush=True,
            )
            return False
    return True


def describe(features: FeatureSet, model, device) -> dict:
    """Return what the features depend on; features of another description are computed again."""
    annotations = features.annotations
    return {
        "clips": annotations.digest(),
        "folder": str(Path(annotations.folder).resolve()),
        "frames": annotations.folder.identity,
        "weights": weights_digest(model.backbone),
        "precision": precision_name(features.config.eval_precision, device),
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


def delete_features(folder: Path) -> None:
    """Delete the features in a run folder."""
    for path in (folder / FEATURES_FOLDER).glob("*.f16*"):
        path.unlink()
    with suppress(OSError):  # it has other files, or does not exist
        (folder / FEATURES_FOLDER).rmdir()

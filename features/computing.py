"""Compute the features of a frozen backbone once, before the first epoch.

The work is cut into chunks, which several processes share, and a killed run continues with the
first one that is not in the file.
"""

from collections.abc import Callable

import torch

from clips.annotations import Annotations
from clips.batches import Batch, batches_of
from clips.frames import FrameError
from clips.sampling import short_clips_note
from data_loader import batch_loader
from features.backbone import backbone_function, window_shape
from features.feature_files import copy_finished, delete_features, has_room, open_file
from features.feature_set import Chunks, FeatureSet
from features.progress import Progress
from system import processes, stopping
from system.chunk_file import ChunkFile, JournaledFile
from system.errors import UserError, summarize
from training.run import Run


def compute_features(
    run: Run, train_set: Annotations, validation_set: Annotations
) -> list[FeatureSet] | None:
    """Compute the features of both sets with the run's backbone, or what is missing of them.

    Every process must call this; each computes a part. Returns None if the disk has no room for
    them, after saying so. Raises FrameError for a bad clip unless `on_bad_clip` is skip, Stopped
    after a signal, and UserError for features that are NaN or inf.
    """
    shape = window_shape(run.model, run.config)
    sets = [
        FeatureSet(annotations, run.config, training, shape)
        for annotations, training in ((train_set, True), (validation_set, False))
    ]
    files = [open_file(features, run.model, run.device) for features in sets]
    try:
        if has_room(sets, files):
            with backbone_function(run.model, run.device, run.config) as compute:
                for features, file in zip(sets, files, strict=True):
                    compute_set(features, file, compute, run.device)
            return sets
    finally:
        for file in files:
            file.close()
    if processes.is_main():
        delete_features(run.config.run_folder)
    return None


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
    first = [chunk for chunk in file.chunks.values() if chunk["version"] == 0]
    if num_short := sum(chunk["num_short"] for chunk in first):
        num_read = sum(len(chunk["labels"]) - len(chunk["bad"]) for chunk in first)
        print(f"{features.name}: {short_clips_note(num_short, num_read, features.config)}")


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
        values = compute(batch.clips.flatten(0, 1), features.num_views)  # [N * K * V, T, ...]
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
        "num_short": batch.num_short,
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

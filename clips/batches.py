"""Which clips come in which batch, for any number of processes.

The order is a function of (seed, epoch), never of a stored generator.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from system import processes, stopping


class ClipKey(NamedTuple):
    """What the sampler hands to a worker: which clip, and in which epoch."""

    epoch: int
    index: int


class BadClip(NamedTuple):
    """A clip that could not be read, and why."""

    index: int
    reason: str


class Batch(NamedTuple):
    clips: torch.Tensor  # uint8 [N, K, T, H, W, C]; K = 1 in training
    labels: torch.Tensor  # int64 [N]; -1 where the set has none
    indices: torch.Tensor  # int64 [N], positions in the CSV
    bad: list[BadClip]  # clips that are missing from the batch
    num_short: int = 0  # clips with fewer than `frames_needed`


# --- batches -----------------------------------------------------------------------------------


class TrainBatches:
    """This process's part of each batch, in an order drawn from (seed, epoch).

    Call `start_at` before each pass. A last batch with fewer than two clips a process is left
    out, since BatchNorm needs two; the order changes with the epoch, so no clip always is.
    """

    def __init__(self, num_clips, batch_size, seed):
        self.num_clips, self.batch_size, self.seed = num_clips, batch_size, seed
        self.start_at(0, 0)

    def start_at(self, epoch: int, step: int, last: int | None = None) -> None:
        """The next pass is over the steps from `step` to `last` (excluded; None: to the end)."""
        self.epoch, self.first_step = epoch, step
        self.last_step = len(self) if last is None else min(last, len(self))

    def __len__(self):
        """Steps of a whole epoch."""
        full, rest = divmod(self.num_clips, self.batch_size)
        return full + (rest >= 2 * processes.world_size())

    def clips_per_part(self, num_parts: int) -> int:
        """Clips of this process in the first part of a full step, computed in `num_parts`."""
        num_clips, num_processes = min(self.batch_size, self.num_clips), processes.world_size()
        fewest = num_clips // num_processes
        own = len(range(processes.rank(), num_clips, num_processes))
        return -(-own // min(num_parts, fewest // 2))

    def __iter__(self):
        epoch = self.epoch
        # Without the spawn key it would be the stream of clip 0, which (seed, epoch, 0) names.
        seeds = np.random.SeedSequence([self.seed, epoch], spawn_key=(0,))
        order = np.random.default_rng(seeds).permutation(self.num_clips)
        for step in range(self.first_step, self.last_step):
            indices = order[step * self.batch_size : (step + 1) * self.batch_size]
            own = indices[processes.rank() :: processes.world_size()]
            yield [ClipKey(epoch, int(index)) for index in own]


class EvalBatches:
    """Batches of clip keys in CSV order, each clip once; the processes take them in turn.

    A batch holds the same clips for any number of processes, so that its figures are the same.
    A process that comes out one batch short gets an empty one: all have equally many.
    """

    def __init__(self, num_clips, batch_size):
        self.num_clips, self.batch_size = num_clips, batch_size

    def __len__(self):
        return -(-self.num_clips // (self.batch_size * processes.world_size()))

    def __iter__(self):
        for turn in range(len(self)):
            start = self.batch_size * (turn * processes.world_size() + processes.rank())
            stop = min(start + self.batch_size, self.num_clips)
            yield [ClipKey(0, index) for index in range(start, stop)]


def empty_clips(shape) -> torch.Tensor:
    """Room for the clips of a batch; in a worker it is memory that the main process shares."""
    clips = torch.empty(0, dtype=torch.uint8)
    if get_worker_info() is not None:  # as PyTorch's own collate does it
        storage = clips.untyped_storage()._new_shared(math.prod(shape), device=clips.device)
        clips = clips.new(storage)
    return clips.resize_(shape)


def as_it_is(batch: Batch) -> Batch:
    """In the place of the loader's collate function: the data set gives whole batches."""
    return batch


def batches_of(loader):
    """Iterates over a loader's batches; a signal does not wait for a slow one."""
    with stopping.kept_from_workers():
        iterator = iter(loader)
    while True:
        # Several processes must stop at the same step, so each looks only between steps.
        with nullcontext() if processes.world_size() > 1 else stopping.at_once():
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch

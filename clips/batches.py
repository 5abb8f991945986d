"""Batches of clips, for any number of processes.

The order of the clips is a function of (seed, epoch), so no generator's state is stored.
"""

import math
import weakref
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info
from torch.utils.data._utils.signal_handling import _remove_worker_pids

from system import processes, stopping


class ClipKey(NamedTuple):
    """The clip that a worker reads, and the epoch."""

    epoch: int
    index: int


class BadClip(NamedTuple):
    """A clip that could not be read, and the reason."""

    index: int
    reason: str


class Batch(NamedTuple):
    """A batch of clips, as a data set returns it."""

    clips: torch.Tensor  # uint8 [N, K, T, H, W, C]; K = 1 in training
    labels: torch.Tensor  # int64 [N]; -1 where the set has none
    indices: torch.Tensor  # int64 [N], positions in the CSV
    bad: list[BadClip]  # clips that are missing from the batch
    num_short: int = 0  # clips with fewer than `frames_needed`


class TrainBatches:
    """This process's part of each training batch, in an order drawn from (seed, epoch).

    Call `start_at` before each pass. A last batch with fewer than two clips per process is left
    out, since BatchNorm needs two; which clips these are changes with the epoch.
    """

    def __init__(self, num_clips, batch_size, seed, balanced_labels=None):
        """Prepare batches; balanced_labels: [num_clips], of classes to draw equally often, or None.

        These are drawn with replacement.
        """
        self.num_clips, self.batch_size, self.seed = num_clips, batch_size, seed
        self.probabilities = None
        if balanced_labels is not None:
            weights = 1 / np.bincount(balanced_labels)[balanced_labels]
            self.probabilities = weights / weights.sum()
        self.start_at(0, 0)

    def start_at(self, epoch: int, step: int, last: int | None = None) -> None:
        """Make the next pass yield the steps from `step` to `last` (excluded; None: all)."""
        self.epoch, self.first_step = epoch, step
        self.last_step = len(self) if last is None else min(last, len(self))

    def __len__(self):
        """Return the number of steps in a whole epoch."""
        full, rest = divmod(self.num_clips, self.batch_size)
        return full + (rest >= 2 * processes.world_size())

    def clips_per_part(self, num_parts: int) -> int:
        """Return the number of this process's clips in the first of `num_parts` parts of a step."""
        num_clips, num_processes = min(self.batch_size, self.num_clips), processes.world_size()
        fewest = num_clips // num_processes
        own = len(range(processes.rank(), num_clips, num_processes))
        return -(-own // min(num_parts, fewest // 2))

    def __iter__(self):
        epoch = self.epoch
        # Without the spawn key it would equal the stream of clip 0, whose seed is (seed, epoch, 0).
        seeds = np.random.SeedSequence([self.seed, epoch], spawn_key=(0,))
        rng = np.random.default_rng(seeds)
        if self.probabilities is None:
            order = rng.permutation(self.num_clips)
        else:
            order = rng.choice(self.num_clips, self.num_clips, p=self.probabilities)
        for step in range(self.first_step, self.last_step):
            indices = order[step * self.batch_size : (step + 1) * self.batch_size]
            own = indices[processes.rank() :: processes.world_size()]
            yield [ClipKey(epoch, int(index)) for index in own]


class EvalBatches:
    """Batches of clip keys in CSV order, each clip once, dealt to the processes in turn.

    A batch has the same clips for any number of processes, so that its results are the same. All
    processes get the same number of batches; the last ones may be empty.
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
    """Allocate the clips of a batch; in a worker, in memory shared with the main process."""
    clips = torch.empty(0, dtype=torch.uint8)
    if get_worker_info() is not None:  # as in PyTorch's own collate function
        storage = clips.untyped_storage()._new_shared(math.prod(shape), device=clips.device)
        clips = clips.new(storage)
    return clips.resize_(shape)


def as_it_is(batch: Batch) -> Batch:
    """Return the batch unchanged: the loader's collate function for whole batches."""
    return batch


SECONDS_TO_END = 5
_iterators = weakref.WeakSet()  # over loaders whose workers `end_workers` ends


def start_workers(loader):
    """Return an iterator over a loader; signals are blocked in its workers, for this process."""
    with stopping.signals_blocked():
        iterator = iter(loader)
    _iterators.add(iterator)
    return iterator


def end_workers() -> None:
    """Kill the workers of all loaders, and end their iterators.

    PyTorch's own way waits for workers: for one that hangs in a read, or for ever for the lock of
    an event that a killed one held.
    """
    stopping.kill_workers()
    for iterator in _iterators:
        if hasattr(iterator, "_pin_memory_thread"):
            _end_pinning(iterator)
        if getattr(iterator, "_worker_pids_set", False):
            _remove_worker_pids(id(iterator))
            iterator._worker_pids_set = False
        iterator._shutdown = True  # there is nothing left to shut down
    _iterators.clear()


def _end_pinning(iterator) -> None:
    """End the thread that copies batches to pinned memory, as PyTorch does, but wait seconds only.

    It may be reading what a killed worker has not finished writing.
    """
    iterator._pin_memory_thread_done_event.set()
    iterator._worker_result_queue.put((None, None))  # wakes it
    iterator._pin_memory_thread.join(SECONDS_TO_END)
    iterator._worker_result_queue.cancel_join_thread()
    iterator._worker_result_queue.close()


def batches_of(loader):
    """Iterate over a loader's batches; a signal interrupts the wait for a slow one."""
    iterator = start_workers(loader)
    while True:
        # Several processes must stop at the same step, so each checks only between steps.
        with nullcontext() if processes.world_size() > 1 else stopping.interruptible():
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch

"""One process or many: who this one is, and what all of them agree on.

Everything here works, and costs nothing, in a single process that never joined others.
"""

import argparse
import functools
import hashlib
import os
import sys
import time
import uuid
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from system import stopping
from system.errors import UserError

# Longer than the slowest batch may take to load. A process that dies is noticed without it.
TIMEOUT = timedelta(minutes=10)


def launched() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def launch(script: str, arguments: list[str], gpus: list[int] | None, num_processes=None) -> int:
    """Runs `script` in one process per GPU, by PyTorch's own launcher. Returns the exit status.

    gpus: their numbers; None starts `num_processes` on the CPU.
    """
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(gpus)
        arguments, num_processes = _without_gpus(arguments), len(gpus)
    # As torchrun does: the processes would otherwise all take all cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // num_processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(script, *arguments)
    except ChildFailedError as failure:
        status = failure.get_first_failure()[1].exitcode
        return status if status > 0 else 128 - status
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


def _visible(gpus):
    """CUDA_VISIBLE_DEVICES for these GPUs; if it is set already, they are numbered within it."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return ",".join(names.split(",")[gpu] if names else str(gpu) for gpu in gpus)


def _without_gpus(arguments):
    """The flags without -g: under the launcher each process takes the GPU of its own number."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--gpus", "-g")
    return parser.parse_known_args(arguments)[1]


# --- meeting -----------------------------------------------------------------------------------

_store = None  # the launcher's, for what the processes know of each other before they have joined


def meet() -> None:
    """Finds the other processes that torchrun started; only the main one goes on printing."""
    global _store
    if not launched():
        return
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open for the life of the process
    store, own_rank, num_processes = next(dist.rendezvous("env://", timeout=TIMEOUT))
    _store = dist.PrefixStore(_roll_call(store, own_rank, num_processes), store)


def _roll_call(store, own_rank, num_processes) -> str:
    """A name for this start of the processes that all of them know.

    After a restart the launcher's store still holds what processes that are dead by now have
    written into it, addresses included; under a new name nobody takes these for current ones.
    """
    ranks = range(num_processes)
    store.set(f"rank {own_rank}", uuid.uuid4().hex)
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while time.monotonic() < deadline:
        if store.check([f"rank {rank}" for rank in ranks]):
            names = store.multi_get([f"rank {rank}" for rank in ranks])
            start = hashlib.sha256(b"".join(names)).hexdigest()
            # Who is dead has not seen the name of this process, so has not signed for both.
            store.set(f"{start} {own_rank}", "seen")
            if store.check([f"{start} {rank}" for rank in ranks]):
                return start
        time.sleep(0.02)
    raise UserError(f"not all of the {num_processes} processes have started within {TIMEOUT}")


def is_first_to_tell() -> bool:
    """Whether no other process has told the user yet what ended the run; asked once."""
    try:
        return _store is None or _store.add("told", 1) == 1
    except dist.DistError:  # the launcher is gone, and its store
        return True


def join(device: torch.device) -> None:
    """From here on the processes that have met can compute together."""
    if not launched():
        return
    # Flags and figures travel between CPUs, gradients between the devices.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    count = int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        backend, timeout=TIMEOUT, world_size=count, rank=rank(), store=_store
    )


def wait_for_all() -> None:
    """Until every process has come here: one that leaves long before the others may abort."""
    all_max(done=1)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


# --- cores -------------------------------------------------------------------------------------

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time per period
MOST_WORKERS_THAT_PAY = 16


def available_cores() -> int:
    """Cores that this process may use, by its affinity mask and its container's limit."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such limit, or "max"
        quota, period = map(int, CPU_QUOTA.read_text().split())
        cores = min(cores, quota // period)
    return max(1, cores)


def cores_per_process() -> int:
    """This process's share of the cores, which torchrun's other processes here use, too."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def loader_workers(asked: int | None) -> int:
    """Processes that read frames for this one: as asked, but at most one per core; None: that many.

    More would only take turns; the order of clips does not depend on them.
    """
    cores = cores_per_process()
    if asked is None:
        return min(cores, MOST_WORKERS_THAT_PAY)
    if asked > cores:
        _say_that_workers_are_fewer(asked, cores)
    return min(asked, cores)


@functools.cache  # once is enough
def _say_that_workers_are_fewer(asked, cores) -> None:
    print(f"num_workers: {asked} asked for, {cores} started: as many as there are cores for each "
          "process")


# --- agreeing ----------------------------------------------------------------------------------


def all_gather_ints(**values: int) -> list[dict[str, int]]:
    """The values of each process, by rank, in one collective call."""
    if world_size() == 1:
        return [values]
    own = torch.tensor(list(values.values()), dtype=torch.int64)
    rows = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(rows, own)
    return [dict(zip(values, row.tolist(), strict=True)) for row in rows]


def all_max(**values: int) -> dict[str, int]:
    """The highest of each value over all processes: one that asks to stop stops all."""
    if world_size() == 1:
        return values
    numbers = torch.tensor(list(values.values()), dtype=torch.int64)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return dict(zip(values, numbers.tolist(), strict=True))


def stop_together() -> None:
    """Raises Stopped in all processes if a signal has come to any of them."""
    number = all_max(signal=stopping.requested())["signal"]
    if number:
        raise stopping.Stopped(number)


def all_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum of a CPU tensor over all processes."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def all_gather(items: list) -> list:
    """The items of all processes, those of the main one first."""
    if world_size() == 1:
        return items
    lists = [None] * world_size()
    dist.all_gather_object(lists, items)
    return [item for items in lists for item in items]


def broadcast_from_main(function, *arguments):
    """What `function` returns in the main process, for all; a UserError there is raised in all."""
    if world_size() == 1:
        return function(*arguments)
    answer = [None, None]
    if is_main():
        try:
            answer[0] = function(*arguments)
        except UserError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    result, message = answer
    if message is not None:
        raise UserError(message)
    return result


# --- the network over several processes --------------------------------------------------------


def parallel(model: nn.Module, device: torch.device, clips_shape, autocast) -> nn.Module:
    """`model` with gradients averaged over all processes; itself where there is only one.

    clips_shape: (N, T, H, W) of a step's part in this process; autocast: its context of forward.
    """
    if world_size() == 1:
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    network = nn.parallel.DistributedDataParallel(
        model, device_ids=device_ids, gradient_as_bucket_view=True
    )
    # BatchNorm's running statistics do not enter training, and evaluation takes the main ones.
    network.broadcast_buffers = False  # the argument has another name in later versions
    # Once it has seen a backward pass, it adds up in another order. If that pass were the first
    # step, three processes that resume would not do bit for bit what they did uninterrupted.
    kept = [buffer.clone() for buffer in model.buffers()]
    clips = torch.zeros(*clips_shape, model.num_channels, device=device).permute(0, 4, 1, 2, 3)
    network.train()
    with autocast:
        logits = network(clips)
    logits.float().sum().backward()
    network.zero_grad()
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), kept, strict=True):
            buffer.copy_(value)
    return network


def copy_buffers_from_main(model: nn.Module) -> None:
    """Gives all processes the main one's BatchNorm statistics, so that all evaluate one network."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with BatchNorm over the batch of all processes instead of each one's part.

    Raises UserError on the CPU, where PyTorch's SyncBatchNorm does not run.
    """
    if device.type == "cpu":
        raise UserError(
            "sync_batchnorm: found true; on the CPU BatchNorm sees the clips of each process only; "
            "set it to false, or train on GPUs"
        )
    if world_size() == 1:
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)

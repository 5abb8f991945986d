"""Distributed training: launching processes, ranks, and collectives for flags and metrics.

Each function also works in a single process, at no cost.
"""

import argparse
import gc
import hashlib
import os
import sys
import time
import uuid
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from system import stopping
from system.errors import UserError, message_for_user

# Longer than any batch takes to load. A dead process is noticed earlier.
TIMEOUT = timedelta(minutes=10)
# After SIGTERM the launcher waits 30 s by default, which may be too short for a slow step and a
# checkpoint on a network disk.
SECONDS_TO_SAVE = 170


def launched() -> bool:
    """Return whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def launch(script: str, arguments: list[str], gpus: list[int] | None, num_processes=None) -> int:
    """Run `script` in one process per GPU with PyTorch's launcher, and return the exit status.

    gpus: GPU numbers; None starts `num_processes` processes on the CPU.
    """
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(gpus)
        arguments, num_processes = _without_gpus(arguments), len(gpus)
    # As torchrun does; otherwise each process would use all cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // num_processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))
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


def _visible(gpus: list[int]) -> str:
    """Return CUDA_VISIBLE_DEVICES for these GPUs; if it is set, they are numbered within it."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return ",".join(names.split(",")[gpu] if names else str(gpu) for gpu in gpus)


def _without_gpus(arguments: list[str]) -> list[str]:
    """Return the flags without -g; the launcher gives each process its GPU."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--gpus", "-g")
    return parser.parse_known_args(arguments)[1]


# --- rendezvous --------------------------------------------------------------------------------


@dataclass
class _Rendezvous:
    """The launcher's store, which processes share before they have a process group."""

    store: dist.Store | None = None  # the launcher's
    num_waits: int = 0  # for the main process


# One per process, like PyTorch's default process group.
_rendezvous = _Rendezvous()


def rendezvous() -> None:
    """Wait until all processes have started; without torchrun, do nothing."""
    if launched():
        names = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
        if missing := [name for name in names if name not in os.environ]:
            raise UserError(
                f"LOCAL_RANK is set in the environment, but not {missing[0]}; "
                "start with torchrun, which sets both, or unset LOCAL_RANK"
            )
        store, own_rank, num_processes = next(dist.rendezvous("env://", timeout=TIMEOUT))
        name = _roll_call(store, own_rank, num_processes)
        _rendezvous.store, _rendezvous.num_waits = dist.PrefixStore(name, store), 0


def is_first_to_report() -> bool:
    """Return True in the first process to report the run's error; call it once."""
    try:
        return _rendezvous.store is None or _rendezvous.store.add("reported", 1) == 1
    except dist.DistError:  # the launcher and its store are gone
        return True


def wait_for_main() -> None:
    """Block until the main process gets here, even if that takes longer than TIMEOUT."""
    _rendezvous.num_waits += 1
    name = f"main has come {_rendezvous.num_waits}"
    if is_main():
        _rendezvous.store.set(name, "yes")
    while not _rendezvous.store.check([name]):
        time.sleep(0.01)


def join(device: torch.device) -> None:
    """Initialize the process group, after `rendezvous`."""
    if not launched():
        return
    # Imported before there is a group: its functions keep the current group as a default
    # argument, and DDP imports it, so the group's threads would outlive `shutdown`.
    from torch.distributed.nn import functional  # noqa: F401

    # Flags and metrics are exchanged between CPUs, gradients between devices.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    count = int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        backend, timeout=TIMEOUT, world_size=count, rank=rank(), store=_rendezvous.store
    )


def _roll_call(store, own_rank: int, num_processes: int) -> str:
    """Agree on a name for this start of the processes.

    After a restart, the launcher's store still has the dead processes' keys, under another name.
    """
    ranks = range(num_processes)
    store.set(f"rank {own_rank}", uuid.uuid4().hex)
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while time.monotonic() < deadline:
        if store.check([f"rank {rank}" for rank in ranks]):
            names = store.multi_get([f"rank {rank}" for rank in ranks])
            start = hashlib.sha256(b"".join(names)).hexdigest()
            # A dead process cannot have signed for both: it never saw this process's name.
            store.set(f"{start} {own_rank}", "seen")
            if store.check([f"{start} {rank}" for rank in ranks]):
                return start
        time.sleep(0.02)
    raise UserError(f"not all of the {num_processes} processes have started within {TIMEOUT}")


@contextmanager
def only_main_prints():
    """Silence stdout of processes other than the main one."""
    if is_main():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def wait_for_all() -> None:
    """Block until every process has called this; one that exits early could abort the others."""
    all_max(done=1)


def shutdown(has_failed: bool = False) -> None:
    """Destroy the process group, if there is one, and join its threads.

    gloo's threads release tensors, which needs the GIL. If Python is exiting at that moment, it
    ends such a thread in the middle of a destructor, and C++ aborts the process.
    has_failed: the other processes may still be waiting for this one, and NCCL for them.
    """
    if not dist.is_initialized() or (has_failed and "nccl" in dist.get_backend_config()):
        return
    dist.destroy_process_group()
    gc.collect()  # DDP, which is in reference cycles, refers to the group


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process prints and writes files: rank 0."""
    return rank() == 0


# --- cores -------------------------------------------------------------------------------------

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time per period
MAX_DEFAULT_WORKERS = 16  # more do not help


def available_cores() -> int:
    """Return the number of cores that the affinity mask and the container's limit allow."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such limit, or "max"
        quota, period = map(int, CPU_QUOTA.read_text().split())
        cores = min(cores, quota // period)
    return max(1, cores)


def cores_per_process() -> int:
    """Return the available cores divided by the number of processes on this machine."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def loader_workers(num_workers: int | None) -> int:
    """Return how many loader workers to start: `num_workers`, but at most one per core.

    None: one per core, up to MAX_DEFAULT_WORKERS. The order of clips does not depend on it.
    """
    cores = cores_per_process()
    return min(cores, MAX_DEFAULT_WORKERS if num_workers is None else num_workers)


def report_workers(num_workers: int | None) -> None:
    """Print a line if fewer loader workers than `num_workers` are started."""
    started = loader_workers(num_workers)
    if num_workers is not None and started < num_workers:
        print(
            f"num_workers: {num_workers} in the config, {started} started: one per core for each "
            "process"
        )


# --- collectives -------------------------------------------------------------------------------


def all_gather_ints(**values: int) -> list[dict[str, int]]:
    """Return the values of each process, by rank, in one collective call."""
    if world_size() == 1:
        return [values]
    own = torch.tensor(list(values.values()), dtype=torch.int64)
    rows = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(rows, own)
    return [dict(zip(values, row.tolist(), strict=True)) for row in rows]


def all_max(**values: int) -> dict[str, int]:
    """Return the maximum of each value over all processes."""
    rows = all_gather_ints(**values)
    return {name: max(row[name] for row in rows) for name in values}


def stop_together() -> None:
    """Raise Stopped in all processes if any of them has received a signal."""
    number = all_max(signal=stopping.requested())["signal"]
    if number:
        raise stopping.Stopped(number)


def all_sum(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a CPU tensor over all processes."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def all_gather(items: list) -> list:
    """Return the items of all processes in one list, ordered by rank."""
    if world_size() == 1:
        return items
    lists = [None] * world_size()
    dist.all_gather_object(lists, items)
    return [item for items in lists for item in items]


def all_gather_bytes(data: torch.Tensor) -> list[torch.Tensor]:
    """Return the bytes of each process, by rank. data: uint8 [size], as many in each process."""
    if world_size() == 1:
        return [data]
    rows = [torch.empty_like(data) for _ in range(world_size())]
    dist.all_gather(rows, data)
    return rows


def broadcast_bytes(data: torch.Tensor) -> torch.Tensor:
    """Return the main process's bytes, uint8 [size]; the others give as many."""
    if world_size() > 1:
        dist.broadcast(data, src=0)
    return data


def broadcast_from_main(function, *arguments):
    """Call `function` in the main process; return its result, or raise its UserError, in all.

    Errors that have a message for the user are raised as UserError, too.
    """
    if world_size() == 1:
        return function(*arguments)
    answer = [None, None]
    if is_main():
        try:
            answer[0] = function(*arguments)
        except Exception as error:
            answer[1] = message_for_user(error)
            if answer[1] is None:
                raise
    wait_for_main()
    dist.broadcast_object_list(answer)
    result, message = answer
    if message is not None:
        raise UserError(message)
    return result


# --- the network -------------------------------------------------------------------------------


def parallel(model: nn.Module, device: torch.device, input_shape, autocast) -> nn.Module:
    """Return `model` with gradients averaged over all processes; `model` itself if there is one.

    input_shape: of this process's part of a step; autocast: context of forward.
    """
    if world_size() == 1:
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    network = nn.parallel.DistributedDataParallel(
        model, device_ids=device_ids, gradient_as_bucket_view=True
    )
    # Training does not use BatchNorm's running statistics, and evaluation takes those of rank 0.
    network.broadcast_buffers = False  # later versions renamed the argument
    # After its first backward pass, DDP sums in another order. If that pass were the first step,
    # three resumed processes would differ in the last bit from an uninterrupted run.
    kept = [buffer.clone() for buffer in model.buffers()]
    inputs = torch.zeros(input_shape, device=device)
    if inputs.dim() == 5:
        inputs = inputs.contiguous(memory_format=torch.channels_last_3d)
    network.train()
    with autocast:
        logits = network(inputs)
    logits.float().sum().backward()
    network.zero_grad()
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), kept, strict=True):
            buffer.copy_(value)
    return network


def gradients_shared(network: nn.Module, is_last_part: bool):
    """Return the context of a part of a batch; gradients are averaged after the last part only."""
    if is_last_part or not isinstance(network, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


def copy_buffers_from_main(model: nn.Module) -> None:
    """Broadcast rank 0's BatchNorm statistics, so that all processes evaluate the same network."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Return `model` with BatchNorm over the batch of all processes, not each process's part.

    Raises UserError on the CPU, which PyTorch's SyncBatchNorm does not support.
    """
    if device.type == "cpu":
        raise UserError(
            "sync_batchnorm: found true; on the CPU BatchNorm only sees each process's clips; "
            "set it to false, or train on GPUs"
        )
    if world_size() == 1:
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)

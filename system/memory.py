"""Peak memory."""

import sys
from contextlib import suppress
from pathlib import Path

import torch

MIB, GIB = 2**20, 2**30


def peak_bytes(device: torch.device) -> int:
    """Return the peak since `reset_peak`: a GPU's memory for tensors, or this process's memory.

    On systems that cannot reset it, it is the peak since the process started.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Tried first, since on Linux ru_maxrss includes the parent's memory at the fork.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not available on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(device: torch.device) -> None:
    """Reset `peak_bytes` to the memory in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def format_bytes(number: float) -> str:
    """Return `1.2 GiB`, or `312 MiB` below one GiB."""
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / MIB:.0f} MiB"

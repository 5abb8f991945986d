"""How much memory is in use at most."""

import sys
from contextlib import suppress
from pathlib import Path

import torch

MIB, GIB = 2**20, 2**30


# --- the highest use of memory -------------------------------------------------------------------


def peak_bytes(device: torch.device) -> int:
    """The most memory in use since `reset_peak`: a GPU's for tensors, else all of this process's.

    Where the system cannot reset it, it is the peak since the process began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts into ru_maxrss what the parent process had at the fork, so its own file is first.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(device: torch.device) -> None:
    """Lets `peak_bytes` begin anew, at what is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def format_bytes(number: float) -> str:
    """`1.2 GiB`, or below one GiB `312 MiB`."""
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / MIB:.0f} MiB"

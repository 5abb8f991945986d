"""The one exception for mistakes that the user can put right, and what ends a command."""

import errno
import os
import sys
from collections.abc import Callable

from system import stopping

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_DISK_ERRORS = (*_FULL_DISK, errno.EROFS, errno.EIO, errno.EFBIG)
# Where PyTorch has no class of its own for an error, its text has to tell. gloo names the file of
# its own that lost the connection, whatever was the reason.
_GLOO_SIGN = "gloo/transport/"
_SHARED_MEMORY_SIGNS = ("shared memory(shm)", "killed by signal: Bus error")
_DEAD_WORKER_SIGN = "DataLoader worker (pid"  # what a worker *raised* reads "in DataLoader worker"
# Of the CPU's allocator, of CUDA outside PyTorch's allocator, and of OpenCV.
_MEMORY_SIGNS = ("you tried to allocate", "CUDA error: out of memory", "Insufficient memory")


class UserError(ValueError):
    """A mistake in the input: a config key, a file, a flag, a checkpoint.

    Its text names the key or the path and the remedy. The commands print it on stderr, without a
    traceback, and exit with status 2.
    """


def check_system() -> None:
    """Raises UserError on Windows, which lacks signals and system calls that runs depend on."""
    if sys.platform == "win32":
        raise UserError(
            "Windows is not supported; install WSL (`wsl --install`) and run this in its Linux"
        )


def first_few(names, limit=10):
    """`a, b, c and 12 more`: the first `limit` of `names`, and how many are left."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"


def message_for_user(error: Exception) -> str | None:
    """What to tell the user of an exception that is theirs to put right; None if it is a bug."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError):
        return _message_for_disk(error)
    import torch  # here, since commands such as `python config.py` do without
    from torch.distributed import DistError

    if any(sign in text for sign in _SHARED_MEMORY_SIGNS):
        return ("/dev/shm: too small for the batches that the loader's workers put there; start "
                "the container with `docker run --ipc=host` (or --shm-size=8g), or lower "
                "batch_size, or set num_workers to 0")
    if _DEAD_WORKER_SIGN in text:
        return f"{text.splitlines()[0]}; if memory is short, lower num_workers or batch_size"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or \
            any(sign in text for sign in _MEMORY_SIGNS):
        return "out of memory; lower batch_size, nclips or the clips' size (clip_size, crop_size)"
    if isinstance(error, DistError) or _GLOO_SIGN in text:
        reason = " ".join(text.split()).partition(". ")[0]
        return ("another process of this run has ended or was killed, or cannot be reached "
                f"({reason[:300]}); --resume auto goes on")
    return None


def _message_for_disk(error: OSError) -> str | None:
    # A pipe or a socket whose other end is gone says nothing about a disk.
    if isinstance(error, ConnectionError) or not (error.filename or error.errno in _DISK_ERRORS):
        return None
    remedy = "make room" if error.errno in _FULL_DISK else "see that you may write and read there"
    return (f"{error.filename or 'run folder'}: cannot be written or read ({error.strerror}); "
            f"{remedy}; a checkpoint that was there before is whole")


def exit_status(command: Callable, is_reporter: Callable[[], bool] = lambda: True) -> int:
    """Call `command` and return its exit status; print the message of an error that is the user's.

    The status is what `command` returns, or 0; 2 after an error; 128 + the number of the signal
    that stopped it, where a closed pipe counts as SIGPIPE. Bugs are raised.
    is_reporter: called after an error; True in the one process that prints the message.
    """
    try:
        check_system()
        status = command() or 0
        sys.stdout.flush()  # here, where a full disk or a closed pipe is handled
        return status
    except stopping.Stopped as stopped:
        return stopped.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who read the output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = message_for_user(error)
        if message is None:
            raise
        with stopping.deferred():  # a launcher ends all processes once the first has left
            if is_reporter():
                print(f"error: {message}", file=sys.stderr)
        return 2

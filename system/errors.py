"""UserError, messages for errors that the user can correct, and exit statuses."""

import errno
import gc
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from system import stopping

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_DISK_ERRORS = (*_FULL_DISK, errno.EROFS, errno.EIO, errno.EFBIG)
# Parts of messages for which PyTorch has no error class. gloo's name its source file.
_GLOO_SIGN = "gloo/transport/"
_SHARED_MEMORY_SIGNS = ("shared memory(shm)", "killed by signal: Bus error")
_DEAD_WORKER_SIGN = "DataLoader worker (pid"  # an exception in a worker has "in DataLoader worker"
_COMPILER_SIGNS = ("No working C++ compiler", "Failed to find C compiler")
# Of the CPU allocator, of CUDA outside PyTorch's allocator, and of OpenCV.
_MEMORY_SIGNS = ("you tried to allocate", "CUDA error: out of memory", "Insufficient memory")


class UserError(ValueError):
    """A mistake in the input: a config key, a file, a flag or a checkpoint.

    The message names the key or path and the remedy. The commands print it on stderr, without a
    traceback, and exit with status 2.
    """


def check_system() -> None:
    """Raise UserError on Windows, which lacks signals and system calls that runs depend on."""
    if sys.platform == "win32":
        raise UserError(
            "Windows is not supported; install WSL (`wsl --install`) and run this in its Linux"
        )


def escape_surrogates(text: str) -> str:
    """Return the text with bytes of paths that are not UTF-8 escaped, so that it can be encoded."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def summarize(names, limit: int = 10) -> str:
    """Return `a, b, c and 12 more`: the first `limit` of `names`, and the number of others."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"


def summarize_validation(error, limit: int = 10, with_reasons: bool = True) -> str:
    """Return the keys that pydantic's ValidationError is about, each with the reason.

    A problem that is about no single key is named by its reason.
    """
    problems = []
    for problem in error.errors():
        key, reason = ".".join(map(str, problem["loc"])), problem["msg"]
        problems.append(f"{key}: {reason}" if key and with_reasons else key or reason)
    return summarize(problems, limit)


def message_for_user(error: Exception) -> str | None:
    """Return the message for an error that the user can correct, or None if it is a bug."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError):
        return _message_for_disk(error)
    import torch  # not at the top: the signal handlers are installed before this import
    from torch.distributed import DistError

    if any(sign in text for sign in _SHARED_MEMORY_SIGNS):
        return (
            "/dev/shm: too small for the batches of the loader's workers; start "
            "the container with `docker run --ipc=host` (or --shm-size=8g), or lower "
            "batch_size, or set num_workers to 0"
        )
    if _DEAD_WORKER_SIGN in text:
        return f"{text.splitlines()[0]}; if memory is short, lower num_workers or batch_size"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in text for sign in _MEMORY_SIGNS
    ):
        return "out of memory; lower batch_size, nclips or the clips' size (clip_size, crop_size)"
    if any(sign in text for sign in _COMPILER_SIGNS):
        return "compile: needs a C++ compiler; install one, such as g++, or set the key to false"
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{error.object!a}: has characters that cannot be written in this locale "
            f"({error.encoding}); set PYTHONUTF8=1, or choose another name"
        )
    if isinstance(error, DistError) or _GLOO_SIGN in text:
        reason = " ".join(text.split()).partition(". ")[0]
        return (
            "another process of this run has ended or was killed, or cannot be reached "
            f"({reason[:300]}); continue with --resume auto"
        )
    return None


def is_disk_full(error: Exception) -> bool:
    """Return whether an error is about a full disk or a quota."""
    return isinstance(error, OSError) and error.errno in _FULL_DISK


def _message_for_disk(error: OSError) -> str | None:
    # A broken pipe or connection is not a disk error.
    if isinstance(error, ConnectionError) or not (error.filename or error.errno in _DISK_ERRORS):
        return None
    is_other_file = error.filename and ".pth.tar" not in str(error.filename)
    remedy = (
        "make room"
        if is_disk_full(error)
        else "check its permissions and the disk, or choose another place"
    )
    return (
        f"{error.filename or 'run folder'}: cannot be written or read ({error.strerror}); "
        f"{remedy}{'' if is_other_file else '; an earlier checkpoint there is intact'}"
    )


def exit_status(command: Callable, is_reporter: Callable[[], bool] = lambda: True) -> int:
    """Call `command` and return its exit status; print the message of a user's error.

    The status is what `command` returns, or 0; 2 after an error; 128 + the number of the signal
    that stopped it, where a closed pipe counts as SIGPIPE. Bugs are raised.
    is_reporter: called after an error; returns True in the one process that prints the message.
    """
    try:
        check_system()
        if isinstance(sys.stdout, io.TextIOWrapper):  # a path or class may have any characters
            sys.stdout.reconfigure(errors="backslashreplace")
        status = command() or 0
        sys.stdout.flush()  # here, where a full disk or a closed pipe is handled
        return status
    except stopping.Stopped as stopped:
        return stopped.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as in `predict.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = message_for_user(error)
        if message is None:
            raise
        with stopping.deferred():  # a launcher ends all processes once the first has exited
            if is_reporter():
                print(f"error: {message}", file=sys.stderr)
        return 2


def end_program(status: int) -> NoReturn:
    """Exit with a status, without looking for garbage in PyTorch's modules, which takes seconds."""
    gc.freeze()
    sys.exit(status)

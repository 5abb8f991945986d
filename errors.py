"""The one exception for mistakes that the user can put right."""

import errno
import os
import sys

_DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EFBIG)
# What gloo and NCCL say when a process that they wait for is gone.
_LOST_PROCESS_SIGNS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe",
                       "ncclRemoteError", "Timed out waiting", "Connect timeout")
# What PyTorch says on a GPU and on the CPU, and OpenCV.
_MEMORY_SIGNS = ("out of memory", "you tried to allocate", "Insufficient memory")


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
    if isinstance(error, OSError) and (error.filename or error.errno in _DISK_ERRORS):
        return (f"{error.filename or 'run folder'}: cannot be written or read ({error.strerror}); "
                "see that the disk is not full, and that you may write there; a checkpoint that "
                "was there before is whole")
    # PyTorch has classes of its own for these only in part.
    if "DataLoader worker (pid" in text:  # it died; what it raised reads "in DataLoader worker"
        return f"{text.splitlines()[0]}; if memory is short, lower num_workers or batch_size"
    if isinstance(error, MemoryError) or any(sign in text for sign in _MEMORY_SIGNS):
        return "out of memory; lower batch_size, nclips or the clips' size (clip_size, crop_size)"
    if any(sign in text for sign in _LOST_PROCESS_SIGNS):
        return "another process of this run has ended or was killed; --resume auto goes on"
    return None


def exit_status(command) -> int:
    """Calls `command`, and returns its exit status: 0 if it returns none, 2 for a user's mistake.

    For commands of one process; train.py, whose processes must agree on who tells, has its own.
    """
    try:
        check_system()
        return command() or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who read the output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = message_for_user(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2

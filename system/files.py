"""Atomic writing of files, and locks: only one process at a time writes a folder.

A lock is released when its process ends, even by a crash. On file systems without locks, nothing
is locked.
"""

import json
import os
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from system.errors import UserError

LOCK_FILE = "run.lock"
SECONDS_TO_NOTICE = 120  # until a file server notices a dead host; NFS takes 90
MAX_HOLDER_BYTES = 4096


# --- writing -----------------------------------------------------------------------------------


@contextmanager
def atomic_write(path, backup=None, sync: bool = False, partial=None):
    """Yield a binary file that replaces `path` when the block ends without an error.

    backup: where the replaced file is kept. sync: wait until the new one is on the disk.
    partial: its name until then. Raises OSError that names `path`, which is then unchanged.
    """
    partial = Path(partial or f"{path}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if backup and os.path.exists(path):
            os.replace(path, backup)
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a full disk's error names none
        raise


def write_text(path, text: str) -> None:
    """Write text as UTF-8, atomically. Raises UnicodeEncodeError if it cannot be encoded."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


# --- locks -------------------------------------------------------------------------------------


def try_lock(descriptor: int, with_children: bool = True) -> bool:
    """Lock an open file until it is closed; return False if another process has the lock.

    with_children: child processes that inherit the descriptor keep the lock, too. If False, it is
    released when this process ends or closes any descriptor of the file.
    """
    import fcntl  # not at the top: there is none on Windows, which the commands refuse

    lock = fcntl.flock if with_children else fcntl.lockf
    try:
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return False
    except OSError:
        pass  # a file system without locks
    return True


def open_locked(path, with_children: bool = True) -> int | None:
    """Open a file for writing and lock it; return its descriptor, or None if it is locked.

    The file is created if needed, and opened again if it was replaced or deleted meanwhile.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not try_lock(descriptor, with_children):
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


class FolderLock:
    """A context manager for the lock on a run folder, which only one process at a time writes.

    Loader workers do not keep the lock: they may outlive a killed process by seconds.
    """

    def __init__(self):
        self.folder, self.descriptor, self.new_folders = None, None, []

    def take(self, folder: Path, patience: float = 0) -> None:
        """Make the folder and lock it; do nothing if this process has locked it already.

        patience: seconds to wait if the holder is on another host; a file server takes a while to
        notice that a host has died.
        Raises UserError that names the holder if another process has the lock.
        """
        if self.folder == folder.resolve():
            return
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _wait_for_lock(folder, patience)
        self.folder, self.descriptor, self.new_folders = folder.resolve(), descriptor, missing
        holder = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        with suppress(OSError):  # a full disk; the lock works without it
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Release the lock; delete the folders that `take` made if nothing has been written."""
        if self.folder is None:
            return
        with suppress(OSError):
            (self.folder / LOCK_FILE).unlink()
        os.close(self.descriptor)
        self.folder = None
        with suppress(OSError):  # not empty
            for folder in self.new_folders:
                folder.rmdir()


def _wait_for_lock(folder: Path, patience: float) -> int:
    path, start, is_told = folder / LOCK_FILE, time.monotonic(), False
    while (descriptor := open_locked(path, with_children=False)) is None:
        host, holder = _holder(path)
        if host == socket.gethostname() or time.monotonic() > start + patience:
            raise UserError(
                f"{folder}: is being written by {holder}; wait until it has ended, or "
                "choose another model_name or output_dir"
            )
        if not is_told:
            print(
                f"{folder}: is being written by {holder}; waiting up to {patience:.0f} s in "
                "case it has died",
                flush=True,
            )
            is_told = True
        time.sleep(min(1, patience))
    return descriptor


def _holder(path) -> tuple[str | None, str]:
    """Return the host of a lock's holder, and the description that `take` has written."""
    try:
        with open(path, "rb") as file:
            holder = json.loads(file.read(MAX_HOLDER_BYTES))
        host = str(holder["host"])
        return host, f"process {holder['process']} on {host} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just been locked
        return None, "another process"

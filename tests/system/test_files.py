"""A run folder is written by one process at a time, and free as soon as that one has ended."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from system import files
from system.errors import UserError
from system.files import LOCK_FILE, FolderLock, open_locked, try_lock, write_text

PROJECT = Path(__file__).parent.parent.parent
HOLDER = """
import os, sys, time
from pathlib import Path
from system.files import FolderLock
with FolderLock() as lock:
    lock.take(Path(sys.argv[1]))
    child = os.fork()  # as a worker of the loader, which outlives a killed process
    if child:
        print(child, flush=True)
    time.sleep(600)
"""


@contextmanager
def held(folder):
    """Another process, and a child of it, which write a run folder; yields the process."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        os.kill(child, signal.SIGKILL)


def test_the_second_is_told_who_writes_and_may_when_that_one_is_killed(tmp_path):
    folder = tmp_path / "trainings" / "run"
    with held(folder) as holder:
        before = (folder / LOCK_FILE).read_bytes()
        with FolderLock() as lock, pytest.raises(UserError) as refusal:
            lock.take(folder)
        message = str(refusal.value)
        assert message.startswith(
            f"{folder}: is being written by process {holder.pid} on {socket.gethostname()} since 20"
        )
        assert "wait until" in message and "model_name" in message
        assert (folder / LOCK_FILE).read_bytes() == before
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with FolderLock() as lock:  # though its child still lives
            lock.take(folder)
            lock.take(folder)
    assert not folder.parent.exists() or not list(folder.iterdir())


class Clock:
    """Replaces `time`: it goes on only when it is read or slept, on a machine of any speed."""

    strftime = staticmethod(time.strftime)

    def __init__(self):
        self.now, self.while_asleep = 0.0, lambda: None

    def monotonic(self):
        self.now += 0.001
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.while_asleep()


def test_a_host_that_may_have_died_is_waited_for(tmp_path, capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(files, "time", clock)
    with held(tmp_path) as holder:
        (tmp_path / LOCK_FILE).write_text('{"host": "another", "process": 7, "since": "today"}')
        with FolderLock() as lock:
            with pytest.raises(UserError, match="by process 7 on another since today; wait"):
                lock.take(tmp_path)
            with pytest.raises(UserError):
                lock.take(tmp_path, patience=0.1)
            assert "waiting up to 0 s in case it has died" in capsys.readouterr().out
            clock.while_asleep = lambda: (holder.kill(), holder.wait())
            lock.take(tmp_path, patience=60)
    # A dead process of this host has no lock.
    with held(tmp_path), FolderLock() as lock, pytest.raises(UserError):
        lock.take(tmp_path, patience=60)
    assert capsys.readouterr().out.count("waiting up to 60 s") == 1


def test_folders_that_stay_empty_are_deleted(tmp_path):
    with FolderLock() as lock:
        lock.take(tmp_path / "new" / "run")
        assert (tmp_path / "new" / "run" / LOCK_FILE).exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with FolderLock() as lock:
        lock.take(tmp_path / "old")
    assert list(tmp_path.iterdir()) == [tmp_path / "old"]
    with FolderLock() as lock:
        lock.take(tmp_path / "new" / "run")
        (tmp_path / "new" / "run" / "history.csv").touch()
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["history.csv"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "a"}'])
def test_a_holder_that_cannot_be_read_is_another_process(tmp_path, content):
    with held(tmp_path):
        (tmp_path / LOCK_FILE).write_text(content)
        with FolderLock() as lock, pytest.raises(UserError, match="written by another process"):
            lock.take(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fail)
    monkeypatch.setattr(fcntl, "flock", fail)
    with FolderLock() as lock:
        lock.take(tmp_path / "run")
    with open(tmp_path / "file", "w") as file:
        assert try_lock(file.fileno())


def test_a_file_that_was_deleted_meanwhile_is_made_again(tmp_path, monkeypatch):
    path, lockf = tmp_path / "file", fcntl.lockf
    calls = []

    def unlink_first(descriptor, flags):
        if not calls:
            path.unlink()  # its holder releases it just now
        calls.append(descriptor)
        lockf(descriptor, flags)

    monkeypatch.setattr(fcntl, "lockf", unlink_first)
    descriptor = open_locked(path, with_children=False)
    assert len(calls) == 2 and os.path.samestat(os.fstat(descriptor), path.stat())
    os.close(descriptor)


def test_text_that_is_not_unicode_is_refused_and_changes_nothing(tmp_path):
    """A clip's id that was altered in a CSV would name no clip."""
    path = tmp_path / "train.csv"
    write_text(path, "wave\n")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "wave\udcff\n")
    assert path.read_text() == "wave\n" and list(tmp_path.iterdir()) == [path]

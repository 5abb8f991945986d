"""SIGTERM and Ctrl-C: finish the running step, save, leave with 128 + the signal's number.

A closed pipe, as in `train.py | head`, stops a run in the same way, as if by SIGPIPE. This module
imports nothing heavy: the command installs the handlers before the seconds that torch takes.
"""

import io
import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes on the Ctrl-C that the terminal has sent to its processes already.
SECONDS_OF_AN_ECHO = 0.5


class Stopped(SystemExit):
    """Raised where a signal asks the command to leave; uncaught, it is the exit status."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


_signal_number = 0  # the first one received
_received_at = 0.0
_is_ready = False
_is_over = False
_deferred = False


def install() -> None:
    """From now on SIGTERM and SIGINT end the process at once; after `ready`, they raise Stopped.

    Inside `deferred` they are raised when asked. A second Ctrl-C leaves at once in any case. If
    nobody reads the output any more, that counts as SIGPIPE.
    """
    for number in SIGNALS:
        signal.signal(number, _on_signal)
    sys.stdout = _watched(sys.stdout, "standard output")
    sys.stderr = _watched(sys.stderr, "standard error")


def ready() -> None:
    """To be called after the imports, which may swallow an exception and go on with half of it."""
    global _is_ready
    _is_ready = True


def over() -> None:
    """From now on signals are passed over: all is written, and Python is about to end."""
    global _is_over
    _is_over = True


def requested() -> int:
    """Number of the signal that asked to stop, or 0."""
    return _signal_number


def check() -> None:
    """Raises Stopped if a signal has come."""
    if _signal_number:
        raise Stopped(_signal_number)


@contextmanager
def deferred():
    """Inside, a signal is only remembered, so that no step is left half done."""
    with _deferral(True):
        yield


@contextmanager
def at_once():
    """Inside, within `deferred`, a signal raises Stopped immediately: for waiting."""
    with _deferral(False):
        check()
        yield


@contextmanager
def _deferral(value):
    global _deferred
    before, _deferred = _deferred, value
    try:
        yield
    finally:
        _deferred = before


def _on_signal(number, _frame):
    global _signal_number, _received_at
    now = time.monotonic()
    is_first = not _signal_number
    if is_first:
        _signal_number, _received_at = number, now
    is_impatient = number == signal.SIGINT and now - _received_at > SECONDS_OF_AN_ECHO
    if is_impatient or not _is_ready:
        os._exit(128 + number)
    # A second one would only disturb the leaving.
    if is_first and not (_deferred or _is_over):
        raise Stopped(number)


# --- output ------------------------------------------------------------------------------------


class _Output(io.FileIO):
    """A file descriptor whose closed pipe asks the command to stop instead of raising an error.

    An error would be raised wherever something is printed, in the middle of a step for example.
    """

    def __init__(self, descriptor: int, title: str):
        super().__init__(descriptor, "w", closefd=False)
        self.title = title

    def write(self, data):
        try:
            return super().write(data)
        except BrokenPipeError:
            _on_signal(signal.SIGPIPE, None)
            return len(data)
        except OSError as error:  # of a full disk, say, which does not name it
            error.filename = self.title
            raise


def _watched(stream, title):
    """`stream` over an `_Output`; itself if it is no file descriptor."""
    try:
        raw = _Output(stream.fileno(), title)
    except (AttributeError, OSError):  # closed before the start, or something of a test's
        return stream
    unbuffered = stream.write_through
    stream.flush()
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw), stream.encoding, stream.errors,
        line_buffering=stream.line_buffering, write_through=unbuffered,
    )  # fmt: skip


# --- other processes ---------------------------------------------------------------------------


@contextmanager
def kept_from_workers():
    """Processes started inside never get the signals, which are this process's to handle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_workers() -> None:
    """Kills the loaders' workers: Python would wait for one that hangs in a read."""
    # PyTorch's handler would raise an error for workers that die.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join(1)
    signal.signal(signal.SIGCHLD, before)

"""SIGTERM and Ctrl-C: finish the running step, save, exit with 128 + the signal's number.

A closed pipe, as in `train.py | head`, stops a run in the same way, like SIGPIPE. This module
imports nothing slow: commands install the handlers before they import torch.
"""

import io
import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes on the Ctrl-C that the terminal has already sent to its processes.
SECONDS_OF_AN_ECHO = 0.5


class Stopped(SystemExit):
    """Raised where a signal asks the command to exit; uncaught, it sets the exit status."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


@dataclass
class _Request:
    """The first signal that this process received, and how the next one is handled."""

    signal_number: int = 0
    received_at: float = 0.0
    is_raised: bool = False  # before `raise_on_signal`, a signal ends the process
    is_deferred: bool = False
    is_ignored: bool = False


# A process has one handler per signal, hence one of these; unused until `install`.
_request = _Request()


def install() -> None:
    """Handle SIGTERM and SIGINT: they end the process, until `raise_on_signal` is called.

    Inside `deferred` a signal is only recorded. A second Ctrl-C always exits immediately.
    """
    open_closed_streams()
    for number in SIGNALS:
        signal.signal(number, receive)


def raise_on_signal() -> None:
    """Let signals raise Stopped; call this after the imports, which may swallow it."""
    _request.is_raised = True


def ignore_signals() -> None:
    """Ignore signals: everything is written, and we are exiting."""
    _request.is_ignored = True


def requested() -> int:
    """Return the number of the signal that asked to stop, or 0."""
    return _request.signal_number


def check() -> None:
    """Raise Stopped if a signal has been received."""
    if _request.signal_number:
        raise Stopped(_request.signal_number)


@contextmanager
def deferred():
    """Only record signals in this context, so that no step is left half done."""
    with _deferral(True):
        yield


@contextmanager
def interruptible():
    """Let signals raise Stopped immediately, even inside `deferred`; for code that waits."""
    with _deferral(False):
        check()
        yield


@contextmanager
def _deferral(value: bool):
    before, _request.is_deferred = _request.is_deferred, value
    try:
        yield
    finally:
        _request.is_deferred = before


def receive(number: int, _frame=None) -> None:
    """Handle a signal."""
    now = time.monotonic()
    is_first = not _request.signal_number
    if is_first:
        _request.signal_number, _request.received_at = number, now
    is_impatient = number == signal.SIGINT and now - _request.received_at > SECONDS_OF_AN_ECHO
    if is_impatient or not _request.is_raised:
        os._exit(128 + number)
    # A second signal must not disturb the exit.
    if is_first and not (_request.is_deferred or _request.is_ignored):
        raise Stopped(number)


# --- output ------------------------------------------------------------------------------------


def open_closed_streams() -> None:
    """Connect standard streams that are closed to /dev/null, as `command >&-` leaves them.

    Python has None for them, and the next file that is opened would get their number.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))


@contextmanager
def watched_output():
    """Treat a closed stdout or stderr as SIGPIPE instead of raising BrokenPipeError."""
    before = sys.stdout, sys.stderr
    sys.stdout = _watch(sys.stdout, "standard output")
    sys.stderr = _watch(sys.stderr, "standard error")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # reported by `errors.exit_status`
                stream.flush()
        sys.stdout, sys.stderr = before


class _Output(io.FileIO):
    """A file descriptor that, on a closed pipe, asks the command to stop and raises no error.

    An error could come from any print, for example in the middle of a step.
    """

    def __init__(self, descriptor: int, title: str):
        super().__init__(descriptor, "w", closefd=False)
        self.title = title

    def write(self, data):
        try:
            return super().write(data)
        except BrokenPipeError:
            receive(signal.SIGPIPE)
            return len(data)
        except OSError as error:  # a full disk, for example, which does not name the file
            error.filename = self.title
            raise


def _watch(stream, title: str):
    """Return `stream` over an `_Output`, or `stream` itself if it has no file descriptor."""
    try:
        raw = _Output(stream.fileno(), title)
    except (AttributeError, OSError):  # closed before the start, or a test's buffer
        return stream
    unbuffered = stream.write_through
    stream.flush()
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=unbuffered,
    )


# --- other processes ---------------------------------------------------------------------------


@contextmanager
def signals_blocked():
    """Block the signals in processes started inside; this process handles them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_workers() -> None:
    """Kill the loaders' workers; `clips.batches.end_workers` also ends their iterators."""
    # PyTorch's handler would raise an error for workers that die.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join(1)
    signal.signal(signal.SIGCHLD, before)

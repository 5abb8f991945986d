"""SIGTERM and Ctrl-C: finish the running step, save, leave with 128 + the signal's number.

It imports nothing heavy: the command installs the handlers before the seconds that torch takes.
"""

import os
import signal
import time
from contextlib import contextmanager

# A launcher passes on the Ctrl-C that the terminal has sent to its processes already.
SECONDS_OF_AN_ECHO = 0.5


class Stopped(SystemExit):
    """Raised where a signal asks the command to leave; uncaught, it is the exit status."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


_signal_number = 0  # the last one received
_received_at = 0.0
_deferred = False


def install() -> None:
    """From now on SIGTERM and SIGINT raise Stopped, at once or, inside `deferred`, when asked."""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)


def ignore_in_worker(_worker_id) -> None:
    """For loader workers: a signal to the whole process group is the main process's to handle."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
    is_second = _signal_number and now - _received_at > SECONDS_OF_AN_ECHO
    if is_second and number == signal.SIGINT:
        os._exit(128 + number)
    _signal_number, _received_at = number, now
    if not _deferred:
        raise Stopped(number)

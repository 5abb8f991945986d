"""The zip of the page's network, which `exporting` writes in a separate process."""

import multiprocessing
import shutil
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from system.errors import UserError, message_for_user
from teaching.training import Training

FOLDER = ".export"  # in the data folder, for as long as teach.py runs
BUG = "an error in this program; the terminal shows it"
KILLED = "making the zip ended without a message; memory may have been short: try again"


class Takeaway:
    """The zip of the network that the page tries; it is forgotten when a training replaces that.

    A process of its own makes it: tracing a network keeps Python busy, and the camera waits.
    """

    def __init__(self, training: Training):
        """Delete what an earlier teach.py left."""
        self.training, self.lock, self.process = training, threading.Lock(), None
        self.folder = training.data_set.folder / FOLDER
        shutil.rmtree(self.folder, ignore_errors=True)
        self._set("none")

    def _set(self, state: str, fraction: float = 0.0, text: str = ""):
        self.state = {"state": state, "fraction": fraction, "text": text}

    @property
    def path(self) -> Path:
        """Return where the zip is."""
        return self.folder / f"{self.training.run_folder.name}.zip"

    def start(self) -> None:
        """Begin to make the zip. Raises UserError if there is no network, or one is being made."""
        with self.lock:
            checkpoint = self.training.checkpoint
            if not checkpoint.exists():
                raise UserError("there is no network yet; train one first")
            if self.state["state"] == "running":
                raise UserError("the zip is already being made")
            self.path.unlink(missing_ok=True)
            self.source = _identity(checkpoint)
            self._set("running", text="starting")
            # Not forked: a fork of a program with threads of PyTorch can deadlock.
            context = multiprocessing.get_context("spawn")
            receiver, sender = context.Pipe(duplex=False)
            self.process = context.Process(
                target=_export, args=(checkpoint, self.path, sender), daemon=True
            )
            self.process.start()
            sender.close()
            threading.Thread(target=self._follow, args=(receiver,), daemon=True).start()

    def _follow(self, receiver: Connection):
        """Take over what the process says, until it ends."""
        said = ("running",)
        try:
            while True:
                said = receiver.recv()
                self._set(*said)
        except (EOFError, OSError):  # it has ended
            if said[0] == "running":
                self._set("failed", text=KILLED)

    def progress(self) -> dict:
        """Return what the page shows: state, fraction, text, and the zip's name."""
        with self.lock:
            is_over = self.state["state"] in ("done", "failed")
            if is_over and self.source != _identity(self.training.checkpoint):
                self._set("none")
            return self.state | {"name": self.path.name}

    def content(self) -> bytes | None:
        """Return the zip, or None if there is none."""
        return self.path.read_bytes() if self.progress()["state"] == "done" else None

    def close(self) -> None:
        """Stop the process, and delete the zip."""
        if self.process:
            self.process.terminate()
            self.process.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def _identity(checkpoint: Path) -> tuple | None:
    """Return what differs between two networks at the same path; None: there is none."""
    try:
        about = checkpoint.stat()
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def _export(checkpoint: Path, output: Path, sender: Connection) -> None:
    """Make the zip, and send (state, fraction, text)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; teach.py ends this process
    try:
        from exporting.package import export  # not at the top: imports take a second

        export(checkpoint, output, on_progress=lambda *done: sender.send(("running", *done)))
        sender.send(("done", 1.0, ""))
    except Exception as error:
        message = message_for_user(error)
        if message is None:
            traceback.print_exc()
        sender.send(("failed", 0.0, message or BUG))

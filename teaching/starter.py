"""Start train.py at once: a process that has imported what it needs waits for its arguments.

The imports take longer than training a few clips. This file is also that process's program.
"""

import gc
import json
import os
import runpy
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

# What train.py imports: at its start, for the optimizer, for the baselines, and at its end.
MODULES = (
    "train",
    "torch._dynamo",
    "sklearn.linear_model",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "jinja2",
)
MAX_BYTES = 2**16  # of the arguments


class Starter:
    """Starts a script. It is not safe for threads."""

    def __init__(self, script: Path):
        """Remember the script; nothing is started yet."""
        self.script, self.process, self.connection = script, None, None

    def prepare(self) -> None:
        """Start the process that waits, unless it is there; it ends when this program does."""
        if self.process and self.process.poll() is None:
            return
        self.close()
        self.connection, other = socket.socketpair()
        with other:
            command = [__file__, self.script, other.fileno(), *MODULES]
            self.process = self._start(command, other.fileno())

    def run(self, arguments: list[str], log) -> subprocess.Popen:
        """Start the script, whose messages go to the file `log`, which it keeps open."""
        if self.process and self.process.poll() is None:
            try:
                message = json.dumps(arguments).encode()
                socket.send_fds(self.connection, [message], [log.fileno()])
            except OSError:  # it has just died
                self.close()
            else:
                self.connection.close()
                process, self.process = self.process, None
                return process
        return self._start([self.script, *arguments], stdout=log, stderr=subprocess.STDOUT)

    def _start(self, command, *descriptors: int, stdout=subprocess.DEVNULL, stderr=None):
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=descriptors,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )

    def close(self) -> None:
        """End the process that waits."""
        if self.process:
            self.connection.close()
            self.process.kill()
            self.process.wait()
            self.process = None


def wait(script: str, descriptor: int, modules: list[str]) -> None:
    """Import modules; then run `script` with the arguments that arrive at a socket, if any do.

    With them, a JSON list, comes the file for its messages.
    """
    sys.path[0] = str(Path(script).parent)  # instead of this folder
    with socket.socket(fileno=descriptor) as connection:
        for name in modules:
            import_module(name)
        gc.freeze()  # Python would look for garbage in the modules, for a second at exit
        message, files, *_ = socket.recv_fds(connection, MAX_BYTES, 1)
    if not message:  # teach.py has ended
        return
    for number in (1, 2):  # stdout, stderr
        os.dup2(files[0], number)
    os.close(files[0])
    sys.argv = [script, *json.loads(message)]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    wait(sys.argv[1], int(sys.argv[2]), sys.argv[3:])

"""Teach a network your own gestures on a local page: `python teach.py`."""

import os

from system import stopping
from system.errors import end_program, exit_status

if __name__ == "__main__":  # a signal during the imports below, which take seconds, ends it cleanly
    stopping.install()
    # The browser needs cores, too: threads that wait for others must not keep them busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import argparse
import threading
import webbrowser
from pathlib import Path

import numpy as np

import demo_data
from clips.frames import prepare_decoders
from system.device import choose_device, prepare
from teaching.data_set import DataSet
from teaching.live import LiveSession
from teaching.server import Server
from teaching.training import Training

SAMPLE_GESTURES, SAMPLES_EACH = ("Moving Right", "Moving Left"), 10


def port_number(text: str) -> int:
    """Parse a port number; argparse reports the ValueError."""
    if not 0 <= int(text) < 2**16:
        raise ValueError(text)
    return int(text)


def draw_samples():
    """Yield (class, frames) of drawn clips of two opposing gestures, for those without a camera."""
    for number in range(SAMPLES_EACH):
        for gesture in SAMPLE_GESTURES:
            rng = np.random.default_rng([SAMPLE_GESTURES.index(gesture), number])
            yield gesture, demo_data.draw_clip(gesture, rng)


def serve(options) -> None:
    """Serve the page until a signal arrives; then stop a running training, which is saved."""
    prepare_decoders()
    device = choose_device(options.gpus)
    prepare(device, "auto", deterministic=False)
    data_set = DataSet(options.data.resolve())
    training = Training(data_set, device.type, options.gpus)
    session = LiveSession(lambda: training.checkpoint, device)
    threading.Thread(target=session.prepare, daemon=True).start()
    with Server(options.port, data_set, training, session, draw_samples) as server:
        print(f"open {server.address}   (Ctrl-C ends; clips are in {options.data})", flush=True)
        if not options.no_browser:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        finally:
            training.close()
            data_set.close()


def main(arguments=None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        description="Open a page on which you record gestures, train a network on them, and try it."
    )
    parser.add_argument(
        "--data",
        "-d",
        type=Path,
        default=Path("data/mine"),
        metavar="FOLDER",
        help="folder of clips and trainings, made if missing (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=port_number,
        default=8321,
        help="port of the page; 0: any that is free (default: %(default)s)",
    )
    parser.add_argument("--gpus", "-g", help="0 or cpu; default: a GPU if there is one")
    parser.add_argument(
        "--no_browser", action="store_true", help="print the address, but do not open it"
    )
    options = parser.parse_args(arguments)
    stopping.raise_on_signal()
    return exit_status(lambda: serve(options))


if __name__ == "__main__":
    end_program(main())

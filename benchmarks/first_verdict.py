"""Seconds on teach.py's page from pressing Train to the first network, and to a right verdict.

    python benchmarks/first_verdict.py --rounds 3

Two opposing gestures and "nothing", eight drawn clips each, in a real server and headless Chromium,
whose camera shows a clip of another hand again and again. Start is pressed as soon as there is a
network. Train is pressed a while after the page has opened, as by somebody who records clips first,
and at once.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np
import torch
from browser import CHROMIUM
from driven_browser import Browser, write_camera
from teach_page import served

import demo_data
from benchmarks.machine import describe
from system.errors import UserError, exit_status
from teach import SAMPLE_GESTURES
from teaching.pictures import encode_clip

CLIPS_EACH, RATE, NEW_HAND = 8, 12, 99
SECONDS_BEFORE = (25, 0)  # from the page's opening to pressing Train


def add_clips(data_set) -> None:
    """Record each gesture by CLIPS_EACH hands, and hands that hold still as "nothing"."""
    for hand in range(CLIPS_EACH):
        for gesture in SAMPLE_GESTURES:
            clip = demo_data.draw_clip(gesture, np.random.default_rng(hand))
            data_set.add(gesture, encode_clip(clip))
        still = np.repeat(clip[:1], len(clip), axis=0)
        data_set.add("nothing", encode_clip(still))


def time_round(folder: Path, gesture: str, seconds_before: float) -> tuple[float, float]:
    """Return the seconds from Train to the first network, and to the verdict `gesture`."""
    frames = demo_data.draw_clip(gesture, np.random.default_rng(NEW_HAND))
    frames = frames.repeat(2, axis=1).repeat(2, axis=2)  # sides of a film are even
    camera = write_camera(folder / "camera.y4m", frames, RATE)
    with served(folder / "mine", is_prepared=True) as server:
        threading.Thread(target=server.session.prepare, daemon=True).start()  # as teach.py does
        add_clips(server.data_set)
        with Browser(camera) as page:
            page.open(server.address)
            page.until("document.body.dataset.ready && !isOff('train')")
            time.sleep(seconds_before)
            start = time.monotonic()
            page.js("$('train').click()")
            page.until("training.has_network && !isOff('try')")
            first_network = time.monotonic() - start
            page.js("$('try').click()")
            page.until(f"$('verdict').textContent === '{gesture}'")
            return first_network, time.monotonic() - start


def measure(rounds: int) -> None:
    """Print the median and the range of each."""
    if not CHROMIUM:
        raise UserError("there is no Chromium here; on Debian: apt-get install chromium")
    print(", ".join(describe(torch.device("cpu")).values()))
    for seconds_before in SECONDS_BEFORE:
        found = []
        for number in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                gesture = SAMPLE_GESTURES[number % len(SAMPLE_GESTURES)]
                found.append(time_round(Path(folder), gesture, seconds_before))
        for what, values in zip(
            ("first network", "right verdict"), zip(*found, strict=True), strict=True
        ):
            print(
                f"Train pressed after {seconds_before} s: {what} after "
                f"{statistics.median(values):.1f} s ({min(values):.1f} to {max(values):.1f}, "
                f"{rounds} rounds)",
                flush=True,
            )


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    return exit_status(lambda: measure(options.rounds))


if __name__ == "__main__":
    sys.exit(main())

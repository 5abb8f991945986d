"""Windows per second of an exported network, on one core: in Python, and in headless Chromium.

    npm pack onnxruntime-web@1.30.0 && tar -xzf onnxruntime-web-1.30.0.tgz
    python export.py --checkpoint FILE --output gestures/ --runtime package/
    python benchmarks/exported.py gestures/

The two take turns; frames have 320 x 240 pixels.
"""

import argparse
import functools
import http.server
import json
import statistics
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch
from browser import CHROMIUM
from driven_browser import Browser

from benchmarks.machine import describe
from exporting.checking import SPEED_SECONDS, SPEED_SIZE, windows_per_second
from exporting.classify import Classifier
from exporting.package import NETWORK, RUNTIME
from system.errors import UserError, exit_status

READY = "document.body.dataset.ready || document.querySelector('#message.bad')"
# Counts windows for some seconds, after one that is not counted.
COUNT = """(async () => {
  const [height, width] = SIZE, row = Array(about.frames).fill(0);
  const picture = {pixels: new Uint8Array(3 * height * width), width, height};
  await scoresOf([row], () => picture);
  const start = performance.now();
  let count = 0, seconds = 0;
  for (; seconds < SECONDS; seconds = (performance.now() - start) / 1000, count++)
    await scoresOf([row], () => picture);
  return count / seconds;
})()"""


@contextmanager
def served(folder: Path):
    """Serve a folder as `python -m http.server` does, silently; yield the address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def measure(folder: Path, rounds: int) -> None:
    """Print the median and the range of each, over the rounds."""
    if not (folder / NETWORK).exists() or not (folder / RUNTIME).is_dir():
        raise UserError(f"{folder}: is not what export.py writes with --runtime package/")
    if not CHROMIUM:
        raise UserError("there is no Chromium here; on Debian: apt-get install chromium")
    torch.set_num_threads(1)
    num_frames = Classifier(folder / NETWORK).about["frames"]
    count = COUNT.replace("SIZE", json.dumps(SPEED_SIZE)).replace("SECONDS", str(SPEED_SECONDS))
    found = {"Python": [], "Chromium": []}
    with served(folder) as address, Browser() as page:
        page.open(address)
        page.until(READY)
        for _ in range(rounds):
            found["Python"].append(windows_per_second(folder / NETWORK, num_frames))
            found["Chromium"].append(page.js(count))
    print(", ".join(describe(torch.device("cpu")).values()))
    for name, values in found.items():
        print(
            f"{name:<9}{statistics.median(values):8.1f} windows per second "
            f"({min(values):.1f} to {max(values):.1f}, {rounds} rounds)"
        )


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="that export.py wrote, with --runtime")
    parser.add_argument("--rounds", type=int, default=9, help="of a second each (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    return exit_status(lambda: measure(options.folder, options.rounds))


if __name__ == "__main__":
    sys.exit(main())

"""A tiny network, trained for an epoch on frames and films, and its exported folder."""

import base64
import functools
import http.server
import importlib.util
import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import CLASSES, draw_frames
from movies import write_video
from runs import make_settings, run_folder, write_config

import train
from exporting.checking import Agreement
from exporting.package import export

# An unpacked npm package onnxruntime-web.
RUNTIME = os.environ.get("ONNXRUNTIME_WEB")
needs_runtime = pytest.mark.skipif(
    not RUNTIME,
    reason="ONNXRUNTIME_WEB does not name an unpacked npm package onnxruntime-web "
    "(`npm pack onnxruntime-web`)",
)
# Of the exported page: it can be used, or says why not.
READY = "document.body.dataset.ready || document.querySelector('#message.bad')"
WEBM = {"codec": "libvpx", "pix_fmt": "yuv420p", "deadline": "realtime", "cpu-used": "8"}


class Exported(NamedTuple):
    folder: Path
    checkpoint: str
    settings: dict
    agreement: Agreement
    progress: list  # of (fraction, text)


def train_one(folder, **keys):
    """A network after one epoch; returns its settings and checkpoint."""
    settings = make_settings(folder, num_epochs=1, checkpoint_minutes=10, **keys)
    if keys.get("model", "conv3d") != "conv3d":
        del settings["block_widths"], settings["head_widths"]
    assert train.main(["-c", write_config(folder / "config.json", settings), "-g", "cpu"]) == 0
    return settings, str(run_folder(settings) / "checkpoint.pth.tar")


def add_films(settings) -> None:
    """Add three films of other frame rates and sizes to the validation clips."""
    folder, rng = Path(settings["val_data_folder"]), np.random.default_rng(1)
    with open(settings["val_data_csv"], "a") as file:
        for name, rate in zip(CLASSES, (12, 25, 7), strict=True):
            frames = draw_frames(name, 14, rng, height=36, width=52)
            write_video(folder / f"{name}.webm", frames, rate=rate, **WEBM)
            file.write(f"{name}.webm;{name}\n")


_made = []


def exported(tmp_path_factory) -> Exported:
    """Export once per process: tracing takes ten seconds."""
    if not _made:
        folder, progress = tmp_path_factory.mktemp("exported"), []
        settings, checkpoint = train_one(folder, nclips=2)
        add_films(settings)
        runtime = Path(RUNTIME) if RUNTIME else None
        output = folder / "gestures"
        agreement = export(checkpoint, output, runtime, lambda *done: progress.append(done))
        _made.append(Exported(output, checkpoint, settings, agreement, progress))
    return _made[0]


def load_classify(folder):
    """The module `classify` of an exported folder."""
    spec = importlib.util.spec_from_file_location("exported_classify", folder / "classify.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def served_page(folder):
    """Serve a folder as `python -m http.server` does; yield the address and the paths."""
    paths = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_):
            paths.append(self.path)

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", paths
        server.shutdown()


# --- an exported page without a runtime beside it: the CDN is played by the test ------------------


def open_answering(browser, address, answer) -> list[str]:
    """Open a page, and answer its requests to other hosts; return their addresses."""
    urls, is_open = [], f"document.body && location.href === '{address}'"
    browser.send("Fetch.enable", patterns=[{"urlPattern": "https://*"}])
    browser.send("Page.navigate", url=address)
    while not browser.js(f"!!({is_open} && ({READY}))"):
        while browser.paused:
            paused = browser.paused.pop()
            urls.append(paused["request"]["url"])
            answer(browser, paused)
    return urls


def fulfil(browser, paused, change=lambda content: content) -> None:
    """Answer a request to the CDN with the file of the npm package, changed by `change`."""
    name = paused["request"]["url"].rpartition("/")[2]
    content = change((Path(RUNTIME) / "dist" / name).read_bytes())
    browser.send(
        "Fetch.fulfillRequest",
        requestId=paused["requestId"],
        responseCode=200,
        responseHeaders=[{"name": "Access-Control-Allow-Origin", "value": "*"}],
        body=base64.b64encode(content).decode(),
    )

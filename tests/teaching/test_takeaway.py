"""The zip of the page's network: made in real Chromium, downloaded, used, and refused."""

import json
import shutil
import time
import zipfile

import numpy as np
import pytest
from browser import needs_chromium
from driven_browser import Browser, write_camera
from exported import RUNTIME, WEBM, fulfil, load_classify, open_answering, served_page, train_one
from movies import write_video
from page_driver import browser, camera, message, page, server
from teach_page import ask

import demo_data
from clips.frames import FramesInMemory
from own_clips import settings
from teach import SAMPLE_GESTURES
from teaching import takeaway

_ = (browser, camera, page, server)  # fixtures
ZIP = "training.zip.state"


def put_network(server, folder, **keys) -> None:
    """Let a network that was trained elsewhere be the page's."""
    _, checkpoint = train_one(folder / "other", crop_size=24, **keys)
    server.training.run_folder.mkdir(parents=True)
    shutil.copy(checkpoint, server.training.run_folder)


def until_over(server) -> dict:
    end = time.monotonic() + 300
    while (found := ask(server, "GET", "/progress")[1]["zip"])["state"] == "running":
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return found


def download(page, folder):
    """Click the link, and return the file."""
    folder.mkdir()
    page.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    page.js("$('download').click()")
    end = time.monotonic() + 120
    while not (found := list(folder.glob("*.zip"))):
        assert time.monotonic() < end, list(folder.iterdir())
        time.sleep(0.05)
    return found[0]


def check_page(folder, classifier) -> None:
    """The downloaded page, in a browser that has never seen this server."""
    rate, movements = classifier.about["frame_rate"], {}
    for name in SAMPLE_GESTURES:
        movements[name] = demo_data.draw_clip(name, np.random.default_rng(9))
    films = [
        write_video(folder / f"{name}.webm", frames, int(rate), **WEBM)
        for name, frames in movements.items()
    ]
    camera = write_camera(folder / "camera.y4m", np.concatenate([*movements.values()]), int(rate))
    with served_page(folder) as (address, _), Browser(camera) as other:
        open_answering(other, address, fulfil)
        other.js("$('drop').scrollIntoView()")
        other.drop(films, "#drop")
        other.until(f"document.querySelectorAll('[data-scores]').length === {len(films)}")
        shown = "[...document.querySelectorAll('[data-scores]')].map(each => each.dataset.scores)"
        for film, scores in zip(reversed(films), other.js(shown), strict=True):
            found = dict(zip(classifier.about["classes"], json.loads(scores), strict=True))
            assert found == pytest.approx(classifier(film), abs=0.1)  # colours differ a little
        other.js("$('threshold').value = 0; $('threshold').oninput(); $('start').click()")
        other.until("about.classes.includes($('verdict').textContent)")
        assert other.complaints == []


@needs_chromium
@pytest.mark.slow
def test_a_trained_network_is_downloaded_and_used(page, server, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "MIN_EPOCHS", 3)
    monkeypatch.setattr(settings, "MAX_EPOCHS", 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert page.js("isOff('export')")  # there is no network yet
    page.js("$('samples').click()")
    page.until("!isOff('train')")
    page.js("$('train').click()")
    page.until("training.state === 'done'", 1200)
    page.js("$('export').click()")
    page.until(f"{ZIP} === 'running' && isOff('export') && !$('exporting').hidden")
    page.until(f"{ZIP} !== 'running'", 600)
    assert message(page) == "mine.zip is ready: download it."
    path = download(page, tmp_path / "downloads")
    assert path.name == "mine.zip"
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(path).extractall(unpacked)
    assert {"README.md", "classify.py", "index.html", "network.onnx"} == {
        each.name for each in unpacked.iterdir()
    }
    clip = demo_data.draw_clip(SAMPLE_GESTURES[0], np.random.default_rng(9))
    classifier = load_classify(unpacked).Classifier(unpacked / "network.onnx")
    found, predictor = classifier(clip), server.session._load()
    expected = predictor.scores(FramesInMemory(list(clip))).whole
    assert [found[name] for name in predictor.classes] == pytest.approx(expected, abs=0.02)
    if RUNTIME:
        check_page(unpacked, classifier)
    # A network that replaces it has no zip yet.
    checkpoint = server.training.checkpoint
    checkpoint.write_bytes(checkpoint.read_bytes() + b"\0")
    page.until("$('download').hidden && !isOff('export')")
    assert ask(server, "GET", "/download")[0] == 404


@needs_chromium
@pytest.mark.slow
def test_a_network_that_cannot_be_exported_says_why(page, server, tmp_path):
    put_network(server, tmp_path, model="two_stream", backbone="mobilenet_v3_small")
    page.until("!isOff('export')")
    page.js("$('export').scrollIntoView({block: 'center'}); $('export').click()")
    page.until(f"{ZIP} === 'failed'", 300)
    shown = page.js("$('export-message').textContent")
    assert shown.startswith("No zip: ") and "two_stream takes optical flow" in shown
    assert page.js("$('export-message').classList.contains('bad') && $('download').hidden")
    assert not page.js("isOff('export')") and page.js("$('exporting').hidden")


@pytest.mark.slow
def test_what_ends_the_process_is_said_and_a_second_one_refused(server):
    assert ask(server, "POST", "/export", b"") == (
        400,
        {"error": "there is no network yet; train one first"},
    )
    checkpoint = server.training.run_folder / "checkpoint.pth.tar"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"no network")
    assert ask(server, "POST", "/export", b"")[0] == 200
    status, answer = ask(server, "POST", "/export", b"")
    assert status == 400 and "already being made" in answer["error"]
    server.takeaway.process.kill()
    found = until_over(server)
    assert found["state"] == "failed" and found["text"] == takeaway.KILLED
    assert ask(server, "GET", "/download")[0] == 404
    assert ask(server, "POST", "/export", b"")[0] == 200  # another try
    found = until_over(server)
    assert found["state"] == "failed" and str(checkpoint) in found["text"]

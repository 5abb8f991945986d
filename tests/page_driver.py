"""Driving teach.py's page in Chromium: a camera of numbered pictures, and a network for them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from driven_browser import Browser, write_camera
from teach_page import served

from clips.frames import FrameFolder
from teaching import live
from teaching.pictures import MAX_PIXELS

NUMBERS, SIDE = 256, 24  # pictures of the camera; pixels of a block
CAMERA_RATE = 20
WEBM = {"codec": "libvpx", "pix_fmt": "yuv420p", "deadline": "realtime", "cpu-used": "8"}
MARKUP = "<b>ups & downs</b>"
MESSAGE = "[...document.querySelectorAll('.message')].map(one => one.textContent).join('')"
# The camera is open, and the page knows whether there is a network: now buttons can be pressed.
READY = "document.body.dataset.ready && 'has_network' in training"
PATIENT = "Object.assign(RECORDING, {gap: 1e9, silence: 1e9, late: 1e9}); countdown = 0"
SHORT = "RECORDING.frames = 12"
EAGER = "Object.assign(RECORDING, {gap: 400, silence: 1e9, late: 1.15}); countdown = 0"


def numbered() -> np.ndarray:
    """Pictures whose number is in white and black blocks: white, black, then 8 bits."""
    frames = np.full((NUMBERS, 160, 240, 3), 90, np.uint8)
    for number, frame in enumerate(frames):
        for place, bit in enumerate(f"10{number:08b}"):
            frame[50:110, SIDE * place : SIDE * (place + 1)] = 255 * int(bit)
    return frames


def number_of(frame) -> int:
    """The number of a picture of any size. Raises AssertionError if it is not whole."""
    height, width = frame.shape[:2]
    middles = frame[height // 2, [int(width * (place + 0.5) / 10) for place in range(10)]].mean(1)
    assert ((middles < 60) | (middles > 195)).all(), middles
    bits = "".join(str(int(value > 128)) for value in middles)
    assert bits[:2] == "10", f"mirrored: {bits}"
    return int(bits[2:], 2)


def in_order(frames) -> bool:
    """Whether the numbers never go down; on a slow machine a picture may be there often."""
    steps = np.diff([number_of(frame) for frame in frames]) % NUMBERS
    assert (steps > 0).any(), steps
    return bool((steps < NUMBERS // 2).all())


class Watcher:
    """A network that knows whether the numbers go up."""

    classes = ("up", MARKUP)
    config = SimpleNamespace(frame_rate=12.0)

    def scores(self, source):
        frames = list(source.frames_at(range(len(source))))
        steps = np.diff([number_of(frame) for frame in frames]) % NUMBERS
        is_up = (steps[steps > 0] < NUMBERS // 2).mean() > 0.5  # 0: shown again
        return SimpleNamespace(whole=np.array([0.9, 0.1] if is_up else [0.1, 0.9]))


def message(page) -> str:
    """What the page says, at whichever place."""
    return page.js(MESSAGE)


def record(page, name) -> str:
    page.js(f"$('name').value = {json.dumps(name)}; notify(''); $('record').click()")
    page.until(f"!isBusy && {MESSAGE}")
    return message(page)


def frames_of(server, clip_id):
    folder = FrameFolder(server.data_set.folder / "clips" / clip_id, MAX_PIXELS)
    return list(folder.frames_at(range(len(folder))))


# --- fixtures; a test file imports them ------------------------------------------------------


@pytest.fixture(scope="session")
def camera(tmp_path_factory):
    return write_camera(tmp_path_factory.mktemp("camera") / "numbers.y4m", numbered(), CAMERA_RATE)


@pytest.fixture(scope="session")
def browser(camera):
    with Browser(camera) as running:
        yield running


@pytest.fixture
def server(tmp_path):
    with served(tmp_path / "mine") as running:
        yield running


@pytest.fixture
def page(browser, server):
    """The page with an open camera; at the end, its console is empty and its words fit.

    A test in which the server refuses requests sets `refuses`: Chromium reports each, perhaps late.
    """
    browser.complaints.clear()
    browser.refuses = False
    browser.open(server.address)
    browser.until(READY)
    browser.js(PATIENT)
    yield browser
    complaints = browser.complaints
    if browser.refuses:
        complaints = [one for one in complaints if one.get("entry", {}).get("source") != "network"]
    assert complaints == [], complaints
    for width in (400, 1200):
        browser.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        browser.until(f"document.documentElement.scrollWidth == {width}")  # once all is laid out
    browser.open("about:blank")  # before the server goes


@pytest.fixture
def network(server, monkeypatch):
    """The server has a network, which knows whether the numbers go up.

    No gap between pictures, which a slow machine may have, begins a movement anew.
    """
    monkeypatch.setattr(live, "load_predictor", lambda path, device: Watcher())
    monkeypatch.setattr(live, "MAX_GAP", 1e9)
    server.training.run_folder.mkdir(parents=True)
    server.training.checkpoint.touch()

"""The page in real Chromium, with a camera that shows numbered pictures.

Nothing here depends on the machine's speed: `patient` lifts the limits of a recording, which on a
slow machine refuse it, and tests of the limits have a camera that is always beyond them.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from browser import needs_chromium
from conftest import write_clip
from driven_browser import Browser, write_camera
from movies import write_video
from teach_page import served

from clips.frames import FrameFolder
from teaching import live
from teaching.data_set import MAX_PIXELS

pytestmark = needs_chromium

NUMBERS, SIDE = 256, 24  # pictures of the camera; pixels of a block
CAMERA_RATE = 20
WEBM = {"codec": "libvpx", "pix_fmt": "yuv420p", "deadline": "realtime", "cpu-used": "8"}
MARKUP = "<b>ups & downs</b>"
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
    """Whether the numbers never go down; on a slow machine a picture may be there twice."""
    steps = np.diff([number_of(frame) for frame in frames]) % NUMBERS
    assert (steps > 0).mean() > 0.5, steps
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


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    return write_camera(tmp_path_factory.mktemp("camera") / "numbers.y4m", numbered(), CAMERA_RATE)


@pytest.fixture(scope="module")
def browser(camera):
    with Browser(camera) as running:
        yield running


@pytest.fixture
def server(tmp_path):
    with served(tmp_path / "mine") as running:
        yield running


@pytest.fixture
def page(browser, server):
    """The page with an open camera; at the end, its console is empty and its words fit."""
    browser.complaints.clear()
    browser.open(server.address)
    browser.until("document.body.dataset.ready")
    browser.js(PATIENT)
    yield browser
    assert browser.complaints == []
    for width in (400, 1200):
        browser.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        browser.until(f"document.documentElement.scrollWidth == {width}")  # once all is laid out


def message(page) -> str:
    return page.js("$('message').textContent")


def record(page, name) -> str:
    page.js(f"$('name').value = {json.dumps(name)}; notify(''); $('record').click()")
    page.until("!isBusy && $('message').textContent")
    return message(page)


def frames_of(server, clip_id):
    folder = FrameFolder(server.data_set.folder / "clips" / clip_id, MAX_PIXELS)
    return list(folder.frames_at(range(len(folder))))


def test_a_clip_has_the_cameras_pictures_in_order_and_unmirrored(page, server):
    assert page.js("$('name').value") == "nothing"  # suggested first
    assert record(page, MARKUP) == f"Clip 1 of “{MARKUP}” is saved."
    frames = frames_of(server, "1")
    assert len(frames) == 36 and {frame.shape for frame in frames} == {(120, 180, 3)}
    assert in_order(frames)
    page.until("document.querySelectorAll('.strip img').length === 1")
    page.until("document.querySelector('.strip img').naturalWidth === 12 * 90")
    assert page.js("document.querySelector('h3').textContent") == f"{MARKUP}: 1"
    assert page.js("document.querySelectorAll('h3 b').length") == 0


def test_pictures_are_a_twelfth_of_a_second_apart(page):
    page.js(SHORT)
    times = np.array(page.js("takeClip().then(frames => frames.map(([time]) => time))"))
    steps = np.diff(times)
    assert len(times) == 12 and (steps > 1000 / CAMERA_RATE / 2).all()
    # A slow machine may take longer.
    assert steps.mean() > 0.97 * 1000 / 12


def test_small_pictures_are_not_enlarged(page):
    page.js(
        "window.small = Object.assign(document.createElement('canvas'), {width: 64, height: 48}); 0"
    )
    size = (
        "jpeg(small, small.width, small.height).then(createImageBitmap).then("
        "image => [image.width, image.height])"
    )
    assert page.js(size) == [64, 48]
    page.js("small.width = 1000; small.height = 10; 0")
    assert page.js(size) == [1000, 10]


def test_holding_the_space_bar_records_one_clip_after_another(page, server):
    page.js(SHORT)
    page.js("$('name').value = 'held'; document.activeElement.blur()")
    page.key("keyDown")
    page.until("document.querySelectorAll('.clip').length === 1")
    page.key("keyUp")
    page.until("!isBusy && document.querySelectorAll('.clip').length === 2")
    assert [name for name, _ in server.data_set.clips.values()] == ["held"] * 2
    page.js("$('name').focus(); 0")
    page.send("Input.insertText", text=" ")
    assert not page.js("isBusy")


def test_what_a_slow_camera_shows_is_refused(page, server):
    page.js(SHORT)
    page.js("RECORDING.late = 0.5")
    assert "Not saved: it took" in record(page, "late") and "too long" in message(page)
    page.js("RECORDING.gap = 20")
    assert "Not saved: between two pictures there were" in record(page, "gap")
    page.js("RECORDING.gap = 1e9; RECORDING.silence = 1")
    assert "Not saved: the camera sent no pictures" in record(page, "silent")
    assert not server.data_set.clips


def test_any_clip_can_be_removed_and_a_reload_shows_the_rest(page, server):
    page.js(SHORT)
    for name in ("a", "b"):
        record(page, name)
    page.until("document.querySelectorAll('.clip').length === 2")
    page.js("document.querySelector('[title=\"remove clip 1 of a\"]').click()")
    page.until("document.querySelectorAll('.clip').length === 1")
    assert list(server.data_set.clips) == ["2"]
    assert message(page) == "Clip 1 is removed."
    page.until("document.activeElement.id === 'name'")  # the class has no clip left
    page.open(server.address)
    page.until("document.querySelectorAll('.clip').length === 1")
    assert page.js("document.querySelector('h3').textContent") == "b: 1"


def test_videos_and_folders_can_be_dropped_in(page, server, tmp_path):
    frames = numbered()[:12]
    root = tmp_path / "drop"
    write_clip(root / "wave" / "10", frames)
    write_clip(root / "wave" / "9", frames[::-1])
    (root / "clap" / "anna").mkdir(parents=True)
    video = root / "clap" / "anna" / "1.webm"
    write_video(video, frames, **WEBM)
    (root / "wave" / "notes.txt").write_text("no clip")
    write_video(tmp_path / "long.webm", np.repeat(frames, 11, 0)[:, ::8, ::8], **WEBM)
    (tmp_path / "broken.webm").write_bytes(video.read_bytes()[:60])
    page.js("$('name').value = 'typed'; notify('')")
    page.drop([root, video, tmp_path / "long.webm", tmp_path / "broken.webm"], "#drop")
    page.until("/are added/.test($('message').textContent)")
    assert message(page).startswith("4 clips are added. long.webm: lasts longer than 10 s")
    assert "broken.webm: this browser cannot play it" in message(page)
    assert message(page).endswith("Ignored: 1 file that is not a film: notes.txt.")
    assert [name for name, _ in server.data_set.clips.values()] == ["anna", "wave", "wave", "typed"]
    assert [number_of(frame) for frame in frames_of(server, "2")] == [*range(12)][::-1]
    assert [number_of(frame) for frame in frames_of(server, "3")] == [*range(12)]
    from_video = frames_of(server, "1")
    assert len(from_video) == 12 and in_order(from_video)


@pytest.fixture
def network(server, monkeypatch):
    """The server has a network, which knows whether the numbers go up."""
    monkeypatch.setattr(live, "load_predictor", lambda path, device: Watcher())
    server.training.run_folder.mkdir(parents=True)
    server.session.checkpoint.touch()


def test_what_is_played_backwards_is_recognised_as_its_opposite(network, page):
    assert page.js("$('backwards').disabled")
    page.js("$('try').click()")
    page.until("$('verdict').textContent === 'up'")
    page.until("!$('backwards').disabled")
    names = "[...document.querySelectorAll('.score span:first-child')].map(one => one.textContent)"
    assert page.js(names) == ["up", MARKUP]
    page.js("$('backwards').click()")
    page.until("$('reverse').textContent")
    assert page.js("$('reverse').textContent") == (
        f"The last three seconds: “up” (90\u00a0%). The same pictures "
        f"backwards: “{MARKUP}” (90\u00a0%)."
    )
    page.until("$('verdict').textContent === 'up'")  # it goes on
    page.js("$('try').click()")
    assert page.js("$('try').textContent") == "Start" and not page.js("session")


def test_a_network_is_only_replaced_after_a_second_press(network, page, server, monkeypatch):
    pressed = []
    monkeypatch.setattr(server.training, "start", lambda **flags: pressed.append(flags))
    page.js("$('train').disabled = false; $('train').click()")
    page.until("/Press Train again/.test($('message').textContent)")
    assert not pressed
    page.js("$('train').disabled = false; $('train').click()")
    page.until("/has started/.test($('message').textContent)")
    assert pressed == [{"is_resumed": False}]


def test_a_page_that_begins_later_takes_over(network, page, server):
    page.js("$('try').click()")
    page.until("session")
    server.session.begin()
    page.until("/another page has taken over/.test($('message').textContent)")
    assert page.js("$('try').textContent") == "Start"
    page.complaints.clear()  # Chromium reports each refused request


def test_the_server_has_gone(page):
    page.js(SHORT)
    page.send("Network.enable")
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.send("Network.emulateNetworkConditions", offline=True, **conditions)
    page.js("$('record').click()")
    page.until("/does not answer; start it again/.test($('message').textContent)")
    page.send("Network.emulateNetworkConditions", offline=False, **conditions)
    page.send("Network.disable")
    page.complaints.clear()


def test_a_browser_without_the_functions_or_the_right_is_told_so(server, camera):
    with Browser(camera, allowed=False) as page:
        page.open(server.address)
        page.until("$('message').textContent")
        assert message(page).startswith("No camera: it was refused; allow it in the address bar")
        assert page.js("$('record').disabled && $('try').disabled")
        assert page.complaints == []
        page.send(
            "Page.addScriptToEvaluateOnNewDocument",
            source="delete HTMLVideoElement.prototype.requestVideoFrameCallback",
        )
        page.open(server.address)
        page.until("$('message').textContent")
        assert message(page).startswith("This browser lacks requestVideoFrameCallback")


def test_a_camera_that_is_too_slow_is_refused(server, tmp_path):
    camera = write_camera(tmp_path / "slow.y4m", numbered()[:8], 2)
    with Browser(camera) as page:
        page.open(server.address)
        page.until("document.body.dataset.ready")
        page.js(EAGER)
        assert "Not saved: between two pictures there were" in record(page, "slow")
    assert not server.data_set.clips

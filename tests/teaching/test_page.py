"""The page in real Chromium, with a camera that shows numbered pictures.

Nothing here depends on the machine's speed: `patient` lifts the limits of a recording, which on a
slow machine refuse it, and tests of the limits have a camera that is always beyond them.
"""

import numpy as np
import pytest
from browser import needs_chromium
from conftest import write_clip
from driven_browser import Browser, write_camera
from movies import write_video
from page_driver import (
    CAMERA_RATE,
    EAGER,
    MARKUP,
    MESSAGE,
    SHORT,
    WEBM,
    browser,
    camera,
    frames_of,
    in_order,
    message,
    network,
    number_of,
    numbered,
    page,
    record,
    server,
)

from teaching import live

pytestmark = needs_chromium
CLIPS = "document.querySelectorAll('.clip').length"
_ = (browser, camera, network, page, server)  # fixtures


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
    times = np.array(page.js("takeFrames(12).then(frames => frames.map(([time]) => time))"))
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
    page.until("$('recorded').value > 0")
    page.js("RECORDING.frames = 36")  # of the second, during which the bar is let go
    page.until(f"{CLIPS} === 1 && $('recorded').value > 0 && $('recorded').value < 1")
    page.key("keyUp")
    page.until(f"!isBusy && {CLIPS} === 2")
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
    page.until(f"{CLIPS} === 2")
    page.js("document.querySelector('[title=\"remove clip 1\"]').click()")
    page.until(f"{MESSAGE} === 'Clip 1 of “a” is removed.'")
    assert page.js(CLIPS) == 1 and list(server.data_set.clips) == ["2"]
    page.open(server.address)
    page.until(f"{CLIPS} === 1")
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
    page.until(f"/are added/.test({MESSAGE})")
    assert message(page).startswith("4 clips are added. long.webm: lasts longer than 10 s")
    assert "broken.webm: cannot be decoded" in message(page)  # by the server either
    page.refuses = True
    assert message(page).endswith("Ignored: 1 file that is not a video: notes.txt.")
    assert [name for name, _ in server.data_set.clips.values()] == ["anna", "wave", "wave", "typed"]
    assert [number_of(frame) for frame in frames_of(server, "2")] == [*range(12)][::-1]
    assert [number_of(frame) for frame in frames_of(server, "3")] == [*range(12)]
    from_video = frames_of(server, "1")
    assert len(from_video) == 12 and in_order(from_video)


def test_the_first_request_for_scores_has_three_seconds(network, page, server, monkeypatch):
    # What the page keeps, 3 seconds, begins with the first picture after a gap on a slow machine.
    monkeypatch.setattr(live, "LIVE_SECONDS", 2.0)
    answers, look = [], server.session.look

    def listen(*arguments):
        answers.append(look(*arguments))
        return answers[-1]

    monkeypatch.setattr(server.session, "look", listen)
    page.until(
        "latest.length && latest.at(-1)[0] - latest[0][0] > LIVE - PERIOD"
    )  # kept in the browser
    with server.session.loading:  # since the page has asked for the progress
        _, loaded = server.session.newest
    assert loaded
    page.js("$('try').click()")
    page.until("$('verdict').textContent === 'up'")
    assert answers[0]["scores"] and not page.js("latest.length")
    assert server.session.predictor is loaded


@pytest.mark.slow
def test_what_is_played_backwards_is_recognised_as_its_opposite(network, page):
    assert page.js("isOff('backwards')")
    page.js("$('try').click()")
    page.until("$('verdict').textContent === 'up'")
    page.until("!isOff('backwards')")
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


def test_a_page_that_begins_later_takes_over(network, page, server):
    page.js("$('try').click()")
    page.until("session")
    server.session.begin()
    page.until(f"/another page has taken over/.test({MESSAGE})")
    assert page.js("$('try').textContent") == "Start"
    page.refuses = True


@pytest.mark.parametrize(
    "features, text", [("null", "Starting …"), ("0.427", "Looking at the clips: 42 % …")]
)
def test_the_time_before_the_first_epoch_is_explained(page, features, text):
    progress = f"training = {{...training, state: 'running', features: {features}}}"
    assert page.js(f"{progress}; showTraining(); $('epoch').textContent") == text


def test_the_server_has_gone(page):
    page.js(SHORT)
    page.send("Network.enable")
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.send("Network.emulateNetworkConditions", offline=True, **conditions)
    page.js("$('record').click()")
    page.until(f"/does not answer; start it again/.test({MESSAGE})")
    page.send("Network.emulateNetworkConditions", offline=False, **conditions)
    page.send("Network.disable")
    page.refuses = True


def test_a_browser_without_the_functions_or_the_right_is_told_so(server, camera):
    with Browser(camera, allowed=False) as page:
        page.open(server.address)
        page.until(f"/^No camera/.test({MESSAGE})")
        assert message(page).startswith("No camera: it was refused; allow it in the address bar")
        assert page.js("isOff('record') && isOff('try')")
        assert page.complaints == []
        page.send(
            "Page.addScriptToEvaluateOnNewDocument",
            source="delete HTMLVideoElement.prototype.requestVideoFrameCallback",
        )
        page.open(server.address)
        page.until(MESSAGE)
        assert message(page).startswith("This browser lacks requestVideoFrameCallback")


@pytest.mark.slow
def test_a_camera_that_is_too_slow_is_refused(server, tmp_path):
    camera = write_camera(tmp_path / "slow.y4m", numbered()[:8], 2)
    with Browser(camera) as page:
        page.open(server.address)
        page.until("document.body.dataset.ready")
        page.js(EAGER)
        assert "Not saved: between two pictures there were" in record(page, "slow")
    assert not server.data_set.clips

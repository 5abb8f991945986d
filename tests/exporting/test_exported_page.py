"""The exported page in real Chromium: its scores are those of classify.py."""

import json
import re
import shutil

import numpy as np
import pytest
from browser import needs_chromium
from conftest import CLASSES, draw_frames
from driven_browser import Browser, write_camera
from exported import (
    READY,
    exported,
    fulfil,
    load_classify,
    needs_runtime,
    open_answering,
    served_page,
)

from benchmarks import exported as speed
from exporting.package import CDN, RUNTIME_FILES, build_page, runtime_of

pytestmark = [needs_chromium, needs_runtime, pytest.mark.slow]

# A class has the verdict whatever its score: after one epoch, few scores reach the slider's 50 %.
ANY_SCORE = "$('threshold').min = 0; $('threshold').value = 0; $('threshold').oninput()"
# True once it can be pressed, and pressed at once: a slow machine may have a gap soon after.
PLAY_BACKWARDS = (
    "!$('backwards').disabled && session.kept.length && lastMovement(session) && "
    "($('backwards').click(), true)"
)
FILES = ["/", "/network.onnx", *(f"/runtime/{name}" for name in RUNTIME_FILES)]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return exported(tmp_path_factory)


@pytest.fixture(scope="module")
def classifier(made):
    return load_classify(made.folder).Classifier(made.folder / "network.onnx")


@pytest.fixture(scope="module")
def frames():
    """A movement of three seconds in pictures of 64 x 48, at 12 per second."""
    frames = draw_frames("Left", 36, np.random.default_rng(0))
    return np.repeat(np.repeat(frames, 2, axis=1), 2, axis=2)


@pytest.fixture(scope="module")
def browser(frames, tmp_path_factory):
    camera = tmp_path_factory.mktemp("camera") / "left.y4m"
    with Browser(write_camera(camera, frames, 12)) as running:
        yield running


@pytest.fixture
def page(browser, made):
    """The page, ready; it has asked for nothing else, and complained of nothing."""
    browser.complaints.clear()
    with served_page(made.folder) as (address, paths):
        browser.open(address)
        browser.until(READY)
        yield browser
        browser.open("about:blank")
        assert sorted(paths) == sorted(FILES) and browser.complaints == []


def test_it_says_what_it_has_learnt_and_where_its_runtime_is(page):
    text = page.js("document.querySelector('#about').textContent")
    assert "Left, Right, Still." in text and "Trained on 22 clips" in text
    assert "95 % interval" in text and "from beside this page" in text


def test_the_same_pictures_have_the_same_scores(page, classifier, frames):
    small = frames[:9]
    pictures = json.dumps([frame.ravel().tolist() for frame in small])
    height, width = small.shape[1:3]
    found = page.js(
        f"classify({pictures}.map(pixels => ({{pixels: new Uint8Array(pixels), width: {width}, "
        f"height: {height}}})))"
    )
    expected = classifier(small)
    assert dict(zip(CLASSES, found, strict=True)) == pytest.approx(expected, abs=1e-3)
    assert "windows per second" in page.js("document.querySelector('#speed').textContent")


def test_a_film_that_is_dropped_has_the_scores_of_classify(page, classifier, tmp_path, made):
    film = f"{made.settings['val_data_folder']}/Right.webm"
    other = tmp_path / "a.webm"
    other.write_bytes(b"not a film")
    page.js("document.querySelector('#drop').scrollIntoView()")
    page.drop([film, other], "#drop")
    page.until("document.querySelectorAll('.film').length === 2 && document.querySelector('.bad')")
    found = json.loads(page.js("document.querySelectorAll('.film')[1].dataset.scores"))
    # A browser converts colours in its own way.
    assert dict(zip(CLASSES, found, strict=True)) == pytest.approx(classifier(film), abs=0.1)
    assert "cannot play it" in page.js("document.querySelector('.film').textContent")


def test_positions_are_those_of_classify(page, classifier, monkeypatch):
    for about in (
        {"windows": 5, "step": 3, "frames": 6, "sampling": "window"},
        {"windows": 1, "step": 2, "frames": 18, "sampling": "window"},
        {"windows": 3, "step": 1, "frames": 7, "sampling": "segments"},
    ):
        page.js(f"Object.assign(about, {json.dumps(about)})")
        monkeypatch.setattr(classifier, "about", classifier.about | about)
        lengths = [*range(2, 80), 1001]
        found = page.js(f"{lengths}.map(positions)")
        assert found == [classifier.positions(count).tolist() for count in lengths]


def test_the_camera_is_classified_live_and_backwards(page):
    page.js("document.querySelector('#start').click()")
    page.until("document.querySelectorAll('#scores .score').length === 3")
    page.js(ANY_SCORE)
    page.until(f"{CLASSES}.includes(document.querySelector('#verdict').textContent)")
    page.until(PLAY_BACKWARDS)
    page.until("document.querySelector('#reverse').textContent")
    text = page.js("document.querySelector('#reverse').textContent")
    assert text.startswith("The last seconds: “") and "The same pictures backwards: “" in text
    page.js("document.querySelector('#start').click()")
    assert page.js("video.srcObject") is None
    assert page.js("document.querySelectorAll('#scores .score').length") == 0


def test_a_camera_that_pauses_and_a_tab_in_the_background_have_no_verdict(page):
    def verdict():
        return page.js("$('verdict').textContent"), page.js("$('message').textContent")

    page.js(ANY_SCORE)
    page.js("$('start').click(); $('start').click()")  # the second while the first is opening
    page.until("session && $('scores').children.length")
    page.js("video.pause()")
    page.until("$('verdict').textContent === 'paused'")
    assert verdict() == ("paused", "Paused: the camera sends no pictures.")
    assert page.js("$('scores').children.length") == 0 and page.js("$('backwards').disabled")
    page.js("video.play()")
    page.until("$('scores').children.length")
    assert page.js("$('message').textContent") == ""
    page.js("Object.defineProperty(document, 'hidden', {get: () => true, configurable: true})")
    page.js("document.onvisibilitychange()")
    assert verdict() == ("paused", "Paused: this tab is in the background.")
    page.js("pause(1000)")  # what was being computed has ended, and pictures still come
    assert verdict()[0] == "paused" and page.js("$('scores').children.length") == 0
    page.js("delete document.hidden; document.onvisibilitychange()")
    page.until("$('scores').children.length")
    page.until(PLAY_BACKWARDS)
    page.until("$('verdict').textContent === '◀ backwards'")
    page.js("$('start').click()")  # stops while it plays
    page.until("$('replay').hidden")
    assert verdict() == ("…", "") and not page.js("$('reverse').textContent")


def test_what_is_not_the_expected_runtime_is_not_run(browser, made, tmp_path):
    folder = tmp_path / "gestures"
    shutil.copytree(made.folder, folder)
    with open(folder / "runtime" / RUNTIME_FILES[0], "a") as file:
        file.write("\nalert(1)")
    with served_page(folder) as (address, _):
        browser.open(address)
        browser.until(READY)
        text = browser.js("document.querySelector('#message').textContent")
        assert "is not the expected file" in text
        assert not browser.js("document.body.dataset.ready")
        browser.open("about:blank")


# --- a page without a runtime beside it: the CDN is played by this test ---------------------------


def fail(browser, paused) -> None:
    browser.send("Fetch.failRequest", requestId=paused["requestId"], errorReason="NameNotResolved")


@pytest.fixture
def open_without_runtime(browser, made, tmp_path):
    """Return a function that opens the page, answers its requests to other hosts, lists them."""
    folder = tmp_path / "gestures"
    shutil.copytree(made.folder, folder, ignore=shutil.ignore_patterns("runtime"))
    (folder / "index.html").write_text(build_page(runtime_of(None)), encoding="utf-8")

    browser.complaints.clear(), browser.paused.clear()
    with served_page(folder) as (address, paths):
        yield lambda answer: (open_answering(browser, address, answer), paths)
        browser.open("about:blank")
    browser.send("Fetch.disable")


def test_without_a_runtime_its_files_come_from_the_cdn(browser, open_without_runtime, classifier):
    urls, paths = open_without_runtime(fulfil)
    assert sorted(urls) == sorted(CDN + name for name in RUNTIME_FILES)  # and nothing else
    assert sorted(paths) == ["/", "/network.onnx"]
    text = browser.js("document.querySelector('#about').textContent")
    assert "from cdn.jsdelivr.net, checked by its hash" in text
    found = browser.js(
        "classify([0, 1].map(() => ({pixels: new Uint8Array(48), width: 4, height: 4})))"
    )
    expected = classifier(np.zeros((2, 4, 4, 3), np.uint8))
    assert dict(zip(CLASSES, found, strict=True)) == pytest.approx(expected, abs=1e-3)
    assert browser.complaints == []


@pytest.mark.parametrize("changed", RUNTIME_FILES)
def test_what_the_cdn_changed_is_not_run(browser, open_without_runtime, changed):
    def answer(browser, paused):
        is_changed = paused["request"]["url"].endswith(changed)
        fulfil(browser, paused, lambda content: content + b"\n" * is_changed)

    open_without_runtime(answer)
    text = browser.js("document.querySelector('#message').textContent")
    assert text.startswith(f"{CDN}{changed}: cannot be fetched, or is not the expected file")
    assert not browser.js("document.body.dataset.ready || worker")


def test_a_cdn_that_cannot_be_reached_is_named(browser, open_without_runtime):
    open_without_runtime(fail)
    text = browser.js("document.querySelector('#message').textContent")
    assert text.startswith(CDN) and "cannot be fetched" in text


def test_its_speed_is_measured(made, tmp_path, capsys):
    assert speed.main([str(made.folder), "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\nPython +[1-9][\d.]* windows .*\nChromium +[1-9][\d.]* windows", shown)
    assert speed.main([str(tmp_path)]) == 2
    assert "is not what export.py writes" in capsys.readouterr().err

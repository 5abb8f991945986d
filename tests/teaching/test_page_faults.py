"""What a new user of the page meets: focus, names, messages in sight, pauses, a second tab.

The browser and its camera are those of `page_driver`.
"""

import errno
import json

import pytest
from browser import needs_chromium
from conftest import write_clip
from movies import write_video
from page_driver import (
    MARKUP,
    MESSAGE,
    SHORT,
    browser,
    camera,
    frames_of,
    in_order,
    message,
    network,
    numbered,
    page,
    record,
    server,
)
from teach_page import jpegs

from system.errors import UserError
from teaching import data_set as data_set_module
from training.status import write_status

pytestmark = needs_chromium
_ = (browser, camera, network, page, server)  # fixtures

FOCUS = "document.activeElement.id || document.activeElement.className"
# A strip is as wide as its picture, once that is there; then nothing moves any more.
LAID_OUT = "[...document.querySelectorAll('.strip')].every(one => one.style.width)"
HEADINGS = "[...document.querySelectorAll('h3')].map(one => one.textContent).join('; ')"


def clips_of(server) -> list[str]:
    return [name for name, _ in server.data_set.clips.values()]


def type_name(page, text):
    page.js("$('name').value = ''; $('name').focus()")
    page.send("Input.insertText", text=text)
    for kind in ("keyDown", "keyUp"):
        enter = {"code": "Enter", "key": "Enter", "windowsVirtualKeyCode": 13}
        page.send("Input.dispatchKeyEvent", type=kind, text="\r", **enter)


def click(page, selector):
    """With the mouse, which may move the focus."""
    page.js(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
    page.until(LAID_OUT)
    box = page.js(
        f"{{ const b = document.querySelector({selector!r}).getBoundingClientRect(); "
        "[b.x + b.width / 2, b.y + b.height / 2]; }"
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.send(
            "Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1
        )


def button(label) -> str:
    return f"[aria-label={json.dumps(label, ensure_ascii=False)}]"


def press(page, label):
    page.js(f"document.querySelector({button(label)!r}).click()")


def fill(server, **counts):
    for name, count in counts.items():
        for _ in range(count):
            server.data_set.add(name, jpegs([1, 2]))


def test_after_a_removal_the_space_bar_records_and_what_was_removed_comes_back(page, server):
    page.js(SHORT)
    page.js("$('record').focus()")
    record(page, "a")
    assert page.js(FOCUS) == "record"  # the focus stays there
    record(page, "a")
    page.until("document.querySelectorAll('.clip').length === 2")
    click(page, button("remove clip 1"))
    page.until("document.querySelectorAll('.clip').length === 1")
    assert page.js(FOCUS) == "record"
    page.js("document.querySelector('.remove').focus()")  # by the Tab key
    page.key("keyDown")
    page.key("keyUp")
    page.until("!isBusy && document.querySelectorAll('.clip').length === 2")
    assert list(server.data_set.clips) == ["2", "3"]
    press(page, "delete a")
    page.until("$('undo').textContent === 'Undo: bring back all clips of “a”'")
    assert not page.js("document.querySelectorAll('.clip').length")
    page.js("$('undo').click()")
    page.until("document.querySelectorAll('.clip').length === 2")
    page.send("Input.dispatchKeyEvent", type="keyDown", key="z", code="KeyZ", modifiers=2)
    page.until("document.querySelectorAll('.clip').length === 3 && $('undo').hidden")
    assert list(server.data_set.clips) == ["1", "2", "3"] and page.js(FOCUS) == "record"


def test_an_undo_that_fails_can_be_repeated(page, server, monkeypatch):
    fill(server, wave=2)
    page.js("showClips()")
    page.until(f"/wave: 2/.test({HEADINGS})")
    press(page, "delete wave")
    page.until("!$('undo').hidden")

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "train.csv")

    with monkeypatch.context() as patch:
        patch.setattr(data_set_module, "atomic_write", full_disk)
        page.js("$('undo').click()")
        page.until(f"/No space left/.test({MESSAGE})")
    assert not page.js("$('undo').hidden")
    page.js("$('undo').click()")
    page.until(f"/wave: 2/.test({HEADINGS}) && $('undo').hidden")
    press(page, "delete wave")
    page.until("!$('undo').hidden")
    server.data_set.empty_trash()  # the disk was full
    page.js("$('undo').click()")
    page.until(f"/it was deleted/.test({MESSAGE}) && $('undo').hidden")
    page.refuses = True


def test_a_class_without_clips_keeps_a_name(page):
    type_name(page, "拍手")
    page.until(f"/is added/.test({MESSAGE})")
    press(page, "rename 拍手")
    page.js("window.field = document.querySelector('h3 input'); field.value = ' \\u3000'; 0")
    enter = "field.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', OPTION}))"
    page.js(enter.replace("OPTION", ""))
    page.until(f"/Name the gesture first/.test({MESSAGE})")
    assert page.js("[...groups.keys()]") == ["拍手"]
    page.js("field.value = 'a\\u3000\\u00a0b'; 0")
    page.js(enter.replace("OPTION", "isComposing: true"))  # it ends the input of a character
    assert page.js("field.isConnected && [...groups.keys()].join()") == "拍手"
    page.js(enter.replace("OPTION", ""))
    page.until(f"/“拍手” is now “a b”/.test({MESSAGE})")
    type_name(page, "A\u3000B")
    page.until(f"/“a b” is chosen/.test({MESSAGE})")


def test_after_a_class_is_switched_off_the_space_bar_records(page, server):
    page.js(SHORT)
    fill(server, wave=1)
    page.js("showClips(); $('name').value = 'fist'; $('record').focus()")
    page.until(f"/wave: 1/.test({HEADINGS})")
    click(page, button("switch off wave"))
    page.until(f"/wave: 1 \\(off\\)/.test({HEADINGS})")
    page.key("keyDown")
    page.until("recording")
    page.key("keyUp")
    page.until("!isBusy && document.querySelectorAll('.clip').length > 1")
    assert server.data_set.disabled() == {"wave"} and set(clips_of(server)) == {"wave", "fist"}


def test_a_class_is_added_by_enter_and_renamed_switched_off_and_deleted(page, server):
    page.js(SHORT)
    type_name(page, "  Left   hand ")
    page.until(f"/is added/.test({MESSAGE})")
    assert page.js(HEADINGS).startswith("Left hand: 0") and page.js(FOCUS) == "record"
    page.js("$('name').value = 'LEFT hand'; $('name').focus()")
    page.key("keyDown")  # held in the name field
    page.send(
        "Input.dispatchKeyEvent", type="keyDown", code="Space", key=" ", text=" ", autoRepeat=True
    )
    page.until("recording")
    page.key("keyUp")
    page.until("!isBusy && document.querySelectorAll('.clip').length")
    assert set(clips_of(server)) == {"Left hand"} and page.js("$('name').value") == "Left hand"
    fill(server, other=1)
    page.js("showClips()")
    press(page, "rename other")
    page.js("{ const field = document.querySelector('h3 input'); field.value = 'left HAND'; }")
    enter = "new KeyboardEvent('keydown', {key: 'Enter', bubbles: true})"
    page.js(f"document.querySelector('h3 input').dispatchEvent({enter})")
    page.until(f"/already a gesture “Left hand”/.test({MESSAGE})")
    page.js("document.querySelector('h3 input').value = 'fist'")
    page.js(f"document.querySelector('h3 input').dispatchEvent({enter})")
    page.until(f"/“other” is now “fist”/.test({MESSAGE})")
    press(page, "switch off fist")
    page.until(f"/fist: 1 \\(off\\)/.test({HEADINGS})")
    assert server.data_set.disabled() == {"fist"}
    press(page, "switch on fist")
    page.until(f"/fist: 1(?! )/.test({HEADINGS})")
    press(page, "delete fist")
    page.until(f"!/fist/.test({HEADINGS})")
    assert set(clips_of(server)) == {"Left hand"}


def test_a_countdown_is_cancelled_by_letting_go_and_by_escape(page, server):
    page.js("countdown = 100; $('record').focus()")
    page.key("keyDown")
    page.until("recording && isBusy")
    page.key("keyUp")
    page.until(f"!isBusy && /Cancelled: hold the space bar/.test({MESSAGE})")
    page.js("$('record').click()")
    page.until("recording && $('record').textContent === 'Cancel'")
    page.key("keyDown", "Escape", "Escape")
    page.until(f"!isBusy && /Cancelled/.test({MESSAGE})")
    page.js("countdown = 0; RECORDING.frames = 120; $('record').click()")
    page.until("$('recorded').value > 0")
    page.key("keyDown", "Escape", "Escape")
    page.until(f"!isBusy && /Cancelled/.test({MESSAGE})")
    assert not server.data_set.clips and page.js(FOCUS) == "record"


IN_SIGHT = """(box => box.height > 5 && box.top >= 0 && box.bottom <= innerHeight &&
    ONE.contains(document.elementFromPoint(box.left + 5, box.top + box.height / 2)))(
    ONE.getBoundingClientRect())"""


def in_sight(page, one) -> bool:
    return page.js(IN_SIGHT.replace("ONE", one))


def test_messages_camera_and_verdict_are_in_sight_at_every_width(page, server, monkeypatch):
    def refuse(is_resumed):
        raise UserError("a training needs more than this")

    monkeypatch.setattr(server.training, "start", refuse)
    fill(server, wave=12, fist=12)
    page.js("showClips()")
    page.until(f"{LAID_OUT} && document.querySelectorAll('.strip').length === 24")
    said = "[...document.querySelectorAll('.message')].find(one => one.textContent)"
    for width, height in ((400, 800), (800, 900), (1200, 800), (1366, 768)):
        page.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        page.until(f"innerWidth === {width}")
        page.js("$('verdict').textContent = 'wave'; 0")
        for cause in ("train", "try", "samples", "record"):
            page.js(f"notify(''); $('{cause}').scrollIntoView({{block: 'center'}})")
            if cause == "train":
                page.js("$('train').click()")
                page.until(MESSAGE)
                said_there = page.js("$('train-message').textContent")  # beside the button
                assert said_there == message(page) == "a training needs more than this"
            else:
                place = {"try": "try-message", "samples": "drop-message"}.get(cause, "message")
                page.js(f"notify('something', true, '{place}')")
            assert in_sight(page, said), (width, cause)
            for one in ("verdict", "screen"):
                assert in_sight(page, f"$('{one}')"), (width, cause, one)
    page.refuses = True


# Each verdict, however short.
LISTEN = """window.said = [];
new MutationObserver(() => said.push($('verdict').textContent))
  .observe($('verdict'), {childList: true})"""


@pytest.mark.slow
def test_nothing_is_said_while_no_pictures_come(network, page):
    start = "if (!session) $('try').click()"
    page.js(start)
    page.until("$('verdict').textContent === 'up'")
    page.js(LISTEN)
    page.js("video.pause()")
    page.until("$('verdict').textContent === 'paused'")
    assert message(page) == "Paused: the camera sends no pictures."
    assert page.js("$('scores').children.length") == 0 and page.js("isOff('keep')")
    page.js("said = []; video.play(); 0")
    page.until("said[0] === 'Watching …'")
    page.js("Object.defineProperty(document, 'hidden', {get: () => true, configurable: true})")
    page.js("document.onvisibilitychange()")
    assert page.js("$('verdict').textContent") == "paused"
    assert message(page) == "Paused: this tab is in the background."
    assert page.js("document.title").startswith("(paused)")
    page.js("said = []; delete document.hidden; document.onvisibilitychange()")
    page.until("said[0] === 'Watching …'")
    page.js("video.srcObject.getVideoTracks()[0].onended()")
    assert page.js("$('verdict').textContent") == "" and not page.js("session")
    assert message(page) == "The camera was disconnected; reload the page."


def progress(**changes) -> dict:
    row = {"epoch": 1, "seconds": 1, "top1": 90, "val_top1": 100, "val_linear_top1": 66.7}
    return {
        "state": "running",
        "error": "",
        "can_resume": False,
        "can_use": False,
        "num_epochs": 30,
        "num_validation": 3,
        "history": [row] * 12,
        "log": "",
        "has_network": True,
        "has_report": False,
        "has_results": False,
        **changes,
    }


@pytest.mark.slow
def test_a_second_tab_sees_a_training_and_stops_it_when_it_is_perfect(page, server, monkeypatch):
    pressed, now = [], progress()
    monkeypatch.setattr(server.training, "progress", lambda: now)
    monkeypatch.setattr(server.training, "stop", lambda: pressed.append("stop"))
    monkeypatch.setattr(server.training, "use", lambda: pressed.append("use"))
    page.js("SECONDS.running = SECONDS.other = 0.05")
    page.until("training.state === 'running' && !isOff('stop')")
    assert page.js("$('epoch').textContent") == (
        "Epoch 12 of 30: 3 of 3 validation clips are right, about 18 s left"
    )
    assert page.js("$('spoken').textContent") == page.js("$('epoch').textContent")
    label = page.js("$('curves').getAttribute('aria-label')")
    assert "after epoch 12: training 90 %, validation 3 of 3, a linear model 2 of 3" in label
    assert not page.js("$('perfect').hidden")
    page.js("$('enough').click()")
    page.until(f"/Saving, then stopping/.test({MESSAGE})")
    now |= {"state": "stopped", "can_resume": True, "can_use": True}
    page.until(f"/The new network is in use/.test({MESSAGE})")
    assert pressed == ["stop", "use"] and page.js("$('perfect').hidden && isOff('stop')")
    now |= progress(history=progress()["history"][:9])
    page.until("training.history.length === 9")
    assert page.js("$('perfect').hidden")  # not for long enough
    fill(server, late=1)  # in another tab
    page.until(f"/late: 1/.test({HEADINGS})")


@pytest.mark.slow
def test_nothing_is_offered_and_the_threshold_is_a_slider(network, page, server):
    fill(server, wave=1)
    page.js("showClips()")
    page.until(f"/wave: 1/.test({HEADINGS})")
    assert page.js("$('hint').hidden")
    fill(server, fist=1)
    page.js("showClips()")
    page.until("!$('hint').hidden")
    page.js("Object.assign(RECORDING, {nothing: 20, piece: 8}); $('nothing').click()")
    page.until(f"/Clips 3 to 4 of “nothing” are saved/.test({MESSAGE})")
    page.until("$('hint').hidden && !isOff('try')")
    assert len(frames_of(server, "4")) == 8 and in_order(frames_of(server, "4"))
    page.js("$('try').click()")
    page.until("$('verdict').textContent === 'up'")
    assert page.js("$('sure').value") == "0.8"
    page.js("$('sure').value = 0.95; $('sure').oninput()")
    assert page.js("[$('verdict').textContent, $('sure-text').textContent]") == ["…", "95\u00a0%"]
    page.js("$('keep-as').value = 'fist'; 0")
    # While trying; and a slow machine may lack pictures of the first of the three seconds.
    whole = "!isOff('keep') && session.kept.at(-1)[0] - session.kept[0][0] > 2600"
    page.until(f"{whole} && ($('keep').click(), true)")
    page.until(f"/Clip 5 of “fist” is saved/.test({MESSAGE})")
    kept = frames_of(server, "5")
    assert 30 <= len(kept) <= 36 and in_order(kept) and page.js("Boolean(session)")
    page.js("$('try').click()")


@pytest.mark.slow
def test_old_films_and_whole_folders_are_chosen_and_a_film_is_tried(
    network, page, server, tmp_path
):
    film = tmp_path / "clap" / "old.avi"
    write_clip(tmp_path / "clap" / "wave" / "9", numbered()[:12])
    write_video(film, numbered()[:12], 12, "mpeg4", "yuv420p", qscale="1")
    root = page.send("DOM.getDocument")["root"]["nodeId"]

    def choose(selector, path):
        node = page.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        page.js("notify('')")
        page.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    choose("#folder", tmp_path / "clap")
    page.until(f"/added/.test({MESSAGE})")
    assert message(page) == "2 clips are added." and sorted(clips_of(server)) == ["clap", "wave"]
    (tmp_path / "notes.txt").write_text("no clip")
    page.drop([tmp_path / "notes.txt"], "#drop")
    page.until(f"/0 clips are added. Ignored: 1 file that is not a video: notes/.test({MESSAGE})")
    page.js("document.body.dataset.ready = ''; show()")  # no camera is needed
    choose("#film", film)
    page.until("$('reverse').textContent")
    assert page.js("$('reverse').textContent") == (
        f"old.avi: “up” (90\u00a0%). The same pictures backwards: “{MARKUP}” (90\u00a0%)."
    )


def test_a_cell_of_the_matrix_shows_its_clips_both_ways(page, server):
    fill(server, wave=2, fist=1)
    folder = server.training.run_folder
    folder.mkdir(parents=True)
    rows = "1,wave,fist\n2,wave,wave\n3,fist,fist\n77,wave,fist\n"
    (folder / "predictions.csv").write_text(f"id,label,predicted\n{rows}")
    page.js("SECONDS.other = 0.05; poll(); 0")
    page.until("document.querySelectorAll('#matrix td button').length === 3")
    press(page, "2 clips of “wave”, taken for “fist”")
    page.until("document.querySelectorAll('#cell .strip').length === 2")
    page.until("[...document.querySelectorAll('#cell img')].every(one => one.naturalWidth)")
    directions = (
        "[...document.querySelectorAll('#cell img')].map(one => "
        "getComputedStyle(one).animationDirection)"
    )
    assert page.js(directions) == ["normal", "reverse"]
    assert "clip 77 was removed" in page.js("$('cell').textContent")


def test_a_network_of_a_stopped_training_is_not_shown_with_others_results(network, page, server):
    training = server.training
    (training.run_folder / "predictions.csv").write_text("id,label,predicted\n1,wave,fist\n")
    training.new_run.mkdir(parents=True)
    (training.new_run / "checkpoint.pth.tar").touch()
    write_status(training.new_run, "stopped")
    page.js("SECONDS.other = 0.05; poll(); 0")
    page.until("!$('use').hidden && !$('results').hidden")
    assert page.js("$('unfinished').hidden")
    page.js("SECONDS.other = 1e6; $('use').click()")
    page.until(f"/The new network is in use/.test({MESSAGE})")
    page.until("$('results').hidden")
    assert "Only a training that runs to its end" in page.js("$('unfinished').innerText")
    page.js("training.state = 'running'; show()")
    assert page.js("$('unfinished').hidden")


RECORD_A_FILM = """new Promise(done => {
  const recorder = new MediaRecorder(video.srcObject, {mimeType: "video/webm"}), parts = [];
  recorder.ondataavailable = ({data}) => parts.push(data);
  recorder.onstop = () => done(new File(parts, "film.webm", {type: "video/webm"}));
  recorder.start(100); // in parts, so that the header, the first, cannot tell how long it is
  setTimeout(() => recorder.stop(), 2000);
}).then(file => { window.film = file; })"""


def test_a_film_that_a_browser_has_recorded_is_read(page, server):
    page.js(RECORD_A_FILM)
    page.js("notify(''); addClips([['wave', [film]]]); 0")
    page.until(f"/added/.test({MESSAGE})")
    assert message(page) == "1 clip is added."
    assert in_order(frames_of(server, "1"))


def test_many_classes_do_not_fill_the_page(page, server):
    fill(server, **{f"class {number}": 1 for number in range(20)})
    page.js("showClips()")
    page.until("/^Record five clips/.test($('needs').textContent)")
    assert page.js("$('needs').textContent") == (
        "Record five clips of “class 0”, “class 1”, “class 2” and 17 more; ten are better."
    )
    assert page.js("$('learnt').hidden")  # there is no network yet

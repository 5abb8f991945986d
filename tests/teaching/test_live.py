"""What the network sees of the camera: by the page's own times, forwards and backwards."""

import itertools
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
from teach_page import jpegs

from system.errors import UserError
from teaching import live
from teaching.live import SMOOTHING_SECONDS, SURE, LiveSession


class Witness:
    """Notes the grey values that it is shown; the first class is 'brighter', with `share`."""

    classes = ("brighter", "darker")

    def __init__(self, rate):
        self.config, self.seen, self.share = SimpleNamespace(frame_rate=rate), [], 1.0

    def scores(self, source):
        frames = list(source.frames_at(range(len(source))))
        self.seen.append([round(float(frame.mean())) for frame in frames])
        share = self.share if self.seen[-1][0] < self.seen[-1][-1] else 1 - self.share
        return SimpleNamespace(whole=np.array([share, 1 - share]))


@pytest.fixture
def make_session(tmp_path, monkeypatch):
    def make(rate=12.0):
        witness = Witness(rate)
        monkeypatch.setattr(live, "load_predictor", lambda path, device: witness)
        (tmp_path / "best").touch()
        session = LiveSession(lambda: tmp_path / "best", None)
        assert session.begin() == {"turn": 1, "classes": Witness.classes, "sure": SURE}
        return session, witness

    return make


def show(session, times, values=None):
    """Frames whose grey value is 4 per twelfth of a second; returns the last answer."""
    values = [round(48 * time) for time in times] if values is None else values
    return session.look(session.turn, list(times), jpegs(values))


TWELFTHS = np.arange(37) / 12


def test_a_network_is_loaded_once_and_ahead_of_its_use(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        live, "load_predictor", lambda path, device: loaded.append(path) or Witness(12.0)
    )
    session = LiveSession(lambda: tmp_path / "best", None)
    session.prepare()  # there is no network yet
    for number in (1, 2):
        (tmp_path / "new").write_text(number * "weights")
        (tmp_path / "new").rename(tmp_path / "best")
        session.prepare()
        assert len(loaded) == number
        session.begin(), session.begin()
        assert len(loaded) == number


def test_the_network_of_a_training_that_goes_on_follows(tmp_path, monkeypatch):
    networks = [Witness(12.0) for _ in range(3)]
    networks[2].classes = ("other", "classes")
    monkeypatch.setattr(
        live, "load_predictor", lambda path, device: networks[int(path.read_text())]
    )
    monkeypatch.setattr(live, "CHECK_SECONDS", 0)
    (tmp_path / "best").write_text("0")
    session = LiveSession(lambda: tmp_path / "best", None)
    session.begin()
    show(session, TWELFTHS)
    assert networks[0].seen
    times = itertools.count(37)
    for number in (1, 2):
        (tmp_path / "new").write_text(str(number))
        (tmp_path / "new").rename(tmp_path / "best")  # as each epoch does
        deadline = time.monotonic() + 300
        while not networks[number].seen and time.monotonic() < deadline:
            answer = show(session, [next(times) / 12])
            time.sleep(0.01)  # the thread that loads has to import PyTorch's compiler
        assert networks[number].seen and answer["classes"] == networks[number].classes
    assert answer["scores"] == [1, 0]  # nothing is left of scores of other classes


def test_there_are_no_scores_before_three_seconds(make_session):
    session, witness = make_session()
    assert show(session, TWELFTHS[:35]) == {"classes": Witness.classes, "scores": None}
    assert not witness.seen
    assert show(session, TWELFTHS[35:36])["scores"] == [1, 0]
    assert witness.seen == [[4 * number for number in range(36)]]
    show(session, TWELFTHS[36:])
    assert witness.seen[1] == [4 * number for number in range(1, 37)]


def test_a_slow_machine_shows_fewer_frames_at_the_same_speed(make_session):
    session, witness = make_session()
    show(session, [0, 1, 1.25, 2, 3])
    assert witness.seen == [[0] * 11 + [48] * 3 + [60] * 9 + [96] * 12 + [144]]
    session, witness = make_session(rate=4.0)  # a network that was trained on other clips
    show(session, TWELFTHS)
    assert witness.seen == [[12 * number for number in range(1, 13)]]


def test_after_a_pause_the_movement_begins_anew(make_session):
    session, witness = make_session()
    assert show(session, TWELFTHS)["scores"]
    assert show(session, [4.5])["scores"] is None
    assert show(session, 4.5 + TWELFTHS[1:36], range(35))["scores"]
    assert witness.seen[-1][1:] == list(range(35))


def test_scores_are_smoothed_by_time(make_session):
    session, witness = make_session()
    witness.share = 0.9
    assert show(session, TWELFTHS[:36])["scores"] == [pytest.approx(0.9), pytest.approx(0.1)]
    witness.share, before = 0.3, 0.9
    for now in (3.0, 3.25, 4.0):
        last = session.frames[-1][0]
        keep = math.exp(-(now - last) / SMOOTHING_SECONDS)
        before = keep * before + (1 - keep) * 0.3
        scores = show(session, [now])["scores"]
        assert scores == [pytest.approx(before), pytest.approx(1 - before)]


def test_backwards_the_same_frames_are_seen_in_reverse(make_session):
    session, witness = make_session()
    with pytest.raises(UserError, match="wait until 3 seconds"):
        session.backwards(1)
    show(session, TWELFTHS)
    assert session.backwards(1) == {
        "classes": Witness.classes,
        "forwards": [1, 0],
        "backwards": [0, 1],
    }
    assert witness.seen[-1] == witness.seen[-2][::-1] == witness.seen[0][::-1]


def test_a_film_is_scored_at_the_networks_rate(make_session):
    session, witness = make_session(rate=4.0)
    assert session.score_film(jpegs(range(0, 144, 4)))["backwards"] == [0, 1]
    assert witness.seen[-2] == [8 + 12 * number for number in range(12)]
    assert witness.seen[-1] == witness.seen[-2][::-1]
    with pytest.raises(UserError, match="no frames"):
        session.score_film([])


def test_a_page_that_begins_later_takes_over(make_session):
    session, _ = make_session()
    show(session, TWELFTHS)
    assert session.begin()["turn"] == 2
    for request in (lambda: session.look(1, [9], jpegs([0])), lambda: session.backwards(1)):
        with pytest.raises(UserError, match="another page has taken over"):
            request()
    assert show(session, [0.0]) == {"classes": Witness.classes, "scores": None}


def test_a_request_before_a_network_is_loaded_is_refused(tmp_path):
    with pytest.raises(UserError, match="another page has taken over"):
        LiveSession(lambda: tmp_path / "none.tar", None).backwards(0)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], "1 frames with 0 times"),
        ([1, 2], "1 frames with 2 times"),
        ([0.5], "must increase"),
        ([0.4], "must increase"),
    ],
)
def test_frames_without_a_place_in_time_are_refused(make_session, times, message):
    session, _ = make_session()
    show(session, [0.5])
    with pytest.raises(UserError, match=message):
        session.look(1, times, jpegs([0]))

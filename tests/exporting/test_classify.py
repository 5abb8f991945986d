"""classify.py chooses and reads the frames that predict.py does, and watches a camera."""

import ast
import struct
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CLASSES, make_config
from movies import write_video

from clips.sampling import eval_positions
from clips.videos import VideoFile
from exporting import classify
from exporting.classify import Classifier
from exporting.package import SCRIPT, TEMPLATES

pytestmark = pytest.mark.usefixtures("blank_pictures")

# Display matrices (a, b, c, d) of films that a phone turns.
TURNS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]


class Untrained(Classifier):
    """A classifier whose network returns the mean brightness of its frames, over 255, for Left."""

    def __init__(self, **about):
        self.about = {"classes": CLASSES, "frame_rate": 12, "sampling": "window"} | about
        self.session, self.seen = SimpleNamespace(run=self.run), []

    def run(self, _, inputs):
        frames = inputs["frames"]
        assert frames.dtype == np.uint8 and frames.ndim == 4
        self.seen.append(frames)
        left = frames.mean() / 255
        return [np.array([left, 1 - left, 0.0])]


def test_it_is_short_and_needs_three_packages():
    text = (TEMPLATES / SCRIPT).read_text()
    assert len(text.splitlines()) <= 80
    names = {
        alias.name
        for node in ast.parse(text).body
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "av"}


@pytest.mark.parametrize("sampling", ["window", "segments"])
@pytest.mark.parametrize("size, step, windows", [(8, 2, 1), (4, 3, 5), (1, 1, 2), (18, 2, 4)])
def test_it_chooses_the_frames_of_evaluation(sampling, size, step, windows):
    config = make_config(clip_size=size, step_size=step, nclips=windows, sampling=sampling)
    own = Untrained(frames=size, step=step, windows=windows, sampling=sampling)
    for num_frames in (*range(2, 90), 1001):
        expected = eval_positions(num_frames, config)
        np.testing.assert_array_equal(own.positions(num_frames), expected)


@pytest.mark.parametrize("matrix", TURNS, ids=str)
@pytest.mark.parametrize("rate", [12, 25, 7])
def test_it_reads_films_as_predict_does(tmp_path, rate, matrix):
    rng = np.random.default_rng(0)
    frames = np.kron(rng.integers(0, 256, (20, 6, 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    path = tmp_path / "a.mp4"
    write_video(path, frames, rate=rate)
    data, (a, b, c, d) = path.read_bytes(), (65536 * number for number in matrix)
    place = data.index(b"tkhd") + 4 + 40
    new = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:place] + new + data[place + 36 :])
    video = VideoFile(path, 12, 10**6)
    own = Untrained(frames=len(video), step=1, windows=1)
    expected = np.stack(list(video.frames_at(range(len(video)))))
    np.testing.assert_array_equal(np.stack(own.read(path)[0]), expected)


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    frames = np.zeros((12, 48, 64, 3), np.uint8)
    path = write_video(tmp_path / "a.mp4", frames, **{"x264-params": "sar=2/1"})
    own = Untrained(frames=4, step=1, windows=1)
    assert VideoFile(path, 12, 10**6).size == (128, 48)
    assert np.stack(own.read(path)[0]).shape == (4, 48, 128, 3)


def test_windows_are_averaged_and_classes_are_in_order():
    own = Untrained(frames=2, step=1, windows=2)
    frames = np.full((4, 2, 2, 3), 255, np.uint8)
    frames[:2] = 51
    assert own(frames) == pytest.approx({"Left": 0.6, "Right": 0.4, "Still": 0})
    assert list(own(255 - frames)) == ["Right", "Left", "Still"]


def test_a_camera_is_watched_at_its_own_speed(monkeypatch, capsys):
    """Its pictures get brighter; what is seen are the last ones, at the network's frame rate."""
    live = {"frames": 4, "smoothing_seconds": 1e-9, "threshold": 0.7}
    own, opened = Untrained(frames=4, step=1, windows=1, live=live, frame_rate=8), []
    times = iter(np.arange(1000) / 16)  # when pictures come
    wanted, given = threading.Semaphore(0), threading.Semaphore(0)  # one picture for each look
    has_ended = threading.Event()  # whose thread may live on for a moment

    class Film:
        def decode(self, video):
            for number in range(25):
                wanted.acquire()
                picture = np.full((2, 2, 3), 10 * number, np.uint8)
                yield SimpleNamespace(to_ndarray=lambda format, picture=picture: picture)
                given.release()
            has_ended.set(), given.release()

    def open_camera(address, format):
        opened.append((address, format))
        return Film()

    def sleep(_):
        wanted.release()
        has_ended.is_set() or given.acquire()

    monkeypatch.setattr(classify.av, "open", open_camera)
    clock = SimpleNamespace(monotonic=lambda: next(times), sleep=sleep)
    monkeypatch.setattr(classify, "time", clock)
    monkeypatch.setattr(classify.threading, "excepthook", None)  # which it replaces
    with pytest.raises(SystemExit, match="rtsp://one: has ended"):
        classify.watch(own, "rtsp://one")
    assert opened == [("rtsp://one", None)]
    seen = [frames[:, 0, 0, 0].tolist() for frames in own.seen]
    assert seen[0] == [0, 20, 40, 60] and seen[-1] == [180, 200, 220, 240]
    assert len(seen) == 19  # each time that there was a new picture
    shown = [line.strip() for line in capsys.readouterr().out.split("\r")[1:]]
    assert shown[0] == "Right" and "…" in shown and shown[-1] == "Left"

"""The built-in data set: its files, and that only the order of the frames tells a pair apart.

The second part trains a small linear classifier (ridge regression) for each opposing pair. Shown
single frames, or all frames without their order, it must stay at chance on clips that it has not
seen; shown the order, it must not. Chance means up to 3.5 standard deviations above a fair coin.
"""

import json

import cv2
import numpy as np
import pytest
from conftest import slow_except

import demo_data

CLIPS = {"train": 16, "validation": 8, "test": 8}
CLIPS_PER_PAIR = 120


def make_rng(*numbers):
    return np.random.default_rng([99, *numbers])


def read_files(folder):
    """Return {path relative to the folder: bytes}."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# --- The files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """A small data set, written by two processes."""
    folder = tmp_path_factory.mktemp("demo") / "set"
    demo_data.write_data_set(folder, CLIPS, seed=3, processes=2)
    return folder


def test_layout(data_set):
    """Every clip of the CSVs is there once, classes are balanced, frames are JPEGs 1, 2, 3 ..."""
    labels = (data_set / "labels.csv").read_text().splitlines()
    assert labels == list(demo_data.GESTURES)
    assert len(set(labels)) == 8
    ids = []
    for name in ("train", "validation"):
        rows = [line.split(";") for line in (data_set / f"{name}.csv").read_text().splitlines()]
        ids += [clip_id for clip_id, _ in rows]
        assert sorted(label for _, label in rows) == sorted(labels * (CLIPS[name] // 8))
    ids += (data_set / "test.csv").read_text().splitlines()
    folders = list((data_set / "frames").iterdir())
    assert sorted(ids, key=int) == [str(number) for number in range(1, 33)]
    assert sorted(ids) == sorted(folder.name for folder in folders)
    widths = set()
    for folder in folders:
        names = sorted(path.name for path in folder.iterdir())
        assert names == [f"{number:05d}.jpg" for number in range(1, len(names) + 1)]
        assert 12 <= len(names) <= 40
        shapes = {cv2.imread(str(folder / name)).shape for name in names}
        ((height, width, channels),) = shapes  # the same in all frames of a clip
        assert (height, channels) == (100, 3)
        assert 100 <= width <= 176
        widths.add(width)
    assert len(widths) > 8


def test_files_depend_on_the_seed_only(data_set, tmp_path):
    """One process writes the same bytes as two; another seed, set or number gives another clip."""
    demo_data.write_data_set(tmp_path / "again", CLIPS, seed=3, processes=1)
    assert read_files(tmp_path / "again") == read_files(data_set)
    choices = [(3, "train", 5), (4, "train", 5), (3, "validation", 5), (3, "train", 13)]
    clips = [demo_data.draw_clip_of_set(*choice)[1] for choice in choices]
    assert len({clip.tobytes() for clip in clips}) == 4


def test_files_hold_what_the_lists_say(data_set):
    """Each training clip, drawn anew, is found under an id that carries its gesture."""
    rows = (line.split(";") for line in (data_set / "train.csv").read_text().splitlines())
    labels = {(data_set / "frames" / i / "00001.jpg").read_bytes(): label for i, label in rows}
    for index in range(CLIPS["train"]):
        gesture, clip = demo_data.draw_clip_of_set(3, "train", index)
        picture = cv2.cvtColor(clip[0], cv2.COLOR_RGB2BGR)
        _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])
        assert labels.pop(jpeg.tobytes()) == gesture
    assert not labels


def test_ids_say_nothing_about_the_class(data_set):
    """The ids of the training clips are spread over all, and their order is not that of labels."""
    rows = [line.split(";") for line in (data_set / "train.csv").read_text().splitlines()]
    ids = [int(clip_id) for clip_id, _ in rows]
    assert ids == sorted(ids) != list(range(1, 17))
    assert [label for _, label in rows] != list(demo_data.GESTURES) * 2


def run(folder, *more):
    counts = (f"--{name}_clips={count}" for name, count in CLIPS.items())
    return demo_data.main(["--output", str(folder), "--seed", "3", *counts, *more])


def test_second_call_returns_at_once(data_set, capsys):
    before = {path: path.stat().st_mtime_ns for path in data_set.rglob("*")}
    assert run(data_set) == 0
    assert "already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in data_set.rglob("*")}


def test_other_arguments_are_refused(data_set, capsys):
    before = read_files(data_set)
    assert run(data_set, "--seed", "4") == 2
    assert "--force" in capsys.readouterr().err
    assert read_files(data_set) == before


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("marker", [None, "{}", "[1]", "not json", '{"made_by": "somebody"}'])
def test_foreign_folder_is_left_alone(tmp_path, capsys, force, marker):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "precious.jpg").write_bytes(b"precious")
    if marker is not None:
        (tmp_path / demo_data.MARKER).write_text(marker)
    before = read_files(tmp_path)
    assert run(tmp_path, *force) == 2
    error = capsys.readouterr().err
    assert "--output" in error
    assert error.count("\n") == 1
    assert read_files(tmp_path) == before


def test_unfinished_set_is_replaced_by_force_only(data_set, tmp_path, capsys):
    """As after a kill: the marker is there and says that the set is not complete."""
    marker = {**json.loads((data_set / demo_data.MARKER).read_text()), "complete": False}
    (tmp_path / demo_data.MARKER).write_text(json.dumps(marker))
    (tmp_path / "frames" / "77").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    assert run(tmp_path) == 2
    assert "--force" in capsys.readouterr().err
    assert run(tmp_path, "--force") == 0
    assert "wrote 16 train, 8 validation, 8 test clips" in capsys.readouterr().out
    assert read_files(tmp_path) == {**read_files(data_set), "notes.txt": b"mine"}


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--train_clips", "-8"]])
def test_numbers_below_zero_are_refused(tmp_path, capsys, arguments):
    assert run(tmp_path / "set", *arguments) == 2
    assert "0 or more" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


# --- The content ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", demo_data.PAIRS, ids=lambda pair: pair[0])
def test_opposing_gesture_is_the_exact_reverse(pair):
    forward, backward = (demo_data.draw_clip(gesture, make_rng(1)) for gesture in pair[:2])
    assert forward.dtype == np.uint8
    assert np.array_equal(forward, backward[::-1])
    assert (forward[0] != forward[-1]).any()


def test_speed_is_the_same_read_backwards():
    """Else a window at the start of a clip would move faster in one gesture than in the other."""
    num_clips = 4000
    phases = np.stack([demo_data.draw_phases(30, make_rng(2, i)) for i in range(num_clips)])
    speeds = np.diff(phases, axis=1)
    assert 0.03 <= speeds.min() < speeds.max() <= 0.085
    window = phases[:, 15] - phases[:, 0]  # 16 frames
    assert 0.45 < window.min() < window.max() < 1.3
    gain = speeds[:, -10:].mean(axis=1) - speeds[:, :10].mean(axis=1)
    assert abs(gain.mean()) < 3 * gain.std() / num_clips**0.5
    for phase in phases[:, 0] % 1, phases[:, -1] % 1:
        expected = num_clips / 10
        counts = np.histogram(phase, 10, (0, 1))[0]
        assert np.abs(counts - expected).max() < 4 * expected**0.5


def look(clip, style):
    """Return where the object is in each frame: features `[T, 68]` and measures `[T, 4]`.

    The object is what differs from the empty background, which says nothing about the gesture.
    (The clip's median picture would: with the path of the whole clip known, one frame at a known
    time tells the direction.) The features are a map of 8 x 8 cells and the measures: mass,
    centre (x, y) and spread.
    """
    empty = cv2.convertScaleAbs(style.background, alpha=style.brightness)
    start = (clip.shape[2] - 100) // 2
    pictures = [np.ascontiguousarray(frame[:, start : start + 100]) for frame in (empty, *clip)]
    small = [cv2.resize(picture, (24, 24), interpolation=cv2.INTER_AREA) for picture in pictures]
    empty, *small = np.stack(small).astype(np.float32)
    presence = np.maximum(np.abs(small - empty).sum(axis=-1) - 30, 0) / 255
    mass = presence.sum(axis=(1, 2)) + 1e-3
    y, x = np.mgrid[:24, :24]
    centre_x, centre_y = ((presence * axis).sum(axis=(1, 2)) / mass for axis in (x, y))
    squares = (x - centre_x[:, None, None]) ** 2 + (y - centre_y[:, None, None]) ** 2
    spread = np.sqrt((presence * squares).sum(axis=(1, 2)) / mass)
    measures = np.stack([mass, centre_x, centre_y, spread], axis=1)
    cells = presence.reshape(-1, 8, 3, 8, 3).mean(axis=(2, 4)).reshape(-1, 64)
    return np.concatenate([cells, measures], axis=1), measures


def in_order(measures):
    """Return features `[4]` that know the order: how the measures go on from frame to frame."""
    mass, x, y, spread = measures.T
    steps = np.diff(np.stack([x, y, spread]), axis=1)
    around_x, around_y = x - x.mean(), y - y.mean()
    turn = around_x[:-1] * around_y[1:] - around_y[:-1] * around_x[1:]
    seen = mass > 0.2 * np.median(mass)
    seen = seen[:-1] & seen[1:]
    movements = np.concatenate([steps, turn[None]])[:, seen]
    return np.median(movements, axis=1) if seen.any() else np.zeros(4)


VIEWS = {
    "first": lambda frames, measures: frames[0],
    "middle": lambda frames, measures: frames[len(frames) // 2],
    "last": lambda frames, measures: frames[-1],
    "shuffled": lambda frames, measures: np.concatenate([frames.mean(0), frames.std(0)]),
    "in order": lambda frames, measures: in_order(measures),
}


def draw_views(pair_number, num_clips):
    """Draw clips of both gestures of a pair in turn; return {view: features [clips, F]}."""
    gestures = demo_data.PAIRS[pair_number][:2]
    views = {name: [] for name in VIEWS}
    for index in range(num_clips):
        clip = demo_data.draw_clip(gestures[index % 2], make_rng(3, pair_number, index))
        style = demo_data.draw_style(make_rng(3, pair_number, index))  # a clip's first draw
        looks = look(clip, style)
        for name, view in VIEWS.items():
            views[name].append(view(*looks))
    return {name: np.stack(features) for name, features in views.items()}


def held_out_accuracy(features):
    """Train ridge regression on the first half of the clips; return its accuracy on the other.

    Not the other way round as well: the two figures would go up and down together, and a coin's
    standard deviation would no longer hold for their mean.
    """
    signs = np.where(np.arange(len(features)) % 2, 1.0, -1.0)
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    half = len(features) // 2
    gram = features[:half].T @ features[:half] + 10 * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features[:half].T @ signs[:half])
    return np.mean(features[half:] @ weights * signs[half:] > 0)


def chance(num_clips):
    """Return the share of `num_clips` that a fair coin gets right, plus 3.5 deviations."""
    return 0.5 + 3.5 * 0.5 / num_clips**0.5


@pytest.fixture(scope="module")
def accuracy():
    """{view: accuracy on held-out clips of each pair `[4]`}."""
    views = [draw_views(pair, CLIPS_PER_PAIR) for pair in range(4)]
    return {name: np.array([held_out_accuracy(view[name]) for view in views]) for name in VIEWS}


@pytest.mark.parametrize("view", slow_except(["first", "middle", "last", "shuffled"], ["shuffled"]))
def test_frames_without_order_tell_nothing(accuracy, view):
    assert accuracy[view].max() < chance(CLIPS_PER_PAIR // 2)  # each pair: 0.726
    assert accuracy[view].mean() < chance(4 * CLIPS_PER_PAIR // 2)  # all pairs: 0.613


def test_frames_in_order_tell_the_gesture(accuracy):
    assert accuracy["in order"].min() > 0.9


def test_a_fixed_start_would_be_found(monkeypatch):
    """The test above can fail: if all clips start at the same phase, the end frames tell."""
    draw_phases = demo_data.draw_phases

    def draw_from_zero(num_frames, rng):
        phases = draw_phases(num_frames, rng)
        return phases - phases[0]

    monkeypatch.setattr(demo_data, "draw_phases", draw_from_zero)
    views = [draw_views(pair, 32) for pair in range(4)]
    for name in ("first", "last"):
        assert np.mean([held_out_accuracy(view[name]) for view in views]) > chance(4 * 16)

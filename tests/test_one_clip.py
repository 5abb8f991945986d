"""Every command gives a network the same clip: training's validation, --eval_only, ensembles,
predict.py, the camera and explain.py.
"""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, draw_frames, slow_except, write_clip
from movies import write_video
from runs import make_settings, run_folder, write_config

import predict
import train
from clips.folders import open_clip
from clips.frames import FramesInMemory
from config import IMAGENET_COLOURS, Config
from explain import films_of_clip
from scoring import camera
from scoring.predictor import Predictor, load_predictor, load_predictors
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("blank_pictures")

CPU = torch.device("cpu")
# Frames, of a network whose windows have 7: shorter, typical, just above two windows, long.
LENGTHS = (1, 3, 7, 10, 15, 17, 40, 200)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Clips of all lengths, as folders and videos, and the checkpoints of two small networks."""
    root = tmp_path_factory.mktemp("one_clip")
    settings = make_settings(root, checkpoint_minutes=10)
    checkpoints = []
    for seed in (0, 1):
        own = settings | {"seed": seed, "model_name": f"net{seed}"}
        assert train.main(["-c", write_config(root / f"{seed}.json", own), "-g", "cpu"]) == 0
        checkpoints.append(run_folder(own) / "checkpoint.pth.tar")
    rng, rows = np.random.default_rng(0), []
    for number, length in enumerate(LENGTHS):
        frames = draw_frames(CLASSES[number % 2], length, rng)
        write_clip(root / "clips" / str(length), frames)
        rows.append(f"{length};{CLASSES[number % 2]}")
        if length > 1:
            write_video(root / "clips" / f"{length}.mp4", frames, rate=30)
            rows.append(f"{length}.mp4;{CLASSES[number % 2]}")
    (root / "clips.csv").write_text("\n".join(rows) + "\n")
    settings |= {"val_data_folder": str(root / "clips"), "val_data_csv": str(root / "clips.csv")}
    return settings, checkpoints


def with_keys(checkpoint, path, **keys) -> str:
    """A checkpoint as if it had been trained with other keys; None: by a version without it."""
    saved = load_checkpoint(checkpoint)
    config = {key: value for key, value in (saved["config"] | keys).items() if value is not None}
    torch.save(saved | {"config": config}, path)
    return str(path)


def evaluated(settings, tmp_path, *flags) -> list[dict]:
    """The rows of predictions.csv; the whole row of scores."""
    own = settings | {"output_dir": str(tmp_path / "runs"), "model_name": "evaluated"}
    config = write_config(tmp_path / "config.json", own)
    assert train.main(["-c", config, "-g", "cpu", "-e", *flags]) == 0
    with open(run_folder(own) / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def predicted(settings, tmp_path, rows, checkpoints) -> list[dict]:
    output = tmp_path / "found.csv"
    flags = [flag for path in checkpoints for flag in ("-c", path)]
    clips = [f"{settings['val_data_folder']}/{row['id']}" for row in rows]
    assert predict.main([*flags, "-g", "cpu", "-o", str(output), *clips]) == 0
    with open(output, newline="") as file:
        return list(csv.DictReader(file))


def check_same(found, expected):
    assert len({row["score1"] for row in expected}) > 5  # which clip it is does matter
    for one, other in zip(found, expected, strict=True):
        for rank in range(1, len(CLASSES) + 1):
            assert one[f"top{rank}"] == other[f"top{rank}"], other["id"]
            assert float(one[f"score{rank}"]) == pytest.approx(
                float(other[f"score{rank}"]), abs=2e-6
            ), other["id"]


@pytest.mark.parametrize(
    "nclips, ncrops",
    [(2, 3), *(pytest.param(*row, marks=pytest.mark.slow) for row in [(1, 1), (3, 1)])],
)
@pytest.mark.parametrize("sampling", ["window", "segments"])
def test_predict_says_what_the_evaluation_says(project, tmp_path, sampling, nclips, ncrops):
    settings, checkpoints = project
    keys = {"sampling": sampling, "nclips": nclips, "ncrops": ncrops}
    files = [
        with_keys(path, tmp_path / f"{number}.tar", **keys)
        for number, path in enumerate(checkpoints)
    ]
    expected = evaluated(settings | keys, tmp_path, "--checkpoint", files[0])
    check_same(predicted(settings, tmp_path, expected, files[:1]), expected)
    # The config's windows are not the networks'.
    expected = evaluated(settings | {"clip_size": 2, "nclips": 2}, tmp_path, "--ensemble", *files)
    check_same(predicted(settings, tmp_path, expected, files), expected)


@pytest.mark.parametrize(
    "key, value",
    [
        ("nclips", 2),
        ("ncrops", 3),
        ("subtract_background", True),
        ("mean", [0.1, 0.2, 0.3]),
        ("sampling", "segments"),
        ("frame_rate", 30.0),
    ],
)
def test_an_older_checkpoint_has_one_score_alone_and_in_an_ensemble(
    project, tmp_path, capsys, key, value
):
    settings, checkpoints = project
    older = with_keys(checkpoints[0], tmp_path / "older.tar", **{key: None})
    changed = settings | {key: value}
    expected = evaluated(changed, tmp_path, "--ensemble", older)
    check_same(predicted(settings, tmp_path, expected, [older]), expected)
    default = IMAGENET_COLOURS.get(key, Config.model_fields[key].default)
    capsys.readouterr()
    evaluated(changed, tmp_path, "--checkpoint", older)  # as the config says, which is told
    assert f"changed since the checkpoint: {key}: {default} -> {value}" in capsys.readouterr().out


def test_without_tf32_a_checkpoint_computes_in_fp32(project, tmp_path, capsys):
    settings, checkpoints = project
    checkpoint = with_keys(checkpoints[0], tmp_path / "net.tar", eval_precision="tf32")
    expected = evaluated(settings, tmp_path, "--checkpoint", str(checkpoints[0]))
    capsys.readouterr()
    check_same(predicted(settings, tmp_path, expected, [checkpoint]), expected)
    assert "is evaluated in tf32 (eval_precision), which this device" in capsys.readouterr().err


@pytest.mark.parametrize("sampling", ["window", "segments"])
def test_the_camera_takes_its_last_seconds_for_one_clip(
    project, tmp_path, monkeypatch, capsys, sampling
):
    settings, checkpoints = project
    keys = {"sampling": sampling, "step_size": 1}
    files = [
        with_keys(path, tmp_path / f"{number}.tar", **keys)
        for number, path in enumerate(checkpoints)
    ]
    predictors, combine = load_predictors(files, CPU)
    frames = list(draw_frames("Left", 36, np.random.default_rng(0)))  # 3 seconds
    write_clip(tmp_path / "clip", frames)
    source = open_clip(tmp_path / "clip", predictors[0].config)
    shown = FramesInMemory(list(source.frames_at(range(36))))

    class Camera:
        def __init__(self, number, seconds):
            self.num_asked = 0

        def wait_for_more(self, seconds):
            self.num_asked += 1
            if self.num_asked > 1:
                raise camera.UserError("over")

        def newest(self, frame_rate, most):
            assert most == 36
            return shown

        def close(self):
            pass

    monkeypatch.setattr(camera, "Camera", Camera)
    with pytest.raises(camera.UserError, match="over"):
        camera.predict_live(predictors, 0, combine)
    (tmp_path / "one.csv").write_text("clip;Left\n")
    one = settings | {"val_data_folder": str(tmp_path), "val_data_csv": str(tmp_path / "one.csv")}
    (row,) = evaluated(one, tmp_path, "--ensemble", *files)
    line = capsys.readouterr().out.split("\r")[-1]
    expected = "   ".join(
        f"{row[f'top{rank}']} {100 * float(row[f'score{rank}']):.0f} %" for rank in (1, 2, 3)
    )
    assert line.startswith(expected)


@pytest.mark.parametrize("sampling", slow_except(["window", "segments"], ["window"]))
def test_explain_names_what_the_evaluation_says(project, tmp_path, sampling):
    """Also where that is the mean of several windows and crops, of which it draws one."""
    settings, checkpoints = project
    keys = {"sampling": sampling, "nclips": 3, "ncrops": 3}
    checkpoint = with_keys(checkpoints[0], tmp_path / "net.tar", **keys)
    expected = evaluated(settings | keys, tmp_path, "--checkpoint", checkpoint)
    predictor = load_predictor(checkpoint, CPU)
    for row in expected:
        source = open_clip(f"{settings['val_data_folder']}/{row['id']}", predictor.config)
        found = films_of_clip(predictor, predictor, source)
        assert found.title == f"{row['top1']} {100 * float(row['score1']):.0f} %"


def test_long_films_are_noted(project, tmp_path, capsys):
    settings, checkpoints = project
    folder = Path(settings["val_data_folder"])
    for sampling, nclips, count in (("window", 1, 1), ("window", 9, 0), ("segments", 1, 1)):
        keys = {"sampling": sampling, "nclips": nclips, "clip_size": 4}
        checkpoint = with_keys(checkpoints[0], tmp_path / "net.tar", **keys)
        assert (
            predict.main(["-c", checkpoint, "-g", "cpu", str(folder / "200"), str(folder / "40")])
            == 0
        )
        error = capsys.readouterr().err
        assert (
            error.count(
                "note: long clips (over 3 s of which no frame is used): 1 of 2; "
                f"like --eval_only, this treats each as one gesture and uses "
                f"{4 * nclips} of its frames; cut it"
            )
            == count
        )


def test_no_window_is_computed_twice(project, tmp_path, monkeypatch):
    settings, checkpoints = project
    predictor = load_predictor(with_keys(checkpoints[0], tmp_path / "net.tar", nclips=3), CPU)
    seen, probabilities = [], Predictor.probabilities

    def watched(predictor, windows, num_clips):
        seen.extend(window.tobytes() for window in windows)
        return probabilities(predictor, windows, num_clips)

    monkeypatch.setattr(Predictor, "probabilities", watched)
    source = open_clip(f"{settings['val_data_folder']}/40", predictor.config)
    predictor.scores(source, over_time=True)
    assert len(seen) == 3 + len(predictor.spans(40)) > 10
    assert len(set(seen)) >= len(seen) - 3  # those of the whole clip are also among the parts
    seen.clear()
    predictor.scores(source)
    assert len(set(seen)) == len(seen) == 3

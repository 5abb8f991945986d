"""The pictures of the README: what draws them, and the files themselves."""

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY_NETWORK, make_config, write_clip
from PIL import Image

import demo_data
from clips.annotations import read_annotations
from docs import chart_pictures as charts
from docs import convolution_pictures as convolutions
from docs import draw_pictures
from docs.inside_pictures import draw_pair, films_of_pair
from docs.opening_picture import Shown, draw_opening, watch
from docs.palette import DARK, LIGHT, SMALLEST_TEXT, WIDTH
from docs.shape_picture import draw_shapes, network_stages
from explaining.time_probe import TimeProbe
from model import build_model
from networks.inference import for_inference
from scoring.predictor import Predictor
from system.config_file import load_config

PROJECT = Path(__file__).parent.parent
DOCS = PROJECT / "docs"


def texts(picture) -> str:
    return " ".join(ElementTree.fromstring(picture).itertext())


def check(picture):
    """The picture is whole, fits into a README, and has a colour for each theme."""
    root = ElementTree.fromstring(picture)
    assert float(root.get("width")) == WIDTH and 150 < float(root.get("height")) < 900
    used, known = set(re.findall(r"var\(--(\w+)\)", picture)), set(LIGHT)
    assert {"card", "ink"} <= used <= known == set(DARK)
    assert "prefers-color-scheme:dark" in picture
    sizes = re.findall(r"font(?:-size)?: ?(?:\d{3} )?([\d.]+)px", picture)
    assert sizes and min(map(float, sizes)) >= SMALLEST_TEXT
    assert len(picture) < draw_pictures.MOST_BYTES
    return texts(picture)


# --- convolutions ------------------------------------------------------------------------------


def test_the_numbers_of_the_2d_picture_can_be_checked_by_hand():
    frame = np.arange(20).reshape(4, 5) ** 2
    by_hand = [[sum(frame[y + i, x + j] * convolutions.EDGE_KERNEL[i, j]
                    for i in range(3) for j in range(3)) for x in range(3)] for y in range(2)]
    assert convolutions.slide_2d(frame, convolutions.EDGE_KERNEL).tolist() == by_hand
    assert "time never came in" in check(convolutions.draw_conv2d())


def test_the_3d_kernel_tells_right_from_left_and_moving_from_still():
    frames = np.zeros((4, 5, 9), int)
    for time, frame in enumerate(frames):
        frame[1:4, time + 2 : time + 4] = 9
    right, left, still = (convolutions.slide_3d(order.copy(), convolutions.MOVEMENT_KERNEL)
                          for order in (frames, frames[::-1], frames[[2] * 4]))  # fmt: skip
    assert max(right.flat, key=abs) > 0 > max(left.flat, key=abs)
    assert (left == -right[::-1]).all() and not still.any()


def test_the_3d_picture_shows_opposite_numbers():
    picture = convolutions.draw_conv3d()
    assert check(picture).count("strongest") == 3
    strongest = re.findall(r">([+−]?\d+)</text>\n<text[^>]*>strongest", picture)
    right, left, still = (int(number.replace("−", "-")) for number in strongest)
    assert right == -left > 9 and still == 0


# --- the network -------------------------------------------------------------------------------


def test_shapes_are_those_of_the_network():
    config = make_config(num_classes=3, **TINY_NETWORK)
    stages, total = network_stages(config)
    assert stages[0].shape == (3, 4, 20, 20) and stages[-1].shape == (3,)
    with torch.device("meta"):
        model = build_model(config, 3)
    assert total.startswith(f"{sum(each.numel() for each in model.parameters()):,} parameters")
    words = check(draw_shapes(config))
    assert "4 frames" in words and "20 × 20" in words and "block 2" in words


def test_the_picture_of_shapes_is_that_of_the_shipped_config():
    config = load_config(PROJECT / "configs/config.json")
    assert (DOCS / "shapes.svg").read_text() == draw_shapes(config), (
        "run docs/draw_pictures.py --only shapes.svg")  # fmt: skip


# --- the opening picture -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor():
    config = make_config(**TINY_NETWORK)
    torch.manual_seed(0)
    model = for_inference(build_model(config, len(demo_data.GESTURES)))
    return Predictor(config, list(demo_data.GESTURES), model, torch.device("cpu"), epoch=1)


def test_the_network_watches_what_was_played_so_far(predictor):
    frames = demo_data.draw_clip("Moving Left", np.random.default_rng(3))[:9]
    scores = watch(predictor, frames)
    assert scores.shape == (9, 8) and np.allclose(scores.sum(1), 1, atol=1e-5)
    assert np.allclose(scores[:5], watch(predictor, frames[:5]), atol=1e-5)  # nothing of later
    assert not np.allclose(scores[0], scores[-1], atol=1e-6)


def test_opening_picture_plays_and_begins_with_its_end(predictor):
    frames = demo_data.draw_clip("Moving Left", np.random.default_rng(3))[:3]
    clips = [Shown(clip, watch(predictor, clip), predictor.classes, backwards)
             for clip, backwards in ((frames, False), (frames[::-1], True), (frames[:2], False))]
    for colours in (LIGHT, DARK):
        picture = Image.open(io.BytesIO(draw_opening(clips, colours)))
        assert picture.format == "WEBP" and picture.n_frames == 3
        assert picture.width == 2 * WIDTH and picture.info["loop"] == 0
        card = list(bytes.fromhex(colours["card"][1:]))
        assert np.array(picture.convert("RGB"))[40, 20] == pytest.approx(card, abs=6)


def test_films_of_two_gestures_play_side_by_side(predictor, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("Moving Right", "Zooming In"):
        write_clip(tmp_path / name, demo_data.draw_clip(name, rng)[:8])
    (tmp_path / "set.csv").write_text("".join(f"{name};{name}\n" for name in (
        "Zooming In", "Moving Right")))  # fmt: skip
    annotations = read_annotations(tmp_path / "set.csv", tmp_path, predictor.classes)
    clips = films_of_pair(predictor, annotations)
    one, both = (Image.open(io.BytesIO(draw_pair(some, "grad_cam"))) for some in (clips[:1], clips))
    assert both.n_frames == predictor.config.clip_size and both.width > 2 * one.width
    assert draw_pair(clips, "activations") != draw_pair(clips[::-1], "activations")


# --- charts ------------------------------------------------------------------------------------


def history(top1, val_top1):
    return {"epoch": np.arange(1, len(top1) + 1), "top1": np.array(top1, float),
            "val_top1": np.array(val_top1, float)}  # fmt: skip


def test_curves():
    words = check(charts.draw_curves(history([20, 60, 90], [30, 55.5, 50]),
                                     history([20, 60], [30, 70])))  # fmt: skip
    assert "best: 55.50 %, epoch 2" in words and "40.0 points" in words


def test_the_reference_run_is_whole():
    reference = charts.read_rows(DOCS / "reference-curve.csv")
    assert len(reference["epoch"]) == 390
    best = reference["val_top1"].argmax()
    assert (reference["epoch"][best], round(reference["val_top1"][best], 2)) == (225, 85.08)


def test_time_probe_chart():
    labels = np.array([0, 0, 1, 1, 2, 2])
    swapped = np.array([1, 1, 0, 0, 2, 0])
    predicted = {"in order": labels, "reversed": swapped, "shuffled": swapped, "frozen": swapped}
    words = check(charts.draw_time_probe(TimeProbe(CLASSES, labels, predicted)))
    assert "16.7 %" in words and "100 and 100 %" in words and words.count("Left") == 1
    assert "guessing: 33.3 %" in words
    alike = TimeProbe(CLASSES, labels, dict.fromkeys(predicted, labels))
    assert "no class for another" in check(charts.draw_time_probe(alike))


def make_row(variant, top1, gflop=0.1):
    return {"variant": variant, "top1": top1, "top1_range": [top1 - 5, top1 + 1], "runs": [1, 2],
            "train_top1": 80.0, "gflop": gflop}  # fmt: skip


def test_charts_of_compared_variants():
    results = {"rows": [make_row("as it was", 50.0), make_row("wider", 61.5),
                        make_row("<&>", 12.25, 0.02)]}  # fmt: skip
    words = check(charts.draw_remedies(results))
    assert "61.5" in words and "against as it was" in words and "of 2 seeds" in words
    both = check(charts.draw_approaches({"First": results, "Second": results}))
    assert "First: validation" in both and both.count("0.02") == 2 and "<&>" in both


def test_the_same_results_give_the_same_bytes():
    results = {"rows": [make_row("one", 50.0), make_row("two", 61.5)]}
    assert charts.draw_remedies(results) == charts.draw_remedies(results)


# --- the command and the files -----------------------------------------------------------------


def test_command(tmp_path, capsys):
    assert draw_pictures.main(["--only", "shapes.svg", "-o", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "shapes.svg").exists()
    assert draw_pictures.main(["--only", "time-probe.svg", "-o", str(tmp_path)]) == 2
    assert "--checkpoint: this picture needs one" in capsys.readouterr().err
    assert draw_pictures.main(["-c", str(tmp_path / "none"), "--only", "curves.svg"]) == 2
    assert "no such checkpoint" in capsys.readouterr().err


def test_missing_results_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(draw_pictures, "RESULTS", tmp_path)
    for name in ("remedies.svg", "approaches.svg"):
        assert draw_pictures.main(["--only", name, "-o", str(tmp_path)]) == 2
        assert str(tmp_path) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_picture_is_drawn_by_the_script_and_small():
    files = [path for path in DOCS.iterdir() if path.suffix in (".svg", ".webp", ".png", ".gif")]
    assert {path.name for path in files} == set(draw_pictures.PICTURES)
    for path in files:
        assert 4_000 < path.stat().st_size < 1_000_000, path
        if path.suffix == ".svg":
            check(path.read_text())

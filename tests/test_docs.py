"""The pictures of the README: what draws them, and the files themselves."""

import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY_NETWORK, make_config
from jupytext.cli import jupytext as jupytext_command
from PIL import Image

import config
import demo_data
from clips.sampling import frames_needed
from docs import chart_pictures as charts
from docs import check as docs_check
from docs import convolution_pictures as convolutions
from docs import draw_pictures
from docs import time_pictures as times
from docs.check import DOCS, PROJECT, check_svg
from docs.inside_pictures import SHOWN, draw_activations, draw_grad_cam, inside_of_shown
from docs.opening_picture import Shown, draw_opening, watch
from docs.shape_picture import draw_shapes
from docs.svg import WIDTH
from explaining.time_probe import TimeProbe
from model import build_model
from networks.inference import fold_batchnorm
from reporting.palette import DARK, LIGHT
from scoring.predictor import Predictor
from system.config_file import load_config


def texts(picture) -> str:
    return " ".join(ElementTree.fromstring(picture).itertext())


def check(picture):
    """Checks an SVG, and returns its words."""
    assert check_svg(picture) == []
    return texts(picture)


# --- convolutions ------------------------------------------------------------------------------


def test_the_numbers_of_the_2d_picture_can_be_checked_by_hand():
    frame = np.arange(20).reshape(4, 5) ** 2
    by_hand = [
        [
            sum(
                frame[y + i, x + j] * convolutions.EDGE_KERNEL[i, j]
                for i in range(3)
                for j in range(3)
            )
            for x in range(3)
        ]
        for y in range(2)
    ]
    assert convolutions.slide_2d(frame, convolutions.EDGE_KERNEL).tolist() == by_hand
    assert "one frame does not say" in check(convolutions.draw_conv2d())


def test_the_sign_of_the_3d_kernel_is_direction_times_contrast():
    clips = {name: frames.copy() for name, (frames, _) in convolutions.bar_clips().items()}
    bright, left, still, dark = (
        convolutions.slide_3d(frames, convolutions.MOVEMENT_KERNEL) for frames in clips.values()
    )
    assert [convolutions.strongest_of(each) for each in (bright, left, still, dark)] == [
        54,
        -54,
        0,
        -54,
    ]
    assert (left == -bright[::-1]).all() and not still.any() and (dark == -bright).all()


def test_the_3d_picture_names_outputs_and_works_out_a_sum():
    picture = convolutions.draw_conv3d()
    words = check(picture)
    strongest = re.findall(r">([+−]?\d+)</text>\n<text[^>]*>strongest", picture)
    assert strongest == ["+54", "−54", "0", "−54"]
    assert "together 27" in words and "27 + 27 = 54" in words
    for _, names in convolutions.bar_clips().values():
        assert names.replace(" ", "") in re.sub(r"\s", "", words)


def test_the_results_of_a_kernels_slices_are_added():
    patch, kernel = (torch.tensor(each).float()[None] for each in convolutions.colour_patch())
    assert torch.nn.functional.conv2d(patch, kernel).item() == 81
    assert "+81" in check(convolutions.draw_slices())


# --- what becomes of time ----------------------------------------------------------------------


def test_three_kinds_of_convolution():
    right = convolutions.moving_bar()
    forwards, backwards = times.three_cases(right), times.three_cases(right[::-1].copy())
    single, stacked, in_3d = zip(forwards, backwards, strict=True)
    assert (single[0] == single[1][::-1]).all()  # the same pictures in another order
    assert len(stacked[0]) == 1 and stacked[0].any() and (stacked[0] == -stacked[1]).all()
    assert len(in_3d[0]) == 3 and (in_3d[0] == -in_3d[1][::-1]).all()
    assert check(times.draw_cases()).count("backwards") == 3


def test_two_layers_with_a_relu_tell_direction_whatever_the_contrast():
    found = {
        with_relu: [
            convolutions.strongest_of(times.edges_then_movement(frames.copy(), with_relu)[1])
            for frames in times.wide_bar_clips().values()
        ]
        for with_relu in (True, False)
    }
    assert found == {True: [162, 162, -162, -162], False: [243, -243, -243, 243]}
    words = check(times.draw_two_layers())
    assert "+162" in words and "+243, −243, −243, +243" in words


@pytest.mark.slow
def test_receptive_field_of_the_tutorials_network():
    seen = times.frames_seen(load_config(PROJECT / "configs/config.json"))
    assert [(positions, len(frames)) for positions, frames in seen] == [
        (9, 4),
        (4, 10),
        (2, 17),
        (1, 18),
    ]
    assert all(frames == list(range(frames[0], frames[-1] + 1)) for _, frames in seen)


def test_receptive_field_picture():
    config = make_config(num_classes=3, **TINY_NETWORK)
    assert "block 1" in check(times.draw_receptive_field(config))


def test_learnt_kernels_are_those_with_most_change(predictor):
    weight = next(predictor.network.parameters())
    still = torch.ones_like(weight)
    still[2, :, 0] = -2
    with torch.no_grad():
        weight.copy_(still)
    first, second, _ = times.learnt_kernels(predictor.network)
    assert (first[0] == -1).all() and (first[1] == 0.5).all() and (second == 1).all()
    assert times.strongest_right_and_left(convolutions.MOVEMENT_KERNEL) == (54, -54)
    assert "Learnt, 3" in check(times.draw_learnt_kernels(predictor.network))


# --- the network -------------------------------------------------------------------------------


def test_shapes_are_those_of_the_network():
    config = make_config(num_classes=3, **TINY_NETWORK)
    with torch.device("meta"):
        model = build_model(config, 3)
    words = check(draw_shapes(config))
    assert f"{sum(each.numel() for each in model.parameters()):,} parameters" in words
    assert "4 frames" in words and "20 × 20" in words and "block 2" in words


# --- the opening picture -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor():
    config = make_config(**TINY_NETWORK)
    torch.manual_seed(1)
    model = fold_batchnorm(build_model(config, len(demo_data.GESTURES)))
    return Predictor(config, list(demo_data.GESTURES), model, torch.device("cpu"), epoch=1)


def test_the_network_watches_what_was_played_so_far(predictor):
    frames = demo_data.draw_clip("Moving Left", np.random.default_rng(3))[:9]
    scores = watch(predictor, frames)
    assert scores.shape == (9, 8) and np.allclose(scores.sum(1), 1, atol=1e-5)
    assert np.allclose(scores[:5], watch(predictor, frames[:5]), atol=1e-5)  # nothing of later
    assert not np.allclose(scores[0], scores[-1], atol=1e-6)


def test_opening_picture_plays_and_begins_with_its_end(predictor):
    frames = demo_data.draw_clip("Moving Left", np.random.default_rng(3))[:3]
    clips = [
        Shown(clip, watch(predictor, clip), predictor.classes, backwards)
        for clip, backwards in ((frames, False), (frames[::-1], True), (frames[:2], False))
    ]
    for colours in (LIGHT, DARK):
        picture = Image.open(io.BytesIO(draw_opening(clips, colours)))
        assert picture.format == "WEBP" and picture.n_frames == 3
        assert picture.width == 2 * WIDTH and picture.info["loop"] == 0
        card = list(bytes.fromhex(colours["card"][1:]))
        assert np.array(picture.convert("RGB"))[40, 20] == pytest.approx(card, abs=6)


@pytest.mark.slow
def test_films_of_two_gestures_play_below_each_other(predictor):
    clips = inside_of_shown(predictor)
    for colours in (LIGHT, DARK):
        card = list(bytes.fromhex(colours["card"][1:]))
        for drawn in (draw_grad_cam(clips, colours), draw_activations(clips[0], colours)):
            film = Image.open(io.BytesIO(drawn))
            assert film.n_frames == predictor.config.clip_size and film.width == 2 * WIDTH
            assert np.array(film.convert("RGB"))[20, 20] == pytest.approx(card, abs=6)
    assert draw_activations(clips[0], LIGHT) != draw_activations(clips[1], LIGHT)
    assert all((clip.map != clip.random_map).any() for clip in clips)


def test_the_objects_of_the_films_neither_leave_nor_fade():
    length = frames_needed(load_config(PROJECT / "configs/quickstart.json"))
    for _, seed in SHOWN:
        rng = np.random.default_rng(seed)
        demo_data.draw_style(rng)
        num_frames = int(rng.integers(*demo_data.LENGTHS, endpoint=True))
        phases = demo_data.draw_phases(num_frames, rng)
        phases -= np.floor(phases[0])
        assert num_frames >= length
        assert demo_data.FADE / 2 < phases[0] < phases[-1] < 1 - demo_data.FADE / 2


# --- charts ------------------------------------------------------------------------------------


def history(top1, val_top1):
    return {
        "epoch": np.arange(1, len(top1) + 1),
        "top1": np.array(top1, float),
        "val_top1": np.array(val_top1, float),
    }


def test_curves():
    words = check(
        charts.draw_curves(history([20, 60, 90], [30, 55.5, 50]), history([20, 60], [30, 70]))
    )
    assert "best: 55.50 %, epoch 2" in words and "40.0 points" in words


def test_the_reference_run_is_whole():
    reference = charts.read_rows(DOCS / "reference-curve.csv")
    words = check(charts.draw_reference(reference))
    assert all(title in words for title in ("Loss", "Top-1, %", "Top-5, %", "validation"))
    assert len(reference["epoch"]) == 390
    best = reference["val_top1"].argmax()
    assert (reference["epoch"][best], round(reference["val_top1"][best], 2)) == (225, 85.08)


def test_time_probe_chart():
    labels = np.array([0, 0, 1, 1, 2, 2])
    swapped = np.array([1, 1, 0, 0, 2, 0])
    predicted = {"in order": labels, "reversed": swapped, "shuffled": swapped, "frozen": swapped}
    words = check(charts.draw_time_probe(TimeProbe(CLASSES, labels, predicted)))
    assert "16.7 %" in words and "100 and 100 %" in words and words.count("Left") == 1
    assert "chance: 33.3 %" in words
    probe = TimeProbe(CLASSES, labels, predicted)
    assert charts.pair_and_direction(probe, "in order") == (100, 100)
    assert charts.pair_and_direction(probe, "shuffled") == pytest.approx((500 / 6, 20))
    assert "83.3 % of the clips" in words and "20.0 %" in words
    alike = TimeProbe(CLASSES, labels, dict.fromkeys(predicted, labels))
    assert "no class for another" in check(charts.draw_time_probe(alike))


def make_row(variant, top1, gflop=0.1):
    return {
        "variant": variant,
        "top1": top1,
        "top1_range": [top1 - 5, top1 + 1],
        "top1_interval": [top1 - 9, top1 + 9],
        "runs": [1, 2],
        "train_top1": 80.0,
        "gflop": gflop,
    }


def test_remedies_are_shown_beside_baselines():
    results = {
        "rows": [make_row("the recipe", 50.0), make_row("<&>", 12.25)],
        "baselines": {"the most frequent class": 17.9, "a linear model": 43.75},
    }
    picture = charts.draw_remedies(results, "Learning")
    words = check(picture)
    assert "Learning (the recipe in bold" in words and "augmented, dropout" in words
    assert "<&>" in words and "12.2" in words and "95 % interval" in words
    assert "linear model: 43.8" in words and "most frequent class: 17.9" in words
    assert picture == charts.draw_remedies(results, "Learning")  # the same results, the same bytes
    assert "linear model" not in check(charts.draw_remedies({"rows": results["rows"]}, ""))
    unknown = [row | {"top1_interval": None} for row in results["rows"]]
    words = check(charts.draw_remedies({"rows": unknown}, ""))
    assert "validation" in words and "interval" not in words


def test_approaches_are_shown_beside_baselines():
    rows = [make_row("conv3d", 61.5), make_row("one frame", 15.0), make_row("swin3d_t", 20.25)]
    results = {
        "rows": rows,
        "baselines": {"the most frequent class": 15.0, "a linear model": 43.75},
    }
    words = check(charts.draw_approaches(results))
    assert "61.5" in words and "swin3d t" in words and "43.8" in words
    assert "one frame" not in words


def test_curves_over_clips_per_class_end_in_their_names():
    curves = {
        name: [make_row(name, top1 + step) for step in (0, 10, 20, 30)]
        for name, top1 in (("frozen", 35), ("conv3d", 24))
    }
    words = check(charts.draw_clips_per_class(curves, [25.9, 34.8, 34.8, 42.9], 57))
    assert "frozen 65.0" in words and "linear model 42.9" in words and "all (57)" in words


def test_labels_do_not_overlap():
    spread = charts._spread([60.0, 40.0, 61.0, 62.0], 4)
    assert spread == [60.0, 40.0, 64.0, 68.0]


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


# --- `make docs` finds what is wrong ----------------------------------------------------------


@pytest.fixture
def page(tmp_path):
    """Writes a page; returns its path."""

    def write(text):
        (tmp_path / "page.md").write_text(text)
        return tmp_path / "page.md"

    return write


@pytest.mark.parametrize(
    "text, problem",
    [
        ("[a](none.md)", "none.md"),
        ("# A title\n[a](#a-title) [b](page.md#other)", "page.md#other"),
        ('<source srcset="none.webp">', "none.webp"),
        ("`train.py`, `history.csv` and `docs/none.py`", "docs/none.py"),
        ("<!-- [a](none.md) --> [a](https://example.org) [b](page.md)", None),
    ],
)
def test_links_that_lead_nowhere_are_found(page, text, problem):
    found = docs_check.check_links(page(text))
    assert [each.split(": ")[1] for each in found] == ([problem] if problem else [])


@pytest.mark.parametrize(
    "text",
    [
        '<img src="a" width="9" alt="A bar.">',
        '<img src="a" width="9">',
        f'<img src="a" alt="{"long " * 20}">',
    ],
)
def test_pictures_without_words_are_found(page, text):
    assert len(docs_check.check_alt_texts(page(text))) == 1
    assert docs_check.check_alt_texts(page(f'<img width="9" alt="{"long " * 20}">')) == []


def test_a_long_page_is_found(page):
    assert docs_check.check_length(page("word " * 2000 + "```\nmore\n```")) == []
    assert docs_check.check_length(page("word " * (docs_check.MAX_WORDS + 1))) != []


def test_old_and_foreign_and_large_pictures_are_found(tmp_path, monkeypatch):
    (tmp_path / "shapes.svg").write_text((DOCS / "shapes.svg").read_text().replace("18", "19"))
    shapes = {"shapes.svg": draw_pictures.PICTURES["shapes.svg"]}
    monkeypatch.setattr(docs_check, "PICTURES", shapes)
    assert docs_check.check_picture(tmp_path / "shapes.svg") == []
    assert len(docs_check.check_drawn(tmp_path)) == 1 and docs_check.check_drawn(DOCS) == []
    (tmp_path / "other.webp").write_bytes(bytes(draw_pictures.MAX_BYTES))
    found = " ".join(docs_check.check_picture(tmp_path / "other.webp"))
    assert "1000000 bytes" in found and "does not draw it" in found
    assert "not 830 wide" in check_svg((DOCS / "shapes.svg").read_text().replace("830", "900"))


def test_an_old_schema_is_found(tmp_path, monkeypatch, capsys):
    path = tmp_path / "schema.json"
    path.write_text("{}")
    assert "run `python config.py`" in docs_check.check_schema(path)[0]
    monkeypatch.setattr(config, "SCHEMA_FILE", path)
    assert config.main() == 0 and docs_check.check_schema(path) == []


def test_an_old_notebook_is_found(tmp_path):
    """The command that the check names writes it anew."""
    script = tmp_path / "walkthrough.py"
    for suffix in (".py", ".ipynb"):
        text = (PROJECT / "walkthrough").with_suffix(suffix).read_text()
        script.with_suffix(suffix).write_text(text)
    assert docs_check.check_notebook(script) == []
    script.write_text(script.read_text().replace("Moving Right", "Moving Up"))
    (problem,) = docs_check.check_notebook(script)
    command = re.search(r"`(jupytext .*)`", problem)[1].split()
    assert jupytext_command([*command[1:-1], str(script)]) == 0
    assert docs_check.check_notebook(script) == []


def test_figures_that_are_not_those_of_the_results_are_found(page, tmp_path, monkeypatch):
    monkeypatch.setattr(docs_check, "RESULTS", tmp_path)
    contents = json.dumps(
        {
            "baselines": {"linear": 17.5},
            "rows": [
                {"top1": 62.14, "top1_interval": [52.9, 70.58]},
                {"top1": 40.0, "top1_interval": [30.0, 50.0]},
            ],
        }
    )
    for name in ("mine", "approaches_lips8", "few_clips_parts"):
        (tmp_path / f"{name}.json").write_text(contents)
    for shown, is_right in (
        ("62.1 (52.9 to 70.6)", True),
        ("62.1 and 40.0", True),
        ("62.1 (50.0 to 70.6)", False),
        ("61.2", False),
    ):
        found = docs_check.check_figures(page(f"| words | `mine.md` | 17.9 | {shown} |"))
        assert bool(found) != is_right, shown
    tags = (
        '<img src="approaches.svg" width="9" alt="conv3d {}, linear 17.5"> '
        '<img src="remedies.svg" width="9" alt="40.0">'
    )
    assert docs_check.check_charts(page(tags.format("62.1"))) == []
    assert len(docs_check.check_charts(page(tags.format("62.2")))) == 1

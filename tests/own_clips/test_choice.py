"""The choice of networks and sampling by cross-validation within the training clips."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import CLASSES, write_clip
from own_folders import write_class_folders
from runs import read_csv

import demo_data
import train
from clips.annotations import read_annotations
from clips.packs import open_folder
from config import FITTED_MODELS, MAP_MODELS
from networks.ridge import KernelRidge
from own_clips import choice, recipes, short_trainings
from own_clips import frame_maps as maps_of_frames
from own_clips.choice import Variant, averages, choose_by_cross_validation, format_variants
from own_clips.recipes import PRETRAINED, fits, networks_to_compare, recipe_file, recipe_of
from own_clips.short_trainings import COMPARED
from own_clips.survey import ClipStats, survey
from system.config_file import load_config

pytestmark = pytest.mark.usefixtures("blank_pictures")

PROJECT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six clips of each of three classes, by three people, as annotations."""
    folder = tmp_path_factory.mktemp("choice")
    root = write_class_folders(folder / "clips")
    rows = [f"{path.relative_to(root)};{path.parent.name}" for path in sorted(root.glob("*/*"))]
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return read_annotations(folder / "train.csv", root, CLASSES)


@pytest.fixture
def very_short(monkeypatch):
    monkeypatch.setattr(choice, "STEPS", 2)
    monkeypatch.setattr(choice, "LONG_STEPS", 3)


def configs(*samplings):
    """The recipe, with clips of 4 frames."""
    keys = ["clip_size=2", "step_size=1", "nclips=1", "step_jitter=0"]
    return [load_config(PRETRAINED, [*keys, f"sampling={sampling}"]) for sampling in samplings]


def validated(clips, members, *samplings):
    return choose_by_cross_validation(clips, configs(*samplings), members, 0)


def record_trials(patch) -> list[tuple]:
    """Return a list to which each short training adds its steps, its network and its variant."""
    done, run = [], choice.Trials.run

    def recorded(self, todo, num_steps, progress):
        variants = run(self, todo, num_steps, progress)
        done.extend((num_steps, *pair) for pair in zip(todo, variants, strict=True))
        return variants

    patch.setattr(choice.Trials, "run", recorded)
    return done


@pytest.fixture(scope="module")
def conv3d_or_linear(clips):
    """What is chosen of two networks on both samplings, and their trainings in order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "STEPS", 2)
        patch.setattr(choice, "LONG_STEPS", 3)
        done = record_trials(patch)
        return validated(clips, ["conv3d", "linear"], "window", "segments"), done


def test_every_clip_is_scored_by_networks_that_were_not_trained_on_it(conv3d_or_linear):
    found, _ = conv3d_or_linear
    names = [variant.name for variant in found.variants]
    # A linear model on both samplings, conv3d on the better one, and their mean.
    assert len(names) == len(set(names)) == 4
    for variant in found.variants:
        assert variant.log_probabilities.shape == (18, 3)
        torch.testing.assert_close(
            variant.log_probabilities.exp().sum(1), torch.ones(18, dtype=torch.float64)
        )
    assert [variant.rank for variant in found.variants] == sorted(
        variant.rank for variant in found.variants
    )
    lines = format_variants(found)
    assert lines[0].endswith(": the best") and len(lines) == 4
    assert all(" points less" in line for line in lines[1:])
    many = format_variants(found._replace(variants=2 * found.variants))
    assert (len(many), many[-1]) == (6, "and 3 more, not shown")


@pytest.mark.slow
def test_the_choice_is_the_same_again(clips, very_short, conv3d_or_linear):
    found, _ = conv3d_or_linear
    again = validated(clips, ["conv3d", "linear"], "window", "segments")
    assert [variant.rank for variant in again.variants] == [
        variant.rank for variant in found.variants
    ]


@pytest.mark.slow
def test_networks_on_maps_are_tried_with_and_without_the_mean_map(clips, very_short):
    found = validated(clips, ["eco", "kernel_ridge"], "segments")
    assert len(found.variants) == 6  # each of the two, and their mean
    for keys in (variant.keys for variant in found.variants):  # a config takes them
        given = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
        load_config(PRETRAINED, ["step_jitter=0", *given])
    assert sorted(variant.keys["center_features"] for variant in found.variants) == 3 * [
        False
    ] + 3 * [True]


def test_conv3d_is_trained_once_and_for_longer_with_the_sampling_that_is_best_for_others(
    conv3d_or_linear,
):
    found, done = conv3d_or_linear
    *others, (num_steps, trial, longer) = done
    assert [(steps, each.member, each.config.sampling) for steps, each, _ in others] == [
        (2, "linear", "window"),
        (2, "linear", "segments"),
    ]
    _, best, _ = min(others, key=lambda each: each[2].rank)
    assert (num_steps, trial.member, trial.config) == (3, "conv3d", best.config)
    assert any(variant is longer for variant in found.variants)


@pytest.mark.slow
def test_the_best_of_each_trained_network_is_trained_for_longer(clips, very_short, monkeypatch):
    done = record_trials(monkeypatch)
    found = validated(clips, ["eco", "linear"], "window", "segments")
    *short, (num_steps, trial, longer) = done
    trained = [each for each in short if each[1].member == "eco"]
    _, best, shorter = min(trained, key=lambda each: each[2].rank)
    assert (num_steps, trial, len(short)) == (3, best, 6)
    assert any(variant is longer for variant in found.variants)
    assert not any(variant is shorter for variant in found.variants)


@pytest.mark.slow
def test_more_windows_than_a_kernel_model_keeps_are_sampled(clips, very_short, monkeypatch):
    monkeypatch.setattr(short_trainings, "MAX_WINDOWS", 7)  # of 12 training clips
    sizes = []
    fit = KernelRidge.fit
    monkeypatch.setattr(
        KernelRidge, "fit", lambda self, *data: sizes.append(len(data[0])) or fit(self, *data)
    )
    validated(clips, ["kernel_ridge"], "segments")
    assert set(sizes) == {7}


def test_folds_keep_groups_together(clips):
    groups = np.array([clip_id.split("/")[1][:2] for clip_id in clips.ids])
    folds = choice.folds_of(clips.labels, groups, 0)
    assert len(folds) == 3
    for train_part, test in folds:
        assert not set(groups[train_part]) & set(groups[test])
    for single in (None, np.full(18, "anna")):
        folds = choice.folds_of(clips.labels, single, 0)
        assert [len(train_part) for train_part, _ in folds] == [12, 12, 12]
        tests = [test.tolist() for _, test in folds]  # in order within each class
        for label in set(clips.labels.tolist()):
            (own,) = np.where(clips.labels == label)
            assert [place for test in tests for place in test if place in own] == own.tolist()
    (two, _) = choice.folds_of(np.array([0, 0, 0, 1, 1, 1]), np.array(list("aabbbb")), 0)
    assert all(map(len, two))


def variant(name, right, sure=0.9, sampling="window", **keys):
    """One of two classes; right: of each clip."""
    labels = torch.arange(len(right)) % 2
    own = torch.where(torch.tensor(right), sure, 1 - sure).double()
    chances = torch.stack([own, 1 - own], 1)
    chances = torch.where(labels[:, None] == 0, chances, chances.flip(1))
    return Variant(name, {"model": name, "sampling": sampling} | keys, chances.log(), labels)


def test_means_are_of_the_same_clips_and_maps():
    eco = [
        variant("eco", [True, False, False, False], center_features=True),
        variant("eco", [True, True, True, False], 0.6, center_features=False),
    ]
    conv3d = variant("conv3d", [False, False, True, True], 0.55)
    whole = variant("linear", [False, False, True, True], sampling="segments")
    both = averages([*eco, conv3d, whole])
    assert [each.keys for each in both] == [
        {
            "model": "average",
            "members": ["eco", "conv3d"],
            "sampling": "window",
            "center_features": is_centered,
        }
        for is_centered in (False, True)
    ]
    torch.testing.assert_close(
        both[0].log_probabilities.exp(),
        (eco[1].log_probabilities.exp() + conv3d.log_probabilities.exp()) / 2,
    )


def test_the_table_has_the_best_and_each_network():
    best = [variant(f"average {number}", [True] * 4) for number in range(6)]
    for each in best:
        each.keys["model"] = "average"
    alone = [variant("eco", [True] * 3 + [False]), variant("linear", [False] * 4)]
    lines = format_variants(choice.CrossValidation([*best, *alone, alone[0]], None))
    assert [line.split("%  ")[-1].split(":")[0] for line in lines] == [
        *(f"average {number}" for number in range(5)),
        "eco",
        "linear",
        "and 2 more, not shown",
    ]


@pytest.mark.parametrize(
    "least, per_class, most, size", [(9, 2, 15, 3), (3, 4, 15, 4), (3, 9, 15, 5)]
)
def test_only_a_sample_of_many_clips_is_used(clips, monkeypatch, least, per_class, most, size):
    monkeypatch.setattr(choice, "MIN_SAMPLE", least)
    monkeypatch.setattr(choice, "CLIPS_PER_CLASS", per_class)
    monkeypatch.setattr(choice, "MAX_SAMPLE", most)
    chosen = choice.some_clips(clips, 0)
    assert len(set(chosen.tolist())) == len(chosen)
    assert np.bincount(clips.labels[chosen]).tolist() == [size] * 3


@pytest.mark.parametrize("num_chosen, num_frames", [(1, 8), (3, 6), (6, 4), (18, 4)])
def test_few_clips_have_more_frames_each(clips, monkeypatch, num_chosen, num_frames):
    monkeypatch.setattr(maps_of_frames, "MIN_FRAMES", 4)
    monkeypatch.setattr(maps_of_frames, "MAX_FRAMES", 20)
    short = short_trainings.short_config(configs("window")[0])
    network = short_trainings.feature_network(short, 3)
    maps = maps_of_frames.frame_maps(clips, range(num_chosen), network, short, 18)
    assert {len(features) for features in maps.features} == {num_frames}
    assert set(maps.lengths) == {8}


@pytest.mark.parametrize(
    "chosen, has, has_not",
    [
        ({"model": "eco"}, ["pretrained", "freeze"], ["block_widths"]),
        ({"model": "conv3d"}, ["block_widths"], ["pretrained", "backbone"]),
        ({"model": "linear"}, ["lr"], ["block_widths", "pretrained"]),
        ({"model": "average", "members": ["eco", "conv3d"]}, ["block_widths", "pretrained"], []),
        ({"model": "average", "members": ["conv3d", "linear"]}, ["block_widths"], ["pretrained"]),
    ],
)
def test_each_choice_has_a_recipe_that_loads(chosen, has, has_not, tmp_path):
    keys = recipe_of(chosen) | chosen | {"model_name": "a"}
    assert set(has) <= set(keys) and not set(has_not) & set(keys)
    (tmp_path / "config.json").write_text(json.dumps(keys))
    assert load_config(tmp_path / "config.json", []).model == chosen["model"]


@pytest.mark.parametrize(
    "clips_per_class, num_classes, given, networks",
    [
        (6, 2, {}, COMPARED),
        (5, 2, {}, ["eco"]),  # too few clips for more
        (5, 8, {}, COMPARED),  # three folds of 40 clips
        (3, 13, {}, ["eco"]),
        (2, 30, {}, []),
        (6, 2, {"model": "conv3d"}, []),
        (6, 2, {"model": "kernel_ridge"}, ["kernel_ridge"]),
    ],
)
def test_which_networks_are_compared(clips_per_class, num_classes, given, networks):
    labels = np.repeat(range(num_classes), clips_per_class)
    compared, samplings = networks_to_compare(labels, given, False)
    assert compared == networks and len(samplings) == {0: 0, 1: 1}.get(len(networks), 2)
    if "model" not in given and networks:
        assert networks_to_compare(labels, given, True) == (["eco"], ["window"])
        whole = {"sampling": "segments"}
        assert networks_to_compare(labels, whole, True) == (["eco"], ["segments"])


def test_the_recipe_is_that_of_the_network():
    assert recipe_file({}) == PRETRAINED
    assert recipe_file({"model": "conv3d"}).name == "few_clips.json"


def data_flags(root, tmp_path, *flags):
    keys = {"num_epochs": 1, "feature_versions": 1, "num_workers": 0, "crop_size": 32}
    keys |= {"baseline_clips": 0, "picture_baseline_clips": 0, "time_probe_clips": 0}
    keys |= {"output_dir": str(tmp_path / "runs"), "frame_height": 32}
    overrides = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    return ["--data", str(root), "-g", "cpu", *overrides, *flags]


@pytest.mark.slow
def test_the_chosen_keys_are_in_the_config(tmp_path, capfd, very_short):
    root = write_class_folders(tmp_path / "clips", 9)
    assert train.main(data_flags(root, tmp_path)) == 0
    output = capfd.readouterr().out
    assert "cross-validation within 2" in output and ": the best" in output
    keys = json.loads((tmp_path / "runs" / "clips" / "config.json").read_text())
    best = next(line for line in output.splitlines() if line.endswith(": the best"))
    assert ("whole clips" in best) == (keys["sampling"] == "segments")
    is_on_maps = any(name in best for name in MAP_MODELS)
    assert is_on_maps == ("pretrained" in keys)


def test_quick_takes_the_usual_network(tmp_path, capfd, very_short):
    """And looks only whether it needs the mean map."""
    root = write_class_folders(tmp_path / "clips")
    assert train.main(data_flags(root, tmp_path, "--quick")) == 0
    output = capfd.readouterr().out
    assert output.count(" on windows") == 2
    keys = json.loads((tmp_path / "runs" / "clips" / "config.json").read_text())
    assert keys["nviews"] == 1
    assert keys["model"] == "eco" and keys["freeze"] is True
    assert keys["center_features"] == ("eco without the mean map, on windows: the best" in output)
    assert train.main(["--quick", "--config", "configs/config.json"]) == 2
    assert "--quick: needs --data" in capfd.readouterr().err


def test_what_is_given_is_not_compared(tmp_path, capfd):
    root = write_class_folders(tmp_path / "clips")
    flags = data_flags(root, tmp_path, "--quick", "--set", "center_features=false")
    assert train.main(flags) == 0
    assert "cross-validation" not in capfd.readouterr().out
    keys = json.loads((tmp_path / "runs" / "clips" / "config.json").read_text())
    assert keys["model"] == "eco" and keys["center_features"] is False


@pytest.mark.parametrize(
    "given, fitting",
    [
        ({"lr": 0.1}, ["eco", "conv3d", "linear", "eco + conv3d"]),
        ({"feature_versions": 2}, ["eco", "eco + conv3d"]),
        ({"block_widths": [8]}, ["conv3d", "eco + conv3d"]),
        ({"freeze": True, "dropout": 0.1}, ["eco", "eco + conv3d"]),
    ],
)
def test_what_the_user_sets_applies_to_the_choice(given, fitting):
    both = {"model": "average", "members": ["eco", "conv3d"]}
    variants = {name: {"model": name} for name in ("eco", "conv3d", "linear")}
    variants["eco + conv3d"] = both
    assert [name for name, keys in variants.items() if fits(keys, given, {})] == fitting


@pytest.mark.parametrize("source", [None, "own.pth.tar"])
def test_with_other_weights_than_of_a_backbone_there_is_no_choice(source):
    labels = np.repeat([0, 1], 6)
    assert networks_to_compare(labels, {"pretrained": source}, False) == ([], [])
    for known in ("imagenet", "ResNet18_Weights.IMAGENET1K_V1"):
        assert networks_to_compare(labels, {"pretrained": known}, False)[0] == COMPARED


def chosen_with(monkeypatch, **given) -> tuple:
    """The keys that are chosen, and the samplings, members and center_features that are tried.

    The best variants are those that are fitted in closed form.
    """
    tried = []

    def choose(annotations, configs, members, seed, centered):
        tried.extend(([each.sampling for each in configs], members, centered))
        for config in configs:
            short_trainings.short_config(config)  # is valid
        found = choice.all_keys(members, [each.sampling for each in configs])
        found.sort(key=lambda keys: not {*choice.networks_of(keys)} <= {*FITTED_MODELS})
        labels = torch.zeros(2, dtype=torch.long)
        variants = [Variant("", keys, torch.zeros(2, 2).double(), labels) for keys in found]
        return choice.CrossValidation(variants, None)

    monkeypatch.setattr(recipes, "choose_by_cross_validation", choose)
    monkeypatch.setattr(recipes, "print_choice", lambda *_: None)
    stats = ClipStats(
        np.full(9, 60), np.full(9, 25.0), np.tile((144, 180), (9, 1)), np.full(9, 0.5), {}, None
    )
    config = load_config(PRETRAINED, [f"{key}={json.dumps(given[key])}" for key in given])
    chosen = recipes.cross_validated_keys(range(100), stats, config, given, "cpu")
    return chosen, *tried


@pytest.mark.parametrize(
    "given, samplings, left_out, centered",
    [
        ({}, ["window", "segments"], [], [False, True]),
        ({"freeze": False, "feature_versions": 0}, ["window", "segments"], ["kernel_ridge"], None),
        ({"freeze": 2, "feature_versions": 0}, ["window", "segments"], ["kernel_ridge"], None),
        ({"step_jitter": 0.3}, ["window"], [], [False, True]),
        ({"sampling": "segments", "step_jitter": 0}, ["segments"], [], [False, True]),
        ({"center_features": True}, ["window", "segments"], [], [True]),
        ({"center_features": False}, ["window", "segments"], [], [False]),
    ],
)
def test_only_what_a_config_takes_is_tried(monkeypatch, given, samplings, left_out, centered):
    chosen, *tried = chosen_with(monkeypatch, **given)
    assert tried[:2] == [samplings, [each for each in COMPARED if each not in left_out]]
    assert [each["center_features"] for each in tried[2]] == (centered or [False, True])
    assert chosen.items() >= {key: given[key] for key in chosen.keys() & given.keys()}.items()


def test_a_warm_up_of_several_epochs_excludes_what_is_fitted_in_one(monkeypatch):
    chosen, *_ = chosen_with(monkeypatch, warmup_epochs=2)
    assert not {*choice.networks_of(chosen)} <= {*FITTED_MODELS}


def test_keys_that_exclude_each_other_end_the_choice(monkeypatch):
    """100 clips have batches of 8; the config then says what is wrong."""
    assert chosen_with(monkeypatch, accumulate_steps=8) == ({},)


def movement(direction, num_frames, rng) -> np.ndarray:
    """A bright square that moves right along the top, or down on the left. uint8 [T, H, W, 3]."""
    frames = rng.integers(0, 60, (num_frames, 48, 64, 3), np.uint8)
    start, speed = rng.integers(4, 16), rng.uniform(1, 28 / num_frames)
    for position, frame in enumerate(frames):
        shown = frame if direction == "right" else frame.swapaxes(0, 1)
        place = start + int(speed * position)
        shown[4:14, place : place + 10] = 230
    return frames


def two_movements(directions, rng) -> np.ndarray:
    """One after the other, early and late in 12 to 40 frames, in most of which nothing moves."""
    num_frames = rng.integers(12, 40, endpoint=True)
    frames = rng.integers(0, 60, (num_frames, 48, 64, 3), np.uint8)
    for direction, earliest in zip(directions, (0.15, 0.65), strict=True):
        start = round(rng.uniform(earliest, earliest + 0.08) * num_frames)
        shown = movement(direction, max(2, round(0.12 * num_frames)), rng)
        frames[start : start + len(shown)] = shown
    return frames


@pytest.mark.slow
def test_clips_that_are_one_event_are_seen_whole(tmp_path, monkeypatch):
    """Right, then down, or down, then right: windows of 6 frames show one of the two, or none."""
    rng, rows = np.random.default_rng(0), []
    orders = {"Left": ("right", "down"), "Right": ("down", "right")}
    for label, number in itertools.product(orders, range(24)):
        rows.append(f"{label}_{number};{label}")
        write_clip(tmp_path / "clips" / f"{label}_{number}", two_movements(orders[label], rng))
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    clips = read_annotations(tmp_path / "train.csv", tmp_path / "clips", [*orders])
    given, found = {"clip_size": 6, "step_size": 1}, []
    config = load_config(PRETRAINED, [f"{key}={value}" for key, value in given.items()])
    stats = survey(open_folder(str(tmp_path / "clips")), list(clips.ids), config)
    monkeypatch.setattr(recipes, "COMPARED", ["eco", "kernel_ridge", "linear"])
    monkeypatch.setattr(recipes, "print_choice", lambda validated, _: found.append(validated))
    chosen = recipes.cross_validated_keys(clips, stats, config, given, "cpu")
    assert chosen["sampling"] == "segments"
    best = {}
    for each in found[0].variants:
        best.setdefault(each.keys["sampling"], each.right.mean())
    assert best["window"] < best["segments"] - 0.2  # 63 and 100 % when this was written


def test_stages_that_do_not_exist_are_refused_before_the_choice(tmp_path, capfd):
    root = write_class_folders(tmp_path / "clips", 9)
    flags = data_flags(root, tmp_path, "--set", "freeze=99", "--set", "feature_versions=0")
    assert train.main(flags) == 2
    shown = capfd.readouterr()
    assert "freeze: found 99" in shown.err and "cross-validation" not in shown.out


def validation_top1(root, tmp_path, *flags) -> float:
    """After the last epoch of `--quick`."""
    command = ["--data", str(root), "--quick", "-g", "cpu", *flags]
    for key in ("baseline_clips=0", "picture_baseline_clips=0", f"output_dir={tmp_path / 'runs'}"):
        command += ["--set", key]
    assert train.main(command) == 0
    return float(read_csv(tmp_path / "runs" / "clips" / "history.csv")[-1]["val_top1"])


@pytest.mark.slow
def test_quick_tells_a_movement_from_its_reverse(tmp_path):
    """From eight clips of each, all with other hands before other walls."""
    rng, root = np.random.default_rng(0), tmp_path / "clips"
    for part, count in (("train", 8), ("validation", 20)):
        for name, number in itertools.product(("Moving Left", "Moving Right"), range(count)):
            write_clip(root / part / name / str(number), demo_data.draw_clip(name, rng))
    # With `center_features=false`, it is at chance.
    assert validation_top1(root, tmp_path) > 80


@pytest.mark.slow
def test_quick_tells_what_only_pictures_show(tmp_path):
    """A disc or a cross on the wall, before which the same movement is made."""
    rng, root = np.random.default_rng(0), tmp_path / "clips"
    for part, count in (("train", 8), ("validation", 20)):
        for name, number in itertools.product(("cross", "disc"), range(count)):
            clip = demo_data.draw_clip("Moving Left", rng)
            for frame in clip:
                if name == "disc":
                    cv2.circle(frame, (30, 30), 20, (255, 255, 255), -1)
                else:
                    cv2.drawMarker(frame, (30, 30), (255, 255, 255), cv2.MARKER_CROSS, 40, 8)
            write_clip(root / part / name / str(number), clip)
    # With `center_features=true`, it is at chance.
    assert validation_top1(root, tmp_path) > 80


@pytest.mark.slow
def test_the_main_process_chooses_for_two(tmp_path):
    root = write_class_folders(tmp_path / "clips", 9)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    ended = subprocess.run(
        [sys.executable, *command, *data_flags(root, tmp_path)],
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(": the best") == 1 and "training is over" in ended.stdout

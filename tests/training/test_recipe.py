"""The switches of the recipe: what each does, and that a run with it resumes bit for bit."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, make_config, slow_except, write_clip
from runs import differences, make_settings, run_folder, train_until, write_config

import train
from clips.annotations import read_annotations
from clips.batches import ClipKey
from clips.sampling import sample_window
from clips.transforms import REST, STEPS_PER_PIXEL, mask_frames, optical_flow
from config import Config
from data_loader import VideoFolder
from system.config_file import load_config
from system.errors import UserError
from training.averaging import AverageOfWeights
from training.checkpoint import load_checkpoint, with_averaged_weights
from training.mixing import mix_batch
from training.optimization import training_is_over

CONFIGS = Path(train.__file__).parent / "configs"
SWITCHES = {  # those that do not meet are switched on together, since each run takes seconds
    "adamw, smoothing and ema": {
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "label_smoothing": 0.1,
        "ema_decay": 0.9,
    },
    "sgd and crops": {"optimizer": "sgd", "lr": 0.01, "nclips": 2, "ncrops": 3},
    "cutmix and mixup": {"mixup_alpha": 0.4, "cutmix_alpha": 1.0},
    "augmentations": {
        "affine_scale": 0.2,
        "affine_shear": 8.0,
        "horizontal_flip": 0.5,
        "flip_labels": {"Left": "Right"},
        "colour_jitter": 0.3,
        "random_erasing": 0.5,
        "step_jitter": 0.4,
        "time_masking": 0.4,
    },
    "early stopping": {"early_stopping_epochs": 1, "num_epochs": 4},
}
pytestmark = pytest.mark.usefixtures("blank_pictures")


def check_that_it_resumes(tmp_path, settings):
    """Trains once in one go, once with a death in between, bit for bit alike; and evaluates."""
    resumed = settings | {"output_dir": str(tmp_path / "resumed")}
    whole, cut = (
        write_config(tmp_path / f"{number}.json", keys)
        for number, keys in enumerate((settings, resumed))
    )
    assert train.main(["-c", whole, "-g", "cpu"]) == 0
    train_until(["-c", cut, "-g", "cpu"], epoch=1, step=1)
    assert train.main(["-c", cut, "-g", "cpu", "--resume", "True"]) == 0
    assert differences(run_folder(resumed), run_folder(settings)) == []
    assert train.main(["-c", whole, "-g", "cpu", "--resume", "True", "--eval_only", "True"]) == 0


@pytest.mark.parametrize("name", slow_except(SWITCHES, [*SWITCHES][:2]))
def test_each_switch_trains_and_resumes_exactly(tmp_path, name):
    settings = make_settings(tmp_path, **SWITCHES[name])
    check_that_it_resumes(tmp_path, settings)


# --- what they do ------------------------------------------------------------------------------


def test_the_average_of_weights_is_the_mean_it_says():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = AverageOfWeights(model, decay=0.5)
    expected = model[0].weight.detach().clone()
    for step in range(1, 20):
        with torch.no_grad():
            model[0].weight += 1
        model(torch.randn(4, 2))
        average.update_parameters(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(average.module[0].weight, expected)
    assert average.module[1].num_batches_tracked == 19


def test_the_average_is_what_is_evaluated_and_saved_beside_the_weights(tmp_path, capsys):
    settings = make_settings(tmp_path, ema_decay=0.9)
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-g", "cpu"]) == 0
    path = run_folder(settings) / "checkpoint.pth.tar"
    saved = load_checkpoint(path)
    averages, weights = saved["state_dict_ema"], saved["state_dict"]
    assert averages.keys() == weights.keys()
    assert not torch.equal(averages["classifier.weight"], weights["classifier.weight"])
    assert with_averaged_weights(saved)["state_dict"] is averages
    capsys.readouterr()
    # A config that does not ask for it evaluates the average all the same.
    for keys in (settings, settings | {"ema_decay": 0.0}):
        write_config(tmp_path / "config.json", keys)
        assert train.main(["-c", config, "-r", "True", "-e", "True", "-g", "cpu"]) == 0
        (loss,) = re.findall(r"^loss (\S+)", capsys.readouterr().out, re.MULTILINE)
        assert float(loss) == pytest.approx(saved["history"][-1]["val_loss"], abs=1e-4)


@pytest.mark.parametrize("keys", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_clips_are_mixed_as_their_labels_are(keys):
    torch.manual_seed(0)
    clips = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 2, 20, 20).clone()
    labels = torch.arange(4)
    results, targets = mix_batch(clips, labels, 4, make_config(**keys))
    assert targets.shape == (4, 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    torch.testing.assert_close(results.mean(dim=(1, 2, 3, 4)), targets @ torch.arange(4.0))
    assert (results[:, :, 0] == results[:, :, 1]).all()  # one box for all frames
    assert not torch.equal(results, clips)


def test_without_mixing_nothing_is_touched():
    clips, labels = torch.rand(2, 3, 2, 4, 4), torch.tensor([0, 1])
    assert mix_batch(clips, labels, 2, make_config()) == (clips, labels)


def test_a_mirrored_clip_has_the_label_of_its_mirror(data_set):
    keys = {"horizontal_flip": 1.0, "flip_labels": {"Left": "Right"}, "affine_degrees": 0.0}
    keys |= {"affine_translate": 0.0, "frame_height": 24, "crop_size": 20, "clip_size": 4}
    config = make_config(**data_set | keys)
    plain = config.model_copy(update={"horizontal_flip": 0.0})
    annotations = read_annotations(config.train_data_csv, config.train_data_folder, CLASSES)
    clip_keys = [ClipKey(0, index) for index in range(6)]
    mirrored, original = (
        VideoFolder(annotations, c, training=True).__getitems__(clip_keys) for c in (config, plain)
    )
    assert original.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert mirrored.labels.tolist() == [1, 0, 2, 1, 0, 2]
    assert torch.equal(mirrored.clips, original.clips.flip(4))


def test_names_of_no_class_cannot_be_flipped(data_set):
    config = make_config(**data_set | {"horizontal_flip": 0.5, "flip_labels": {"Left": "Rihgt"}})
    annotations = read_annotations(config.train_data_csv, config.train_data_folder, CLASSES)
    twice = data_set | {"horizontal_flip": 0.5, "flip_labels": {"Left": "Right", "Right": "Still"}}
    with pytest.raises(UserError, match="flip_labels: Left is in two pairs"):
        VideoFolder(annotations, make_config(**twice), training=True)
    with pytest.raises(UserError, match="flip_labels: Rihgt"):
        VideoFolder(annotations, config, training=True)


def test_time_masking_replaces_a_run_of_frames_by_their_mean():
    rng, lengths, starts = np.random.default_rng(0), set(), set()
    for _ in range(200):
        clip = rng.integers(0, 255, (10, 4, 4, 3), np.uint8)
        masked = clip.copy()
        mask_frames(masked, 0.4, rng)
        changed = np.flatnonzero((masked != clip).any((1, 2, 3)))
        assert (np.diff(changed) == 1).all()
        assert (masked[changed] == clip.mean(0).astype(np.uint8)).all()
        lengths.add(len(changed))
        starts.update(changed[:1])
    assert lengths == {0, 1, 2, 3, 4} and starts == set(range(10))


def test_step_jitter_changes_the_pace_and_keeps_the_order():
    rng = np.random.default_rng(0)
    spans = {int(np.ptp(sample_window(60, 8, 2 * rng.uniform(0.5, 1.5), rng))) for _ in range(100)}
    assert min(spans) == 7 and max(spans) == 21
    assert (np.diff(sample_window(60, 8, 1.3, rng)) >= 1).all()


def test_early_stopping_waits_for_its_epochs():
    config = make_config(early_stopping_epochs=2, schedule="constant", num_epochs=9)
    assert training_is_over(config, 3, [3.0, 2.0, 2.5]) is None
    assert "has not fallen for 2 epochs" in training_is_over(config, 4, [3.0, 2.0, 2.5, 2.0])
    assert training_is_over(config, 4, [3.0, 2.0, 2.5, 1.9]) is None
    endless = make_config(early_stopping_epochs=2, schedule="constant", num_epochs=1000)
    assert training_is_over(endless, 392, [0.5]) is None  # after a published checkpoint


def test_flow_is_the_movement_of_the_pixels():
    rng = np.random.default_rng(1)
    noise = np.repeat(rng.integers(0, 255, (12, 12, 1), np.uint8), 3, axis=2)
    picture = np.kron(noise, np.ones((7, 7, 1), np.uint8))
    clip = np.stack([np.roll(picture, (2 * t, -3 * t), axis=(0, 1)) for t in range(3)])
    flow = optical_flow(clip)
    assert flow.shape == (3, 84, 84, 2) and flow.dtype == np.uint8
    inner = flow[:2, 20:-20, 20:-20].astype(float) - REST
    assert np.median(inner[..., 0]) / STEPS_PER_PIXEL == pytest.approx(-3, abs=0.2)
    assert np.median(inner[..., 1]) / STEPS_PER_PIXEL == pytest.approx(2, abs=0.2)
    assert (flow[2] == REST).all()


def test_flow_is_that_of_the_augmented_frames(tmp_path):
    """A mirrored clip's flow points the other way: frames and flow move together."""
    frames = [np.zeros((48, 64, 3), np.uint8) for _ in range(4)]
    rng = np.random.default_rng(0)
    texture = np.repeat(rng.integers(60, 255, (16, 16, 1), np.uint8), 3, axis=2)
    for number, frame in enumerate(frames):
        frame[16:32, 20 + 2 * number : 36 + 2 * number] = texture
    write_clip(tmp_path / "1", np.stack(frames))
    (tmp_path / "set.csv").write_text("1;Left\n")
    keys = {
        "model": "two_stream",
        "train_data_folder": str(tmp_path),
        "clip_size": 4,
        "train_data_csv": str(tmp_path / "set.csv"),
        "step_size": 1,
        "frame_height": 48,
        "crop_size": 48,
        "affine_degrees": 0.0,
        "affine_translate": 0.0,
    }
    flipped = keys | {"horizontal_flip": 1.0, "flip_labels": "unchanged"}
    annotations = read_annotations(keys["train_data_csv"], keys["train_data_folder"], CLASSES)
    means = []
    for config in (make_config(**keys), make_config(**flipped)):
        batch = VideoFolder(annotations, config, training=True).__getitems__([ClipKey(0, 0)])
        assert batch.clips.shape == (1, 1, 4, 48, 48, 5)
        right = batch.clips[0, 0, :3, 18:30, :, 3].double() - REST
        means.append(right[right.abs() > 8].mean() / STEPS_PER_PIXEL)
    assert means[0] == pytest.approx(2, abs=0.6)
    assert means[1] == pytest.approx(-2, abs=0.6)


# --- what has no meaning -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, problem",
    [
        ({"horizontal_flip": 0.5}, "flip_labels: missing"),
        ({"cutmix_alpha": 1e-30}, "cutmix_alpha: found 1e-30; expected 0, which is off, or at"),
        ({"flip_labels": "unchanged"}, "flip_labels: given, but horizontal_flip is 0"),
        (
            {"horizontal_flip": 0.5, "flip_labels": {"a": "b"}, "mixup_alpha": 0.2},
            "flip_labels: given with mixup_alpha",
        ),
        ({"step_jitter": 0.2, "sampling": "segments"}, "step_jitter: found 0.2"),
        ({"model": "trn", "block_widths": [4]}, "block_widths: found [4]; it applies to"),
        ({"lstm_units": 8}, "lstm_units: found 8; it applies to cnn_lstm, not to conv3d"),
        ({"depth": 50}, "depth: found 50; it applies to csn, not to conv3d"),
        ({"model": "csn", "depth": 18}, "depth: found 18; expected 26, 50, 101 or 152"),
        ({"model": "two_stream", "crop_size": 12}, "optical flow needs at least 16 pixels"),
        ({"model": "two_stream", "clip_size": 1}, "two_stream needs at least two frames"),
        ({"model": "eco", "clip_size": 1, "center_features": True}, "is its own mean"),
        ({"model": "conv_3d"}, 'did you mean "conv3d"?'),
        ({"model": "r2plus1d"}, 'did you mean "r2plus1d_18"?'),
        ({"ncrops": 2}, "ncrops"),
    ],
)
def test_combinations_without_meaning_are_refused(write_config, keys, problem):
    plain = {"block_widths": None, "head_widths": None} if keys.get("model") else {}
    with pytest.raises(UserError) as refused:
        load_config(write_config(**plain | keys))
    assert problem in str(refused.value)


def test_a_run_folders_own_config_loads_again(write_config, settings):
    """It names every key, those of other networks with their defaults."""
    path = write_config(model="trn", block_widths=None, head_widths=None)
    config = load_config(path)
    Path(path).write_text(config.model_dump_json())
    assert load_config(path) == config


# --- the configs that come with it -------------------------------------------------------------


QUICK = ("config", "few_clips")
ALL_CONFIGS = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow])
    for path in sorted(CONFIGS.glob("*.json"))
    if path.stem != "schema"
]


@pytest.mark.parametrize("path", ALL_CONFIGS)
def test_every_config_trains_evaluates_and_resumes(tmp_path, path):
    keys = json.loads(path.read_text())
    settings = make_settings(tmp_path)
    small = {key: settings[key] for key in settings if "data" in key or "csv" in key}
    small |= {
        "batch_size": 8,
        "clip_size": 6,
        "frame_height": 48,
        "crop_size": 40,
        "num_epochs": 2,
        "warmup_epochs": 0.5,
        "num_workers": 0,
        "num_classes": 3,
        "precision": "fp32",
        "output_dir": str(tmp_path / "trainings"),
    }
    if keys.get("model", "conv3d") == "conv3d":
        small |= {"block_widths": [4, 8], "head_widths": [16, 8]}
    if isinstance(keys.get("flip_labels"), dict):
        small |= {"flip_labels": {"Left": "Right"}}
    if "backbone" in keys:
        small |= {"backbone": "mobilenet_v3_small"}
    left_out = ("$schema", "pretrained", "freeze", "feature_versions", "backbone_layer")
    keys = {key: value for key, value in keys.items() if key not in left_out}
    keys = copy.deepcopy(keys) | small
    Config(**keys)
    check_that_it_resumes(tmp_path, keys)

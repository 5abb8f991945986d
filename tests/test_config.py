import json
from pathlib import Path

import pytest

from config import json_schema
from model import build_model
from system.config_file import load_config
from system.errors import UserError

CONFIGS = sorted(Path("configs").glob("*.json"))
SHIPPED = [path for path in CONFIGS if path.name != "schema.json"]
# A config as people have it from this family of trainers.
CIRCULATING = {
    "model_name": "jester_conv",
    "checkpoint": "trainings/jpeg_model/x/checkpoint.pth.tar",
    "train_data_folder": "a",
    "val_data_folder": "a",
    "train_data_csv": "b",
    "val_data_csv": "c",
    "labels_csv": "d",
    "num_workers": 9,
    "output_dir": "trainings/jpeg_model/",
    "num_classes": 27,
    "batch_size": 100,
    "clip_size": 18,
    "nclips": 1,
    "step_size": 2,
    "lr": 0.001,
    "last_lr": 1e-5,
    "momentum": 0.9,
    "weight_decay": 1e-5,
    "num_epochs": -1,
    "print_freq": 100,
}


@pytest.fixture
def write_json(tmp_path):
    def write(values):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(values))
        return path

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load_and_build(path):
    config = load_config(path)
    assert json.loads(path.read_text())["$schema"] == "schema.json"
    build_model(config, config.num_classes or 8)


def test_tutorial_recipe():
    config = load_config("configs/config.json")
    recipe = (
        config.num_classes,
        config.batch_size,
        config.clip_size,
        config.nclips,
        config.step_size,
        config.lr,
        config.last_lr,
        config.momentum,
        config.weight_decay,
        config.num_epochs,
        config.print_freq,
        config.num_workers,
        config.output_dir,
    )
    assert recipe == (
        27,
        100,
        18,
        1,
        2,
        0.001,
        1e-5,
        0.9,
        1e-5,
        -1,
        100,
        9,
        "trainings/jpeg_model/",
    )
    assert config.amsgrad and config.dropout == 0.15
    assert (config.affine_degrees, config.affine_translate) == (10, 0.15)


def test_every_key_is_described():
    assert all(entry.get("description") for entry in json_schema()["properties"].values())


@pytest.mark.parametrize("checkpoint", ["x.pth.tar", None, ""])
def test_circulating_config_loads_unchanged(write_json, checkpoint):
    config = load_config(write_json(CIRCULATING | {"checkpoint": checkpoint}))
    assert config.batch_size == 100 and config.checkpoint == (checkpoint or None)


def test_overrides_win_and_are_checked(write_json):
    path = write_json(CIRCULATING)
    config = load_config(path, ["lr=0.5", "model_name=other", "block_widths=[8, 8]"])
    assert (config.lr, config.model_name, config.block_widths) == (0.5, "other", [8, 8])
    with pytest.raises(UserError, match="lr: found -1; expected greater than 0"):
        load_config(path, ["lr=-1"])


def test_another_model_drops_the_options_of_the_files_own(write_json):
    path = write_json(CIRCULATING | {"block_widths": [8, 8], "dropout": 0.3})
    config = load_config(path, ["model=trn", "lr=0.5"])
    assert (config.model, config.dropout, config.lr) == ("trn", 0.3, 0.5)
    assert load_config(path, ["model=conv3d"]).block_widths == [8, 8]
    with pytest.raises(UserError, match=r"block_widths: .* applies to conv3d, not to trn"):
        load_config(path, ["model=trn", "block_widths=[8]"])


def test_all_errors_are_reported_at_once(write_json):
    wrong = {"batch_sise": 3, "lr": "fast", "num_workers": -1, "clip_size": 2.5, "amsgrad": 1}
    with pytest.raises(UserError) as caught:
        load_config(write_json(CIRCULATING | wrong), sets=["train"])
    lines = str(caught.value).split("\n")
    assert lines[0].endswith("8 problems")
    text = str(caught.value)
    assert 'batch_sise: unknown key (found 3); did you mean "batch_size"?' in text
    for key in (
        "lr",
        "num_workers",
        "clip_size",
        "amsgrad",
        "train_data_folder",
        "train_data_csv",
        "labels_csv",
    ):
        assert any(line.startswith(f"  {key}: ") for line in lines), key


def test_combinations_are_checked_at_once(write_json):
    wrong = {"schedule": "cosine", "last_lr": 1.0, "new_head": True}
    with pytest.raises(UserError) as caught:
        load_config(write_json(CIRCULATING | wrong))
    assert all(key in str(caught.value) for key in ("num_epochs:", "last_lr:", "new_head:"))

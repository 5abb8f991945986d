"""Frozen stages stay as they are in every way of training; others learn at a smaller rate."""

import os
import subprocess
import sys

import pytest
import torch
import torchvision
from conftest import make_config, network_keys, slow_except
from runs import PROJECT, differences, make_settings, run_folder, train_until, write_config
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import StochasticDepth

import train
from config import FITTED_MODELS, MODELS
from model import NETWORKS, build_model
from system.config_file import load_config
from system.errors import UserError
from training.averaging import AverageOfWeights
from training.batchnorm import _norms
from training.checkpoint import load_checkpoint
from training.freezing import freeze_stages, is_frozen, set_to_training
from training.optimization import build_optimizer, set_learning_rate

pytestmark = pytest.mark.usefixtures("blank_pictures")

CPU = torch.device("cpu")
BACKBONE = "mobilenet_v3_small"


def random_weights(module) -> dict:
    """Weights with BatchNorm statistics that are not trivial."""
    torch.manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
    return module.state_dict()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "pictures.pth"
    torch.save(random_weights(torchvision.models.get_model(BACKBONE, weights=None)), path)
    return str(path)


@pytest.fixture
def settings(tmp_path, weights):
    """A network on frames, on the way to two epochs."""
    made = make_settings(tmp_path)
    for key in ("block_widths", "head_widths"):
        del made[key]
    own = {"model": "eco", "backbone": BACKBONE, "pretrained": weights, "clip_size": 3}
    return made | own | {"num_epochs": 2, "schedule": "constant"}


def trained(settings, tmp_path, *flags, **keys) -> dict:
    config = write_config(tmp_path / "config.json", settings | keys)
    assert train.main(["-c", config, "-g", "cpu", *flags]) == 0
    return load_checkpoint(run_folder(settings | keys) / "checkpoint.pth.tar")


def changed(saved: dict, weights: str) -> set[str]:
    """The tensors of the backbone that differ from those in the file."""
    file, prefix = torch.load(weights, weights_only=True), "backbone."
    own = {
        name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)
    }
    assert own
    return {name for name, value in own.items() if not torch.equal(value, file[name])}


def test_what_is_frozen_stays_bit_for_bit(settings, tmp_path, weights, capsys):
    """With all that could move it, in one run: a training takes seconds."""
    keys = {"ema_decay": 0.9, "optimizer": "adamw", "weight_decay": 0.1}
    keys |= {"accumulate_steps": 2, "checkpoint_activations": True}
    saved = trained(settings, tmp_path, freeze=True, **keys)
    assert changed(saved["state_dict"], weights) == set()
    assert changed(saved["state_dict_ema"], weights) == set()
    model = build_model(load_config(tmp_path / "config.json"), 3)
    numbers = {
        number
        for number, (name, _) in enumerate(model.named_parameters())
        if not name.startswith("backbone.")
    }
    assert set(saved["optimizer"]["state"]) == numbers
    output = capsys.readouterr().out
    num_frozen = sum(each.numel() for each in model.backbone.parameters())
    num_all = sum(each.numel() for each in model.parameters())
    assert output.count("  frozen\n") == len(model.backbone.features)
    assert f"{num_all - num_frozen:,}\n" in output.split("\ntrained ")[1]


@pytest.mark.slow
def test_some_stages_are_frozen(settings, tmp_path, weights):
    saved = trained(settings, tmp_path, freeze=3)
    others = {int(name.split(".")[1]) for name in changed(saved["state_dict"], weights)}
    assert others == set(range(3, 9))


def test_without_freeze_all_is_trained_and_not_at_one_rate(settings, tmp_path, weights, capsys):
    saved = trained(settings, tmp_path, pretrained_lr_scale=0.25, lr=0.004, optimizer="sgd")
    assert {name.split(".")[1] for name in changed(saved["state_dict"], weights)} == set(
        "012345678"
    )
    rates = [group["lr"] for group in saved["optimizer"]["param_groups"]]
    assert rates == [0.004, 0.004, 0.001, 0.001]
    assert {row["learning_rate"] for row in saved["history"]} == {0.004}
    assert "frozen" not in capsys.readouterr().out


def test_a_step_of_the_pretrained_part_is_smaller():
    """Every parameter is in one group, and moves by its rate."""
    config = make_config(
        model="mobilenet3d",
        width=0.25,
        pretrained="x",
        freeze=1,
        pretrained_lr_scale=0.5,
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.0,
    )
    model = build_model(config, 3)
    freeze_stages(model, config)
    optimizer = build_optimizer(config, model, CPU)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    set_learning_rate(optimizer, 0.25)
    optimizer.step()
    for name, value in model.named_parameters():
        rate = 0.0 if name.startswith("features.0.") else 0.125
        rate = 0.25 if name.startswith("classifier") else rate
        torch.testing.assert_close(before[name] - value, torch.full_like(value, rate))


@pytest.mark.parametrize(
    "name",
    slow_except(
        [name for name in MODELS if name != "linear"], ["eco", "trn", "kernel_ridge", "r3d_18"]
    ),
)
def test_every_network_has_a_pretrained_part(name):
    size = {"clip_size": 16, "crop_size": 224 if name.startswith("mvit") else 64}
    config = make_config(**network_keys(name), pretrained="x", freeze=True, **size)
    with torch.device("meta"):
        model = build_model(config, 5)
    freeze_stages(model, config)
    network = NETWORKS[name]
    for parameter, value in model.named_parameters():
        is_new = parameter.startswith(network.head) or not parameter.startswith(network.pretrained)
        is_fitted = name in FITTED_MODELS and parameter.startswith("classifier.")
        assert value.requires_grad == (is_new and not is_fitted), parameter
    set_to_training(model)
    for each, module in model.named_modules():
        if isinstance(module, _BatchNorm | StochasticDepth):
            is_new = each.startswith(network.head) or not each.startswith(network.pretrained)
            assert module.training == is_new, each


def test_statistics_of_frozen_layers_are_not_recomputed_in_the_average_either():
    config = make_config(model="cnn_lstm", backbone=BACKBONE, pretrained="x", freeze=2)
    model = build_model(config, 3)
    num_all = len(_norms(model))
    freeze_stages(model, config)
    average = AverageOfWeights(model, 0.9)
    num_frozen = sum(
        isinstance(module, _BatchNorm) and is_frozen(module) for module in model.modules()
    )
    assert num_frozen > 2 and len(_norms(average.module)) == num_all - num_frozen


@pytest.mark.slow
def test_a_killed_run_ends_as_the_uninterrupted_one(settings, tmp_path):
    settings |= {"freeze": 4, "pretrained_lr_scale": 0.3, "ema_decay": 0.9, "checkpoint_minutes": 0}
    settings |= {"optimizer": "adamw"}
    folders = []
    for name in ("whole", "killed"):
        own = settings | {"output_dir": str(tmp_path / name)}
        config = write_config(tmp_path / f"{name}.json", own)
        arguments = ["-c", config, "-g", "cpu"]
        if name == "killed":
            train_until(arguments, 1, 1)
            arguments += ["--resume", "True"]
        assert train.main(arguments) == 0
        folders.append(run_folder(own))
    assert differences(*folders) == []


@pytest.mark.slow
def test_two_processes_keep_it_and_agree(settings, tmp_path, weights):
    settings |= {"freeze": 3, "pretrained_lr_scale": 0.3, "ema_decay": 0.9}
    config = write_config(tmp_path / "config.json", settings)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    ended = subprocess.run(
        [sys.executable, *command, "-c", config, "-g", "cpu"],
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    saved = load_checkpoint(run_folder(settings) / "checkpoint.pth.tar")
    for key in ("state_dict", "state_dict_ema"):
        found = {int(name.split(".")[1]) for name in changed(saved[key], weights)}
        assert found == set(range(3, 9))


@pytest.mark.slow
def test_resuming_with_other_stages_frozen_is_refused(settings, tmp_path, capsys):
    trained(settings, tmp_path, num_epochs=1, freeze=True)
    config = write_config(tmp_path / "config.json", settings | {"freeze": 2})
    assert train.main(["-c", config, "-g", "cpu", "--resume", "True"]) == 2
    output = capsys.readouterr()
    assert "trained parameters; resume with the config it was trained with" in output.err


# --- mistakes ----------------------------------------------------------------------------------


def test_more_stages_than_there_are():
    config = make_config(model="cnn_lstm", backbone="resnet18", pretrained="x", freeze=11)
    message = (
        "freeze: found 11, but the pretrained part of cnn_lstm has 10 stages: backbone.conv1, .*"
        "backbone.flatten; give a number up to 10, or true for all"
    )
    with pytest.raises(UserError, match=message):
        freeze_stages(build_model(config, 3), config)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"freeze": True}, "freeze: found true, but `pretrained` is null; set both or neither"),
        ({"freeze": 2}, "freeze: found 2, but `pretrained` is null"),
        ({"freeze": 0}, "freeze: found 0; expected greater than or equal to 1|freeze: found 0; "),
        ({"freeze": "all"}, 'freeze: found "all"; expected a valid integer'),
        ({"freeze": [1]}, r"freeze: found \[1\]; expected a valid boolean"),
        ({"pretrained_lr_scale": 0.1}, "pretrained_lr_scale: found 0.1, but `pretrained` is null"),
        ({"pretrained_lr_scale": 0}, "pretrained_lr_scale: found 0; expected greater than 0|0"),
        (
            {"pretrained": "x", "freeze": True, "pretrained_lr_scale": 0.1},
            "with freeze true no pretrained layer is trained; set one of the two",
        ),
        (
            {"pretrained": "imagenet"},
            'pretrained: found "imagenet"; it applies to eco, .*for conv3d',
        ),
        ({"model": "trn", "backbone_layer": "layer3"}, "backbone_layer: found .* applies to eco"),
    ],
)
def test_keys_that_do_not_fit(tmp_path, keys, message):
    paths = ["train_data_folder", "train_data_csv", "val_data_folder", "val_data_csv", "labels_csv"]
    values = dict.fromkeys(paths, "x") | {"model_name": "a run"} | keys
    with pytest.raises(UserError, match=message) as caught:
        load_config(write_config(tmp_path / "config.json", values))
    assert "1 problem\n" in str(caught.value)


def test_layers_that_stay_random_are_not_frozen(settings, tmp_path, capsys):
    config = load_config(write_config(tmp_path / "a.json", settings | {"model": "cnn_lstm"}))
    source = build_model(config, 3).state_dict()
    part = {name: value for name, value in source.items() if name.startswith("lstm")}
    torch.save(part, tmp_path / "part.pth")
    keys = {"model": "cnn_lstm", "pretrained": str(tmp_path / "part.pth"), "freeze": True}
    config = write_config(tmp_path / "b.json", settings | keys)
    assert train.main(["-c", config, "-g", "cpu"]) == 2
    assert "backbone.features.0.0.weight is missing" in capsys.readouterr().err
    # Of a network without a backbone, any layer may be missing in a file.
    csn = {"model": "csn", "backbone": None, "width": 0.25, "crop_size": 20}
    values = {key: value for key, value in (settings | csn).items() if value is not None}
    source = build_model(load_config(write_config(tmp_path / "c.json", values)), 3).state_dict()
    names = list(source)
    torch.save({name: source[name] for name in names[: len(names) // 2]}, tmp_path / "part.pth")
    values |= {"pretrained": str(tmp_path / "part.pth"), "freeze": True}
    config = write_config(tmp_path / "d.json", values)
    assert train.main(["-c", config, "-g", "cpu"]) == 2
    assert "which would stay random; freeze fewer stages" in capsys.readouterr().err

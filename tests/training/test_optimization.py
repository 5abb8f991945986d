import pytest
import torch
from runs import make_settings, read_csv, run_folder, write_config

import train
from config import Config
from model import build_model
from system.config_file import load_config
from training.checkpoint import load_checkpoint
from training.optimization import (
    build_optimizer,
    learning_rate,
    load_optimizer_state,
    optimizer_state,
    plateau_learning_rate,
    training_is_over,
)

CPU = torch.device("cpu")


def make_config(**changes):
    paths = ["train_data_folder", "train_data_csv", "val_data_folder", "val_data_csv", "labels_csv"]
    return Config(model_name="x", **dict.fromkeys(paths, "p"), **changes)


def test_plateau_is_pytorchs_scheduler():
    config = make_config(plateau_factor=0.5, plateau_patience=2, last_lr=0.0)
    generator = torch.Generator().manual_seed(0)
    losses = (1 + torch.rand(30, generator=generator)).tolist()
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    for num_epochs, loss in enumerate(losses, 1):
        scheduler.step(loss)
        expected = optimizer.param_groups[0]["lr"]
        assert plateau_learning_rate(config, losses[:num_epochs]) == pytest.approx(expected)
    assert expected < config.lr / 100


def test_plateau_ends_training_at_last_lr():
    config = make_config(plateau_patience=1)
    rates = [learning_rate(config, n, [1.0] * n) for n in range(6)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    over = [training_is_over(config, n, [1.0] * n) is not None for n in range(6)]
    assert over == [False] * 5 + [True]


def test_cosine_with_warmup():
    config = make_config(schedule="cosine", num_epochs=12, warmup_epochs=2, lr=0.1, last_lr=0.01)
    rates = [learning_rate(config, epochs, []) for epochs in (0.5, 1, 2, 7, 12)]
    assert rates == pytest.approx([0.025, 0.05, 0.1, 0.055, 0.01])
    assert training_is_over(config, 11, []) is None and training_is_over(config, 12, [])


def test_constant_goes_on_until_stopped():
    config = make_config(schedule="constant")
    assert learning_rate(config, 500, [1.0] * 500) == config.lr
    assert training_is_over(config, 500, [1.0] * 500) is None


def test_optimizer_is_adam_with_amsgrad_and_weight_decay():
    model = torch.nn.BatchNorm1d(3)
    config = make_config(weight_decay=0.5, momentum=0.8)
    optimizer = build_optimizer(config, model, CPU)
    (group,) = optimizer.param_groups
    assert group["amsgrad"] and group["weight_decay"] == 0.5 and group["betas"] == (0.8, 0.999)
    model.weight.grad = torch.zeros(3)
    optimizer.step()
    assert (model.weight < 1).all()  # decays without a gradient


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_only_kernels_and_matrices_decay(kind):
    model = make_model()
    optimizer = build_optimizer(make_config(optimizer=kind, weight_decay=0.5), model, CPU)
    decays = {
        parameter: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert {name: decays[value] for name, value in model.named_parameters()} == {
        "0.weight": 0.5,
        "0.bias": 0,
        "1.weight": 0,
        "1.bias": 0,
        "3.weight": 0.5,
        "3.bias": 0,
    }


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_saved_states_are_numbered_as_the_models_parameters(kind):
    """As they were before parameters had groups, so that older checkpoints load."""
    model, config = make_model(), make_config(optimizer=kind, weight_decay=0.5)
    optimizer = build_optimizer(config, model, CPU)
    model(torch.randn(4, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    saved = optimizer_state(optimizer, model)
    for number, parameter in enumerate(model.parameters()):
        for value in saved["state"][number].values():
            assert value.ndim == 0 or value.shape == parameter.shape
    other = build_optimizer(config, model, CPU)
    load_optimizer_state(other, model, saved, "a path")
    for parameter in model.parameters():
        for name, value in optimizer.state[parameter].items():
            assert torch.equal(other.state[parameter][name], value)


def make_model():
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(36, 2))


def test_the_norm_of_gradients_is_in_the_history_and_grad_clip_bounds_it(tmp_path):
    norms, weights = {}, {}
    for name, keys in (("free", {}), ("wide", {"grad_clip": 1e6}), ("tight", {"grad_clip": 1e-9})):
        # Without momentum, and at so small a norm, the weights stay where they are.
        settings = make_settings(
            tmp_path / name, optimizer="sgd", momentum=0.0, weight_decay=0.0, num_epochs=1, **keys
        )
        config = write_config(tmp_path / "config.json", settings)
        assert train.main(["-c", config, "-g", "cpu"]) == 0
        (row,) = read_csv(run_folder(settings) / "history.csv")
        norms[name] = float(row["grad_norm"])
        saved = load_checkpoint(run_folder(settings) / "checkpoint.pth.tar")
        weights[name] = saved["state_dict"]["classifier.weight"]
    assert norms["free"] == norms["wide"] > 0.01
    assert torch.equal(weights["free"], weights["wide"])
    assert (weights["free"] - weights["tight"]).abs().max() > 1e-4
    config = load_config(config)
    torch.manual_seed(config.seed)
    fresh = build_model(config, 3).classifier.weight
    assert (fresh - weights["tight"]).abs().max() < 1e-8

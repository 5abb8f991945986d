import pytest
import torch

from config import Config
from optimization import build_optimizer, learning_rate, plateau_learning_rate, training_is_over


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
    weight = torch.nn.Parameter(torch.ones(3))
    config = make_config(weight_decay=0.5, momentum=0.8)
    optimizer = build_optimizer(config, [weight], torch.device("cpu"))
    group = optimizer.param_groups[0]
    assert group["amsgrad"] and group["weight_decay"] == 0.5 and group["betas"] == (0.8, 0.999)
    weight.grad = torch.zeros(3)
    optimizer.step()
    assert (weight < 1).all()  # decays without a gradient

"""BatchNorm's running statistics are those of the weights that are evaluated."""

import pytest
import torch
from runs import differences, make_settings, read_csv, run_folder, train_until, write_config

import train
from clips.batches import batches_of
from config import Config
from data_loader import build_loader, read_class_names, read_set
from model import build_model, normalize_clips
from system.config_file import load_config
from system.device import to_device
from training.batchnorm import refresh_statistics
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("blank_pictures")

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path) -> Config:
    settings = make_settings(tmp_path, dropout=0.5)
    return load_config(write_config(tmp_path / "config.json", settings))


@pytest.mark.parametrize("num_parts", [1, 2])
def test_they_are_means_over_the_epochs_training_clips_without_dropout(config, num_parts):
    """In parts as those of a training step, so that they fit into the same memory."""
    config = config.model_copy(update={"accumulate_steps": num_parts})
    names = read_class_names(config)
    loader = build_loader(read_set(config, "train", names), config, True, CPU)
    torch.manual_seed(0)
    model = to_device(build_model(config, len(names)), CPU)
    means, variances = [], []
    loader.batch_sampler.start_at(3, 0)
    for batch in batches_of(loader):
        for part in range(num_parts):
            clips = normalize_clips(batch.clips[part::num_parts, 0], CPU, config)
            first = model.blocks[0][0](clips).detach()
            means.append(first.mean(dim=(0, 2, 3, 4)))
            variances.append(first.var(dim=(0, 2, 3, 4)))
    weights = {name: value.clone() for name, value in model.named_parameters()}
    model.train()

    refresh_statistics(model, loader, 3, CPU, config)
    norm = model.blocks[0][1]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert model.training and norm.momentum == 0.1
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    # Behind dropout, too, they are the same each time.
    before = model.hidden[0][2].running_var.clone()
    refresh_statistics(model, loader, 3, CPU, config)
    assert torch.equal(model.hidden[0][2].running_var, before)


def test_a_short_training_is_scored_by_them_and_resumes_exactly(tmp_path):
    """They lag far behind after few steps; `--eval_only` gives the scores of the history."""
    losses = {}
    for name, steps in (("lagging", 0), ("fresh", 300)):
        settings = make_settings(tmp_path / name, batchnorm_refresh_steps=steps, ema_decay=0.5)
        config = write_config(tmp_path / f"{name}.json", settings)
        assert train.main(["-c", config, "-g", "cpu"]) == 0
        losses[name] = [
            float(row["val_loss"]) for row in read_csv(run_folder(settings) / "history.csv")
        ]
    assert losses["fresh"][0] < losses["lagging"][0]

    resumed = settings | {"output_dir": str(tmp_path / "resumed")}
    resumed_config = write_config(tmp_path / "resumed.json", resumed)
    train_until(["-c", resumed_config, "-g", "cpu"], epoch=1, step=1)
    assert train.main(["-c", resumed_config, "-g", "cpu", "--resume"]) == 0
    assert differences(run_folder(resumed), run_folder(settings)) == []


def test_it_ends_after_so_many_steps(tmp_path):
    """Three steps an epoch: with 3, only the first epoch's are computed anew."""
    saved = {}
    for steps in (0, 3, 300):
        settings = make_settings(tmp_path / str(steps), batchnorm_refresh_steps=steps)
        config = write_config(tmp_path / "config.json", settings)
        assert train.main(["-c", config, "-g", "cpu"]) == 0
        saved[steps] = load_checkpoint(run_folder(settings) / "checkpoint.pth.tar")
    first, second = (
        [saved[steps]["history"][epoch]["val_loss"] for steps in (0, 3, 300)] for epoch in (0, 1)
    )
    assert first[0] != first[1] == first[2]
    assert second[1] != second[2]
    # Training itself never sees them.
    assert saved[0]["history"][1]["loss"] == saved[300]["history"][1]["loss"]


def test_the_tutorials_config_leaves_them_as_they_are():
    assert load_config("configs/config.json").batchnorm_refresh_steps == 0
    assert Config.model_fields["batchnorm_refresh_steps"].default == 300

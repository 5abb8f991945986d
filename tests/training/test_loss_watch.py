"""A loss or gradient that is NaN or inf stops the run; a GPU's is looked at a step later."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from runs import make_settings, write_config

import train
from system.errors import UserError
from training import optimization
from training.loss_watch import StopOnBadLoss

pytestmark = pytest.mark.usefixtures("blank_pictures")

# Whether the loss is bad, and the gradient.
GOOD, BAD = torch.tensor([False, False]), torch.tensor([False, True])


def test_on_the_cpu_the_step_itself_is_found():
    watch = StopOnBadLoss(torch.device("cpu"), "fp32")
    watch.record(GOOD, 0, 0, 0.1, ["a"])
    assert not watch.found_bad()
    watch.record(BAD, 0, 1, 0.1, ["b"])
    assert watch.found_bad()
    with pytest.raises(UserError, match=r"epoch 1, step 2, at a learning rate of 0.1, .* b; lower"):
        watch.raise_if_bad()


def test_precision_is_named_where_it_may_be_the_cause():
    watch = StopOnBadLoss(torch.device("cpu"), "bf16")
    watch.record(BAD, 0, 1, 0.1, ["b"])
    with pytest.raises(UserError, match="set precision to fp32, since this run computes in bf16"):
        watch.raise_if_bad()


@pytest.fixture
def events(monkeypatch):
    """Stands in for the GPU's events; records which ones were waited for."""
    waited = []

    class Event:
        def record(self):
            pass

        def synchronize(self):
            waited.append(self)

    monkeypatch.setattr(torch, "cuda", SimpleNamespace(Event=Event))
    return waited


def test_a_gpu_is_asked_about_the_step_before_only(events):
    watch = StopOnBadLoss(torch.device("cuda"), "fp32")
    watch.record(GOOD, 0, 0, 0.1, ["a"])
    assert not watch.found_bad() and not events
    watch.record(BAD, 0, 1, 0.2, ["b"])
    assert not watch.found_bad() and len(events) == 1
    watch.record(GOOD, 0, 2, 0.3, ["c"])
    assert watch.found_bad() and len(events) == 2
    with pytest.raises(UserError, match=r"epoch 1, step 2, at a learning rate of 0.2, .* b;"):
        watch.raise_if_bad()


def test_before_a_save_the_last_step_is_looked_at_too(events):
    watch = StopOnBadLoss(torch.device("cuda"), "fp32")
    watch.record(GOOD, 0, 0, 0.1, ["a"])
    watch.raise_if_bad()
    watch.raise_if_bad()
    assert len(events) == 1
    watch.record(BAD, 4, 6, 0.1, ["b"])
    with pytest.raises(UserError, match="epoch 5, step 7"):
        watch.raise_if_bad()


# --- in a run: the optimizer has not moved -------------------------------------------------------


class InfiniteLoss(torch.autograd.Function):
    """A loss of inf whose gradient is finite."""

    @staticmethod
    def forward(_context, loss):
        return torch.full_like(loss, torch.inf)

    @staticmethod
    def backward(_context, gradient):
        return torch.nan_to_num(gradient, nan=torch.nan)


class NanGradient(torch.autograd.Function):
    """Leaves a loss as it is, and makes NaN of its gradient."""

    @staticmethod
    def forward(_context, loss):
        return loss.clone()

    @staticmethod
    def backward(_context, gradient):
        return gradient * torch.nan


@pytest.mark.parametrize("fault", [InfiniteLoss, NanGradient])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_step_is_named_and_has_moved_nothing(tmp_path, capsys, fault, precision):
    """NaN gradients halve fp16's scale instead, until it is 1: that takes a few steps more."""
    settings = make_settings(tmp_path, precision=precision, num_epochs=9)
    config = write_config(tmp_path / "config.json", settings)
    train_step, cross_entropy, seen = train.train_step, optimization.F.cross_entropy, []

    def step(run, *rest):
        is_hit = (run.state.epoch, run.state.step) >= (0, 1)
        before = [parameter.detach().clone() for parameter in run.model.parameters()]
        loss = bad_loss if is_hit else cross_entropy
        with mock.patch.object(optimization.F, "cross_entropy", loss):
            train_step(run, *rest)
        seen.append(
            any(map(torch.ne, map(torch.sum, before), map(torch.sum, run.model.parameters())))
        )

    def bad_loss(*arguments, **options):
        return fault.apply(cross_entropy(*arguments, **options))

    with mock.patch.object(train, "train_step", step):
        assert train.main(["-c", config, "-g", "cpu"]) == 2
    first, *bad = seen
    assert (first or precision == "fp16") and not any(bad)  # its scale may be too high at first
    error = capsys.readouterr().err
    if (fault, precision) == (NanGradient, "fp16"):
        assert 10 < len(bad) < 20  # from a scale of 2 ** 16
    else:
        assert "the loss or its gradient is NaN or inf in epoch 1, step 2, " in error
        assert len(bad) == 1
    assert ("set precision to fp32" in error) == (precision == "fp16")

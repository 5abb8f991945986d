"""A loss that is no finite number stops the run; a GPU's loss is looked at a step later."""

from types import SimpleNamespace

import pytest
import torch

from errors import UserError
from loss_watch import LossWatch

GOOD, BAD = torch.tensor(1.0), torch.tensor(float("nan"))


def test_on_the_cpu_the_step_itself_is_stopped():
    watch = LossWatch(torch.device("cpu"))
    watch.note(GOOD, 0, 0, 0.1, ["a"])
    with pytest.raises(UserError, match=r"epoch 1, step 2, at a learning rate of 0.1, .* b;"):
        watch.note(BAD, 0, 1, 0.1, ["b"])


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
    watch = LossWatch(torch.device("cuda"))
    watch.note(GOOD, 0, 0, 0.1, ["a"])
    assert not events
    watch.note(BAD, 0, 1, 0.2, ["b"])
    assert len(events) == 1
    with pytest.raises(UserError, match=r"epoch 1, step 2, at a learning rate of 0.2, .* b;"):
        watch.note(GOOD, 0, 2, 0.3, ["c"])


def test_before_a_save_the_last_step_is_looked_at_too(events):
    watch = LossWatch(torch.device("cuda"))
    watch.note(GOOD, 0, 0, 0.1, ["a"])
    watch.settle()
    watch.settle()
    assert len(events) == 1
    watch.note(BAD, 4, 6, 0.1, ["b"])
    with pytest.raises(UserError, match="epoch 5, step 7"):
        watch.settle()

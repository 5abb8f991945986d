"""A loss that is no finite number stops the run; a GPU's loss is looked at when it is there."""

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
    """Stands in for the GPU's events: those that have come are in a set, waited for in a list."""
    class Event:
        arrived, waited = set(), []

        def record(self):
            pass

        def query(self):
            return self in Event.arrived

        def synchronize(self):
            Event.waited.append(self)

    monkeypatch.setattr(torch, "cuda", SimpleNamespace(Event=Event))
    return Event


def test_a_gpu_is_never_waited_for_between_steps(events):
    watch = LossWatch(torch.device("cuda"))
    watch.note(GOOD, 0, 0, 0.1, ["a"])
    watch.note(BAD, 0, 1, 0.2, ["b"])
    watch.note(BAD, 0, 2, 0.3, ["c"])  # with weights that the step before has spoilt
    assert not watch.knows_a_bad_loss()
    events.arrived.add(watch.waiting[0].arrived)
    assert not watch.knows_a_bad_loss()
    events.arrived.add(watch.waiting[0].arrived)
    assert watch.knows_a_bad_loss() and not events.waited
    with pytest.raises(UserError, match=r"epoch 1, step 2, at a learning rate of 0.2, .* b;"):
        watch.settle()


def test_before_a_save_the_last_steps_are_looked_at_too(events):
    watch = LossWatch(torch.device("cuda"))
    watch.note(GOOD, 0, 0, 0.1, ["a"])
    watch.settle()
    watch.settle()
    assert len(events.waited) == 1
    watch.note(BAD, 4, 6, 0.1, ["b"])
    with pytest.raises(UserError, match="epoch 5, step 7"):
        watch.settle()

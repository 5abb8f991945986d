"""Callbacks watch and record; training itself needs none of them."""

import threading

import pytest
import torch
from conftest import slow_except
from runs import make_settings, read_csv, run_folder, without_times, write_config
from tensorboardX.event_file_writer import EventsWriter

import callbacks
import train
from callbacks import Callback
from reporting.curves import TensorBoardLog
from training.run import split_columns, validation_columns

NAMES = [
    callback.__name__
    for callback in Callback.__subclasses__()
    if not callback.__module__.startswith(("benchmarks", "test"))
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with all callbacks."""
    return do_run(tmp_path_factory.mktemp("whole"))


def do_run(folder):
    settings = make_settings(folder, time_probe_clips=5)
    assert train.main(["-c", write_config(folder / "config.json", settings), "-g", "cpu"]) == 0
    return run_folder(settings)


def test_all_of_them_are_built(whole):
    assert len(NAMES) == 14


def test_the_time_probe_is_in_the_report(whole):
    rows = read_csv(whole / "time_probe_clips.csv")
    assert len(rows) == 5 and {"label", "in order", "shuffled"} <= rows[0].keys()
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "Does time matter?" in page and "Top-1</span> of 5 validation clips" in page
    assert "balanced accuracy" in page


@pytest.mark.parametrize("name", slow_except(NAMES, NAMES[:3]))
def test_without_any_of_them_training_is_the_same(whole, tmp_path, monkeypatch, name):
    def build_others(*arguments):
        built = callbacks.build_callbacks(*arguments)
        assert name in {type(callback).__name__ for callback in built}
        return [callback for callback in built if type(callback).__name__ != name]

    monkeypatch.setattr(train, "build_callbacks", build_others)
    folder = do_run(tmp_path)
    if name != "Checkpoints":
        saved, expected = (
            torch.load(place / "checkpoint.pth.tar", weights_only=True)["state_dict"]
            for place in (folder, whole)
        )
        assert all(torch.equal(saved[key], value) for key, value in expected.items())
    if name != "History":
        histories = [without_times(read_csv(place / "history.csv")) for place in (folder, whole)]
        assert histories[0] == histories[1]


def test_a_log_that_cannot_be_written_ends_without_the_run(tmp_path, monkeypatch, capsys):
    """The writer's thread ends at the error; another ten values would wait for it for ever."""
    write = EventsWriter.write_event

    def fail(writer, event):
        if threading.current_thread() is threading.main_thread():
            return write(writer, event)  # the file's first one
        raise OSError("No space left on device")

    monkeypatch.setattr(EventsWriter, "write_event", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    settings = make_settings(tmp_path, num_epochs=4)
    assert train.main(["-c", write_config(tmp_path / "config.json", settings), "-g", "cpu"]) == 0
    assert "note: the TensorBoard log can no longer be written" in capsys.readouterr().out
    assert len(read_csv(run_folder(settings) / "history.csv")) == 4


def test_rows_after_such_an_error_are_left_out(tmp_path):
    """As when a resumed run writes its curves anew, one row after the other."""
    log = TensorBoardLog(tmp_path)
    log.writers = {}
    for epoch in (1, 2):
        log.add_row({"epoch": epoch, "loss": 1.0})
    assert not log.writers


def test_each_is_told_of_each_moment(tmp_path, monkeypatch):
    told = []

    class Listener(Callback):
        def on_start(self, run, train_loader, validation_loader):
            told.append("start")

        def on_epoch_start(self, run, loader):
            told.append(f"epoch {run.state.epoch} of {len(loader)} steps")

        def vote(self, run):
            return 7 if run.state.step == 1 and run.state.epoch == 0 else 0

        def on_vote(self, run, highest):
            told.append(highest)

        def on_batch(self, run, batch):
            told.append(f"batch {run.state.step}")

        def on_step(self, run, num_clips):
            told.append(f"{run.state.step} steps, {num_clips} clips")

        def on_validation_start(self, run):
            told.append("validation")

        def on_validation_batch(self, run, batch):
            told.append(f"{len(batch.labels)} clips")

        def on_validation_end(self, run, logits, labels):
            told.append((logits.shape, labels.shape))

        def add_to_row(self, run, row):
            row["answer"] = 42

        def on_epoch_end(self, run, is_best):
            told.append((len(run.state.history), run.state.history[-1]["answer"], is_best))

        def on_end(self, run, reason):
            told.append(reason)

        def on_exception(self, run, error):
            told.append(error)

        def close(self, run):
            told.append("close")

    built = callbacks.build_callbacks
    monkeypatch.setattr(train, "build_callbacks", lambda *given: [*built(*given), Listener()])
    settings = make_settings(tmp_path, num_epochs=1)
    assert train.main(["-c", write_config(tmp_path / "config.json", settings), "-g", "cpu"]) == 0
    assert told == [
        "start",
        "epoch 0 of 3 steps",
        "batch 0",
        "1 steps, 8 clips",
        7,
        "batch 1",
        "2 steps, 8 clips",
        "batch 2",
        "3 steps, 6 clips",
        "validation",
        "4 clips",
        "3 clips",
        ((7, 3), (7,)),
        (1, 42, True),
        "1 epochs are done",
        "close",
    ]


def test_the_columns_of_a_row_are_told_apart():
    scores = {"loss": 0.5, "top1": 90.0}
    row = {"epoch": 3, "loss": 1.5} | validation_columns(scores)
    assert split_columns(row) == ({"epoch": 3, "loss": 1.5}, scores)
    assert {"val_loss", "val_top1"} < row.keys()  # as history.csv has always had them

"""Clips that cannot be read: skipped, counted and listed, or the reason that a run stops."""

import itertools
import signal
from pathlib import Path

import pytest
from conftest import slow_except
from runs import differences, make_settings, read_csv, run_folder, train_until, write_config

import train
from clips.batches import TrainBatches
from system import processes, stopping

pytestmark = pytest.mark.usefixtures("blank_pictures")

# Clips 1 to 22 are training clips, 23 to 29 validation clips, eight and seven to a batch.
EMPTY = "file is empty (0 bytes); extract the frame again"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make_settings(tmp_path_factory.mktemp("bad_clips"))


@pytest.fixture
def settings(sound, tmp_path):
    """Those of a run in a folder of its own that skips up to a fifth of a set."""
    return sound | {"output_dir": str(tmp_path), "on_bad_clip": "skip", "max_bad_share": 0.2}


def damaged(settings, ids, folder) -> dict:
    """The settings with clips of which those with these ids have empty files for frames."""
    folder.mkdir()
    for clip in Path(settings["train_data_folder"]).iterdir():
        if int(clip.name) in ids:
            (folder / clip.name).mkdir()
            for frame in clip.iterdir():
                (folder / clip.name / frame.name).touch()
        else:
            (folder / clip.name).symlink_to(clip)
    return settings | {"train_data_folder": str(folder), "val_data_folder": str(folder)}


def arguments_for(settings, *flags):
    path = Path(settings["output_dir"]) / "config.json"
    return ["-c", write_config(path, settings), "-g", "cpu", *flags]


def test_skipped_clips_are_counted_and_listed(settings, tmp_path, capsys):
    own = damaged(settings, [3, 8, 25], tmp_path / "clips")
    assert train.main(arguments_for(own)) == 0
    output = capsys.readouterr().out
    assert output.count("train: 2 clips skipped because they cannot be read: 3, 8\n") == 2
    assert output.count("validation: 1 clips skipped because they cannot be read: 25\n") == 2
    rows = read_csv(run_folder(own) / "bad_clips.csv")
    assert list(rows[0]) == ["epoch", "set", "id", "reason"]
    for epoch in ("1", "2"):
        of_epoch = [(row["set"], row["id"]) for row in rows if row["epoch"] == epoch]
        assert of_epoch == [("train", "3"), ("train", "8"), ("validation", "25")]
    for row in rows:
        assert row["reason"].startswith(f"{tmp_path}/clips/{row['id']}/")
        assert row["reason"].endswith(EMPTY)


def test_short_clips_are_said_once_in_a_run(settings, capsys):
    lengths = {
        int(clip.name): len(list(clip.iterdir()))
        for clip in Path(settings["train_data_folder"]).iterdir()
    }
    assert train.main(arguments_for(settings)) == 0  # two epochs
    output = capsys.readouterr().out
    for set_name, ids in (("train", range(1, 23)), ("validation", range(23, 30))):
        num_short = sum(lengths[number] < 7 for number in ids)
        assert (
            num_short > 0
            and output.count(
                f"{set_name}: short clips (fewer than 7 frames), "
                f"padded with their last frame: {num_short} of {len(ids)}\n"
            )
            == 1
        )


def test_a_bad_clip_stops_the_run_unless_it_says_otherwise(settings, tmp_path, capsys):
    own = damaged(settings, [8], tmp_path / "clips") | {"on_bad_clip": "stop"}
    assert train.main(arguments_for(own)) == 2
    assert f"error: {tmp_path}/clips/8/" in capsys.readouterr().err
    assert not (run_folder(own) / "bad_clips.csv").exists()


def test_all_clips_of_a_batch_may_be_bad(settings, tmp_path, capsys):
    own = settings | {"batch_size": 4, "max_bad_share": 0.6}
    batches = TrainBatches(22, 4, seed=0)
    batches.start_at(0, 1)
    bad = [key.index + 1 for key in next(iter(batches))]
    own = damaged(own, [*bad, 23, 24, 25, 26], tmp_path / "clips")
    assert train.main(arguments_for(own)) == 0
    output = capsys.readouterr().out
    assert "step 2 skipped: too few" in output
    assert "validation: 4 clips skipped" in output and "nan" not in output


def test_too_many_bad_clips_stop_the_run(settings, tmp_path, capsys):
    """As soon as they are too many: here in the epoch's last step, with a checkpoint in between."""
    batches = TrainBatches(22, 8, seed=0)
    bad = [keys[-1].index + 1 for keys in batches]
    own = damaged(settings, bad, tmp_path / "clips")
    assert train.main(arguments_for(own | {"max_bad_share": 3 / 22})) == 0
    assert train.main(arguments_for(own | {"max_bad_share": 2.9 / 22, "model_name": "few"})) == 2
    errors = capsys.readouterr().err
    assert f"{tmp_path}/clips: 3 of the 22 train clips cannot be read" in errors
    assert all(str(number) in errors for number in bad) and "max_bad_share" in errors
    assert not (tmp_path / "few" / "model_best.pth.tar").exists()


def test_too_many_bad_validation_clips_stop_the_run(settings, tmp_path, capsys):
    own = damaged(settings, [23, 29], tmp_path / "clips")
    assert train.main(arguments_for(own)) == 2
    assert "2 of the 7 validation clips cannot be read" in capsys.readouterr().err


# --- resumed -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(sound, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    own = sound | {"output_dir": str(folder), "on_bad_clip": "skip", "max_bad_share": 0.2}
    own = damaged(own, [3, 8, 25], folder / "clips")
    assert train.main(arguments_for(own)) == 0
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("step", slow_except([0, 1, 2], [1]))
def test_a_resumed_run_lists_the_same_clips(num_workers, step, settings, whole_run, tmp_path):
    own = settings | {
        "num_workers": num_workers,
        "train_data_folder": str(whole_run / "clips"),
        "val_data_folder": str(whole_run / "clips"),
    }
    train_until(arguments_for(own), epoch=1, step=step)
    assert train.main(arguments_for(own, "--resume")) == 0
    assert differences(whole_run / "tiny", run_folder(own)) == []


def test_a_validation_that_starts_anew_lists_its_clips_once(
    settings, whole_run, tmp_path, monkeypatch
):
    own = settings | {
        key: str(whole_run / "clips") for key in ("train_data_folder", "val_data_folder")
    }
    # Two clips to a batch, and nothing else that asks for signals between batches.
    own |= {"nclips": 4, "eval_batch_size": 8, "batchnorm_refresh_steps": 0}
    assert train.main(arguments_for(own | {"model_name": "whole"})) == 0
    calls = itertools.count()

    def stop_in_the_last_batch():
        if next(calls) == 3:
            raise stopping.Stopped(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(processes, "stop_together", stop_in_the_last_batch)
        assert train.main(arguments_for(own)) == 128 + signal.SIGINT
    assert len(read_csv(run_folder(own) / "bad_clips.csv")) == 3
    assert train.main(arguments_for(own, "--resume")) == 0
    assert differences(tmp_path / "whole", run_folder(own)) == []


# --- evaluated ---------------------------------------------------------------------------------


def test_skipped_clips_do_not_count_in_an_evaluation(settings, whole_run, tmp_path, capsys):
    own = settings | {"checkpoint": str(whole_run / "tiny" / "checkpoint.pth.tar")}
    rows = Path(settings["val_data_csv"]).read_text().splitlines()
    shorter = tmp_path / "shorter.csv"
    shorter.write_text("\n".join(row for row in rows if not row.startswith("25;")))
    scores = []
    for changes in ({"val_data_folder": str(whole_run / "clips")}, {"val_data_csv": str(shorter)}):
        assert train.main(arguments_for(own | changes, "--eval_only", "--resume")) == 0
        output = capsys.readouterr().out
        scores.append(next(line for line in output.splitlines() if line.startswith("loss ")))
        predictions = read_csv(run_folder(own) / "predictions.csv")
        unknown = [row["id"] for row in predictions if not row["predicted"]]
        assert unknown == (["25"] if len(predictions) == 7 else [])
        assert ("validation: 1 clips skipped" in output) == (len(predictions) == 7)
    assert scores[0] == scores[1]


def test_skipped_clips_are_left_out_of_a_submission(settings, whole_run, capsys):
    own = settings | {
        "checkpoint": str(whole_run / "tiny" / "checkpoint.pth.tar"),
        "test_data_folder": str(whole_run / "clips"),
        "test_data_csv": settings["val_data_csv"],
    }
    assert train.main(arguments_for(own, "--test_only", "--resume")) == 0
    assert "test: 1 clips skipped because they cannot be read: 25\n" in capsys.readouterr().out
    lines = (run_folder(own) / "test_submission.csv").read_text().splitlines()
    assert [line.split(";")[0] for line in lines] == ["23", "24", "26", "27", "28", "29"]

import numpy as np
import pytest
import torch
from conftest import write_clip

from clips.annotations import read_annotations
from clips.batches import ClipKey, EvalBatches, TrainBatches, batches_of
from clips.sampling import sample_segments, sample_window, short_clips_note
from config import Config
from data_loader import VideoFolder, build_loader, read_class_names, read_data, read_set
from system import processes

CPU = torch.device("cpu")


def draws(num_frames, clip_size=18, step_size=2, repeats=300):
    rng = np.random.default_rng(0)
    return np.concatenate(
        [sample_window(num_frames, clip_size, step_size, rng) for _ in range(repeats)]
    )


def test_window_in_the_middle():
    assert sample_window(36, 18, 2).tolist() == [list(range(0, 36, 2))]
    assert sample_window(41, 18, 2).tolist() == [list(range(3, 38, 2))]


def test_short_clips_are_padded_with_their_last_frame():
    assert sample_window(5, 4, 2).tolist() == [[0, 2, 4, 4]]
    assert draws(12).tolist() == [[0, 2, 4, 6, 8, 10] + [11] * 12] * 300


def test_jitter_counts_the_last_start_too():
    starts = draws(40)[:, 0]
    assert set(starts.tolist()) == {0, 1, 2, 3, 4, 5}
    assert draws(40)[:, -1].max() == 39


def test_several_windows_spread_over_the_video():
    windows = sample_window(20, 4, 2, num_windows=3)
    assert windows.tolist() == [[0, 2, 4, 6], [6, 8, 10, 12], [13, 15, 17, 19]]
    assert sample_window(3, 4, 2, num_windows=2).tolist() == [[0, 2, 2, 2]] * 2


@pytest.mark.parametrize("num_frames", [1, 3, 8, 37, 70])
def test_segments_take_one_frame_from_each_part(num_frames):
    rng = np.random.default_rng(0)
    drawn = np.concatenate([sample_segments(num_frames, 8, rng) for _ in range(200)])
    edges = np.arange(9) * num_frames / 8
    assert (drawn >= np.floor(edges[:-1])).all() and (drawn <= edges[1:]).all()
    assert drawn.max() == num_frames - 1 and (np.diff(drawn) >= 0).all()
    middle = sample_segments(num_frames, 8, num_windows=2)
    assert middle.shape == (2, 8) and middle.max() < num_frames


def test_train_batches_are_a_function_of_seed_and_epoch():
    batches = TrainBatches(10, 4, seed=1)
    first = list(batches)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(key.index for batch in first for key in batch) == list(range(10))
    assert list(batches) == first
    batches.start_at(1, 0)
    assert [key.index for key in next(iter(batches))] != [key.index for key in first[0]]
    assert {key.epoch for batch in batches for key in batch} == {1}


def test_the_order_is_drawn_from_a_stream_that_is_no_clips():
    """Zeros at the end of a seed sequence change nothing: [seed, epoch] is clip 0's as well."""
    batches = TrainBatches(10, 10, seed=1)
    batches.start_at(3, 0)
    (batch,) = batches
    for clip in range(10):
        order = np.random.default_rng([1, *ClipKey(3, clip)]).permutation(10)
        assert [key.index for key in batch] != order.tolist()


def test_a_last_batch_of_one_clip_is_left_out():
    assert [len(batch) for batch in TrainBatches(9, 4, 0)] == [4, 4]
    assert len(TrainBatches(9, 4, 0)) == 2


def test_an_epoch_can_start_in_the_middle():
    batches = TrainBatches(10, 4, seed=1)
    whole = list(batches)
    batches.start_at(0, 2)
    assert list(batches) == whole[2:] and len(batches) == 3


def test_processes_share_each_training_batch(monkeypatch):
    whole = [[key.index for key in batch] for batch in TrainBatches(23, 9, 0)]
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts.append([[key.index for key in batch] for batch in TrainBatches(23, 9, 0)])
    assert [a + b for a, b in zip(*parts, strict=True)] == [
        batch[::2] + batch[1::2] for batch in whole
    ]


def test_processes_take_whole_eval_batches_in_turn(monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts.append([[key.index for key in batch] for batch in EvalBatches(9, 4)])
    assert parts == [[[0, 1, 2, 3], [8]], [[4, 5, 6, 7], []]]


def test_eval_batches_hold_each_clip_once_in_order():
    indices = [key.index for batch in EvalBatches(9, 4) for key in batch]
    assert indices == list(range(9)) and len(EvalBatches(9, 4)) == 3


def all_clips(settings, training, **changes):
    config = Config(**settings | changes)
    annotations = read_annotations(
        config.train_data_csv, config.train_data_folder, ["Left", "Right", "Still"]
    )
    loader = build_loader(annotations, config, training, CPU)
    batches = list(batches_of(loader))
    return torch.cat([batch.clips for batch in batches]), batches


@pytest.mark.parametrize("training", [True, False])
def test_workers_change_nothing(settings, training):
    alone, _ = all_clips(settings, training)
    shared, _ = all_clips(settings, training, num_workers=2)
    assert torch.equal(alone, shared)


def test_augmentation_changes_with_epoch_and_seed_only(settings):
    config = Config(**settings)
    annotations = read_annotations(
        config.train_data_csv, config.train_data_folder, ["Left", "Right", "Still"]
    )
    data_set = VideoFolder(annotations, config, training=True)
    first, _, again = data_set.__getitems__([ClipKey(0, 3), ClipKey(0, 5), ClipKey(0, 3)]).clips
    (in_next_epoch,) = data_set.__getitems__([ClipKey(1, 3)]).clips
    assert torch.equal(first, again)
    assert not torch.equal(first, in_next_epoch)


def test_several_windows_in_evaluation(settings):
    clips, batches = all_clips(settings, False, nclips=2)
    assert clips.shape == (14, 2, 4, 20, 20, 3) and clips.dtype == torch.uint8
    assert len(batches[0].indices) == 4  # eval_batch_size, 8 by default, counts windows


def test_frames_of_different_sizes_load_together(settings, tmp_path):
    rng = np.random.default_rng(0)
    for clip_id, shape in (("1", (24, 32)), ("2", (48, 90)), ("3", (10, 10))):
        frames = rng.integers(0, 255, (4, *shape, 3), np.uint8)
        write_clip(tmp_path / "clips" / clip_id, frames)
    (tmp_path / "set.csv").write_text("1;Left\n2;Right\n3;Left\n")
    clips, _ = all_clips(
        settings,
        False,
        train_data_folder=str(tmp_path / "clips"),
        train_data_csv=str(tmp_path / "set.csv"),
    )
    assert clips.shape == (3, 1, 4, 20, 20, 3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_frame_is_named(settings, tmp_path, num_workers):
    write_clip(tmp_path / "clips" / "1", np.zeros((4, 24, 32, 3), np.uint8))
    write_clip(tmp_path / "clips" / "2", np.zeros((4, 24, 32, 3), np.uint8))
    (tmp_path / "clips" / "2" / "00003.jpg").write_bytes(b"")
    (tmp_path / "set.csv").write_text("1;Left\n2;Right\n")
    clips, (batch,) = all_clips(
        settings,
        True,
        train_data_folder=str(tmp_path / "clips"),
        step_size=1,
        train_data_csv=str(tmp_path / "set.csv"),
        num_workers=num_workers,
    )
    assert len(clips) == 1 and batch.indices.tolist() == [0]
    ((index, reason),) = batch.bad
    assert index == 1 and "2/00003.jpg: file is empty" in reason


@pytest.mark.parametrize(
    "sampling, num_short, said",
    [
        ("window", 2, "short clips (fewer than 7 frames), padded with their last frame: 2 of 4"),
        ("segments", 1, "short clips (fewer than 4 frames), with some frames repeated: 1 of 4"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_short_clips_are_counted(settings, tmp_path, training, sampling, num_short, said):
    for clip_id, length in (("1", 3), ("2", 4), ("3", 7), ("4", 9)):
        write_clip(tmp_path / "clips" / clip_id, np.zeros((length, 24, 32, 3), np.uint8))
    (tmp_path / "set.csv").write_text("1;Left\n2;Right\n3;Left\n4;Left\n")
    _, (batch,) = all_clips(
        settings,
        training,
        train_data_folder=str(tmp_path / "clips"),
        train_data_csv=str(tmp_path / "set.csv"),
        sampling=sampling,
    )
    assert batch.num_short == num_short
    assert short_clips_note(num_short, 4, Config(**settings, sampling=sampling)) == said


def test_a_data_set_gives_its_clips_one_by_one(settings):
    config = Config(**settings)
    names = read_class_names(config)
    data = VideoFolder(read_set(config, "train", names), config, training=True)
    clip, label = data[0]
    (batch,) = [data.__getitems__([ClipKey(0, 0)])]
    assert clip.dtype == torch.uint8 and clip.shape == (1, 4, 20, 20, 3)
    assert torch.equal(clip, batch.clips[0]) and label == batch.labels[0]
    assert torch.equal(data[-1][0], data[len(data) - 1][0])
    with pytest.raises(IndexError, match="clip 14 of 14"):
        data[14]
    assert len(list(data)) == 14


# --- what is in two sets -----------------------------------------------------------------------


def read_both(tmp_path, capsys, train, validation, **keys) -> str:
    """Read two CSVs with a header; return what is printed about them."""
    for name, rows in (("train", train), ("validation", validation)):
        (tmp_path / f"{name}.csv").write_text("video_id,label,group\n" + "\n".join(rows))
        for row in rows:
            (tmp_path / "clips" / row.split(",")[0]).mkdir(parents=True, exist_ok=True)
    (tmp_path / "labels.csv").write_text("Left\nRight\n")
    paths = {
        f"{prefix}_data_{kind}": str(tmp_path / name)
        for prefix, own in (("train", "train"), ("val", "validation"))
        for kind, name in (("folder", "clips"), ("csv", f"{own}.csv"))
    }
    config = Config(model_name="a run", labels_csv=str(tmp_path / "labels.csv"), **paths | keys)
    read_data(config, ["train", "validation"])
    return "".join(line for line in capsys.readouterr().out.splitlines(True) if "warn" in line)


def test_clips_and_groups_in_both_sets_are_reported(tmp_path, capsys):
    train = ["1,Left,anna", "2,Left,bo", "3,Right,bo", "10,Right,cy", "9,Left,cy"]
    assert read_both(tmp_path, capsys, train, ["4,Left,dee", "5,Right,eve"]) == ""
    said = read_both(tmp_path, capsys, train, ["4,Left,dee", "10,Right,fay", "9,Left,gil"])
    assert (
        said.startswith(
            "warning: 2 clips are both in training and validation, which makes the "
            "validation score too high: 9, 10; remove them from one"
        )
        and said.count("warning") == 1
    )
    said = read_both(tmp_path, capsys, train, ["4,Left,bo", "5,Right,cy", "6,Right,dee"])
    assert "warning: 2 groups are both in training and validation" in said
    assert ": bo, cy, 2 of 3 validation clips; keep each group in one set" in said
    said = read_both(tmp_path, capsys, train, ["4,Left,bo", "5,Right,cy"], group="^(.)")
    assert said == ""  # of the pattern, which counts more than the column
    said = read_both(tmp_path, capsys, ["11,Left,", "12,Right,"], ["13,Left,"], group="^(.)")
    assert "warning: 1 groups are both in training" in said


def test_the_same_id_in_another_folder_is_another_clip(tmp_path, capsys):
    (tmp_path / "other" / "1").mkdir(parents=True)
    rows = ["1,Left,anna"], ["1,Left,bo"]
    folder = {"val_data_folder": str(tmp_path / "other")}
    assert read_both(tmp_path, capsys, *rows, **folder) == ""
    (tmp_path / "link").symlink_to(tmp_path / "clips")
    folder = {"val_data_folder": str(tmp_path / "link")}
    assert "warning: 1 clips are both" in read_both(tmp_path, capsys, *rows, **folder)
    # Below another folder, it has another id.
    (tmp_path / "clips" / "below" / "2").mkdir(parents=True)
    rows, folder = (["below/2,Left,anna"], ["2,Left,bo"]), str(tmp_path / "clips" / "below")
    assert "1 clips are both" in read_both(tmp_path, capsys, *rows, val_data_folder=folder)


def test_balanced_sampling_draws_each_class_equally_often():
    labels = np.array([0] * 90 + [2] * 10)
    batches = TrainBatches(100, 16, 0, labels)
    drawn = []
    for epoch in range(20):
        batches.start_at(epoch, 0)
        keys = [key for batch in batches for key in batch]
        batches.start_at(epoch, 3)
        assert [key for batch in batches for key in batch] == keys[48:]  # as when it is resumed
        drawn += [labels[key.index] for key in keys]
    assert len(drawn) == 2000 and abs(drawn.count(2) - 1000) < 100

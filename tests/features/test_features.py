"""Features of a frozen backbone, computed once, train as those computed in each step."""

import json
import shutil
import signal
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import make_config
from pydantic import ValidationError
from runs import (
    PROJECT,
    Command,
    PowerCut,
    differences,
    make_settings,
    power_cut,
    read_csv,
    run_folder,
    train_until,
    without_times,
    write_config,
)

import callbacks
import train
from features import computing, feature_files, feature_set, progress
from system import chunk_file, stopping
from system.chunk_file import ChunkFile, JournaledFile
from training.mixing import mix_batch
from training.status import read_status

pytestmark = pytest.mark.usefixtures("blank_pictures")

ECO = {
    "model": "eco",
    "backbone": "efficientnet_lite0",
    "pretrained": "imagenet",
    "freeze": True,
    "feature_versions": 2,
    "nviews": 2,
    "frame_height": 32,
    "crop_size": 32,
    "batch_size": 11,
    "optimizer": "sgd",  # Adam's first steps make large differences of small ones
    "lr": 0.01,
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    own = make_settings(tmp_path_factory.mktemp("features"), **ECO)
    return {key: own[key] for key in own if key not in ("block_widths", "head_widths")}


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """The folder of a run with kept features that was never stopped."""
    return train_in(settings, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def plain(settings, tmp_path_factory):
    """The folder of a run whose features are computed in each step, and what it printed."""
    with redirect_stdout(StringIO()) as printed:
        folder = train_in(settings, tmp_path_factory.mktemp("plain"), feature_versions=0)
    return folder, printed.getvalue()


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    with (
        mock.patch.object(feature_set, "FRAMES_PER_CHUNK", 32),  # 8 clips: 3 chunks in a version
        mock.patch.object(chunk_file, "SECONDS_BETWEEN_SYNCS", 0),
    ):
        yield


def config_in(settings, folder, **keys) -> tuple[str, Path]:
    own = settings | keys | {"output_dir": str(folder)}
    return write_config(folder / "config.json", own), run_folder(own)


def train_in(settings, folder, *flags, **keys) -> Path:
    path, place = config_in(settings, folder, **keys)
    assert train.main(["-c", path, "-g", "cpu", *flags]) == 0
    return place


def history(folder):
    return without_times(read_csv(folder / "history.csv"))


def cut_computing(arguments, chunks) -> None:
    """Train until so many chunks of features are written, and the power goes."""
    write, written = JournaledFile.write, []

    def write_or_die(file, chunk, data):
        if len(written) == chunks:
            ChunkFile.write(file, chunk, data[: len(data) // 2])
            power_cut()
        written.append(chunk)
        write(file, chunk, data)

    with (
        mock.patch.object(JournaledFile, "write", write_or_die),
        mock.patch.object(JournaledFile, "close", ChunkFile.close),
        suppress(PowerCut),
    ):
        status = train.main(arguments)
        raise AssertionError(f"the run ended before it could be interrupted, with {status}")


def test_with_a_version_per_epoch_losses_are_those_of_features_computed_in_each_step(whole, plain):
    """They differ by the rounding of features to fp16, 11 bits, and what becomes of it."""
    folder, printed = plain
    assert "training is over" in printed and "features of" not in printed
    for kept, computed in zip(history(whole), history(folder), strict=True):
        for name in ("loss", "val_loss"):
            assert float(kept[name]) == pytest.approx(float(computed[name]), rel=5e-3)
    assert not (whole / "features").exists()


def test_evaluation_without_kept_features_gives_the_scores_of_training(settings, whole, tmp_path):
    path, folder = config_in(settings, tmp_path)
    shutil.copytree(whole, folder)
    expected = np.load(whole / "logits.npz")["logits"]
    assert train.main(["-c", path, "-g", "cpu", "--eval_only", "True", "--resume", "True"]) == 0
    np.testing.assert_allclose(np.load(folder / "logits.npz")["logits"], expected, atol=5e-3)


class EightClips(SimpleNamespace):
    def __len__(self):
        return 8


def test_the_status_says_how_many_features_are_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_STATUSES", 0)
    config = SimpleNamespace(run_folder=tmp_path)
    features = EightClips(frames_per_clip=3, name="train", num_versions=1, config=config)
    chunks = SimpleNamespace(todo=[0, 1], clips=lambda number: (0, range(4)))
    found = []

    def look():
        status = read_status(tmp_path)
        found.append((status.state, status.step, status.num_steps))

    with suppress(stopping.Stopped), progress.Progress(features, chunks) as shown:
        look()
        shown.update({"labels": [0] * 4})
        look()
        raise stopping.Stopped(signal.SIGTERM)
    look()
    assert found == [
        ("computing features", 0, 24),
        ("computing features", 12, 24),
        ("stopped", 12, 24),
    ]


@pytest.mark.slow
def test_one_version_is_used_in_each_epoch(settings, tmp_path):
    still = {"lr": 1e-9, "last_lr": 0.0, "dropout": 0.0, "batch_size": 22}
    losses = {}
    for versions in (1, 2):
        rows = history(train_in(settings, tmp_path, **still, feature_versions=versions))
        losses[versions] = [float(row["loss"]) for row in rows]
        shutil.rmtree(tmp_path / "tiny")
    assert losses[1][0] == losses[2][0]
    assert losses[1][1] == pytest.approx(losses[1][0], abs=1e-5)
    assert abs(losses[2][1] - losses[2][0]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("num_chunks, frames_left", [(0, 176), (4, 56), (6, 0)])
def test_a_killed_computing_is_continued(
    settings, whole, tmp_path, capsys, num_chunks, frames_left
):
    """Training clips have chunks of 8, 8 and 6 clips in each of two versions; then come others."""
    path, folder = config_in(settings, tmp_path)
    cut_computing(["-c", path, "-g", "cpu"], num_chunks)
    with open(folder / "features" / "train.f16.jsonl", "a") as journal:
        journal.write('{"chunk": 5, "si')  # the power went in the middle of a line
    capsys.readouterr()
    train_in(settings, tmp_path, "--resume", "auto")
    said = capsys.readouterr().out
    assert ("features of train clips:" in said) == (frames_left > 0)
    assert not frames_left or f"features of train clips: {frames_left} frames in" in said
    assert differences(folder, whole) == []


@pytest.mark.slow
def test_a_new_run_without_features_deletes_those_of_a_killed_computing(settings, tmp_path):
    path, folder = config_in(settings, tmp_path)
    cut_computing(["-c", path, "-g", "cpu"], 2)
    assert (folder / "features" / "train.f16").exists()
    path, _ = config_in(settings, tmp_path, feature_versions=0)
    train_until(["-c", path, "-g", "cpu"], epoch=0, step=1)
    assert not (folder / "features").exists()


@pytest.mark.slow
def test_an_epoch_is_resumed_with_the_features_that_are_there(settings, whole, tmp_path, capsys):
    path, folder = config_in(settings, tmp_path)
    train_until(["-c", path, "-g", "cpu"], epoch=1, step=1)
    capsys.readouterr()
    train_in(settings, tmp_path, "--resume", "True")
    assert "frames in" not in capsys.readouterr().out
    assert differences(folder, whole) == []


@pytest.mark.slow
def test_features_of_other_keys_are_computed_again(settings, tmp_path, capsys):
    path, _ = config_in(settings, tmp_path)
    train_until(["-c", path, "-g", "cpu"], epoch=1, step=0)
    capsys.readouterr()
    train_in(settings, tmp_path, "--resume", "True", affine_degrees=20.0, lr=0.002)
    said = capsys.readouterr().out
    assert "train.f16: was computed with other affine_degrees; computing again" in said
    assert "features of train clips: 176 frames in" in said


@pytest.mark.slow
def test_without_room_features_are_computed_in_each_step(
    settings, plain, tmp_path, capsys, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(feature_files.shutil, "disk_usage", lambda place: usage)
    folder = train_in(settings, tmp_path / "full")
    said = capsys.readouterr().out
    assert "has room for 0 MiB" in said
    assert "lower feature_versions, crop_size or clip_size" in said
    assert history(folder) == history(plain[0])
    assert not (folder / "features").exists()


def break_clip(settings, folder, set_name) -> dict:
    """Copy the data, damage a clip of a set; return the keys of the copy."""
    data = Path(settings["train_data_folder"]).parent
    shutil.copytree(data, folder / "data")
    keys = {
        key: value.replace(str(data), str(folder / "data"))
        for key, value in settings.items()
        if key.endswith(("_folder", "_csv"))
    }
    first = (folder / "data" / f"{set_name}.csv").read_text().split(";")[0]
    for frame in (folder / "data" / "clips" / first).iterdir():
        frame.write_bytes(b"")
    return keys


@pytest.mark.slow
@pytest.mark.parametrize("set_name", ["train", "validation"])
def test_bad_clips_stop_a_run_or_are_skipped(settings, tmp_path, capsys, set_name):
    keys = break_clip(settings, tmp_path, set_name) | {"max_bad_share": 0.5}
    path, _ = config_in(settings, tmp_path / "stop", **keys)
    assert train.main(["-c", path, "-g", "cpu"]) == 2
    assert "file is empty" in capsys.readouterr().err
    keys["on_bad_clip"] = "skip"
    kept = train_in(settings, tmp_path / "kept", **keys)
    plain = train_in(settings, tmp_path / "plain", **keys, feature_versions=0)
    rows = read_csv(kept / "bad_clips.csv")
    assert rows == read_csv(plain / "bad_clips.csv")
    assert {row["set"] for row in rows} == {set_name} and len(rows) == 2
    for one, other in zip(history(kept), history(plain), strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=5e-3)


def test_features_beyond_fp16_are_refused(settings, tmp_path, capsys, monkeypatch):
    backbone_function = computing.backbone_function

    @contextmanager
    def far_too_large(*arguments):
        with backbone_function(*arguments) as compute:
            yield lambda *windows: compute(*windows) * 1e6

    monkeypatch.setattr(computing, "backbone_function", far_too_large)
    path, _ = config_in(settings, tmp_path)
    assert train.main(["-c", path, "-g", "cpu"]) == 2
    assert "feature_versions: the backbone's features of train clips" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"freeze": False}, "feature_versions: found 2, but freeze is false"),
        ({"freeze": 3}, "feature_versions: found 2, but freeze is 3"),
        ({"model": "two_stream"}, "trn, average, not to two_stream"),
        ({"cutmix_alpha": 0.5}, "cutmix_alpha: found 0.5; features of whole frames"),
        ({"feature_versions": -1}, "greater than or equal to 0"),
    ],
)
def test_keys_that_exclude_kept_features(changes, message):
    keys = {key: ECO[key] for key in ("model", "pretrained", "freeze", "feature_versions")}
    make_config(**keys)
    with pytest.raises(ValidationError, match=message):
        make_config(**keys | changes)


@pytest.mark.parametrize("shape", [(4, 3, 5, 2, 2), (4, 3, 5)])
def test_mixup_blends_features_of_each_shape(shape):
    features, labels = torch.rand(shape), torch.tensor([0, 1, 2, 0])
    mixed, targets = mix_batch(features, labels, 3, make_config(mixup_alpha=0.5))
    share = targets[1, 1]
    assert 0 < share < 1
    torch.testing.assert_close(mixed[1], share * features[1] + (1 - share) * features[0])


# --- several processes -------------------------------------------------------------------------

SCRIPT = """
import os, sys, time
from contextlib import suppress
sys.path[:0] = [{project!r}, {tests!r}]
import callbacks, train
from features import feature_files, feature_set
from runs import die_for_real
from system import chunk_file

feature_set.FRAMES_PER_CHUNK, chunk_file.SECONDS_BETWEEN_SYNCS = 32, 0
callbacks.delete_features = lambda folder: None
how, *flags = sys.argv[1:]
if how != "shared":
    feature_files.has_file = lambda *_: False
write = chunk_file.JournaledFile.write
def write_or_die(file, chunk, data):
    if how == "killed" and chunk["chunk"] == 3:
        die_for_real()
    write(file, chunk, data)
chunk_file.JournaledFile.write = write_or_die
sys.exit(train.main(flags))
"""


@pytest.mark.slow
def test_two_processes_compute_the_same_features_and_weights(settings, tmp_path, monkeypatch):
    """Also if they do not share a disk, and one was killed; the features are those of one."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(project=str(PROJECT), tests=str(PROJECT / "tests")))
    folders = {}
    for name, hows in {"shared": ["shared"], "separate": ["killed", "separate"]}.items():
        path, folders[name] = config_in(settings, tmp_path / name)
        for how in hows:
            start = (*TORCHRUN, str(script), how)
            status, output, errors = Command(path, "--resume", "auto", start=start).finish()
            assert (status == 0) == (how != "killed"), output + errors
    assert differences(folders["shared"], folders["separate"]) == []
    monkeypatch.setattr(callbacks, "delete_features", lambda folder: None)
    alone = train_in(settings, tmp_path / "alone") / "features"
    for name in ("train.f16", "validation.f16"):
        for folder in folders.values():
            assert (folder / "features" / name).read_bytes() == (alone / name).read_bytes()


# --- files -------------------------------------------------------------------------------------


def test_a_file_is_continued_where_its_journal_ends(tmp_path):
    path, about = tmp_path / "features" / "numbers.f16", {"seed": 1, "shape": [4, 2]}
    file = JournaledFile(path, about)
    for number in range(3):
        chunk = {"chunk": number, "offset": 4 * number, "size": 4}
        file.write(chunk, np.full(2, number, np.float16))
    file.close()
    again = JournaledFile(path, about)
    assert (again.id, again.changed, sorted(again.chunks)) == (file.id, [], [0, 1, 2])
    assert again.array((3, 2), np.float16).tolist() == [[0, 0], [1, 1], [2, 2]]
    again.close()
    path.write_bytes(path.read_bytes()[:-1])
    cut = JournaledFile(path, about)
    assert (cut.changed, cut.chunks) == ([], {}) and cut.id != file.id
    cut.close()
    path.with_name("numbers.f16.jsonl").write_bytes(b"\xff[]\n")
    cut = JournaledFile(path, about)
    assert (cut.changed, cut.chunks) == ([], {})
    cut.close()
    other = JournaledFile(path, about | {"seed": 2})
    assert (other.changed, other.chunks) == (["seed"], {}) and other.id != file.id
    other.close()
    header = json.loads(path.with_name("numbers.f16.jsonl").read_text())
    assert header["about"] == {"seed": 2, "shape": [4, 2]}

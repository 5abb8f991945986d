"""Whole runs on a pack are those on the folder that it was made from, bit for bit."""

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from runs import (
    PROJECT,
    differences,
    make_settings,
    read_csv,
    run_folder,
    train_until,
    write_config,
)

import explain
import predict
import train
from clips.packing import Packing, pack
from clips.packs import Pack, PackedFrames

pytestmark = pytest.mark.usefixtures("blank_pictures")

FOLDERS = ("train_data_folder", "val_data_folder", "test_data_folder")


def make_pack(target, source, **options) -> Pack:
    bar = nullcontext(SimpleNamespace(update=lambda num_bytes: None))
    return pack(Path(target), [Path(source)], Packing(**options), lambda total: bar)


@pytest.fixture(scope="module")
def on_folder(tmp_path_factory):
    """The settings of a run on a folder, which is trained."""
    settings = make_settings(tmp_path_factory.mktemp("packed"))
    settings["test_data_csv"] = settings["val_data_csv"]
    assert train.main(arguments_for(settings)) == 0
    return settings


@pytest.fixture(scope="module")
def packed(on_folder) -> Pack:
    source = Path(on_folder["train_data_folder"])
    return make_pack(source.parent / "clips.zip", source)


@pytest.fixture
def settings(on_folder, packed, tmp_path):
    """The same settings, for the pack."""
    return on_folder | dict.fromkeys(FOLDERS, packed.path) | {"output_dir": str(tmp_path)}


def arguments_for(settings, *flags):
    path = Path(settings["output_dir"]) / "config.json"
    return ["-c", write_config(path, settings), "-g", "cpu", *flags]


def check_same(on_folder, settings):
    """All but the identity of the pack."""
    found = differences(run_folder(on_folder), run_folder(settings))
    assert [name for name in found if " train_pack: " not in name] == []


@pytest.mark.parametrize("num_workers", [0, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_training_and_resuming_within_an_epoch(on_folder, settings, num_workers, capsys):
    own = settings | {"num_workers": num_workers}
    train_until(arguments_for(own), epoch=1, step=1)
    assert train.main(arguments_for(own, "--resume")) == 0
    assert f"train: 22 clips in {own['train_data_folder']}\n" in capsys.readouterr().out
    check_same(on_folder, own)


def test_a_run_that_began_on_the_folder_goes_on_with_the_pack(on_folder, settings, capsys):
    folders = {key: on_folder[key] for key in FOLDERS}
    train_until(arguments_for(settings | folders), epoch=1, step=2)
    assert train.main(arguments_for(settings, "--resume")) == 0
    assert "the frames in" not in capsys.readouterr().out
    check_same(on_folder, settings)


@pytest.mark.slow
def test_two_processes(on_folder, settings, tmp_path):
    for name, own in (("folder", on_folder), ("pack", settings)):
        own = own | {"output_dir": str(tmp_path / name), "num_workers": 2}
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "train.py",
            *arguments_for(own),
        ]
        ended = subprocess.run(
            command,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert ended.returncode == 0, ended.stderr
    check_same(
        on_folder | {"output_dir": str(tmp_path / "folder")},
        settings | {"output_dir": str(tmp_path / "pack")},
    )


def test_a_pack_that_is_replaced_is_still_read_as_it_was(on_folder, settings, tmp_path):
    path = str(shutil.copy(settings["train_data_folder"], tmp_path / "own.zip"))
    own = settings | dict.fromkeys(FOLDERS, path) | {"num_workers": 2}
    train_step = train.train_step

    def step_and_replace(*arguments):
        if Path(path).exists():
            os.replace(
                make_pack(tmp_path / "new.zip", on_folder["train_data_folder"] + "/1").path, path
            )
        train_step(*arguments)

    with mock.patch.object(train, "train_step", step_and_replace):
        assert train.main(arguments_for(own)) == 0
    assert Pack(path).ids() == ["1"]
    check_same(on_folder, own)


def join_facts(folder):
    """Write the last checkpoint as earlier versions did: digest and identity in one text."""
    path = folder / "checkpoint.pth.tar"
    checkpoint = torch.load(path, weights_only=True)
    pack = checkpoint.pop("train_pack")
    assert pack and " " not in checkpoint["train_clips"]
    torch.save(checkpoint | {"train_clips": f"{checkpoint['train_clips']} {pack}"}, path)


@pytest.mark.slow
@pytest.mark.parametrize("is_old", [False, True])
def test_a_resumed_run_says_that_its_pack_has_changed(settings, tmp_path, capsys, is_old):
    path = str(shutil.copy(settings["train_data_folder"], tmp_path / "own.zip"))
    own = settings | dict.fromkeys(FOLDERS, path)
    said = f"changed since the checkpoint: the frames in {path}\n"
    assert train.main(arguments_for(own)) == 0
    if is_old:
        join_facts(run_folder(own))
    assert train.main(arguments_for(own | {"num_epochs": 3}, "--resume")) == 0
    assert "changed since the checkpoint: the" not in capsys.readouterr().out
    if is_old:
        join_facts(run_folder(own))
    make_pack(path, settings["train_data_folder"], height=24, quality=50)
    frames = tmp_path / "frames"
    shutil.unpack_archive(path, frames)
    shutil.copy(frames / "1/00001.jpg", frames / "1/00002.jpg")
    make_pack(path, frames)
    assert train.main(arguments_for(own | {"num_epochs": 4}, "--resume")) == 0
    assert said in capsys.readouterr().out


def flip_a_bit(path, clip_id, position):
    frames = PackedFrames(Pack(path).clip(clip_id), max_pixels=10**6)
    with open(path, "r+b") as file:
        file.seek(frames.offsets[position] + 100)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 16]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_is_one_bad_clip(settings, tmp_path, capsys, num_workers):
    path = str(shutil.copy(settings["train_data_folder"], tmp_path / "own.zip"))
    own = settings | dict.fromkeys(FOLDERS, path) | {"num_workers": num_workers}
    own |= {"sampling": "segments", "clip_size": 8, "max_bad_share": 0.2}  # each frame may be read
    for position in range(6):
        flip_a_bit(path, "8", position)
    assert train.main(arguments_for(own)) == 2
    assert f"error: {path}/8/0000" in capsys.readouterr().err
    own["on_bad_clip"] = "skip"
    assert train.main(arguments_for(own, "--overwrite")) == 0
    rows = read_csv(run_folder(own) / "bad_clips.csv")
    assert {(row["set"], row["id"]) for row in rows} == {("train", "8")} and len(rows) == 2
    assert all(
        row["reason"].startswith(f"{path}/8/0000") and "damaged (its CRC-32" in row["reason"]
        for row in rows
    )


# --- the other commands ------------------------------------------------------------------------


@pytest.fixture
def checkpoint(on_folder):
    return str(run_folder(on_folder) / "checkpoint.pth.tar")


def test_check_data_says_the_same(on_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(on_folder["train_data_folder"], "clips")
    data = bytearray(Path("clips/3/00002.jpg").read_bytes())
    Path("clips/3/00002.jpg").write_bytes(data[: len(data) // 2])
    Path("clips/5/00001.jpg").write_bytes(b"")
    Path("clips/4/00002.jpg").unlink()
    shutil.copy("clips/6/00001.jpg", "clips/6/00009.png")
    shutil.rmtree("clips/7")
    shutil.rmtree("clips/9")
    Path("clips/9").mkdir()
    shutil.copytree("clips/1", "clips/30")
    shutil.rmtree("clips/25")
    shutil.copytree("clips/1", "clips/25")
    make_pack("clips.zip", "clips")
    for num_workers in (0, 2):
        said, reports = [], []
        for folder in ("clips", "clips.zip"):
            own = on_folder | dict.fromkeys(FOLDERS, folder) | {"num_workers": num_workers}
            assert train.main(arguments_for(own | {"output_dir": "."}, "--check_data")) == 2
            said.append(capsys.readouterr().out.replace("clips.zip", "clips"))
            report = Path("data_report.csv").read_text()
            reports.append(
                [
                    line.replace("clips.zip", "clips")
                    for line in report.splitlines()
                    if ",empty clip," not in line
                ]
            )
            assert report.count(",empty clip,") == 1
        assert said[0] == said[1] and reports[0] == reports[1]
        for kind in (
            "damaged frame",
            "missing clip",
            "unlisted folder",
            "content in two sets",
            "misnumbered frames",
            "clip in two sets",
        ):
            assert any(f",{kind}," in line for line in reports[0]), kind


def test_check_data_reports_a_pack_that_cannot_be_used(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = shutil.copy(settings["train_data_folder"], "own.zip")
    flip_a_bit(path, "8", 1)
    own = settings | dict.fromkeys(FOLDERS, path)
    assert train.main(arguments_for(own, "--check_data")) == 2
    assert "own.zip/8/00002.jpg: damaged" in Path("data_report.csv").read_text()
    os.truncate(path, 9000)
    assert train.main(arguments_for(own, "--check_data")) == 2
    report = Path("data_report.csv").read_text()
    assert report.count("unreadable data folder") == 3 and "own.zip: a pack that is cut" in report
    assert train.main(arguments_for(own)) == 2
    assert "error: own.zip: a pack that is cut off" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--eval_only", "--test_only"])
def test_evaluation_and_its_pictures(on_folder, settings, checkpoint, tmp_path, flag):
    written = []
    for name, own in (("folder", on_folder), ("pack", settings)):
        own = own | {"output_dir": str(tmp_path / name), "checkpoint": checkpoint}
        assert train.main(arguments_for(own, flag, "--resume")) == 0
        folder = run_folder(own)
        written.append(
            {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".csv"}
        )
        if flag == "--eval_only":
            page = (folder / "report.html").read_text()
            written[-1]["pictures"] = page.count("data:image/webp")
            assert written[-1]["pictures"] > 0
    assert written[0] == written[1]


def test_an_ensemble(on_folder, settings, checkpoint, tmp_path, capsys):
    scores = []
    for own in (on_folder, settings):
        own = own | {"output_dir": str(tmp_path)}
        best = checkpoint.replace("checkpoint", "model_best")
        assert train.main(arguments_for(own, "-e", "--ensemble", checkpoint, best)) == 0
        scores.append([line for line in capsys.readouterr().out.splitlines() if "loss" in line])
    assert scores[0] == scores[1] and len(scores[0]) >= 3


@pytest.mark.slow
def test_predict(on_folder, packed, checkpoint, tmp_path):
    rows = []
    for path in (on_folder["train_data_folder"], packed.path, f"{packed.path}/25"):
        output = tmp_path / "found.csv"
        assert predict.main(["-c", checkpoint, "-g", "cpu", "-o", str(output), path]) == 0
        rows.append({row.pop("path"): row for row in read_csv(output)})
    on_pack = {path.replace("clips.zip", "clips"): row for path, row in rows[1].items()}
    assert on_pack == rows[0] and list(on_pack) == list(rows[0]) and len(on_pack) == 29
    assert rows[2] == {f"{packed.path}/25": rows[1][f"{packed.path}/25"]}
    saved = tmp_path / "25.gif"
    assert (
        predict.main(["-c", checkpoint, "-g", "cpu", "--save", str(saved), f"{packed.path}/25"])
        == 0
    )
    assert saved.stat().st_size > 1000


@pytest.mark.slow
def test_explain(on_folder, packed, checkpoint, tmp_path, capsys):
    said = []
    for name, folder in (("folder", on_folder["val_data_folder"]), ("pack", packed.path)):
        arguments = ["-c", checkpoint, "-g", "cpu", "--data", folder, on_folder["val_data_csv"]]
        assert explain.main([*arguments, "--clips", "1", "-o", str(tmp_path / name)]) == 0
        said.append(
            capsys.readouterr().out.replace("clips.zip", "clips").replace(str(tmp_path / name), "")
        )
    assert said[0] == said[1]

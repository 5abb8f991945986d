"""The commands as a user gives them, on a small data set and a tiny network."""

import json
import shutil
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from conftest import TINY_NETWORK, slow_except, write_data_set
from runs import curves, differences, read_csv, run_folder, train_until, without_times
from tensorboard import program

import train
from scoring import evaluation, results
from training.checkpoint import save_checkpoint
from utils import TrainingMetrics


def test_run_folder(write_config, settings, capsys):
    assert train.main(["--config", write_config()]) == 0
    folder = run_folder(settings)
    output = capsys.readouterr().out
    assert output.split("\n")[0].startswith(
        ("1 x CPU, training in fp32, evaluation in fp32, python", "1 x NVIDIA")
    )
    assert "train: 14 clips" in output and "validation: 7 clips" in output
    history = read_csv(folder / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert list(history[0]) == [
        "epoch",
        "loss",
        "top1",
        "grad_norm",
        "learning_rate",
        "seconds",
        "clips_per_second",
        "peak_memory_mib",
        "val_loss",
        "val_top1",
        "val_top1_low",
        "val_top1_high",
        "val_balanced",
    ]
    assert "top-1" in output and "top-3" not in output  # which is all clips of three classes
    used = json.loads((folder / "config.json").read_text())
    assert used["batch_size"] == 4 and used["dropout"] == 0.15
    assert json.loads((folder / "versions.json").read_text())[0]["torch"] == torch.__version__
    checkpoint = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    assert checkpoint["epoch"] == 2 and checkpoint["classes"] == ["Left", "Right", "Still"]
    assert (folder / "model_best.pth.tar").exists()


def test_the_used_config_starts_the_same_run_again(write_config, settings):
    assert train.main(["--config", write_config()]) == 0
    used = run_folder(settings) / "config.json"
    assert train.main(["--config", str(used), "--set", "model_name=again"]) == 0
    histories = [
        read_csv(Path(settings["output_dir"]) / name / "history.csv") for name in ("tiny", "again")
    ]
    assert without_times(histories[0]) == without_times(histories[1])


@pytest.mark.parametrize(
    "num_classes, names", [(5, ["loss", "top1"]), (6, ["loss", "top1", "top5"])]
)
def test_top_5_is_measured_where_there_are_more_than_5_classes(num_classes, names):
    logits, labels = -torch.arange(num_classes).float().repeat(2, 1), torch.tensor([0, 4])
    metrics = TrainingMetrics(num_classes)
    metrics.update(torch.tensor(1.0), logits, labels)
    scores = evaluation.score(logits, labels)
    assert list(metrics.averages()) == [*names, "grad_norm"] and list(scores) == names
    assert metrics.averages()["top1"] == scores["top1"] == 50
    assert scores.get("top5", 100) == 100
    assert ("top-5 100.00 %" in evaluation.format_scores(scores)) == (num_classes > 5)


def test_a_run_that_measured_more_goes_on(write_config, settings):
    """Earlier versions measured top-3 of three classes."""
    config = write_config(checkpoint_minutes=0)
    train_until(["-c", config], epoch=1, step=2)
    path = run_folder(settings) / "checkpoint.pth.tar"
    saved = torch.load(path, weights_only=True)
    saved["metrics"]["top3"] = [800.0, 8]
    saved["history"][0] |= {"top3": 100.0, "val_top3": 100.0}
    save_checkpoint(saved, path)
    assert train.main(["-c", config, "--resume"]) == 0
    first, second = read_csv(run_folder(settings) / "history.csv")
    assert (first["val_top3"], second["val_top3"]) == ("100", "")


@pytest.mark.parametrize("schedule", slow_except(["constant", "cosine", "plateau"], ["cosine"]))
def test_a_resumed_run_is_the_uninterrupted_one(write_config, settings, schedule):
    recipe = {"num_epochs": 4, "schedule": schedule, "plateau_patience": 0, "warmup_epochs": 0.5}
    assert train.main(["-c", write_config(model_name="whole", **recipe)]) == 0
    interrupted = write_config(model_name="parts", **recipe)

    train_until(["-c", interrupted], epoch=2, step=0)
    folders = [Path(settings["output_dir"]) / name for name in ("whole", "parts")]
    # What was logged after the checkpoint must not be seen twice.
    with open(next((folders[1] / "tensorboard" / "train").iterdir()), "ab") as file:
        file.write(b"half an event")
    assert train.main(["-c", interrupted, "--resume", "True"]) == 0

    assert differences(*folders) == []
    assert [step for step, _ in curves(folders[1])["validation", "top1"]] == [1, 2, 3, 4]


def test_overfits_eight_clips(tmp_path, write_config, settings):
    paths = write_data_set(tmp_path / "eight", {"train": 8}, num_frames=(7, 7))
    eight = paths | {
        "val_data_csv": paths["train_data_csv"],
        "num_epochs": 40,
        "batch_size": 8,
        "lr": 0.02,
        "dropout": 0.0,
        "affine_degrees": 0.0,
        "affine_translate": 0.0,
        "schedule": "cosine",
    }
    assert train.main(["-c", write_config(**eight)]) == 0
    last = read_csv(run_folder(settings) / "history.csv")[-1]
    assert float(last["top1"]) == 100 and float(last["val_top1"]) == 100
    assert float(last["loss"]) < 0.1 and float(last["val_loss"]) < 0.3


def test_pretrained_with_a_new_head(write_config, settings, capsys, tmp_path):
    assert train.main(["-c", write_config()]) == 0
    best = str(run_folder(settings) / "model_best.pth.tar")
    two_classes = tmp_path / "two.csv"
    two_classes.write_text("Right\nLeft\n")
    changes = {"model_name": "fine", "pretrained": best, "labels_csv": str(two_classes)}
    assert train.main(["-c", write_config(**changes)]) == 2
    assert "has 3 classes" in capsys.readouterr().err
    assert train.main(["-c", write_config(**changes, new_head=True)]) == 0
    assert "left out: label not in" in capsys.readouterr().out


@pytest.fixture
def trained(write_config, settings, capsys):
    config = write_config(num_epochs=1)
    assert train.main(["-c", config]) == 0
    capsys.readouterr()
    return config, run_folder(settings)


def test_evaluation_files(trained, capsys):
    config, folder = trained
    assert train.main(["--eval_only", "True", "--resume", "True", "--config", config]) == 0
    output = capsys.readouterr().out
    top1 = read_csv(folder / "history.csv")[-1]["val_top1"]
    assert f"top-1 {float(top1):.2f} %" in output and "per-class accuracy" in output
    rows = read_csv(folder / "predictions.csv")
    assert len(rows) == 7 and set(rows[0]) >= {"id", "label", "predicted", "confidence", "score3"}
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert 100 * right / 7 == pytest.approx(float(top1))
    saved = np.load(folder / "logits.npz", allow_pickle=False)
    assert saved["logits"].shape == (7, 3) and saved["ids"].tolist() == [r["id"] for r in rows]
    predicted = [saved["classes"][index] for index in saved["logits"].argmax(1)]
    assert predicted == [row["predicted"] for row in rows]
    assert (folder / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_a_training_ends_with_the_evaluation_of_its_last_epoch(trained, capsys):
    config, folder = trained
    names = ("predictions.csv", "confusion_matrix.png")
    before = {name: (folder / name).read_bytes() for name in names}
    first = results.read_logits(folder / "logits.npz")
    assert train.main(["-e", "--checkpoint", "last", "--config", config]) == 0
    second = results.read_logits(folder / "logits.npz")
    assert first.origin == second.origin and torch.equal(first.logits, second.logits)
    assert {name: (folder / name).read_bytes() for name in names} == before
    # One that died before it had written it goes on, and another does nothing anew.
    (folder / "logits.npz").unlink()
    for is_new in (True, False):
        times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert train.main(["--resume", "--config", config]) == 0
        third = results.read_logits(folder / "logits.npz")
        assert torch.equal(first.logits, third.logits) and first.origin == third.origin
        assert ((folder / "logits.npz").stat().st_mtime_ns != times.get("logits.npz")) == is_new
    # After another epoch they are of that.
    assert train.main(["--resume", "--config", config, "--set", "num_epochs=2"]) == 0
    (network,) = results.read_logits(folder / "logits.npz").origin.networks
    assert network.epoch == 2


def test_a_run_folder_in_use_is_refused_before_the_work(trained, monkeypatch, capsys):
    config, folder = trained
    monkeypatch.setattr(train, "start_run", lambda *_: pytest.fail("it has begun"))
    assert train.main(["--config", config]) == 2
    assert f"{folder}: already has a run" in capsys.readouterr().err


def test_evaluation_needs_the_weights_alone(write_config, settings, capsys):
    """Of a checkpoint within an epoch, whatever the config says of training by now."""
    config = write_config(checkpoint_minutes=0, ema_decay=0.5)
    train_until(["-c", config], epoch=1, step=2)
    folder, logits = run_folder(settings), []
    path = folder / "checkpoint.pth.tar"
    changes = [
        "batch_size=3",
        "optimizer=sgd",
        "seed=7",
        "train_data_csv=gone.csv",
        "ema_decay=0",
        "sync_batchnorm=true",
        "pretrained=gone.pth.tar",
    ]
    for flags in ([], [f"--set={change}" for change in changes]):
        capsys.readouterr()
        assert train.main(["-e", "-r", "-c", config, *flags]) == 0
        output = capsys.readouterr().out
        assert f"checkpoint {path}: 1 epochs, 2 steps\n" in output
        assert ("changed since the checkpoint: batch_size: 4 -> 3" in output) == bool(flags)
        logits.append(np.load(folder / "logits.npz")["logits"])
    assert np.allclose(*logits, atol=1e-5)
    saved = torch.load(path, weights_only=True)
    for key in ("optimizer", "metrics", "history", "bad_clips", "train_clips"):
        del saved[key]
    torch.save(saved, path)
    assert train.main(["-t", "-r", "-c", config]) == 0


@pytest.fixture(scope="module")
def best_and_last(data_set, tmp_path_factory):
    """The config and folder of a run of three epochs, of which the second is the best."""
    root = tmp_path_factory.mktemp("best")
    settings = (
        data_set
        | TINY_NETWORK
        | {
            "model_name": "three",
            "num_epochs": 3,
            "schedule": "constant",
            "batch_size": 7,
            "num_workers": 0,
            "output_dir": str(root),
        }
    )
    config = runs.write_config(root / "config.json", settings)
    score, top1 = evaluation.score, iter([40.0, 60.0, 50.0])

    def planned_score(*arguments):
        return score(*arguments) | {"top1": next(top1)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "score", planned_score)
        assert train.main(["-c", config, "-g", "cpu"]) == 0
    return config, root / "three"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--resume", "True"], "checkpoint.pth.tar"),
        (["--checkpoint", "last"], "checkpoint.pth.tar"),
        (["--checkpoint", "best"], "model_best.pth.tar"),
        (["--checkpoint", "best", "--resume", "True"], "model_best.pth.tar"),
        (["--checkpoint", "{folder}/model_best.pth.tar"], "model_best.pth.tar"),
        # The flag counts more than the key.
        (["--checkpoint", "last", "--set", "checkpoint=elsewhere.tar"], "checkpoint.pth.tar"),
    ],
)
def test_the_checkpoint_that_is_scored_is_chosen_and_said(best_and_last, flags, name, capsys):
    config, folder = best_and_last
    flags = [flag.format(folder=folder) for flag in flags]
    said = {
        "checkpoint.pth.tar": f"epoch 3 ({folder / name}); the best is of epoch 2: --checkpoint"
        " best",
        "model_best.pth.tar": f"epoch 2 ({folder / name})",
    }[name]
    assert train.main(["--eval_only", "True", "-c", config, "-g", "cpu", *flags]) == 0
    assert capsys.readouterr().out.splitlines()[-3:-1] == [
        f"scored: {said}",
        f"written to {folder}",
    ]
    saved = results.read_logits(folder / "logits.npz")
    (network,) = saved.origin.networks
    assert (network.path, network.epoch) == (str(folder / name), 2 if "best" in name else 3)
    scores = evaluation.score(saved.logits, saved.labels)
    row = read_csv(folder / "history.csv")[network.epoch - 1]
    assert scores["loss"] == pytest.approx(float(row["val_loss"]), rel=1e-5)
    assert train.main(["--test_only", "True", "-c", config, "-g", "cpu", *flags]) == 0
    assert f"predicted by: {said}\n" in capsys.readouterr().out


def test_training_goes_back_to_the_checkpoint_that_is_named(best_and_last, tmp_path, capsys):
    config, folder = best_and_last
    shutil.copytree(folder, tmp_path / "three")
    arguments = ["-c", config, "-g", "cpu", "--set", f"output_dir={tmp_path}"]
    assert train.main([*arguments, "--resume", "True", "--checkpoint", "best"]) == 0
    assert "three/model_best.pth.tar: 2 epochs" in capsys.readouterr().out
    weights = [
        torch.load(path / "checkpoint.pth.tar", weights_only=True)["state_dict"]
        for path in (folder, tmp_path / "three")
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "best"], "--checkpoint: needs --eval_only"),
        (["--checkpoint", "best", "--resume", "auto"], "--checkpoint: needs --eval_only"),
        (["--checkpoint", "best", "-e", "--ensemble", "a"], "replaces --resume and --checkpoint"),
        (["--checkpoint", "none.tar", "-e"], "none.tar: no such checkpoint"),
        (["--checkpoint", "best", "-e"], "model_best.pth.tar: no such checkpoint"),
    ],
)
def test_mistakes_with_a_checkpoint(write_config, capsys, flags, message):
    assert train.main(["-c", write_config(), "-g", "cpu", *flags]) == 2
    assert message in capsys.readouterr().err


def test_test_files_hold_no_accuracy(trained, settings, capsys):
    config, folder = trained
    assert train.main(["-t", "True", "-r", "-c", config]) == 0
    output = capsys.readouterr().out
    assert "top-1" not in output and "%" not in output
    rows = read_csv(folder / "test_predictions.csv")
    ids = Path(settings["test_data_csv"]).read_text().split()
    assert [row["id"] for row in rows] == ids and "label" not in rows[0]
    lines = (folder / "test_submission.csv").read_text().splitlines()
    assert lines == [f"{row['id']};{row['predicted']}" for row in rows]


def test_several_windows_are_averaged_as_probabilities(trained, capsys):
    config, folder = trained
    logits = {}
    for nclips in (1, 2):
        assert train.main(["-e", "-r", "-c", config, "--set", f"nclips={nclips}"]) == 0
        logits[nclips] = np.load(folder / "logits.npz")["logits"]
    assert np.exp(logits[2]).sum(1) == pytest.approx(1, abs=1e-5)
    assert (logits[1] != logits[2]).any()


def test_a_real_tensorboard_server_shows_the_curves(trained):
    _, folder = trained
    server = program.TensorBoard()
    server.configure(argv=[None, "--logdir", str(folder), "--port", "0", "--load_fast", "false"])
    url = server.launch()
    wanted = {
        "train": {"loss", "top1", "learning_rate", "clips_per_second"},
        "validation": {"loss", "top1"},
    }
    pictures = {"train": {"input"}, "validation": {"confusion_matrix"}}
    deadline, runs, images = time.monotonic() + 120, {}, {}
    while images != pictures or any(
        not tags <= runs.get(name, set()) for name, tags in wanted.items()
    ):
        assert time.monotonic() < deadline, (runs, images)
        time.sleep(0.2)
        tags = json.load(urllib.request.urlopen(url + "data/plugin/scalars/tags"))
        runs = {Path(run).name: set(tags[run]) for run in tags}
        shown = json.load(urllib.request.urlopen(url + "data/plugin/images/tags"))
        images = {Path(run).name: set(names) for run, names in shown.items()}
    run = next(run for run in tags if run.endswith("validation"))
    query = urllib.parse.urlencode({"tag": "top1", "run": run})
    curve = json.load(urllib.request.urlopen(f"{url}data/plugin/scalars/scalars?{query}"))
    ((_, step, value),) = curve
    history = read_csv(folder / "history.csv")
    assert step == 1 and value == pytest.approx(float(history[0]["val_top1"]), rel=1e-5)

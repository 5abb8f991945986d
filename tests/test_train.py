"""The commands as a user gives them, on a small data set and a tiny network."""

import json
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_data_set
from runs import curves, differences, read_csv, run_folder, train_until, without_times
from tensorboard import program

import evaluation
import train
from checkpoint import save_checkpoint
from utils import TrainingMetrics


def test_run_folder(write_config, settings, capsys):
    assert train.main(["--config", write_config()]) == 0
    folder = run_folder(settings)
    output = capsys.readouterr().out
    assert output.split("\n")[0].startswith(
        ("1 x CPU, training in fp32, evaluation in fp32, python", "1 x NVIDIA"))
    assert "train: 14 clips" in output and "validation: 7 clips" in output
    history = read_csv(folder / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert list(history[0]) == [
        "epoch", "loss", "top1", "grad_norm", "learning_rate", "seconds", "clips_per_second",
        "peak_memory_mib", "val_loss", "val_top1",
    ]  # fmt: skip
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
    histories = [read_csv(Path(settings["output_dir"]) / name / "history.csv")
                 for name in ("tiny", "again")]
    assert without_times(histories[0]) == without_times(histories[1])


@pytest.mark.parametrize("num_classes, names", [
    (5, ["loss", "top1"]), (6, ["loss", "top1", "top5"]),
])  # fmt: skip
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


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
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
        "val_data_csv": paths["train_data_csv"], "num_epochs": 40, "batch_size": 8, "lr": 0.02,
        "dropout": 0.0, "affine_degrees": 0.0, "affine_translate": 0.0, "schedule": "cosine",
    }  # fmt: skip
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
    assert "only in the checkpoint: Still" in capsys.readouterr().err
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
    wanted = {"loss", "top1"}
    deadline = time.time() + 30
    while time.time() < deadline:
        tags = json.load(urllib.request.urlopen(url + "data/plugin/scalars/tags"))
        runs = {Path(run).name: set(tags[run]) for run in tags}
        if len(runs) == 2:
            break
        time.sleep(0.2)
    assert runs["train"] >= wanted | {"learning_rate", "clips_per_second"}
    assert runs["validation"] >= wanted
    run = next(run for run in tags if run.endswith("validation"))
    query = urllib.parse.urlencode({"tag": "top1", "run": run})
    curve = json.load(urllib.request.urlopen(f"{url}data/plugin/scalars/scalars?{query}"))
    ((_, step, value),) = curve
    history = read_csv(folder / "history.csv")
    assert step == 1 and value == pytest.approx(float(history[0]["val_top1"]), rel=1e-5)
    images = json.load(urllib.request.urlopen(url + "data/plugin/images/tags"))
    assert {tag for tags in images.values() for tag in tags} == {"input", "confusion_matrix"}

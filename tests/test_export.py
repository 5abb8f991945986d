"""The exported network gives what the checkpoint's gives, and needs none of this code."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from runs import make_settings, run_folder, write_config

import export
import train
from clips.folders import open_clip
from clips.reading import window_input
from model import normalize_clips
from scoring.predictor import load_predictor

CPU = torch.device("cpu")


def train_one(folder, **keys):
    """A network after one epoch; returns its settings and checkpoint."""
    settings = make_settings(folder, num_epochs=1, checkpoint_minutes=10, **keys)
    if keys.get("model", "conv3d") != "conv3d":
        del settings["block_widths"], settings["head_widths"]
    assert train.main(["-c", write_config(folder / "config.json", settings), "-g", "cpu"]) == 0
    return settings, str(run_folder(settings) / "checkpoint.pth.tar")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_one(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    arguments = [
        "-c",
        trained[1],
        "-o",
        str(folder / "net.onnx"),
        "--program",
        str(folder / "net.pt2"),
    ]
    assert export.main(arguments) == 0
    return folder


def test_it_gives_what_predict_gives(trained, exported):
    import onnxruntime

    settings, checkpoint = trained
    predictor = load_predictor(checkpoint, CPU)
    session = onnxruntime.InferenceSession(str(exported / "net.onnx"))
    program = torch.export.load(exported / "net.pt2").module()
    for clip_id in ("23", "24"):
        source = open_clip(f"{settings['val_data_folder']}/{clip_id}", predictor.config)
        expected = predictor.scores(source).whole
        clips = window_input(source, (0, len(source)), predictor.config)
        (found,) = session.run(None, {"clips": clips})
        np.testing.assert_allclose(found[0], expected, atol=1e-5)
        np.testing.assert_allclose(program(torch.from_numpy(clips))[0].numpy(), expected, atol=1e-5)


def test_predictions_in_the_process_of_an_export_are_right(trained, tmp_path):
    """Whichever comes first: nothing that an export makes without values is used again."""
    predictor = load_predictor(trained[1], CPU)
    mean = [0.3, 0.2, 0.1]  # which no other test uses
    predictor.config = predictor.config.model_copy(update={"mean": mean})
    windows = np.random.default_rng(0).integers(0, 255, (2, 4, 20, 20, 3), np.uint8)
    network = export.FromBytes(predictor).eval()
    clips = torch.from_numpy(windows)
    for strict in (False, True):
        program = torch.export.export(network, (clips,), strict=strict).module()
        expected = predictor.probabilities(windows, 2)
        np.testing.assert_allclose(program(clips).detach().numpy(), expected, atol=1e-5)
        pixel = normalize_clips(clips, CPU, predictor.config)[0, :, 0, 0, 0]
        assert pixel.tolist() == pytest.approx(
            (windows[0, 0, 0, 0] / 255 - mean) / predictor.config.std, abs=1e-5
        )


def test_the_example_works_without_this_code(trained, tmp_path, capsys):
    path = tmp_path / "net.onnx"
    assert export.main(["-c", trained[1], "-o", str(path)]) == 0
    example = capsys.readouterr().out.split("\n\n")[1]
    assert len(example.strip().split("\n")) == 6
    command = [sys.executable, "-I", "-c", example]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown.split()[0] in ("Left", "Right", "Still")


def test_an_exported_network_that_differs_is_an_error(trained, exported):
    network = export.FromBytes(load_predictor(trained[1], CPU))
    export.check(exported / "net.onnx", network)
    with torch.no_grad():
        network.network.classifier.bias[0] += 1
    with pytest.raises(export.UserError, match="probabilities from onnxruntime and PyTorch differ"):
        export.check(exported / "net.onnx", network)


@pytest.mark.parametrize(
    "keys",
    [
        {"model": "cnn_lstm", "backbone": "mobilenet_v3_small"},
        {"model": "trn", "backbone": "mobilenet_v3_small"},
        {"model": "mobilenet3d", "width": 0.25},
        {"model": "csn", "width": 0.25},
    ],
    ids=lambda keys: keys["model"],
)
@pytest.mark.slow
def test_other_networks_are_exported_too(tmp_path, keys):
    _, checkpoint = train_one(tmp_path, crop_size=24, **keys)
    assert export.main(["-c", checkpoint, "-o", str(tmp_path / "net.onnx")]) == 0


def test_two_streams_are_refused(tmp_path, capsys):
    keys = {"model": "two_stream", "backbone": "mobilenet_v3_small"}
    _, checkpoint = train_one(tmp_path, crop_size=24, **keys)
    assert export.main(["-c", checkpoint, "-o", str(tmp_path / "net.onnx")]) == 2
    assert "two_stream takes optical flow" in capsys.readouterr().err

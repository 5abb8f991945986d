"""export.py: each kind of network, and its messages."""

import pytest
import torch
from conftest import make_config
from exported import train_one

import export
from exporting import checking
from exporting.classify import Classifier
from exporting.graph import build_graph
from exporting.package import NETWORK
from scoring.predictor import Predictor
from system.errors import UserError

SMALL_IMAGE_NETWORK = {"backbone": "mobilenet_v3_small", "crop_size": 24}


@pytest.mark.parametrize(
    "keys",
    [
        {"nclips": 2, "ncrops": 3, "nviews": 4},
        {"subtract_background": True, "sampling": "segments"},
        {"model": "cnn_lstm", **SMALL_IMAGE_NETWORK},
        {"model": "trn", **SMALL_IMAGE_NETWORK},
        {"model": "eco", "crop_size": 32, "frame_height": 32},
        {"model": "kernel_ridge", "crop_size": 32, "frame_height": 32},
        {"model": "linear"},
        {
            "model": "average",
            "members": ["conv3d", "eco", "kernel_ridge", "linear"],
            "combine": "product",
            "small_frame_height": 20,
            "crop_size": 32,
            "frame_height": 32,
            "subtract_background": True,
        },
        {"model": "mobilenet3d", "width": 0.25, "crop_size": 24},
        {"model": "csn", "width": 0.25, "crop_size": 24},
    ],
    ids=lambda keys: keys.get("model", "conv3d"),
)
@pytest.mark.slow
def test_every_kind_of_network_is_exported_and_agrees(tmp_path, monkeypatch, capsys, keys):
    monkeypatch.setattr(checking, "SPEED_SECONDS", 0)
    _, checkpoint = train_one(tmp_path, **keys)
    assert export.main(["-c", checkpoint, "-o", str(tmp_path / "net")]) == 0
    shown = capsys.readouterr().out
    assert "the same top class in" in shown and "windows per second" in shown
    about = Classifier(tmp_path / "net" / NETWORK).about
    assert about["network"]["model"] == keys.get("model", "conv3d")


class MeanOverVolumes(torch.nn.Module):
    """Has a function that ONNX lacks."""

    def forward(self, clips):
        return torch.nn.functional.adaptive_avg_pool3d(clips, (3, 5, 7)).flatten(1)[:, :2]


@pytest.mark.slow
def test_what_onnx_lacks_is_told():
    config = make_config(clip_size=4, crop_size=16, frame_height=16)
    predictor = Predictor(config, ["a", "b"], MeanOverVolumes(), torch.device("cpu"), epoch=1)
    with pytest.raises(UserError, match=r"^net\.tar: PyTorch .* cannot export conv3d: .*pool3d"):
        build_graph(predictor, "net.tar")


def test_two_streams_are_refused():
    config = make_config(model="two_stream")
    predictor = Predictor(config, ["a", "b"], None, torch.device("cpu"), epoch=1)
    with pytest.raises(UserError, match=r"^net\.tar: two_stream takes optical flow"):
        build_graph(predictor, "net.tar")

"""explain.py: the time probe, Grad-CAM, kernels, and what the stages make of a clip."""

import csv
import re

import numpy as np
import pytest
import torch
from conftest import CLASSES, make_config, write_data_set
from PIL import Image
from runs import make_settings, run_folder, write_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import explain
import train
from clips.transforms import REST, optical_flow
from explaining import grad_cam, layer_films
from explaining.layers import first_kernels, share_of_change, stage_outputs
from explaining.time_probe import TimeProbe, positions, reordered, table
from model import build_model
from networks.inference import fold_batchnorm
from scoring.predictor import load_predictor


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("explain")
    data = write_data_set(root / "more", {"train": 30, "validation": 9}, num_frames=(7, 10))
    settings = make_settings(root, checkpoint_minutes=10) | data
    assert train.main(["-c", write_config(root / "config.json", settings), "-g", "cpu"]) == 0
    return settings


def test_orders():
    rng = np.random.default_rng(0)
    assert positions("in order", 4, rng).tolist() == [0, 1, 2, 3]
    assert positions("reversed", 4, rng).tolist() == [3, 2, 1, 0]
    assert sorted(positions("shuffled", 4, rng)) == [0, 1, 2, 3]
    assert positions("frozen", 4, rng).tolist() == [2, 2, 2, 2]


def test_flow_is_computed_anew_for_the_new_order():
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 255, (8, 8, 1)), np.ones((6, 6, 3))).astype(np.uint8)
    colours = np.stack([np.roll(picture, 2 * t, axis=1) for t in range(4)])
    clip = np.concatenate([colours, optical_flow(colours)], axis=3)[None]
    forward, backward, frozen = (
        reordered(clip, places) for places in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 2, 2, 2])
    )
    assert (forward == clip).all()
    assert (
        np.median(forward[0, :3, 12:36, 12:36, 3])
        > REST
        > np.median(backward[0, :3, 12:36, 12:36, 3])
    )
    assert (frozen[..., 3:] == REST).all()


def test_pairs_that_swap_are_named():
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    predicted = {
        "in order": labels,
        "reversed": np.array([1, 1, 0, 0, 0, 2, 2]),
        "shuffled": labels,
        "frozen": np.zeros(7, int),
    }
    result = TimeProbe(CLASSES, labels, predicted)
    assert result.accuracy("in order") == 100
    assert result.accuracy("frozen") == pytest.approx(300 / 7)
    assert [(a, b, round(share)) for a, b, share in result.swapped()] == [
        ("Left", "Right", 67),
        ("Right", "Left", 100),
    ]
    assert "Right  are classified as Left (100 %)" in table(result)


def test_the_probe_in_order_is_the_evaluation(trained, tmp_path, capsys):
    checkpoint = str(run_folder(trained) / "checkpoint.pth.tar")
    assert explain.main(["-c", checkpoint, "-g", "cpu", "-o", str(tmp_path), "--clips", "0"]) == 0
    shown = capsys.readouterr().out
    saved = torch.load(checkpoint, weights_only=True)
    with open(tmp_path / "time_probe.csv", newline="") as file:
        rows = {row["what"]: float(row["percent"]) for row in csv.DictReader(file)}
    assert rows["in order"] == pytest.approx(saved["history"][-1]["val_top1"], abs=0.01)
    assert f"{rows['frozen']:.1f} %" in shown
    assert Image.open(tmp_path / "time_probe.png").size == (600, 300)


def test_all_pictures_are_written_and_shown_in_tensorboard(trained, capsys):
    folder = run_folder(trained)
    assert explain.main(["-c", str(folder / "checkpoint.pth.tar"), "-g", "cpu"]) == 0
    explained = folder / "explained"
    printed = capsys.readouterr().out
    assert "energy is change over time (random kernels: 50 %)" in printed
    assert re.search(r"random weights: mean rank correlation -?\d\.\d\d;", printed)
    names = {path.name for path in explained.iterdir() if "tfevents" not in path.name}
    clips = {name.split("_")[-1] for name in names if name.startswith("activations")}
    assert len(clips) == len(CLASSES)
    assert names == {"time_probe.csv", "time_probe.png", "kernels_blocks.0.0.gif"} | {
        f"{kind}_{clip}" for kind in ("activations", "grad_cam") for clip in clips
    }
    for path in explained.glob("*_[0-9]*.gif"):
        assert Image.open(path).n_frames == trained["clip_size"]
    reader = EventAccumulator(str(explained)).Reload()
    assert len(reader.Tags()["images"]) == len(names) - 1
    (shown,) = reader.Images("kernels_blocks.0.0")
    assert shown.encoded_image_string == (explained / "kernels_blocks.0.0.gif").read_bytes()


# --- inside a network --------------------------------------------------------------------------


class BrightRight(nn.Module):
    """Says class 0 as far as the right half is bright, class 1 as far as it is not."""

    def __init__(self):
        super().__init__()
        self.look = nn.Conv3d(3, 2, 1, bias=False)
        self.look.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]])[:, :, None, None, None]

    def forward(self, clips):
        bright = self.look(clips)[:, 0, ..., 4:].mean(dim=(1, 2, 3))
        return torch.stack([bright, -bright], dim=1)


def test_grad_cam_is_where_and_when_the_class_is_seen():
    clip = torch.zeros(1, 3, 4, 8, 8)
    clip[0, 0, 2, 3, 6] = 1.0
    outputs, logits = stage_outputs(BrightRight(), clip)
    values, stage = grad_cam.grad_cam(outputs, logits, 0, (4, 8, 8))
    assert stage == "look"
    assert values.max() == values[2, 3, 6] == 1
    assert (values > 0).sum() == 1
    against, _ = grad_cam.grad_cam(outputs, logits, 1, (4, 8, 8))
    assert (against == 0).all()


def test_maps_of_random_weights_are_compared(trained):
    predictor = load_predictor(run_folder(trained) / "checkpoint.pth.tar", torch.device("cpu"))
    state = torch.random.get_rng_state()
    first, second = (grad_cam.with_random_weights(predictor) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    names = predictor.network.state_dict()
    assert names.keys() == first.network.state_dict().keys()
    weights = [next(each.network.parameters()) for each in (first, second, predictor)]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])
    values = np.arange(24.0).reshape(2, 3, 4)
    assert grad_cam.similarity(values, values**2) == pytest.approx(1)
    assert grad_cam.similarity(values, -values) == pytest.approx(-1)
    assert np.isnan(grad_cam.similarity(values, np.zeros_like(values)))
    frames = np.full((2, 30, 40, 3), 200, np.uint8)
    maps = np.zeros((2, 2, 30, 40))
    maps[1, 0] = 1
    first, second = grad_cam.draw(frames, *maps, "a class")
    width = first.shape[1] // 3
    row = grad_cam.TITLE_HEIGHT * 2 + 100
    assert (first[row, width + 9] == 100).all()  # darkened, and no map on it
    assert (first[row, 2 * width + 9] > 100).any() and (second[row, 2 * width + 9] == 100).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "stage", "last"),
    [
        ({}, "blocks.0", (3, 1, 1, 1)),
        ({"model": "cnn_lstm"}, "backbone.layer2", (3, 6, 1, 1)),
        ({"model": "two_stream"}, "temporal.layer2", (3, 1, 1, 1)),
        (
            {"model": "trn", "backbone": "mobilenet_v3_small", "crop_size": 40},
            "backbone.features.3",
            (3, 3, 1, 1),
        ),
        ({"model": "mobilenet3d"}, "features.1", (3, 1, 1, 1)),
        ({"model": "csn", "width": 0.5}, "layers.1", (3, 1, 1, 1)),
        pytest.param(
            {"model": "swin3d_t", "crop_size": 64},
            "features.4",
            (3, 1, 1, 1),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_kind_of_network_can_be_looked_into(keys, stage, last):
    config = make_config(**{"clip_size": 6, "crop_size": 32} | keys)
    network = fold_batchnorm(build_model(config, 3))
    clip = torch.rand(1, config.num_channels, 6, *config.crop)
    outputs, logits = stage_outputs(network, clip)
    assert torch.equal(logits, network(clip))
    volumes = {name: output.volume() for name, output in outputs.items()}
    assert volumes[list(volumes)[-1]].shape == last
    values, found = grad_cam.grad_cam(outputs, logits, 0, (6, *config.crop))
    assert found == stage
    assert values.shape == (6, *config.crop) and np.isfinite(values).all()
    numbers = {name: volume.detach().numpy() for name, volume in volumes.items()}
    frames = np.zeros((6, *config.crop, 3), np.uint8)
    pictures = layer_films.draw_activations(frames, numbers, "a class")
    assert len(pictures) == 6 and len({picture.shape for picture in pictures}) == 1
    for films in first_kernels(network).values():
        assert films.shape[-1] == 3
        assert len(layer_films.draw_kernels(films.numpy())) == films.shape[1]


class LikeCudnn(torch.autograd.Function):
    """Passes an LSTM's output on; its backward pass fails where cuDNN's does."""

    @staticmethod
    def forward(ctx, output, has_backward):
        ctx.has_backward = has_backward
        return output.clone()

    @staticmethod
    def backward(ctx, gradient):
        if not ctx.has_backward:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        return gradient, None


def test_an_lstm_can_be_looked_into_where_cudnn_computes_it(monkeypatch):
    network = fold_batchnorm(build_model(make_config(model="cnn_lstm", clip_size=3), 3))
    clip, forward = torch.rand(1, 3, 3, 32, 32), nn.LSTM.forward
    expected = network(clip)

    def like_cudnn(lstm, inputs):
        output, states = forward(lstm, inputs)
        has_backward = lstm.training or not torch.backends.cudnn.enabled
        return LikeCudnn.apply(output, has_backward), states

    monkeypatch.setattr(nn.LSTM, "forward", like_cudnn)
    outputs, logits = stage_outputs(network, clip)
    assert torch.equal(logits, expected)
    values, _ = grad_cam.grad_cam(outputs, logits, 0, (3, 32, 32), "backbone.layer2")
    assert values.max() > 0
    assert not network.lstm.training


def test_the_share_of_change_tells_films_from_stills():
    still = torch.rand(2, 1, 3, 3, 3).expand(2, 4, 3, 3, 3)
    assert share_of_change(still) == pytest.approx(0, abs=1e-5)
    assert share_of_change(torch.cat([still[:, :2], -still[:, :2]], dim=1)) == pytest.approx(100)


def test_mistakes(trained, tmp_path, capsys):
    checkpoint = str(run_folder(trained) / "checkpoint.pth.tar")
    assert explain.main(["-c", str(tmp_path / "none.tar")]) == 2
    assert "no such checkpoint" in capsys.readouterr().err
    assert explain.main(["-c", checkpoint, "--data", "nowhere", "none.csv", "-g", "cpu"]) == 2
    assert "none.csv" in capsys.readouterr().err
    assert explain.main(["-c", checkpoint, "--stage", "block", "-g", "cpu"]) == 2
    assert "expected one of blocks.0, " in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert explain.main(["-c", checkpoint, "-g", "cpu", "-o", str(tmp_path / "file")]) == 2
    assert "set --output" in capsys.readouterr().err

"""Ridge regressions are fitted before the first epoch, on kept features or on the clips."""

import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
from runs import make_settings, read_csv, run_folder, write_config

import train
from networks.ridge import LinearModel
from scoring import fitting

pytestmark = pytest.mark.usefixtures("blank_pictures")

KEYS = {
    "model": "average",
    "members": ["eco", "kernel_ridge", "linear"],
    "backbone": "efficientnet_lite0",
    "backbone_layer": "blocks.1",
    "pretrained": "imagenet",
    "freeze": True,
    "frame_height": 32,
    "crop_size": 32,
    "num_epochs": 2,
}

LINEAR = {
    **dict.fromkeys(("backbone", "backbone_layer", "pretrained", "freeze")),
    "model": "linear",
    "members": [],
    "num_epochs": 1,
}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Train with these keys; return the weights that were fitted, and the run's folder."""
    monkeypatch.setattr(fitting, "NUM_VERSIONS", 2)

    def run(name, **keys):
        own = make_settings(tmp_path / name, **KEYS | keys | {"model_name": name})
        left_out = ("block_widths", "head_widths")
        own = {key: own[key] for key in own if key not in left_out and own[key] is not None}
        assert train.main(["-c", write_config(tmp_path / f"{name}.json", own), "-g", "cpu"]) == 0
        folder = Path(run_folder(own))
        state = torch.load(folder / "checkpoint.pth.tar", weights_only=True)["state_dict"]
        return {key: state[key] for key in state if ".classifier." in key or "scale" in key}, folder

    return run


@pytest.mark.slow
def test_kept_features_and_clips_give_the_same_fit(trained, capsys):
    kept, folder = trained("kept", feature_versions=2)
    text = capsys.readouterr().out
    num_clips = int(text.split("features: ")[1].split()[0])
    assert f"KernelRidge: fitted on {2 * num_clips} windows of the training clips" in text
    assert f"LinearModel: fitted on {num_clips} windows of the training clips" in text
    plain, _ = trained("plain", feature_versions=0)
    fitted = [name for name in kept if ".eco." not in name]
    assert len(fitted) == 6
    for name in fitted:
        torch.testing.assert_close(kept[name], plain[name], rtol=0.02, atol=0.02)
    assert kept["members.kernel_ridge.classifier.weight"].abs().max() > 0.1
    assert len(read_csv(folder / "history.csv")) == 2


def test_one_that_is_alone_is_scored_and_not_changed_by_epochs(trained, capsys):
    _, folder = trained("alone", model="kernel_ridge", members=[])
    output = capsys.readouterr().out
    assert "tensors loaded; 6 are fitted in closed form" in output and "random values" not in output
    first, second = read_csv(folder / "history.csv")
    assert float(first["learning_rate"]) == float(second["learning_rate"]) == 0
    assert first["val_top1"] and first["val_loss"] == second["val_loss"]


@pytest.mark.parametrize("balanced_sampling", [False, True])
def test_uneven_classes_count_equally_if_they_are_sampled_so(
    trained, monkeypatch, balanced_sampling
):
    fits = []
    monkeypatch.setattr(LinearModel, "fit", lambda *arguments: fits.append(arguments))
    trained("uneven", **LINEAR, balanced_sampling=balanced_sampling)
    assert [is_balanced for *_, is_balanced in fits] == [balanced_sampling]


class Terminal(StringIO):
    def isatty(self):
        return True


def test_fitting_has_a_bar_and_holds_out_groups(trained, monkeypatch):
    found, fit = [], LinearModel.fit

    def recorded(self, inputs, labels, clips, groups, is_balanced):
        found.append((clips, groups))
        fit(self, inputs, labels, clips, groups)

    monkeypatch.setattr(LinearModel, "fit", recorded)
    monkeypatch.setattr("sys.stderr", Terminal())
    trained("linear", **LINEAR, group="(.)$")
    assert "fitting LinearModel" in sys.stderr.getvalue()
    ((clips, groups),) = found
    assert len(set(clips.tolist())) == len(clips) > 10 >= len(set(groups.tolist())) > 1


def test_two_that_are_fitted_are_trained_together(trained):
    _, folder = trained("fitted", members=["kernel_ridge", "linear"], num_epochs=1)
    assert read_csv(folder / "history.csv")[0]["val_top1"]


def test_the_average_of_the_weights_has_the_fitted_values(trained):
    _, folder = trained("average", ema_decay=0.9, num_epochs=1)
    state = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    name = "members.kernel_ridge.classifier.weight"
    assert state["state_dict"][name].abs().max() > 0.1
    torch.testing.assert_close(state["state_dict_ema"][name], state["state_dict"][name])
    backbone = next(name for name in state["state_dict"] if name.startswith("backbone."))
    own, averaged = ("members.eco.classifier.weight", "members.kernel_ridge.projection")
    is_once = {
        name: state["state_dict"][name].data_ptr() == state["state_dict_ema"][name].data_ptr()
        for name in (name, averaged, backbone, own)
    }
    assert is_once == {name: True, averaged: True, backbone: True, own: False}

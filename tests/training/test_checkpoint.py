import argparse
import copy
import datetime
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_config, network_keys, slow_except
from published import PublishedNetwork
from torch import nn

from model import NETWORKS, ConvColumn, build_model
from system.errors import UserError
from training.checkpoint import (
    WRAPPERS,
    check_classes,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    training_set,
)

NAMES = [f"class {number}" for number in range(27)]


@pytest.fixture(scope="module")
def published():
    """The published network in evaluation mode, with running statistics that are not trivial."""
    torch.manual_seed(0)
    network = PublishedNetwork(27)
    network.train()
    with torch.no_grad():
        network(torch.randn(4, 3, 18, 84, 84))
    return network.eval()


def our_network():
    return ConvColumn(27, (18, 84, 84), [32, 64, 124, 256], [512, 512, 256], 0.15).eval()


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("zip_format", [True, False])
def test_published_checkpoints_give_the_same_logits(published, tmp_path, parallel, zip_format):
    network = nn.DataParallel(published) if parallel else published
    checkpoint = {
        "epoch": 225,
        "arch": "ConvColumn",
        "state_dict": network.state_dict(),
        "best_prec1": torch.tensor(85.08),
    }
    path = tmp_path / "published.pth.tar"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zip_format)
    model = our_network()
    load_weights(model, load_checkpoint(path), path)
    clips = torch.randn(2, 3, 18, 84, 84)
    with torch.no_grad():
        assert (model(clips) - published(clips)).abs().max() < 1e-5


def compiled_and_wrapped(network):
    """The names of each way to compile and to wrap, by the ways' own names."""
    names = list(network.state_dict())
    deep = [
        name.replace("conv_layer2.", "conv_layer2._orig_mod.").replace(
            "fc5.", "fc5._fsdp_wrapped_module."
        )
        for name in names
    ]
    prefixes = (
        "_orig_mod.",
        "module.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "_orig_mod._orig_mod.module.",
        "_fsdp_wrapped_module._orig_mod.",
    )
    return [
        (prefix, deep if is_deep else names)
        for prefix in ("", *prefixes)
        for is_deep in (False, True)
    ]


def test_what_wrapped_a_network_is_no_part_of_its_names(published):
    expected = our_network()
    load_weights(expected, {"state_dict": published.state_dict()}, "x.tar")
    for prefix, names in compiled_and_wrapped(published):
        weights = {
            prefix + name: value
            for name, value in zip(names, published.state_dict().values(), strict=True)
        }
        model = our_network()
        load_weights(model, {"state_dict": weights | {"n_averaged": torch.tensor(3)}}, "x.tar")
        assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))


def test_weights_of_compiled_and_averaged_modules_load():
    model, other = our_network(), our_network()
    wrapped = torch.optim.swa_utils.AveragedModel(torch.compile(model))
    assert all("_orig_mod" in name for name in wrapped.module.state_dict())
    load_weights(other, {"state_dict": wrapped.state_dict()}, "x.tar")
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))


def test_two_networks_in_one_checkpoint_are_not_mixed(published):
    weights = published.state_dict()
    both = weights | {f"_orig_mod.{name}": value + 1 for name, value in weights.items()}
    with pytest.raises(UserError, match=r"blocks.0.0.weight: occurs twice .*_orig_mod"):
        load_weights(our_network(), {"state_dict": both}, "x.tar")


@pytest.mark.parametrize("name", slow_except(NETWORKS, ["conv3d", "eco", "average"]))
def test_no_network_has_names_of_wrappers(name):
    with torch.device("meta"):
        model = build_model(make_config(**network_keys(name), clip_size=16, crop_size=224), 27)
    assert not {part for key in model.state_dict() for part in key.split(".")} & set(WRAPPERS)


def test_checkpoints_from_before_batch_counters_load(published):
    weights = {
        name: value
        for name, value in published.state_dict().items()
        if "num_batches_tracked" not in name
    }
    load_weights(our_network(), {"state_dict": weights}, "old.pth.tar")


def test_class_names_of_published_checkpoints_are_taken_to_be_the_same(published, capsys):
    checkpoint = {"state_dict": published.state_dict()}
    check_classes(checkpoint, NAMES, "x.pth.tar", "labels.csv")
    assert "has no class names" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (["a", "b", "x"], "class 2 is 'x' there, 'c' in l.csv; use the labels"),
        (["a", "b"], "has 2 classes, l.csv has 3: class 2 is None there, 'c' in l.csv"),
        (["a", "c", "b"], "class 1 is 'c' there, 'b' in l.csv, class 2 is"),
    ],
)
def test_other_classes_are_refused_with_the_difference(known, message):
    with pytest.raises(UserError, match=message):
        check_classes({"classes": known}, ["a", "b", "c"], "x.pth.tar", "l.csv")


def test_weights_of_another_network_name_the_first_difference():
    model = our_network()
    weights = model.state_dict()
    weights["blocks.0.0.weight"] = weights["blocks.0.0.weight"][:5]
    with pytest.raises(UserError, match=r"blocks\.0\.0\.weight is \[5, 3, 2, 3, 3\]"):
        load_weights(model, {"state_dict": weights}, "x.pth.tar")


class CreatesFile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("as_torch_file", [True, False])
def test_hostile_checkpoints_run_nothing(tmp_path, as_torch_file):
    path, trap = tmp_path / "hostile.pth.tar", tmp_path / "created"
    content = {"state_dict": {}, "epoch": CreatesFile(trap)}
    if as_torch_file:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    trap.unlink(missing_ok=True)
    with pytest.raises(UserError, match="could run code"):
        load_checkpoint(path)
    assert not trap.exists()


def test_only_plain_data_is_accepted(tmp_path):
    path = tmp_path / "strange.pth.tar"
    torch.save({"state_dict": {}, "config": {"device": torch.device("cpu")}}, path)
    with pytest.raises(UserError, match=r"damaged checkpoint: config\.device"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["conv3d", "average"])
def test_the_config_of_a_network_is_accepted(tmp_path, name):
    path, config = tmp_path / "one.pth.tar", make_config(**network_keys(name)).model_dump()
    save_checkpoint({"state_dict": {}, "config": config}, path)
    assert load_checkpoint(path)["config"] == config


def test_a_failed_save_leaves_the_old_checkpoint_whole(tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    save_checkpoint({"state_dict": {}, "epoch": 1}, path)
    before = copy.copy(path.read_bytes())
    with pytest.raises(Exception, match=r"pickle|local object"):
        save_checkpoint({"state_dict": {}, "epoch": lambda: 2}, path)
    assert path.read_bytes() == before and load_checkpoint(path)["epoch"] == 1


# --- checkpoints of other programs -------------------------------------------------------------


def saved(tmp_path, zip_format=True, **extra) -> Path:
    path = tmp_path / "foreign.pth"
    torch.save(
        {"state_dict": {"weight": torch.ones(2)}} | extra,
        path,
        _use_new_zipfile_serialization=zip_format,
    )
    return path


@pytest.mark.parametrize("zip_format", [True, False])
def test_numbers_of_numpy_are_read_as_numbers(tmp_path, zip_format):
    path = saved(
        tmp_path,
        zip_format,
        best_prec1=np.float32(85.5),
        epoch=np.int64(7),
        arch=np.str_("net"),
        acc={"top1": [np.float64(1), np.float16(2), np.bool_(True)]},
        history=[{"epoch": np.int32(7), "val_loss": np.float64(0.5)}],
    )
    found = load_checkpoint(path)
    values = {name: found[name] for name in ("best_prec1", "epoch", "arch", "history")}
    assert values == {
        "best_prec1": 85.5,
        "epoch": 7,
        "arch": "net",
        "history": [{"epoch": 7, "val_loss": 0.5}],
    }
    assert [type(value) for value in values.values()] == [float, int, str, list]


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (argparse.Namespace(lr=np.float64(0.1)), "argparse.Namespace"),
        (datetime.timedelta(1), "datetime.timedelta"),
        (Path("clips"), "pathlib"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (np.zeros(3), "numpy._core.multiarray._reconstruct"),
    ],
)
def test_what_is_not_plain_data_is_named_and_the_command_converts_it(
    tmp_path, monkeypatch, zip_format, value, name
):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, zip_format, args=value)
    with pytest.raises(UserError) as refusal:
        load_checkpoint(path)
    message = str(refusal.value)
    assert f"{path}: has more than plain data: {name}" in message and "\n" not in message
    assert "if you trust its author" in message and "earlier" not in message
    words = shlex.split(message[message.index("python -c") :])
    if zip_format and isinstance(value, argparse.Namespace):  # as a user runs it, once: it is slow
        subprocess.run([sys.executable, *words[1:]], check=True, timeout=120)
    else:
        assert words[:2] == ["python", "-c"]
        exec(words[2], {})
    assert load_checkpoint("foreign_weights.pth.tar")["state_dict"]["weight"].tolist() == [1, 1]


@pytest.mark.parametrize("function", [os.system, eval, subprocess.getoutput])
def test_no_command_is_given_for_what_only_runs_code(tmp_path, function):
    class Trap:
        def __reduce__(self):
            return function, ("0",)

    with pytest.raises(UserError) as refusal:
        load_checkpoint(saved(tmp_path, args=Trap()))
    message = str(refusal.value)
    assert f".{function.__name__})" in message and "take an earlier one" in message
    assert "python -c" not in message


@pytest.mark.parametrize(
    ("checkpoint", "found"),
    [
        ({"train_clips": "aa", "train_pack": "cc"}, ("aa", "cc")),
        ({"train_clips": "aa", "train_pack": ""}, ("aa", "")),
        ({"train_clips": "aa cc"}, ("aa", "cc")),  # as earlier versions wrote it
        ({"train_clips": "aa"}, ("aa", "")),
        ({}, (None, "")),  # a published one
    ],
)
def test_the_training_set_is_read_in_the_form_of_any_version(tmp_path, checkpoint, found):
    save_checkpoint({"state_dict": {}} | checkpoint, tmp_path / "a.pth.tar")
    assert training_set(load_checkpoint(tmp_path / "a.pth.tar")) == found

"""Convolutions that a machine computes wrong in 16 bits are found and computed in another way.

Faults are planted into `torch.nn.functional`, so that every processor can show them.
"""

import json
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import make_config
from runs import make_settings, run_folder, write_config

import train
from model import build_model
from networks.convolution_check import (
    affordable_shape,
    convolution_cases,
    find_faults,
    relative_errors,
    replace_wrong_convolutions,
)
from networks.convolutions import UnfoldedGradient, replace_slow_gradients
from system.device import to_device
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("blank_pictures")

CPU = torch.device("cpu")
TRUE_CONV3D = F.conv3d
SMALL = {"clip_size": 4, "crop_size": 20, "block_widths": [4, 8], "head_widths": [16, 8]}
NETWORKS = {
    "conv3d": SMALL,
    "csn": {"clip_size": 4, "crop_size": 20, "width": 0.25},
    "mobilenet3d": {"clip_size": 4, "crop_size": 20, "width": 0.25},
    "trn": {"clip_size": 2, "crop_size": 20, "backbone": "mobilenet_v3_small"},
    "two_stream": {"clip_size": 2, "crop_size": 20, "backbone": "mobilenet_v3_small"},
    "s3d": {"clip_size": 16, "crop_size": 32},
    "r2plus1d_18": {"clip_size": 4, "crop_size": 16},
}


def model_of(name, **keys):
    torch.manual_seed(0)
    config = make_config(model=name, **keys)
    return to_device(build_model(config, 3), CPU), config.clip_shape


class Unwritten(torch.autograd.Function):
    """The identity on a kernel whose gradient's first frame is left unwritten."""

    @staticmethod
    def forward(_context, weight):
        return weight.clone()

    @staticmethod
    def backward(_context, gradient):
        result = torch.empty_like(gradient)
        result[:, :, 1:] = gradient[:, :, 1:]
        return result


def is_in_16_bits():
    return torch.is_autocast_enabled("cpu")


def gradient_unwritten(inputs, weight, bias, stride, padding, *rest):
    """As oneDNN has it: where time is padded and the input has a frame fewer than the kernel."""
    is_hit = padding != "same" and padding[0] and inputs.shape[2] == weight.shape[2] - 1
    if is_in_16_bits() and is_hit:
        weight = Unwritten.apply(weight)
    return TRUE_CONV3D(inputs, weight, bias, stride, padding, *rest)


def gradient_always_wrong(inputs, weight, *rest):
    if is_in_16_bits() and weight.shape[2] > 1:
        weight = 0.9 * weight + 0.1 * weight.detach()
    return TRUE_CONV3D(inputs, weight, *rest)


def output_wrong(inputs, *rest):
    outputs = TRUE_CONV3D(inputs, *rest)
    return 1.1 * outputs if is_in_16_bits() else outputs


def planted(function):
    return mock.patch.object(F, "conv3d", function)


# --- what is found -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "conv3d" else [pytest.mark.slow]) for name in NETWORKS],
)
def test_each_networks_convolutions_are_right_in_the_end(name):
    """On a processor that computes one wrong, it is replaced, and all are right then, too."""
    model, clip_shape = model_of(name, **NETWORKS[name])
    replace_wrong_convolutions(model, clip_shape, 2, CPU, "bf16")
    assert find_faults(model, clip_shape, 2, CPU, "bf16", training=True) == []


def test_fp16_is_checked_likewise():
    model, clip_shape = model_of("conv3d", **SMALL)
    replace_wrong_convolutions(model, clip_shape, 2, CPU, "fp16")
    assert find_faults(model, clip_shape, 2, CPU, "fp16", training=True) == []


def test_an_unwritten_gradient_is_found_and_time_is_padded_beforehand(capsys):
    model, clip_shape = model_of("conv3d", **SMALL)
    names = list(model.state_dict())
    clips = torch.randn(2, 3, *clip_shape)
    expected = model.eval()(clips)
    with planted(gradient_unwritten):
        (fault,) = replace_wrong_convolutions(model, clip_shape, 8, CPU, "bf16")
        assert find_faults(model, clip_shape, 8, CPU, "bf16", training=True) == []
    assert fault.layers == ["blocks.1.3"] and fault.part == "weight gradient"
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert output.startswith(
        "bf16 convolutions that are wrong on this machine: blocks.1.3 (weight "
        "gradient of blocks.1.3 off by "
    )
    assert output.endswith("; time is padded separately\n")
    # In fp32 it is the same network, under the same names.
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(clips), expected)


@pytest.mark.parametrize("garbage", [0.0, 0.5, float("nan")])
def test_an_unwritten_gradient_is_found_whatever_freed_memory_holds(garbage):
    def backward(_context, gradient):
        result = torch.full_like(gradient, garbage)
        result[:, :, 1:] = gradient[:, :, 1:]
        return result

    layer = torch.nn.Conv3d(4, 4, (2, 3, 3), padding=1)
    with planted(gradient_unwritten), mock.patch.object(Unwritten, "backward", backward):
        errors = relative_errors(layer, (2, 4, 1, 5, 5), CPU, "bf16", training=True)
    assert errors["weight gradient"] > 0.1
    assert max(errors["output"], errors["input gradient"], errors["bias gradient"]) < 0.02


def test_what_no_padding_mends_is_computed_in_fp32(capsys):
    model, clip_shape = model_of("conv3d", **SMALL)
    with planted(gradient_always_wrong):
        replace_wrong_convolutions(model, clip_shape, 8, CPU, "bf16")
        assert find_faults(model, clip_shape, 8, CPU, "bf16", training=True) == []
        with torch.autocast("cpu", torch.bfloat16):
            assert model.blocks[0][0](torch.randn(2, 3, *clip_shape)).dtype == torch.float32
    output = capsys.readouterr().out
    assert "blocks.0.0, blocks.0.3, blocks.1.0, blocks.1.3 (weight gradient of " in output
    assert output.endswith("; computed in fp32\n")


def test_in_evaluation_only_the_output_is_checked():
    model, clip_shape = model_of("conv3d", **SMALL)
    with planted(gradient_unwritten):
        assert not replace_wrong_convolutions(model, clip_shape, 8, CPU, "bf16", training=False)
    with planted(output_wrong):
        faults = replace_wrong_convolutions(model, clip_shape, 8, CPU, "bf16", training=False)
    assert {fault.part for fault in faults} == {"output"}
    assert len([name for fault in faults for name in fault.layers]) == 5


def test_in_fp32_nothing_is_checked():
    model, clip_shape = model_of("conv3d", **SMALL)
    with planted(gradient_always_wrong):
        assert replace_wrong_convolutions(model, clip_shape, 8, CPU, "fp32") == []


# --- what is checked -----------------------------------------------------------------------------


def test_equal_convolutions_are_one_case():
    model, clip_shape = model_of("r3d_18", clip_size=4, crop_size=16)
    cases = convolution_cases(model, clip_shape, 5)
    layers = [name for names in cases.values() for name in names]
    assert len(layers) == len(set(layers)) == 20 and len(cases) == 11
    assert [
        "layer1.0.conv1.0",
        "layer1.0.conv2.0",
        "layer1.1.conv1.0",
        "layer1.1.conv2.0",
    ] in cases.values()
    assert {case.input_shape[0] for case in cases} == {5}


def test_frames_of_2d_networks_count_as_clips():
    model, clip_shape = model_of("trn", **NETWORKS["trn"])
    assert {case.input_shape[0] for case in convolution_cases(model, clip_shape, 5)} == {10}


def test_a_costly_convolution_is_checked_on_fewer_clips_and_smaller_pictures_of_all_frames():
    layer, shape = torch.nn.Conv3d(32, 32, (2, 3, 3), padding=1), (64, 32, 17, 82, 82)
    assert affordable_shape(layer, shape, 1e12) == (64, 32, 17, 82, 82)
    assert affordable_shape(layer, shape, 2e10) == (4, 32, 17, 82, 82)
    assert affordable_shape(layer, shape, 1e8) == (2, 32, 17, 10, 10)


# --- in a run ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_a_run_on_such_a_machine_trains_as_on_others(tmp_path, capsys, is_recomputed):
    losses = {}
    for name, function in (("right", TRUE_CONV3D), ("wrong", gradient_unwritten)):
        settings = make_settings(
            tmp_path / name,
            precision="bf16",
            checkpoint_activations=is_recomputed,
            eval_precision="bf16",
            ema_decay=0.5,
        )
        config = write_config(tmp_path / f"{name}.json", settings)
        with planted(function):
            assert train.main(["-c", config, "-g", "cpu"]) == 0
            assert train.main(["-c", config, "-g", "cpu", "--eval_only", "--resume"]) == 0
        saved = load_checkpoint(run_folder(settings) / "checkpoint.pth.tar")
        losses[name] = [row["loss"] for row in saved["history"]]
    assert "time is padded separately" in capsys.readouterr().out
    # Another way of rounding, which few steps amplify little.
    assert losses["wrong"] == pytest.approx(losses["right"], rel=0.02)


@pytest.mark.slow
def test_a_replaced_convolution_can_be_compiled(tmp_path):
    losses = {}
    for is_compiled in (False, True):
        settings = make_settings(
            tmp_path / str(is_compiled),
            precision="bf16",
            dropout=0.0,
            num_epochs=1,
            compile=is_compiled,
        )
        config = write_config(tmp_path / "config.json", settings)
        with planted(gradient_unwritten):
            assert train.main(["-c", config, "-g", "cpu"]) == 0
        saved = load_checkpoint(run_folder(settings) / "checkpoint.pth.tar")
        losses[is_compiled] = saved["history"][0]["loss"]
    assert losses[True] == pytest.approx(losses[False], rel=0.02)


def test_without_the_check_the_planted_fault_spoils_training(tmp_path):
    """So the tests above can fail."""
    settings = make_settings(tmp_path, precision="bf16")
    config = write_config(tmp_path / "config.json", settings)

    def backward(_context, gradient):
        return torch.full_like(gradient, torch.nan)

    with (
        planted(gradient_unwritten),
        mock.patch.object(Unwritten, "backward", backward),
        mock.patch("training.run.replace_wrong_convolutions", lambda *_, **__: []),
    ):
        assert train.main(["-c", config, "-g", "cpu"]) == 2


def test_scores_are_those_of_fp32_whatever_training_computes_in(tmp_path):
    settings = make_settings(tmp_path)
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-g", "cpu"]) == 0
    evaluate = ["-c", config, "-g", "cpu", "--eval_only", "--resume"]
    tables = {}
    for keys in (["precision=fp32"], ["precision=bf16"], ["precision=bf16", "eval_precision=bf16"]):
        overrides = [flag for key in keys for flag in ("--set", key)]
        assert train.main([*evaluate, *overrides]) == 0
        tables[keys[-1]] = (run_folder(settings) / "predictions.csv").read_bytes()
    assert tables["precision=bf16"] == tables["precision=fp32"]
    assert tables["eval_precision=bf16"] != tables["precision=fp32"]


def test_the_first_line_and_versions_name_both_precisions(tmp_path, capsys):
    settings = make_settings(tmp_path, precision="bf16", num_epochs=1)
    config = write_config(tmp_path / "config.json", settings)
    assert train.main(["-c", config, "-g", "cpu"]) == 0
    words = "1 x CPU, training in bf16, evaluation in fp32"
    assert capsys.readouterr().out.startswith(f"{words}, python")
    starts = json.loads((run_folder(settings) / "versions.json").read_text())
    assert starts[0]["devices"] == words


@pytest.mark.parametrize("key", ["precision", "eval_precision"])
def test_tf32_is_refused_where_there_is_none(tmp_path, capsys, key):
    config = write_config(tmp_path / "config.json", make_settings(tmp_path, **{key: "tf32"}))
    assert train.main(["-c", config, "-g", "cpu"]) == 2
    assert "precision, eval_precision: found tf32, which NVIDIA GPUs" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["conv3d", "csn"])
def test_gradients_without_cudnn_are_the_same(name):
    model, clip_shape = model_of(name, **NETWORKS[name])
    clips = torch.randn(2, 3, *clip_shape, requires_grad=True)

    def gradients():
        torch.manual_seed(0)  # for dropout
        wanted = [clips, *model.parameters()]
        return torch.autograd.grad(model(clips).square().sum(), wanted)

    expected = gradients()
    dense = [
        name
        for name, module in model.named_modules()
        if type(module) is torch.nn.Conv3d and module.groups == 1
    ]
    replace_slow_gradients(model)
    assert dense and all(type(model.get_submodule(name)) is UnfoldedGradient for name in dense)
    with mock.patch.object(torch.backends.cudnn, "flags", wraps=torch.backends.cudnn.flags) as off:
        found = gradients()
    assert [call.kwargs for call in off.call_args_list] == [{"enabled": False}] * len(dense)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)

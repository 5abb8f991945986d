"""Number formats: which one is chosen, and that training in each works and resumes."""

from unittest import mock

import pytest
import torch
from conftest import make_config as config_with
from conftest import slow_except
from runs import differences, make_settings, run_folder, train_until, write_config
from threadpoolctl import threadpool_info

import train
from model import build_model
from system import device
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("blank_pictures")

CPU = torch.device("cpu")


@pytest.fixture
def abilities():
    """Sets what the CPU says that it can do."""
    found = {}
    with mock.patch.object(torch.cpu, "get_capabilities", lambda: found):
        device.number_format.cache_clear()
        yield found
    device.number_format.cache_clear()


@pytest.mark.parametrize("ability", ["avx512_bf16", "amx_bf16"])
def test_auto_is_bf16_where_the_hardware_computes_in_it(abilities, ability):
    abilities[ability] = True
    assert device.number_format("auto", CPU) is torch.bfloat16
    assert device.precision_name("auto", CPU) == "bf16"


def test_auto_is_fp32_elsewhere_and_others_are_taken_at_their_word(abilities):
    abilities["avx512_bf16"] = False
    assert device.number_format("auto", CPU) is torch.float32
    assert device.number_format("bf16", CPU) is torch.bfloat16
    assert device.number_format("fp16", CPU) is torch.float16


@pytest.mark.parametrize(
    "cudnn, is_bad",
    [(90701, False), (90800, True), (91002, True), (91400, True), (91500, False), (None, False)],
)
def test_versions_that_compute_16_bit_convolutions_badly_are_known(cudnn, is_bad):
    assert bool(device.version_problem(cudnn, torch.bfloat16)) == is_bad
    assert device.version_problem(cudnn, torch.float32) is None
    if is_bad:
        assert f"cuDNN 9.{cudnn // 100 % 100} " in device.version_problem(cudnn, torch.float16)


@pytest.mark.parametrize("precision", slow_except(["bf16", "fp16"], ["bf16"]))
def test_training_in_16_bits_comes_close_to_fp32_and_resumes_exactly(tmp_path, precision):
    settings = make_settings(tmp_path, precision="fp32")
    losses = {}
    for name in ("fp32", precision):
        own = settings | {"precision": name, "model_name": name}
        config = write_config(tmp_path / f"{name}.json", own)
        assert train.main(["-c", config, "-g", "cpu"]) == 0
        saved = load_checkpoint(run_folder(own) / "checkpoint.pth.tar")
        losses[name] = saved["history"][0]["loss"]  # later ones part: rounding is amplified
        assert bool(saved["scaler"]) == (name == "fp16")
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses[precision] != losses["fp32"]

    whole = run_folder(settings | {"model_name": precision})
    resumed = settings | {
        "precision": precision,
        "output_dir": str(tmp_path / "resumed"),
        "model_name": precision,
    }
    config = write_config(tmp_path / "resumed.json", resumed)
    train_until(["-c", config, "-g", "cpu"], epoch=1, step=1)
    assert train.main(["-c", config, "-g", "cpu", "--resume", "True"]) == 0
    assert differences(run_folder(resumed), whole) == []


@pytest.mark.slow
def test_a_scale_that_is_too_high_leaves_steps_out_until_it_fits(tmp_path):
    """Infinite gradients move nothing, halve the scale, and can be resumed from."""
    settings = make_settings(tmp_path, precision="fp16", num_epochs=8)
    config = write_config(tmp_path / "config.json", settings)

    def scaler(*_):
        return torch.amp.GradScaler("cpu", init_scale=2.0**24)

    with mock.patch("training.run.loss_scaler", scaler):
        train_until(["-c", config, "-g", "cpu"], epoch=0, step=1)
        saved = load_checkpoint(run_folder(settings) / "checkpoint.pth.tar")
        assert saved["scaler"]["scale"] == 2.0**23
        assert not saved["optimizer"]["state"]
        assert train.main(["-c", config, "-g", "cpu", "--resume", "True"]) == 0
    saved = load_checkpoint(run_folder(settings) / "checkpoint.pth.tar")
    assert saved["scaler"]["scale"] < 2.0**23
    assert saved["optimizer"]["state"]
    assert saved["history"][-1]["loss"] < saved["history"][0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_compile_gives_the_losses_of_the_plain_network(tmp_path, is_recomputed):
    settings = make_settings(tmp_path, num_epochs=1, dropout=0.0)  # its noise differs
    losses = {}
    for is_compiled in (False, True):
        own = settings | {
            "compile": is_compiled,
            "model_name": f"compile {is_compiled}",
            "checkpoint_activations": is_recomputed,
        }
        config = write_config(tmp_path / "config.json", own)
        assert train.main(["-c", config, "-g", "cpu"]) == 0
        saved = load_checkpoint(run_folder(own) / "checkpoint.pth.tar")
        losses[is_compiled] = saved["history"][0]["loss"]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
    assert losses[True] != losses[False]


@pytest.mark.parametrize(
    "name, is_repeatable",
    [("conv3d", True), ("r3d_18", True), ("two_stream", True), ("csn", False), ("s3d", False)],
)
def test_networks_that_no_gpu_repeats_bit_for_bit_are_named(capsys, name, is_repeatable):
    with torch.device("meta"):
        model = build_model(config_with(model=name, clip_size=16, crop_size=64), 3)
    device.warn_if_not_repeatable(model, name)
    warning = capsys.readouterr().err
    assert bool(warning) != is_repeatable
    assert is_repeatable or (f"which {name} has" in warning and "deterministic" in warning)


def test_networks_are_compiled_for_fixed_shapes(tmp_path, monkeypatch):
    """Otherwise an epoch's last batch would make every shape dynamic, for good."""
    options = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _model, **given: options.append(given))
    config = write_config(tmp_path / "config.json", make_settings(tmp_path, compile=True))
    assert train.main(["-c", config, "-g", "cpu"]) == 0
    assert options == [{"dynamic": False}]


def test_in_a_pool_each_thread_has_one_core_and_afterwards_all_are_as_before():
    def threads_now(_=None):
        return torch.get_num_threads(), {
            each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"
        }

    torch.set_num_threads(3)
    before = threads_now()
    with device.one_core_each() as pool:
        assert list(pool.map(threads_now, range(9))) == [(1, {1})] * 9
    assert threads_now() == before

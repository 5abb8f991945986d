"""Activations computed twice: the same bits in less memory. And the peak that is reported."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import make_config, slow_except
from runs import differences, make_settings, read_csv, run_folder, train_until, write_config
from torch import nn

import train
from benchmarks import compare
from benchmarks.activations import kept_for_backward
from config import MODEL_OPTIONS
from model import build_model
from networks.convolution_check import replace_wrong_convolutions
from networks.inference import fold_batchnorm
from networks.recompute import recompute_activations
from networks.stages import describe, to_meta
from system.memory import format_bytes, peak_bytes, reset_peak

pytestmark = pytest.mark.usefixtures("blank_pictures")

CPU = torch.device("cpu")
NETWORKS = [
    "conv3d",
    "cnn_lstm",
    "trn",
    "two_stream",
    "eco",
    "mobilenet3d",
    "csn",
    "r3d_18",
    "r2plus1d_18",
    "swin3d_t",
]


def build_pair(name, **keys):
    """The same network twice, the second with its activations computed twice; and clips."""
    torch.manual_seed(0)
    config = make_config(model=name, clip_size=4, crop_size=40, **keys)
    model = build_model(config, 5)
    other = copy.deepcopy(model)
    recompute_activations(other)
    return model.train(), other.train(), torch.randn(2, config.num_channels, 4, 40, 40)


def step(model, clips):
    """Logits, gradients and state after a forward and backward pass, by name."""
    torch.manual_seed(1)
    logits = model(clips)
    logits.square().sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {"logits": logits, "next random number": torch.rand(1)} | gradients | model.state_dict()


def differing(found, expected):
    assert found.keys() == expected.keys()
    return [name for name in found if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize("name", slow_except(NETWORKS, ["conv3d"]))
def test_the_same_bits_in_less_memory(name):
    has_dropout = name in MODEL_OPTIONS["dropout"]
    model, other, clips = build_pair(name, **({"dropout": 0.5} if has_dropout else {}))
    assert kept_for_backward(other, clips) < 0.8 * kept_for_backward(model, clips)
    assert differing(step(other, clips), step(model, clips)) == []
    # Once more, where statistics and gradients of the first step are there already.
    assert differing(step(other, clips), step(model, clips)) == []
    model.eval(), other.eval()
    assert torch.equal(other(clips), model(clips))


def test_the_same_bits_in_bf16():
    model, _, clips = build_pair("conv3d")
    replace_wrong_convolutions(model, clips.shape[2:], len(clips), CPU, "bf16")
    other = copy.deepcopy(model)
    recompute_activations(other)
    with torch.autocast("cpu", torch.bfloat16):
        expected = step(model, clips)
        assert differing(step(other, clips), expected) == []


@pytest.mark.slow
def test_the_same_bits_with_synchronised_batchnorm():
    """Which in one process computes as BatchNorm does, and insists on its count."""
    model, other, clips = build_pair("r3d_18")
    model, other = map(nn.SyncBatchNorm.convert_sync_batchnorm, (model, other))
    assert differing(step(other, clips), step(model, clips)) == []


@pytest.mark.parametrize("name", ["conv3d", "cnn_lstm", "r3d_18"])
def test_a_copy_has_weights_of_its_own(name):
    _, model, clips = build_pair(name)
    duplicate = copy.deepcopy(model)
    with torch.no_grad():
        for value in itertools.chain(model.parameters(), model.buffers()):
            value.zero_()
    gradients = step(duplicate, clips)
    assert gradients["logits"].abs().max() > 0
    assert all(parameter.grad is not None for parameter in duplicate.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(buffer.any() for buffer in model.buffers())
    assert not {id(part) for part in model.modules()} & {id(part) for part in duplicate.modules()}


def test_every_copy_that_the_program_makes_works():
    model, other, clips = build_pair("mobilenet3d")
    assert describe(other, (4, 40, 40)) == describe(model, (4, 40, 40))
    assert all(parameter.is_meta for parameter in to_meta(other).parameters())
    assert torch.equal(fold_batchnorm(other)(clips), fold_batchnorm(model)(clips))
    assert list(other.state_dict()) == list(model.state_dict())
    for names in ("named_modules", "named_parameters", "named_buffers"):
        assert dict(getattr(other, names)()).keys() == dict(getattr(model, names)()).keys()


@pytest.mark.slow
def test_it_can_be_compiled():
    """The compiler's own partition recomputes; its rounding is that of the same operations."""
    model, other, clips = build_pair("conv3d", dropout=0.0, block_widths=[4], head_widths=[8])
    expected = step(model, clips)
    other.compile(backend="aot_eager")
    found = step(other, clips)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


def test_it_can_be_spread_over_processes(tmp_path):
    model, other, clips = build_pair("conv3d")
    expected = step(model, clips)
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        found = step(nn.parallel.DistributedDataParallel(other), clips)
    finally:
        dist.destroy_process_group()
    found = {name.replace("module.", ""): value for name, value in found.items()}
    assert differing(found, expected) == []


def test_an_overwritten_input_is_an_error_and_no_wrong_gradient():
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv3d(3, 4, 1)
            self.second = nn.Sequential(nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm3d(4)))

        def forward(self, clips):
            return self.second(self.first(clips))

    model = Overwriting()
    recompute_activations(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(torch.randn(1, 3, 2, 4, 4)).sum().backward()


def test_what_is_kept_is_counted_once_and_without_weights():
    clips = torch.randn(2, 3, 2, 4, 4)
    layers = nn.Sequential(nn.Conv3d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv3d(4, 4, 1))
    activations = 2 * 4 * 2 * 4 * 4
    assert kept_for_backward(layers, clips) == 4 * (clips.numel() + activations)


# --- runs ----------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one_and_the_one_without(tmp_path, capsys):
    settings = make_settings(tmp_path, checkpoint_activations=True)

    def config(name, **changes):
        return write_config(tmp_path / f"{name}.json", settings | {"model_name": name} | changes)

    assert train.main(["-c", config("whole"), "-g", "cpu"]) == 0
    train_until(["-c", config("parts"), "-g", "cpu"], epoch=1, step=1)
    assert train.main(["-c", config("parts"), "-g", "cpu", "--resume", "True"]) == 0
    without = config("without", checkpoint_activations=False)
    assert train.main(["-c", without, "-g", "cpu"]) == 0
    folders = [Path(settings["output_dir"]) / name for name in ("whole", "parts", "without")]
    assert differences(*folders[:2]) == []
    assert differences(folders[0], folders[2]) == []


def test_the_peak_is_printed_and_in_the_history(write_config, settings, capsys):
    assert train.main(["-c", write_config(), "-g", "cpu"]) == 0
    lines = [line for line in capsys.readouterr().out.split("\n") if "clips/s   peak " in line]
    history = read_csv(run_folder(settings) / "history.csv")
    assert len(lines) == len(history) == 2
    for line, row in zip(lines, history, strict=True):
        mib = float(row["peak_memory_mib"])
        assert mib > 50 and f"peak {format_bytes(mib * 2**20)}" in line


def test_the_peak_of_the_process_can_be_reset():
    before = peak_bytes(CPU)
    block = torch.ones(64 * 2**20)  # 256 MiB
    assert peak_bytes(CPU) >= block.nbytes
    del block
    reset_peak(CPU)
    assert 0 < peak_bytes(CPU) <= before + 512 * 2**20
    assert format_bytes(312.4 * 2**20) == "312 MiB" and format_bytes(1.25 * 2**30) == "1.2 GiB"


# --- benchmarks ----------------------------------------------------------------------------------


def test_comparisons_count_it_for_each_variant(write_config):
    options = compare.parse_arguments(["-c", write_config(), "--variant", "plain"])
    variants = [], ["checkpoint_activations=true"]
    kept = [compare.kept_a_clip(options, changes) for changes in variants]
    assert 0 < kept[1] < kept[0] < 10

"""What only a GPU can show: `python -m pytest -m gpu`."""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from conftest import TINY_NETWORK
from conftest import make_config as config_with
from runs import differences, make_settings, run_folder, train_until, write_config

import train
from benchmarks.step import make_config, our_trainer
from config import Config
from model import build_model, normalize_clips
from networks.inference import fold_batchnorm
from system.device import autocast, prepare, to_device
from training.run import start_run

pytestmark = pytest.mark.gpu
PRECISIONS = [
    name for name in get_args(Config.model_fields["precision"].annotation) if name != "auto"
]
SMALL = ["clip_size=4", "crop_size=20", "block_widths=[4, 8]", "head_widths=[8]"]
OPTIONS = [
    "seed=0",
    "accumulate_steps=2",
    "checkpoint_activations=true",
    "ema_decay=0.9",
    "mixup_alpha=0.4",
    "cutmix_alpha=0.4",
    "optimizer=sgd",
    "optimizer=adamw",
    *(f"precision={name}" for name in PRECISIONS),
]


@pytest.mark.parametrize("option", OPTIONS)
def test_a_training_step_never_waits_for_the_gpu(option):
    options = SimpleNamespace(batch_size=8, overrides=[*SMALL, option])
    train_step = our_trainer(torch.device("cuda", 0), make_config(options))
    for _ in range(2):
        train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_deterministic_run_resumes_bit_for_bit(tmp_path, precision):
    settings = make_settings(tmp_path, deterministic=True, precision=precision)
    resumed = settings | {"output_dir": str(tmp_path / "resumed")}
    whole, cut = (
        write_config(tmp_path / f"{number}.json", keys)
        for number, keys in enumerate((settings, resumed))
    )
    assert train.main(["-c", whole, "-g", "0"]) == 0
    train_until(["-c", cut, "-g", "0"], epoch=1, step=1)
    assert train.main(["-c", cut, "-g", "0", "--resume", "True"]) == 0
    assert differences(run_folder(resumed), run_folder(settings)) == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_gpu_gives_the_logits_of_the_cpu(precision):
    config = config_with(**TINY_NETWORK)
    clips = torch.randint(256, (16, 4, 20, 20, 3), dtype=torch.uint8)
    model, logits = fold_batchnorm(build_model(config, 5)), {}
    for device, used in ((torch.device("cpu"), "fp32"), (torch.device("cuda", 0), precision)):
        prepare(device, used, deterministic=False)
        with torch.inference_mode(), autocast(device, used):
            inputs = normalize_clips(clips, device, config)
            logits[device.type] = to_device(model, device)(inputs).float().cpu()
    difference = (logits["cuda"] - logits["cpu"]).norm() / logits["cpu"].norm()
    assert difference < {"fp32": 1e-4, "tf32": 5e-3, "fp16": 5e-3, "bf16": 3e-2}[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_gpu_gives_the_gradients_of_the_cpu(precision):
    config = config_with(**TINY_NETWORK, seed=0)
    clips = torch.randint(256, (16, 4, 20, 20, 3), dtype=torch.uint8)
    found = {}
    for device, used in ((torch.device("cpu"), "fp32"), (torch.device("cuda", 0), precision)):
        prepare(device, used, deterministic=False)
        config = config.model_copy(update={"precision": used})
        model = start_run(config, ["a", "b", "c"], device).model.eval()
        with autocast(device, used):
            logits = model(normalize_clips(clips, device, config))
        logits.float().square().sum().backward()
        found[device.type] = torch.cat([p.grad.flatten().cpu() for p in model.parameters()])
    difference = (found["cuda"] - found["cpu"]).norm() / found["cpu"].norm()
    assert difference < {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}[precision]

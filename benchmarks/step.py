"""Training step and evaluation of the tutorial's network: clips a second, and memory a clip."""

import statistics

import numpy as np
import torch

from benchmarks.machine import in_turn, seconds_of, synchronise
from benchmarks.plain import plain_evaluation, plain_step
from config import Config
from data_loader import Batch
from device import autocast, to_network_input
from loop import train_step
from model import build_model
from run import start_run

NUM_CLASSES = 27
GFLOP_A_CLIP = 8.87  # forward; a training step costs three times that


def measure(device, options, _folder) -> list[dict]:
    """Clips a second of a training step; the limit is the matrix product's own speed."""
    config = make_config(options.batch_size)
    run = start_run(config, [f"class {n}" for n in range(NUM_CLASSES)], device)
    run.network.train()
    batch, annotations = make_batch(options.batch_size), FakeAnnotations(options.batch_size)
    model, optimizer = plain_model(config, device)
    clips, labels = plain_clips(batch, config), batch.labels
    functions = {
        "plain": lambda: plain_step(model, optimizer, clips.to(device), labels.to(device)),
        "ours": lambda: train_step(run, batch, annotations),
    }
    row = clips_per_second(functions, options, device)
    row["limit"] = peak_flops(device, config.precision) / (3e9 * GFLOP_A_CLIP)
    rows = [row | {"what": f"training step, batch {options.batch_size}: clips/s (limit: matrix "
                           "product)"}]
    if device.type == "cuda":
        memory = {name: peak_memory(function, device) / options.batch_size / 2**20
                  for name, function in functions.items()}
        rows.append(memory | {"what": "training step: peak memory a clip, MiB",
                              "ratio": memory["plain"] / memory["ours"]})
    return rows


def measure_evaluation(device, options, _folder) -> list[dict]:
    """Clips a second without gradients; the plain way in batches of the same size."""
    config = make_config(options.batch_size)
    run = start_run(config, [f"class {n}" for n in range(NUM_CLASSES)], device)
    run.model.eval()
    batch = make_batch(options.batch_size)
    model, _ = plain_model(config, device)
    clips = plain_clips(batch, config)

    @torch.inference_mode()
    def ours():
        windows = to_network_input(batch.clips[:, 0], device, config.mean, config.std)
        with autocast(device, config.precision):
            run.model(windows)

    functions = {"plain": lambda: plain_evaluation(model, clips.to(device)), "ours": ours}
    row = clips_per_second(functions, options, device)
    row["limit"] = peak_flops(device, config.precision) / (1e9 * GFLOP_A_CLIP)
    return [row | {"what": f"evaluation, batch {options.batch_size}: clips/s (limit: matrix "
                           "product)"}]


def make_config(batch_size) -> Config:
    paths = ["train_data_folder", "train_data_csv", "val_data_folder", "val_data_csv", "labels_csv"]
    return Config(model_name="benchmark", **dict.fromkeys(paths, ""), batch_size=batch_size,
                  num_classes=NUM_CLASSES)


class FakeAnnotations:
    """The names of clips, for messages."""

    def __init__(self, num_clips):
        self.ids = np.arange(num_clips).astype(str)


def make_batch(batch_size) -> Batch:
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(256, (batch_size, 1, 18, 84, 84, 3), generator=generator)
    labels = torch.randint(NUM_CLASSES, (batch_size,), generator=generator)
    clips = clips.to(torch.uint8)
    if torch.cuda.is_available():
        clips = clips.pin_memory()
    return Batch(clips, labels, torch.arange(batch_size), [])


def plain_model(config, device):
    torch.manual_seed(config.seed)
    model = build_model(config, NUM_CLASSES).to(device)
    return model, torch.optim.Adam(model.parameters(), lr=config.lr, amsgrad=True)


def plain_clips(batch, config) -> torch.Tensor:
    """The same clips as the plain loader gives them: normalised floats [N, C, T, H, W]."""
    clips = to_network_input(batch.clips[:, 0], torch.device("cpu"), config.mean, config.std)
    return clips.contiguous()


def clips_per_second(functions, options, device) -> dict:
    seconds = in_turn(functions, options.rounds, device)
    row = {name: [options.batch_size / s for s in values] for name, values in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(row["ours"], row["plain"], strict=True))
    return row | {"ratio": ratio}


def peak_flops(device, precision) -> float:
    """Operations a second of a large matrix product in the number format of the step."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    left @ right
    fastest = min(seconds_of(lambda: left @ right, device) for _ in range(5))
    return 2 * side**3 / fastest


def peak_memory(function, device) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    function()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device)

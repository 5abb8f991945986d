"""Training step and evaluation of the tutorial's network: clips a second, and memory a clip."""

import statistics

import numpy as np
import torch

from benchmarks.machine import in_turn, seconds_of, synchronise
from benchmarks.plain import plain_evaluation, plain_step
from config import Config
from data_loader import Batch
from device import autocast, number_format, precision_name, to_network_input
from loop import train_step
from model import build_model, for_inference
from run import start_run

NUM_CLASSES = 27
GFLOP_A_CLIP = 8.87  # forward; a training step costs three times that


def measure(device, options, _folder) -> list[dict]:
    """Clips a second of a training step; the limit is the matrix product's own speed."""
    rows = [measure_batch(device, options, options.batch_size)]
    if device.type == "cuda":
        rows += memory_rows(device, options)
    return rows


def measure_batch(device, options, batch_size) -> dict:
    config = make_config(batch_size)
    functions = training_steps(device, config)
    row = clips_per_second(functions, options.rounds, batch_size, device)
    peak = peak_flops(device, config.precision)
    row["limit"] = peak / (3e9 * GFLOP_A_CLIP)
    row["share_of_peak"] = statistics.median(row["ours"]) / row["limit"]
    what = f"training step, batch {batch_size}: clips/s (limit: matrix product)"
    return row | {"what": what, "precision": precision_name(config.precision, device)}


def training_steps(device, config) -> dict:
    """A step of the plain way and one of ours, on a batch of the same clips."""
    run = start_run(config, [f"class {n}" for n in range(NUM_CLASSES)], device)
    run.network.train()
    batch, annotations = make_batch(config.batch_size), FakeAnnotations(config.batch_size)
    model, optimizer = plain_model(config, device)
    clips, labels = plain_clips(batch, config), batch.labels
    return {
        "plain": lambda: plain_step(model, optimizer, clips.to(device), labels.to(device)),
        "ours": lambda: train_step(run, batch, annotations),
    }


def memory_rows(device, options) -> list[dict]:
    """Peak memory a clip, and the largest batch that fits with the speed that it gives."""
    steps = training_steps(device, make_config(options.batch_size))
    per_clip = {name: peak_memory(function, device) / options.batch_size / 2**20
                for name, function in steps.items()}
    del steps
    largest = {name: largest_batch(name, device, options.batch_size) for name in per_clip}
    functions = {
        name: training_steps(device, make_config(size))[name] for name, size in largest.items()
    }
    speed = {name: [largest[name] / s for s in times]
             for name, times in in_turn(functions, options.rounds, device).items()}
    ratio = statistics.median(speed["ours"]) / statistics.median(speed["plain"])
    return [
        per_clip | {"what": "training step: peak memory a clip, MiB",
                    "ratio": per_clip["plain"] / per_clip["ours"]},
        largest | {"what": "training step: largest batch that fits, clips",
                   "ratio": largest["ours"] / largest["plain"]},
        speed | {"what": "training step, the largest batch of each: clips/s", "ratio": ratio},
    ]


def largest_batch(name, device, smallest) -> int:
    """Clips of the largest batch that a step can be done with, in multiples of `smallest`."""
    fits, size = smallest, 2 * smallest
    while _fits(name, device, size):
        fits, size = size, 2 * size
    step = fits // 4
    while step >= smallest:
        fits, step = (fits + step, step) if _fits(name, device, fits + step) else (fits, step // 2)
    return fits


def _fits(name, device, batch_size) -> bool:
    try:
        training_steps(device, make_config(batch_size))[name]()
        synchronise(device)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def measure_evaluation(device, options, _folder) -> list[dict]:
    """Clips a second without gradients: batches of the default size beside the plain way's."""
    config = make_config(options.batch_size)
    model, _ = plain_model(config, device)
    ours = for_inference(model.to(memory_format=torch.channels_last_3d))
    plain, _ = plain_model(config, device)
    plain_batch, batch = make_batch(config.batch_size), make_batch(config.videos_per_eval_batch)
    clips = plain_clips(plain_batch, config)

    @torch.inference_mode()
    def our_evaluation():
        windows = to_network_input(batch.clips[:, 0], device, config.mean, config.std)
        with autocast(device, config.precision):
            ours(windows)

    def plain_evaluations():  # of as many clips
        for _ in range(0, len(batch.labels), config.batch_size):
            plain_evaluation(plain, clips.to(device))

    functions = {"plain": plain_evaluations, "ours": our_evaluation}
    row = clips_per_second(functions, options.rounds, len(batch.labels), device)
    row["limit"] = peak_flops(device, config.precision) / (1e9 * GFLOP_A_CLIP)
    what = f"evaluation, batch {len(batch.labels)}: clips/s (limit: matrix product)"
    return [row | {"what": what, "precision": precision_name(config.precision, device)}]


def make_config(batch_size) -> Config:
    paths = ["train_data_folder", "train_data_csv", "val_data_folder", "val_data_csv", "labels_csv"]
    return Config(model_name="benchmark", **dict.fromkeys(paths, ""), batch_size=batch_size,
                  num_classes=NUM_CLASSES)


class FakeAnnotations:
    """The names of clips, for messages."""

    def __init__(self, num_clips):
        self.ids = np.arange(num_clips).astype(str)


def make_batch(batch_size, clip_shape=(18, 84, 84)) -> Batch:
    """Noise, as a loader would give it; clip_shape: (T, H, W)."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(256, (batch_size, 1, *clip_shape, 3), generator=generator)
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


def clips_per_second(functions, rounds, num_clips, device) -> dict:
    seconds = in_turn(functions, rounds, device)
    row = {name: [num_clips / s for s in values] for name, values in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(row["ours"], row["plain"], strict=True))
    return row | {"ratio": ratio}


def peak_flops(device, precision) -> float:
    """Operations a second of a large matrix product in the number format of the step."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = number_format(precision, device)
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

"""Training step and evaluation of a network: clips per second, and memory per clip."""

import functools
import statistics

import torch

from benchmarks import limit
from benchmarks.machine import apart, in_turn_apart, synchronise
from benchmarks.plain import plain_evaluation, plain_step
from clips.batches import Batch
from config import Config
from model import build_model
from networks.inference import for_inference
from system.config_file import parse_override
from system.device import (
    evaluating,
    number_format,
    precision_name,
    prepare,
    to_device,
    to_network_input,
)
from system.memory import MIB
from train import train_step
from training.run import start_run

NUM_CLASSES = 27


def measure(device, options, _folder):
    """Clips per second of a training step; on a GPU also its memory per clip."""
    config = make_config(options)
    makers = {name: (maker, (device, config)) for name, maker in MAKERS.items()}
    sizes = dict.fromkeys(makers, options.batch_size)
    row = clips_per_second(in_turn_apart(makers, options.rounds, device), sizes)
    what = f"training step, batch {options.batch_size}: clips/s"
    yield against_the_limit(row, what, device, config, options.batch_size, is_training=True)
    if device.type == "cuda":
        per_clip = {name: apart(peak_memory, maker, device, config) / options.batch_size / MIB
                    for name, maker in MAKERS.items()}
        what = f"training step, batch {options.batch_size}: peak memory per clip, MiB"
        yield per_clip | {"what": what, "ratio": per_clip["plain"] / per_clip["ours"]}


def measure_evaluation(device, options, _folder):
    """Clips per second of evaluation, each way with its default batch size."""
    config = make_config(options)
    sizes = {"plain": config.batch_size, "ours": config.videos_per_eval_batch}
    makers = {name: (maker, (device, config)) for name, maker in EVALUATORS.items()}
    row = clips_per_second(in_turn_apart(makers, options.rounds, device), sizes)
    what = f"evaluation, batch {sizes['ours']}: clips/s"
    yield against_the_limit(row, what, device, config, sizes["ours"], is_training=False)


# --- a training step ---------------------------------------------------------------------------


def plain_trainer(device, config):
    """A function that does one plain training step, with clips as the plain loader returns them."""
    model, optimizer = plain_model(config, device)
    batch = make_batch(config, config.batch_size)
    clips, labels = plain_clips(batch, config), batch.labels
    return lambda: plain_step(model, optimizer, clips.to(device), labels.to(device))


def our_trainer(device, config):
    prepare(device, config.precision, config.deterministic)
    run = start_run(config, [f"class {n}" for n in range(NUM_CLASSES)], device)
    if config.compile:
        run.model.compile(dynamic=False)  # shapes: full batches, and the last of an epoch
    run.network.train()
    batch = make_batch(config, config.batch_size)
    return functools.partial(train_step, run, batch, [config.batch_size])


MAKERS = {"plain": plain_trainer, "ours": our_trainer}


def peak_memory(maker, device, config) -> int:
    """Peak bytes of tensors in a training step, after a first one."""
    torch.cuda.set_device(device)
    step = maker(device, config)
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device)


# --- evaluation --------------------------------------------------------------------------------


def plain_evaluator(device, config):
    model, _ = plain_model(config, device)
    clips = plain_clips(make_batch(config, config.batch_size), config)
    return lambda: plain_evaluation(model, clips.to(device))


def our_evaluator(device, config):
    prepare(device, config.precision, config.deterministic)
    model, _ = plain_model(config, device)
    model = for_inference(to_device(model, device))
    batch = make_batch(config, config.videos_per_eval_batch)

    def evaluate():
        windows = to_network_input(batch.clips[:, 0], device, config)
        with evaluating(device, config):
            model(windows)

    return evaluate


EVALUATORS = {"plain": plain_evaluator, "ours": our_evaluator}


# --- what both need ----------------------------------------------------------------------------


def make_config(options) -> Config:
    """The tutorial's config with the changes of `--set`."""
    paths = ["train_data_folder", "train_data_csv", "val_data_folder", "val_data_csv", "labels_csv"]
    keys = {"model_name": "benchmark", **dict.fromkeys(paths, ""), "num_classes": NUM_CLASSES,
            "batch_size": options.batch_size}  # fmt: skip
    return Config(**keys | dict(map(parse_override, options.overrides)))


def make_batch(config, num_clips) -> Batch:
    """A batch of noise, as a loader returns it."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_clips, 1, config.clip_size, *config.crop, 3)
    clips = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(NUM_CLASSES, (num_clips,), generator=generator)
    if torch.cuda.is_available():
        clips = clips.pin_memory()
    return Batch(clips, labels, torch.arange(num_clips), [])


def plain_model(config, device):
    torch.manual_seed(config.seed)
    model = build_model(config, NUM_CLASSES).to(device)
    return model, torch.optim.Adam(model.parameters(), lr=config.lr, amsgrad=True)


def plain_clips(batch, config) -> torch.Tensor:
    """The same clips as the plain loader returns them: normalised floats [N, C, T, H, W]."""
    clips = to_network_input(batch.clips[:, 0], torch.device("cpu"), config)
    return clips.contiguous()


def clips_per_second(seconds, num_clips) -> dict:
    """Clips/s in each round, and the median ratio; num_clips: per call, for each way."""
    row = {name: [num_clips[name] / s for s in values] for name, values in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(row["ours"], row["plain"], strict=True))
    return row | {"ratio": ratio}


def against_the_limit(row, what, device, config, num_clips, is_training) -> dict:
    """Adds the highest clips/s that the device allows, and the share of it that ours reaches.

    num_clips: in one of our batches.
    """
    precision = config.precision if is_training else config.eval_precision
    number_type = number_format(precision, device)
    work = limit.count(config, num_clips, NUM_CLASSES, is_training, number_type)
    speed = limit.speed_of(device, precision)
    highest, reason = limit.clips_per_second(work, num_clips, speed)
    return row | {
        "what": f"{what} (limit: {reason})",
        "limit": highest,
        "share_of_limit": statistics.median(row["ours"]) / highest,
        "precision": precision_name(precision, device),
    }

"""Training step and evaluation of a network: clips per second, and memory per clip."""

import functools
import statistics
from types import SimpleNamespace

import torch

from benchmarks import limit
from benchmarks.machine import Subprocesses
from benchmarks.plain import plain_evaluation, plain_step
from clips.batches import Batch
from config import Config
from model import build_model, normalize_clips
from networks.inference import fold_batchnorm
from system.config_file import parse_override
from system.device import evaluating, number_format, precision_name, prepare, to_device
from system.memory import MIB, peak_bytes
from train import train_step
from training.run import start_run

NUM_CLASSES = 27


def measure(device, options, _folder):
    """Yield clips/s of a training step in each precision; on a GPU also its memory per clip."""
    yield from measure_steps(
        device,
        {precision: config_for(options, precision) for precision in options.precisions},
        options.rounds,
    )


def measure_compiled(device, options, _folder):
    """Yield the same of a compiled step, and the seconds of its first call."""
    yield from measure_steps(
        device,
        {
            precision: config_for(options, precision, "compile=true")
            for precision in options.precisions
        },
        options.rounds,
    )


def measure_steps(device, configs: dict, rounds):
    any_config = next(iter(configs.values()))
    makers = {"plain": (plain_trainer, (device, any_config))}
    makers |= {name: (our_trainer, (device, config)) for name, config in configs.items()}
    with Subprocesses(makers, device) as processes:
        seconds = processes.alternate(rounds)
        peaks = {name: processes.call(name, peak_bytes, device) for name in makers}
        for name, config in configs.items():
            num_clips = config.batch_size
            speed = processes.call(name, limit.measure_speed, device, config.precision)
            row = clips_per_second(seconds["plain"], seconds[name], num_clips, num_clips)
            what = f"training step, batch {num_clips}, {precision_name(config.precision, device)}"
            yield against_the_limit(row, f"{what}: clips/s", device, config, speed, True)
            if device.type == "cuda":
                plain, ours = (peaks[key] / num_clips / MIB for key in ("plain", name))
                yield {
                    "what": f"{what}: peak memory per clip, MiB",
                    "plain": plain,
                    "ours": ours,
                    "ratio": plain / ours,
                }
            if config.compile:
                yield {
                    "what": f"{what}: s of the first step",
                    "ours": processes.seconds_to_make[name],
                }


def measure_evaluation(device, options, _folder):
    """Yield clips/s of evaluation in each precision, each way with its default batch size."""
    configs = {precision: config_for(options, precision) for precision in options.precisions}
    plain = next(iter(configs.values()))
    makers = {"plain": (plain_evaluator, (device, plain))}
    makers |= {name: (our_evaluator, (device, config)) for name, config in configs.items()}
    with Subprocesses(makers, device) as processes:
        seconds = processes.alternate(options.rounds)
        for name, config in configs.items():
            precision, num_clips = config.eval_precision, config.videos_per_eval_batch
            speed = processes.call(name, limit.measure_speed, device, precision)
            row = clips_per_second(seconds["plain"], seconds[name], plain.batch_size, num_clips)
            what = f"evaluation, batch {num_clips}, {precision_name(precision, device)}: clips/s"
            yield against_the_limit(row, what, device, config, speed, False)


# --- a training step ---------------------------------------------------------------------------


def plain_trainer(device, config):
    """Return a function that does one plain training step; clips are those of its loader."""
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


# --- evaluation --------------------------------------------------------------------------------


def plain_evaluator(device, config):
    model, _ = plain_model(config, device)
    clips = plain_clips(make_batch(config, config.batch_size), config)
    return lambda: plain_evaluation(model, clips.to(device))


def our_evaluator(device, config):
    prepare(device, config.precision, config.deterministic)
    model, _ = plain_model(config, device)
    model = fold_batchnorm(to_device(model, device))
    batch = make_batch(config, config.videos_per_eval_batch)

    def evaluate():
        windows = normalize_clips(batch.clips[:, 0], device, config)
        with evaluating(device, config):
            model(windows)

    return evaluate


# --- what both need ----------------------------------------------------------------------------


def config_for(options, precision=None, *overrides) -> Config:
    """Return the tutorial's config with the changes of `--set`; precision: of both, if given."""
    if precision:
        overrides = (f"precision={precision}", f"eval_precision={precision}", *overrides)
    return make_config(
        SimpleNamespace(batch_size=options.batch_size, overrides=[*options.overrides, *overrides])
    )


def make_config(options) -> Config:
    """Return the tutorial's config with the changes of `--set`."""
    paths = ["train_data_folder", "train_data_csv", "val_data_folder", "val_data_csv", "labels_csv"]
    keys = {
        "model_name": "benchmark",
        **dict.fromkeys(paths, ""),
        "num_classes": NUM_CLASSES,
        "batch_size": options.batch_size,
    }
    return Config(**keys | dict(map(parse_override, options.overrides)))


def make_batch(config, num_clips) -> Batch:
    """Return a batch of noise, as a loader returns it."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_clips, 1, *config.clip_shape, 3)
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
    """Return the same clips in the plain loader's format: normalised floats [N, C, T, H, W]."""
    clips = normalize_clips(batch.clips[:, 0], torch.device("cpu"), config)
    return clips.contiguous()


def clips_per_second(plain_seconds, our_seconds, plain_clips, our_clips) -> dict:
    """Return clips/s in each round, and the median ratio; seconds: per call with these clips."""
    row = {
        "plain": [plain_clips / s for s in plain_seconds],
        "ours": [our_clips / s for s in our_seconds],
    }
    ratio = statistics.median(a / b for a, b in zip(row["ours"], row["plain"], strict=True))
    return row | {"ratio": ratio}


def against_the_limit(row, what, device, config, speed, is_training) -> dict:
    """Return the row with the maximum clips/s that the device allows, and our fraction of it."""
    precision = config.precision if is_training else config.eval_precision
    num_clips = config.batch_size if is_training else config.videos_per_eval_batch
    number_type = number_format(precision, device)
    work = limit.count(config, num_clips, NUM_CLASSES, is_training, number_type)
    highest, reason = limit.clips_per_second(work, num_clips, speed)
    return (
        {"what": f"{what} (limit: {reason})"}
        | row
        | {"limit": highest, "share of limit": statistics.median(row["ours"]) / highest}
    )

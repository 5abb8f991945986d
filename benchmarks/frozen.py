"""Features of a frozen backbone: frames per second of ways to compute them, and a cached epoch.

The ways are timed alternately on the same frames; the plain one is the network in evaluation mode
as PyTorch builds it. Epochs are of train.py, on drawn clips, with `feature_versions` and without.
"""

import copy
import json
import statistics
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.epoch import read_history
from benchmarks.loader import write_clips
from benchmarks.machine import alternate, in_subprocess
from config import Config
from features.backbone import FRAMES_AT_ONCE, backbone_function
from model import build_model, normalize_clips
from networks.inference import fold_batchnorm
from system.config_file import parse_override
from system.device import computes_natively, computing_in, to_device
from train import main as train
from training.pretrained import load_pretrained, with_normalization

NUM_CLIPS, NUM_VERSIONS = 48, 2  # of the epochs
TIMED_CLIPS, SMALL = 8, 64  # SMALL: pixels of smaller frames
KEYS = {
    "model": "eco",
    "backbone": "efficientnet_lite0",
    "pretrained": "imagenet",
    "freeze": True,
    "clip_size": 8,
    "frame_height": 96,
    "crop_size": 96,
    "batch_size": 16,
    "num_epochs": 2,
    "schedule": "constant",
    "baseline_clips": 0,
}


def measure(device, options, folder):
    """Yield frames/s of each way beside the plain one, and the seconds of an epoch."""
    config = write_clips(Path(folder) / "clips", NUM_CLIPS)
    keys = config.model_dump() | KEYS | dict(map(parse_override, options.overrides))
    keys["output_dir"] = str(folder)
    yield from measure_ways(Config(**keys), device, options.rounds)
    small = Config(**keys | {"frame_height": SMALL, "crop_size": SMALL})
    yield from measure_ways(small, device, options.rounds, is_short=True)
    yield measure_epoch(keys, device, Path(folder))


def measure_ways(config: Config, device, rounds, is_short=False):
    """Yield frames/s of the backbone: plain, in other ways, and as `features/` computes it.

    is_short: leave out the other ways, of which one is compiled for minutes.
    """
    config = with_normalization(config, None)
    model = to_device(build_model(config, 2), device)
    load_pretrained(model, "classifier", config, ["one", "other"])
    model.eval()
    generator = torch.Generator().manual_seed(0)
    shape = (TIMED_CLIPS, *config.clip_shape, 3)
    windows = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    plain_model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    ways = {"plain": way_of(plain_model, device, config, "fp32", is_contiguous=True)}
    ways |= {} if is_short else other_ways(model, device, config)
    with backbone_function(model, device, config) as compute:
        name = f"as in training, {config.eval_precision}"
        seconds = alternate(ways | {name: lambda: compute(windows)}, rounds, device)
    num_frames = TIMED_CLIPS * config.clip_size
    rates = {name: [num_frames / s for s in values] for name, values in seconds.items()}
    for name in list(rates)[1:]:
        pairs = zip(rates[name], rates["plain"], strict=True)
        yield {
            "what": f"{config.backbone}, {config.crop[0]} pixels, {name}: frames/s",
            "plain": rates["plain"],
            "ours": rates[name],
            "ratio": statistics.median(ours / plain for ours, plain in pairs),
        }


def other_ways(model, device, config: Config) -> dict:
    """Return functions that compute the features of TIMED_CLIPS clips, by their names."""
    ways = {
        "channels last": way_of(model, device, config, "fp32"),
        "and BatchNorm folded": way_of(fold_batchnorm(model), device, config, "fp32"),
    }
    if computes_natively(torch.bfloat16, device):
        ways["and bf16"] = way_of(fold_batchnorm(model), device, config, "bf16")
    compiled = fold_batchnorm(model)
    compiled.backbone = torch.compile(compiled.backbone)
    ways["and compiled"] = way_of(compiled, device, config, "fp32")
    if device.type == "cpu" and find_spec("onnxruntime"):
        ways["onnxruntime"] = way_of(OnnxBackbone(model, config), device, config, "fp32")
    return ways


class OnnxBackbone:
    """The backbone of a network in onnxruntime, with as many threads as PyTorch has."""

    def __init__(self, model, config: Config):
        import onnxruntime  # of requirements-export.txt

        backbone = fold_batchnorm(model).backbone.to(memory_format=torch.contiguous_format)
        frames = torch.zeros(FRAMES_AT_ONCE, 3, *config.crop)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "backbone.onnx"
            dynamic = ({0: torch.export.Dim("frames")},)
            torch.onnx.export(backbone, (frames,), path, dynamic_shapes=dynamic, verbose=False)
            self.session = onnxruntime.InferenceSession(path, options)

    def frame_features(self, clips):
        frames = clips[:, :, 0].contiguous().numpy()
        return self.session.run(None, {self.session.get_inputs()[0].name: frames})[0]


def way_of(model, device, config: Config, precision, is_contiguous=False):
    """Return a function that computes the features of TIMED_CLIPS clips, in parts."""
    shape = (TIMED_CLIPS, *config.clip_shape, 3)
    windows = torch.randint(256, shape, dtype=torch.uint8)
    frames = normalize_clips(windows, device, config).transpose(1, 2).flatten(0, 1)[:, :, None]

    def compute():
        with torch.inference_mode(), computing_in(device, precision):
            for part in frames.split(FRAMES_AT_ONCE):
                model.frame_features(part.contiguous() if is_contiguous else part)

    return compute


def measure_epoch(keys: dict, device, folder: Path) -> dict:
    """Return the seconds of the second epoch, without kept features and with them."""
    gpus, seconds = "cpu" if device.type == "cpu" else str(device.index), {}
    for name, versions in (("plain", 0), ("ours", NUM_VERSIONS)):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(keys | {"model_name": name, "feature_versions": versions}))
        if in_subprocess(train, ["-c", str(path), "-g", gpus]):
            raise RuntimeError(f"train.py -c {path} failed")
        seconds[name] = float(read_history(folder / name).iloc[-1]["seconds"])
    what = f"an epoch of {NUM_CLIPS} clips, features computed in each step or kept: s"
    return {"what": what, **seconds, "ratio": seconds["plain"] / seconds["ours"]}

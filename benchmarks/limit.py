"""The fastest possible step, from the bytes and operations that it needs.

A training step, or an evaluation, is run on the meta device, where tensors have no values, and its
operations are counted:
- bytes: each operation reads its arguments and writes its results once (BatchNorm in training reads
  twice, for its statistics and then to normalise; the gradient of a convolution's output is read
  twice, for the gradients of its input and of its weight). The part of each tensor that fits into
  the GPU's cache is free. In a compiled network, whose operations may be fused, only convolutions
  and matrix products count. The optimizer does not count.
- operations: the multiplications and additions of convolutions and matrix products, without those
  with the zeros of the padding.
The limit is the time for the bytes at the speed of the fastest copy, fill or sum of a large tensor,
or the time for the operations at the speed of the fastest matrix product or convolution, whichever
is longer. On the CPU, whose caches hold much of a batch, only the operations count.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.machine import seconds_of
from model import build_model, normalize_clips
from networks.inference import fold_batchnorm
from system.device import number_format, prepare

aten = torch.ops.aten
META = torch.device("meta")
CONVOLUTION, BACKWARD = aten.convolution.default, aten.convolution_backward.default
SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}  # of the multiplied matrices
NORMS = (aten.native_batch_norm.default, aten.native_batch_norm_backward.default)
PRODUCTS = {aten.mm.default: (0, 1), aten.addmm.default: (1, 2), aten.bmm.default: (0, 1)}


class Work(TorchDispatchMode):
    """Count memory accesses (`accesses`, bytes of each) and `operations` while active."""

    def __init__(self, is_fused: bool):
        super().__init__()
        self.is_fused, self.accesses, self.operations = is_fused, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_costly = func in (CONVOLUTION, BACKWARD) or func in PRODUCTS
        if is_costly:
            self.operations += operations_of(func, args)
        if is_costly or not (self.is_fused or func.is_view or "empty" in str(func)):
            tensors = [*tensors_in((args, kwargs)), *tensors_in(result)]
            if func in NORMS or func is BACKWARD:
                is_forward = func is NORMS[0]
                tensors += args[:1] if is_forward or func is BACKWARD else args[:2]
            self.accesses += [tensor.numel() * tensor.element_size() for tensor in tensors]
        return result


def tensors_in(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def operations_of(func, args) -> int:
    if func in PRODUCTS:
        left, right = (args[index] for index in PRODUCTS[func])
        return 2 * left.numel() * right.shape[-1]
    if func is CONVOLUTION:
        inputs, weight, _, *settings = args
        return 2 * multiplications(inputs, weight, *settings)
    _, inputs, weight, _, *settings, wanted = args  # requested gradients: input, weight, bias
    return 2 * sum(wanted[:2]) * multiplications(inputs, weight, *settings)


def multiplications(inputs, weight, stride, padding, dilation, _is_transposed, _, _groups) -> int:
    """Count products of an input and a weight, without those with the zeros of the padding."""
    pairs = 1
    for dim, size in enumerate(inputs.shape[2:]):
        reach = dilation[dim] * (weight.shape[2 + dim] - 1)
        starts = range(-padding[dim], size + padding[dim] - reach, stride[dim])
        steps = range(0, reach + 1, dilation[dim])
        pairs *= sum(0 <= start + step < size for start in starts for step in steps)
    return inputs.shape[0] * weight.shape[0] * weight.shape[1] * pairs


def count(config, num_clips, num_classes, is_training, number_type) -> Work:
    """Return the work of one training step, or batch of evaluation, starting from uint8 clips."""
    with META:
        model = build_model(config, num_classes).to(number_type)
    model = model.train() if is_training else fold_batchnorm(model)
    shape = (num_clips, *config.clip_shape, config.num_channels)
    with Work(is_fused=is_training and config.compile) as work:
        clips = normalize_clips(torch.empty(shape, dtype=torch.uint8, device=META), META, config)
        with torch.set_grad_enabled(is_training):
            logits = model(clips.to(number_type)).float()
        if is_training:
            labels = torch.empty(num_clips, dtype=torch.int64, device=META)
            F.cross_entropy(logits, labels).backward()
    return work


# --- what the device can do ----------------------------------------------------------------------


class Speed(NamedTuple):
    """Speeds of a device, as `measure_speed` returns them."""

    operations: float  # per second, of the fastest product
    bandwidth: float  # bytes per second of the device's memory; inf if it does not count
    cache: int  # bytes


def measure_speed(device, precision) -> Speed:
    """Measure in a process of this precision, since `prepare` changes settings of PyTorch."""
    prepare(device, precision, deterministic=False)
    number_type = number_format(precision, device)
    ways = (speed_of_products, speed_of_convolution)
    operations = max(way(device, number_type) for way in ways)
    if device.type != "cuda":
        return Speed(operations, math.inf, 0)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return Speed(operations, bandwidth(device), cache)


def speed_of_products(device, number_type) -> float:
    fastest = 0.0
    for side in SIDES[device.type]:
        left, right = (torch.randn(side, side, device=device, dtype=number_type) for _ in range(2))
        seconds = least_seconds(lambda left=left, right=right: left @ right, device)
        fastest = max(fastest, 2 * side**3 / seconds)
    return fastest


def speed_of_convolution(device, number_type) -> float:
    """Return operations per second of an unpadded 3D convolution that fits a core's caches."""
    num_clips, side = (64, 58) if device.type == "cuda" else (2, 30)
    clips = torch.randn(num_clips, 64, 18, side, side, device=device, dtype=number_type)
    weight = torch.randn(64, 64, 3, 3, 3, device=device, dtype=number_type)
    clips, weight = (t.contiguous(memory_format=torch.channels_last_3d) for t in (clips, weight))
    seconds = least_seconds(lambda: F.conv3d(clips, weight), device)
    return 2 * num_clips * 64 * 64 * 27 * 16 * (side - 2) ** 2 / seconds


def bandwidth(device) -> float:
    """Return the bytes per second of the fastest copy, fill or sum of a tensor of 1 GiB."""
    source = torch.zeros(2**28, device=device)
    target = torch.empty_like(source)
    ways = {lambda: target.copy_(source): 2, target.zero_: 1, source.sum: 1}
    return max(times * source.nbytes / least_seconds(way, device) for way, times in ways.items())


@torch.no_grad()
def least_seconds(function, device) -> float:
    function()
    calls = 10 if device.type == "cuda" else 1
    return min(seconds_of(function, device, calls) for _ in range(5))


# --- the limit -----------------------------------------------------------------------------------


def clips_per_second(work: Work, num_clips, speed: Speed) -> tuple[float, str]:
    """Return the maximum clips/s that the device allows, and a description of the reason."""
    num_bytes = sum(max(0, access - speed.cache) for access in work.accesses)
    megabytes, giga_flop = num_bytes / num_clips / 1e6, work.operations / num_clips / 1e9
    bandwidth = f"{megabytes:.0f} MB per clip at {speed.bandwidth / 1e9:,.0f} GB/s"
    computing = f"{giga_flop:.3g} GFLOP per clip at {speed.operations / 1e12:.3g} TFLOP/s"
    seconds = {
        bandwidth: num_bytes / speed.bandwidth,
        computing: work.operations / speed.operations,
    }
    reason = max(seconds, key=seconds.get)
    return num_clips / seconds[reason], reason

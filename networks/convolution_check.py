"""Convolutions in 16 bits are checked before a run trusts them.

Libraries have computed some of them wrong. oneDNN leaves part of the weight gradient of a 3D
convolution unwritten where time is padded and the input has one frame fewer than the kernel (in
PyTorch 2.13 and 2.15, on CPUs with bf16 instructions); cuDNN 9.8 to 9.14 had wrong 3D
convolutions, too. What is wrong depends on shapes, versions and the processor, and what is
unwritten can look like a plausible number. So each convolution of a network is compared with fp32
on random numbers, and one that is wrong is computed in another way.

Shapes: N clips, C channels, T frames, H, W pixels.
"""

import copy
import math
from collections import defaultdict
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from networks.stages import run_without_data, without_data
from system import processes
from system.device import computes_natively, computing_in, number_format, precision_name
from system.errors import first_few

LARGEST_ERROR = 0.02  # of the norm; right results in bf16 are near 0.003
# Filled into freed memory, so that what a kernel leaves unwritten shows: one spoils every sum, the
# other one is found where NaN would be taken for a zero.
FILLS = (float("nan"), 1e4)
# Operations of the forward passes of all convolutions together: about a second of checking.
FLOP_ON_CPU, FLOP_ON_GPU, FLOP_EMULATED = 3e10, 1e13, 1e8
# Where this many clips cost more than so many times a convolution's share, H and W are halved.
FEWEST_CLIPS, TOLERATED_COST = 2, 4


class Case(NamedTuple):
    """A convolution and its input: what decides by which kernel it is computed."""

    kind: type  # nn.Conv2d or nn.Conv3d, or a subclass
    input_shape: tuple[int, ...]  # [N, C, H, W] or [N, C, T, H, W]
    channels_out: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    has_bias: bool


class Fault(NamedTuple):
    """What is wrong with the convolutions of a case, and how they are computed instead."""

    layers: list[str]
    part: str  # of the results
    error: float  # relative
    remedy: int  # position in REMEDIES


# --- other ways to compute a convolution ---------------------------------------------------------


class PaddedBeforehand(nn.Conv3d):
    """A convolution whose time is padded by an operation of its own."""

    def forward(self, inputs):
        time, *space = self.padding
        inputs = F.pad(inputs, (0, 0, 0, 0, time, time))
        return F.conv3d(inputs, self.weight, self.bias, self.stride, (0, *space), self.dilation,
                        self.groups)


class Conv2dInFp32(nn.Conv2d):
    """A convolution that is left out of the lower precision around it."""

    def forward(self, inputs):
        with _in_full_precision(inputs):
            return super().forward(inputs.float())


class Conv3dInFp32(nn.Conv3d):
    """As `Conv2dInFp32`."""

    def forward(self, inputs):
        with _in_full_precision(inputs):
            return super().forward(inputs.float())


def _in_full_precision(inputs):
    # The meta device, on which only shapes are computed, has no autocast.
    if inputs.is_meta:
        return nullcontext()
    return torch.autocast(inputs.device.type, enabled=False)


def padded_beforehand(module) -> nn.Module | None:
    """The convolution with time padded by `F.pad`; None if there is nothing to pad."""
    if not isinstance(module, nn.Conv3d) or isinstance(module.padding, str):
        return None
    return _as_kind(PaddedBeforehand, module) if module.padding[0] else None


def in_fp32(module) -> nn.Module:
    return _as_kind(Conv3dInFp32 if isinstance(module, nn.Conv3d) else Conv2dInFp32, module)


# From the cheapest on, with what the user is told.
REMEDIES = ((padded_beforehand, "time is padded beforehand"), (in_fp32, "computed in fp32"))


def _as_kind(kind, module) -> nn.Module:
    """A convolution of another class with the very parameters of `module`."""
    other = kind(
        module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
        module.dilation, module.groups, bias=module.bias is not None, device="meta",
    )  # fmt: skip
    other.weight, other.bias = module.weight, module.bias
    return other.train(module.training)


# --- the check -----------------------------------------------------------------------------------


def replace_wrong_convolutions(model, clip_shape, num_clips, device, precision, training=True):
    """Replace each convolution of `model` that this machine computes wrong in `precision`.

    Their names, parameters and thus checkpoints stay the same. Prints which they are, one line per
    remedy. Every process has to call this; what is wrong in one is replaced in all.

    clip_shape: (T, H, W); num_clips: of a batch in this process. training: gradients are checked,
    too. Returns the faults, none for fp32.
    """
    if number_format(precision, device) is torch.float32:
        return []
    found = find_faults(model, clip_shape, num_clips, device, precision, training)
    faults = processes.all_gather(found)
    remedies = {}
    for fault in faults:
        for name in fault.layers:
            remedies[name] = max(fault.remedy, remedies.get(name, 0))
    for name, remedy in remedies.items():
        parent, _, attribute = name.rpartition(".")
        replacement = REMEDIES[remedy][0](model.get_submodule(name))
        setattr(model.get_submodule(parent), attribute, replacement)
    for remedy, (_, words) in enumerate(REMEDIES):
        names = [name for name, chosen in remedies.items() if chosen == remedy]
        if names:
            worst = next(fault for fault in faults if names[0] in fault.layers)
            print(f"{precision_name(precision, device)} convolutions that are wrong on this "
                  f"machine: {first_few(names)} ({worst.part} of {names[0]} off by "
                  f"{worst.error:.0%}); {words}", flush=True)
    return faults


def find_faults(model, clip_shape, num_clips, device, precision, training) -> list[Fault]:
    """The convolutions of `model` that are wrong, each with the first remedy that is right."""
    cases = convolution_cases(model, clip_shape, num_clips)
    flop = FLOP_ON_GPU if device.type == "cuda" else FLOP_ON_CPU
    if not computes_natively(precision, device):
        flop = FLOP_EMULATED
    faults = []
    for case, names in cases.items():
        module = model.get_submodule(names[0])
        shape = affordable_shape(case, flop / len(cases))
        errors = relative_errors(module, shape, device, precision, training)
        part, error = max(errors.items(), key=lambda item: item[1])
        if error > LARGEST_ERROR:
            remedy = _first_right_remedy(module, shape, device, precision, training)
            faults.append(Fault(names, part, error, remedy))
    return faults


def _first_right_remedy(module, shape, device, precision, training) -> int:
    *cheaper, _ = REMEDIES
    for position, (remedy, _) in enumerate(cheaper):
        other = remedy(module)
        if other is not None:
            errors = relative_errors(other, shape, device, precision, training)
            if max(errors.values()) <= LARGEST_ERROR:
                return position
    return len(cheaper)  # fp32 is what the others are compared with


def convolution_cases(model, clip_shape, num_clips) -> dict[Case, list[str]]:
    """The distinct convolutions of `model`, each with the names of its layers."""
    meta_model, cases = without_data(model), defaultdict(list)

    def record(name, module, inputs):
        shape = (num_clips * len(inputs), *inputs.shape[1:])
        case = Case(type(module), shape, module.out_channels, module.kernel_size, module.stride,
                    module.padding, module.dilation, module.groups, module.bias is not None)
        if name not in cases[case]:
            cases[case].append(name)

    for name, module in meta_model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: record(name, module, inputs[0])
            )
    run_without_data(meta_model, clip_shape)
    return dict(cases)


def affordable_shape(case: Case, flop) -> tuple[int, ...]:
    """The input's shape with as many clips as about `flop` operations are enough for.

    The number of frames, on which faults have depended, stays; H and W shrink where two clips
    would cost far more.
    """
    num_clips, channels_in, *sizes = case.input_shape
    of_a_place = 2 * case.channels_out * math.prod(case.kernel) * channels_in / case.groups

    def cost():
        places = (-(-size // step) for size, step in zip(sizes, case.stride, strict=True))
        return of_a_place * math.prod(places)

    def can_shrink():
        return all(size >= 2 * kernel for size, kernel in zip(sizes[-2:], case.kernel[-2:],
                                                             strict=True))

    while FEWEST_CLIPS * cost() > TOLERATED_COST * flop and can_shrink():
        sizes[-2:] = [size // 2 for size in sizes[-2:]]
    return min(num_clips, max(FEWEST_CLIPS, int(flop / cost()))), channels_in, *sizes


def relative_errors(module, input_shape, device, precision, training) -> dict[str, float]:
    """Error of each result of a convolution in `precision` against fp32, relative to its norm.

    The largest over a pass for each of FILLS; inf for NaN.
    """
    probe = copy.deepcopy(module).to(device).requires_grad_(training)
    random = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        fan_in = probe.weight[0].numel()
        probe.weight.normal_(0, fan_in**-0.5, generator=random)
        if probe.bias is not None:
            probe.bias.normal_(generator=random)
    memory_format = torch.channels_last if len(input_shape) == 4 else torch.channels_last_3d
    inputs = torch.randn(input_shape, device=device, generator=random)
    inputs = inputs.contiguous(memory_format=memory_format).requires_grad_(training)
    with torch.no_grad():
        gradient = torch.randn(probe(inputs).shape, device=device, generator=random)
    with computing_in(device, "fp32"):
        expected = _results(probe, inputs, gradient)
    errors = dict.fromkeys(expected, 0.0)
    for fill in FILLS:
        with computing_in(device, precision):
            found = _results(probe, inputs, gradient, fill)
        for name, value in found.items():
            error = ((value.float() - expected[name]).norm() / expected[name].norm()).item()
            errors[name] = max(errors[name], error if math.isfinite(error) else math.inf)
    return errors


def _results(module, inputs, gradient, fill=None) -> dict[str, torch.Tensor]:
    """The output and, if gradients are wanted, those of the input, the weight and the bias."""
    sizes = [tensor.numel() for tensor in (inputs, gradient, module.weight)]
    if fill is not None:
        _fill_freed_memory(fill, sizes, inputs.device)
    output = module(inputs)
    results = {"output": output}
    if inputs.requires_grad:
        if fill is not None:
            _fill_freed_memory(fill, sizes, inputs.device)
        wanted = {"input gradient": inputs, "weight gradient": module.weight}
        if module.bias is not None:
            wanted["bias gradient"] = module.bias
        gradients = torch.autograd.grad(output, list(wanted.values()), gradient.to(output.dtype))
        results |= dict(zip(wanted, gradients, strict=True))
    return {name: value.detach() for name, value in results.items()}


def _fill_freed_memory(value, sizes, device) -> None:
    """Fill freed blocks that the allocator reuses next, for elements of 2 and 4 bytes."""
    lengths = [length for size in sizes for length in (size, -(-size // 2))]
    lengths += [2**power for power in range(6, 21)]
    # All at once, so that each gets memory of its own.
    tensors = [torch.full((length,), value, device=device) for length in lengths for _ in range(2)]
    del tensors

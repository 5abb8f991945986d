"""Check a network's 16-bit convolutions, and replace those with wrong results.

Libraries have computed some of them wrong. oneDNN leaves part of the weight gradient of a 3D
convolution unwritten if time is padded and the input has one frame fewer than the kernel (in
PyTorch 2.13 and 2.15, on CPUs with bf16 instructions); cuDNN 9.8 to 9.14 were wrong, too. Unwritten
memory can contain plausible numbers. So each convolution of a network is compared with fp32 on
random numbers, and computed in another way if it is wrong.

Shapes: N clips, C channels, T frames, H, W pixels.
"""

import copy
import math
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from networks.convolutions import Conv2dInFp32, Conv3dInFp32, PaddedBeforehand
from networks.stages import run_on_meta, to_meta, with_class
from system import processes
from system.device import computes_natively, computing_in, number_format, precision_name
from system.errors import summarize

MAX_ERROR = 0.02  # relative to the norm; correct results in bf16 are near 0.003
# Written to freed memory, to reveal what a kernel leaves unwritten; NaN alone can look like 0.
FILLS = (float("nan"), 1e4)
# Operations of all convolutions' forward passes: about a second of checking.
FLOP_ON_CPU, FLOP_ON_GPU, FLOP_EMULATED = 3e10, 1e13, 1e8
# If this many clips cost more than so many times a convolution's part, H and W are halved.
MIN_CLIPS, TOLERATED_COST = 2, 4


class Case(NamedTuple):
    """A convolution and its input shape, which determine its kernel."""

    layer: str  # its class, channels, kernel, stride, padding ..., as PyTorch prints them
    input_shape: tuple[int, ...]  # [N, C, H, W] or [N, C, T, H, W]


class Fault(NamedTuple):
    """The error of a case's convolutions, and their replacement."""

    layers: list[str]
    part: str  # of the results
    error: float  # relative
    remedy: type[nn.Module]


# For the message.
REMEDIES = {
    PaddedBeforehand: "time is padded separately",
    Conv2dInFp32: "computed in fp32",
    Conv3dInFp32: "computed in fp32",
}


def remedy_for(module, errors_of) -> type[nn.Module]:
    """Return the cheapest class of convolution that is correct; errors_of: errors of a module."""
    if not isinstance(module, nn.Conv3d):
        return Conv2dInFp32
    if not isinstance(module.padding, str) and module.padding[0]:
        errors = errors_of(with_class(PaddedBeforehand, module))
        if max(errors.values()) <= MAX_ERROR:
            return PaddedBeforehand
    return Conv3dInFp32  # fp32 is the reference


# --- the check -----------------------------------------------------------------------------------


def replace_wrong_convolutions(model, clip_shape, num_clips, device, precision, training=True):
    """Replace each convolution of `model` that this machine computes wrong in `precision`.

    Their names, parameters and thus checkpoints stay the same. Prints them, one line per remedy.
    Every process must call this; what is wrong in one is replaced in all.

    clip_shape: (T, H, W); num_clips: of a batch in this process; training: also check gradients.
    Returns the faults, none for fp32.
    """
    if number_format(precision, device) is torch.float32:
        return []
    found = find_faults(model, clip_shape, num_clips, device, precision, training)
    faults, remedies = processes.all_gather(found), {}
    # fp32, which is always correct, is last: it wins where processes differ.
    for fault in sorted(faults, key=lambda fault: fault.remedy is not PaddedBeforehand):
        remedies |= dict.fromkeys(fault.layers, fault.remedy)
    for name, remedy in remedies.items():
        model.set_submodule(name, with_class(remedy, model.get_submodule(name)))
    for remedy, words in REMEDIES.items():
        names = [name for name, chosen in remedies.items() if chosen is remedy]
        if names:
            worst = next(fault for fault in faults if names[0] in fault.layers)
            print(
                f"{precision_name(precision, device)} convolutions that are wrong on this "
                f"machine: {summarize(names)} ({worst.part} of {names[0]} off by "
                f"{worst.error:.0%}); {words}",
                flush=True,
            )
    return faults


def find_faults(model, clip_shape, num_clips, device, precision, training) -> list[Fault]:
    """Return the wrong convolutions of `model`, each with the first remedy that works."""
    cases = convolution_cases(model, clip_shape, num_clips)
    flop = FLOP_ON_GPU if device.type == "cuda" else FLOP_ON_CPU
    if not computes_natively(number_format(precision, device), device):
        flop = FLOP_EMULATED
    faults = []
    for case, names in cases.items():
        module = model.get_submodule(names[0])
        shape = affordable_shape(module, case.input_shape, flop / len(cases))
        errors_of = partial(
            relative_errors,
            input_shape=shape,
            device=device,
            precision=precision,
            training=training,
        )
        errors = errors_of(module)
        part = max(errors, key=errors.get)
        if errors[part] > MAX_ERROR:
            faults.append(Fault(names, part, errors[part], remedy_for(module, errors_of)))
    return faults


def convolution_cases(model, clip_shape, num_clips) -> dict[Case, list[str]]:
    """Return the distinct convolutions of `model`, each with the names of its layers."""
    meta_model, cases = to_meta(model), {}

    def record(name, module, inputs):
        case = Case(repr(module), (num_clips * len(inputs), *inputs.shape[1:]))
        if name not in cases.setdefault(case, []):
            cases[case].append(name)

    for name, module in meta_model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: record(name, module, inputs[0])
            )
    run_on_meta(meta_model, clip_shape)
    return cases


def affordable_shape(module, input_shape, flop) -> tuple[int, ...]:
    """Return the input's shape with as many clips as about `flop` operations allow.

    The number of frames, on which faults have depended, is kept; H and W shrink if two clips
    would cost far more.
    """
    num_clips, channels, *sizes = input_shape

    def cost_of_a_clip():
        places = (-(-size // step) for size, step in zip(sizes, module.stride, strict=True))
        return 2 * module.weight.numel() * math.prod(places)

    smallest = 2 * max(module.kernel_size[-2:])
    while MIN_CLIPS * cost_of_a_clip() > TOLERATED_COST * flop and min(sizes[-2:]) >= smallest:
        sizes[-2:] = [size // 2 for size in sizes[-2:]]
    return min(num_clips, max(MIN_CLIPS, int(flop / cost_of_a_clip()))), channels, *sizes


def relative_errors(module, input_shape, device, precision, training) -> dict[str, float]:
    """Return the relative error of a convolution's results in `precision` against fp32.

    It is the largest over one pass per value of FILLS; inf for NaN.
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
    # PyTorch's kernels: cuDNN is under test, and in fp32 can take 15 s for one gradient.
    with computing_in(device, "fp32"), torch.backends.cudnn.flags(enabled=False):
        with torch.no_grad():
            gradient = torch.randn(probe(inputs).shape, device=device, generator=random)
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
    """Return the output and, if requested, the gradients of the input, the weight and the bias."""
    sizes = [tensor.numel() for tensor in (inputs, gradient, module.weight)]
    _fill_freed_memory(fill, sizes, inputs.device)
    output = module(inputs)
    results = {"output": output.detach()}
    if inputs.requires_grad:
        _fill_freed_memory(fill, sizes, inputs.device)
        wanted = {"input gradient": inputs, "weight gradient": module.weight}
        if module.bias is not None:
            wanted["bias gradient"] = module.bias
        gradients = torch.autograd.grad(output, list(wanted.values()), gradient.to(output.dtype))
        results |= dict(zip(wanted, gradients, strict=True))
    return results


def _fill_freed_memory(value, sizes, device) -> None:
    """Fill freed blocks that the allocator reuses next, for elements of 2 and 4 bytes."""
    if value is None:
        return
    lengths = [length for size in sizes for length in (size, -(-size // 2))]
    lengths += [2**power for power in range(6, 21)]
    # All at once, so that each gets separate memory.
    tensors = [torch.full((length,), value, device=device) for length in lengths for _ in range(2)]
    del tensors

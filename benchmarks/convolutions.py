"""The convolutions of the tutorial's network: whether they are right, and how long they take.

Libraries have slow kernels for some of them: see `networks/convolutions.py`.
"""

import time

import torch

from benchmarks import step
from benchmarks.machine import seconds_of, synchronise
from model import build_model
from networks.convolution_check import convolution_cases, find_faults
from system.device import number_format, precision_name, prepare, to_device

SLOW = 1.0  # seconds; slower ones are timed once
PARTS = {
    "forward, ms": None,
    "input gradient, ms": (True, False, False),
    "weight gradient, ms": (False, True, False),
}


def check(device, options, _folder):
    """Yield, for each precision, which distinct convolutions differ from those in fp32."""
    for precision in options.precisions:
        config = step.config_for(options, precision)
        precision = precision_name(config.precision, device)
        if precision == "fp32":  # the reference
            continue
        prepare(device, precision, deterministic=False)
        model = to_device(build_model(config, step.NUM_CLASSES), device)
        shape, num_clips = config.clip_shape, config.batch_size
        cases = convolution_cases(model, shape, num_clips)
        faults = find_faults(model, shape, num_clips, device, precision, training=True)
        yield {
            "what": precision,
            "convolutions": len(cases),
            "found": "; ".join(
                f"{each.part} of {', '.join(each.layers)} off by {each.error:.0%}"
                for each in faults
            )
            or "all are right",
        }


def measure(device, options, _folder):
    """Yield the times of each convolution, the smallest first, in the first precision and fp32."""
    configs = [step.config_for(options, name) for name in (options.precisions[0], "fp32")]
    for precision, config in {
        precision_name(config.precision, device): config for config in configs
    }.items():
        yield from measure_in(precision, config, device)


def measure_in(precision, config, device):
    """Yield a row for each convolution in `precision`.

    In fp32, the weight gradient is also computed without cuDNN, as the program does it.
    """
    prepare(device, precision, deterministic=False)
    model, number_type = build_model(config, step.NUM_CLASSES), number_format(precision, device)
    cases = convolution_cases(model, config.clip_shape, config.batch_size)
    for case, names in reversed(cases.items()):
        module = model.get_submodule(names[0]).to(device, number_type)
        inputs, weight = (
            tensor.contiguous(memory_format=torch.channels_last_3d)
            for tensor in (
                torch.randn(case.input_shape, device=device, dtype=number_type),
                module.weight.detach(),
            )
        )
        yield {
            "what": f"{precision}: {list(case.input_shape)} with {list(weight.shape)}",
            **times_of(module, inputs, weight, device, precision == "fp32"),
        }


def times_of(module, inputs, weight, device, is_fp32) -> dict[str, float]:
    settings = (
        None,
        module.stride,
        module.padding,
        module.dilation,
        False,
        (0, 0, 0),
        module.groups,
    )  # no bias, not transposed
    gradient = torch.randn_like(torch.ops.aten.convolution(inputs, weight, *settings))

    def compute(wanted):
        if wanted is None:
            return torch.ops.aten.convolution(inputs, weight, *settings)
        return torch.ops.aten.convolution_backward(gradient, inputs, weight, *settings, wanted)

    times = {
        name: milliseconds(lambda wanted=wanted: compute(wanted), device)
        for name, wanted in PARTS.items()
    }
    if is_fp32:
        with torch.backends.cudnn.flags(enabled=False):
            wanted = PARTS["weight gradient, ms"]
            times["the same without cuDNN, ms"] = milliseconds(lambda: compute(wanted), device)
    return times


def milliseconds(function, device) -> float:
    start = time.perf_counter()
    function()  # the first call also loads kernels
    synchronise(device)
    seconds = time.perf_counter() - start
    if seconds < SLOW:
        function()
        seconds = seconds_of(function, device, calls=5)
    return round(1000 * seconds, 2)

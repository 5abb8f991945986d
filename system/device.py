"""The device that computes: which one, in which number format, and how clips come to it."""

import ctypes
import functools
import os
import sys
import warnings
from contextlib import contextmanager

import torch

from config import Config
from system import processes
from system.errors import UserError


def choose_device(gpus: str | None, use_gpu: bool = True) -> torch.device:
    """The device for `-g`: a GPU number, `cpu`, or None for a GPU where there is one.

    Under torchrun each process takes the GPU of its own number. A GPU asked for on a machine
    without CUDA is a warning on stderr, then the CPU. Raises UserError for what cannot be had.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not use_gpu or gpus == "cpu":
        return torch.device("cpu")
    if processes.launched():
        return _launched_device(gpus, available)
    if gpus is None:
        return torch.device("cuda", 0) if available else torch.device("cpu")
    numbers = gpu_numbers(gpus)
    if not available:
        print(f"warning: -g {gpus}: this machine has no CUDA GPU; using the CPU", file=sys.stderr)
        return torch.device("cpu")
    if max(numbers) >= available:
        raise UserError(f"-g {gpus}: this machine has GPUs 0 to {available - 1}")
    return torch.device("cuda", numbers[0])


def _launched_device(gpus, available):
    if gpus is not None:
        raise UserError(
            f"-g {gpus}: torchrun gives each process its GPU; leave -g out, or choose GPUs by "
            "CUDA_VISIBLE_DEVICES"
        )
    number = int(os.environ["LOCAL_RANK"])
    if available and number >= available:
        raise UserError(f"--nproc-per-node: this machine has {available} GPUs; start that many")
    return torch.device("cuda", number) if available else torch.device("cpu")


def gpu_numbers(gpus: str) -> list[int]:
    """`0,1` -> [0, 1]; raises UserError for anything else."""
    numbers = [number.strip() for number in gpus.split(",")]
    if not all(number.isdecimal() for number in numbers) or len(set(numbers)) < len(numbers):
        raise UserError(f"-g {gpus}: expected GPU numbers such as 0 or 0,1, or cpu")
    return [int(number) for number in numbers]


def prepare(device: torch.device, precision: str, deterministic: bool) -> None:
    """Sets how PyTorch computes, for the life of the process; warns of versions that do it badly.

    deterministic: on a GPU, only algorithms that give the same bits each time.
    Raises UserError if the device cannot compute in `precision`.
    """
    check_precision(precision, device)
    allow_tf32(precision == "tf32")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        # `warn_if_not_repeatable` says which networks this is true of; the others repeat.
        warnings.filterwarnings("ignore", message=".*max_pool3d_with_indices_backward_cuda.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        torch.backends.cudnn.benchmark = True  # clips all have one shape, so trying out pays
    if device.type == "cpu":
        keep_freed_memory()
    problem = version_problem(torch.backends.cudnn.version(), number_format(precision, device))
    if device.type == "cuda" and problem:
        print(f"warning: {problem}", file=sys.stderr)


def warn_if_not_repeatable(model: torch.nn.Module, name: str) -> None:
    """Says so if `model` has an operation that no algorithm on a GPU repeats bit for bit.

    That is the backward pass of 3D max pooling whose windows overlap: several gradients are then
    added to one place in any order. (torch.use_deterministic_algorithms)
    """
    pools = [module for module in model.modules() if isinstance(module, torch.nn.MaxPool3d)]
    if any(_overlaps(pool.kernel_size, pool.stride) for pool in pools):
        print(f"warning: deterministic: max pooling with overlapping windows, which {name} has, "
              "does not repeat bit for bit on a GPU; two runs may differ by rounding",
              file=sys.stderr)


def _overlaps(kernel, stride) -> bool:
    kernel, stride = ((size,) * 3 if isinstance(size, int) else size for size in (kernel, stride))
    return any(size > step for size, step in zip(kernel, stride, strict=True))


def keep_freed_memory() -> None:
    """With glibc: freed memory waits for the next tensor instead of going back to the system.

    Otherwise each large tensor comes as fresh pages, which the system has to clear first: on the
    CPU a fifth of the tutorial's training step. The price is a somewhat higher peak of memory.
    (mallopt(3): no trimming, and no memory maps for single allocations)
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for parameter, value in ((_M_TRIM_THRESHOLD, -1), (_M_MMAP_MAX, 0)):
            mallopt(parameter, value)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
# --- precision ---------------------------------------------------------------------------------

NUMBER_FORMATS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16,
                  "fp16": torch.float16}
FIRST_GPU_WITH_TF32 = (8, 0)  # CUDA's compute capability of the Ampere generation


def check_precision(precision: str, device: torch.device) -> None:
    """Raises UserError if `device` has no tf32 and `precision` asks for it."""
    has_tf32 = device.type == "cuda" and (
        torch.cuda.get_device_capability(device) >= FIRST_GPU_WITH_TF32
    )
    if precision == "tf32" and not has_tf32:
        raise UserError(
            "precision, eval_precision: found tf32, which NVIDIA GPUs have from the Ampere "
            "generation on; use fp32 here"
        )


def allow_tf32(is_allowed: bool) -> None:
    """Whether fp32 convolutions and products on a GPU may round their inputs to 10 bits.

    PyTorch allows it for convolutions by default. These two switches, and not the newer
    `fp32_precision`, since PyTorch refuses to read one kind after the other was set.
    """
    torch.backends.cudnn.allow_tf32 = is_allowed
    torch.backends.cuda.matmul.allow_tf32 = is_allowed


@functools.cache
def number_format(precision: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in; `auto`: bf16 where the hardware has it, else fp32."""
    if precision != "auto":
        return NUMBER_FORMATS[precision]
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = _cpu_has_bf16()
    return torch.bfloat16 if has_bf16 else torch.float32


def _cpu_has_bf16() -> bool:
    """Whether products of bf16 are instructions; where they are emulated, bf16 is slower by far."""
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def computes_natively(precision: str, device: torch.device) -> bool:
    """Whether the device has instructions for `precision`; a CPU without them is slow."""
    if device.type == "cuda" or number_format(precision, device) is torch.float32:
        return True
    if number_format(precision, device) is torch.bfloat16:
        return _cpu_has_bf16()
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_fp16") or abilities.get("amx_fp16"))


def precision_name(precision: str, device: torch.device) -> str:
    """What `auto` stands for on the device; any other name as it is."""
    if precision != "auto":
        return precision
    return "bf16" if number_format(precision, device) is torch.bfloat16 else "fp32"


def devices_in_words(device: torch.device, config: Config, is_trained: bool) -> str:
    """`2 x NVIDIA H200, training in bf16, evaluation in fp32`: what all processes compute on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    words = [f"{processes.world_size()} x {name}"]
    if is_trained:
        words.append(f"training in {precision_name(config.precision, device)}")
    words.append(f"evaluation in {precision_name(config.eval_precision, device)}")
    return ", ".join(words)


def version_problem(cudnn: int | None, chosen: torch.dtype) -> str | None:
    """What is known against 3D convolutions in `chosen` with this version of cuDNN (as 91002)."""
    if cudnn is None or chosen is torch.float32 or not 90800 <= cudnn < 91500:
        return None
    major, minor = cudnn // 10000, cudnn // 100 % 100
    return (
        f"cuDNN {major}.{minor} has wrong or slow 3D convolutions in 16 bits; install 9.15 or "
        "later, or set precision to fp32"
    )


def autocast(device: torch.device, precision: str):
    """The context in which the network computes in `precision`."""
    chosen = number_format(precision, device)
    enabled = chosen is not torch.float32
    return torch.autocast(device.type, chosen if enabled else None, enabled=enabled)


@contextmanager
def computing_in(device: torch.device, precision: str):
    """As `autocast`, with IEEE fp32 or tf32 where it computes in fp32."""
    before = torch.backends.cudnn.allow_tf32
    allow_tf32(precision == "tf32")
    try:
        with autocast(device, precision):
            yield
    finally:
        allow_tf32(before)


@contextmanager
def evaluating(device: torch.device, config: Config):
    """Inside, the network computes in `eval_precision`, and no gradients are kept."""
    with torch.inference_mode(), computing_in(device, config.eval_precision):
        yield


def loss_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Keeps small gradients above fp16's smallest number.

    In other formats its scale is 1, for good. What remains is that it lets no optimizer move by
    gradients with NaN or inf in them, and finds these without waiting for a GPU.
    """
    if precision == "fp16":
        return torch.amp.GradScaler(device.type)
    return torch.amp.GradScaler(device.type, init_scale=1.0, growth_interval=2**31 - 1)


def to_device(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Moves the network, with its kernels in the memory order that convolutions like best."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.to(device).parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])
    return model


# --- input -------------------------------------------------------------------------------------


def to_network_input(clips, device, config: Config) -> torch.Tensor:
    """uint8 [N, T, H, W, C] on the CPU -> normalised float32 [N, C, T, H, W] on `device`.

    The bytes travel, the floats are made on the device; the result's memory order stays that of
    the bytes, channels last, which is what convolutions like best.
    """
    mean, std = _channels(config.input_mean, device), _channels(config.input_std, device)
    clips = clips.to(device, non_blocking=True).permute(0, 4, 1, 2, 3).float()
    return clips.div_(255).sub_(mean).div_(std)


@functools.cache
def _channels(values: tuple, device) -> torch.Tensor:
    """One number a channel, on the device once and for all: a copy each step would wait for it."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1, 1)

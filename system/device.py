"""The device: choosing it, and its precision and settings."""

import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from config import Config
from system import processes
from system.errors import UserError


def choose_device(gpus: str | None, use_gpu: bool = True) -> torch.device:
    """Return the device for `-g`: a GPU number, `cpu`, or None for a GPU if there is one.

    Under torchrun, each process uses the GPU of its local rank. Without CUDA, a GPU number gives a
    warning and the CPU. Raises UserError for a GPU that does not exist.
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


def _launched_device(gpus: str | None, available: int) -> torch.device:
    if gpus is not None:
        raise UserError(
            f"-g {gpus}: torchrun assigns a GPU to each process; remove -g, or choose GPUs with "
            "CUDA_VISIBLE_DEVICES"
        )
    number = int(os.environ["LOCAL_RANK"])
    if available and number >= available:
        raise UserError(f"--nproc-per-node: this machine has {available} GPUs; start that many")
    return torch.device("cuda", number) if available else torch.device("cpu")


def gpu_numbers(gpus: str) -> list[int]:
    """Parse `0,1` to [0, 1]; raise UserError for anything else."""
    numbers = [number.strip() for number in gpus.split(",")]
    if not all(number.isdecimal() for number in numbers) or len(set(numbers)) < len(numbers):
        raise UserError(f"-g {gpus}: expected GPU numbers such as 0 or 0,1, or cpu")
    return [int(number) for number in numbers]


def prepare(device: torch.device, precision: str, deterministic: bool) -> None:
    """Set PyTorch's flags for the rest of the process; warn about known bad versions of cuDNN.

    deterministic: on a GPU, use deterministic algorithms only.
    Raises UserError if the device does not support `precision`.
    """
    check_precision(precision, device)
    allow_tf32(precision == "tf32")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        # `warn_if_not_repeatable` warns about the networks that this concerns.
        warnings.filterwarnings("ignore", message=".*max_pool3d_with_indices_backward_cuda.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
    # On an H200 (cuDNN 9.19) its search did not end within a minute in fp32.
    torch.backends.cudnn.benchmark = False
    if device.type == "cpu":
        keep_freed_memory()
    problem = version_problem(torch.backends.cudnn.version(), number_format(precision, device))
    if device.type == "cuda" and problem:
        print(f"warning: {problem}", file=sys.stderr)


def warn_if_not_repeatable(model: torch.nn.Module, name: str) -> None:
    """Warn if `model` has 3D max pooling with overlapping windows.

    On GPUs its backward pass adds gradients in no fixed order.
    """
    if any(
        pool.kernel_size != pool.stride
        for pool in model.modules()
        if isinstance(pool, torch.nn.MaxPool3d)
    ):
        print(
            f"warning: deterministic: max pooling with overlapping windows, which {name} has, "
            "is not deterministic on a GPU; two runs may differ by rounding",
            file=sys.stderr,
        )


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # constants of malloc.h


def keep_freed_memory() -> None:
    """Keep freed memory for the next tensor, with glibc, instead of returning it to the system.

    Clearing new pages takes a fifth of the tutorial's training step on the CPU. (mallopt(3): no
    trimming, and no memory maps for single allocations)
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for parameter, value in ((_M_TRIM_THRESHOLD, -1), (_M_MMAP_MAX, 0)):
            mallopt(parameter, value)


# --- precision ---------------------------------------------------------------------------------

NUMBER_FORMATS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
FIRST_GPU_WITH_TF32 = (8, 0)  # CUDA's compute capability of the Ampere generation


@contextmanager
def one_core_each() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool with a thread per core that PyTorch uses; each computes on one core.

    Small convolutions gain little from several cores. NumPy's threads are limited, too: they wait
    for work in a loop that takes a core. What was not started is cancelled at the end.
    """
    number = torch.get_num_threads()
    pool = ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with threadpool_limits(1, "blas"):
            yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(number)  # the pool's threads changed that of new threads, too


def check_precision(precision: str, device: torch.device) -> None:
    """Raise UserError if `precision` is tf32 and `device` does not support it."""
    if precision == "tf32" and not has_tf32(device):
        raise UserError(
            "precision, eval_precision: found tf32, which NVIDIA GPUs have from the Ampere "
            "generation on; use fp32"
        )


def has_tf32(device: torch.device) -> bool:
    """Return whether the device has TF32."""
    return device.type == "cuda" and (
        torch.cuda.get_device_capability(device) >= FIRST_GPU_WITH_TF32
    )


def allow_tf32(is_allowed: bool) -> None:
    """Set whether fp32 convolutions and matrix products on a GPU may use TF32."""
    # Not the newer `fp32_precision`: PyTorch raises an error if both APIs are mixed.
    torch.backends.cudnn.allow_tf32 = is_allowed
    torch.backends.cuda.matmul.allow_tf32 = is_allowed


@functools.cache
def number_format(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of convolutions; for `auto`, bf16 if the hardware supports it, else fp32."""
    if precision != "auto":
        return NUMBER_FORMATS[precision]
    return torch.bfloat16 if computes_natively(torch.bfloat16, device) else torch.float32


def computes_natively(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the device has instructions for `dtype`; emulation is slower than fp32."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return dtype is not torch.bfloat16 or has_bf16
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    abilities = torch.cpu.get_capabilities()
    return name is None or any(abilities.get(f"{unit}_{name}") for unit in ("avx512", "amx"))


def precision_name(precision: str, device: torch.device) -> str:
    """Return `precision`, with `auto` resolved for the device."""
    is_bf16 = number_format(precision, device) is torch.bfloat16
    return precision if precision != "auto" else "bf16" if is_bf16 else "fp32"


def describe_devices(device: torch.device, config: Config, is_trained: bool) -> str:
    """Return, for example, `2 x NVIDIA H200, training in bf16, evaluation in fp32`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    words = [f"{processes.world_size()} x {name}"]
    if is_trained:
        words.append(f"training in {precision_name(config.precision, device)}")
    words.append(f"evaluation in {precision_name(config.eval_precision, device)}")
    return ", ".join(words)


def version_problem(cudnn: int | None, chosen: torch.dtype) -> str | None:
    """Return what is wrong with 3D convolutions in `chosen` with this cuDNN (such as 91002)."""
    if cudnn is None or chosen is torch.float32 or not 90800 <= cudnn < 91500:
        return None
    major, minor = cudnn // 10000, cudnn // 100 % 100
    return (
        f"cuDNN {major}.{minor} has wrong or slow 16-bit 3D convolutions; install 9.15 or "
        "later, or set precision to fp32"
    )


def autocast(device: torch.device, precision: str):
    """Return the autocast context for `precision`."""
    chosen = number_format(precision, device)
    enabled = chosen is not torch.float32
    return torch.autocast(device.type, chosen if enabled else None, enabled=enabled)


@contextmanager
def computing_in(device: torch.device, precision: str):
    """Compute as in `autocast`; fp32 is IEEE fp32 or TF32, depending on `precision`."""
    before = torch.backends.cudnn.allow_tf32
    allow_tf32(precision == "tf32")
    try:
        with autocast(device, precision):
            yield
    finally:
        allow_tf32(before)


@contextmanager
def evaluating(device: torch.device, config: Config):
    """Compute in `eval_precision` and in inference mode."""
    with torch.inference_mode(), computing_in(device, config.eval_precision):
        yield


def loss_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Return the GradScaler that keeps small gradients representable in fp16.

    In other formats its scale is 1, and it only skips steps whose gradients contain NaN or inf.
    """
    if precision == "fp16":
        return torch.amp.GradScaler(device.type)
    return torch.amp.GradScaler(device.type, init_scale=1.0, growth_interval=2**31 - 1)


def to_device(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Move the network, with its kernels in channels-last memory format."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.to(device).parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])
    return model

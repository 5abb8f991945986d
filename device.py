"""The device that computes: which one, in which number format, and how clips come to it."""

import os
import sys
import warnings

import torch

import processes
from errors import UserError


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


def make_deterministic() -> None:
    """On a GPU, only algorithms that give the same bits each time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # Max pooling has no other algorithm; where windows do not overlap, as here, it repeats exactly.
    warnings.filterwarnings("ignore", message=".*max_pool3d_with_indices_backward_cuda.*")
    torch.use_deterministic_algorithms(True, warn_only=True)


def autocast(device: torch.device, precision: str):
    """The context in which the network computes in `precision`, `fp32` or `bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def to_network_input(clips, device, mean, std) -> torch.Tensor:
    """uint8 [N, T, H, W, C] on the CPU -> normalised float32 [N, C, T, H, W] on `device`.

    The bytes travel, the floats are made on the device; the result's memory order stays that of
    the bytes, channels last, which is what convolutions like best. mean, std: RGB in 0..1.
    """
    clips = clips.to(device, non_blocking=True).permute(0, 4, 1, 2, 3).float()
    mean = torch.tensor(mean, device=device).view(1, 3, 1, 1, 1)
    std = torch.tensor(std, device=device).view(1, 3, 1, 1, 1)
    return clips.div_(255).sub_(mean).div_(std)

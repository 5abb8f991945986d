"""Device, seeds and metrics: small things that several rooms need."""

import os
import sys
import warnings

import numpy as np
import torch

import processes
from errors import UserError

# --- device ------------------------------------------------------------------------------------


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


# --- seeds -------------------------------------------------------------------------------------


def seed_step(seed: int, epoch: int, step: int) -> None:
    """Makes what a step draws (dropout) a function of (seed, epoch, step, process)."""
    state = np.random.SeedSequence([seed, epoch, step, processes.rank()])
    torch.manual_seed(int(state.generate_state(1, np.uint64)[0]) >> 1)


# --- metrics -----------------------------------------------------------------------------------


class AverageMeter:
    """Running mean over clips.

    The sum stays where the values are, so that updating never waits for a GPU; reading does.
    """

    # Sums of multiples of this are exact in a double, so they do not depend on the order: a
    # resumed epoch, and one over several processes, give the very same mean.
    RESOLUTION = 2.0**-24

    def __init__(self):
        self.sum, self.count = 0.0, 0

    def update(self, batch_sum: torch.Tensor, count: int):
        """batch_sum: the values of `count` clips, added up."""
        steps = (batch_sum.detach().double() / self.RESOLUTION).round()
        self.sum = self.sum + steps * self.RESOLUTION
        self.count += count

    @property
    def average(self) -> float:
        return float(self.sum) / self.count if self.count else float("nan")


def top_k_for(num_classes: int) -> int:
    """5 as is customary, or the number of classes if that is smaller."""
    return min(5, num_classes)


def top_k_correct(logits, labels, k) -> torch.Tensor:
    """Whether the label is among the k highest logits. [N, classes], [N] -> bool [N]."""
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1)


class TrainingMetrics:
    """Running loss, top-1 and top-k (percent) of the clips seen so far in an epoch."""

    def __init__(self, num_classes: int):
        self.k = top_k_for(num_classes)
        self.meters = {name: AverageMeter() for name in ("loss", "top1", f"top{self.k}")}

    def update(self, loss_sum, logits, labels):
        """loss_sum: added up over the clips; logits: [N, classes]; labels: [N]."""
        sums = {"loss": loss_sum, "top1": 100 * top_k_correct(logits, labels, 1).sum()}
        sums[f"top{self.k}"] = 100 * top_k_correct(logits, labels, self.k).sum()
        for name, batch_sum in sums.items():
            self.meters[name].update(batch_sum, len(labels))

    def averages(self) -> dict[str, float]:
        """The means of this process's clips."""
        return {name: meter.average for name, meter in self.meters.items()}

    def state(self) -> dict[str, list]:
        """Sum and count of each meter over all processes, which all have to call this."""
        own = [[float(meter.sum), meter.count] for meter in self.meters.values()]
        sums = processes.total(torch.tensor(own, dtype=torch.float64)).tolist()
        return dict(zip(self.meters, sums, strict=True))

    def load_state(self, state: dict[str, list]) -> None:
        """Goes on from `state`; it is kept by the main process, and the others start from 0."""
        for name in self.meters.keys() & state.keys() if processes.is_main() else ():
            total, count = state[name]
            self.meters[name].sum, self.meters[name].count = total, int(count)

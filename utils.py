"""Device, seeds and metrics: small things that several rooms need."""

import sys

import numpy as np
import torch

from errors import UserError

# --- device ------------------------------------------------------------------------------------


def choose_device(gpus: str | None, use_gpu: bool = True) -> torch.device:
    """The device for `-g`: a GPU number, `cpu`, or None for a GPU where there is one.

    A GPU asked for on a machine without CUDA is a warning on stderr, then the CPU.
    Raises UserError for anything else that cannot be had.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not use_gpu or gpus == "cpu":
        return torch.device("cpu")
    if gpus is None:
        return torch.device("cuda", 0) if available else torch.device("cpu")
    numbers = gpus.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise UserError(f"-g {gpus}: expected a GPU number such as 0, or cpu")
    if len(numbers) > 1:
        raise UserError(f"-g {gpus}: training on several GPUs is not available; name one GPU")
    if not available:
        print(f"warning: -g {gpus}: this machine has no CUDA GPU; using the CPU", file=sys.stderr)
        return torch.device("cpu")
    if int(gpus) >= available:
        raise UserError(f"-g {gpus}: this machine has GPUs 0 to {available - 1}")
    return torch.device("cuda", int(gpus))


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
    """Makes what a step draws (dropout) a function of (seed, epoch, step)."""
    state = np.random.SeedSequence([seed, epoch, step]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]) >> 1)


# --- metrics -----------------------------------------------------------------------------------


class AverageMeter:
    """Running mean of values that each stand for `count` clips.

    The sum stays where the values are, so that updating never waits for a GPU; reading does.
    """

    def __init__(self):
        self.sum, self.count = 0.0, 0

    def update(self, value: torch.Tensor, count: int):
        self.sum = self.sum + value.detach().double() * count
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

    def update(self, loss, logits, labels):
        """loss: mean over the batch; logits: [N, classes]; labels: [N]."""
        values = {"loss": loss, "top1": 100 * top_k_correct(logits, labels, 1).double().mean()}
        values[f"top{self.k}"] = 100 * top_k_correct(logits, labels, self.k).double().mean()
        for name, value in values.items():
            self.meters[name].update(value, len(labels))

    def averages(self) -> dict[str, float]:
        return {name: meter.average for name, meter in self.meters.items()}

"""100 steps at a fixed seed give the losses that they gave before.

`golden_losses.json` is what a refactoring is held against. After a change that is meant to move
them, `PYTHONPATH=. python tests/test_golden.py` writes it anew, and says how far they moved.

What other CPUs change is rounding, which training amplifies: an activation close to zero falls on
the other side, and Adam, which scales gradients, follows. So the learning rate is low, there is no
BatchNorm over a handful of numbers, and the seed is one whose run has no such place. Dropout is
off, since its random numbers are not the same in all builds of PyTorch. Measured with other
instruction sets (AVX2, SSE4.1 and none, MKL's compatible mode): within 1e-5. A twentieth more
learning rate moves the losses by 7e-3, other clips or other crops of them by more than 2e-2.
"""

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import TINY_NETWORK, write_data_set
from runs import write_config

import train

GOLDEN = Path(__file__).parent / "golden_losses.json"
NUM_EPOCHS = 25  # of four steps each
RECIPE = TINY_NETWORK | {
    "num_epochs": NUM_EPOCHS,
    "batch_size": 16,
    "num_workers": 0,
    "head_widths": [32],
    "seed": 4,
    "dropout": 0.0,
    "lr": 0.0002,
    "schedule": "cosine",
    "warmup_epochs": 2,
    "weight_decay": 0.1,
}
RELATIVE_TOLERANCE = 2e-3


def losses_of_steps(folder) -> list[float]:
    """Trains 100 steps in `folder`; the mean loss of each step's clips."""
    data = write_data_set(folder / "data", {"train": 60, "validation": 3})
    config = data | RECIPE | {"model_name": "golden", "output_dir": str(folder)}
    train_step, losses = train.train_step, []

    def watched_step(run, batch, *rest):
        before = float(run.state.metrics.meters["loss"].sum)
        train_step(run, batch, *rest)
        losses.append((float(run.state.metrics.meters["loss"].sum) - before) / len(batch.labels))

    with mock.patch.object(train, "train_step", watched_step):
        arguments = ["-c", write_config(folder / "config.json", config), "-g", "cpu"]
        assert train.main(arguments) == 0
    return losses


def test_the_losses_of_100_steps_are_the_golden_ones(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    losses = losses_of_steps(tmp_path)
    assert len(losses) == 100
    assert losses == pytest.approx(golden, rel=RELATIVE_TOLERANCE)


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        losses = losses_of_steps(Path(folder))
    if GOLDEN.exists():
        golden = json.loads(GOLDEN.read_text())
        moved = max(abs(new / old - 1) for new, old in zip(losses, golden, strict=True))
        print(f"largest relative difference to before: {moved:.1e}")
    GOLDEN.write_text(json.dumps([round(loss, 7) for loss in losses], indent=0) + "\n")
    print(f"wrote {GOLDEN}: {losses[0]:.4f} ... {losses[-1]:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

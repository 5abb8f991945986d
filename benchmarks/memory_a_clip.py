"""Memory per clip that each network keeps for the backward pass, with and without checkpoints.

    python benchmarks/memory_a_clip.py --save memory_a_clip

The figures are counted, not measured, in fp32 and with batches of two, so they do not depend on the
machine. They are not peaks: see NOTE.
"""

import argparse
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn

from benchmarks import machine
from model import build_model
from networks.recompute import recompute_activations
from system.config_file import load_config
from system.memory import MIB

PROJECT = Path(__file__).parent.parent
NOTE = """Counted between the forward and the backward pass. In the backward pass the recomputed
activations of one stage and their gradients are added, so that the peak falls by less.
"""
NUM_CLASSES, BATCH_SIZE = 27, 2
SHAPE = (16, 112, 112)  # T, H, W
CASES = (
    ("conv3d", (18, 84, 84)),
    *((name, SHAPE) for name in ("conv3d", "cnn_lstm", "trn", "two_stream", "mobilenet3d",
                                 "csn", "r3d_18", "r2plus1d_18", "s3d", "swin3d_t")),
)  # fmt: skip


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    rows = []
    for name, shape in CASES:
        if not options.models or name in options.models:
            rows.append(measure(name, shape))
            print(markdown(rows[-1:]).split("\n")[-1], flush=True)
    about = machine.describe(torch.device("cpu"))
    table = f"{about['versions']}, {about['date']}\n\n{markdown(rows)}\n\n{NOTE}"
    print(f"\n{table}")
    if options.save:
        machine.save(options.save, about | {"rows": rows}, table)
    return 0


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", choices=sorted({name for name, _ in CASES}),
                        help="(default: all)")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and .md")
    return parser.parse_args(arguments)


def measure(name, shape) -> dict:
    """MiB per clip that the network `name` keeps for clips of `shape` (T, H, W)."""
    changes = [f"model={name}", f"clip_size={shape[0]}", f"crop_size={[*shape[1:]]}"]
    config = load_config(PROJECT / "configs" / "config.json", changes)
    model = build_model(config, NUM_CLASSES)
    clips = torch.zeros(BATCH_SIZE, config.num_channels, *shape)
    row, per_clip = {"model": name, "shape": list(shape)}, 1 / BATCH_SIZE / MIB
    row["all"] = kept_for_backward(model, clips) * per_clip
    recompute_activations(model)
    return row | {"inputs_of_stages": kept_for_backward(model, clips) * per_clip}


def kept_for_backward(model: nn.Module, clips: torch.Tensor) -> int:
    """Bytes that a copy of `model` keeps in a forward pass in training for the backward pass.

    clips: float [N, C, T, H, W]. Parameters and buffers are not counted, clips are; each storage is
    counted once, however many layers keep a view of it.
    """
    model = copy.deepcopy(model).train()
    own = {_storage(tensor)[0] for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def note(tensor):
        address, num_bytes = _storage(tensor)
        if address not in own:
            kept[address] = num_bytes
        return tensor.detach()  # the tensor itself may belong to the graph that would keep it alive

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(clips)  # while it is alive, no address is reused
    total = sum(kept.values())
    del logits
    return total


def _storage(tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def markdown(rows) -> str:
    """A table: network | clip | MiB without | with | with as percentage of without."""
    lines = ["| network | clip (T x H x W) | MiB per clip | with checkpoint_activations | share |",
             "|---|---|---|---|---|"]
    for row in rows:
        shape = " x ".join(map(str, row["shape"]))
        lines.append(
            f"| {row['model']} | {shape} | {row['all']:.1f} | {row['inputs_of_stages']:.1f} "
            f"| {row['inputs_of_stages'] / row['all']:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

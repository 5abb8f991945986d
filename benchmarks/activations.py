"""Memory per clip that each network keeps for the backward pass, with and without checkpoints.

The figures are counted between the forward and the backward pass, not measured, in fp32 and with
batches of two, so they do not depend on the machine. In the backward pass the recomputed
activations of one stage and their gradients are added, so that the peak falls by less.
"""

import copy

import torch
from torch import nn

from benchmarks.memory import PROJECT
from model import build_model
from networks.recompute import recompute_activations
from system.config_file import load_config
from system.memory import MIB

NUM_CLASSES, BATCH_SIZE = 27, 2
SHAPE = (16, 112, 112)  # T, H, W
CASES = (
    ("conv3d", (18, 84, 84)),
    *(
        (name, SHAPE)
        for name in (
            "conv3d",
            "cnn_lstm",
            "trn",
            "two_stream",
            "mobilenet3d",
            "csn",
            "r3d_18",
            "r2plus1d_18",
            "s3d",
            "swin3d_t",
        )
    ),
)


def measure(_device, options, _folder):
    """Yield MiB per clip of each network, for clips of (T, H, W)."""
    for name, shape in CASES[: 1 if options.small else None]:
        changes = [f"model={name}", f"clip_size={shape[0]}", f"crop_size={[*shape[1:]]}"]
        config = load_config(PROJECT / "configs" / "config.json", changes)
        model = build_model(config, NUM_CLASSES)
        clips = torch.zeros(BATCH_SIZE, config.num_channels, *shape)
        every = kept_for_backward(model, clips) / BATCH_SIZE / MIB
        recompute_activations(model)
        inputs = kept_for_backward(model, clips) / BATCH_SIZE / MIB
        yield {
            "what": f"{name}, {' x '.join(map(str, shape))}",
            "MiB per clip": round(every, 1),
            "with checkpoint_activations": round(inputs, 1),
            "share": f"{inputs / every:.0%}",
        }


def kept_for_backward(model: nn.Module, clips: torch.Tensor) -> int:
    """Return the bytes that a copy of `model` keeps in a training forward pass for the backward.

    clips: float [N, C, T, H, W]. Parameters and buffers are not counted, clips are; each storage is
    counted once, however many layers keep a view of it.
    """
    model = copy.deepcopy(model).train()
    own = {_storage(tensor)[0] for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def record(tensor):
        address, num_bytes = _storage(tensor)
        if address not in own:
            kept[address] = num_bytes
        return tensor.detach()  # the tensor may belong to the graph that would keep it alive

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        logits = model(clips)  # while it is alive, no address is reused
    total = sum(kept.values())
    del logits
    return total


def _storage(tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()

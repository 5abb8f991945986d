"""Memory that a forward pass keeps for the backward pass."""

import copy

import torch
from torch import nn


def kept_for_backward(model: nn.Module, clips: torch.Tensor) -> int:
    """Bytes that a forward pass in training keeps for the backward pass.

    clips: float [N, C, T, H, W]. Parameters and buffers are not counted, clips are; each storage is
    counted once, however many layers keep a view of it. Runs a copy of `model`.
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

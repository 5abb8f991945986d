"""How much a forward pass keeps for the backward pass."""

import copy

import torch
from torch import nn


def kept_for_backward(model: nn.Module, clips: torch.Tensor) -> int:
    """Bytes that a forward pass in training keeps for the backward pass.

    clips: float [N, C, T, H, W]. Parameters and buffers are not counted, the clips are, and each
    storage once, however many layers keep a view of it. A copy of `model` is run.
    """
    model = copy.deepcopy(model).train()
    own = {_storage(tensor)[0] for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def note(tensor):
        address, num_bytes = _storage(tensor)
        if address not in own:
            kept[address] = num_bytes
        return tensor.detach()  # the tensor itself may be of the graph that would then hold it

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(clips)  # as long as it lives, no address is used again
    total = sum(kept.values())
    del logits
    return total


def _storage(tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()

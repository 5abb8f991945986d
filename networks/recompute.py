"""Recompute each stage's activations in the backward pass instead of storing them.

Most memory of training is for activations, which the backward pass needs; with 3D convolutions
these are far larger than the weights.
"""

from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from networks.stages import stages

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


def recompute_activations(model: nn.Module) -> None:
    """Recompute each stage's activations in the backward pass. (Chen et al., 1604.06174)

    In training, a stage stores only its input; the recomputed values have the same bits. In a
    sequence of layers, as in conv3d, a convolution and the layers up to the next one are a stage.
    PyTorch's `apply_activation_checkpointing` only wraps whole modules: conv3d's first block would
    be one stage, whose recomputed activations take as much memory as all of them.
    """
    for child in model.children():
        if isinstance(child, nn.Sequential):
            child.forward = partial(_forward_in_runs, child)
    for _, stage in stages(model):
        if isinstance(stage, nn.Sequential) and all(map(_is_single_layer, stage)):
            stage.forward = partial(_forward_in_runs, stage)
        elif not _is_single_layer(stage):
            stage.forward = partial(_recompute, stage.forward, [stage])


def _is_single_layer(module) -> bool:
    return not list(module.children())


def _forward_in_runs(sequence, inputs):
    """Return `sequence(inputs)`, storing only the inputs of its runs."""
    for layers in _runs(sequence):
        forward = partial(_forward_in_order, layers)
        inputs = _recompute(forward, layers, inputs) if len(layers) > 1 else forward(inputs)
    return inputs


def _forward_in_order(layers, inputs):
    for layer in layers:
        inputs = layer(inputs)
    return inputs


def _runs(sequence) -> list[list[nn.Module]]:
    """Group a convolution with the single layers that follow it; other modules stay alone."""
    runs = []
    for layer in sequence:
        continues = runs and _is_single_layer(layer) and _is_single_layer(runs[-1][-1])
        if continues and not isinstance(layer, CONVOLUTIONS):
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs


def _recompute(forward, modules, *inputs):
    """Return `forward(*inputs)`; in training by `checkpoint`, if `modules` have parameters."""
    has_parameters = any(list(module.parameters()) for module in modules)
    if not (has_parameters and modules[0].training and torch.is_grad_enabled()):
        return forward(*inputs)
    options = {"use_reentrant": False}
    # A compiler only recomputes code without side effects, and cannot trace other contexts.
    if not torch.compiler.is_compiling():
        options["context_fn"] = lambda: (nullcontext(), _unchanged_statistics(modules))
    return checkpoint(forward, *inputs, **options)


@contextmanager
def _unchanged_statistics(modules):
    """Keep BatchNorm's running statistics by a momentum of 0; it counts batches in a copy."""
    norms = [
        part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)
    ]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, before in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = before

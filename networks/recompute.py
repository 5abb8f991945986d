"""Recompute each stage's activations in the backward pass instead of keeping them.

What training keeps for the backward pass is mostly the activations between layers; with 3D
convolutions these outweigh the weights by far.
"""

import functools
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from networks.stages import as_kind, stages

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


def recompute_activations(model: nn.Module) -> None:
    """Recompute each stage's activations in the backward pass. (Chen et al., 1604.06174)

    In training, a stage keeps its input only; the recomputed values have the same bits. Where
    layers follow each other, as in conv3d, a convolution and what follows it are a stage.
    Stages are replaced by modules that share their content, so names and weights stay the same.
    """
    for name, child in list(model.named_children()):
        if isinstance(child, nn.Sequential):
            model.set_submodule(name, as_kind(SequentialInRuns, child))
    for name, stage in stages(model):
        if not _is_single_layer(stage):
            in_runs = isinstance(stage, nn.Sequential) and all(map(_is_single_layer, stage))
            kind = SequentialInRuns if in_runs else _recomputed_kind(type(stage))
            model.set_submodule(name, as_kind(kind, stage))


class SequentialInRuns(nn.Sequential):
    """A Sequential that keeps the inputs of its runs only."""

    def forward(self, inputs):
        for layers in _runs(self):
            forward = partial(_in_turn, layers)
            inputs = (_keeping_inputs(forward, layers, inputs) if len(layers) > 1
                      else forward(inputs))  # fmt: skip
        return inputs


@functools.cache
def _recomputed_kind(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `kind` that keeps its inputs only."""

    class Recomputed(kind):
        def forward(self, *inputs):
            return _keeping_inputs(partial(kind.forward, self), [self], *inputs)

    return Recomputed


def _is_single_layer(module) -> bool:
    return not list(module.children())


def _runs(sequence) -> list[list[nn.Module]]:
    """A convolution with the single layers that follow it; every other module alone."""
    runs, last_is_single = [], False
    for layer in sequence:
        is_single = _is_single_layer(layer)
        if is_single and last_is_single and not isinstance(layer, CONVOLUTIONS):
            runs[-1].append(layer)
        else:
            runs.append([layer])
        last_is_single = is_single
    return runs


def _in_turn(layers, inputs):
    for layer in layers:
        inputs = layer(inputs)
    return inputs


def _keeping_inputs(forward, modules, *inputs):
    """`forward(*inputs)`; in training through `checkpoint`, if `modules` have parameters."""
    has_parameters = any(list(module.parameters()) for module in modules)
    if not (has_parameters and modules[0].training and torch.is_grad_enabled()):
        return forward(*inputs)
    options = {"use_reentrant": False, "preserve_rng_state": True}
    # A compiler recomputes what has no side effects only, and cannot look into other contexts.
    if not torch.compiler.is_compiling():
        options["context_fn"] = lambda: (nullcontext(), _unchanged_statistics(modules))
    return checkpoint(forward, *inputs, **options)


@contextmanager
def _unchanged_statistics(modules):
    """With a momentum of 0, BatchNorm's running statistics stay; it counts batches in a copy."""
    norms = [part for module in modules for part in module.modules()
             if isinstance(part, _BatchNorm)]  # fmt: skip
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, before in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = before

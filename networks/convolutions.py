"""Other ways to compute a convolution, where a library is wrong or extremely slow."""

import torch
import torch.nn.functional as F
from torch import nn

from networks.stages import with_class


class PaddedBeforehand(nn.Conv3d):
    """A convolution whose time is padded by a separate operation."""

    def forward(self, inputs):
        time, *space = self.padding
        inputs = F.pad(inputs, (0, 0, 0, 0, time, time))
        return F.conv3d(
            inputs, self.weight, self.bias, self.stride, (0, *space), self.dilation, self.groups
        )


class UnfoldedGradient(nn.Conv3d):
    """A convolution in fp32 whose weight gradient is computed without cuDNN.

    cuDNN 9.19 only has slow kernels for it: on an H200, 0.9 s for 100 clips of [32, 9, 41, 41] and
    64 kernels of [2, 3, 3], where its forward pass takes 2.5 ms, and over 15 s for larger ones.
    PyTorch's kernels unfold each clip and multiply matrices.
    """

    def forward(self, inputs):
        settings = self.stride, self.padding, self.dilation, self.groups
        return _UnfoldedGradient.apply(inputs, self.weight, self.bias, *settings)


class _UnfoldedGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, inputs, weight, bias, *settings):
        context.save_for_backward(inputs, weight)
        context.settings = settings
        return F.conv3d(inputs, weight, bias, *settings)

    @staticmethod
    def backward(context, gradient):
        with_input, with_weight, with_bias, *others = context.needs_input_grad
        of_input, _, of_bias = _gradients(context, gradient, (with_input, False, with_bias))
        of_weight = None
        if with_weight:
            with torch.backends.cudnn.flags(enabled=False):
                _, of_weight, _ = _gradients(context, gradient, (False, True, False))
        return of_input, of_weight, of_bias, *[None] * len(others)


def _gradients(context, gradient, wanted):
    """Return the requested gradients of input, weight and bias; None for the others."""
    (inputs, weight), (stride, padding, dilation, groups) = context.saved_tensors, context.settings
    return torch.ops.aten.convolution_backward(
        gradient,
        inputs,
        weight,
        [len(weight)],
        stride,
        padding,
        dilation,
        False,
        [0, 0, 0],
        groups,
        wanted,
    )


class InFp32:
    """A mixin for convolutions that compute in fp32 inside autocast."""

    def forward(self, inputs):
        if inputs.is_meta:  # computes only shapes, and has no autocast
            return super().forward(inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            return super().forward(inputs.float())


class Conv2dInFp32(InFp32, nn.Conv2d):
    pass


class Conv3dInFp32(InFp32, UnfoldedGradient):
    pass


def replace_slow_gradients(model: nn.Module) -> None:
    """Replace the 3D convolutions of a network that is trained in fp32 on a GPU.

    Depthwise ones are kept: PyTorch computes those without cuDNN.
    """
    for name, module in list(model.named_modules()):
        if type(module) is nn.Conv3d and module.groups == 1:
            model.set_submodule(name, with_class(UnfoldedGradient, module))

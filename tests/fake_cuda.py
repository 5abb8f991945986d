"""Training steps on a GPU that need not be there: `fake_cuda.py CASES.json`, which prints JSON.

Tensors of PyTorch's `FakeTensorMode` have a shape, a type, a memory order and the device "cuda",
but no values. An operation over two devices fails as it would on a GPU, and `Watch` sees every
operation and notes what would be slow there.

CASES.json: {name: config keys}; "fault" is one of FAULTS, "expected" a precision other than the
config's. Each case gives what `Watch` noted, and how many copies and convolutions it saw, or the
error that ended it. A process of its own, since what makes the backward pass work without a GPU
cannot be undone.
"""

import json
import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from conftest import make_config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)
from torchvision import tv_tensors
from torchvision.transforms import v2

import train
from clips.batches import Batch
from model import build_model
from networks import recompute
from system.device import number_format
from training import run
from training.loss_watch import StopOnBadLoss

CUDA, META = torch.device("cuda", 0), torch.device("meta")
NUM_CLASSES, BATCH_SIZE = 27, 8
PROJECT = Path(train.__file__).parent

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
READS = (aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default)
CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)


class Watch(TorchDispatchMode):
    """Notes operations that make a GPU wait, or convolutions that it has to prepare for.

    - copies between the CPU and the GPU that are not `non_blocking`, or whose source is not dense:
      PyTorch first packs that into memory that is not pinned, and waits;
    - values that are read from the GPU;
    - convolutions, and their backward passes, with tensors that are not of `expected_type` or not
      in channels-last order.
    """

    is_backward = False  # of all watches; see `backward_without_a_gpu`

    def __init__(self, expected_type):
        super().__init__()
        self.expected_type, self.problems, self.counts = expected_type, Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if Watch.is_backward:
            if func is torch.ops.prim.device.default:
                return META
            if kwargs.get("device") == META:
                kwargs["device"] = CUDA
        if func in READS:
            if args[0].device.type == "cuda":
                self.note("a value is read from the GPU")
            return False  # of a tensor that has arrived on the CPU: the loss was finite
        result = func(*args, **kwargs)
        if func in COPIES:
            self.look_at_copy(func, args, kwargs, result)
        elif func in CONVOLUTIONS:
            self.look_at_convolution(func, args, result)
        return result

    def look_at_copy(self, func, args, kwargs, result):
        is_in_place = func is aten.copy_.default
        source = args[1] if is_in_place else args[0]
        if source.device.type == result.device.type:
            return
        self.counts["copies"] += 1
        what = f"copy of {list(source.shape)} from {source.device.type} to {result.device.type}"
        if not (args[2] if is_in_place and len(args) > 2 else kwargs.get("non_blocking")):
            self.note(f"{what} is blocking")
        if not is_dense(source):
            self.note(f"{what} is not of dense memory")

    def look_at_convolution(self, func, args, result):
        if func is aten.convolution.default:
            what, tensors = "convolution", {"input": args[0], "weight": args[1], "output": result}
        else:
            what = "backward convolution"
            tensors = {
                "gradient": args[0],
                "input": args[1],
                "weight": args[2],
                "input's gradient": result[0],
                "weight's gradient": result[1],
            }
        self.counts[what] += 1
        orders = {4: torch.channels_last, 5: torch.channels_last_3d}
        for name, tensor in tensors.items():
            if tensor is None:  # the first layer's input needs no gradient
                continue
            part = f"{name} of a {what}, {list(tensor.shape)},"
            if tensor.dtype != self.expected_type:
                self.note(f"{part} is {tensor.dtype}")
            if not tensor.is_contiguous(memory_format=orders[tensor.dim()]):
                self.note(f"{part} is not in channels-last order: {tensor.stride()}")

    def note(self, problem):
        calls = [
            frame for frame in traceback.extract_stack() if Path(frame.filename).parent == PROJECT
        ]
        place = f"{Path(calls[-1].filename).name}, {calls[-1].name}" if calls else "backward pass"
        self.problems[f"{problem} ({place})"] += 1


def is_dense(tensor) -> bool:
    """Whether its values lie side by side in memory, in any order of dimensions."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps) == tensor.numel()


# --- without a GPU -------------------------------------------------------------------------------


class NoBackend(_DummyBackendModule):
    def is_available(self):
        return False


class Event:
    """As torch.cuda.Event, of a GPU that has always finished."""

    def __init__(self, **_options):
        pass

    def record(self, *_stream):
        pass

    def query(self):
        return True

    def synchronize(self):
        pass


class PlainVideo:
    """As torchvision's Video, but the tensor stays what it is."""

    def __new__(cls, clips):
        return clips


def pretend_to_have_cuda():
    """Lets the program take the ways that it takes on a GPU, with no values even on the CPU."""
    torch.cuda.Event = Event
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # autocast, GradScaler
    torch.distributions.Beta = lambda *_: SimpleNamespace(sample=lambda *_: 0.3)
    # A fake tensor cannot become a Video, and clips that are none may have four dimensions only.
    tv_tensors.Video = PlainVideo
    v2.MixUp._check_image_or_video = v2.CutMix._check_image_or_video = lambda *_, **__: None
    FakeTensorMode.__deepcopy__ = lambda mode, _: mode


def backward_without_a_gpu():
    """Lets `Tensor.backward` work where there is no GPU.

    Autograd asks CUDA for the streams of what it computes. It does not if PyTorch has another kind
    of accelerator and the gradients are on none; so a backend without operations is registered,
    and during the backward pass `Watch` says that tensors are on "meta".
    """
    _setup_privateuseone_for_python_backend("nothing", NoBackend())
    backward, unchanged_statistics = torch.Tensor.backward, recompute._unchanged_statistics

    def watched_backward(*arguments, **options):
        with backward_is(True):
            return backward(*arguments, **options)

    @contextmanager
    def recomputing(modules):
        with backward_is(False), unchanged_statistics(modules):
            yield

    torch.Tensor.backward, recompute._unchanged_statistics = watched_backward, recomputing


@contextmanager
def backward_is(value):
    before, Watch.is_backward = Watch.is_backward, value
    try:
        yield
    finally:
        Watch.is_backward = before


def put_on_gpu(model):
    """Replaces a meta network's tensors by fake ones on the GPU; needs a FakeTensorMode."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(on_gpu(parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = on_gpu(buffer)
        if isinstance(module, nn.LSTM):
            module.forward = without_cudnn(module.forward)
    model.to = lambda *_: model  # it is there


def on_gpu(tensor):
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)


def without_cudnn(forward):
    """cuDNN's LSTM asks for a real GPU."""

    def call(*arguments):
        with torch.backends.cudnn.flags(enabled=False):
            return forward(*arguments)

    return call


# --- steps ---------------------------------------------------------------------------------------

# Mistakes that `Watch` has to see: (clips, labels) -> (clips, labels), between copy and forward.
FAULTS = {
    "read": lambda clips, labels: (clips * float(clips.sum()), labels),
    "blocking": lambda clips, labels: (clips, labels.cpu().to(CUDA, non_blocking=True)),
    "not dense": lambda clips, labels: (
        clips,
        torch.zeros(2 * len(labels)).long()[::2].to(CUDA, non_blocking=True),
    ),
    "order": lambda clips, labels: (clips.contiguous(), labels),
    "device": lambda clips, labels: (clips, torch.zeros(len(labels)).long()),
}


def problems_of_step(keys) -> dict:
    """What `Watch` says of a training step; needs a FakeTensorMode."""
    fault = FAULTS.get(keys.pop("fault", None), lambda clips, labels: (clips, labels))
    expected = keys.pop("expected", keys["precision"])
    config = make_config(batch_size=BATCH_SIZE, **keys)
    with _disable_current_modes(), META:
        model = build_model(config, NUM_CLASSES)
    put_on_gpu(model)
    # Without values no convolution can be checked.
    without_check = mock.patch.object(run, "replace_wrong_convolutions", lambda *_, **__: [])
    with mock.patch.object(run, "build_model", lambda *_: model), without_check:
        own_run = run.start_run(config, list(map(str, range(NUM_CLASSES))), CUDA)
    if config.checkpoint_activations:
        recompute.recompute_activations(own_run.model)
    own_run.network.train()
    shape = (BATCH_SIZE, 1, *config.clip_shape, config.num_channels)
    clips, labels = torch.zeros(shape, dtype=torch.uint8), torch.zeros(BATCH_SIZE).long()
    indices = SimpleNamespace(numpy=lambda: np.arange(BATCH_SIZE))  # with its values
    watch_loss = StopOnBadLoss(CUDA, config.precision)
    watch_loss.ids = np.arange(BATCH_SIZE).astype(str)
    mix_batch = train.mix_batch

    def with_fault(clips, labels, *rest):
        return mix_batch(*fault(clips, labels), *rest)

    watch = Watch(number_format(expected, CUDA))
    with mock.patch.object(train, "mix_batch", with_fault), watch:
        train.train_step(own_run, Batch(clips, labels, indices, []), [BATCH_SIZE], [watch_loss])
    return {"problems": watch.problems, "counts": watch.counts}


def main(path) -> int:
    pretend_to_have_cuda()
    if not torch.cuda.is_available():
        backward_without_a_gpu()
    results = {}
    with FakeTensorMode():
        for name, keys in json.loads(Path(path).read_text()).items():
            try:
                results[name] = problems_of_step(keys)
            except Exception:
                results[name] = {"error": traceback.format_exc()}
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Commands of train.py in several processes: `torchrun ... several.py JOB.json`.

Each start of torchrun takes seconds, so a job is a list of commands, which run one after the other:
  {"flags": [...]}                      train.py with these flags
  {"flags": [...], "fault": NAME, "at": [EPOCH, STEP], "rank": RANK}
                                        ... and one of FAULTS before this step (both from 0), in
                                        one process, or in all if no rank is given
  {"flags": [...], "watch": true}       ... with collective calls counted
Faults happen in the first start only, not after the launcher has started the processes again. What
came of the commands goes to `JOB.START.RANK.json`.
"""

import json
import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from runs import PowerCut
from torch import nn

import train
from system import processes, stopping

JOB = Path(sys.argv[1])
START = int(os.environ["TORCHELASTIC_RESTART_COUNT"])


# --- faults ------------------------------------------------------------------------------------


def power_cut(_run):
    raise PowerCut


def kill(_run):
    JOB.with_suffix(".killed").write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)


def kill_host(_run):
    os.kill(os.getppid(), signal.SIGKILL)  # torchrun first, before it can tell the others
    kill(_run)


def terminate(_run):
    os.kill(os.getpid(), signal.SIGTERM)


def terminate_launcher(_run):
    os.kill(os.getppid(), signal.SIGTERM)
    wait_for_signal()


def interrupt_launcher(_run):
    os.kill(os.getppid(), signal.SIGINT)
    wait_for_signal()


def wait_for_signal():
    """Until the launcher's signal has come to this process, however long it takes."""
    while not stopping.requested():
        time.sleep(0.01)


def lose_a_number(run):
    run.model.classifier.bias.data.fill_(torch.nan)


FAULTS = (
    power_cut,
    kill,
    kill_host,
    terminate,
    terminate_launcher,
    interrupt_launcher,
    lose_a_number,
)


def train_step_with(fault, at, rank=None):
    """`train.train_step` with a fault in it.

    If a process is killed, the others first wait in this step for the launcher's SIGTERM: it would
    else come at any moment of their end, and might be what ends them.
    """
    (fault,) = [function for function in FAULTS if function.__name__ == fault]
    train_step = train.train_step

    def step(run, *rest):
        if START == 0 and [run.state.epoch, run.state.step] == at:
            if rank in (None, processes.rank()):
                fault(run)
            elif fault is kill:
                wait_for_signal()
        return train_step(run, *rest)

    return step


# --- what a step does --------------------------------------------------------------------------

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "broadcast",
    "all_gather_object",
    "broadcast_object_list",
)


@contextmanager
def watched_steps(found: dict):
    """Notes collective calls between steps, and what there is before the first one."""
    calls, train_step = [], train.train_step

    def step(run, *rest):
        if found:
            found["calls"].append(list(calls))
        else:
            sums = [
                float(buffer.sum())
                for name, buffer in run.model.named_buffers()
                if not name.endswith("running_var")
            ]
            found.update(
                calls=[],
                buffers=sums,
                views=run.network.gradient_as_bucket_view,
                broadcast_buffers=run.network.broadcast_buffers,
            )
        calls.clear()
        return train_step(run, *rest)

    def noting(name, call):
        return lambda *arguments, **keys: calls.append(name) or call(*arguments, **keys)

    noted = {name: noting(name, getattr(dist, name)) for name in COLLECTIVES}
    with mock.patch.multiple(dist, **noted), mock.patch.object(train, "train_step", step):
        yield


# --- BatchNorm ---------------------------------------------------------------------------------


def synchronise_batchnorm(model: nn.Module, _device) -> nn.Module:
    """`processes.synchronise_batchnorm` for the CPU, to show that several processes compute as one.

    PyTorch's own runs on GPUs only.
    """
    for module in model.modules():
        if processes.world_size() > 1 and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = CPUSyncBatchNorm
    return model


class CPUSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the clips of all processes."""

    def _check_input_dim(self, _inputs):
        pass

    def forward(self, inputs):
        """inputs: [N, C, ...], N may differ between the processes."""
        if not self.training:
            return super().forward(inputs)
        given_type, inputs = inputs.dtype, inputs.float()  # bf16 is too coarse for sums
        dims = [0, *range(2, inputs.dim())]
        shape = [1, -1, *[1] * (inputs.dim() - 2)]
        count = processes.all_sum(torch.tensor(float(inputs.numel() / inputs.shape[1])))
        mean = _SumOverProcesses.apply(inputs.sum(dims)) / count
        centred = inputs - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = self.momentum or 1 / self.num_batches_tracked  # None: the plain mean
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(given_type)


class _SumOverProcesses(torch.autograd.Function):
    """A sum that each process's loss depends on; so the gradients of all are summed, too."""

    @staticmethod
    def forward(_context, values):
        return processes.all_sum(values)

    @staticmethod
    def backward(_context, gradient):
        return processes.all_sum(gradient.contiguous())


# --- the job -----------------------------------------------------------------------------------


def run_command(flags, watch=False, **fault) -> dict:
    """Status, stdout, stderr and written files of one command in this process."""
    stdout, stderr, WRITTEN[:], watched = StringIO(), StringIO(), [], {}
    with ExitStack() as changes:
        changes.enter_context(
            mock.patch.object(processes, "synchronise_batchnorm", synchronise_batchnorm)
        )
        if fault:
            changes.enter_context(mock.patch.object(train, "train_step", train_step_with(**fault)))
        if watch:
            changes.enter_context(watched_steps(watched))
        changes.enter_context(redirect_stdout(stdout))
        changes.enter_context(redirect_stderr(stderr))
        try:
            status = train.main(flags)
        except PowerCut:
            status = "power cut"
    threads = names_of_threads_that_stay()
    processes.shutdown()  # which a command that failed did not do, as its process would end
    return {
        "status": status,
        "stdout": stdout.getvalue(),
        "stderr": stderr.getvalue(),
        "written": list(WRITTEN),
        "ended": time.time(),
        "watched": watched,
        "threads": threads,
    }


def names_of_threads_that_stay() -> list[str]:
    """Of this process, those of C++ included.

    The system may list a thread for a moment after it has been joined.
    """
    threads = set(Path("/proc/self/task").iterdir())
    for _ in range(20):
        time.sleep(0.01)
        threads &= set(Path("/proc/self/task").iterdir())
    names = []
    for thread in threads:
        with suppress(OSError):  # it has ended meanwhile
            names.append((thread / "comm").read_text().strip())
    return names


WRITTEN = []  # what the running command creates, opens for writing, renames or removes


def note_writing(event, arguments):
    if event == "open":
        path, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR):
            WRITTEN.append(str(path))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
        WRITTEN.append(str(arguments[0]))


def wait_for_all(store, number):
    """Until all processes have come to this command: they would mistake its start for the last."""
    store.add(f"command {START} {number}", 1)
    while store.add(f"command {START} {number}", 0) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)


def main() -> int:
    torch.set_num_threads(1)  # as in conftest
    stopping.install()
    sys.addaudithook(note_writing)
    results = []
    report = JOB.with_suffix(f".{START}.{os.environ['RANK']}.json")
    store, *_ = next(dist.rendezvous("env://"))
    for number, command in enumerate(json.loads(JOB.read_text())):
        if number:
            wait_for_all(store, number)
        results.append(run_command(**command))
        partial = report.with_suffix(".partial")
        partial.write_text(json.dumps(results))
        partial.replace(report)
    status = results[-1].get("status", 0)
    return 0 if status == "power cut" else status


if __name__ == "__main__":
    sys.exit(main())

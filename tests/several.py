"""Commands of train.py in several processes: `torchrun ... several.py JOB.json`.

Each start of torchrun takes seconds, so a job is a list of commands, which run one after the other:
  {"flags": [...]}                      train.py with these flags
  {"flags": [...], "fault": NAME, "at": [EPOCH, STEP], "rank": RANK}
                                        ... and one of FAULTS before this step (both from 0), in
                                        one process, or in all if no rank is given
  {"check": "batchnorm"}                CPUSyncBatchNorm against BatchNorm
Faults happen in the first start only, not after the launcher has started the processes again. What
came of the commands goes to `JOB.START.RANK.json`.
"""

import json
import os
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from runs import PowerCut
from torch import nn

import loop
import processes
import stopping
import train

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


def interrupt_launcher(_run):
    os.kill(os.getppid(), signal.SIGINT)


def lose_a_number(run):
    run.model.classifier.bias.data.fill_(torch.nan)


FAULTS = (power_cut, kill, kill_host, terminate, terminate_launcher,
          interrupt_launcher, lose_a_number)


def train_step_with(fault, at, rank=None):
    """`loop.train_step` with a fault in it; the steps after it are slow, so that it finds some."""
    (fault,) = [function for function in FAULTS if function.__name__ == fault]
    train_step = loop.train_step

    def step(run, *rest):
        if START == 0 and [run.epoch, run.step] >= at:
            if [run.epoch, run.step] == at and rank in (None, processes.rank()):
                fault(run)
            time.sleep(0.2)
        return train_step(run, *rest)

    return step


# --- the check of the layer --------------------------------------------------------------------


def check_batchnorm() -> dict[str, float]:
    """Relative differences between BatchNorm over all clips, and CPUSyncBatchNorm over parts."""
    processes.meet()
    processes.join(torch.device("cpu"))
    clips = torch.Generator().manual_seed(0)
    # The first process has two clips, the second three and so on.
    sizes = [2 + rank for rank in range(processes.world_size())]
    own = slice(sum(sizes[: processes.rank()]), sum(sizes[: processes.rank() + 1]))
    found = {}
    for layer, shape in ((nn.BatchNorm1d, [5]), (nn.BatchNorm3d, [5, 2, 3, 4])):
        inputs = torch.randn(sum(sizes), *shape, generator=clips) * 3 + 10
        targets = torch.randn(inputs.shape, generator=clips)
        whole, spread = layer(5), processes.synchronise_batchnorm(layer(5), torch.device("cpu"))
        one, other = one_step(whole, inputs, targets), one_step(spread, inputs[own], targets[own])
        for name in ("weight", "bias"):
            other[name] = processes.total(other[name])
        for name in ("outputs", "inputs", "evaluation"):
            one[name] = one[name][own]
        found |= {f"{layer.__name__} {name}": relative_difference(one[name], other[name])
                  for name in one}
    processes.leave()
    return found


def one_step(layer, inputs, targets) -> dict[str, torch.Tensor]:
    """What goes out of the layer, the gradients that come back, and what it remembers."""
    inputs = inputs.clone().requires_grad_()
    nn.init.uniform_(layer.weight, generator=torch.Generator().manual_seed(1))
    outputs = layer(inputs)
    (outputs - targets).square().sum().backward()
    gradients = {"inputs": inputs.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
    buffers = dict(layer.named_buffers())
    return {"outputs": outputs, **gradients, **buffers, "evaluation": layer.eval()(inputs)}


def relative_difference(one, other) -> float:
    return ((one - other).abs().max() / one.abs().max()).item()


# --- the job -----------------------------------------------------------------------------------


def run_command(flags=(), check=None, **fault) -> dict:
    """Status, stdout, stderr and written files of one command in this process."""
    if check:
        return {"differences": check_batchnorm()}
    step = train_step_with(**fault) if fault else loop.train_step
    stdout, stderr, WRITTEN[:] = StringIO(), StringIO(), []
    patch = mock.patch.object(loop, "train_step", step)
    with patch, redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            status = train.main(flags)
        except PowerCut:
            status = "power cut"
    return {"status": status, "stdout": stdout.getvalue(), "stderr": stderr.getvalue(),
            "written": list(WRITTEN), "ended": time.time()}


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

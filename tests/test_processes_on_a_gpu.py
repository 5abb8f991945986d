"""Two processes that share a GPU, by gloo, and one with NCCL, have the losses of one without.

`torchrun ... test_processes_on_a_gpu.py CONFIG DEVICE BACKEND` is one of the processes.
"""

import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from runs import PROJECT, make_settings, read_csv, run_folder, write_config

import train
from system import processes

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def losses_of(settings, device, backend, number) -> list[float]:
    """Return the training loss of each epoch, each of whose steps has two parts in all."""
    settings |= {"model_name": f"{backend} {number}", "accumulate_steps": 2 // number}
    config = write_config(run_folder(settings).with_suffix(".json"), settings)
    if backend is None:
        with mock.patch.object(train, "choose_device", lambda *_: torch.device(device)):
            assert train.main(["-c", config]) == 0
    else:
        command = [*TORCHRUN, f"--nproc-per-node={number}", __file__, config, device, backend]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(PROJECT)})
    return [float(row["loss"]) for row in read_csv(run_folder(settings) / "history.csv")]


@pytest.mark.parametrize(
    "device, backend, number",
    [
        pytest.param("cpu", "gloo", 2, marks=pytest.mark.slow),
        pytest.param("cuda:0", "gloo", 2, marks=pytest.mark.gpu),
        pytest.param("cuda:0", "cpu:gloo,cuda:nccl", 1, marks=pytest.mark.gpu),
    ],
)
def test_losses_are_those_of_one_process(tmp_path, device, backend, number):
    settings = make_settings(tmp_path, dropout=0, affine_degrees=0, affine_translate=0)
    expected = losses_of(settings, device, None, 1)
    found = losses_of(settings, device, backend, number)
    assert found == pytest.approx(expected, rel=1e-4 if device == "cpu" else 0.01)


def main(config, device, backend) -> int:
    """Run train.py on `device`, whatever the number of the process.

    The program gives each process a GPU, and does not wrap the network of a single process; here
    two share one, and a single one averages its gradients, too.
    """
    init_process_group, parallel = dist.init_process_group, processes.parallel

    def init_with_backend(_backend, **options):
        return init_process_group(backend, **options)

    def always_parallel(*arguments, **options):
        with mock.patch.object(processes, "world_size", lambda: max(2, dist.get_world_size())):
            return parallel(*arguments, **options)

    with (
        mock.patch.object(train, "choose_device", lambda *_: torch.device(device)),
        mock.patch.object(dist, "init_process_group", init_with_backend),
        mock.patch.object(processes, "parallel", always_parallel),
    ):
        return train.main(["-c", config])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""The job files for clusters, as far as they can be tried without one.

The long form, over two nodes: `python -m pytest -m slow tests/test_cluster.py`.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from runs import PROJECT, make_settings, run_folder, write_config

from config import Config
from system.command_line import parse_arguments
from training.checkpoint import load_checkpoint

SLURM = PROJECT / "docs" / "cluster" / "train.slurm"
KUBERNETES = PROJECT / "docs" / "cluster" / "pytorchjob.yaml"

SECONDS = 600  # within which a job ends; a machine may be slow


def free_port() -> int:
    """A port that is free, of those that the job file uses.

    Linux gives none of them to a process that asks for any port, so it stays free until the job
    has started.
    """
    while True:
        port = 20_000 + secrets.randbelow(10_000)  # `random` draws the same in each test
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("", port))
            return port


# --- Slurm -------------------------------------------------------------------------------------

# What the real ones do, here: a task on each node, and signals to the tasks alone.
FAKES = {
    "srun": """
while [[ "$1" == --* ]]; do shift; done
for ((node = 0; node < SLURM_NNODES; node++)); do
    trap '' USR1
    "$@" &
    echo $! >> "$FOLDER/tasks"
done
status=0
for task in $(jobs -p); do wait "$task" || status=$?; done
exit $status
""",
    "scancel": """
[[ "$1 $2" == "--signal=TERM $SLURM_JOB_ID" ]] && kill -TERM $(cat "$FOLDER/tasks")
""",
    "scontrol": """
case "$1" in
    show) [[ "$2 $3" == "hostnames $SLURM_JOB_NODELIST" ]] && printf 'localhost\\nlocalhost\\n' ;;
    requeue) echo "$2" >> "$FOLDER/requeued" ;;
esac
""",
}


class Slurm:
    """Starts the job file as Slurm would, with the fakes in the place of its commands."""

    def __init__(self, folder: Path, config: str, num_nodes: int):
        self.folder, self.config, self.num_nodes = folder, config, num_nodes
        self.num_starts = 0
        self.job_id = free_port()  # the port is made from the job's number, and here equals it
        (folder / "bin").mkdir()
        for name, text in (FAKES | {"python": f'exec {sys.executable} "$@"'}).items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}")
            (folder / "bin" / name).chmod(0o755)

    def start(self) -> subprocess.Popen:
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FOLDER": str(self.folder),
            "SLURM_JOB_ID": str(self.job_id),
            "SLURM_NNODES": str(self.num_nodes),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_SUBMIT_DIR": str(PROJECT),
            "SLURM_RESTART_COUNT": str(self.num_starts),
            "OMP_NUM_THREADS": "1",
            "PROCESSES_PER_NODE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.num_starts += 1
        (self.folder / "tasks").unlink(missing_ok=True)
        return subprocess.Popen(
            ["bash", SLURM, "--config", self.config],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def requeued(self) -> str:
        path = self.folder / "requeued"
        return path.read_text() if path.exists() else ""


@pytest.mark.slow
@pytest.mark.parametrize("num_nodes", [1, 2])
def test_a_job_is_requeued_before_its_limit_and_goes_on(num_nodes, tmp_path):
    settings = make_settings(tmp_path, num_epochs=100_000, print_freq=1)
    slurm = Slurm(tmp_path, write_config(tmp_path / "config.json", settings), num_nodes)

    job = slurm.start()
    output = ""
    while "step 1/3" not in output:
        output += job.stdout.readline()
        assert job.poll() is None, output
    job.send_signal(signal.SIGUSR1)
    output += job.communicate(timeout=SECONDS)[0]
    assert job.returncode and "stopped by SIGTERM after epoch" in output, output
    assert slurm.requeued() == f"{slurm.job_id}\n"

    saved = load_checkpoint(run_folder(settings) / "checkpoint.pth.tar")
    write_config(slurm.config, settings | {"num_epochs": saved["epoch"] + 1})
    job = slurm.start()
    output = job.communicate(timeout=SECONDS)[0]
    assert job.returncode == 0 and f"checkpoint.pth.tar: {saved['epoch']} epochs" in output, output
    assert "training is over" in output and slurm.requeued() == f"{slurm.job_id}\n"


@pytest.mark.slow
def test_a_job_that_fails_is_not_requeued(tmp_path):
    settings = make_settings(tmp_path, lr=-1.0)
    slurm = Slurm(tmp_path, write_config(tmp_path / "config.json", settings), 1)
    job = slurm.start()
    output = job.communicate(timeout=SECONDS)[0]
    assert job.returncode and "error: " in output and "lr: " in output, output
    assert slurm.requeued() == ""


def test_what_the_job_asks_slurm_for():
    lines = [line.split() for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    asked = dict(words[1].partition("=")[::2] for words in lines)
    assert asked["--ntasks-per-node"] == "1" and "--requeue" in asked
    assert asked["--signal"].startswith("B:USR1@") and asked["--open-mode"] == "append"
    assert subprocess.run(["bash", "-n", SLURM]).returncode == 0


# --- Kubernetes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job():
    return yaml.safe_load(KUBERNETES.read_text())


def pods(job) -> list[dict]:
    replicas = job["spec"]["pytorchReplicaSpecs"]
    return [replicas[name]["template"]["spec"] for name in ("Master", "Worker")]


def test_the_manifest_is_what_the_operator_takes(job):
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert job["spec"]["nprocPerNode"] == "gpu"  # a string, also if it were a number
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas.keys() == {"Master", "Worker"} and replicas["Master"]["replicas"] == 1
    assert all(replica["restartPolicy"] == "OnFailure" for replica in replicas.values())


def test_pods_have_the_data_a_run_folder_and_shared_memory(job):
    keys = json.loads((PROJECT / "configs" / "config.json").read_text())
    config = Config(**{key: value for key, value in keys.items() if key != "$schema"})
    for pod in pods(job):
        (container,) = pod["containers"]
        assert container["name"] == "pytorch" and ":" in container["image"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        folder = Path(container["workingDir"])
        for path in (config.train_data_folder, config.train_data_csv, config.output_dir):
            top = folder / Path(path).parts[0]
            assert "persistentVolumeClaim" in mounts[str(top)]


def command_of(pod) -> list[str]:
    (container,) = pod["containers"]
    return container["command"] + container["args"]


def test_pods_run_a_command_that_train_py_takes(job):
    for pod in pods(job):
        launcher, script, *arguments = command_of(pod)
        options = parse_arguments(arguments)
        assert (launcher, script, options.resume) == ("torchrun", "train.py", "auto")
        assert (PROJECT / options.config).exists()


@pytest.mark.slow
def test_two_pods_train_together(job, tmp_path):
    """With the variables that the operator gives them."""
    settings = make_settings(tmp_path)
    config = write_config(tmp_path / "config.json", settings)
    port = str(free_port())
    processes = []
    for rank, pod in enumerate(pods(job)):
        environment = os.environ | {
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": port,
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "PET_MASTER_ADDR": "localhost",
            "PET_MASTER_PORT": port,
            "PET_NNODES": "2",
            "PET_NODE_RANK": str(rank),
            "PET_NPROC_PER_NODE": "1",
            "PET_LOG_DIR": str(tmp_path / f"pod{rank}"),  # apart from what torchrun itself logs,
            "PET_REDIRECTS": "3",  # which warns where the other pod's one has ended before it
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        _, *arguments = [
            config if word == "configs/config.json" else word for word in command_of(pod)
        ]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *arguments],
                cwd=PROJECT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    logs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    outputs = [
        "".join(path.read_text() for path in sorted((tmp_path / pod).rglob("std*.log")))
        for pod in ("pod0", "pod1")
    ]
    assert outputs[0].startswith("2 x CPU") and "training is over" in outputs[0], outputs[0]
    assert outputs[1] == ""

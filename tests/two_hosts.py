"""Two hosts on one machine: network namespaces that only a pair of virtual cables joins.

As a command it trains a tiny network over both, kills one of them in the third epoch and starts it
again. Needs root and iproute2. Nothing outside the two namespaces is touched or reached.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PROJECT = Path(__file__).parent.parent


def ip(*arguments) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def why_not() -> str | None:
    """What is missing on this machine, if anything."""
    if not shutil.which("ip"):
        return "needs iproute2"
    if os.geteuid() != 0:
        return "needs root"
    name = f"trial-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        return f"may not make network namespaces: {error.stderr.strip()}"
    return None


class Host:
    """One of the two; the rendezvous is held on the first."""

    def __init__(self, number):
        self.number, self.address = number, ADDRESSES[number]
        self.name = f"host-{os.getpid()}-{number}"
        self.cable = f"veth{os.getpid()}-{number}"  # at most 15 characters

    def torchrun(self, *arguments) -> subprocess.Popen:
        """Starts torchrun here; it waits for that of the other host."""
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{PROJECT}:{PROJECT}/tests",
            "GLOO_SOCKET_IFNAME": self.cable,
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        command = [
            "ip",
            "netns",
            "exec",
            self.name,
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--nproc-per-node",
            "1",
            "--max-restarts",
            "3",
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            f"{ADDRESSES[0]}:29400",
            "--rdzv-id",
            "two-hosts",
            "--rdzv-conf",
            f"is_host={int(self.number == 0)}",
            "--local-addr",
            self.address,
            *map(str, arguments),
        ]
        return subprocess.Popen(
            command,
            cwd=PROJECT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def kill_all(self):
        for pid in ip("netns", "pids", self.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@contextmanager
def two_hosts():
    """Both hosts, joined; afterwards nothing of them is left."""
    hosts = [Host(0), Host(1)]
    try:
        for host in hosts:
            ip("netns", "add", host.name)
        ip(
            "link",
            "add",
            hosts[0].cable,
            "netns",
            hosts[0].name,
            "type",
            "veth",
            "peer",
            "name",
            hosts[1].cable,
            "netns",
            hosts[1].name,
        )
        for host in hosts:
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.cable)
            for device in ("lo", host.cable):
                ip("-n", host.name, "link", "set", device, "up")
        yield hosts
    finally:
        for host in hosts:
            with suppress(subprocess.CalledProcessError):
                host.kill_all()
                ip("netns", "delete", host.name)


# --- shown -------------------------------------------------------------------------------------


def show(folder) -> int:
    """Prints what the first host prints. Returns 0 if the run went on and both came to its end."""
    sys.path.insert(0, str(PROJECT))
    from runs import make_settings, write_config

    # Its epochs take long enough for the host to be killed before the last one.
    settings = make_settings(folder, num_epochs=6, block_widths=[32, 64])
    config = write_config(folder / "config.json", settings)
    command = ["train.py", "--config", config, "-g", "cpu", "--resume", "auto"]
    is_killed = False
    with two_hosts() as (first, second):
        print(f"--- two hosts, {first.address} and {second.address}, start", flush=True)
        one, other = first.torchrun(*command), second.torchrun(*command)
        for line in one.stdout:
            print(line, end="", flush=True)
            if line.startswith("epoch   3") and not is_killed:
                is_killed = True
                second.kill_all()
                other.communicate()
                print("--- the second host is killed, and starts again", flush=True)
                other = second.torchrun(*command)
        rest, _ = other.communicate()
    if not is_killed or one.wait() or other.returncode:
        print(f"--- it failed; the second host printed:\n{rest}")
        return 1
    print("--- both hosts have finished the run")
    return 0


def main() -> int:
    missing = why_not()
    if missing:
        print(f"error: two hosts on one machine: this one {missing}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        return show(Path(folder))


if __name__ == "__main__":
    sys.exit(main())

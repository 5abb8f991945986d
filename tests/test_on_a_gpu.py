"""The command for a GPU: it runs in a small size on the CPU, and keeps what it has."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import PROJECT

from benchmarks import limit, machine, on_a_gpu

STAND_IN = """
import subprocess, sys, time
name = sys.argv[sys.argv.index("--section") + 1]
with open("CALLS", "a") as calls:
    calls.write(name + "\\n")
print('RESULT {"what": "%s", "machine": "A GPU", "figure": 1}' % name, flush=True)
if name == "speed":
    raise SystemError("the driver is gone")
if name == "epoch":
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print('RESULT {"what": "sleeper", "figure": %d}' % sleeper.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch, results):
    """The sections that were started; a stand-in takes the place of their process."""
    path = results / "stand_in.py"
    path.write_text(STAND_IN.replace("CALLS", str(results / "calls")))
    monkeypatch.setattr(on_a_gpu, "COMMAND", [sys.executable, str(path)])
    short = on_a_gpu.SECTIONS["epoch"]._replace(seconds=11)
    monkeypatch.setitem(on_a_gpu.SECTIONS, "epoch", short)

    def read():
        found = (results / "calls").read_text().split()
        (results / "calls").unlink()
        return found

    return read


def test_a_section_that_fails_or_hangs_leaves_the_others(results, calls, capsys):
    assert on_a_gpu.main(["--sections", "checks", "speed", "epoch", "tests"]) == 1
    assert calls() == ["about", "checks", "speed", "epoch", "tests"]
    saved = json.loads((results / "a_gpu.json").read_text())["sections"]
    assert {name: run["status"] for name, run in saved.items()} == {
        "checks": "done", "speed": "failed", "epoch": "cut off after 11 s", "tests": "done"}
    assert "SystemError: the driver is gone" in saved["speed"]["error"]
    assert [run["results"][0]["figure"] for run in saved.values()] == [1, 1, 1, 1]
    assert not is_running(saved["epoch"]["results"][1]["figure"])
    text = (results / "a_gpu.md").read_text()
    assert "## Speed and memory\n\nfailed, " in text and "the driver is gone" in text
    assert "| epoch | A GPU | 1 |" in text and text in capsys.readouterr().out

    # Started again, it does what is not done, and no more than it has time for.
    assert on_a_gpu.main(["--sections", "checks", "speed", "compiled", "--minutes", "0.05"]) == 1
    assert calls() == ["about"]
    assert on_a_gpu.main(["--sections", "checks", "speed", "compiled"]) == 1
    assert calls() == ["about", "speed", "compiled"]


def is_running(pid) -> bool:
    for _ in range(50):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        time.sleep(0.1)
    return True


def test_all_of_it_fits_into_nine_minutes():
    assert sum(section.seconds for section in on_a_gpu.SECTIONS.values()) < 9 * 60 - 20


def test_speed_and_the_epoch_in_a_small_size(monkeypatch):
    monkeypatch.setitem(limit.SIDES, "cpu", (256,))
    options = on_a_gpu.parse_arguments(["--device", "cpu", "--small"])
    device = machine.device_of("cpu")
    plain, ours = on_a_gpu.measure_speed(device, options)
    assert plain["step, clips/s"] > 0 and ours["evaluation, times plain"] > 0
    assert 0 <= ours["step, % of limit"] < 100 and "GFLOP per clip" in ours["step, limit"]
    speed, *_ = on_a_gpu.measure_epoch(device, options)
    assert speed["what"].startswith("epoch of 24 clips") and speed["value"] > 0


@pytest.mark.slow
def test_the_command_in_a_small_size(tmp_path):
    """On a machine that does nothing else it takes a minute."""
    sections = [name for name in on_a_gpu.SECTIONS if name != "compiled"]
    script = (
        f"import sys; sys.argv[1:] = ['--device', 'cpu', '--small', '--sections', *{sections}]\n"
        "from pathlib import Path; from benchmarks import machine, on_a_gpu\n"
        f"machine.RESULTS = Path({str(tmp_path)!r})\n"
        "for name, section in on_a_gpu.SECTIONS.items():\n"
        "    on_a_gpu.SECTIONS[name] = section._replace(seconds=300)\n"
        "sys.exit(on_a_gpu.main(['--minutes', '30', *sys.argv[1:]]))\n"
    )
    process = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, text=True,
                             capture_output=True)
    assert process.returncode == 0, process.stdout + process.stderr
    (path,) = tmp_path.glob("*.json")
    saved = json.loads(path.read_text())["sections"]
    assert list(saved) == sections
    two, one = saved["processes"]["results"]
    assert two["largest relative difference"] < 1e-4 and one["largest relative difference"] < 1e-4
    assert {row["outcome"] for row in saved["tests"]["results"]} == {"skipped"}

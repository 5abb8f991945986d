"""A process that waits for the arguments of a script."""

import os
import signal
import subprocess

import pytest

from teaching import starter
from teaching.starter import Starter

SCRIPT = """
import os, sys
if __name__ == "__main__":
    print("train" in sys.modules, sys.argv[1:], os.getcwd() in sys.path)
    sys.exit("error: it is wrong")
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(starter, "MODULES", ("train",))
    (tmp_path / "train.py").write_text(SCRIPT)
    found = Starter(tmp_path / "train.py")
    yield found
    found.close()


def run(made, log) -> tuple[subprocess.Popen, str]:
    """The process, and what it printed."""
    with open(log, "wb") as file:
        process = made.run(["--lr", "0.1"], file)
    assert process.wait(60) == 1
    return process, log.read_text()


def test_it_runs_as_it_would_on_its_own(made, tmp_path):
    _, alone = run(made, tmp_path / "log")
    assert alone == "False ['--lr', '0.1'] False\nerror: it is wrong\n"
    for _ in range(2):
        made.prepare()
        number = made.process.pid
        process, text = run(made, tmp_path / "log")
        assert process.pid == number and text == alone.replace("False", "True", 1)


@pytest.mark.parametrize("is_noticed", [True, False])
def test_one_that_was_killed_is_replaced(made, tmp_path, monkeypatch, is_noticed):
    made.prepare()
    os.kill(made.process.pid, signal.SIGKILL)
    made.process.wait()
    if not is_noticed:
        monkeypatch.setattr(made.process, "poll", lambda: None)
    assert run(made, tmp_path / "log")[1].startswith("False")
    made.prepare()
    assert run(made, tmp_path / "log")[1].startswith("True")


def test_one_that_cannot_import_is_not_used(made, tmp_path, capfd):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("import os", "import missing_module, os"))
    made.prepare()
    assert made.process.wait(60) == 1 and "missing_module" in capfd.readouterr().err
    script.write_text(SCRIPT)
    assert run(made, tmp_path / "log")[1].startswith("False")


def test_it_ends_with_the_program_that_it_waits_for(made):
    made.prepare()
    made.connection.close()  # as the end of a process does
    assert made.process.wait(60) == 0

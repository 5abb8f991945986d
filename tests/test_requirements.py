"""The requirements files are complete, and each command says which of them to install."""

import ast
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from runs import PROJECT

from system.errors import MODULES, exit_status

DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless",  # where the names differ
                 "sklearn": "scikit-learn"}  # fmt: skip
SHOWS_THE_CURVES = "tensorboard"  # is not imported
COMMANDS = ["train.py", "predict.py", "explain.py", "export.py", "report.py", "demo_data.py",
            "teach.py"]


def required(file) -> set[str]:
    lines = (line.partition("#")[0].strip() for line in (PROJECT / file).read_text().splitlines())
    return {Requirement(line).name for line in lines if line and not line.startswith("-r ")}


def imported(path) -> set[str]:
    """The top-level modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("file", MODULES)
def test_the_modules_that_are_checked_are_those_of_the_file(file):
    names = {DISTRIBUTIONS.get(name, name) for name in MODULES[file]}
    assert names == required(file) - {SHOWS_THE_CURVES}


def test_every_import_is_in_a_requirements_file():
    rooms = [path.parent for path in PROJECT.glob("*/__init__.py")]
    program = [*PROJECT.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py")
                                        if room.name not in ("docs", "tests"))]
    own = {path.stem for path in PROJECT.glob("*.py")} | {room.name for room in rooms}
    known = {name for names in MODULES.values() for name in names}
    found = set().union(*map(imported, program)) - own - set(sys.stdlib_module_names)
    assert found <= known


def run_without(module, script, *arguments):
    program = (f"import runpy, sys; sys.modules[{module!r}] = None; sys.argv = sys.argv[1:]; "
               "runpy.run_path(sys.argv[0], run_name='__main__')")
    command = [sys.executable, "-c", program, script, *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


@pytest.mark.parametrize("script", COMMANDS)
def test_a_command_names_the_file_to_install(script):
    ended = run_without("tqdm", script, "--help")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "error: tqdm is not installed; run `python -m pip install -r requirements.txt`\n")


def test_export_names_its_own_file(tmp_path):
    ended = run_without("onnxscript", "export.py", "-c", "none", "-o", str(tmp_path / "a.onnx"))
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: onnxscript is not installed; run `python -m pip install -r "
        "requirements-export.txt`\n")


def test_a_missing_module_of_ours_is_a_bug():
    def fail():
        raise ModuleNotFoundError("No module named 'clips.missing'", name="clips.missing")

    with pytest.raises(ModuleNotFoundError):
        exit_status(fail)

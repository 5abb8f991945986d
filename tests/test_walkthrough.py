"""walkthrough.py: its cells run in order, and its assertions can fail."""

import ast
import contextlib
import io
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

SCRIPT = Path(__file__).parent.parent / "walkthrough.py"
TEXT = SCRIPT.read_text()
STEPS = range(1, 8)


def cells(text=TEXT) -> list[tuple[str, str]]:
    """(marker, body) of each cell of the percent format."""
    parts = re.split(r"^(# %%.*)\n", text, flags=re.MULTILINE)
    assert parts[0] == ""  # nothing is before the first marker
    return list(zip(parts[1::2], parts[2::2], strict=True))


def code_cells(text=TEXT) -> list[str]:
    return [body for marker, body in cells(text) if marker == "# %%"]


def walk(folder, text=TEXT, arguments=("--quick",), names=None, num_cells=None) -> str:
    """Runs the code cells in one namespace, as a notebook does; returns what they print."""
    printed = io.StringIO()
    names = {"__name__": "__main__"} if names is None else names
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        for body in code_cells(text)[:num_cells]:
            exec(compile(body, SCRIPT, "exec"), names)
    return printed.getvalue()


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """(folder, what was printed, names that were defined) of a small run."""
    folder, names = tmp_path_factory.mktemp("walk"), {"__name__": "__main__"}
    return folder, walk(folder, names=names), names


def test_cells_are_percent_format():
    assert {marker for marker, _ in cells()} == {"# %%", "# %% [markdown]"}
    for marker, body in cells():
        assert body.strip()
        if marker == "# %%":
            compile(body, SCRIPT, "exec")
        else:
            assert all(line.startswith("#") for line in body.strip().splitlines()), body
    assert cells()[0][0] == "# %% [markdown]"


def test_each_step_has_something_to_see_to_think_about_and_to_check():
    _, *sections = re.split(r"^# ## (?=\d)", TEXT, flags=re.MULTILINE)
    assert [int(section[0]) for section in sections] == list(STEPS)
    for section in sections:
        assert "print(" in section and "assert " in section
        assert "# **Think:**" in section or section is sections[-1]


def test_small_run(walked):
    folder, printed, _ = walked
    assert "[T, H, W, C] = [16, 100, 101, 3]" in printed
    assert "{'right': 6.0, 'left': -6.0, 'nowhere': 0.0}" in printed
    assert "strong ones for 100.0 %" in printed
    assert re.search(r"^frozen +\d", printed, re.MULTILINE)
    (total,) = re.findall(r"GFLOP (?:a|per) clip +([\d,]+)", printed)
    assert set(re.findall(r"\d\d,\d{3}", TEXT)) == {total}  # what the prose says of its size
    assert printed.splitlines()[-1].split()[:4] == ["trained", "on", "one", "frame"]
    films = sorted((folder / "walkthrough_pictures").iterdir())
    assert [film.name for film in films] == ["1_pair.gif", "3_motion.gif", "7_kernels.gif"]
    assert [Image.open(film).n_frames for film in films] == [16, 14, 2]
    assert all(film.stat().st_size < 2**20 for film in films)


@pytest.mark.parametrize(
    "old, new",
    [
        ('left = demo_data.draw_clip("Moving Left"', 'left = demo_data.draw_clip("Moving Right"'),
        ("x : x + 3] * kernel).sum()\n    return responses\n\n\nframe",
         "x : x + 3] * kernel[:, ::-1]).sum()\n    return responses\n\n\nframe"),
        ("in left_grey])", "in left_grey[1:]])"),
        ("film[t : t + 3, y : y + 3, x : x + 3] * kernel", "film[t : t + 3, y : y + 3, x : x + 3]"),
        ("motion_kernel[2] = [-1, 0, 1]", "motion_kernel[2] = [1, 0, -1]"),
        ("np.abs(responses) > 1]", "np.abs(responses) >= 0]"),
        ("block(numbers)", "block[:-2](numbers)"),
    ],
)  # fmt: skip
def test_what_is_not_true_is_noticed(tmp_path, old, new):
    assert TEXT.count(old) == 1
    with pytest.raises(AssertionError):
        walk(tmp_path, TEXT.replace(old, new))


def assertions(names_in_them) -> list[ast.Assert]:
    found = [node for node in ast.walk(ast.parse(TEXT)) if isinstance(node, ast.Assert)]
    return [node for node in found if names_in_them in ast.unparse(node)]


def holds(assertion, names) -> bool:
    try:
        exec(compile(ast.Module([assertion], []), SCRIPT, "exec"), names)
    except AssertionError:
        return False
    return True


def test_what_was_learnt_is_asked_and_other_rounding_passes(walked):
    _, _, names = walked
    learnt = assertions(".accuracy(")
    assert len(learnt) == 6

    def told(**accuracies):
        by_order = {key.replace("_", " "): value for key, value in accuracies.items()}
        return SimpleNamespace(accuracy=by_order.__getitem__)

    good = {"one_frame": told(in_order=50), "still": told(in_order=50),
            "trained": told(in_order=100, reversed=0, shuffled=50, frozen=50)}  # fmt: skip
    rough = {"one_frame": told(in_order=66), "still": told(in_order=34),
             "trained": told(in_order=90.6, reversed=9.4, shuffled=61, frozen=39)}  # fmt: skip
    bad = good | {"one_frame": told(in_order=90), "still": told(in_order=90),
                  "trained": told(in_order=60, reversed=50, shuffled=90, frozen=90)}  # fmt: skip
    for other in (names, names | good, names | rough):
        assert all(holds(assertion, other) for assertion in learnt)
    assert not any(holds(assertion, names | bad) for assertion in learnt)


def test_still_kernels_are_asked_for(walked):
    _, _, names = walked
    (same,) = [node for node in assertions("clips.flip(2)") if "not " not in ast.unparse(node)]
    assert holds(same, names)
    assert not holds(same, names | {"still_network": names["network"]})


def test_notebook_shows_pictures(tmp_path, monkeypatch):
    shown = []
    package, part = ModuleType("IPython"), ModuleType("IPython.display")
    package.get_ipython = object
    part.Image, part.display = SimpleNamespace, lambda image: shown.append(image.filename)
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", part)
    walk(tmp_path, arguments=["-f", "kernel.json"], num_cells=2)
    assert [path.name for path in shown] == ["1_pair.gif"]


def test_output_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        walk(tmp_path, arguments=["--output", "file/pictures"], num_cells=1)
    assert stopped.value.code == 2
    assert "--output file/pictures" in capsys.readouterr().err


def test_windows_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as stopped:
        walk(tmp_path, num_cells=1)
    assert stopped.value.code == 2
    assert "Windows is not supported" in capsys.readouterr().err


@pytest.mark.slow
def test_whole_run(tmp_path):
    printed = walk(tmp_path, arguments=())
    assert "trained on eight frames" in printed

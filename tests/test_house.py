"""The structure of the program: which module may import which, and where additions go."""

import ast
import csv
import graphlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import curves

PROJECT = Path(__file__).parent.parent
PACKAGES = (
    "system",
    "clips",
    "networks",
    "training",
    "features",
    "scoring",
    "explaining",
    "reporting",
    "doctor",
    "own_clips",
    "exporting",
    "teaching",
)
COMMANDS = (
    "train",
    "predict",
    "explain",
    "export",
    "report",
    "demo_data",
    "walkthrough",
    "pack",
    "teach",
)
TOOLS = ("benchmarks", "docs", "tests")
# A module imports from its own floor and from those above it in this list.
FLOORS = (
    ("config",),
    ("system",),
    ("clips", "networks"),
    ("data_loader", "model", "utils"),
    ("training",),
    ("features", "scoring"),
    ("explaining", "reporting", "doctor", "own_clips", "exporting", "callbacks"),
    ("teaching",),
    COMMANDS,
    TOOLS,
)
MAX_TOP_FILES = 14
MAX_PACKAGE_FILES = 14  # without __init__.py
MAX_LINES = 460
LONGER_FILES = {"config.py": "each key with its type, default and meaning"}
MAX_LINES_OF_MAIN = 79


# --- the rules ---------------------------------------------------------------------------------


def python_files(root) -> dict[str, Path]:
    """The program's modules, by their dotted names; without the tests."""
    paths = [*root.glob("*.py"), *root.glob("*/*.py")]
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in sorted(paths)
        if path.parent.name != "tests"
    }


def imports(files) -> dict[str, set[str]]:
    """The modules of `files` that each of them imports, inside functions too."""
    found = {}
    for name, path in files.items():
        wanted = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    wanted.append(inner if inner in files else node.module)
        found[name] = {module for module in wanted if module in files}
    return found


def package_of(module) -> str:
    return module.split(".")[0]


def floor_of(module) -> int:
    return next(number for number, floor in enumerate(FLOORS) if package_of(module) in floor)


def circle(graph) -> list[str]:
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return [f"circle: {' <- '.join(error.args[1])}"]
    return []


def wrong_arrows(root) -> list[str]:
    files = python_files(root)
    known = {name for floor in FLOORS for name in floor}
    if homeless := {package_of(name) for name in files} - known:
        return [f"on no floor: {', '.join(sorted(homeless))}"]
    arrows = imports(files)
    problems = [
        f"{name} imports {other}, which is above it"
        for name in arrows
        for other in sorted(arrows[name])
        if floor_of(other) > floor_of(name)
    ]
    packages = {}
    for name in arrows:
        others = {package_of(other) for other in arrows[name]} - {package_of(name)}
        packages[package_of(name)] = packages.get(package_of(name), set()) | others
    return problems or circle(arrows) or circle(packages)


def wrong_sizes(root) -> list[str]:
    files = python_files(root)
    at_the_top = [name for name in files if "." not in name]
    problems = []
    if len(at_the_top) > MAX_TOP_FILES:
        problems.append(f"{len(at_the_top)} Python files at the top")
    for package in PACKAGES:
        door, inside = root / package / "__init__.py", list((root / package).glob("[!_]*"))
        if not door.exists() or not ast.get_docstring(ast.parse(door.read_text())):
            problems.append(f"{package}/__init__.py does not say what the package is for")
        if len(inside) > MAX_PACKAGE_FILES:
            problems.append(f"{len(inside)} files in {package}/")
    for path in files.values():
        name, num_lines = path.relative_to(root).as_posix(), len(path.read_text().splitlines())
        if num_lines > MAX_LINES and name not in LONGER_FILES:
            problems.append(f"{name} has {num_lines} lines")
        for node in ast.parse(path.read_text()).body:
            is_main = isinstance(node, ast.FunctionDef) and node.name == "main"
            if is_main and node.end_lineno - node.lineno >= MAX_LINES_OF_MAIN:
                problems.append(f"main() of {name} is too long")
    return problems


def cached_tensors(root) -> list[str]:
    """The cached functions that return tensors: what an export computes first has no values."""
    found = []
    for name, path in python_files(root).items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and "Tensor" in ast.unparse(node.returns or node):
                found += [
                    f"{name}.{node.name}"
                    for each in node.decorator_list
                    if "cache" in ast.unparse(each)
                ]
    return found


def test_no_tensor_is_cached(tmp_path):
    assert cached_tensors(PROJECT) == []
    (tmp_path / "new.py").write_text(
        "@functools.cache\ndef f() -> torch.Tensor:\n    return 1\n"
        "@lru_cache(2)\ndef g():\n    return torch.Tensor(1)\n"
    )
    assert cached_tensors(tmp_path) == ["new.f", "new.g"]


def test_imports_point_down_and_make_no_circle():
    assert len(imports(python_files(PROJECT))["train"]) > 5  # there is something to check
    assert wrong_arrows(PROJECT) == []


def test_tests_are_in_folders_of_the_rooms():
    folders = {path.parent for path in (PROJECT / "tests").glob("*/test_*.py")}
    assert folders and {folder.name for folder in folders} <= set(PACKAGES)


def test_files_rooms_and_commands_are_small():
    assert wrong_sizes(PROJECT) == []


# --- the rules can be broken -------------------------------------------------------------------


@pytest.fixture
def house(tmp_path):
    """A copy of the program, to be changed."""
    for name in (*PACKAGES, "configs"):
        shutil.copytree(
            PROJECT / name, tmp_path / "house" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for path in PROJECT.glob("*.py"):
        shutil.copy(path, tmp_path / "house")
    return tmp_path / "house"


def add(path, text):
    with open(path, "a") as file:
        file.write(text)


@pytest.mark.parametrize(
    "file, text, problem",
    [
        ("system/device.py", "import clips.frames", "system.device imports clips.frames, which is"),
        (
            "clips/frames.py",
            "from training import run",
            "clips.frames imports training.run, which is",
        ),
        ("model.py", "def late():\n    import train", "model imports train, which is above"),
        (
            "config.py",
            "from system.errors import UserError",
            "config imports system.errors, which is",
        ),
        ("scoring/new.py", "import benchmarks", ""),
        ("clips/frames.py", "import clips.videos", "circle: "),
        ("explaining/pictures.py", "from reporting import line_chart", "circle: "),
        ("extra.py", "", "on no floor: extra"),
        ("attic/new.py", "", "on no floor: attic"),
    ],
)
def test_a_wrong_arrow_is_found(house, file, text, problem):
    (house / file).parent.mkdir(exist_ok=True)
    add(house / file, f"\n{text}\n")
    found = wrong_arrows(house)
    assert found if problem else not found  # no folder `benchmarks` in the copy
    assert all(line.startswith(problem) for line in found), found


@pytest.mark.parametrize(
    "file, text, problem",
    [
        ("clips/frames.py", "#\n" * MAX_LINES, "clips/frames.py has "),
        ("predict.py", "def main():\n" + "    pass\n" * 79, "main() of predict.py is too long"),
    ],
)
def test_what_is_too_long_is_found(house, file, text, problem):
    add(house / file, f"\n{text}")
    assert any(line.startswith(problem) for line in wrong_sizes(house))


def test_too_many_files_and_a_room_without_a_purpose_are_found(house):
    for number in range(MAX_TOP_FILES):
        (house / f"new_{number}.py").touch()
        (house / "clips" / f"new_{number}.py").touch()
    (house / "doctor" / "__init__.py").write_text("")
    text = " ".join(wrong_sizes(house))
    assert "Python files at the top" in text and "files in clips/" in text
    assert "doctor/__init__.py does not say" in text


# --- where do I add ...? -----------------------------------------------------------------------

NETWORK_FILE = '''"""The mean colour of a clip, and a linear classifier."""

from torch import nn


class MeanColour(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.classifier = nn.Linear(3, num_classes)

    def forward(self, clips):  # [N, 3, T, H, W]
        return self.classifier(clips.mean(dim=(2, 3, 4)))


def build_mean_colour(config, num_classes):
    return MeanColour(num_classes)
'''
AUGMENTATION = '''

def invert(clip) -> None:
    """Turns a clip, uint8 [T, H, W, 3], into its negative, in place."""
    clip[:] = 255 - clip
'''
CALLBACK = '''

class LargestLabel(Callback):
    """Writes the largest label of an epoch to the run folder."""

    def on_epoch_start(self, run, loader):
        self.largest = -1

    def on_batch(self, run, batch):
        self.largest = max(self.largest, batch.labels.max().item())

    def on_epoch_end(self, run, is_best):
        (run.config.run_folder / f"largest_{run.state.epoch}.txt").write_text(str(self.largest))
'''


def insert(path, after, text):
    """Puts `text` after the first place that matches the pattern `after`."""
    found = re.search(after, path.read_text(), re.MULTILINE)
    assert found, f"{path.name} has no {after!r} any more; change this test and the README"
    whole = path.read_text()
    path.write_text(whole[: found.end()] + text + whole[found.end() :])


def add_network(house):
    (house / "networks" / "mean_colour.py").write_text(NETWORK_FILE)
    insert(
        house / "model.py",
        r"^from networks\.csn import .*\n",
        "from networks.mean_colour import build_mean_colour\n",
    )
    insert(
        house / "model.py", r"^NETWORKS\b.*\{\n", '    "mean_colour": Network(build_mean_colour),\n'
    )
    insert(house / "config.py", r"^MODELS = \(\n", '    "mean_colour",\n')


def add_augmentation(house):
    add(house / "clips" / "transforms.py", AUGMENTATION)
    insert(
        house / "config.py",
        r"^    random_erasing: .*\n.*\n    \)\n",
        '    negatives: bool = Field(False, description="Training clips are inverted.")\n',
    )
    insert(house / "clips" / "reading.py", r"^from clips\.transforms import ", "invert, ")
    insert(
        house / "clips" / "reading.py",
        r"^def augment\(.*\n    \"\"\".*\n",
        "    if config.negatives:\n        invert(clip)\n",
    )


def add_figure(house):
    insert(
        house / "train.py",
        r'"epoch": epoch\b',
        ', "weight_sum": sum(each.sum().item() for each in run.model.parameters())',
    )


def add_callback(house):
    add(house / "callbacks.py", CALLBACK)
    insert(
        house / "callbacks.py",
        r"^def build_callbacks\(.*\n(?:.*\n)+?    return \[\n",
        "        LargestLabel(),\n",
    )


def train_in(house, *configs):
    """Trains in a process of its own."""
    code = (
        "import sys, train; sys.exit(max(train.main(['-g', 'cpu', '-c', config]) "
        "for config in sys.argv[1:]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *configs], cwd=house, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def history(settings, name):
    with open(Path(settings["output_dir"], name, "history.csv"), newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_network_an_augmentation_a_figure_and_a_callback_are_added(house, settings, write_config):
    add_network(house)
    add_augmentation(house)
    add_figure(house)
    add_callback(house)
    own = {"model": "mean_colour", "block_widths": None, "head_widths": None}
    configs = [
        write_config(f"{name}.json", model_name=name, **own, negatives=is_on)
        for name, is_on in (("plain", False), ("negative", True))
    ]
    printed = train_in(house, *configs)
    assert re.search(r"^classifier +3 +12$", printed, re.MULTILINE)  # 3 x 3 weights, 3 biases
    plain, negative = (history(settings, name) for name in ("plain", "negative"))
    assert plain[0]["loss"] != negative[0]["loss"]
    assert len({row["weight_sum"] for row in plain}) == 2
    log = curves(Path(settings["output_dir"], "plain"))
    assert [step for step, _ in log["train", "weight_sum"]] == [1, 2]
    for epoch in range(1, 3):
        assert Path(settings["output_dir"], "plain", f"largest_{epoch}.txt").read_text() == "2"

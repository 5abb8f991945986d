"""What the README, its pages and the Makefile tell people to type, run at a small size."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY_NETWORK, write_data_set

import demo_data
import explain
import export
import predict
import report
import train
from command_line import parse_arguments
from config import Config
from model import build_model, describe

PROJECT = Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
# Files that runs, commands and readers make.
MADE = ("config.json", "mine.json", "versions.json", "history.csv", "predictions.csv", "scores.csv",
        "test_predictions.csv", "test_submission.csv", "bad_clips.csv", "data_report.csv",
        "labels.csv", "train.csv", "validation.csv", "report.html")  # fmt: skip
SMALL = [f"--set={key}={value}" for key, value in TINY_NETWORK.items()] + [
    "--set=num_epochs=1", "--set=num_workers=0", "--set=batch_size=4", "--set=schedule=constant",
    "--set=warmup_epochs=0",
]  # fmt: skip


def code_blocks(language):
    """Blocks of all pages, with the indentation of lists taken off."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", TEXT, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in blocks]


def commands(script):
    """Arguments of each `python <script> ...` of the pages, in their order."""
    inline = re.findall(r"`(python [^`]*)`", TEXT)
    lines = [line for block in code_blocks("sh") for line in block.splitlines()]
    found = [shlex.split(command.replace("\n", " "), comments=True) for command in lines + inline]
    return [words[2:] for words in found if words[:2] == ["python", script]]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the shipped configs and small data where they, and the README, expect it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(PROJECT / "configs", "configs")
    own_config = json.loads(code_blocks("json")[0])
    (tmp_path / "configs" / "mine.json").write_text(json.dumps(own_config))
    jester = json.loads(Path("configs/config.json").read_text())
    for config, labels in ((own_config, None), (jester, range(27))):
        names = ["Left", "Right", "Still", *(f"class {n}" for n in (labels or [])[3:])]
        root = tmp_path / config["model_name"]
        made = write_data_set(root, {"train": 8, "validation": 4, "test": 2})
        for key, path in made.items():
            if key in config:
                Path(config[key]).parent.mkdir(parents=True, exist_ok=True)
                if not Path(config[key]).exists():
                    Path(config[key]).symlink_to(path)
        (root / "labels.csv").write_text("\n".join(names))


def test_python_commands_run(workplace, capsys):
    (drawing,) = commands("demo_data.py")[:1]
    small = ["--train_clips", "8", "--validation_clips", "8", "--test_clips", "2"]
    assert demo_data.main(drawing + small) == 0
    seen = []
    for arguments in commands("train.py"):
        if arguments in seen or "--config" not in arguments:
            continue
        seen.append(arguments)
        goes_on = {"--resume", "--checkpoint"} & set(arguments)
        overwrite = [] if goes_on else ["--overwrite"]
        assert train.main(arguments + overwrite + SMALL) == 0, arguments
    assert len(seen) >= 7
    (shown,) = commands("predict.py")
    assert predict.main([*shown, "-g", "cpu"]) == 0
    assert Path(shown[-1]).exists()
    (written,) = commands("export.py")
    assert export.main(written) == 0
    (reported,) = commands("report.py")
    assert report.main(reported) == 0
    (explained,) = commands("explain.py")
    assert explain.main([*explained, "-g", "cpu"]) == 0
    assert capsys.readouterr().out.count("training is over") >= 3


def test_make_runs_the_same_commands(workplace):
    shown = subprocess.run(["make", "-n", "demo", "-C", PROJECT], capture_output=True, text=True)
    flags = re.findall(r"train\.py ((?:--\w+ [\w/.]+ ?)+)", shown.stdout)
    assert len(flags) == 4
    for text in flags:
        assert Path(parse_arguments(text.split()).config).exists()


def test_stage_table_is_what_a_run_prints():
    config = Config.model_validate(
        {key: value for key, value in json.loads((PROJECT / "configs/config.json").read_text())
         .items() if key != "$schema"}
    )  # fmt: skip
    with torch.device("meta"):
        model = build_model(config, config.num_classes)
    assert describe(model, (config.clip_size, *config.crop)) + "\n" in code_blocks("text")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_pictures_and_files_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    for link in links:
        if not link.startswith("https://"):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not heading or heading in headings(target.read_text()), link
    for name in re.findall(r"`([a-z_/]+\.(?:py|json|txt|toml|html|csv))`", text):
        assert (PROJECT / name).exists() or Path(name).name in MADE, name


def headings(text) -> list[str]:
    """As GitHub makes anchors of them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_pictures_say_what_they_show():
    for text in re.findall(r"<img [^>]*>", TEXT):
        (alt,) = re.findall(r'alt="([^"]*)"', text)
        assert len(alt) > 60 and 'width="' in text, text


def test_development_commands_are_those_of_ci():
    assert "make test" in (PROJECT / ".ci/run").read_text()
    recipe = (PROJECT / "Makefile").read_text()
    assert "-m pytest" in recipe and "-m ruff check ." in recipe
    assert sys.version_info >= (3, 10)

"""What the README, its pages and the Makefile tell people to type, run at a small size."""

import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, TINY_NETWORK, draw_frames, write_clip, write_data_set
from movies import write_video
from numpy.random import default_rng
from packaging.requirements import Requirement
from tensorboard import program
from torch.distributed.run import get_args_parser as torchrun_flags

import demo_data
import docs.convolution_pictures as convolutions
import explain
import export
import pack
import predict
import report
import teach
import train
from config import Config
from docs.check import PAGES, PROJECT, text_of
from model import build_model
from networks.stages import describe, format_description
from system.command_line import parse_arguments
from system.config_file import load_config

TEXT = "\n".join(map(text_of, PAGES))
SMALL = [f"--set={key}={value}" for key, value in TINY_NETWORK.items()] + [
    "--set=num_epochs=1",
    "--set=num_workers=0",
    "--set=batch_size=4",
    "--set=schedule=constant",
    "--set=warmup_epochs=0",
]


# `--data` trains eco, which has other options; two clips per class leave it no choice.
OF_CONV3D = ("--set=block_widths", "--set=head_widths")
SMALL_ECO = [flag for flag in SMALL if not flag.startswith(OF_CONV3D)]
SMALL_ECO += ["--set=feature_versions=1", "--set=crop_size=32", "--set=frame_height=32"]
SMALL_ECO += ["--set=picture_baseline_clips=0", "--set=time_probe_clips=0"]


def is_of_conv3d(arguments) -> bool:
    is_of_folder = "--data" in arguments or "trainings/my_clips/config.json" in arguments
    return not is_of_folder or "model=conv3d" in arguments


def code_blocks(language):
    """Blocks of all pages, with the indentation of lists taken off."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", TEXT, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in blocks]


def shell_lines() -> list[str]:
    """What the pages tell people to type, each once: in blocks, and within sentences."""
    lines = [line for block in code_blocks("sh") for line in block.splitlines()]
    sentences = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", sentences)]
    lines += [code for code in inline if re.match(r"(\w+=\S+ )*[a-z][\w.-]* \S", code)]
    words = [shlex.split(line, comments=True) for line in lines if line not in NO_COMMANDS]
    return list(dict.fromkeys(map(shlex.join, words)))


NO_COMMANDS = ("one frame", "git clone")
# Those that `test_python_commands_run` runs.
SCRIPTS = ("demo_data.py", "train.py", "predict.py", "export.py", "report.py", "explain.py")


def commands(script):
    """Arguments of each `python <script> ...` of the pages, in their order."""
    found = map(shlex.split, shell_lines())
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
        if config is own_config:  # a clip may be a video file
            write_video(root / "clips" / "wave.mp4", draw_frames("Left", 9, default_rng(0)))
            with open(made["train_data_csv"], "a") as file:
                file.write("wave.mp4;Left\n")
        for key, path in made.items():
            if key in config:
                Path(config[key]).parent.mkdir(parents=True, exist_ok=True)
                if not Path(config[key]).exists():
                    Path(config[key]).symlink_to(path)
        (root / "labels.csv").write_text("\n".join(names))
    for folder, label, number in itertools.product(("my_clips", "data/mouths"), CLASSES, range(4)):
        write_clip(
            Path(folder, label, f"{'ab'[number % 2]}_{number}"),
            draw_frames(label, 8, default_rng(number)),
        )


@pytest.mark.slow
def test_python_commands_run(workplace, capsys):
    small = ["--train_clips", "8", "--validation_clips", "24", "--test_clips", "2"]
    for drawing in commands("demo_data.py"):
        assert demo_data.main(drawing + small) == 0
    jester = json.loads(Path("configs/config.json").read_text())
    assert pack.main(["data/jester.zip", jester["train_data_folder"]]) == 0
    for arguments in commands("train.py"):
        if not {"--config", "--data"} & set(arguments):
            continue
        is_resumed = {"--resume", "--checkpoint"} & set(arguments)
        overwrite = [] if is_resumed else ["--overwrite"]
        small = SMALL if is_of_conv3d(arguments) else SMALL_ECO
        assert train.main(arguments + overwrite + small) == 0, arguments
    write_video(Path("video.mp4"), draw_frames("Left", 9, default_rng(0)))
    for shown in commands("predict.py"):
        assert predict.main([*shown, "-g", "cpu"]) == 0
        assert Path(shown[-1]).exists()
    (written,) = commands("export.py")
    assert export.main(written) == 0
    (reported,) = commands("report.py")
    assert report.main(reported) == 0
    (explained,) = commands("explain.py")
    assert explain.main([*explained, "-g", "cpu"]) == 0
    output = capsys.readouterr().out
    assert output.count("training is over") >= 3 and "train: 9 clips in data/mine/clips" in output
    assert "train: 9 clips examined" in output
    assert "groups (^([a-z]+)_)" in output


# --- the lines that it does not run ------------------------------------------------------------


def check_make(_, *targets):
    shown = subprocess.run(["make", "-n", *targets, "-C", PROJECT], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


def check_pip(*words):
    assert words[:2] == ("pip", "install") and set(words[2::2]) == {"-r"}
    for name in ("requirements.txt", *words[3::2]):  # the others begin with `-r requirements.txt`
        for line in (PROJECT / name).read_text().splitlines():
            if (text := line.partition("#")[0].strip()) and not text.startswith("-r "):
                needed = Requirement(text)
                assert version(needed.name) in needed.specifier, line


def check_source(_, path):
    assert f"VENV ?= {path.removesuffix('/bin/activate')}\n" in (PROJECT / "Makefile").read_text()


def check_tensorboard(*words):
    server = program.TensorBoard()
    server.configure(argv=words)
    assert server.flags.logdir == "trainings"


def check_torchrun(*words):
    """The flags of both; two processes, restarts and two hosts are run in test_processes.py."""
    words = list(itertools.dropwhile(lambda word: re.match(r"\w+=", word), words))
    options = torchrun_flags().parse_args(words[1:])
    assert options.training_script == "train.py"
    assert Path(parse_arguments(options.training_script_args).config).exists()


def check_apt_get(*words):
    names = [word for word in words[2:] if not word.startswith("-")]
    assert re.search(rf"apt-get install .*{' '.join(names)}", (PROJECT / ".ci/run").read_text())


def check_development(_, *words):
    recipe, settings = (PROJECT / "Makefile").read_text(), (PROJECT / "pyproject.toml").read_text()
    is_file = words[1] == "pytest" and (PROJECT / words[-1]).is_file()
    assert is_file or shlex.join(words) in recipe or f'"{words[-1]}: ' in settings


def check_benchmark(_, script, *words):
    """The flags; small runs of these scripts are in test_benchmarks.py and test_folds.py."""
    script = importlib.import_module(f"benchmarks.{Path(script).stem}")
    options = script.parse_arguments(list(words))
    path = getattr(options, "config", PROJECT / "configs/config.json")
    if path == "trainings/my_clips/config.json":
        assert train.main(["--data", "my_clips/", "--check_data"]) == 0
    for _, *changes in getattr(options, "variant", [("unchanged",)]):
        load_config(path, getattr(options, "overrides", []) + changes)


def check_pack(_, script, *words):
    """The flags, and that small sources of these names are packed."""
    options = pack.parse_arguments(list(words))
    if not options.sources:
        return
    jester = json.loads(Path("configs/config.json").read_text())
    for source in options.sources:
        name = str(source).replace("??", "00")
        if "." in name or name != str(source):
            with tarfile.open(name, "w:gz") as archive:
                archive.add(Path(jester["train_data_folder"]).resolve(), "clips")
        elif not source.exists():
            shutil.copytree("mine/clips", source)
    sources = [str(source).replace("??", "00") for source in options.sources]
    videos = [] if options.frame_rate else ["--frame_rate", "12"]
    folders = [name for name in sources if Path(name).is_dir()]
    flags = [word for word in words if word.startswith("-") or word.isdigit()]
    assert pack.main([words[0], *sources, *(flags or videos if folders else [])]) == 0


def check_other_test(*words):
    (name,) = (
        test for start, test in RUN_BY_OTHER_TESTS.items() if shlex.join(words).startswith(start)
    )
    assert any(f"def {name}(" in path.read_text() for path in PROJECT.glob("tests/**/test_*.py"))


RUN_BY_OTHER_TESTS = {
    "python docs/draw_pictures.py": "test_command",
    "python config.py": "test_an_old_schema_is_found",
    "unzip -t": "test_any_zip_tool_tests_and_restores_it",
    "jupytext ": "test_an_old_notebook_is_found",
    "python classify.py": "test_the_folder_works_where_its_three_packages_are_alone",
    "python -m http.server": "test_without_a_runtime_its_files_come_from_the_cdn",
    "npm pack onnxruntime-web": "test_the_hashes_of_the_cdn_are_those_of_the_package",
    "python teach.py": "test_the_command_serves_until_ctrl_c",
    "python docs/teach_picture.py": "test_two_opposing_gestures_are_taught_and_a_picture_is_drawn",
    "python tests/two_hosts.py": "test_the_demonstration_of_two_hosts",
    "sbatch ": "test_a_job_is_requeued_before_its_limit_and_goes_on",
    "kubectl apply -f docs/cluster/pytorchjob.yaml": "test_two_pods_train_together",
}
# By how the line begins.
CHECKS = {
    "make ": check_make,
    "pip ": check_pip,
    "source ": check_source,
    "tensorboard ": check_tensorboard,
    "torchrun ": check_torchrun,
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun ": check_torchrun,
    "apt-get ": check_apt_get,
    "python -m pytest": check_development,
    "python -m ruff": check_development,
    "python benchmarks/": check_benchmark,
    "python pack.py": check_pack,
} | dict.fromkeys(RUN_BY_OTHER_TESTS, check_other_test)
OTHER_LINES = [
    line
    for line in shell_lines()
    if not line.startswith(tuple(f"python {script}" for script in SCRIPTS))
]


@pytest.mark.parametrize("line", OTHER_LINES)
def test_the_other_lines_are_run_in_part(workplace, line):
    checks = [check for start, check in CHECKS.items() if line.startswith(start)]
    assert len(checks) == 1, "no test runs this line of the README or the docs"
    checks[0](*shlex.split(line))


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in OTHER_LINES if line.startswith("torchrun")])
def test_several_processes_of_one_machine_run(workplace, line):
    demo_data.main(["--train_clips", "8", "--validation_clips", "8", "--test_clips", "2"])
    _, *words = shlex.split(line)
    words[words.index("train.py")] = train.__file__
    command = [sys.executable, "-m", "torch.distributed.run", *words, *SMALL]
    ended = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0 and "training is over" in ended.stdout, ended.stderr


@pytest.mark.parametrize(
    "command, arguments",
    [
        (train, ["--config", "c.json"]),
        (predict, ["-c", "a.tar", "clip"]),
        (explain, ["-c", "a.tar"]),
        (export, ["-c", "a.tar", "-o", "a"]),
        (report, ["folder"]),
        (demo_data, []),
        (pack, ["a.zip", "--list"]),
        (teach, ["--no_browser"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_windows_is_refused(command, arguments, tmp_path, monkeypatch, capsys):
    assert "Windows is not supported" in " ".join(PAGES[0].read_text().split())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "platform", "win32")
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Windows is not supported" in line and "WSL" in line
    assert list(tmp_path.iterdir()) == []


def test_make_runs_the_same_commands(workplace):
    shown = subprocess.run(["make", "-n", "demo", "-C", PROJECT], capture_output=True, text=True)
    flags = re.findall(r"train\.py ((?:--\w+ [\w/.]+ ?)+)", shown.stdout)
    assert len(flags) == 4
    for text in flags:
        assert Path(parse_arguments(text.split()).config).exists()


def test_stage_table_is_what_a_run_prints():
    config = Config.model_validate(
        {
            key: value
            for key, value in json.loads((PROJECT / "configs/config.json").read_text()).items()
            if key != "$schema"
        }
    )
    with torch.device("meta"):
        model = build_model(config, config.num_classes)
    table = format_description(describe(model, config.clip_shape))
    assert table + "\n" in code_blocks("text")


# --- what the README says ----------------------------------------------------------------------


def test_lines_of_python_print_what_the_page_says(capsys):
    """Those of the part on how it works, one after the other in one program."""
    part = text_of(PAGES[0]).partition("## What a ConvNet is")[2]
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", part, re.DOTALL)
    assert len(blocks) >= 8 and len(blocks) == part.count("```python\n")
    names = {}
    for code, printed in blocks:
        exec(compile(code, "README.md", "exec"), names)
        assert capsys.readouterr().out == printed, code
    sizes = [
        sum(weight.numel() for weight in layer.parameters())
        for layer in (torch.nn.Conv3d(3, 32, (2, 3, 3)), torch.nn.Conv2d(3, 32, 3))
    ]
    assert sizes == [1760, 896] and "`nn.Conv2d(3, 32, 3)` has 896 parameters" in TEXT


def test_each_idea_has_lines_to_run():
    """A section of the part on how it works has Python or a command."""
    part = text_of(PAGES[0]).partition("## What a ConvNet is")[2].partition("## Where to go")[0]
    for section in re.split(r"^## ", "## What a ConvNet is" + part, flags=re.MULTILINE)[1:]:
        assert re.search(r"^```(python|sh)$", section, re.MULTILINE), section.splitlines()[0]


def test_the_sum_that_is_worked_out():
    clip = demo_data.draw_clip("Moving Right", default_rng(convolutions.SEED))
    frame = convolutions.grey_cells(clip[10:11], 10, 10, 6)[0]
    outputs = convolutions.slide_2d(frame, convolutions.EDGE_KERNEL)
    (block,) = (text for text in code_blocks("text") if "×" in text)
    products = re.findall(r"(−?\d)×(\d)", block)
    weights, values = zip(
        *((int(weight.replace("−", "-")), int(value)) for weight, value in products), strict=True
    )
    assert list(weights) == convolutions.EDGE_KERNEL.flatten().tolist()
    assert list(values) == frame[3:6, 1:4].flatten().tolist()  # fourth row, second column
    assert outputs[3, 1] == outputs.max() == 26 and block.endswith("=   26\n")


def test_numbers_of_parameters():
    for name, parameters in (("config", "3,886,883"), ("quickstart", "227,144")):
        config = load_config(PROJECT / "configs" / f"{name}.json")
        with torch.device("meta"):
            model = build_model(config, config.num_classes or len(demo_data.GESTURES))
        assert f"{sum(each.numel() for each in model.parameters()):,}" == parameters
        assert parameters in text_of(PAGES[0])
    for gesture in demo_data.GESTURES:
        assert gesture.split()[-1] in text_of(PAGES[0])


def test_training_commands_that_are_compared_differ_in_one_key():
    fresh, lagging = (
        set(words)
        for words in commands("train.py")
        if {"model_name=fresh", "model_name=lagging"} & set(words)
    )
    assert lagging - fresh == {"model_name=lagging", "batchnorm_refresh_steps=0"}

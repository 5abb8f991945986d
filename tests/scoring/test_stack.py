"""Stacks: what they learn, how they are scored, their file, and predict.py with one."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CLASSES, write_data_set
from runs import make_settings, read_csv, run_folder, write_config

import predict
import train
from scoring.evaluation import log_mean_probability, score
from scoring.stack import Member, cross_validation_folds, fit_stack
from system.errors import UserError

MEMBERS = [Member(path=f"{name}.tar", sha256="0") for name in "ab"]


def clips(labels, groups=None):
    ids = np.array([f"clip {number}" for number in range(len(labels))])
    return SimpleNamespace(ids=ids, labels=np.asarray(labels), groups=groups)


def noisy_logits(labels, num_classes, seed):
    """Logits [2, N, K] of a network that knows the even classes, and one that knows the odd."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, len(labels), num_classes))
    for network in (0, 1):
        known = np.flatnonzero(labels % 2 == network)
        logits[network, known, labels[known]] += 3
    return torch.from_numpy(logits).float()


@pytest.mark.parametrize("num_classes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_stack_learns_which_network_knows_what(num_classes):
    labels = np.arange(200) % num_classes
    logits = noisy_logits(labels, num_classes, seed=0)
    names = [f"class {number}" for number in range(num_classes)]
    stack = fit_stack(logits, clips(labels), names, MEMBERS)
    new = noisy_logits(labels, num_classes, seed=1)
    mean = score(log_mean_probability(new, 0), torch.from_numpy(labels))
    stacked = score(stack.logits(new), torch.from_numpy(labels))
    assert stacked["loss"] < mean["loss"] - 0.03
    assert stacked["top1"] > mean["top1"] + (3 if num_classes > 2 else -1)
    assert stack.logits(new).exp().sum(1).numpy() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_no_clip_is_scored_by_weights_that_were_fitted_on_it():
    rng = np.random.default_rng(0)
    labels = torch.arange(120) % 3
    noise = torch.from_numpy(rng.normal(size=(8, 120, 3))).float() * 3  # there is nothing to learn
    annotations = clips(labels.numpy())
    stack = fit_stack(noise, annotations, CLASSES, MEMBERS * 4)
    assert score(stack.logits(noise, annotations.ids), labels)["top1"] < 45  # guessing: 33
    assert score(stack.logits(noise), labels)["top1"] > 48
    half = stack.logits(noise, ["unknown"] * 60 + annotations.ids[60:].tolist())
    assert torch.equal(half[:60], stack.logits(noise)[:60])
    assert torch.equal(half[60:], stack.logits(noise, annotations.ids)[60:])


@pytest.mark.slow
def test_sure_networks_and_unreadable_clips_are_no_obstacle():
    labels = np.arange(30) % 3
    logits = noisy_logits(labels, 3, seed=0) * 1e4
    logits[1, 4] = torch.nan
    stack = fit_stack(logits, clips(labels), CLASSES, MEMBERS)
    assert "clip 4" not in stack.folds and len(stack.folds) == 29
    found = stack.logits(logits)
    assert found[4].isnan().all() and found.isfinite().all(1).sum() == 29


@pytest.mark.parametrize("num_groups", [2, 7])
def test_no_group_is_on_both_sides(num_groups):
    labels = np.arange(56) % 4
    groups = np.array([f"person {number % num_groups}" for number in range(56)])
    folds = cross_validation_folds(labels, groups, 5)
    assert len(folds) == min(5, num_groups)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(56))
    assert not any(set(groups[train]) & set(groups[test]) for train, test in folds)
    assert len(cross_validation_folds(labels, np.array(["one"] * 56), 5)) == 5


def test_a_fold_may_lack_a_class():
    labels = np.repeat([0, 1, 2], 8)
    groups = np.array((["a"] * 4 + ["b"] * 4) * 2 + ["c"] * 8)  # the last class is of one person
    logits = noisy_logits(labels, 3, seed=0)
    stack = fit_stack(logits, clips(labels, groups), CLASSES, MEMBERS)
    found = stack.logits(logits, clips(labels).ids)
    assert found.isfinite().all() and (found[16:].argmax(1) != 2).all()
    assert (stack.logits(logits)[16:].argmax(1) == 2).any()


def test_one_class_per_group_is_fitted():
    labels = np.repeat([0, 1], 4)
    groups = np.repeat(["a", "b"], 4)
    fit_stack(noisy_logits(labels, 2, seed=0), clips(labels, groups), ["x", "y"], MEMBERS)


# --- the commands ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A stack of two small networks with different input, and what was printed about it."""
    root = tmp_path_factory.mktemp("stack")
    sets = {"train": 12, "validation": 12, "test": 5}
    data = write_data_set(root / "data", sets, num_frames=(6, 40))
    files, configs = [], []
    for number, changes in enumerate([{"nclips": 3}, {"frame_height": 22, "sampling": "segments"}]):
        own = (
            make_settings(root / str(number))
            | data
            | changes
            | {"seed": number, "model_name": f"net{number}", "output_dir": str(root / "runs")}
        )
        config = write_config(root / f"{number}.json", own)
        configs.append(config)
        assert train.main(["-c", config, "-g", "cpu"]) == 0
        files.append(str(run_folder(own) / "checkpoint.pth.tar"))
    # Speeds are for windows: the stack's config is none for the second network.
    settings = own | {"model_name": "stacked", "sampling": "window", "step_jitter": 0.25}
    config = write_config(root / "stack.json", settings)
    assert train.main(["-c", config, "-g", "cpu", "--stack", *files]) == 0
    return SimpleNamespace(
        config=config,
        configs=configs,
        settings=settings,
        files=files,
        folder=run_folder(settings),
        stack=run_folder(settings) / "stack.json",
    )


def command(trained, *flags):
    return train.main(["-c", trained.config, "-g", "cpu", *map(str, flags)])


def test_a_stack_is_evaluated_as_it_was_cross_validated(trained, capsys):
    assert command(trained, "--stack", *trained.files) == 0
    printed = capsys.readouterr().out
    (line,) = re.findall(r"^stack, cross-validated in 4 folds: (.*)$", printed, re.MULTILINE)
    assert printed.count("alone: loss ") == 2 and "mean of 2 networks: loss " in printed
    assert "stack against the mean: " in printed and "stack against the best network (" in printed
    assert f"written to {trained.stack}" in printed
    assert command(trained, "-e", "--checkpoint", trained.stack) == 0
    printed = capsys.readouterr().out
    assert f"\n{line}\n" in printed
    assert "fitted on 12 of these 12 clips" in printed
    assert f"scored: a stack of 2 networks ({trained.stack})" in printed
    page = (trained.folder / "report.html").read_text()
    assert f"Results of a stack ({trained.stack}) of 2 networks" in page


def test_each_network_of_a_stack_is_scored_with_its_own_windows(trained, capsys):
    scores = []
    for config in trained.configs:
        assert train.main(["-c", config, "-g", "cpu", "-e", "--checkpoint", "last"]) == 0
        scores += re.findall(r"^(loss .*)$", capsys.readouterr().out, re.MULTILINE)
    assert command(trained, "--stack", *trained.files) == 0
    alone = re.findall(r"^alone: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert alone == scores and len(set(scores)) == 2


def test_a_stack_predicts_as_it_tests(trained, tmp_path):
    assert command(trained, "-t", "--checkpoint", trained.stack) == 0
    expected = read_csv(trained.folder / "test_predictions.csv")
    paths = [f"{trained.settings['test_data_folder']}/{row['id']}" for row in expected]
    output = tmp_path / "found.csv"
    arguments = ["-c", str(trained.stack), "-g", "cpu", "-o", str(output)]
    assert predict.main([*arguments, "--save", str(tmp_path / "shown"), *paths]) == 0
    for one, other in zip(read_csv(output), expected, strict=True):
        assert one["predicted"] == other["predicted"]
        assert float(one["score1"]) == pytest.approx(float(other["score1"]), abs=1e-5)


def test_the_folder_of_runs_may_be_moved(trained, tmp_path):
    shutil.copytree(trained.folder.parent, tmp_path / "moved")
    text = trained.stack.read_text()
    assert str(trained.folder.parent) not in text
    stack = tmp_path / "moved" / "stacked" / "stack.json"
    assert command(trained, "-e", "--checkpoint", stack) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stack", "a"], "--stack: needs two checkpoints or more"),
        (["--stack", "a", "a"], "--stack: needs two checkpoints or more, each once"),
        (["--stack", "a", "b", "-e"], "--stack: fits a stack"),
        (["--stack", "a", "b", "--resume"], "--stack: fits a stack"),
        (["--stack", "{files[0]}", "no such file"], "no such file: no such checkpoint"),
        (["--stack", "{files[0]}", "{stack}"], "stack.json: a stack, which must be the only"),
        (
            ["-e", "--ensemble", "{files[0]}", "{stack}"],
            "stack.json: a stack, which must be the only",
        ),
        (["--stack", "{files[0]}", "{files[1]}", "--set=labels_csv={other}"], "has 3 classes"),
        (
            ["-e", "--checkpoint", "{stack}", "--set=labels_csv={other}"],
            "stack.json: has 3 classes",
        ),
        (
            ["--stack", "{files[0]}", "{files[1]}", "--set=val_data_csv={few}"],
            "--stack: each class needs 3 validation clips or more, for cross-validation; too few",
        ),
    ],
)
def test_mistakes(trained, tmp_path, capsys, flags, message):
    other, few = tmp_path / "labels.csv", tmp_path / "few.csv"
    other.write_text("Left\nRight\nOther\n")
    rows = Path(trained.settings["val_data_csv"]).read_text().splitlines()
    few.write_text("\n".join([*rows[::3], *rows[1:7:3], *rows[2::3]]))
    flags = [flag.format(**vars(trained), other=other, few=few) for flag in flags]
    assert command(trained, *flags) == 2
    assert message in capsys.readouterr().err


def change(path, **keys):
    contents = json.loads(path.read_text())
    path.write_text(json.dumps(contents | keys))


DAMAGES = {
    "cut": (lambda path: path.write_text(path.read_text()[:-9]), "nor an intact stack"),
    "no stack": (lambda path: path.write_text('{"model_name": "x"}'), "classes: Field required"),
    "classes": (lambda path: change(path, classes=[*CLASSES, "X"]), "its weights do not match"),
    "folds": (lambda path: change(path, folds={"1": 99}), "its folds have no weights"),
    "numbers": (
        lambda path: path.write_text(re.sub(r"-?\d\.\d+", "NaN", path.read_text(), count=1)),
        "finite number",
    ),
    "checkpoint": (
        lambda path: (path.parents[1] / "net0/checkpoint.pth.tar").write_bytes(b"x"),
        "net0/checkpoint.pth.tar: has changed since the stack",
    ),
    "missing": (
        lambda path: (path.parents[1] / "net1/checkpoint.pth.tar").unlink(),
        "net1/checkpoint.pth.tar: no such checkpoint, which the stack",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_stack_is_refused(trained, tmp_path, capsys, name):
    damage, message = DAMAGES[name]
    shutil.copytree(trained.folder.parent, tmp_path / "moved")
    stack = tmp_path / "moved" / "stacked" / "stack.json"
    damage(stack)
    assert command(trained, "-e", "--checkpoint", stack) == 2
    error = capsys.readouterr().err
    assert message in error and "--stack" in error and error.count("\n") == 1
    clip = f"{trained.settings['val_data_folder']}/1"
    assert predict.main(["-c", str(stack), "-g", "cpu", clip]) == 2
    assert capsys.readouterr().err == error


def test_a_stack_is_not_averaged_with_others(trained, capsys):
    clip = f"{trained.settings['val_data_folder']}/1"
    both = ["-c", str(trained.stack), "-c", trained.files[0]]
    assert predict.main([*both, "-g", "cpu", clip]) == 2
    assert "a stack, which must be the only" in capsys.readouterr().err


def test_too_few_clips_are_named():
    with pytest.raises(UserError, match="too few of Still; add clips"):
        fit_stack(torch.zeros(2, 8, 3), clips([0, 0, 0, 1, 1, 1, 2, 2]), CLASSES, MEMBERS)

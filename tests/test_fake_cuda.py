"""A training step of every network on a GPU, as far as that can be seen without one.

`fake_cuda.py` does the steps, all in one process, since starting it takes seconds.
"""

import json
import os
import subprocess
import sys

import pytest
from conftest import network_keys
from runs import PROJECT

from config import MODELS

# In fp16, since without a GPU PyTorch does not say how one would order the results in bf16.
PRECISION = {"precision": "fp16"}
SMALL = ("conv3d", "eco", "average")  # each of the others takes seconds
NETWORKS = {
    name: PRECISION | network_keys(name) | {"clip_size": 16, "crop_size": side}
    for name in MODELS
    if name != "linear"  # it has no convolutions
    for side in [224 if name.startswith("mvit") else 112]
}
OPTIONS = {
    "fp32": {"precision": "fp32"},
    "tutorial": PRECISION,
    "accumulate": PRECISION | {"accumulate_steps": 2},
    "recompute": PRECISION | {"checkpoint_activations": True},
    "ema": PRECISION | {"ema_decay": 0.9},
    "mixup": PRECISION | {"mixup_alpha": 0.4},
    "cutmix": PRECISION | {"cutmix_alpha": 0.4},
    "adamw": PRECISION | {"optimizer": "adamw"},
    "smoothing": PRECISION | {"label_smoothing": 0.1},
}
# What is planted, and what must be said of it.
FAULTS = {
    "read": "a value is read from the GPU (train.py, forward_and_backward)",
    "blocking": "copy of [8] from cuda to cpu is blocking",
    "not dense": "copy of [8] from cpu to cuda is not of dense memory",
    "type": "output of a convolution, [8, 32, 17, 82, 82], is torch.float32",
    "order": "input of a convolution, [8, 3, 18, 84, 84], is not in channels-last order",
    "device": "devices",  # "two different devices", or "at least two devices"
}


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    small = {name: keys for name, keys in NETWORKS.items() if name in SMALL}
    faults = {f"fault {name}": PRECISION | {"fault": name} for name in FAULTS if name != "type"}
    faults["fault type"] = {"precision": "fp32", "expected": "fp16"}
    return do_steps(small | OPTIONS | faults, tmp_path_factory)


@pytest.fixture(scope="module")
def large_steps(tmp_path_factory):
    large = {name: keys for name, keys in NETWORKS.items() if name not in SMALL}
    return do_steps(large, tmp_path_factory)


def do_steps(cases, tmp_path_factory):
    path = tmp_path_factory.mktemp("fake_cuda") / "cases.json"
    path.write_text(json.dumps(cases))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PROJECT}:{PROJECT}/tests"}
    process = subprocess.run(
        [sys.executable, PROJECT / "tests" / "fake_cuda.py", path],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def check(name, step):
    assert "error" not in step, step["error"]
    counts, problems = step["counts"], step["problems"]
    assert counts["copies"] >= 3  # clips, labels, whether the loss is finite
    most = counts["convolution"]
    if name == "fp32":  # the gradients of input and weight are computed separately
        assert counts["backward convolution"] > most
        most *= 2
        problems = [problem for problem in problems if "weight's gradient" not in problem]
    assert most >= counts["backward convolution"] >= 1
    if name.startswith("mvit"):
        # torchvision pools tokens [N, heads, T * H * W, C] by depthwise convolutions over a view
        # of them that is in no order of its own.
        problems = [problem for problem in problems if "channels-last order" not in problem]
    assert not problems


@pytest.mark.parametrize("name", SMALL)
def test_a_step_of_a_network_never_waits_and_keeps_the_memory_order(steps, name):
    check(name, steps[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in SMALL])
def test_a_step_of_a_large_network_never_waits_and_keeps_the_memory_order(large_steps, name):
    check(name, large_steps[name])


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_with_an_option_never_waits_and_keeps_the_memory_order(steps, name):
    check(name, steps[name])


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(steps, fault):
    step = steps[f"fault {fault}"]
    found = "\n".join(step["problems"]) if "problems" in step else step["error"]
    assert FAULTS[fault] in found


def test_recomputing_computes_the_convolutions_again(steps):
    plain, again = (steps[name]["counts"] for name in ("tutorial", "recompute"))
    assert again["backward convolution"] == plain["backward convolution"]
    assert again["convolution"] > plain["convolution"]

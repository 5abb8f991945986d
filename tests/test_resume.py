"""A run that dies and is resumed ends as the same run that was never stopped: bit for bit.

The long form: `python -m pytest -m slow tests/test_resume.py`.
"""

import itertools
import os
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from runs import (
    Command,
    PowerCut,
    curves,
    differences,
    make_settings,
    read_csv,
    run_folder,
    train_until,
    write_config,
)

import train

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return make_settings(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def whole_run(settings, tmp_path_factory):
    """Gives the folder of the run with these keys that was never stopped; each is trained once."""
    folders = {}

    def train_whole(num_processes=1, **keys):
        name = str((num_processes, *sorted(keys.items())))
        if name not in folders:
            own = settings | keys | {"output_dir": str(tmp_path_factory.mktemp("whole"))}
            config = write_config(Path(own["output_dir"]) / "config.json", own)
            if num_processes == 1:
                assert train.main(["-c", config, "-g", "cpu"]) == 0
            else:
                run_several(config, "train.py")
            folders[name] = run_folder(own)
        return folders[name]

    return train_whole


def run_several(config, *start, expected_status=0):
    status, output, errors = Command(config, start=(*TORCHRUN, *start)).finish()
    assert status == expected_status, output + errors


# --- the grid ----------------------------------------------------------------------------------


class Case(NamedTuple):
    num_workers: int
    augmented: bool
    precision: str
    accumulate_steps: int
    num_processes: int
    mid_epoch: bool
    other_workers: bool  # 2 instead of 0 after the resume, or the other way round

    def recipe(self) -> dict:
        """The keys that make a difference to the result."""
        movement = {} if self.augmented else {"affine_degrees": 0.0, "affine_translate": 0.0}
        return movement | {"precision": self.precision, "accumulate_steps": self.accumulate_steps}

    def __str__(self):
        return ", ".join([
            f"{self.num_workers} workers{', then others' if self.other_workers else ''}",
            *(["augmented"] if self.augmented else []), self.precision,
            *(["in parts"] if self.accumulate_steps > 1 else []),
            f"{self.num_processes} processes", "mid-epoch" if self.mid_epoch else "epoch end",
        ])  # fmt: skip


GRID = [Case(*values) for values in itertools.product(
    (0, 2), (True, False), ("fp32", "bf16"), (1, 2), (1, 2), (True, False), (True, False))]
# Each factor in both its values; the others of the grid take minutes.
SHORT = [
    Case(0, True, "fp32", 1, 1, mid_epoch=True, other_workers=True),
    Case(2, True, "bf16", 2, 1, mid_epoch=True, other_workers=False),
    Case(2, True, "fp32", 2, 1, mid_epoch=False, other_workers=True),
    Case(0, False, "bf16", 1, 1, mid_epoch=True, other_workers=False),
    Case(0, True, "bf16", 1, 1, mid_epoch=False, other_workers=False),
    Case(0, True, "fp32", 2, 2, mid_epoch=True, other_workers=False),
]


@pytest.mark.parametrize("case", [
    pytest.param(case, id=str(case), marks=[] if case in SHORT else pytest.mark.slow)
    for case in GRID
])
def test_a_resumed_run_is_the_uninterrupted_one(case, settings, whole_run, tmp_path):
    """It dies in the last step of its second epoch, from which nothing must be left."""
    recipe = case.recipe()
    own = settings | recipe | {"output_dir": str(tmp_path), "num_workers": case.num_workers}
    # Without checkpoints within the epoch, its first two steps are lost, too.
    own["checkpoint_minutes"] = 0 if case.mid_epoch else 1000
    first = write_config(tmp_path / "first.json", own)
    if case.other_workers:
        own["num_workers"] = 2 - case.num_workers
    second = write_config(tmp_path / "second.json", own)

    if case.num_processes == 1:
        train_until(["-c", first, "-g", "cpu"], epoch=1, step=2)
    else:
        run_several(first, "tests/runs.py", "1", "2", expected_status=1)
    stopped_at = torch.load(run_folder(own) / "checkpoint.pth.tar", weights_only=True)
    assert (stopped_at["epoch"], stopped_at["step"]) == (1, 2 if case.mid_epoch else 0)
    if case.num_processes == 1:
        assert train.main(["-c", second, "-g", "cpu", "--resume", "True"]) == 0
    else:
        run_several(second, "train.py", "--resume", "auto")

    whole = whole_run(case.num_processes, **recipe)
    assert differences(whole, run_folder(own)) == []

"""Folders of clips for `train.py --data`, and short trainings on them."""

import json

import numpy as np
from conftest import CLASSES, TINY_NETWORK, draw_frames, write_clip

import train

TINY = TINY_NETWORK | {"model": "conv3d", "num_epochs": 1, "batch_size": 4, "num_workers": 0}
OVERRIDES = [
    part for key, value in TINY.items() for part in ("--set", f"{key}={json.dumps(value)}")
]


def write_class_folders(root, num_clips=6, people=("anna", "bo", "cy"), names=CLASSES):
    """Folders of frames, `<class>/<person>_<number>`; returns the root."""
    rng = np.random.default_rng(0)
    for label, name in zip(CLASSES, names, strict=True):
        for number in range(num_clips):
            person = people[number % len(people)]
            write_clip(root / name / f"{person}_{number}", draw_frames(label, 8, rng))
    return root


def do_train(root, tmp_path, *flags):
    return train.main(
        [
            "--data",
            str(root),
            "-g",
            "cpu",
            "--set",
            f"output_dir={tmp_path / 'runs'}",
            *OVERRIDES,
            *flags,
        ]
    )

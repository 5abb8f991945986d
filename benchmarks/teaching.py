"""Which network teach.py should train: clips by other hands that each gets right, and its seconds.

    python benchmarks/teaching.py --seeds 0 1 2 --save teaching
    python benchmarks/teaching.py --videos FOLDER --pairs run,walk --save teaching_people

Each network learns two gestures from a few clips of each, as teach.py trains it, and classifies
clips that it has not seen. The gestures are drawn, a movement and its reverse; or, with `--videos`,
those of a folder per class, whose first people (PERSON_*.avi) are for training. What `--save` has
from an earlier call is kept.
"""

import argparse
import itertools
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import simplejpeg
import torch

import demo_data
import train
from benchmarks import machine
from benchmarks.smoothing import frames_of
from clips.frames import FramesInMemory, prepare_decoders
from own_clips.recipes import FEW_CLIPS
from scoring.camera import SURE
from scoring.intervals import wilson
from scoring.predictor import load_predictor
from system.config_file import load_config
from system.device import prepare
from system.errors import UserError, exit_status
from teaching.data_set import DataSet
from teaching.pictures import decode_jpeg, frames_of_film
from teaching.training import Training
from training.run_folder import LAST_CHECKPOINT

CLIPS_EACH, UNSEEN_EACH, CLIP_FRAMES = 8, 20, 36  # the page records 36 frames
TRAINING_PEOPLE = 5  # of videos; the page needs five clips of a class
FIRST_UNSEEN = 1000  # seed
CENTERED = {"center_features": True}  # without the clip's mean map
BOTH = {"model": "average", "members": ["conv3d", "eco"]}
NETWORKS = {
    "conv3d": {"model": "conv3d"},
    "eco, without the clip's mean map": {"model": "eco"} | CENTERED,
    "kernel_ridge, without the clip's mean map": {"model": "kernel_ridge"} | CENTERED,
    "conv3d + eco, their mean": BOTH | CENTERED,
    "conv3d + eco, their product": BOTH | CENTERED | {"combine": "product"},
}


def drawn_clips(pair, seed, options) -> tuple[list, list]:
    """Return (class, frames uint8 RGB [T, H, W, 3]) of the training and of the unseen clips."""

    def clip(gesture, seeds):
        frames = frames_of(gesture, seeds)
        start = (len(frames) - CLIP_FRAMES) // 2
        return gesture, frames[start : start + CLIP_FRAMES]

    first = FIRST_UNSEEN + UNSEEN_EACH * seed
    known = [clip(g, [k, seed, n]) for n in range(CLIPS_EACH) for k, g in enumerate(pair)]
    unseen = [
        clip(g, [k, n]) for n in range(first, first + UNSEEN_EACH) for k, g in enumerate(pair)
    ]
    return known, unseen


def filmed_clips(pair, seed, options) -> tuple[list, list]:
    """Return what `drawn_clips` does, of videos; the seed chooses the people for training."""
    recipe, known, unseen = load_config(FEW_CLIPS), [], []
    for name in pair:
        videos = sorted((options.videos / name).iterdir())
        if len(videos) <= TRAINING_PEOPLE:
            raise UserError(f"{options.videos / name}: needs more than {TRAINING_PEOPLE} videos")
        for place, video in enumerate(videos[seed:] + videos[:seed]):
            pictures = frames_of_film(video.name, video.read_bytes(), recipe)
            frames = [decode_jpeg(picture) for picture in pictures]
            (known if place < TRAINING_PEOPLE else unseen).append((name, frames))
    return known, unseen


def write_clips(folder: Path, clips) -> Training:
    """Write a data set as the page does; return its training."""
    data_set = DataSet(folder.resolve())
    for name, frames in clips:
        data_set.add(name, [simplejpeg.encode_jpeg(np.ascontiguousarray(f), 92) for f in frames])
    training = Training(data_set, "cpu", "cpu")
    data_set.close()
    return training


def write_config(training: Training, changes: dict, seed: int) -> None:
    """Write the config that the page would write with these keys."""
    paths = training.paths(training.data_set.folder, training.run_folder)
    training.config_path.write_text(json.dumps(changes | paths | {"seed": seed, "num_workers": 0}))
    training.write_config(anew=True)


def trained_and_tested(training, changes, unseen, seed) -> dict:
    """Train; return how many unseen clips and how many verdicts are right, and the seconds."""
    write_config(training, changes, seed)
    start = time.process_time()
    arguments = ["-c", str(training.config_path), "-g", "cpu", "--overwrite", "True"]
    if train.main(arguments):
        raise UserError(f"{training.config_path}: its training failed")
    seconds = time.process_time() - start
    predictor = load_predictor(training.run_folder / LAST_CHECKPOINT, torch.device("cpu"))
    found = []
    for name, frames in unseen:
        scores = predictor.scores(FramesInMemory(list(frames))).whole
        is_right = predictor.classes[int(scores.argmax())] == name
        found.append((is_right, bool(scores.max() >= SURE)))
    return {
        "clips": len(found),
        "right": sum(is_right for is_right, _ in found),
        "right_verdicts": found.count((True, True)),
        "wrong_verdicts": found.count((False, True)),
        "seconds": round(seconds, 1),
    }


def report(contents: dict) -> str:
    """Return the results as Markdown: a row per network, a column per pair."""
    pairs = list(dict.fromkeys(row["pair"] for row in contents["rows"]))
    lines = []
    for network in dict.fromkeys(row["network"] for row in contents["rows"]):
        own = [row for row in contents["rows"] if row["network"] == network]
        cells = [
            ", ".join(str(row["right"]) for row in own if row["pair"] == pair) for pair in pairs
        ]
        right, clips = (sum(row[key] for row in own) for key in ("right", "clips"))
        low, high = wilson(100 * right / clips, clips)
        together = f"{right} of {clips} ({low:.0f} to {high:.0f} %)"
        verdicts = [str(sum(row[f"{kind}_verdicts"] for row in own)) for kind in ("right", "wrong")]
        seconds = f"{np.median([row['seconds'] for row in own]):.1f}"
        lines.append([network, *cells, together, *verdicts, seconds])
    each = contents["rows"][0]["clips"]
    heads = [f"{pair}, of {each}" for pair in pairs]
    heads += ["in all (95 % interval)", f"right from {SURE:.0%}", "wrong from there"]
    table = machine.markdown_table(["network", *heads, "seconds of a core, median"], lines)
    return (
        f"`{contents['command']}`\n\n{contents['machine']}, {contents['versions']}, "
        f"{contents['date']}\n\nUnseen clips that are right, one number per seed, which also "
        f"draws other clips; an empty cell was not measured.\n\n{table}\n"
    )


def saved_rows(name: str | None) -> list[dict]:
    """Return the rows of an earlier call, which are not measured again."""
    path = machine.RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if name and path.exists() else []


def measure(options, command) -> None:
    rows, clips_of = saved_rows(options.save), filmed_clips if options.videos else drawn_clips
    contents = machine.describe(torch.device("cpu")) | {"command": command, "rows": rows}
    done = [(row["network"], row["pair"], row["seed"]) for row in rows]
    for pair, seed in itertools.product(options.pairs, options.seeds):
        names = ", ".join(pair)
        todo = [name for name in options.networks if (name, names, seed) not in done]
        if not todo:
            continue
        known, unseen = clips_of(pair, seed, options)
        with tempfile.TemporaryDirectory() as folder:
            training = write_clips(Path(folder) / "mine", known)
            for network in todo:
                row = {"network": network, "pair": names, "seed": seed}
                rows.append(row | trained_and_tested(training, NETWORKS[network], unseen, seed))
                print(json.dumps(rows[-1]), flush=True)
                save(options, contents)  # after each, since the next takes a while
    save(options, contents)
    print("\n" + report(contents))


def save(options, contents: dict) -> None:
    if options.save:
        machine.save(options.save, contents, report(contents))


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    drawn = [",".join(both) for *both, _ in demo_data.PAIRS]
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="a folder per class")
    parser.add_argument("--pairs", nargs="+", default=drawn, help="gestures, as ONE,OTHER (drawn)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each (0)")
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=[*NETWORKS])
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json, .md")
    options = parser.parse_args(arguments)
    options.pairs = [pair.split(",") for pair in options.pairs]
    return options


def main(arguments=None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    prepare_decoders()
    prepare(torch.device("cpu"), "auto", deterministic=False)
    command = shlex.join(["python", "benchmarks/teaching.py", *arguments])
    return exit_status(lambda: measure(parse_arguments(arguments), command))


if __name__ == "__main__":
    sys.exit(main())

"""Measure smoothing of live scores: gestures recognized, and wrong verdicts that flash up.

    python benchmarks/smoothing.py --seeds 0 1 2

A network learns two opposing built-in gestures and "nothing", as teach.py trains it. Then it
watches gestures by hands it has not seen, with pauses between them, 12 frames per second.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import cv2
import numpy as np
import simplejpeg
import torch

import demo_data
import train
from clips.frames import FramesInMemory, prepare_decoders
from scoring.camera import LIVE_SECONDS
from scoring.predictor import load_predictor
from system.device import prepare
from system.errors import exit_status
from teaching.data_set import DataSet
from teaching.training import Training
from training.run_folder import LAST_CHECKPOINT

NOTHING, GESTURES = "nothing", ("Moving Right", "Moving Left")
RATE, CLIPS_EACH, PAUSE = 12, 16, 36  # frames per second, training clips, frames
FIRST_UNSEEN = 1000  # seed
SECONDS, SURE = (0.0, 0.25, 0.5, 1.0), (0.5, 0.6, 0.7, 0.8, 0.9)


def frames_of(gesture, seed) -> list[np.ndarray]:
    """Return a pause, the gesture, and a pause: the hand rests where it begins and ends."""
    rng = np.random.default_rng(seed)
    clip = [cv2.resize(frame, (160, 120)) for frame in demo_data.draw_clip(gesture, rng)]

    def rest(frame):
        grain = rng.integers(-6, 7, (PAUSE, *frame.shape))
        return list(np.clip(frame + grain, 0, 255).astype(np.uint8))

    return [*rest(clip[0]), *clip, *rest(clip[-1])]


def write_clips(folder: Path) -> Training:
    """Write a data set of the two gestures and of nothing, and the config of its training."""
    data_set = DataSet(folder.resolve())
    for seed in range(CLIPS_EACH):
        for number, gesture in enumerate(GESTURES):
            frames = frames_of(gesture, [number, seed])
            middle = len(frames) // 2
            for name, start in ((gesture, middle - 18), (NOTHING, 0))[: 2 - (seed + number) % 2]:
                data_set.add(
                    name,
                    [simplejpeg.encode_jpeg(frame, 92) for frame in frames[start : start + 36]],
                )
    training = Training(data_set, "cpu", "cpu")
    training.write_config(anew=True)
    data_set.close()
    return training


def train_network(training: Training, epochs: int, seed: int):
    """Return a predictor of the two gestures and of nothing."""
    flags = ["-c", str(training.config_path), "-g", "cpu", "--overwrite", "True"]
    for key in (f"num_epochs={epochs}", f"seed={seed}", "num_workers=0"):
        flags += ["--set", key]
    assert train.main(flags) == 0
    return load_predictor(training.run_folder / LAST_CHECKPOINT, torch.device("cpu"))


def watch(predictor, frames) -> np.ndarray:
    """Return the scores of the last 3 seconds at each frame, [T, classes]."""
    length = round(LIVE_SECONDS * RATE)
    return np.stack(
        [
            predictor.scores(FramesInMemory(frames[stop - length : stop])).whole
            for stop in range(length, len(frames) + 1)
        ]
    )


def verdicts(scores, seconds, sure) -> list[int | None]:
    """Return the class of each frame whose smoothed score is at least `sure`, or None."""
    keep, smooth, found = np.exp(-1 / RATE / seconds) if seconds else 0.0, scores[0], []
    for row in scores:
        smooth = keep * smooth + (1 - keep) * row
        found.append(int(smooth.argmax()) if smooth.max() >= sure else None)
    return found


def count(found, own, others) -> tuple[bool, int]:
    """Return whether class `own` was recognised, and how often one of `others` flashed up."""
    starts = [new for old, new in zip([None, *found], found, strict=False) if new != old]
    return own in found, sum(new in others for new in starts)


def measure(options) -> None:
    """Train with each seed, watch the gestures, and print the table of all."""
    watched = []  # (class of the gesture, those of the others, scores)
    with tempfile.TemporaryDirectory() as folder:
        training = write_clips(options.data or Path(folder) / "mine")
        for seed in options.seeds:
            predictor = train_network(training, options.epochs, seed)
            for number in range(options.gestures):
                gesture = GESTURES[number % 2]
                own = predictor.classes.index(gesture)
                others = {predictor.classes.index(name) for name in GESTURES} - {own}
                frames = frames_of(gesture, FIRST_UNSEEN + number)
                watched.append((own, others, watch(predictor, frames)))
    print(
        f"\n{len(watched)} gestures: recognised, and wrong flashes\n\n| seconds | "
        + " | ".join(f"above {sure}" for sure in SURE)
        + " |\n|---|"
        + "---|" * len(SURE)
    )
    for seconds in SECONDS:
        cells = []
        for sure in SURE:
            results = [
                count(verdicts(scores, seconds, sure), own, others)
                for own, others, scores in watched
            ]
            cells.append("{}, {}".format(*np.sum(results, 0)))
        print(f"| {seconds} | " + " | ".join(cells) + " |")


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=30, help="of a training (%(default)s)")
    parser.add_argument("--gestures", type=int, default=20, help="to watch (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each (0)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="a new folder in which the clips and the network are kept, which teach.py can open",
    )
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    prepare_decoders()
    prepare(torch.device("cpu"), "auto", deterministic=False)
    return exit_status(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())

"""What a validation score has to beat: the most frequent class, and a linear model.

A network that is no better than these has not learnt what the clips show.
"""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from clips.annotations import Annotations
from clips.frames import FrameError
from clips.reading import open_clip
from clips.sampling import sample_segments
from clips.transforms import LUMA
from config import Config
from system import processes
from training.run import Run

NAMES = {"most_frequent_top1": "the most frequent class", "linear_top1": "a linear model"}
NUM_FRAMES, SIDE = 8, 16  # the linear model's input: frames of 16 x 16 grey pixels
PENALTIES = np.logspace(-2, 5, 15)
MOST_VALIDATION_CLIPS = 2000  # give the accuracy to one percentage point


def yardsticks_of_run(run: Run, train: Annotations, validation: Annotations) -> dict[str, float]:
    """Return the yardsticks of a run, computed by the main process unless its history has them."""
    def known_or_new():
        last_row = run.state.history[-1] if run.state.history else {}
        known = {name: last_row[f"val_{name}"] for name in NAMES if f"val_{name}" in last_row}
        return known or yardsticks(train, validation, run.config)

    return processes.broadcast_from_main(known_or_new) if run.config.yardstick_clips else {}


def yardsticks(train: Annotations, validation: Annotations, config: Config) -> dict[str, float]:
    """Return the validation top-1 of the most frequent class and of a linear model, in percent.

    The linear model is a ridge regression on 8 frames of 16 x 16 grey pixels, whose penalty is
    chosen by leave-one-out validation on the training clips. It reads at most `yardstick_clips`
    training clips, drawn with the config's seed; unreadable ones are left out.
    """
    from sklearn.linear_model import RidgeClassifierCV  # here, since it takes a second to import

    counts = np.bincount(train.labels, minlength=len(train.class_names))
    scores = {"most_frequent_top1": 100 * float(np.mean(validation.labels == counts.argmax()))}
    rng = np.random.default_rng(config.seed)
    pixels, labels = grey_pixels(train, config, config.yardstick_clips, rng)
    unseen_pixels, unseen_labels = grey_pixels(validation, config, MOST_VALIDATION_CLIPS, rng)
    if len(set(labels.tolist())) > 1 and len(unseen_labels):
        model = RidgeClassifierCV(alphas=PENALTIES).fit(pixels, labels)
        scores["linear_top1"] = 100 * float(model.score(unseen_pixels, unseen_labels))
    return scores


def grey_pixels(annotations: Annotations, config: Config, most_clips: int, rng):
    """Return float32 [N, 8 x 16 x 16], values in 0..1, and the labels, int64 [N]."""
    indices = np.arange(len(annotations))
    if len(indices) > most_clips:
        indices = np.sort(rng.choice(indices, most_clips, replace=False))
    # Decoders work without Python's lock.
    with ThreadPoolExecutor(processes.available_cores()) as pool:
        rows = pool.map(lambda index: _clip_pixels(annotations.clip_path(index), config), indices)
        readable = [(row, index) for row, index in zip(rows, indices, strict=True)
                    if row is not None]
    pixels = np.array([row for row, _ in readable], np.float32).reshape(len(readable), -1)
    return pixels, annotations.labels[[index for _, index in readable]]


def _clip_pixels(path, config: Config) -> np.ndarray | None:
    try:
        return small_grey_frames(open_clip(path, config)).ravel()
    except FrameError:
        return None


def small_grey_frames(source) -> np.ndarray:
    """Return 8 evenly spaced frames of a clip, float32 [8, 16, 16], values in 0..1.

    source: as `clips.reading.open_clip` returns it. Raises FrameError.
    """
    positions = sample_segments(len(source), NUM_FRAMES)[0].tolist()
    wanted = sorted(set(positions))
    frames = {}
    for position, frame in zip(wanted, source.frames_at(wanted), strict=True):
        small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        frames[position] = small @ np.array(LUMA, np.float32) / 255
    return np.stack([frames[position] for position in positions])

"""Baselines of a validation score: the most frequent class, a linear model, and pictures.

A network that does not beat these has not learnt what the clips show. `picture_baseline.py` has the
last one.
"""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from clips.annotations import Annotations
from clips.bad_clips import check_bad_clips
from clips.batches import ClipKey
from clips.folders import Clip, FrameSource
from clips.frames import FrameError
from clips.reading import distinct_frames
from clips.sampling import sample_segments
from clips.transforms import LUMA
from config import Config
from data_loader import VideoFolder
from networks.ridge import NUM_FRAMES, PENALTIES, SIDE
from scoring.picture_baseline import picture_baseline
from system import processes
from system.errors import summarize
from training.run import Run, split_columns

NAMES = {
    "most_frequent_top1": "the most frequent class",
    "linear_top1": "a linear model",
    "pictures_top1": "pictures without order",
}
FEW_CLIPS = 8  # of a run without baselines, to check whether any can be read
MAX_VALIDATION_CLIPS = 2000  # give the accuracy to one percentage point


def baselines_of_run(run: Run, train: Annotations, validation: Annotations) -> dict[str, float]:
    """Return the baselines of a run, computed by the main process unless its history has them.

    Raises FrameError if clips that it reads cannot be read and would stop the run by the end of the
    epoch.
    """
    config = run.config

    def check(annotations, unreadable):
        _check_as_read(annotations, unreadable, config, run.state.epoch, annotations is train)

    def known_or_new():
        known = baselines_of_row(run.state.history[-1]) if run.state.history else {}
        if known or config.baseline_clips:
            return known or (
                baselines(train, validation, config, check)
                | picture_baseline(train, validation, config, run.device)
            )
        for annotations in (train, validation):
            few = np.linspace(0, len(annotations) - 1, min(FEW_CLIPS, len(annotations))).astype(int)
            _, unreadable = grey_pixels(annotations, config, few)
            if len(unreadable) == len(few):
                check(annotations, unreadable)
        return {}

    return processes.broadcast_from_main(known_or_new)


def baselines_of_row(row: dict) -> dict[str, float]:
    """Return the baselines in a row of the history, in percent by name."""
    _, validation = split_columns(row)
    return {name: validation[name] for name in NAMES if name in validation}


def _check_as_read(annotations, unreadable, config: Config, epoch: int, training: bool) -> None:
    """Raise FrameError like `check_bad_clips`, for clips that the epoch cannot read either.

    The epoch may not need the damaged frames.
    """
    clips = VideoFolder(annotations, config, training)
    batches = (
        clips.__getitems__([ClipKey(epoch if training else 0, int(index))]) for index in unreadable
    )
    reasons = {
        str(annotations.ids[bad.index]): bad.reason for batch in batches for bad in batch.bad
    }
    num_clips = len(annotations)
    if training and len(reasons) == num_clips - 1:
        raise FrameError(
            f"train_data_csv: epoch {epoch + 1} has no step, since only one of "
            f"{num_clips:,} clips in {annotations.folder} can be read: "
            f"{summarize(reasons.values(), 3)}; --check_data finds them all"
        )
    check_bad_clips(reasons, annotations, "train" if training else "validation", config)


def baselines(
    train: Annotations,
    validation: Annotations,
    config: Config,
    check=lambda annotations, unreadable: None,
) -> dict[str, float]:
    """Return the validation top-1 of the most frequent class and of a linear model, in percent.

    The linear model is a ridge regression on 8 frames of 16 x 16 grey pixels, whose penalty is
    chosen by leave-one-out validation on the training clips. It reads at most `baseline_clips`
    training clips, drawn with the config's seed, without unreadable ones. It is missing if there
    are no clips of two classes or no validation clips.
    check: called with the positions of the unreadable clips of each set; may raise.
    """
    from sklearn.linear_model import RidgeClassifierCV  # here, since it takes a second to import

    counts = np.bincount(train.labels, minlength=len(train.class_names))
    scores = {"most_frequent_top1": 100 * float(np.mean(validation.labels == counts.argmax()))}
    rng, sets = np.random.default_rng(config.seed), []
    for annotations, most in ((train, config.baseline_clips), (validation, MAX_VALIDATION_CLIPS)):
        indices = np.arange(len(annotations))
        if len(indices) > most:
            indices = np.sort(rng.choice(indices, most, replace=False))
        pixels, unreadable = grey_pixels(annotations, config, indices)
        check(annotations, unreadable)
        sets.append((pixels, annotations.labels[np.setdiff1d(indices, unreadable)]))
    (pixels, labels), (unseen_pixels, unseen_labels) = sets
    if len(set(labels.tolist())) > 1 and len(unseen_labels):
        model = RidgeClassifierCV(alphas=PENALTIES).fit(pixels, labels)
        scores["linear_top1"] = 100 * float(model.score(unseen_pixels, unseen_labels))
    return scores


def grey_pixels(annotations: Annotations, config: Config, indices):
    """Read the clips at ascending `indices` as small grey frames.

    Returns float32 [N, 8 x 16 x 16], values in 0..1, of readable clips, and the positions of the
    others.
    """
    # Decoders release the GIL.
    with ThreadPoolExecutor(processes.available_cores()) as pool:
        rows = list(pool.map(lambda index: _clip_pixels(annotations.clip(index), config), indices))
    readable = [row for row in rows if row is not None]
    pixels = np.array(readable, np.float32).reshape(len(readable), NUM_FRAMES * SIDE * SIDE)
    unreadable = [int(index) for index, row in zip(indices, rows, strict=True) if row is None]
    return pixels, unreadable


def _clip_pixels(clip: Clip, config: Config) -> np.ndarray | None:
    try:
        return small_grey_frames(clip.open(config)).ravel()
    except FrameError:
        return None


def small_grey_frames(source: FrameSource) -> np.ndarray:
    """Return 8 evenly spaced frames of a clip, float32 [8, 16, 16], values in 0..1.

    Raises FrameError.
    """
    frames = np.empty((NUM_FRAMES, SIDE, SIDE), np.float32)
    for places, frame in distinct_frames(source, sample_segments(len(source), NUM_FRAMES)[0]):
        small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        frames[places] = small @ np.array(LUMA, np.float32) / 255
    return frames

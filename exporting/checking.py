"""Whether the exported network gives what `predict.py` gives, and how fast it is."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import onnxruntime

from clips.annotations import Annotations
from clips.frames import FramesInMemory
from exporting.classify import Classifier
from scoring.predictor import Predictor
from system.errors import UserError

MAX_CLIPS = 100  # a sample, if there are more
MIN_SAME = 0.99  # of the clips: the same top class
MAX_DIFFERENCE = 0.02  # mean over the clips of the largest difference of a probability
# UserErrors are ValueErrors; the others are those of classify.py, for films of rare kinds.
UNREADABLE = (ValueError, TypeError, LookupError, av.error.FFmpegError)
SPEED_SECONDS, SPEED_SIZE = 1.0, (240, 320)


@dataclass
class Agreement:
    """What `classify.py` and `predict.py` found on the same clips."""

    num_clips: int
    num_same: int  # top classes
    difference: float  # mean over the clips of the largest difference of a probability
    num_unread: int  # clips that one of the two cannot read
    are_random: bool  # pictures of noise, since the validation clips are not here
    windows_per_second: float  # on one core

    def sentence(self) -> str:
        """Return the figures."""
        what = "clips of noise (the validation clips are not here)"
        what = what if self.are_random else "validation clips"
        unread = f"; {self.num_unread} more could not be read" if self.num_unread else ""
        return (
            f"On {self.num_clips} {what}, classify.py and predict.py have the same top class in "
            f"{self.num_same}, and probabilities differ by {self.difference:.4f} on average"
            f"{unread}. On one core, onnxruntime computes {self.windows_per_second:.1f} windows "
            "per second."
        )

    def raise_if_bad(self) -> None:
        """Raise UserError if the exported network is not that of the checkpoint."""
        if self.num_same < MIN_SAME * self.num_clips or not self.difference <= MAX_DIFFERENCE:
            raise UserError(
                f"the exported network differs from the checkpoint's, so nothing is written: "
                f"{self.sentence()} At least {MIN_SAME:.0%} and at most {MAX_DIFFERENCE} are "
                "expected; try another version of onnxruntime, or eval_precision fp32"
            )


class _Frames:
    """A clip in the place of an array of its frames, of which only those indexed are read."""

    shape = ()

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, rows):
        wanted = np.unique(rows).tolist()
        frames = dict(zip(wanted, self.source.frames_at(wanted), strict=True))
        return [[frames[position] for position in row] for row in rows.tolist()]


def compare(
    network: Path,
    predictor: Predictor,
    validation: Annotations | None,
    on_progress: Callable[[float, str], None],
) -> Agreement:
    """Classify validation clips, or noise if there are none, by both programs.

    on_progress: called with the fraction that is done, and a description.
    """
    classifier, differences, num_same, num_unread = Classifier(network), [], 0, 0
    sources = list(_noise(predictor) if validation is None else _sample(validation))
    for number, clip in enumerate(sources):
        on_progress(number / len(sources), f"comparing clip {number + 1} of {len(sources)}")
        try:
            source = clip if validation is None else clip.open(predictor.config)
            is_film = source.native_rate is not None
            found = classifier(str(clip) if is_film else _Frames(source))
            expected = dict(zip(predictor.classes, predictor.scores(source).whole, strict=True))
        except UNREADABLE:
            num_unread += 1
            continue
        differences.append(max(abs(found[name] - expected[name]) for name in expected))
        num_same += max(found, key=found.get) == max(expected, key=expected.get)
    if not differences:
        raise UserError("none of the validation clips can be read, so nothing can be compared")
    return Agreement(
        len(differences),
        num_same,
        float(np.mean(differences)),
        num_unread,
        validation is None,
        windows_per_second(network, predictor.config.clip_size),
    )


def _sample(validation: Annotations) -> list:
    count = min(MAX_CLIPS, len(validation))
    return [
        validation.clip(index) for index in np.linspace(0, len(validation) - 1, count).astype(int)
    ]


def _noise(predictor: Predictor) -> list[FramesInMemory]:
    rng, length = np.random.default_rng(0), predictor.gesture_length
    return [
        FramesInMemory(list(rng.integers(256, size=(length, *size, 3), dtype=np.uint8)))
        for size in ((120, 160), SPEED_SIZE)
    ]


def windows_per_second(network: Path, num_frames: int) -> float:
    """Return how many windows onnxruntime classifies per second on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    frames = np.zeros((num_frames, *SPEED_SIZE, 3), np.uint8)
    session.run(None, {"frames": frames})
    start, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < SPEED_SECONDS:
        session.run(None, {"frames": frames})
        count += 1
    return count / seconds

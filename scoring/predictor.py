"""Predictors: trained networks that give scores to clips.

Shapes: N clips, K crops and windows of each, T frames, H, W pixels, C colours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from clips.folders import FrameSource
from clips.reading import window_input
from clips.sampling import frames_needed
from config import Config
from model import normalize_clips
from scoring.evaluation import clip_logits
from scoring.loading import CLIPS_AT_ONCE, load_network
from scoring.stack import MIN_PROBABILITY, Stack, is_stack, read_stack, refuse_stacks
from system.errors import UserError

# Scores over time are those of the whole video if it is at most this many windows long, otherwise
# those of overlapping parts.
MAX_GESTURE = 2
LIVE_SECONDS = 3.0  # minimum for a live prediction, and length of a part with sampling segments


@dataclass
class Scores:
    """The scores of one video."""

    classes: list[str]
    whole: np.ndarray  # float [classes], probabilities
    frames: np.ndarray | None = None  # float [T, classes], mean over the parts around each frame

    def top(self, count) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities, in descending order."""
        order = np.argsort(-self.whole, kind="stable")[:count]
        return [(self.classes[index], float(self.whole[index])) for index in order]


@dataclass
class Predictor:
    """A trained network with the config and classes of its checkpoint."""

    config: Config
    classes: list[str]
    network: nn.Module
    device: torch.device
    epoch: int  # that it was saved after

    def inputs(self, windows) -> torch.Tensor:
        """Return uint8 [K, T, H, W, C] as the network takes it, float [K, C, T, H, W]."""
        return normalize_clips(torch.from_numpy(windows), self.device, self.config)

    def scores(self, source: FrameSource, over_time=False) -> Scores:
        """Return the scores that `--eval_only` computes, for a clip of any length.

        over_time: also compute the scores of each frame. Raises FrameError if it cannot be read.
        """
        whole = self.probabilities(window_input(source, None, self.config), 1)[0]
        frames = self._frame_scores(source, whole) if over_time else None
        return Scores(self.classes, whole, frames)

    def _frame_scores(self, source, whole) -> np.ndarray:
        """Return each frame's mean scores over the parts that include it, [T, classes]."""
        spans = self.spans(len(source))
        if len(spans) == 1:
            return np.tile(whole, (len(source), 1))
        frames, counts = np.zeros((len(source), len(self.classes))), np.zeros((len(source), 1))
        for batch in (spans[i : i + CLIPS_AT_ONCE] for i in range(0, len(spans), CLIPS_AT_ONCE)):
            for (start, stop), row in zip(batch, self._of_spans(source, batch), strict=True):
                frames[start:stop] += row
                counts[start:stop] += 1
        return frames / counts

    @property
    def gesture_length(self) -> int:
        """Return the minimum number of frames, at the config's frame rate, of a live prediction."""
        length = frames_needed(self.config)
        return length * self.config.step_size if self.config.sampling == "segments" else length

    def spans(self, num_frames) -> list[tuple[int, int]]:
        """Return first and last frame (excluded) of half overlapping parts, for the scores."""
        length = self.gesture_length
        if self.config.sampling == "segments":  # which have no fixed length
            length = max(length, round(LIVE_SECONDS * self.config.frame_rate))
        if num_frames <= MAX_GESTURE * length:
            return [(0, num_frames)]
        starts = [*range(0, num_frames - length, max(1, length // 2)), num_frames - length]
        return [(start, start + length) for start in starts]

    def _of_spans(self, source, spans) -> np.ndarray:
        config = self.config.model_copy(update={"nclips": 1})  # a part is about a window long
        clips = [window_input(source, span, config) for span in spans]
        return self.probabilities(np.concatenate(clips), len(spans))

    def probabilities(self, windows, num_clips) -> np.ndarray:
        """Return [N, classes], as `--eval_only` computes them; windows: uint8 [N * K, T, H, W, C].

        The K windows of a clip follow each other and are averaged.
        """
        windows = torch.from_numpy(windows)
        logits = clip_logits(self.network, windows, num_clips, self.device, self.config)
        return logits.softmax(1).cpu().numpy()


def load_predictor(path, device) -> Predictor:
    """Load a network; raise UserError if the checkpoint lacks its classes or input."""
    loaded = load_network(path, device)
    epoch = loaded.checkpoint.get("epoch", 0)
    return Predictor(loaded.config, loaded.classes, loaded.network, device, epoch)


def load_predictors(paths, device) -> tuple[list[Predictor], Callable[[list[Scores]], Scores]]:
    """Load several networks, or those of a stack, and the function that combines their scores.

    Raises UserError if their classes differ, or if a stack is given with others.
    """
    combine = averaged
    if len(paths) > 1:
        refuse_stacks(paths)
    elif is_stack(paths[0]):
        stack, paths = read_stack(paths[0])
        combine = partial(stacked, stack)
    predictors = [load_predictor(path, device) for path in paths]
    for path, predictor in zip(paths, predictors, strict=True):
        if predictor.classes != predictors[0].classes:
            raise UserError(f"{path}: its classes are not those of {paths[0]}; they must be equal")
    return predictors, combine


def averaged(scores: list[Scores]) -> Scores:
    """Return the mean scores of several networks for one video."""
    frames = _frames(scores)
    return Scores(
        scores[0].classes,
        np.mean([one.whole for one in scores], axis=0),
        None if frames is None else frames.mean(0),
    )


def stacked(stack: Stack, scores: list[Scores]) -> Scores:
    """Return a stack's scores, from those of its networks for one video."""
    rows, frames = np.stack([one.whole for one in scores])[:, None], _frames(scores)
    if frames is not None:
        rows = np.concatenate([rows, frames], axis=1)  # [M, 1 + T, classes]
    logits = stack.logits(torch.from_numpy(np.log(np.maximum(rows, MIN_PROBABILITY))))
    combined = logits.softmax(1).numpy()
    return Scores(stack.classes, combined[0], None if frames is None else combined[1:])


def _frames(scores: list[Scores]) -> np.ndarray | None:
    """Return the scores at each frame of the first network, [M, T, classes]; None: not computed.

    Frame rates may differ.
    """
    if scores[0].frames is None:
        return None
    num_frames = len(scores[0].frames)
    return np.stack(
        [one.frames[np.arange(num_frames) * len(one.frames) // num_frames] for one in scores]
    )

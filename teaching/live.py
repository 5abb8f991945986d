"""Live predictions of the newest network for the page's camera, forwards and backwards."""

import math
import threading
from collections import deque
from pathlib import Path

import numpy as np
import torch

from clips.frames import FramesInMemory
from scoring.camera import LIVE_SECONDS, SMOOTHING_SECONDS, SURE, shown_at
from scoring.predictor import load_predictor
from system.errors import UserError
from teaching.data_set import decode_jpeg

MAX_GAP = 1.0  # seconds without a frame, after which a new movement begins
MAX_KEPT = 600  # frames


class LiveSession:
    """The camera's last seconds, with the page's times, and their scores.

    A slow machine sends fewer frames; each lasts until the next, so movements keep their speed.
    """

    def __init__(self, checkpoint: Path, device: torch.device):
        self.checkpoint, self.device, self.lock = checkpoint, device, threading.Lock()
        self.predictor, self.turn = None, 0

    def begin(self) -> dict:
        """Load the newest network and forget the frames; return the classes and a turn's number.

        Each request sends the number; a page that begins later takes over. Raises UserError if
        there is no network yet.
        """
        if not self.checkpoint.exists():
            raise UserError("there is no network yet; train one first")
        predictor = load_predictor(self.checkpoint, self.device)
        with self.lock:
            self.predictor, self.turn = predictor, self.turn + 1
            self._forget()
            return {"turn": self.turn, "classes": predictor.classes}

    def _forget(self):
        self.frames = deque(maxlen=MAX_KEPT)  # (seconds, uint8 RGB [H, W, 3])
        self.smooth, self.scored_at = None, 0.0

    def look(self, turn: float, times: list[float], pictures: list[bytes]) -> dict:
        """Add frames, JPEG, with their times in seconds; return scores for the last 3 seconds.

        `scores` is None until there are 3 seconds; `verdict` is the number of a class, or None.
        Raises UserError for frames that are not accepted.
        """
        if not times or len(times) != len(pictures):
            raise UserError(f"{len(pictures)} frames with {len(times)} times; send one per frame")
        decoded = [decode_jpeg(picture) for picture in pictures]
        with self.lock:
            self._check_turn(turn)
            for time, frame in zip(times, decoded, strict=True):
                self._append(time, frame)
            window = self._window()
            if window is None:
                return {"scores": None, "verdict": None}
            scores = self.predictor.scores(window).whole
            keep = math.exp(-(times[-1] - self.scored_at) / SMOOTHING_SECONDS)
            before = scores if self.smooth is None else self.smooth
            self.smooth = keep * before + (1 - keep) * scores
            self.scored_at, best = times[-1], int(self.smooth.argmax())
            return {
                "scores": self.smooth.tolist(),
                "verdict": best if self.smooth[best] >= SURE else None,
            }

    def backwards(self, turn: float) -> dict:
        """Return the scores of the last 3 seconds, and of the same frames in reverse order."""
        with self.lock:
            self._check_turn(turn)
            window = self._window()
            if window is None:
                raise UserError(f"wait until {LIVE_SECONDS:.0f} seconds have been seen")
            reverse = FramesInMemory(window.frames[::-1])
            return {
                "forwards": self.predictor.scores(window).whole.tolist(),
                "backwards": self.predictor.scores(reverse).whole.tolist(),
            }

    def _check_turn(self, turn):
        if turn != self.turn or self.predictor is None:
            raise UserError("another page has taken over; press Start to try here again")

    def _append(self, time, frame):
        if self.frames and time <= self.frames[-1][0]:
            raise UserError("the times of frames must increase")
        if self.frames and time - self.frames[-1][0] > MAX_GAP:
            self._forget()
        self.frames.append((time, frame))
        while len(self.frames) > 1 and time - self.frames[1][0] >= LIVE_SECONDS:
            self.frames.popleft()

    def _window(self) -> FramesInMemory | None:
        """Return the last 3 seconds at the network's frame rate, or None if there are fewer."""
        rate = self.predictor.config.frame_rate
        times = np.array([time for time, _ in self.frames])
        count = round(LIVE_SECONDS * rate)
        shown = shown_at(times, rate, count) if len(times) else []
        return (
            FramesInMemory([self.frames[index][1] for index in shown])
            if len(shown) == count
            else None
        )

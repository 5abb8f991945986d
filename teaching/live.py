"""Live predictions of the newest network for the page's camera, forwards and backwards."""

import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from time import monotonic

import numpy as np
import torch

from clips.frames import FramesInMemory
from scoring.camera import LIVE_SECONDS, SMOOTHING_SECONDS, SURE, shown_at
from scoring.predictor import Predictor, load_predictor
from system.errors import UserError
from teaching.pictures import decode_jpeg

MAX_GAP = 1.0  # seconds without a frame, after which a new movement begins
MAX_KEPT = 600  # frames
CHECK_SECONDS = 3.0  # between looks for a newer network, since loading takes half a second
FILM_RATE = 12.0  # frames per second of the clips that the page sends


class LiveSession:
    """The camera's last seconds, with the page's times, and their scores.

    A slow machine sends fewer frames; each lasts until the next, so movements keep their speed.
    """

    def __init__(self, find_checkpoint: Callable[[], Path], device: torch.device):
        """find_checkpoint: returns the network to try, which need not exist."""
        self.find_checkpoint, self.device, self.lock = find_checkpoint, device, threading.Lock()
        self.predictor, self.turn, self.checked_at = None, 0, -math.inf
        self.newest, self.loading = (None, None), threading.Lock()  # a file's version, its network

    def prepare(self) -> None:
        """Import what takes a second when the first network is loaded, and load the newest one.

        Returns at once if another thread does it.
        """
        if self.loading.acquire(blocking=False):
            try:
                import_module("torch._dynamo")
                with suppress(UserError):  # there is none, or it is damaged, which `begin` reports
                    self._load_newest()
            finally:
                self.loading.release()

    def begin(self) -> dict:
        """Load the newest network and forget the frames; return the classes and a turn's number.

        Each request sends the number; a page that begins later takes over. While a training goes
        on, its newer networks follow by themselves. Raises UserError if there is no network yet.
        """
        predictor = self._load()
        with self.lock:
            self.predictor, self.turn = predictor, self.turn + 1
            self._forget()
            return {"turn": self.turn, "classes": predictor.classes, "sure": SURE}

    def _load(self) -> Predictor:
        with self.loading:
            return self._load_newest()

    def _load_newest(self) -> Predictor:
        """Load the network to try, unless it is the one that was loaded last."""
        checkpoint = self.find_checkpoint()
        try:
            status = checkpoint.stat()
        except FileNotFoundError:
            raise UserError("there is no network yet; train one first") from None
        version = status.st_ino, status.st_mtime_ns, status.st_size  # folders are renamed
        if version != self.newest[0]:
            self.newest = version, load_predictor(checkpoint, self.device)
        return self.newest[1]

    def _follow_training(self):
        """Use a newer network if one is loaded; look for the next one in the background."""
        newest, now = self.newest[1], monotonic()
        if newest is not self.predictor:
            if newest.classes != self.predictor.classes:
                self.smooth = None
            self.predictor = newest
        if now - self.checked_at >= CHECK_SECONDS and not self.loading.locked():
            self.checked_at = now
            threading.Thread(target=self.prepare, daemon=True).start()

    def _forget(self):
        self.frames = deque(maxlen=MAX_KEPT)  # (seconds, uint8 RGB [H, W, 3])
        self.smooth, self.scored_at = None, 0.0

    def look(self, turn: float, times: list[float], pictures: list[bytes]) -> dict:
        """Add frames, JPEG, with their times in seconds; return scores for the last 3 seconds.

        `scores`, smoothed, is None until there are 3 seconds; `classes` are the network's, which
        a new training may change. Raises UserError for frames that are not accepted.
        """
        if not times or len(times) != len(pictures):
            raise UserError(f"{len(pictures)} frames with {len(times)} times; send one per frame")
        decoded = [decode_jpeg(picture) for picture in pictures]
        with self.lock:
            self._check_turn(turn)
            for time, frame in zip(times, decoded, strict=True):
                self._append(time, frame)
            self._follow_training()
            window, classes = self._window(), self.predictor.classes
            if window is None:
                return {"classes": classes, "scores": None}
            scores = self.predictor.scores(window).whole
            keep = math.exp(-(times[-1] - self.scored_at) / SMOOTHING_SECONDS)
            before = scores if self.smooth is None else self.smooth
            self.smooth = keep * before + (1 - keep) * scores
            self.scored_at = times[-1]
            return {"classes": classes, "scores": self.smooth.tolist()}

    def score_film(self, pictures: list[bytes]) -> dict:
        """Return the classes, and the scores of a clip forwards and backwards.

        pictures: its frames, JPEG, 12 per second. Raises UserError if they are not accepted.
        """
        if not pictures:
            raise UserError("the video has no frames")
        predictor, decoded = self._load(), [decode_jpeg(picture) for picture in pictures]
        rate = predictor.config.frame_rate
        count = max(2, round(len(decoded) * rate / FILM_RATE))
        shown = shown_at(np.arange(len(decoded)) / FILM_RATE, rate, count)
        with self.lock:
            return _both_ways(predictor, FramesInMemory([decoded[index] for index in shown]))

    def backwards(self, turn: float) -> dict:
        """Return what `score_film` does, for the last 3 seconds."""
        with self.lock:
            self._check_turn(turn)
            window = self._window()
            if window is None:
                raise UserError(f"wait until {LIVE_SECONDS:.0f} seconds have been seen")
            return _both_ways(self.predictor, window)

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


def _both_ways(predictor, clip: FramesInMemory) -> dict:
    reverse = FramesInMemory(clip.frames[::-1])
    return {
        "classes": predictor.classes,
        "forwards": predictor.scores(clip).whole.tolist(),
        "backwards": predictor.scores(reverse).whole.tolist(),
    }

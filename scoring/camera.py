"""Live classification of what a camera shows: a webcam, or one at an address."""

import json
import math
import re
import sys
import threading
from collections import deque
from datetime import datetime
from time import monotonic

import cv2
import numpy as np

from clips.frames import FramesInMemory
from scoring.predictor import LIVE_SECONDS, Predictor, Scores, averaged
from system.errors import UserError

ROUNDING = 1e-6  # of times, in seconds
# With these, benchmarks/smoothing.py finds that 57 of 60 gestures are recognised, and no wrong one.
SMOOTHING_SECONDS = 0.25  # time constant of the average of scores
SURE = 0.8  # smoothed probability for a verdict
RECONNECT_AFTER = (0, 1, 2, 5, 10, 20, 30, 30, 30)  # seconds before each try
TIMEOUT = 10_000  # of an address, in ms
MAX_EARLY = 10.0  # seconds that a picture may come before its time


class Camera:
    """The last seconds of a camera's pictures, with their times of arrival.

    A thread reads them, so that a slow network delays none and movements keep their speed. A
    camera that sends no more pictures is opened again.
    """

    def __init__(self, address: int | str, seconds: float):
        """Open a camera; raise UserError if there is none. seconds: how long pictures are kept.

        address: a webcam's number, or what OpenCV opens, such as rtsp://... or http://...
        """
        self.address, self.seconds = address, seconds
        self.name = f"--camera {re.sub('//[^/@]*@', '//', str(address))}"  # without a password
        self.pictures = deque()  # (time in seconds, uint8 BGR [H, W, 3])
        self.has_new, self.is_over, self.changed = False, False, threading.Condition()
        self.is_lost, self.start, self.seen = False, None, []
        self.device = self._open()
        if not self.device.isOpened():
            raise UserError(
                f"{self.name}: OpenCV finds no such camera; try another number or address"
            )
        self.thread = threading.Thread(target=self._take_pictures, daemon=True)
        self.thread.start()

    def _open(self):
        self.start = None
        if isinstance(self.address, int):
            return cv2.VideoCapture(self.address)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT]
        return cv2.VideoCapture(self.address, cv2.CAP_FFMPEG, limits)

    def _take_pictures(self):
        try:
            while not self.is_over:
                is_read, picture = self.device.read()
                if not is_read:
                    is_read, picture = self._reconnect()
                if not is_read:
                    return
                self._wait_until_due()
                now = monotonic()
                with self.changed:
                    self.pictures.append((now, picture))
                    while len(self.pictures) > 1 and now - self.pictures[1][0] >= self.seconds:
                        self.pictures.popleft()
                    self.has_new = True
                    self.changed.notify_all()
        finally:
            with self.changed:
                self.is_over = True
                self.changed.notify_all()

    def _reconnect(self) -> tuple[bool, np.ndarray | None]:
        """Open the camera until it sends a picture; return whether it does, and the picture."""
        with self.changed:
            self.pictures.clear()  # a movement would jump over the gap
            self.has_new, self.is_lost = False, True
            self.changed.notify_all()
        for number, seconds in enumerate(RECONNECT_AFTER):
            if number == 1:
                print(f"{self.name}: sends no pictures; trying again", file=sys.stderr, flush=True)
            with self.changed:
                if self.changed.wait_for(lambda: self.is_over, seconds):
                    break
            self.device.release()
            self.device = self._open()
            is_read, picture = self.device.read()
            if is_read:
                print(f"{self.name}: is connected again", file=sys.stderr, flush=True)
                return True, picture
        return False, None

    def _wait_until_due(self):
        """Wait for the time of a picture at an address: some send pictures in bursts."""
        if isinstance(self.address, int):
            return
        due = self.device.get(cv2.CAP_PROP_POS_MSEC) / 1000
        early = due - monotonic() - (self.start or 0.0)
        if self.start is None or not 0 <= early <= MAX_EARLY:
            self.start = due - monotonic()
        else:
            with self.changed:
                self.changed.wait_for(lambda: self.is_over, early)

    def wait_for_more(self, seconds: float) -> bool:
        """Block until there is a new picture and one that is `seconds` older; return False.

        Returns True, once, if the camera was lost meanwhile. Raises UserError if it stays so.
        """

        def is_there():
            if self.is_over or self.is_lost or not self.pictures:
                return self.is_over or self.is_lost
            return self.has_new and self.pictures[-1][0] - self.pictures[0][0] >= seconds - ROUNDING

        with self.changed:
            self.changed.wait_for(is_there)
            if self.is_lost:
                self.is_lost = False
                return True
            if self.is_over:
                raise UserError(f"{self.name}: sends no more pictures")
            self.has_new, self.seen = False, list(self.pictures)
            return False

    def newest(self, frame_rate: float, most: int) -> FramesInMemory:
        """Return at most `most` of the last pictures, resampled to `frame_rate` per second.

        They are those at the end of `wait_for_more`, so that several networks see the same. As in
        a video file, each frame is the picture shown at its time.
        """
        pictures = self.seen
        shown = shown_at(np.array([time for time, _ in pictures]), frame_rate, most)
        return FramesInMemory(
            [cv2.cvtColor(pictures[index][1], cv2.COLOR_BGR2RGB) for index in shown]
        )

    def close(self) -> None:
        """Stop the thread and release the camera."""
        with self.changed:
            self.is_over = True
            self.changed.notify_all()
        self.thread.join(1)
        if not self.thread.is_alive():  # releasing a camera while it is read could crash
            self.device.release()


def shown_at(times: np.ndarray, frame_rate: float, most: int) -> np.ndarray:
    """Return the indices of at most `most` pictures shown at `frame_rate` per second.

    times: of the pictures, in seconds, ascending. Each picture is shown until the next one. The
    last index is that of the newest.
    """
    num_frames = min(most, 1 + int((times[-1] - times[0]) * frame_rate + ROUNDING))
    wanted = times[-1] - np.arange(num_frames)[::-1] / frame_rate
    return np.searchsorted(times, wanted + ROUNDING, side="right") - 1


class Verdict:
    """The class that smoothed scores are sure of, or None."""

    def __init__(self):
        self.name = None
        self.forget()

    def forget(self) -> bool:
        """Begin anew, without a verdict; return whether there was one."""
        was_there, self.name, self.probability = self.name is not None, None, None
        self.smooth, self.scored_at = None, 0.0
        return was_there

    def update(self, scores: Scores, now: float) -> bool:
        """Smooth the scores of a time in seconds; return whether the verdict changed."""
        keep = math.exp(-(now - self.scored_at) / SMOOTHING_SECONDS)
        before = scores.whole if self.smooth is None else self.smooth
        self.smooth, self.scored_at = keep * before + (1 - keep) * scores.whole, now
        best, previous = int(self.smooth.argmax()), self.name
        is_sure = self.smooth[best] >= SURE
        self.name = scores.classes[best] if is_sure else None
        self.probability = float(self.smooth[best]) if is_sure else None
        return self.name != previous

    def show(self, as_json: bool) -> None:
        """Print the verdict and its time on a line, as text or as JSON."""
        now = datetime.now().astimezone()
        if as_json:
            probability = self.probability and round(self.probability, 4)
            row = {"time": now.isoformat(timespec="milliseconds"), "verdict": self.name}
            text = json.dumps(row | {"probability": probability}, ensure_ascii=False)
        else:
            sure = "no verdict" if self.name is None else f"{self.name} {self.probability:.0%}"
            text = f"\r{f'{now:%H:%M:%S}  {sure}':<79}"
        print(text, flush=True)


def live_frames(predictor: Predictor) -> int:
    """Return how many of the last frames, at the config's frame rate, are one live clip."""
    return max(round(LIVE_SECONDS * predictor.config.frame_rate), predictor.gesture_length)


def predict_live(
    predictors: list[Predictor], address: int | str, combine=averaged, as_json=False
) -> None:
    """Print the changes of the verdict on what the camera shows, until Ctrl-C or its end.

    The last seconds are one clip. Without `as_json`, the top classes are on the last line.
    combine: from `load_predictors`. Raises UserError if the camera has gone.
    """
    rates = [predictor.config.frame_rate for predictor in predictors]
    most = [live_frames(predictor) for predictor in predictors]
    least_seconds = max(
        (predictor.gesture_length - 1) / rate
        for rate, predictor in zip(rates, predictors, strict=True)
    )
    camera = Camera(address, max(count / rate for count, rate in zip(most, rates, strict=True)))
    verdict = Verdict()
    try:
        while True:
            if camera.wait_for_more(least_seconds):  # so that no clip is padded
                if verdict.forget():
                    verdict.show(as_json)
                continue
            scores = combine(
                [
                    predictor.scores(camera.newest(rate, count))
                    for predictor, rate, count in zip(predictors, rates, most, strict=True)
                ]
            )
            if verdict.update(scores, monotonic()):
                verdict.show(as_json)
            if not as_json:
                line = "   ".join(f"{name} {100 * value:.0f} %" for name, value in scores.top(3))
                print(f"\r{line:<79}", end="", flush=True)
    finally:
        camera.close()
        if not as_json:
            print()

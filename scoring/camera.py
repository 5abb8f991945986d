"""Live classification of what a webcam shows."""

import threading
from collections import deque
from time import monotonic

import cv2
import numpy as np

from clips.frames import FramesInMemory
from scoring.predictor import LIVE_SECONDS, Predictor, averaged
from system.errors import UserError

ROUNDING = 1e-6  # of times, in seconds


class Camera:
    """The last seconds of a webcam's pictures, with their times of arrival.

    A thread reads them, so that a slow network delays none and movements keep their speed.
    """

    def __init__(self, number: int, seconds: float):
        """Open a camera; raise UserError if there is none. seconds: how long pictures are kept."""
        self.number, self.seconds = number, seconds
        self.device = cv2.VideoCapture(number)
        if not self.device.isOpened():
            raise UserError(f"--camera {number}: OpenCV finds no such camera; try another number")
        self.pictures = deque()  # (time in seconds, uint8 BGR [H, W, 3])
        self.has_new, self.is_over, self.changed = False, False, threading.Condition()
        self.thread = threading.Thread(target=self._take_pictures, daemon=True)
        self.thread.start()

    def _take_pictures(self):
        try:
            while not self.is_over:
                is_read, picture = self.device.read()
                if not is_read:
                    return
                now = monotonic()
                with self.changed:
                    self.pictures.append((now, picture))
                    while len(self.pictures) > 1 and now - self.pictures[1][0] >= self.seconds:
                        self.pictures.popleft()
                    self.has_new = True
                    self.changed.notify()
        finally:
            with self.changed:
                self.is_over = True
                self.changed.notify()

    def wait_for_more(self, seconds: float) -> None:
        """Block until there is a new picture and one that is `seconds` older.

        Raises UserError when the camera stops sending pictures.
        """

        def is_there():
            if self.is_over or not self.pictures:
                return self.is_over
            return self.has_new and self.pictures[-1][0] - self.pictures[0][0] >= seconds - ROUNDING

        with self.changed:
            self.changed.wait_for(is_there)
            if self.is_over:
                raise UserError(f"--camera {self.number}: sends no more pictures")
            self.has_new = False

    def newest(self, frame_rate: float, most: int) -> FramesInMemory:
        """Return at most `most` of the last pictures, resampled to `frame_rate` per second.

        As in a video file, each frame is the picture shown at its time.
        """
        with self.changed:
            pictures = list(self.pictures)
        shown = shown_at(np.array([time for time, _ in pictures]), frame_rate, most)
        return FramesInMemory(
            [cv2.cvtColor(pictures[index][1], cv2.COLOR_BGR2RGB) for index in shown]
        )

    def close(self) -> None:
        """Stop the thread and release the camera."""
        self.is_over = True
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


def predict_live(predictors: list[Predictor], number: int, combine=averaged) -> None:
    """Print the top classes of what the camera shows, until Ctrl-C or a UserError of the camera.

    The last seconds are one clip. combine: from `load_predictors`.
    """
    rates = [predictor.config.frame_rate for predictor in predictors]
    most = [
        max(round(LIVE_SECONDS * rate), predictor.gesture_length)
        for rate, predictor in zip(rates, predictors, strict=True)
    ]
    least_seconds = max(
        (predictor.gesture_length - 1) / rate
        for rate, predictor in zip(rates, predictors, strict=True)
    )
    camera = Camera(number, max(count / rate for count, rate in zip(most, rates, strict=True)))
    try:
        while True:
            camera.wait_for_more(least_seconds)  # so that no clip is padded
            scores = combine(
                [
                    predictor.scores(camera.newest(rate, count))
                    for predictor, rate, count in zip(predictors, rates, most, strict=True)
                ]
            )
            line = "   ".join(f"{name} {100 * value:.0f} %" for name, value in scores.top(3))
            print(f"\r{line:<79}", end="", flush=True)
    finally:
        camera.close()
        print()

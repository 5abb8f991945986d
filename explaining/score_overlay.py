"""GIF and MP4 files of a clip with its top scores over time."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from explaining.pictures import BAR, blank, save_gif, write_text
from scoring.predictor import Scores
from system.errors import UserError

WIDTH, BAR_HEIGHT, NUM_BARS = 320, 22, 3  # pixels
MAX_DENOMINATOR = 10**6  # of a frame rate; 30000/1001 is kept


def save_with_scores(path: Path, source, scores: Scores, frame_rate: float) -> None:
    """Write the whole clip; each frame has the scores of the windows around it.

    path: ends with .gif or .mp4. Raises UserError if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = np.argsort(-scores.whole, kind="stable")[:NUM_BARS]
    pictures = (
        overlay_scores(frame, [(scores.classes[index], row[index]) for index in shown])
        for frame, row in zip(source.frames_at(range(len(source))), scores.frames, strict=True)
    )
    save = save_gif if path.suffix.lower() == ".gif" else save_mp4
    try:
        save(path, pictures, frame_rate)
    except (OSError, av.error.FFmpegError) as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another place"
        ) from None


def overlay_scores(frame: np.ndarray, bars: list[tuple[str, float]]) -> np.ndarray:
    """Return the scaled frame above a bar per (class, probability). uint8 [H, W, 3], even sides."""
    height = max(2, round(frame.shape[0] * WIDTH / frame.shape[1] / 2) * 2)
    picture = blank(height + NUM_BARS * BAR_HEIGHT, WIDTH)
    picture[:height] = cv2.resize(frame, (WIDTH, height), interpolation=cv2.INTER_LINEAR)
    for number, (name, probability) in enumerate(bars):
        top = height + number * BAR_HEIGHT
        right = round(probability * WIDTH)
        cv2.rectangle(picture, (0, top + 2), (right, top + BAR_HEIGHT - 3), BAR, -1)
        write_text(picture, (6, top + BAR_HEIGHT // 2), f"{name} {100 * probability:.0f} %")
    return picture


def save_mp4(path: Path, pictures: Iterable[np.ndarray], frame_rate: float) -> None:
    """Write pictures of one size, uint8 [H, W, 3], as H.264 video."""
    with av.open(f"file:{path}", "w") as container:
        stream = None
        for picture in pictures:
            if stream is None:
                rate = Fraction(frame_rate).limit_denominator(MAX_DENOMINATOR)
                stream = container.add_stream("libx264", rate=rate)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

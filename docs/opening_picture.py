"""The first picture: gestures beside the same frames backwards, with the network's scores.

The clips are drawn for this picture, from seeds that are in neither the training nor the validation
set. At each moment the network sees the frames played so far, at most as many as it was trained
with. Shapes: T frames, H, W pixels.
"""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

import demo_data
from clips.frames import FramesInMemory
from clips.reading import window_input
from clips.sampling import frames_needed
from docs.svg import MIN_TEXT, WIDTH
from explaining.pictures import font
from scoring.predictor import Predictor

# (gesture, seed of the clip, its first frame: in earlier ones the hand is faint)
SHOWN = (("Moving Right", 10972, 2), ("Turning Clockwise", 566, 0))
HEIGHT = 416
SHARPNESS = 2  # pixels of the file for each of GitHub's
FRAME_MS, HOLD_MS = 110, 2400
QUALITY = 45  # of the WebP
LEFT, COLUMN, GAP, GAP_OF_PAIRS = 24, 184, 12, 22
CLIP_TOP, CLIP_HEIGHT, CHART_TOP, CHART_HEIGHT = 104, 126, 266, 60


@dataclass
class Shown:
    """A clip with the network's scores."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    scores: np.ndarray  # float [T, classes], for the frames up to each moment
    classes: list[str]
    backwards: bool

    @property
    def colour_name(self) -> str:
        return "orange" if self.backwards else "blue"


def watch(predictor: Predictor, frames) -> np.ndarray:
    """Return probabilities [T, classes] at each moment, from the frames played until then."""
    most = frames_needed(predictor.config)
    source = FramesInMemory(frames)
    windows = [
        window_input(source, (max(0, stop - most), stop), predictor.config)
        for stop in range(1, len(frames) + 1)
    ]
    return predictor.probabilities(np.concatenate(windows), len(frames))


def shown_clips(predictor: Predictor) -> list[Shown]:
    clips = []
    for gesture, seed, first in SHOWN:
        forwards = demo_data.draw_clip(gesture, np.random.default_rng(seed))[first:]
        for frames in (forwards, forwards[::-1]):
            clips.append(
                Shown(
                    frames,
                    watch(predictor, frames),
                    predictor.classes,
                    backwards=frames is not forwards,
                )
            )
    return clips


def draw_opening(clips: list[Shown], colours) -> bytes:
    """Write an endless animation that begins with its end, which still pictures show. WebP"""
    last = max(len(clip.frames) for clip in clips)
    pictures = [draw_moment(clips, moment, colours) for moment in [last - 1, *range(last - 1)]]
    durations = [HOLD_MS] + [FRAME_MS] * (len(pictures) - 1)
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        quality=QUALITY,
        method=4,
        kmin=0,
        kmax=0,
    )
    return buffer.getvalue()


def draw_moment(clips: list[Shown], moment, colours) -> Image.Image:
    """Draw all clips at frame `moment`; shorter ones stay at their last frame."""
    size = (WIDTH * SHARPNESS, HEIGHT * SHARPNESS)
    picture = Image.new("RGB", size, colours["page"])
    canvas = Canvas(ImageDraw.Draw(picture), colours)
    canvas.card()
    canvas.text(LEFT, 42, "Same frames, other order: another gesture.", 23, bold=True)
    canvas.text(
        LEFT,
        66,
        "A 3D network watches two clips, and the same clips played backwards. "
        "Thick: the class it decides on; thin: the others.",
        13,
        "muted",
    )
    for number, clip in enumerate(clips):
        left = LEFT + number * (COLUMN + GAP) + number // 2 * (GAP_OF_PAIRS - GAP)
        at = min(moment, len(clip.frames) - 1)
        draw_clip(picture, canvas, left, clip, at)
        draw_scores(canvas, left, clip, at)
        draw_verdict(canvas, left, clip, at)
    return picture


def draw_clip(picture, canvas, left, clip: Shown, at) -> None:
    """Draw the frame, its number, and its place in the clip: backwards, from right to left."""
    frame = clip.frames[at]
    wide = round(frame.shape[0] * COLUMN / CLIP_HEIGHT)  # pixels of the frame that are shown
    margin = (frame.shape[1] - wide) // 2
    target = (COLUMN * SHARPNESS, CLIP_HEIGHT * SHARPNESS)
    shown = cv2.resize(frame[:, margin : margin + wide], target, interpolation=cv2.INTER_CUBIC)
    picture.paste(Image.fromarray(shown), (left * SHARPNESS, CLIP_TOP * SHARPNESS))
    count = len(clip.frames)
    place = count - 1 - at if clip.backwards else at
    canvas.text(
        left + 18, CLIP_TOP - 9, "backwards" if clip.backwards else "forwards", 13, clip.colour_name
    )
    canvas.triangle(left, CLIP_TOP - 19, clip.backwards, clip.colour_name)
    canvas.text(left + COLUMN, CLIP_TOP - 9, f"frame {place + 1}", 13, "muted", anchor="rs")
    top, part = CLIP_TOP + CLIP_HEIGHT + 6, COLUMN / count
    canvas.rect(left, top, COLUMN, 5, "faint")
    canvas.rect(left + place * part, top, part, 5, clip.colour_name)


def draw_scores(canvas, left, clip: Shown, at) -> None:
    """Draw the classes' scores up to this moment, that of the final class in colour."""
    bottom = CHART_TOP + CHART_HEIGHT
    for share in (0, 0.5, 1):
        canvas.line(
            [(left, bottom - share * CHART_HEIGHT), (left + COLUMN, bottom - share * CHART_HEIGHT)],
            "faint",
            1,
        )
    canvas.text(left, CHART_TOP - 6, "score", 12, "muted")
    canvas.text(left + COLUMN, CHART_TOP - 6, "100 %", 12, "muted", anchor="rs")
    step = COLUMN / (len(clip.frames) - 1)
    verdict = clip.scores[-1].argmax()
    for index in sorted(range(len(clip.classes)), key=lambda index: index == verdict):
        points = [
            (left + moment * step, bottom - score * CHART_HEIGHT)
            for moment, score in enumerate(clip.scores[: at + 1, index])
        ]
        is_verdict = index == verdict
        canvas.line(points, clip.colour_name if is_verdict else "soft", 3 if is_verdict else 1.2)
        if is_verdict:
            canvas.dot(*points[-1], 4.5, clip.colour_name)


def draw_verdict(canvas, left, clip: Shown, at) -> None:
    """Draw the predicted class at this moment, grey while it is not the final one."""
    best = int(clip.scores[at].argmax())
    colour = clip.colour_name if best == clip.scores[-1].argmax() else "muted"
    kind, _, way = clip.classes[best].partition(" ")
    canvas.text(left, 355, kind, 13, "muted")
    canvas.text(left, 377, way, 18, colour, bold=True)
    canvas.text(
        left + COLUMN,
        355,
        f"{100 * clip.scores[at, best]:.0f} %",
        15,
        colour,
        bold=True,
        anchor="rs",
    )


class Canvas:
    """A canvas in GitHub's pixels and the palette's colours, on a larger picture."""

    def __init__(self, draw: ImageDraw.ImageDraw, colours):
        self.draw, self.colours = draw, colours

    def card(self, height=HEIGHT):
        corners = [0, 0, WIDTH * SHARPNESS - 1, height * SHARPNESS - 1]
        self.draw.rounded_rectangle(
            corners, 8 * SHARPNESS, self.colours["card"], self.colours["edge"], SHARPNESS
        )

    def text(self, x, y, words, size, colour="ink", *, bold=False, anchor="ls"):
        assert size >= MIN_TEXT, words
        place = (x * SHARPNESS, y * SHARPNESS)
        self.draw.text(place, words, self.colours[colour], font(size * SHARPNESS, bold), anchor)

    def rect(self, x, y, width, height, colour):
        corners = [x, y, x + width, y + height]
        self.draw.rectangle([round(corner * SHARPNESS) for corner in corners], self.colours[colour])

    def line(self, points, colour, width):
        places = [(x * SHARPNESS, y * SHARPNESS) for x, y in points]
        if len(places) > 1:
            self.draw.line(places, self.colours[colour], round(width * SHARPNESS), "curve")

    def dot(self, x, y, radius, colour):
        self.draw.circle((x * SHARPNESS, y * SHARPNESS), radius * SHARPNESS, self.colours[colour])

    def triangle(self, x, y, to_the_left, colour):
        tips = (
            [(x + 10, y), (x, y + 5), (x + 10, y + 10)]
            if to_the_left
            else [(x, y), (x + 10, y + 5), (x, y + 10)]
        )
        self.draw.polygon([(x * SHARPNESS, y * SHARPNESS) for x, y in tips], self.colours[colour])

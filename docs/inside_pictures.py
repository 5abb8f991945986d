"""Where a network looks, and the activations of its stages: films of two gestures."""

import io

import numpy as np
from PIL import Image

from clips.annotations import Annotations
from clips.reading import open_clip
from explain import films_of_clip
from explaining.pictures import blank
from scoring.predictor import Predictor

PAIR = ("Moving Right", "Zooming In")
FRAME_MS, QUALITY, GAP = 250, 60, 8


def films_of_pair(predictor: Predictor, annotations: Annotations, names=PAIR) -> list[dict]:
    """The films, by name, of the first clip of each of two classes."""
    labels = [predictor.classes.index(name) for name in names]
    indices = [int(np.flatnonzero(annotations.labels == label)[0]) for label in labels]
    sources = [open_clip(annotations.clip_path(index), predictor.config) for index in indices]
    return [films_of_clip(predictor, source)[2] for source in sources]


def draw_pair(clips: list[dict], name) -> bytes:
    """The films of this name side by side, as an animated WebP."""
    moments = [_side_by_side(pictures) for pictures in zip(*(films[name] for films in clips),
                                                           strict=True)]  # fmt: skip
    first, *others = [Image.fromarray(moment) for moment in moments]
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=others, duration=FRAME_MS, loop=0,
               quality=QUALITY, method=6)
    return file.getvalue()


def _side_by_side(pictures) -> np.ndarray:
    gap = blank(pictures[0].shape[0], GAP)
    parts = [part for picture in pictures for part in (picture, gap)]
    return np.concatenate(parts[:-1], axis=1)

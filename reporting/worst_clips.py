"""The misclassified clips with the highest loss, as small animations for the page.

Shapes: N clips, T frames, H, W pixels.
"""

import base64
import io
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image

from clips.annotations import is_clip_id
from clips.folders import Clip
from clips.frames import FrameError
from clips.packs import open_folder
from clips.reading import eval_transforms, read_windows
from clips.sampling import eval_positions, frames_apart
from config import Config
from scoring.results import SavedLogits
from system.errors import UserError

NUM_CLIPS = 12
# Limits that keep the page below 3 MB.
MAX_SIDE, MAX_FRAMES, MAX_BYTES = 128, 32, 150_000
QUALITIES = (75, 40, 1)  # tried in turn while a picture is too large
EFFORT = 2  # of 6; more takes three times as long and saves 5 %
MIN_FRAME_MS = 20  # browsers slow down shorter frames


@dataclass
class WrongClip:
    """A misclassified clip, its prediction, and its pictures."""

    id: str
    true: str
    predicted: str
    true_confidence: float  # 0..1
    confidence: float  # in the prediction
    loss: float
    moving: str = ""  # data URIs; empty if `problem` is set
    still: str = ""
    size: tuple[int, int] = (0, 0)  # width and height
    problem: str = ""


def worst_clips(saved: SavedLogits, folder, config: Config | None) -> list[WrongClip]:
    """Return the misclassified clips with the highest loss, at most NUM_CLIPS, worst first.

    folder, config: where the clips are and how to read them; None: no pictures.
    """
    clips = [_wrong_clip(saved, index) for index in _worst(saved)]
    folder = open_folder(folder) if config else None
    for clip in clips if config else ():
        try:
            if not is_clip_id(clip.id):
                raise FrameError("its id is not a path below the data folder")
            frames, milliseconds = input_frames(folder.clip(clip.id), config)
        except UserError as error:
            clip.problem = str(error)
        else:
            clip.size = frames.shape[2], frames.shape[1]
            clip.moving, clip.still = moving_picture(frames, milliseconds), still(frames)
    return clips


def _worst(saved) -> list[int]:
    losses = -saved.logits.double().log_softmax(1).gather(1, saved.labels[:, None])[:, 0]
    is_wrong = (saved.logits.argmax(1) != saved.labels) & ~saved.logits.isnan().any(1)
    order = torch.argsort(losses, descending=True, stable=True)
    return order[is_wrong[order]][:NUM_CLIPS].tolist()


def _wrong_clip(saved, index) -> WrongClip:
    log_probabilities = saved.logits[index].double().log_softmax(0)
    true, predicted = int(saved.labels[index]), int(saved.logits[index].argmax())
    confidences = log_probabilities.exp()
    return WrongClip(
        saved.ids[index],
        saved.classes[true],
        saved.classes[predicted],
        float(confidences[true]),
        float(confidences[predicted]),
        -float(log_probabilities[true]),
    )


# --- pictures ----------------------------------------------------------------------------------


def input_frames(clip: Clip, config: Config) -> tuple[np.ndarray, float]:
    """Return the RGB input of the network for a clip, and the milliseconds per frame.

    uint8 [T, H, W, 3]: the middle window and the centre crop, reduced in size and length. Raises
    FrameError if the clip cannot be read.
    """
    source = clip.open(config)
    positions = eval_positions(len(source), config)
    middle = len(positions) // 2
    frames = np.empty((1, *config.clip_shape, 3), np.uint8)
    read_windows(source, positions[middle : middle + 1], eval_transforms(config)[:1], frames)
    every = -(-config.clip_size // MAX_FRAMES)
    seconds = every * frames_apart(len(source), config) / config.frame_rate
    return smaller(frames[0, ::every]), 1000 * seconds


def smaller(frames: np.ndarray) -> np.ndarray:
    """Return `frames` scaled down until the longer side is MAX_SIDE; smaller ones are unchanged."""
    height, width = frames.shape[1:3]
    factor = MAX_SIDE / max(height, width)
    if factor >= 1:
        return frames
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def moving_picture(frames: np.ndarray, milliseconds: float) -> str:
    """Return a looping WebP as a data URI. frames: uint8 [T, H, W, 3]."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    for quality in QUALITIES:
        data = _webp(
            first,
            quality,
            save_all=True,
            append_images=others,
            loop=0,
            duration=max(MIN_FRAME_MS, round(milliseconds)),
        )
        if len(data) <= MAX_BYTES:
            break
    return _data_uri(data)


def still(frames: np.ndarray) -> str:
    """Return the middle frame as a data URI, for readers who prefer reduced motion."""
    return _data_uri(_webp(Image.fromarray(frames[len(frames) // 2]), QUALITIES[0]))


def _webp(picture, quality, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=EFFORT, **options)
    return buffer.getvalue()


def _data_uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()

"""Pictures of the page's clips: JPEGs that are received and sent, thumbnails, frames of films."""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from clips.films import FILM_SUFFIXES
from clips.folders import open_clip
from clips.frames import FrameError, decode_frame
from clips.reading import distinct_frames
from config import Config
from system.errors import UserError

MAX_FRAMES, MAX_PIXELS = 120, 640 * 480  # of a clip
CLIP_HEIGHT, QUALITY = 120, 92  # maximum in pixels, and of the JPEGs, as the page makes them
STRIP_FRAMES, STRIP_HEIGHT = 12, 60  # of a thumbnail
JPEG_MAGIC = b"\xff\xd8\xff"


def decode_jpeg(picture: bytes) -> np.ndarray:
    """Return a JPEG as uint8 RGB [H, W, 3]. Raises UserError if it is damaged or too large."""
    if not picture.startswith(JPEG_MAGIC):
        raise UserError("only JPEG pictures are accepted")
    return decode_frame(picture, MAX_PIXELS)


def encode_clip(frames) -> list[bytes]:
    """Return uint8 RGB frames [H, W, 3] as JPEGs at most 120 pixels high; none is enlarged."""
    jpegs = []
    for frame in frames:
        height, width = frame.shape[:2]
        if height > CLIP_HEIGHT:
            size = max(1, round(width * CLIP_HEIGHT / height)), CLIP_HEIGHT
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        jpegs.append(simplejpeg.encode_jpeg(np.ascontiguousarray(frame), QUALITY))
    return jpegs


def frames_of_film(name: str, content: bytes, config: Config) -> list[bytes]:
    """Return the frames of a film that the browser cannot play, as `encode_clip` does.

    name: of its file. Raises UserError if it cannot be read, or is too long for a clip.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in FILM_SUFFIXES:
        raise UserError(f"{name}: not a video, judging by its name")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"film{suffix}"
        path.write_bytes(content)
        try:
            source = open_clip(path, config)
            if len(source) > MAX_FRAMES:
                seconds = MAX_FRAMES / config.frame_rate
                raise UserError(f"{name}: lasts longer than {seconds:.0f} s; cut it first")
            return encode_clip(source.frames_at(range(len(source))))
        except FrameError as error:
            raise UserError(str(error).replace(str(path), name)) from None


def thumbnail(path, config: Config) -> bytes:
    """Return 12 frames of a clip side by side, each 60 pixels high, as a JPEG.

    Raises UserError if the clip cannot be read.
    """
    source = open_clip(path, config)
    positions = np.linspace(0, len(source) - 1, STRIP_FRAMES).astype(int)
    frames = {
        place: frame for places, frame in distinct_frames(source, positions) for place in places
    }
    height, width = frames[0].shape[:2]
    size = (max(1, round(STRIP_HEIGHT * width / height)), STRIP_HEIGHT)
    tiles = [
        cv2.resize(frames[place], size, interpolation=cv2.INTER_AREA)
        for place in range(STRIP_FRAMES)
    ]
    return simplejpeg.encode_jpeg(np.hstack(tiles), QUALITY)

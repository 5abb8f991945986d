"""Where a network looks, and the activations of its stages: films of clips, light and dark."""

import io

import numpy as np
from PIL import Image, ImageDraw

from clips.annotations import Annotations
from clips.reading import window_input
from docs.opening_picture import SHARPNESS, Canvas
from docs.svg import WIDTH
from explaining.grad_cam import grad_cam
from explaining.layer_films import scaled
from explaining.layers import stage_outputs
from explaining.pictures import enlarged, heat
from scoring.predictor import Predictor

PAIR = ("Moving Right", "Zooming In")
FRAME_MS, QUALITY = 250, 60
SIDE, TOP = 182, 92  # pixels of GitHub's: of a frame, and above it
BARS_HEIGHT, CAM_HEIGHT = 44, 386
TILE, TILES, ROW, ROWS_TOP = 60, 8, 78, 172  # of the activations


class Inside:
    """A clip inside a network: its frames, Grad-CAM, and the output of each stage."""

    def __init__(self, predictor: Predictor, source):
        clip = window_input(source, (0, len(source)), predictor.config)[:1]  # [1, T, H, W, C]
        outputs, logits = stage_outputs(predictor.network, predictor.inputs(clip))
        scores = logits[0].softmax(0)
        predicted = int(scores.argmax())
        self.frames = clip[0, ..., :3]  # uint8 [T, H, W, 3]
        self.title = f"{predictor.classes[predicted]}, {100 * scores[predicted]:.0f} %"
        self.map, _ = grad_cam(outputs, logits, predicted, clip.shape[1:4])  # [T, H, W]
        self.outputs = {
            name: output.volume().detach().float().cpu().numpy() for name, output in outputs.items()
        }  # [C, T, H, W]


def inside_of_pair(predictor: Predictor, annotations: Annotations, names=PAIR) -> list[Inside]:
    """Return the first clip of each of two classes."""
    labels = [predictor.classes.index(name) for name in names]
    indices = [int(np.flatnonzero(annotations.labels == label)[0]) for label in labels]
    return [Inside(predictor, annotations.clip(index).open(predictor.config)) for index in indices]


def draw_grad_cam(clips: list[Inside], colours) -> bytes:
    """Draw two clips, each beside where the network looks, and below, how much per frame. WebP"""
    return _film([_cam_moment(clips, moment, colours) for moment in range(len(clips[0].frames))])


def _cam_moment(clips, moment, colours) -> Image.Image:
    picture, canvas = _card(CAM_HEIGHT, colours)
    canvas.text(24, 34, "Where the network looks", 17, bold=True)
    canvas.text(
        24,
        55,
        "Bright: what speaks for the class (Grad-CAM). Bars: how much of it is in "
        "each frame; blue: the frame shown.",
        13,
        "muted",
    )
    for number, clip in enumerate(clips):
        left = 24 + number * (2 * SIDE + 54)
        canvas.text(left, TOP - 8, clip.title, 15, "blue", bold=True)
        plain = enlarged(clip.frames[moment], SIDE * SHARPNESS, smooth=True)
        warm = heat(enlarged(clip.map[moment], SIDE * SHARPNESS, smooth=True))
        for place, shown in enumerate((plain, np.maximum(plain // 2, warm))):
            corner = (round((left + place * (SIDE + 6)) * SHARPNESS), TOP * SHARPNESS)
            picture.paste(Image.fromarray(shown), corner)
        counts = clip.map.sum((1, 2))
        step = (2 * SIDE + 6) / len(counts)
        for frame, count in enumerate(counts / max(counts.max(), 1e-12)):
            height = max(2, count * BARS_HEIGHT)
            canvas.rect(
                left + frame * step,
                TOP + SIDE + 12 + BARS_HEIGHT - height,
                step - 4,
                height,
                "blue" if frame == moment else "soft",
            )
            canvas.text(
                left + frame * step + step / 2 - 2,
                TOP + SIDE + BARS_HEIGHT + 30,
                str(frame + 1),
                12,
                "muted",
                anchor="ms",
            )
    canvas.text(24, CAM_HEIGHT - 16, "frame", 13, "muted")
    return picture


def draw_activations(clip: Inside, colours) -> bytes:
    """Draw a clip, and the eight channels of each stage that vary most. WebP"""
    return _film([_stages_moment(clip, moment, colours) for moment in range(len(clip.frames))])


def _stages_moment(clip, moment, colours) -> Image.Image:
    picture, canvas = _card(ROWS_TOP + ROW * len(clip.outputs) + 12, colours)
    canvas.text(24, 34, "What comes out of each stage", 17, bold=True)
    canvas.text(24, 55, "Bright is high. Eight channels of each block, then vectors.", 13, "muted")
    canvas.text(24, 112, "input", 15, bold=True)
    canvas.text(24, 132, f"frame {moment + 1} of {len(clip.frames)}", 13, "muted")
    shown = enlarged(clip.frames[moment], 90 * SHARPNESS, smooth=True)
    picture.paste(Image.fromarray(shown), (190 * SHARPNESS, 70 * SHARPNESS))
    canvas.text(300, 120, clip.title, 15, "blue", bold=True)
    for number, (name, values) in enumerate(clip.outputs.items()):
        top = ROWS_TOP + ROW * number
        canvas.text(24, top + 28, name.replace("_", " "), 15, bold=True)
        canvas.text(24, top + 48, ", ".join(map(str, values.shape)), 13, "muted")
        _draw_stage(picture, values, moment * values.shape[1] // len(clip.frames), top)
    return picture


def _draw_stage(picture, values, time, top) -> None:
    """Draw the maps of the channels that vary most, or the entries of a vector as cells."""
    if values[0, 0].size == 1:
        cells = scaled(values[:, time, 0, 0], values)
        tiles = [
            (
                np.resize(cells, (max(1, len(cells) // 32), min(32, len(cells)))),
                (TILES * (TILE + 6) - 6, TILE),
            )
        ]
    else:
        chosen = np.argsort(-values.std((1, 2, 3)), kind="stable")[:TILES]
        tiles = [
            (scaled(values[channel, time], values[channel]), (TILE, TILE)) for channel in chosen
        ]
    for place, (tile, (width, height)) in enumerate(tiles):
        shown = Image.fromarray(heat(tile)).resize(
            (width * SHARPNESS, height * SHARPNESS), Image.Resampling.NEAREST
        )
        picture.paste(shown, ((190 + place * (TILE + 6)) * SHARPNESS, (top + 4) * SHARPNESS))


def _card(height, colours) -> tuple[Image.Image, Canvas]:
    picture = Image.new("RGB", (WIDTH * SHARPNESS, height * SHARPNESS), colours["page"])
    canvas = Canvas(ImageDraw.Draw(picture), colours)
    canvas.card(height)
    return picture, canvas


def _film(moments) -> bytes:
    first, *others = moments
    file = io.BytesIO()
    first.save(
        file,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=FRAME_MS,
        loop=0,
        quality=QUALITY,
        method=4,
    )
    return file.getvalue()

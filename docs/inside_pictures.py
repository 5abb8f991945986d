"""Where a network looks, and the activations of its stages: films of clips, light and dark."""

import io

import numpy as np
from PIL import Image, ImageDraw

import demo_data
from clips.frames import FramesInMemory
from clips.reading import window_input
from docs.opening_picture import SHARPNESS, Canvas
from docs.svg import WIDTH
from explaining.grad_cam import grad_cam, overlay, with_random_weights
from explaining.layer_films import scaled
from explaining.layers import stage_outputs
from explaining.pictures import enlarged, heat
from scoring.predictor import Predictor

# Gestures, and the first two seeds of a clip that is long enough and does not pass the end of the
# object's path, where it fades out and comes back at the start.
SHOWN = (("Moving Right", 68), ("Zooming In", 87))
FRAME_MS, QUALITY = 250, 60
SIDE, GAP, TOP = 150, 8, 112  # pixels of GitHub's: of a frame, between frames, and above them
ROW_HEIGHT, BARS_LEFT, BARS_HEIGHT = SIDE + 42, 532, 36
CAM_HEIGHT = TOP + ROW_HEIGHT + SIDE + 24
TILE, TILES, ROW, ROWS_TOP = 60, 8, 78, 172  # of the activations


class Inside:
    """A clip inside a network: its frames, Grad-CAM, and the output of each stage."""

    def __init__(self, predictor: Predictor, untrained: Predictor, frames):
        """untrained: the same network with random weights; frames: uint8 [T, H, W, 3]."""
        source = FramesInMemory(frames)
        clip = window_input(source, (0, len(source)), predictor.config)[:1]  # [1, T, H, W, C]
        outputs, logits = stage_outputs(predictor.network, predictor.inputs(clip))
        scores = logits[0].softmax(0)
        predicted = int(scores.argmax())
        self.frames = clip[0, ..., :3]  # uint8 [T, H, W, 3]
        self.title = f"{predictor.classes[predicted]}, {100 * scores[predicted]:.0f} %"
        self.map, stage = grad_cam(outputs, logits, predicted, clip.shape[1:4])  # [T, H, W]
        others = stage_outputs(untrained.network, untrained.inputs(clip))
        self.random_map, _ = grad_cam(*others, predicted, clip.shape[1:4], stage)
        self.outputs = {
            name: output.volume().detach().float().cpu().numpy() for name, output in outputs.items()
        }  # [C, T, H, W]


def inside_of_shown(predictor: Predictor) -> list[Inside]:
    """Return a clip of each gesture of SHOWN."""
    untrained = with_random_weights(predictor)
    return [
        Inside(predictor, untrained, demo_data.draw_clip(gesture, np.random.default_rng(seed)))
        for gesture, seed in SHOWN
    ]


def draw_grad_cam(clips: list[Inside], colours) -> bytes:
    """Draw two clips, each beside the maps of trained and of random weights. WebP"""
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
    names = ("clip", "trained weights", "random weights")
    for place, name in enumerate(names):
        canvas.text(24 + place * (SIDE + GAP), TOP - 30, name, 14, bold=True)
    for number, clip in enumerate(clips):
        top = TOP + number * ROW_HEIGHT
        canvas.text(24, top - 8, clip.title, 14, "blue", bold=True)
        panels = [enlarged(clip.frames[moment], SIDE * SHARPNESS, smooth=True)]
        for line, values in enumerate((clip.map, clip.random_map)):
            panels.append(overlay(clip.frames[moment], values[moment], SIDE * SHARPNESS))
            bars_top = top + line * (SIDE // 2 + 5)
            canvas.text(BARS_LEFT, bars_top + 8, names[1 + line], 13, "muted")
            _draw_bars(canvas, bars_top + 14, values.sum((1, 2)), moment)
        for place, panel in enumerate(panels):
            corner = (round((24 + place * (SIDE + GAP)) * SHARPNESS), top * SHARPNESS)
            picture.paste(Image.fromarray(panel), corner)
    return picture


def _draw_bars(canvas, top, counts, moment) -> None:
    """Draw a bar per frame, with its number below."""
    step = (WIDTH - 24 - BARS_LEFT) / len(counts)
    for frame, count in enumerate(counts / max(counts.max(), 1e-12)):
        left, height = BARS_LEFT + frame * step, max(2, count * BARS_HEIGHT)
        colour = "blue" if frame == moment else "soft"
        canvas.rect(left, top + BARS_HEIGHT - height, step - 4, height, colour)
        canvas.text(
            left + step / 2 - 2, top + BARS_HEIGHT + 15, str(frame + 1), 12, "muted", anchor="ms"
        )


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

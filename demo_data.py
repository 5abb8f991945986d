"""Draw the built-in gesture data set: folders of JPEG frames and CSVs, laid out like Jester.

    python demo_data.py --output data/demo

Eight gestures in four opposing pairs. The gestures of a pair show the same pictures in another
order, so that neither a single frame nor shuffled frames can distinguish them:

- a pair is one function from a phase (a point on a circle, in cycles) to a picture;
- a clip starts at a uniformly distributed phase and continues at a speed whose distribution is
  the same in reverse, so the phase of every single frame is uniformly distributed, too;
- the opposing gesture is the same clip played backwards.

Everything else that changes within a clip (noise, flicker) is independent for each frame.

Legend: `T` frames, `H` height, `W` width, `P` points of an outline. Pictures are RGB. x grows to
the right and y downwards, so a growing angle turns clockwise.
"""

import argparse
import colorsys
import json
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from system.errors import UserError, exit_status

VERSION = 1  # increase it when the same arguments give other pictures
CLIPS_PER_SET = {"train": 800, "validation": 160, "test": 40}
MARKER = "demo.json"  # in the output folder: its arguments, and whether it is complete

HEIGHT = 100  # pixels, as in Jester
WIDTHS = (100, 176)  # pixels, both included
LENGTHS = (12, 40)  # frames, both included; 12 per second
SPEEDS = (0.035, 0.07)  # cycles per frame
SIZES = (24, 35)  # diameter of the object, in pixels
PATH = 62  # pixels that a moving object travels in one cycle
ORBIT = 21  # pixels from the centre to a turning object
FADE = 0.14  # part of a cycle in which an object fades in, and in which it fades out
JPEG_QUALITY = 85


# --- The gestures: from a phase to a pose ---------------------------------------------------------


class Pose(NamedTuple):
    """Position and orientation of the object, relative to its place of rest."""

    x: float = 0.0  # pixels
    y: float = 0.0  # pixels
    scale: float = 1.0
    turn: float = 0.0  # radians
    opacity: float = 1.0


def fade(phase):
    """Return an opacity that is 0 at the end of the cycle, which hides the jump back."""
    rise = min(1.0, min(phase, 1.0 - phase) / FADE)
    return rise * rise * (3.0 - 2.0 * rise)


def orbit(phase):
    angle = 2 * np.pi * phase
    return Pose(ORBIT * np.cos(angle), ORBIT * np.sin(angle), turn=angle)


# The gesture with increasing phase, the same played backwards, and the pose at a phase.
PAIRS = (
    ("Moving Right", "Moving Left", lambda p: Pose(x=PATH * (p - 0.5), opacity=fade(p))),
    ("Moving Down", "Moving Up", lambda p: Pose(y=PATH * (p - 0.5), opacity=fade(p))),
    ("Zooming In", "Zooming Out", lambda p: Pose(scale=0.5 * 3.6**p, opacity=fade(p))),
    ("Turning Clockwise", "Turning Counterclockwise", orbit),
)
GESTURES = tuple(gesture for *both, _ in PAIRS for gesture in both)


def draw_phases(num_frames, rng):
    """Draw the phase of each frame, `[T]` in cycles, not wrapped to [0, 1).

    A wave of random phase modulates the speed; reversed, it is another such wave.
    """
    wave = np.cos(2 * np.pi * (rng.uniform(0.02, 0.06) * np.arange(num_frames - 1) + rng.random()))
    speed = rng.uniform(*SPEEDS) * np.exp(0.15 * wave)
    return rng.random() + np.concatenate([[0.0], np.cumsum(speed)])


# --- The appearance: what differs between clips of the same gesture -------------------------------


def rotation(angle):
    """Return the matrix `[2, 2]` that rotates rows (x, y) clockwise by `angle` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def ellipse(x, y, radius_x, radius_y, power=1.0):
    """Return an outline `[P, 2]`; a `power` well below 1 makes it a rounded rectangle."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.sign(circle) * np.abs(circle) ** power * [radius_x, radius_y] + [x, y]


def hand():
    """Return the outlines of a palm, four fingers and a thumb."""
    finger = ellipse(0, -0.84, 0.14, 0.48, 0.7)
    fingers = [finger @ rotation(angle) + [0, 0.28] for angle in (-0.45, -0.15, 0.15, 0.45)]
    thumb = ellipse(0, -0.6, 0.15, 0.4, 0.7) @ rotation(1.2) + [0, 0.52]
    return [ellipse(0, 0.32, 0.5, 0.48, 0.8), *fingers, thumb]


def grown(outline):
    """Return the outline, enlarged by the width of the rim."""
    outwards = outline - outline.mean(axis=0)
    return outline + 0.12 * outwards / np.linalg.norm(outwards, axis=1, keepdims=True)


STAR = np.array([[0, -1.2 + 0.6 * (k % 2)] @ rotation(k * np.pi / 5) for k in range(10)])
# Outlines of the body (radius about 1), and of a mark on it that shows its orientation.
SHAPES = (
    ([ellipse(0, 0, 1, 1)], ellipse(0, -0.5, 0.3, 0.3)),
    ([ellipse(0, 0, 0.9, 0.9, 0.25)], ellipse(-0.4, -0.4, 0.3, 0.3, 0.25)),
    ([STAR], ellipse(0, -0.3, 0.28, 0.28)),
    (hand(), ellipse(0, 0.88, 0.46, 0.18, 0.4)),
)


@dataclass
class Style:
    """The appearance of one clip."""

    background: np.ndarray  # uint8 [H, W, 3]
    layers: list  # (outline [P, 2], its colour), from the back to the front
    radius: float  # of the object, in pixels
    centre: np.ndarray  # [2], place of rest: x and y in pixels
    angle: float  # of the object, in radians
    tilt: float  # of the camera, in radians; also rotates the object's path
    brightness: float
    flicker: float  # standard deviation of the brightness from frame to frame
    noise: float  # standard deviation in grey levels


def draw_pattern(width, rng):
    """Draw a pattern `[H, W]` from 0 to 1: gradient, stripes, checks, soft blobs or clouds."""
    y, x = np.mgrid[:HEIGHT, :width].astype(np.float32) / HEIGHT
    angle, kind = rng.uniform(0, 2 * np.pi), rng.integers(5)
    along, across = (np.cos(angle + turn) * x + np.sin(angle + turn) * y for turn in (0, np.pi / 2))
    if kind == 0:
        pattern = along
    elif kind == 1:
        pattern = np.tanh(3 * np.sin(rng.uniform(12, 30) * along))
    elif kind == 2:
        frequency = rng.uniform(12, 24)
        pattern = np.tanh(6 * np.sin(frequency * along) * np.sin(frequency * across))
    elif kind == 3:
        spots = rng.uniform(0, (width / HEIGHT, 1), (4, 2))
        pattern = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / 0.06) for u, v in spots)
    else:
        pattern = cv2.resize(rng.random((5, 7)), (width, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return (pattern - pattern.min()) / np.ptp(pattern)


def colour(hue, lightness, saturation):
    """Return R, G and B from 0 to 255; the arguments go from 0 to 1, and hues wrap."""
    return tuple(255 * part for part in colorsys.hls_to_rgb(hue % 1, lightness, saturation))


def draw_style(rng):
    """Draw the appearance of a clip.

    The lightness of object and background, the mean of the maximum and minimum of R, G and B,
    differs by 0.26 or more, so that at least one of the three does.
    """
    width = int(rng.integers(*WIDTHS, endpoint=True))
    hue, lightness = rng.random(), rng.uniform(0.25, 0.75)
    contrast, saturation = rng.uniform(0.04, 0.1), rng.uniform(0.15, 0.6)
    dark = np.array(colour(hue, lightness - contrast, saturation))
    light = np.array(colour(hue + rng.uniform(-0.15, 0.15), lightness + contrast, saturation))
    background = dark + (light - dark) * draw_pattern(width, rng)[..., None]
    step = 0.36 if lightness < 0.5 else -0.36
    hue += rng.uniform(0.25, 0.75)
    rim_colour = colour(hue, lightness + 0.4 * step, 0.5)
    body_colour = colour(hue, lightness + step, 0.85)
    mark_colour = colour(hue + 0.12, lightness + 0.55 * step, 0.7)
    body, mark = SHAPES[rng.integers(len(SHAPES))]
    layers = [(grown(part), rim_colour) for part in body]
    layers += [(part, body_colour) for part in body] + [(mark, mark_colour)]
    return Style(
        background=background.astype(np.uint8),
        layers=layers,
        radius=rng.uniform(*SIZES) / 2,
        centre=np.array([width, HEIGHT]) / 2 + rng.uniform(-6, 6, 2),
        angle=rng.uniform(-0.5, 0.5),
        tilt=rng.uniform(-0.14, 0.14),
        brightness=rng.uniform(0.8, 1.1),
        flicker=rng.uniform(0.0, 0.025),
        noise=rng.uniform(1.0, 6.0),
    )


# --- The pictures ---------------------------------------------------------------------------------


def draw_picture(pose, style):
    """Return the picture of a pose before noise and flicker, uint8 `[H, W, 3]`."""
    place = style.centre + [pose.x, pose.y] @ rotation(style.tilt)
    matrix = style.radius * pose.scale * rotation(style.angle + style.tilt + pose.turn)
    picture = style.background.copy()
    for outline, fill in style.layers:
        # OpenCV takes whole numbers, here sixteenths of a pixel (the 4).
        points = np.rint(16 * (outline @ matrix + place)).astype(np.int32)
        cv2.fillPoly(picture, [points], fill, cv2.LINE_AA, 4)
    return cv2.addWeighted(picture, pose.opacity, style.background, 1 - pose.opacity, 0)


def draw_clip(gesture, rng):
    """Draw a clip of one of the `GESTURES`, uint8 `[T, H, W, 3]`.

    With the same state of `rng`, the opposing gesture has the same frames in reverse order.
    """
    forward, _, pose_at = next(pair for pair in PAIRS if gesture in pair[:2])
    style = draw_style(rng)
    num_frames = int(rng.integers(*LENGTHS, endpoint=True))
    spread = style.noise * 12**0.5  # of uniform noise, three times as fast as Gaussian noise
    frames = []
    for phase in draw_phases(num_frames, rng):
        picture = draw_picture(pose_at(phase % 1), style)
        gain = style.brightness * (1 + style.flicker * rng.standard_normal())
        grain = cv2.cvtColor(rng.random(picture.shape[:2], np.float32), cv2.COLOR_GRAY2RGB)
        # gain * picture + spread * (grain - 0.5), rounded and kept within 0 to 255
        frames.append(cv2.addWeighted(picture, gain, grain, spread, -spread / 2, dtype=cv2.CV_8U))
    return np.stack(frames if gesture == forward else frames[::-1])


def draw_clip_of_set(seed, set_name, index):
    """Return (gesture, clip) of one clip of a set, which depends on the arguments only."""
    gesture = GESTURES[index % len(GESTURES)]
    set_number = list(CLIPS_PER_SET).index(set_name)
    return gesture, draw_clip(gesture, np.random.default_rng([seed, set_number, index]))


# --- The files ------------------------------------------------------------------------------------


def write_clip(folder, seed, set_name, index):
    """Write a clip of a set as `folder`/00001.jpg and so on; return its number of frames."""
    _, clip = draw_clip_of_set(seed, set_name, index)
    folder.mkdir(parents=True)
    for number, frame in enumerate(clip, start=1):
        picture = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        (folder / f"{number:05d}.jpg").write_bytes(jpeg)
    return len(clip)


def write_lists(output, clips, ids):
    """Write labels.csv, and the CSV of each set in order of clip id: `id;label`, or test `id`."""
    (output / "labels.csv").write_text("".join(f"{gesture}\n" for gesture in GESTURES))
    lines = {set_name: [] for set_name in CLIPS_PER_SET}
    for clip_id, (set_name, index) in sorted(zip(ids, clips, strict=True)):
        label = "" if set_name == "test" else f";{GESTURES[index % len(GESTURES)]}"
        lines[set_name].append(f"{clip_id}{label}\n")
    for set_name, rows in lines.items():
        (output / f"{set_name}.csv").write_text("".join(rows))


def make_room(output, recipe, force):
    """Prepare `output` for a set, unless it contains that set; return whether to draw it.

    Raises UserError if the folder contains anything else: `force` replaces a set of this program.
    """
    output.mkdir(parents=True, exist_ok=True)
    try:
        found = json.loads((output / MARKER).read_text())
        is_ours = found["made_by"] == recipe["made_by"]
    except (OSError, ValueError, TypeError, KeyError):
        is_ours = False
    if any(output.iterdir()) and not is_ours:
        raise UserError(f"{output}: contains other files; give another --output")
    if is_ours and not force:
        num_clips = len(list((output / "frames").glob("*")))
        if found == recipe | {"complete": True} and num_clips == sum(recipe["clips"].values()):
            return False
        raise UserError(
            f"{output}: contains a set that is incomplete or has other arguments; replace it "
            "with --force, or give another --output"
        )
    (output / MARKER).write_text(json.dumps(recipe | {"complete": False}))
    shutil.rmtree(output / "frames", ignore_errors=True)  # other files in the folder are kept
    return True


def write_data_set(output, clips_per_set=CLIPS_PER_SET, seed=0, force=False, processes=None):
    """Write the data set to the folder `output`; return its number of frames.

    Returns 0, and writes nothing, if the folder contains this set and `force` is off. Raises
    UserError if it contains anything else; `force` replaces a set of this program only.
    """
    output = Path(output)
    clips = [(set_name, i) for set_name, count in clips_per_set.items() for i in range(count)]
    if not clips or min(seed, *clips_per_set.values()) < 0:
        raise UserError(
            "--seed, --train_clips, --validation_clips, --test_clips: must be 0 or more, and one "
            "number of clips above 0"
        )
    recipe = {"made_by": "demo_data.py", "version": VERSION, "seed": seed, "clips": clips_per_set}
    if not make_room(output, recipe, force):
        return 0
    # Shuffled, so that ids do not reveal the gesture.
    ids = np.random.default_rng([seed, len(CLIPS_PER_SET)]).permutation(len(clips)) + 1
    write_lists(output, clips, ids.tolist())

    # Not forked: a fork of a program with threads of OpenCV or PyTorch can deadlock.
    context = multiprocessing.get_context("spawn")
    processes = processes or min(8, os.cpu_count() or 1)
    folders = [output / "frames" / str(clip_id) for clip_id in ids]
    with ProcessPoolExecutor(processes, context, cv2.setNumThreads, (1,)) as pool:
        tasks = zip(*clips, strict=True)
        lengths = pool.map(write_clip, folders, repeat(seed), *tasks, chunksize=8)
        num_frames = sum(tqdm(lengths, "clips", len(clips), disable=not sys.stderr.isatty()))
    (output / MARKER).write_text(json.dumps(recipe | {"complete": True}))
    return num_frames


def main(arguments=None):
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description="Draw the built-in gesture data set.")
    parser.add_argument(
        "--output", default="data/demo", help="folder to write (default: %(default)s)"
    )
    for set_name, count in CLIPS_PER_SET.items():
        flag, meaning = f"--{set_name}_clips", f"number of {set_name} clips (default: %(default)s)"
        parser.add_argument(flag, type=int, default=count, help=meaning)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random numbers (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing demo data set")
    options = parser.parse_args(arguments)
    return exit_status(lambda: draw_data_set(options))


def draw_data_set(options):
    """Write the data set of the command's options, and print what was written."""
    start = time.perf_counter()
    counts = {set_name: getattr(options, f"{set_name}_clips") for set_name in CLIPS_PER_SET}
    num_frames = write_data_set(options.output, counts, options.seed, options.force)
    if num_frames == 0:
        print(f"{options.output} already contains this data set")
        return
    clips = ", ".join(f"{count} {set_name}" for set_name, count in counts.items())
    seconds = time.perf_counter() - start
    print(f"wrote {clips} clips ({num_frames:,} frames) to {options.output} in {seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(main())

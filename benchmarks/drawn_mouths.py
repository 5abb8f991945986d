"""Draw mouths that say one of 26 letters: a set on which no recipe was chosen.

    python benchmarks/drawn_mouths.py data/mouths
    python train.py --data data/mouths

A letter is a movement from start to end: how far the mouth opens, and how wide it is. Five people
say each letter four times for training, two others three times for validation. People differ in
colour, texture, size, place and angle of their mouth; clips in speed, place, light and noise.
"""

import argparse
import string
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import cv2
import numpy as np

SIDE, BORDER = 64, 16  # pixels of a frame, and around it while it is drawn
SETS = {"train": (5, 4), "val": (2, 3)}  # people, and clips of each letter
SEED = 5
CENTRES, WIDTH = np.array([0.2, 0.4, 0.6, 0.8]), 0.12  # of a letter's movements, in its duration
FRACTION = 4  # binary digits behind the point of OpenCV's coordinates


class Person:
    """How a person's mouth looks."""

    def __init__(self, rng):
        self.skin = rng.uniform(90, 230, 3)
        self.lip = np.clip(self.skin * rng.uniform(0.5, 0.95, 3), 0, 255)
        self.size, self.angle = rng.uniform(0.75, 1.3), rng.uniform(-12, 12)
        self.rest = rng.uniform([2, 12], [6, 17])  # pixels: half of its height and of its width
        self.extent = rng.uniform([4, 2.5], [7, 5])  # pixels by which it moves
        self.place = rng.uniform(-6, 6, 2)
        side = SIDE + 2 * BORDER
        texture = rng.normal(0, 1, (side, side, 3))
        texture = cv2.GaussianBlur(texture, (0, 0), rng.uniform(1, 4))
        self.background = self.skin + texture * (rng.uniform(5, 20) / texture.std())
        self.has_teeth, self.lip_width = rng.random() < 0.5, rng.uniform(2.5, 5)

    def draw(self, opening: float, widening: float, place, light: float) -> np.ndarray:
        """Return a picture of the mouth, float64 [H, W, 3] with a border."""
        picture = self.background + light
        height, width = self.rest + self.extent * (opening, widening)
        height, width = max(0.5, height) * self.size, max(6, width) * self.size
        x, y = (place + self.place + BORDER + SIDE / 2) * 2**FRACTION

        def fill(centre_y, axes, colour):
            centre, axes = (int(x), int(centre_y)), [int(axis * 2**FRACTION) for axis in axes]
            colour = [float(value) for value in colour]
            cv2.ellipse(
                picture, centre, axes, self.angle, 0, 360, colour, -1, cv2.LINE_AA, FRACTION
            )

        fill(y, (width + self.lip_width, height + self.lip_width), self.lip)
        fill(y, (width, height), (25, 20, 20))
        if self.has_teeth and height > 4:
            fill(y - 0.6 * height * 2**FRACTION, (0.6 * width, 0.25 * height), (230, 230, 225))
        return picture


def draw_clip(person: Person, letter: np.ndarray, rng) -> list[np.ndarray]:
    """Return the frames uint8 [H, W, 3]; letter: how far each of its movements goes, [4, 2]."""
    num_frames = int(rng.integers(18, 29))
    times = np.linspace(0, 1, num_frames)
    times += 0.05 * np.sin(2 * np.pi * (times * rng.uniform(0.5, 1.5) + rng.random()))
    times += rng.normal(0, 0.02)
    shares = np.exp(-(((times[:, None] - CENTRES) / WIDTH) ** 2))  # [T, 4]
    movements = (shares @ letter) * rng.normal(1, 0.12, (1, 2))
    movements += rng.normal(0, 0.12, (num_frames, 2))
    place, light = rng.normal(0, 1.5, 2), rng.normal(0, 8)
    frames = []
    for opening, widening in movements:
        picture = person.draw(opening, widening, place, light)[BORDER:-BORDER, BORDER:-BORDER]
        picture = picture + rng.normal(0, 4, picture.shape)
        frames.append(np.clip(picture, 0, 255).astype(np.uint8))
    return frames


def draw_set(folder: Path) -> int:
    """Write the clips as folders of JPEGs, `train/A/person 1, clip 1/00001.jpg`; count them."""
    rng, num_clips = np.random.default_rng(SEED), 0
    letters = {name: rng.normal(0, 1, (4, 2)) for name in string.ascii_uppercase}
    for set_name, (num_people, num_repeats) in SETS.items():
        for number in range(1, num_people + 1):
            person = Person(rng)
            for name, letter in letters.items():
                for repeat in range(1, num_repeats + 1):
                    clip = folder / set_name / name / f"person {number}, clip {repeat}"
                    clip.mkdir(parents=True, exist_ok=True)
                    for place, frame in enumerate(draw_clip(person, letter, rng), 1):
                        cv2.imwrite(str(clip / f"{place:05d}.jpg"), frame)
                    num_clips += 1
    return num_clips


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where to write, such as data/mouths")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    print(f"{draw_set(parse_arguments().folder)} clips")

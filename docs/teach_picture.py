"""Draw teach.webp: the page of teach.py in Chromium, whose camera sees a built-in gesture.

    python docs/teach_picture.py --data FOLDER

If FOLDER is new, clips of Moving Right and Moving Left are drawn, and the page trains on them; the
camera then shows shapes that are in none of them. The picture begins at the
second section.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import cv2
import numpy as np
from driven_browser import Browser, write_camera
from PIL import Image
from teach_page import served

import demo_data
from teaching.pictures import encode_clip

GESTURE, OPPOSITE, HANDS = "Moving Right", "Moving Left", (0, 1)
CLIPS_EACH, FIRST_SEED = 20, 100  # of the clips that are drawn for a new folder
TRAINING_SECONDS = 1800  # at most
SIZE, QUALITY, MAX_BYTES = (1100, 1000), 80, 300_000
# Where the picture begins: above the second section.
TOP = "document.querySelector('[aria-labelledby=train-title]').getBoundingClientRect().top - 16"


def add_clips(data_set) -> None:
    """Add CLIPS_EACH drawn clips of both gestures."""
    for number in range(CLIPS_EACH):
        for place, gesture in enumerate((GESTURE, OPPOSITE)):
            rng = np.random.default_rng([FIRST_SEED + number, place])
            data_set.add(gesture, encode_clip(demo_data.draw_clip(gesture, rng)))


def draw(data: Path, output: Path) -> None:
    """Open the page of a trained data set, let it recognise the gesture, and play it backwards."""
    frames = [
        cv2.resize(frame, (320, 240))
        for seed in HANDS
        for frame in demo_data.draw_clip(GESTURE, np.random.default_rng(seed))
    ]
    with tempfile.TemporaryDirectory() as folder:
        camera = write_camera(Path(folder) / "camera.y4m", np.stack(frames), 12)
        picture = Path(folder) / "page.png"
        with served(data.resolve()) as server, Browser(camera) as page:
            is_new = not server.data_set.counts()
            if is_new:
                add_clips(server.data_set)
            page.open(server.address)
            page.until("document.body.dataset.ready")
            if is_new:
                page.js("$('train').click()")
                page.until("training.state === 'done'", TRAINING_SECONDS)
            page.until("!isOff('try')")
            page.js(f"$('name').value = '{OPPOSITE}'; $('try').click()")
            page.until(f"$('verdict').textContent === '{GESTURE}'")
            page.js("$('backwards').click()")
            page.until("$('reverse').textContent")
            assert f"backwards: “{OPPOSITE}”" in page.js("$('reverse').textContent")
            page.until(f"$('verdict').textContent === '{GESTURE}'")
            page.screenshot(picture, *SIZE)  # it sets the size, on which the places depend
            top = page.js(f"Math.floor({TOP})")
            height = page.js("document.documentElement.scrollHeight") - top
            page.screenshot(picture, SIZE[0], height)
            page.js(f"scrollTo(0, {top})")  # the camera's picture stays in sight
            page.screenshot(picture, SIZE[0], height)
        content = io.BytesIO()
        shown = Image.open(picture).convert("RGB")
        shown = shown.crop((0, shown.height - height, *shown.size))
        shown.save(content, "WEBP", quality=QUALITY, method=6)
    assert len(content.getvalue()) < MAX_BYTES
    output.write_bytes(content.getvalue())
    print(f"{output}: {len(content.getvalue()) / 1000:.0f} kB")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a new one, or one that teach.py has trained, with Moving Right and Moving Left",
    )
    parser.add_argument(
        "--output",
        "-o",
        type=Path,
        default=Path(__file__).with_name("teach.webp"),
        metavar="FILE",
        help="(%(default)s)",
    )
    options = parser.parse_args(arguments)
    draw(options.data, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

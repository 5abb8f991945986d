"""Draw teach.webp: the page of teach.py in Chromium, whose camera sees a built-in gesture.

    python docs/teach_picture.py --data FOLDER

The network in FOLDER has learnt Moving Right and Moving Left by the same two hands, as
tests/teaching/test_whole_loop.py teaches them.
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

GESTURE, OPPOSITE, HANDS = "Moving Right", "Moving Left", (0, 1)
SIZE, QUALITY, MAX_BYTES = (1100, 1000), 80, 300_000


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
            page.open(server.address)
            page.until("!isOff('try')")
            page.js(f"$('name').value = '{OPPOSITE}'; $('try').click()")
            page.until(f"$('verdict').textContent === '{GESTURE}'")
            page.js("$('backwards').click()")
            page.until("$('reverse').textContent")
            assert f"backwards: “{OPPOSITE}”" in page.js("$('reverse').textContent")
            page.until(f"$('verdict').textContent === '{GESTURE}'")
            page.screenshot(picture, *SIZE)
        content = io.BytesIO()
        Image.open(picture).convert("RGB").save(content, "WEBP", quality=QUALITY, method=6)
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
        help="that teach.py has trained, with Moving Right and Moving Left",
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

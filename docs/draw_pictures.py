"""Draws every picture of the README, from the project's own code and a run of its quickstart.

    python docs/draw_pictures.py --checkpoint trainings/quickstart/model_best.pth.tar
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from docs.convolution_pictures import draw_conv2d, draw_conv3d

DOCS = Path(__file__).parent


def main(arguments=None):
    (DOCS/"conv2d.svg").write_text(draw_conv2d())
    (DOCS/"conv3d.svg").write_text(draw_conv3d())


if __name__ == "__main__":
    sys.exit(main())

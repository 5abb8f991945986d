"""Draw all pictures of the README, from the project's code and a quickstart run.

    python docs/draw_pictures.py --checkpoint trainings/quickstart/model_best.pth.tar

`curves` also needs the run's `history.csv`, beside the checkpoint, and `time-probe` the run's
validation set. `reference-curve.csv` is the published reference run on Jester.
"""

import argparse
import sys
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from clips.annotations import read_annotations
from docs import chart_pictures as charts
from docs.convolution_pictures import draw_conv2d, draw_conv3d, draw_slices
from docs.inside_pictures import draw_activations, draw_grad_cam, inside_of_shown
from docs.opening_picture import draw_opening, shown_clips
from docs.shape_picture import draw_shapes
from docs.time_pictures import (
    draw_cases,
    draw_learnt_kernels,
    draw_receptive_field,
    draw_two_layers,
)
from explaining import time_probe
from reporting.palette import DARK, LIGHT
from scoring.predictor import load_predictor
from system.config_file import load_config
from system.device import choose_device, prepare
from system.errors import UserError, exit_status

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
MAX_BYTES = 1_000_000


class Sources:
    """The data that pictures are drawn from, each computed when first needed."""

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint

    @cached_property
    def predictor(self):
        if self.checkpoint is None:
            raise UserError("--checkpoint: this picture needs one; train configs/quickstart.json")
        device = choose_device("cpu")
        prepare(device, "auto", deterministic=False)
        return load_predictor(self.checkpoint, device)

    @cached_property
    def shown_clips(self):
        return shown_clips(self.predictor)

    @cached_property
    def validation_clips(self):
        folder, csv_path = self.predictor.config.set_paths("validation")
        return read_annotations(csv_path, folder, self.predictor.classes)

    @cached_property
    def time_probe(self):
        return time_probe.probe(self.predictor, self.validation_clips)

    @cached_property
    def inside(self):
        return inside_of_shown(self.predictor)

    @property
    def own_history(self):
        _ = self.predictor  # raises UserError if the checkpoint is wrong
        return charts.read_rows(Path(self.checkpoint).parent / "history.csv")

    @property
    def reference_history(self):
        return charts.read_rows(DOCS / "reference-curve.csv")

    @property
    def tutorial_config(self):
        return load_config(DOCS.parent / "configs" / "config.json")


NUM_WORDS = 57  # training clips per class, on average: 457 of 8 classes


def _results(name):
    return charts.read_results(RESULTS / f"{name}.json")


def _words_per_class():
    """Return what `draw_clips_per_class` takes, of the words said by mouths."""
    chosen, random = (
        _results(f"{name}_lips8_curve")["rows"] + _results(f"{name}_lips8{ending}")["rows"][:1]
        for name, ending in (("pretrained", "_chosen"), ("few_clips", ""))
    )
    whole = _results("few_clips_lips8")["baselines"]
    linear = [row.get("baselines", whole)["a linear model"] for row in random]
    curves = {"kernel_ridge + linear": chosen, "from random weights": random}
    return curves, linear, NUM_WORDS


PICTURES = {
    "opening-light.webp": lambda sources: draw_opening(sources.shown_clips, LIGHT),
    "opening-dark.webp": lambda sources: draw_opening(sources.shown_clips, DARK),
    "conv2d.svg": lambda sources: draw_conv2d(),
    "conv3d.svg": lambda sources: draw_conv3d(),
    "slices.svg": lambda sources: draw_slices(),
    "cases.svg": lambda sources: draw_cases(),
    "two-layers.svg": lambda sources: draw_two_layers(),
    "receptive-field.svg": lambda sources: draw_receptive_field(sources.tutorial_config),
    "shapes.svg": lambda sources: draw_shapes(sources.tutorial_config),
    "kernels.svg": lambda sources: draw_learnt_kernels(sources.predictor.network),
    "reference.svg": lambda sources: charts.draw_reference(sources.reference_history),
    "curves.svg": lambda sources: charts.draw_curves(
        sources.reference_history, sources.own_history
    ),
    "time-probe.svg": lambda sources: charts.draw_time_probe(sources.time_probe),
    "grad-cam-light.webp": lambda sources: draw_grad_cam(sources.inside, LIGHT),
    "grad-cam-dark.webp": lambda sources: draw_grad_cam(sources.inside, DARK),
    "activations-light.webp": lambda sources: draw_activations(sources.inside[0], LIGHT),
    "activations-dark.webp": lambda sources: draw_activations(sources.inside[0], DARK),
    "approaches.svg": lambda sources: charts.draw_approaches(_results("approaches_lips8")),
    "clips-per-class.svg": lambda sources: charts.draw_clips_per_class(*_words_per_class()),
    "remedies.svg": lambda sources: charts.draw_remedies(
        _results("few_clips_parts"), "Underfitting: what 40 epochs give"
    ),
}


def draw_pictures(options) -> None:
    """Write the pictures named in options.only, or all; print each with its size."""
    sources = Sources(options.checkpoint)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only or PICTURES:
        picture = PICTURES[name](sources)
        content = picture.encode() if isinstance(picture, str) else picture
        assert len(content) < MAX_BYTES, name
        (options.output / name).write_bytes(content)
        print(f"{options.output / name}: {len(content) / 1000:.0f} kB")


def main(arguments=None) -> int:
    """Run the command; return the exit status, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", "-c", metavar="FILE", help="checkpoint of a quickstart run")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PICTURES,
        metavar="NAME",
        help="one or more of " + ", ".join(PICTURES),
    )
    parser.add_argument(
        "--output", "-o", type=Path, default=DOCS, metavar="FOLDER", help="(%(default)s)"
    )
    options = parser.parse_args(arguments)
    return exit_status(lambda: draw_pictures(options))


if __name__ == "__main__":
    sys.exit(main())

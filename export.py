"""Export a trained network to ONNX: `python export.py --checkpoint FILE --output gestures.onnx`.

The exported network takes uint8 clips, so using it needs no code of this project. Its output in
onnxruntime is compared with that of the checkpoint's network.
"""

import argparse
import sys
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model import normalize_clips
from scoring.predictor import Predictor, load_predictor
from system.errors import UserError, exit_status

CPU = torch.device("cpu")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # that no other command needs
MAX_DIFFERENCE = 1e-4  # of a probability
EXAMPLE = """\
import numpy, onnxruntime
session = onnxruntime.InferenceSession({path!r})
classes = session.get_modelmeta().custom_metadata_map["classes"].split("\\n")
clips = numpy.zeros({shape}, numpy.uint8)  # [N, T, H, W, C], RGB, any N
(probabilities,) = session.run(None, {{"clips": clips}})
print(classes[probabilities[0].argmax()], probabilities[0].max())"""


class FromBytes(nn.Module):
    """Normalization, network and softmax: uint8 [N, T, H, W, C] -> probabilities [N, classes]."""

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.network, self.config = predictor.network, predictor.config

    def forward(self, clips):
        return self.network(normalize_clips(clips, CPU, self.config)).softmax(1)


def export(checkpoint: str, path: Path, program_path: Path | None = None) -> str:
    """Write the ONNX file and return example code that uses it.

    program_path: where to write a torch.export program of the network, too.
    Raises UserError if the network cannot be exported, or if the exported one differs.
    """
    _check_packages()
    predictor = load_predictor(checkpoint, CPU)
    config = predictor.config
    if config.num_channels != 3:
        raise UserError(
            f"{checkpoint}: {config.model} takes optical flow, which the exported network cannot "
            "compute; export a network that takes RGB only"
        )
    shape = (*config.clip_shape, 3)
    clips = torch.randint(256, (2, *shape), dtype=torch.uint8)
    network = FromBytes(predictor).eval().requires_grad_(False)
    program = torch.export.export(network, (clips,), dynamic_shapes=({0: torch.export.Dim("N")},))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the exporters, about their own code
        if program_path:
            torch.export.save(program, program_path)
        onnx_program = torch.onnx.export(
            program, (clips,), input_names=["clips"], output_names=["probabilities"], verbose=False
        )
    onnx_program.model.metadata_props["classes"] = "\n".join(predictor.classes)
    onnx_program.save(str(path))
    check(path, program.module())
    return EXAMPLE.format(path=str(path), shape=(1, *shape))


def _check_packages() -> None:
    try:
        for name in PACKAGES:
            import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed; run `python -m pip install -r requirements-export.txt`"
        ) from None


def check(path: Path, network: nn.Module) -> None:
    """Raise UserError if the ONNX file and `network` differ on random clips, for several N."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    clip_shape = session.get_inputs()[0].shape[1:]
    for num_clips in (1, 3):
        clips = torch.randint(256, (num_clips, *clip_shape), dtype=torch.uint8)
        with torch.inference_mode():
            expected = network(clips).numpy()
        (found,) = session.run(None, {"clips": clips.numpy()})
        difference = np.abs(found - expected).max()
        if difference > MAX_DIFFERENCE:
            raise UserError(
                f"{path}: probabilities from onnxruntime and PyTorch differ by {difference:.1e}; "
                "do not use the file; try another version of onnxruntime"
            )


def main(arguments=None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", "-c", required=True, metavar="FILE")
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="FILE.onnx")
    parser.add_argument("--program", type=Path, metavar="FILE.pt2", help="for torch.export.load")
    options = parser.parse_args(arguments)

    def run():
        example = export(options.checkpoint, options.output, options.program)
        print(f"{options.output}: matches the checkpoint in onnxruntime. To use it:\n\n{example}")

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())

"""The exported graph: from uint8 frames of any size to probabilities.

Shapes: T frames of a window, H, W pixels of a frame, K crops, h, w pixels of a crop, 3 colours.
"""

import warnings

import onnx
import torch
from onnx import TensorProto, compose, helper
from torch import nn

from clips.reading import CROP_PLACES
from config import Config
from model import normalize_clips, views_of
from scoring.predictor import Predictor
from system.errors import UserError

CPU = torch.device("cpu")
OPSET = 20
EXAMPLE_SIZE = (37, 53)  # of a frame, to trace with; any


class Crops(nn.Module):
    """Scale and crop a frame as `clips.transforms.eval_transform` does, whatever its size.

    Only the rows and columns of the crop are computed, so that all shapes after the first gather
    are constants. Means over areas are differences of cumulative sums: each pixel is added once.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.height, self.crop = config.frame_height, config.crop
        self.places = CROP_PLACES[config.ncrops]

    def forward(self, frame):
        """Map a frame, uint8 [H, W, 3], to its crops, uint8 [K, h, w, 3]."""
        old = [torch.full((), side, dtype=torch.float64) for side in frame.shape[:2]]
        new = old if self.height is None else self._scaled_size(*old)
        is_shrunk = new[0] < old[0]
        pixels, crops = frame.double(), []
        for place in self.places:
            crop = pixels
            for axis, first in enumerate(self._corner(*new, place)):
                crop = _resample(
                    crop, axis, old[axis], new[axis], first, self.crop[axis], is_shrunk
                )
            # OpenCV rounds halves up where it shrinks to half; elsewhere, there are few.
            crops.append((crop + 0.5).floor().clamp(0, 255).to(torch.uint8))
        return torch.stack(crops)

    def _scaled_size(self, height, width):
        """Return the height and width of `clips.transforms.scale_to_height`."""
        scaled = torch.full((), self.height, dtype=torch.float64)
        return scaled, (width * self.height / height).round().clamp(min=1)

    def _corner(self, height, width, place):
        """Return the top and left edge of `clips.transforms.crop_at`."""
        rest = height - self.crop[0], width - self.crop[1]
        centre = [(side / 2).round() for side in rest]
        if place == 0.5:
            return centre
        is_wide = rest[1] >= rest[0]
        ends = [(place * side).round() for side in rest]
        return (torch.where(is_wide, centre[0], ends[0]), torch.where(is_wide, ends[1], centre[1]))


def _resample(pixels, axis, old, new, first, count, is_shrunk):
    """Return `count` pixels from number `first` on, of `pixels` scaled from `old` to `new`.

    Shrinking takes means over areas (OpenCV's INTER_AREA), enlarging interpolates (INTER_LINEAR).
    Pixels outside are 0. axis: 0 or 1 of float [H, W, 3].
    """
    shape = (-1, 1, 1) if axis == 0 else (-1, 1)
    scale, numbers = old / new, first + torch.arange(count)
    sums = pixels.cumsum(axis)

    def take(values, places):
        return values.index_select(axis, places.clamp(min=0).minimum(old - 1).long())

    def sum_before(place):  # over all pixels, and a part of one, before a place
        place = place.clamp(min=0).minimum(old)
        whole = place.floor()
        before = take(sums, whole - 1) * (whole > 0).double().view(shape)
        return before + take(pixels, whole) * (place - whole).view(shape)

    area = (sum_before((numbers + 1) * scale) - sum_before(numbers * scale)) / scale
    place = ((numbers + 0.5) * scale - 0.5).clamp(min=0).minimum(old - 1)
    left, share = take(pixels, place.floor()), (place - place.floor()).view(shape)
    line = left + (take(pixels, place.floor() + 1) - left) * share
    inside = ((numbers >= 0) & (numbers < new)).double().view(shape)
    return torch.where(is_shrunk | (scale == 1), area, line) * inside


class FromCrops(nn.Module):
    """Normalize, apply the network, average: uint8 [T, K, h, w, 3] -> probabilities [classes]."""

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.network, self.config = predictor.network, predictor.config

    def forward(self, crops):
        clips = normalize_clips(crops.transpose(0, 1), CPU, self.config)
        return self.network(views_of(clips, self.config.nviews)).softmax(1).mean(0)


def build_graph(predictor: Predictor, checkpoint) -> onnx.ModelProto:
    """Return the model: `frames`, uint8 [T, H, W, 3] -> `probabilities`, float [classes].

    A scan over the frames scales one after the other, so that large ones need little memory.
    checkpoint: its path, for messages. Raises UserError for a network that takes optical flow.
    """
    config = predictor.config
    if config.num_channels != 3:
        raise UserError(
            f"{checkpoint}: {config.model} takes optical flow, which the exported network cannot "
            "compute; export a network that takes RGB only"
        )
    size = [torch.export.Dim("H", min=2), torch.export.Dim("W", min=2)]
    frame = torch.zeros(*EXAMPLE_SIZE, 3, dtype=torch.uint8)
    one = _to_onnx(Crops(config), frame, "frame", "crop", ({0: size[0], 1: size[1]},))
    crops = torch.zeros(config.clip_size, config.ncrops, *config.crop, 3, dtype=torch.uint8)
    network = FromCrops(predictor).eval().requires_grad_(False)
    try:
        rest = _to_onnx(network, crops, "crops", "probabilities", None)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(
            f"{checkpoint}: PyTorch {torch.__version__} cannot export {config.model}: {reason}; "
            "export another network, or try another version of PyTorch"
        ) from error
    return _joined(one, rest, config.clip_size)


def _to_onnx(module, example, name, result, dynamic_shapes) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the exporters, about their own code
        program = torch.export.export(module, (example,), dynamic_shapes=dynamic_shapes)
        return torch.onnx.export(
            program,
            (example,),
            input_names=[name],
            output_names=[result],
            opset_version=OPSET,
            verbose=False,
        ).model_proto


def _joined(one: onnx.ModelProto, rest: onnx.ModelProto, num_frames: int) -> onnx.ModelProto:
    """Return the model that applies `one` to each frame, and `rest` to all results."""
    one = compose.add_prefix(one, "frame/")
    (crop,) = one.graph.output
    shape = [num_frames, "H", "W", 3]
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, shape)
    crops = onnx.ValueInfoProto(name="all_crops", type=crop.type)
    crops.type.tensor_type.shape.dim.insert(
        0, onnx.TensorShapeProto.Dimension(dim_value=num_frames)
    )
    scan = helper.make_node("Scan", ["frames"], ["all_crops"], body=one.graph, num_scan_inputs=1)
    graph = helper.make_graph([scan], "scaled", [frames], [crops])
    first = helper.make_model(graph, opset_imports=one.opset_import, ir_version=rest.ir_version)
    return compose.merge_models(first, rest, [("all_crops", rest.graph.input[0].name)])

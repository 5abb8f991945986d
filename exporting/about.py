"""What an exported network says of itself: metadata for programs, and a model card for people."""

import datetime
import json
import math
import textwrap
from collections import Counter
from pathlib import Path

import onnxruntime

from clips.annotations import Annotations, read_annotations
from config import FRAME_MODELS, IMAGENET_WEIGHTS, Config
from exporting.checking import Agreement
from scoring.camera import SMOOTHING_SECONDS, SURE, live_frames
from scoring.predictor import Predictor
from system.errors import UserError
from training.checkpoint import training_set
from training.run_folder import versions


def read_set(config: Config, set_name: str, class_names) -> Annotations | None:
    """Return the clips of a set of the checkpoint's config, or None if they are not here."""
    folder, csv_path = config.set_paths(set_name)
    try:
        return read_annotations(csv_path, folder, class_names, with_groups=False)
    except (UserError, OSError):
        return None


def describe(predictor: Predictor, checkpoint: dict, train, validation) -> dict:
    """Return what a caller of the exported network needs, and what it was trained on.

    train, validation: annotations, or None. Clips are not counted if the training clips have
    changed since the training: then the validation clips may have, too.
    """
    if train is None or training_set(checkpoint)[0] not in (None, train.digest()):
        train = validation = None
    config, frames = predictor.config, live_frames(predictor)
    return {
        "classes": predictor.classes,
        "frame_rate": config.frame_rate,
        "sampling": config.sampling,
        "frames": config.clip_size,
        "step": config.step_size,
        "windows": config.nclips,
        "frame_height": config.frame_height,
        "crop": list(config.crop),
        "crops": config.ncrops,
        "live": {
            "seconds": frames / config.frame_rate,
            "frames": frames,
            "smoothing_seconds": SMOOTHING_SECONDS,
            "threshold": SURE,
        },
        "training_clips": _per_class(train, predictor.classes),
        "validation": _score(checkpoint.get("history", []), validation),
        "network": {
            "model": config.model,
            "members": config.members,
            "backbone": config.backbone if {*config.networks} & {*FRAME_MODELS} else None,
            "pretrained": config.pretrained and Path(config.pretrained).name,
            "parameters": sum(each.numel() for each in predictor.network.parameters()),
            "epoch": predictor.epoch,
        },
        "versions": versions() | {"onnxruntime": onnxruntime.__version__},
        "exported": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _per_class(annotations: Annotations | None, classes) -> dict[str, int] | None:
    if annotations is None:
        return None
    counts = Counter(annotations.labels.tolist())
    return {name: counts[label] for label, name in enumerate(classes)}


def _score(history: list[dict], annotations: Annotations | None) -> dict | None:
    """Return the validation accuracy of the checkpoint's last epoch, in percent, if it has one."""
    row = history[-1] if history else {}
    if not math.isfinite(row.get("val_top1", math.nan)):
        return None
    interval = [row["val_top1_low"], row["val_top1_high"]] if "val_top1_low" in row else None
    return {
        "top1": row["val_top1"],
        "interval_95": interval,
        "clips": None if annotations is None else len(annotations),
    }


# --- the model card -----------------------------------------------------------------------------

CARD = """\
# {title}

A network that classifies videos of movements: {classes}. It works without the program that \
trained it.

## Use

- In a browser: run `python -m http.server` in this folder, and open <http://localhost:8000>. \
`index.html` classifies what a camera shows, and videos. {runtime} Pictures never leave the \
browser. Any static host will do; a camera needs localhost or https.
- In a terminal: `pip install numpy onnxruntime av`, then `python classify.py video.mp4`, or \
`python classify.py --camera 0` (Linux and macOS), or an address such as `rtsp://…` in place of \
the number.
- In Python:

  ```python
  from classify import Classifier

  print(Classifier("network.onnx")("video.mp4"))  # {{{example}: 0.93, …}}
  ```

`network.onnx` maps `frames`, uint8 RGB [{frames}, height, width, 3] of any size, {sampling}, to \
`probabilities`, float [{num_classes}]. It includes scaling, cropping, normalization and \
softmax. {windows} All this is JSON in its metadata (`about`).

## Training clips

{training}

## Score

{score}

## What was not in the training clips

- People, rooms, light, cameras and distances other than those of these clips. Expect more \
mistakes with them, and count these on clips of your own.
- {nothing}

## Checked

{agreement}

{network}, {parameters:,} parameters, after epoch {epoch}; exported {exported} with PyTorch \
{torch}.{pretrained}
"""


def write_card(about: dict, agreement: Agreement, runtime: str) -> str:
    """Return the README of an exported folder. runtime: a sentence on where the page takes it."""
    classes, num_windows = about["classes"], about["windows"]
    text = CARD.format(
        title=f"{len(classes)} classes of movements",
        classes=", ".join(map(_cell, classes)),
        runtime=runtime,
        example=json.dumps(classes[0], ensure_ascii=False),
        frames=about["frames"],
        sampling=_sampling_text(about),
        num_classes=len(classes),
        windows="A video is classified by the window in its middle."
        if num_windows == 1
        else f"The probabilities of {num_windows} windows per video are averaged.",
        training=_training_text(about["training_clips"]),
        score=_score_text(about["validation"]),
        nothing=_nothing_text(classes),
        agreement=agreement.sentence(),
        exported=about["exported"],
        torch=about["versions"]["torch"],
        network=_network_text(about["network"]),
        pretrained=_pretrained_text(about["network"]),
        parameters=about["network"]["parameters"],
        epoch=about["network"]["epoch"],
    )
    return "\n".join(map(_wrapped, text.splitlines())) + "\n"


def _wrapped(line: str) -> str:
    if line.startswith(("|", "  ")):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(
        line, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _sampling_text(about: dict) -> str:
    if about["sampling"] == "segments":
        return "one from each of as many equal parts of a video"
    step, rate = about["step"], f"{about['frame_rate']:g} frames per second"
    return rate if step == 1 else f"every {'2nd' if step == 2 else f'{step}th'} of {rate}"


def _training_text(clips: dict | None) -> str:
    if clips is None:
        return (
            "How many there were of each class is unknown: when this was exported, the list of "
            "training clips was missing or had changed."
        )
    rows = [f"| {_cell(name)} | {count:,} |" for name, count in clips.items()]
    return "\n".join(["| class | clips |", "|---|---|", *rows])


def _network_text(network: dict) -> str:
    members = network["members"]
    return network["model"] + (f" of {' and '.join(members)}" if members else "")


def _pretrained_text(network: dict) -> str:
    """Return a sentence on the weights that the training started from, or nothing."""
    if network["pretrained"] is None:
        return ""
    weights = f"weights `{network['pretrained']}`"
    if network["pretrained"] == IMAGENET_WEIGHTS:
        weights = f"ImageNet weights of {network['backbone']} (Apache License 2.0)"
    return f" The training started from the {weights}."


def _cell(name: str) -> str:
    return name.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _score_text(score: dict | None) -> str:
    if score is None:
        return "The checkpoint has no validation score."
    interval = score["interval_95"]
    on = "the validation clips" if score["clips"] is None else f"{score['clips']:,} clips"
    return (
        f"{score['top1']:.1f} % of {on} that were not trained on are classified correctly"
        + (f" (95 % interval {interval[0]:.1f} to {interval[1]:.1f} %)" if interval else "")
        + ". If this epoch was chosen by this score, it is somewhat too high; if the same people "
        "or recordings are in the training clips, it says little about new ones."
    )


def _nothing_text(classes) -> str:
    known = [name for name in classes if name.lower() in ("nothing", "none", "no gesture", "other")]
    if known:
        return (
            f"“{_cell(known[0])}” is only what was recorded as such; other movements may still be "
            "taken for one of the classes."
        )
    return (
        "No class is “nothing”: the network takes whatever it sees for one of the classes, often "
        "with a high probability. Record other movements, and none, as a class of their own."
    )

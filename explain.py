"""Show what a network has learnt: `python explain.py --checkpoint FILE`.

The time probe classifies the validation clips with their frames in order, reversed, shuffled, and
replaced by a single frame. A network that has learnt movement names the opposite when time runs
backwards, and cannot classify a single frame. Grad-CAM shows where and when it looks, beside the
same map of random weights; GIFs show its first kernels and the activations of each stage. The
pictures are files and a TensorBoard log.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from clips.annotations import Annotations, read_annotations
from clips.folders import FrameSource
from clips.frames import prepare_decoders
from clips.reading import window_input
from clips.sampling import frames_apart
from explaining import grad_cam, layer_films, time_probe
from explaining.layers import first_kernels, share_of_change, stage_names, stage_outputs
from explaining.pictures import save_gif
from scoring.predictor import Predictor, load_predictor
from system.device import choose_device, prepare
from system.errors import UserError, end_program, exit_status

KERNEL_RATE, MIN_FRAME_RATE = 2, 4  # pictures per second, of kernels and of clips


def explain(options: argparse.Namespace) -> None:
    """Run all analyses; print them, and write their files."""
    prepare_decoders()
    device = choose_device(options.gpus)
    prepare(device, "auto", deterministic=False)
    predictor = load_predictor(options.checkpoint, device)
    names = stage_names(predictor.network)
    if options.stage not in (None, *names):
        raise UserError(f"--stage: found {options.stage!r}; expected one of {', '.join(names)}")
    data_folder, csv_path = options.data or predictor.config.set_paths("validation")
    annotations = read_annotations(csv_path, data_folder, predictor.classes)
    print(f"{len(annotations):,} clips in {data_folder}")
    folder = options.output or Path(options.checkpoint).parent / "explained"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = explain_time(predictor, annotations, folder)
        written += explain_kernels(predictor, folder)
        written += explain_clips(predictor, annotations, folder, options)
        write_for_tensorboard(written, folder, predictor.epoch)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); set --output") from None
    print(f"\n{len(written)} files and a TensorBoard log of them written to {folder}")


def explain_time(predictor: Predictor, annotations: Annotations, folder: Path) -> list[Path]:
    """Print and write the time probe; return the files' paths."""
    result = time_probe.probe(predictor, annotations)
    print(time_probe.table(result))
    return time_probe.write(result, folder)


def explain_kernels(predictor: Predictor, folder: Path) -> list[Path]:
    """Write a film of the first layer's kernels; return its path, one per input stream."""
    paths = []
    for name, films in first_kernels(predictor.network).items():
        count, moments, height, width = films.shape[:4]
        print(
            f"\n{name}: {count} kernels of {moments} x {height} x {width}; "
            f"{share_of_change(films):.0f} % of their energy is change over time (random "
            f"kernels: {100 * (moments - 1) / moments:.0f} %)"
        )
        paths.append(folder / f"kernels_{name}.gif")
        save_gif(paths[-1], layer_films.draw_kernels(films.numpy()), KERNEL_RATE)
    return paths


def explain_clips(predictor: Predictor, annotations: Annotations, folder: Path, options):
    """Write the films of `options.clips` clips; return their paths."""
    written, similarities = [], []
    untrained = grad_cam.with_random_weights(predictor)
    for index in one_of_each_class(annotations, options.clips):
        clip_id = str(annotations.ids[index])
        source = annotations.clip(index).open(predictor.config)
        found = films_of_clip(predictor, untrained, source, options.stage)
        truth = predictor.classes[annotations.labels[index]]
        print(f"clip {clip_id}, {truth}: {found.title}; Grad-CAM of {found.stage_name}")
        config = predictor.config
        rate = max(MIN_FRAME_RATE, config.frame_rate / frames_apart(len(source), config))
        for what, pictures in found.films.items():
            written.append(folder / f"{what}_{clip_id.replace('/', '_')}.gif")
            save_gif(written[-1], pictures, rate)
        if np.isfinite(found.similarity):  # a map may be empty
            similarities.append(found.similarity)
    if similarities:
        print(
            "Grad-CAM of trained and of random weights: mean rank correlation "
            f"{np.mean(similarities):.2f}; 1 would mean that training changed nothing"
        )
    return written


class ClipFilms(NamedTuple):
    """What `explain_clips` shows of a clip."""

    title: str  # the predicted class and its probability
    stage_name: str  # of Grad-CAM
    similarity: float  # of the maps of trained and random weights
    films: dict[str, list[np.ndarray]]  # `grad_cam`, for the predicted class, and `activations`


def films_of_clip(
    predictor: Predictor, untrained: Predictor, source: FrameSource, stage_name: str | None = None
) -> ClipFilms:
    """Return the films of a clip, with one picture per input frame of the network.

    untrained: `predictor` with random weights. Where several windows are averaged, the films show
    the middle one.
    """
    windows = window_input(source, None, predictor.config)  # the centre crop's come first
    scores = predictor.probabilities(windows, 1)[0]
    predicted = int(scores.argmax())
    middle = predictor.config.nclips // 2
    clip = windows[middle : middle + 1]  # [1, T, H, W, C]
    outputs, maps = {}, []
    for each in (untrained, predictor):  # the latter's outputs are kept
        outputs, logits = stage_outputs(each.network, each.inputs(clip))
        values, stage_name = grad_cam.grad_cam(
            outputs, logits, predicted, clip.shape[1:4], stage_name
        )
        maps.append(values)
    random_map, trained_map = maps
    title = f"{predictor.classes[predicted]} {100 * scores[predicted]:.0f} %"
    frames = clip[0, ..., :3]
    numbers = {
        name: output.volume().detach().float().cpu().numpy() for name, output in outputs.items()
    }
    films = {
        "grad_cam": grad_cam.draw(frames, trained_map, random_map, title),
        "activations": layer_films.draw_activations(frames, numbers, title),
    }
    return ClipFilms(title, stage_name, grad_cam.similarity(trained_map, random_map), films)


def one_of_each_class(annotations: Annotations, count: int) -> list[int]:
    """Return the index of the first clip of each class, for at most `count` classes."""
    _, first = np.unique(annotations.labels, return_index=True)
    return first[: max(0, count)].tolist()


def write_for_tensorboard(paths: list[Path], folder: Path, epoch: int) -> None:
    """Log the PNG and GIF files as TensorBoard images."""
    log = SummaryWriter(str(folder))
    for path in paths:
        if path.suffix in (".gif", ".png"):
            width, height = Image.open(path).size
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
            )
            summary = Summary(value=[Summary.Value(tag=path.stem, image=image)])
            log.file_writer.add_summary(summary, epoch)
    log.close()


def main(arguments=None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--checkpoint", "-c", required=True, metavar="FILE", help="the network to explain"
    )
    parser.add_argument(
        "--data",
        nargs=2,
        metavar=("FOLDER", "CSV"),
        help="labelled clips; default: the validation set of the network's training",
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=8,
        metavar="N",
        help="write GIFs of N clips, the first of each class (default: %(default)s)",
    )
    parser.add_argument(
        "--stage",
        metavar="NAME",
        help="stage for Grad-CAM; default: the deepest with enough resolution in space and time",
    )
    parser.add_argument(
        "--output",
        "-o",
        type=Path,
        metavar="FOLDER",
        help="folder to write; default: `explained` beside the checkpoint",
    )
    parser.add_argument("--gpus", "-g", help="0 or cpu; default: a GPU if there is one")
    options = parser.parse_args(arguments)
    return exit_status(lambda: explain(options))


if __name__ == "__main__":
    end_program(main())

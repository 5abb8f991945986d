"""Classifies folders of frames and video files: `python predict.py --checkpoint FILE PATH...`."""

import argparse
import csv
import itertools
import json
import sys
from pathlib import Path

import cv2
from tqdm import tqdm

from annotated import save_annotated
from data_loader import frames_needed, open_clip
from device import choose_device, prepare
from errors import UserError, exit_status
from frames import FRAME_SUFFIXES, FramesInMemory
from predictor import Predictor, Scores, averaged, load_predictors
from videos import is_video

LIVE_SECONDS = 3.0  # how much of the past a live prediction is of, at least
LEAST_SHARE = 0.25  # of a network's clip that must be there; the rest is padded with the last frame


# --- what is to be classified ------------------------------------------------------------------


def find_clips(path) -> list[Path]:
    """The clips that a path stands for: itself, or the videos and folders of frames in it.

    Raises UserError if it is missing, empty, or holds frames beside other clips.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; correct the path")
    if not path.is_dir():
        if not is_video(path):
            raise UserError(f"{path}: neither a video file nor a folder; give the clip's folder")
        return [path]
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    clips = [entry for entry in entries if entry.is_dir() or is_video(entry)]
    has_frames = any(entry.name.lower().endswith(FRAME_SUFFIXES) for entry in entries)
    if has_frames and clips:
        raise UserError(
            f"{path}: holds frames and other clips ({clips[0].name}); keep each clip in a folder "
            "of its own"
        )
    if not has_frames and not clips:
        raise UserError(f"{path}: no frames ({', '.join(FRAME_SUFFIXES)}) and no videos in it")
    return [path] if has_frames else clips


def open_for(predictor: Predictor, clip):
    """The clip's frames. Raises UserError if they cannot be read, or are far too few."""
    source, needed = open_clip(clip, predictor.config), frames_needed(predictor.config)
    if len(source) < LEAST_SHARE * needed:
        raise UserError(
            f"{clip}: {len(source)} frames at {predictor.config.frame_rate:g} a second are far too "
            f"short; this network looks at {needed}; record a longer one"
        )
    return source


# --- the command -------------------------------------------------------------------------------


def predict(predictors, clips, save_path) -> tuple[dict[Path, Scores], list[str]]:
    """Scores by clip, and what kept others from being classified."""
    found, problems = {}, []
    for clip in tqdm(clips, "predicting", leave=False, disable=None):
        try:
            found[clip] = averaged([
                predictor.scores(open_for(predictor, clip)) for predictor in predictors
            ])
            if save_path:
                source = open_clip(clip, predictors[0].config)
                save_annotated(place_for(save_path, clip, len(clips)), source, found[clip],
                               predictors[0].config.frame_rate)
        except UserError as error:
            problems.append(str(error))
    return found, problems


def place_for(save_path: Path, clip: Path, num_clips: int) -> Path:
    """One clip goes to the file that --save names; several to files in a folder of that name."""
    if num_clips == 1 and save_path.suffix.lower() in (".gif", ".mp4"):
        return save_path
    return save_path / f"{clip.name}.mp4"


def table(found: dict[Path, Scores], count: int) -> str:
    """A line a clip: its path, and the likeliest classes with their probabilities."""
    width = max(len(str(clip)) for clip in found)
    return "\n".join(
        f"{clip!s:<{width}}  " + "   ".join(f"{name} {100 * share:.1f} %"
                                               for name, share in scores.top(count))
        for clip, scores in found.items()
    )


def write_results(path: Path, found: dict[Path, Scores], count: int) -> None:
    """A CSV or JSON file, by the name's ending: path, predicted class, and the top scores."""
    rows = [{"path": str(clip), "predicted": scores.top(1)[0][0],
             "scores": dict(scores.top(count))} for clip, scores in found.items()]  # fmt: skip
    if path.suffix.lower() == ".json":
        path.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "predicted", *[f"{kind}{rank}" for rank in range(1, count + 1)
                                                for kind in ("top", "score")]])
        for row in rows:
            top = [(name, f"{share:.6f}") for name, share in row["scores"].items()]
            writer.writerow([row["path"], row["predicted"], *itertools.chain(*top)])


# --- live --------------------------------------------------------------------------------------


def predict_live(predictors, number: int) -> None:
    """Prints what the camera shows, over and over, until Ctrl-C. Raises UserError without one."""
    camera = cv2.VideoCapture(number)
    if not camera.isOpened():
        raise UserError(f"--camera {number}: OpenCV finds no such camera; try another number")
    rate = predictors[0].config.frame_rate
    frames, taken = [], 0.0
    try:
        while True:
            is_read, picture = camera.read()
            if not is_read:
                raise UserError(f"--camera {number}: gives no more pictures")
            now = cv2.getTickCount() / cv2.getTickFrequency()
            if now - taken < 1 / rate:
                continue
            taken, frames = now, [*frames, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)]
            frames = frames[-round(LIVE_SECONDS * rate) :]
            if len(frames) > 1:
                source = FramesInMemory(frames)
                scores = averaged([predictor.scores(source) for predictor in predictors])
                line = "   ".join(f"{name} {100 * share:.0f} %" for name, share in scores.top(3))
                print(f"\r{line:<79}", end="", flush=True)
    finally:
        camera.release()
        print()


# --- the command line --------------------------------------------------------------------------


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a folder of frames, a video "
                        "file, or a folder of either")
    parser.add_argument("--checkpoint", "-c", action="append", required=True, metavar="FILE",
                        help="given several times, the networks' scores are averaged")
    parser.add_argument("--top", type=int, default=3, help="classes a clip (%(default)s)")
    parser.add_argument("--output", "-o", type=Path, metavar="FILE", help="write a .csv or .json")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the clip with its scores "
                        "as .gif or .mp4; for several clips, a folder")
    parser.add_argument("--camera", type=int, metavar="N", help="classify what a webcam shows")
    parser.add_argument("--gpus", "-g", help="0 or cpu; default: a GPU if there is one")
    options = parser.parse_args(arguments)
    if not options.paths and options.camera is None:
        parser.error("name at least one clip, or --camera")
    return options


def main(arguments=None) -> int:
    """Returns the exit status: 2 if anything could not be classified."""
    options = parse_arguments(arguments)

    def run():
        device = choose_device(options.gpus)
        prepare(device, "auto", deterministic=False)
        predictors = load_predictors(options.checkpoint, device)
        if options.camera is not None:
            return predict_live(predictors, options.camera)
        return predict_paths(predictors, options)

    return exit_status(run)


def predict_paths(predictors, options) -> int:
    clips, problems = [], []
    for path in options.paths:
        try:
            clips += find_clips(path)
        except UserError as error:
            problems.append(str(error))
    count = min(options.top, len(predictors[0].classes))
    found, others = predict(predictors, list(dict.fromkeys(clips)), options.save)
    problems += others
    if found:
        print(table(found, count))
        if options.output:
            write_results(options.output, found, count)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems and found:
        print(f"error: {len(problems)} of {len(problems) + len(found)} could not be classified",
              file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""Classifies folders of frames and video files: `python predict.py --checkpoint FILE PATH...`."""

import argparse
import csv
import itertools
import json
import os
import sys
import threading
from collections import deque
from pathlib import Path
from time import monotonic

import cv2
import numpy as np
from tqdm import tqdm

from clips.frames import FRAME_SUFFIXES, FramesInMemory, prepare_decoders
from clips.reading import open_clip
from clips.sampling import frames_needed, short_clips_note
from clips.videos import is_video
from explaining.annotated import save_annotated
from scoring.predictor import Scores, averaged, load_predictors
from system.device import choose_device, prepare
from system.errors import UserError, exit_status

LIVE_SECONDS = 3.0  # how much of the past a live prediction is of, at least
ROUNDING = 1e-6  # of times, seconds


# --- what is to be classified ------------------------------------------------------------------


def find_clips(path) -> tuple[list[Path], list[str]]:
    """The clips that a path stands for, and what is wrong with other folders below it.

    A clip is a video file or a folder of frames; in all other folders, of classes say, clips are
    looked for. Raises UserError if the path is missing, or a file that is no video.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; correct the path")
    if path.is_dir():
        return _clips_below(path)
    if not is_video(path):
        raise UserError(f"{path}: neither a video file nor a folder; give the clip's folder")
    return [path], []


def _clips_below(folder: Path) -> tuple[list[Path], list[str]]:
    try:
        with os.scandir(folder) as entries:
            entries = sorted((entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries
                             if not entry.name.startswith("."))
    except OSError as error:
        return [], [f"{folder}: cannot be read ({error.strerror})"]
    inner = [entry for entry in entries if entry[1] or is_video(entry[0])]
    has_frames = any(name.lower().endswith(FRAME_SUFFIXES)
                     for name, is_folder, _ in entries if not is_folder)
    if has_frames:
        if not inner:
            return [folder], []
        return [], [f"{folder}: holds frames and other clips ({inner[0][0]}); keep each clip in a "
                    "folder of its own"]
    if not inner:
        return [], [f"{folder}: no frames ({', '.join(FRAME_SUFFIXES)}) and no videos in it"]
    clips, problems = [], []
    for name, is_folder, is_link in inner:
        path = folder / name
        if is_link and folder.resolve().is_relative_to(path.resolve()):
            continue  # it leads back to where the search has come from
        found, wrong = _clips_below(path) if is_folder else ([path], [])
        clips += found
        problems += wrong
    return clips, problems


# --- the command -------------------------------------------------------------------------------


def predict(predictors, clips, save_path) -> tuple[dict[Path, Scores], list[str]]:
    """Scores by clip, and what kept others from being classified."""
    found, problems, num_short = {}, [], [0] * len(predictors)
    places = places_for(save_path, clips) if save_path else {}
    for clip in tqdm(clips, "predicting", leave=False, disable=None):
        try:
            sources = [open_clip(clip, predictor.config) for predictor in predictors]
            found[clip] = averaged([
                predictor.scores(source)
                for predictor, source in zip(predictors, sources, strict=True)
            ])
            if places:
                save_annotated(places[clip], sources[0], found[clip],
                               predictors[0].config.frame_rate)
        except UserError as error:
            found.pop(clip, None)
            problems.append(str(error))
            continue
        for number, (predictor, source) in enumerate(zip(predictors, sources, strict=True)):
            num_short[number] += len(source) < frames_needed(predictor.config)
    notes = [short_clips_note(number, len(found), predictor.config)
             for number, predictor in zip(num_short, predictors, strict=True) if number]
    for note in dict.fromkeys(notes):  # networks of one clip length say the same
        print(f"note: {note}", file=sys.stderr)
    return found, problems


def places_for(save_path: Path, clips: list[Path]) -> dict[Path, Path]:
    """Where --save writes each clip: one file each.

    A single clip goes to the file that --save names; several to a folder of that name, in which
    they lie as they do below the folder that they all share.
    """
    if len(clips) == 1 and save_path.suffix.lower() in (".gif", ".mp4"):
        return {clips[0]: save_path}
    paths = [Path(os.path.abspath(clip)) for clip in clips]
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""
    names = [path.relative_to(root) for path in paths]
    stems = [name.with_suffix("") if is_video(name) else name for name in names]
    if len(set(stems)) == len(stems):
        names = stems
    return {clip: save_path / f"{name}.mp4" for clip, name in zip(clips, names, strict=True)}


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


class Camera:
    """What a webcam has shown in the last seconds: each picture with the time at which it came.

    A thread takes the pictures as they come. So none waits while a network computes, and a
    movement has its own speed in them, however slow the network is.
    """

    def __init__(self, number: int, seconds: float):
        """seconds: how much is kept. Raises UserError if there is no such camera."""
        self.number, self.seconds = number, seconds
        self.device = cv2.VideoCapture(number)
        if not self.device.isOpened():
            raise UserError(f"--camera {number}: OpenCV finds no such camera; try another number")
        self.pictures = deque()  # (time in seconds, uint8 BGR [H, W, 3])
        self.has_new, self.is_over, self.changed = False, False, threading.Condition()
        self.thread = threading.Thread(target=self._take_pictures, daemon=True)
        self.thread.start()

    def _take_pictures(self):
        try:
            while not self.is_over:
                is_read, picture = self.device.read()
                if not is_read:
                    return
                now = monotonic()
                with self.changed:
                    self.pictures.append((now, picture))
                    while len(self.pictures) > 1 and now - self.pictures[1][0] >= self.seconds:
                        self.pictures.popleft()
                    self.has_new = True
                    self.changed.notify()
        finally:
            with self.changed:
                self.is_over = True
                self.changed.notify()

    def wait_for_more(self, seconds: float) -> None:
        """Until there is a new picture, and one that is `seconds` older.

        Raises UserError once the camera gives no more.
        """

        def is_there():
            if self.is_over or not self.pictures:
                return self.is_over
            return self.has_new and self.pictures[-1][0] - self.pictures[0][0] >= seconds - ROUNDING

        with self.changed:
            self.changed.wait_for(is_there)
            if self.is_over:
                raise UserError(f"--camera {self.number}: gives no more pictures")
            self.has_new = False

    def newest(self, frame_rate: float, most: int) -> FramesInMemory:
        """The last pictures at `frame_rate` a second, at most `most` of them.

        As in a video file, each frame is what was shown at its time.
        """
        with self.changed:
            pictures = list(self.pictures)
        times = np.array([time for time, _ in pictures])
        num_frames = min(most, 1 + int((times[-1] - times[0]) * frame_rate + ROUNDING))
        wanted = times[-1] - np.arange(num_frames)[::-1] / frame_rate
        shown = np.searchsorted(times, wanted + ROUNDING, side="right") - 1
        return FramesInMemory([cv2.cvtColor(pictures[index][1], cv2.COLOR_BGR2RGB)
                               for index in shown])

    def close(self) -> None:
        self.is_over = True
        self.thread.join(1)
        if not self.thread.is_alive():  # releasing what it reads from could crash
            self.device.release()


def predict_live(predictors, number: int) -> None:
    """Prints what the camera shows, over and over, until Ctrl-C. Raises UserError without one."""
    rates = [predictor.config.frame_rate for predictor in predictors]
    most = [max(round(LIVE_SECONDS * rate), predictor.gesture_length)
            for rate, predictor in zip(rates, predictors, strict=True)]
    least_seconds = max((predictor.gesture_length - 1) / rate
                        for rate, predictor in zip(rates, predictors, strict=True))
    camera = Camera(number, max(count / rate for count, rate in zip(most, rates, strict=True)))
    try:
        while True:
            camera.wait_for_more(least_seconds)  # so that no network's clip is padded
            scores = averaged([
                predictor.scores(camera.newest(rate, count))
                for predictor, rate, count in zip(predictors, rates, most, strict=True)
            ])
            line = "   ".join(f"{name} {100 * share:.0f} %" for name, share in scores.top(3))
            print(f"\r{line:<79}", end="", flush=True)
    finally:
        camera.close()
        print()


# --- the command line --------------------------------------------------------------------------


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a folder of frames, a video "
                        "file, or a folder of either, also in folders of classes")
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
        prepare_decoders()
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
            found, wrong = find_clips(path)
            clips += found
            problems += wrong
        except UserError as error:
            problems.append(str(error))
    clips = list({os.path.abspath(clip): clip for clip in reversed(clips)}.values())[::-1]
    count = min(options.top, len(predictors[0].classes))
    found, others = predict(predictors, clips, options.save)
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

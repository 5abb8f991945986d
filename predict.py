"""Classify folders of frames and video files: `python predict.py --checkpoint FILE PATH...`."""

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from clips.films import FILM_SUFFIXES, is_video
from clips.folders import Clip
from clips.frames import prepare_decoders
from clips.sampling import frames_needed, short_clips_note, unseen_seconds
from clips.search import find_clips, no_films
from config import Config
from explaining.score_overlay import save_with_scores
from scoring.camera import predict_live
from scoring.predictor import Predictor, Scores, averaged, load_predictors
from system.device import choose_device, prepare
from system.errors import UserError, end_program, exit_status

MAX_UNSEEN = 3.0  # seconds: a whole gesture could be missed

# --- clips from files --------------------------------------------------------------------------


def predict(
    predictors: list[Predictor], clips: list[Clip], save_path: Path | None, combine=averaged
) -> tuple[dict[Clip, Scores], list[str]]:
    """Return the scores of each clip, and a message for each clip that cannot be classified.

    combine: from `load_predictors`; combines the scores of all networks.
    """
    found, problems, lengths = {}, [], [[] for _ in predictors]
    places = places_for(save_path, clips) if save_path else {}
    for clip in tqdm(clips, "predicting", leave=False, disable=None):
        try:
            sources = [clip.open(predictor.config) for predictor in predictors]
            found[clip] = combine(
                [
                    predictor.scores(source, over_time=bool(places))
                    for predictor, source in zip(predictors, sources, strict=True)
                ]
            )
            if places:
                save_with_scores(
                    places[clip], sources[0], found[clip], predictors[0].config.frame_rate
                )
        except UserError as error:
            found.pop(clip, None)
            problems.append(str(error))
            continue
        for own, source in zip(lengths, sources, strict=True):
            own.append(len(source))
    notes = [
        note
        for predictor, own in zip(predictors, lengths, strict=True)
        for note in notes_on_lengths(own, predictor.config)
    ]
    for note in dict.fromkeys(notes):  # networks of one clip length have the same notes
        print(f"note: {note}", file=sys.stderr)
    return found, problems


def notes_on_lengths(lengths: list[int], config: Config) -> list[str]:
    """Return notes on clips that are padded, or of which the network does not see long parts.

    lengths: frames of each clip.
    """
    notes = []
    if num_short := sum(length < frames_needed(config) for length in lengths):
        notes.append(short_clips_note(num_short, len(lengths), config))
    if num_long := sum(unseen_seconds(length, config) > MAX_UNSEEN for length in lengths):
        notes.append(
            f"long clips (over {MAX_UNSEEN:g} s of which no frame is used): {num_long:,} "
            f"of {len(lengths):,}; like --eval_only, this treats each as one gesture and uses "
            f"{config.nclips * config.clip_size:,} of its frames; cut it into one clip per "
            "gesture, or see its scores over time with --save"
        )
    return notes


def places_for(save_path: Path, clips: list[Clip]) -> dict[Clip, Path]:
    """Return the file that --save writes for each clip.

    A single clip is written to `save_path`; several clips to a folder of that name, with their
    paths relative to their common folder.
    """
    if len(clips) == 1 and save_path.suffix.lower() in (".gif", ".mp4"):
        return {clips[0]: save_path}
    paths = [Path(os.path.abspath(clip)) for clip in clips]
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""
    names = [path.relative_to(root) for path in paths]
    stems = [
        name.with_suffix("") if is_video(clip) else name
        for clip, name in zip(clips, names, strict=True)
    ]
    if len(set(stems)) == len(stems):
        names = stems
    return {clip: save_path / f"{name}.mp4" for clip, name in zip(clips, names, strict=True)}


def table(found: dict[Clip, Scores], count: int) -> str:
    """Return one line per clip: its path and its top classes with their probabilities."""
    width = max(len(str(clip)) for clip in found)
    return "\n".join(
        f"{clip!s:<{width}}  "
        + "   ".join(f"{name} {100 * probability:.1f} %" for name, probability in scores.top(count))
        for clip, scores in found.items()
    )


def write_scores(path: Path, found: dict[Clip, Scores], count: int) -> None:
    """Write path, predicted class and top scores as JSON if the path ends with .json, else CSV."""
    rows = [
        {"path": str(clip), "predicted": scores.top(1)[0][0], "scores": dict(scores.top(count))}
        for clip, scores in found.items()
    ]
    if path.suffix.lower() == ".json":
        text = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    else:
        for row in rows:
            for rank, (name, probability) in enumerate(row.pop("scores").items(), 1):
                row |= {f"top{rank}": name, f"score{rank}": f"{probability:.6f}"}
        text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\r\n")
    path.write_bytes(text.encode("utf-8", "backslashreplace"))  # a path may be of any bytes


# --- the command line --------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="a folder of frames, a video file, or a folder that contains any of these",
    )
    parser.add_argument(
        "--checkpoint",
        "-c",
        action="append",
        required=True,
        metavar="FILE",
        help="a trained network; may be repeated, to average the scores of several; or a stack "
        "made by train.py --stack",
    )
    parser.add_argument(
        "--top", type=_count, default=3, help="classes to print per clip (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        "-o",
        type=Path,
        metavar="FILE",
        help="write the results to a .csv or .json file",
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="write the clip with its scores to a .gif or .mp4 file; for several clips, a folder",
    )
    parser.add_argument(
        "--camera",
        type=_camera,
        metavar="N",
        help="classify what a camera shows: the number of a webcam, or an address like rtsp://...",
    )
    parser.add_argument(
        "--json", action="store_true", help="with --camera: print JSON lines, one per verdict"
    )
    parser.add_argument("--gpus", "-g", help="0 or cpu; default: a GPU if there is one")
    options = parser.parse_args(arguments)
    if not options.paths and options.camera is None:
        parser.error("give at least one PATH, or --camera")
    if options.json and options.camera is None:
        parser.error("--json is for --camera; use --output FILE.json")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text!r}")
    return int(text)


def _camera(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def check_places(options: argparse.Namespace) -> None:
    """Make the folder of --output. Raises UserError, before hours of work, for unusable paths."""
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        if options.output.is_dir():
            raise UserError(f"--output {options.output}: is a folder; give a file")
    is_other_film = options.save and options.save.suffix.lower() in FILM_SUFFIXES
    if is_other_film and options.save.suffix.lower() not in (".mp4", ".gif"):
        raise UserError(
            f"--save {options.save}: expected .gif or .mp4, or a folder for several clips"
        )


def check_overwritten(options: argparse.Namespace, clips: list[Clip]) -> None:
    """Raise UserError if --output or --save would overwrite a clip, a pack or a checkpoint."""
    read = {os.path.realpath(path) for path in (*clips, *options.paths, *options.checkpoint)}
    written = [("--output", options.output)] if options.output else []
    if options.save:
        written += [("--save", place) for place in places_for(options.save, clips).values()]
    for flag, place in written:
        if os.path.realpath(place) in read:
            raise UserError(f"{flag}: would overwrite {place}; choose another place")


def main(arguments=None) -> int:
    """Run the command and return its exit status: 2 if any clip cannot be classified."""
    options = parse_arguments(arguments)

    def run():
        check_places(options)
        prepare_decoders()
        device = choose_device(options.gpus)
        prepare(device, "auto", deterministic=False)
        with redirect_stdout(sys.stderr):  # stdout is for scores and verdicts
            predictors, combine = load_predictors(options.checkpoint, device)
        if options.camera is not None:
            return predict_live(predictors, options.camera, combine, options.json)
        return predict_paths(predictors, options, combine)

    return exit_status(run)


def predict_paths(predictors: list[Predictor], options: argparse.Namespace, combine) -> int:
    """Classify the clips of `options`; print and write the results, and return the exit status."""
    clips, problems, others = [], [], []
    for path in options.paths:
        try:
            found, wrong = find_clips(path, others)
            clips += found
            problems += wrong
        except UserError as error:
            problems.append(str(error))
    clips = list({os.path.abspath(clip): clip for clip in reversed(clips)}.values())[::-1]
    if others:
        print(f"note: ignored: {no_films(others)}", file=sys.stderr)
    check_overwritten(options, clips)
    count = min(options.top, len(predictors[0].classes))
    found, others = predict(predictors, clips, options.save, combine)
    problems += others
    if found:
        if options.output:
            write_scores(options.output, found, count)
        print(table(found, count))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems and found:
        print(
            f"error: {len(problems)} of {len(problems) + len(found)} cannot be classified",
            file=sys.stderr,
        )
    return 2 if problems else 0


if __name__ == "__main__":
    end_program(main())

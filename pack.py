"""Pack a data set into one file: `python pack.py data/mine.zip FOLDER` (or an archive's parts).

The pack is an uncompressed ZIP file, which training reads like a folder: give it as
`train_data_folder`. Frames are copied byte for byte; archives are not unpacked.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from tqdm import tqdm

from clips.frames import FrameError, natural_key, prepare_decoders
from clips.packing import MAX_FRAME_PIXELS, Packing, pack
from clips.packs import Pack, PackedFrames
from clips.search import no_films
from system import stopping
from system.errors import UserError, end_program, exit_status, summarize


def make_pack(options: argparse.Namespace) -> None:
    """Write a pack, and print its contents and what was left out."""
    prepare_decoders()
    pace = {} if sys.stderr.isatty() else {"mininterval": 60}  # fewer lines in a log
    bar = partial(tqdm, desc="packing", unit="B", unit_scale=True, **pace)
    packing = Packing(options.height, options.quality, options.frame_rate, options.max_frame_pixels)
    start = time.perf_counter()
    made = pack(options.pack, options.sources, packing, bar)
    seconds = time.perf_counter() - start
    num_bytes = options.pack.stat().st_size
    print(f"{describe(made)}; packed in {seconds:.1f} s, {num_bytes / seconds / 1e6:.0f} MB/s")
    for paths, what in ((packing.hidden, "hidden files"), (packing.others, "files of other kinds")):
        if paths:
            print(f"left out: {len(paths):,} {what}: {summarize(paths, 3)}")
    if packing.no_films:
        print(f"left out: {no_films(packing.no_films)}")
    if packing.unreadable:
        print(
            f"{len(packing.unreadable):,} cannot be decoded; such frames are packed as they are, "
            f"such videos without frames: {summarize(packing.unreadable, 3)}"
        )


def describe(made: Pack) -> str:
    """Describe a pack: its counts, and what was done to its frames."""
    about = made.about
    text = f"{made}: {about['clips']:,} clips, {about['frames']:,} frames"
    if "height" in about:
        text += f", taller ones shrunk to {about['height']} pixels"
    if "frame_rate" in about:
        text += f", videos at {about['frame_rate']:g} frames per second"
    return f"{text}, {Path(made.path).stat().st_size / 1e6:,.1f} MB"


def list_clips(made: Pack) -> None:
    """Print the ids and numbers of frames of all clips."""
    print(describe(made))
    clips = zip(made.ids(), made.lengths(), strict=True)
    for clip_id, num_frames in sorted(clips, key=lambda clip: natural_key(clip[0])):
        print(f"{num_frames:6} {clip_id}")


def check_pack(made: Pack) -> int:
    """Read all frames; print the damaged ones, and return the exit status, 2 if there are any."""
    num_bad = 0
    clips = list(zip(made.ids(), made.lengths(), strict=True))
    for clip_id, num_frames in tqdm(clips, "checking", unit=" clips", leave=False, disable=None):
        frames = PackedFrames(made.clip(clip_id), max_pixels=0) if num_frames else ()
        for position in range(num_frames):
            try:
                frames.content(position)
            except FrameError as error:
                num_bad += 1
                print(f"error: {error}", file=sys.stderr)
    made.check_directory()
    print(f"{describe(made)}; {num_bad or 'none'} damaged")
    return 2 if num_bad else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("pack", type=Path, metavar="PACK.zip", help="the pack to write")
    parser.add_argument(
        "sources",
        type=Path,
        nargs="*",
        metavar="SOURCE",
        help="a folder of frames or videos, a .zip, .tar or .tar.gz, or the parts of one",
    )
    parser.add_argument(
        "--height",
        type=int,
        metavar="PIXELS",
        help="shrink taller frames to this height, at least the frame_height of your config",
    )
    parser.add_argument(
        "--quality",
        type=int,
        default=95,
        help="JPEG quality of shrunk frames and of videos, 1 to 100 (default: %(default)s)",
    )
    parser.add_argument(
        "--frame_rate",
        type=float,
        metavar="RATE",
        help="for videos: frames per second, the frame_rate of your config",
    )
    parser.add_argument(
        "--max_frame_pixels",
        type=int,
        default=MAX_FRAME_PIXELS,
        metavar="N",
        help="frames with more pixels are not shrunk; such videos are packed empty "
        "(default: %(default)s)",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="verify the CRC-32 of all frames")
    action.add_argument("--list", action="store_true", help="print the clips")
    options = parser.parse_args(arguments)
    if bool(options.sources) == (options.check or options.list):
        parser.error("give a SOURCE to pack, or --check or --list alone")
    return options


def run(options: argparse.Namespace) -> int:
    """Run the command that the options select; return its exit status."""
    for name, least, most in (
        ("height", 1, 2**16),
        ("quality", 1, 100),
        ("frame_rate", 1e-3, 1e3),
        ("max_frame_pixels", 1, 1e9),
    ):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name}: found {value:g}; expected {least:g} to {most:g}")
    stopping.raise_on_signal()
    if options.check:
        return check_pack(Pack(options.pack))
    (list_clips(Pack(options.pack)) if options.list else make_pack(options))
    return 0


def main(arguments=None) -> int:
    """Run the command and return its exit status: 2 if it fails or finds damage."""
    options = parse_arguments(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    stopping.install()
    end_program(main())

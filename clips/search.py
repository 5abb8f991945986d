"""Finding the clips below a path."""

import os
from pathlib import Path

from clips.frames import FRAME_SUFFIXES
from clips.videos import is_video
from system.errors import UserError


def find_clips(path: str | Path) -> tuple[list[Path], list[str]]:
    """Return the clips at or below a path, and a message for each folder that is not usable.

    A clip is a video file or a folder of frames; other folders, for example one per class, are
    searched. Raises UserError if the path does not exist or is a file but not a video.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; correct the path")
    if path.is_dir():
        return _clips_below(path)
    if not is_video(path):
        raise UserError(f"{path}: not a video file or a folder; give the clip's folder")
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
        return [], [f"{folder}: has both frames and other clips ({inner[0][0]}); put each clip in "
                    "its own folder"]
    if not inner:
        return [], [f"{folder}: contains no frames ({', '.join(FRAME_SUFFIXES)}) and no videos"]
    clips, problems = [], []
    for name, is_folder, is_link in inner:
        path = folder / name
        if is_link and folder.resolve().is_relative_to(path.resolve()):
            continue  # a link to a folder above would be searched forever
        found, wrong = _clips_below(path) if is_folder else ([path], [])
        clips += found
        problems += wrong
    return clips, problems

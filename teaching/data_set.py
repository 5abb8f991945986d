"""A data set that grows: `clips/<number>/00001.jpg ...`, `labels.csv` and a CSV for each set.

The files are complete after each change, so that every command can use them at any time.
"""

import csv
import io
import os
import shutil
import threading
import unicodedata
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from clips.annotations import read_annotations, read_rows
from clips.folders import open_clip
from clips.frames import decode_frame, natural_key
from clips.reading import distinct_frames
from config import Config
from own_clips.splitting import choose_validation
from system.errors import UserError, summarize
from system.files import try_lock, write_text

MAX_CLIPS, MAX_FRAMES, MAX_PIXELS = 2000, 120, 640 * 480
MAX_NAME = 60  # characters
SHARE_FOR_VALIDATION = 5  # every n-th clip
STRIP_FRAMES, STRIP_HEIGHT = 12, 60  # frames of a thumbnail
SETS = ("train", "validation")
UNFINISHED = ".unfinished"  # folder for clips that are being written or removed
JPEG_MAGIC = b"\xff\xd8\xff"


class DataSet:
    """The clips of a folder. Threads may share it; only one process may open it."""

    def __init__(self, folder: Path):
        """Open `folder`, or make it.

        Raises UserError if it has other files, its CSVs cannot be read, or it is in use.
        """
        self.folder, self.lock = folder, threading.Lock()
        self.csvs = {name: folder / f"{name}.csv" for name in SETS}
        self._check_content()
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(folder, os.O_RDONLY)  # keeps the lock while this process lives
        if not try_lock(self.descriptor):
            raise UserError(f"--data {folder}: is open in another teach.py; close that one")
        shutil.rmtree(folder / "clips" / UNFINISHED, ignore_errors=True)
        # id -> (class, set), in the order of recording, where the files tell
        self.clips = {clip_id: row for name in SETS for clip_id, row in self._rows(name)}
        self.clips = dict(sorted(self.clips.items(), key=lambda item: natural_key(item[0])))
        self.last_number = max(
            (int(name) for name in os.listdir(folder / "clips") if name.isdecimal()), default=0
        )

    def close(self) -> None:
        """Let other processes open the folder."""
        os.close(self.descriptor)

    def _check_content(self):
        if not self.folder.is_dir() or (self.folder / "clips").is_dir():
            return
        others = [name for name in sorted(os.listdir(self.folder)) if not name.startswith(".")]
        if others:
            raise UserError(
                f"--data {self.folder}: not a data set of this page: it has "
                f"{summarize(others, 3)} but no folder `clips`; name a new folder, and drop "
                "videos and folders into the page"
            )

    def _rows(self, set_name):
        path = self.csvs[set_name]
        labels = set(read_rows(path, with_labels=True)["label"]) if path.exists() else ()
        if labels:
            with open(path, newline="", encoding="utf-8-sig") as file:
                columns = [column.strip() for column in next(csv.reader(file))]
            if others := set(columns) - {"video_id", "label"} if "video_id" in columns else ():
                raise UserError(
                    f"{path}: has columns that this page cannot keep: "
                    f"{summarize(sorted(others))}; give it a copy of the folder "
                    "without them"
                )
            found = read_annotations(path, self.folder / "clips", sorted(labels))
            for clip_id, label in zip(found.ids.tolist(), found.labels.tolist(), strict=True):
                yield clip_id, (found.class_names[label], set_name)

    def add(self, name: str, pictures: list[bytes]) -> str:
        """Save JPEG pictures as a clip of the class `name`; return the clip's id.

        One clip in five of each class is for validation. Raises UserError for a name, a number of
        frames or a picture that is not accepted.
        """
        name = checked_name(name)
        if not 2 <= len(pictures) <= MAX_FRAMES:
            raise UserError(f"a clip has 2 to {MAX_FRAMES} frames, not {len(pictures)}")
        for picture in pictures:
            decode_jpeg(picture)
        with self.lock:
            if len(self.clips) >= MAX_CLIPS:
                raise UserError(f"there are already {MAX_CLIPS:,} clips; remove some")
            clip_id = str(self.last_number + 1)
            folder = self._unfinished(clip_id)
            shutil.rmtree(folder, ignore_errors=True)  # left by a full disk
            folder.mkdir(parents=True)
            for number, picture in enumerate(pictures, 1):
                with open(folder / f"{number:05d}.jpg", "wb") as file:
                    file.write(picture)
                    os.fsync(file.fileno())
            folder.rename(self.folder / "clips" / clip_id)
            self.last_number += 1
            sets = [own_set for label, own_set in self.clips.values() if label == name]
            is_due = sets.count("validation") < (len(sets) + 1) // SHARE_FOR_VALIDATION
            self._write({**self.clips, clip_id: (name, "validation" if is_due else "train")})
        return clip_id

    def remove(self, clip_id: str) -> None:
        """Delete a clip. Raises UserError if there is none with this id."""
        with self.lock:
            if clip_id not in self.clips:
                raise UserError(f"there is no clip {clip_id}; it may have been removed already")
            self._write({key: row for key, row in self.clips.items() if key != clip_id})
            path = self.folder / "clips" / clip_id
            hidden = self._unfinished("removed")
            hidden.parent.mkdir(exist_ok=True)
            path.rename(hidden)
            is_folder = hidden.is_dir() and not hidden.is_symlink()
            shutil.rmtree(hidden) if is_folder else hidden.unlink()

    def _unfinished(self, name) -> Path:
        return self.folder / "clips" / UNFINISHED / name

    def _write(self, clips) -> None:
        """Write the CSVs, and set `clips` if that succeeds."""
        for set_name, path in self.csvs.items():
            text = io.StringIO()
            rows = [(key, label) for key, (label, own_set) in clips.items() if own_set == set_name]
            csv.writer(text, lineterminator="\n").writerows([("video_id", "label"), *rows])
            write_text(path, text.getvalue())
        names = sorted({label for label, _ in clips.values()}, key=natural_key)
        write_text(self.folder / "labels.csv", "".join(f"{name}\n" for name in names))
        self.clips = clips

    def counts(self) -> Counter:
        """Return the number of clips of each class."""
        return Counter(label for label, _ in self.clips.values())

    def balance(self) -> None:
        """Split the clips again if a class has none for training or none for validation."""
        with self.lock:
            if len(set(self.clips.values())) < len(SETS) * len(self.counts()):
                labels = [label for label, _ in self.clips.values()]
                flags = choose_validation(labels, list(self.clips), seed=0)
                self._write(
                    {
                        key: (label, SETS[int(flag)])
                        for key, label, flag in zip(self.clips, labels, flags, strict=True)
                    }
                )

    def strip(self, clip_id: str, config: Config) -> bytes:
        """Return 12 frames of a clip side by side, each 60 pixels high, as a JPEG.

        Raises UserError if the clip cannot be read.
        """
        if clip_id not in self.clips:
            raise UserError(f"there is no clip {clip_id}")
        source = open_clip(self.folder / "clips" / clip_id, config)
        positions = np.linspace(0, len(source) - 1, STRIP_FRAMES).astype(int)
        frames = {
            place: frame for places, frame in distinct_frames(source, positions) for place in places
        }
        height, width = frames[0].shape[:2]
        size = (max(1, round(STRIP_HEIGHT * width / height)), STRIP_HEIGHT)
        tiles = [
            cv2.resize(frames[place], size, interpolation=cv2.INTER_AREA)
            for place in range(STRIP_FRAMES)
        ]
        _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(np.hstack(tiles), cv2.COLOR_RGB2BGR))
        return jpeg.tobytes()


def checked_name(name: str) -> str:
    """Return a class name as it is saved. Raises UserError if it cannot be."""
    name = unicodedata.normalize("NFC", name.strip())
    # Joiners, which are not printable, make one emoji of several, and are part of Persian words.
    shown = name.replace("\u200c", "").replace("\u200d", "")
    if not shown or len(name) > MAX_NAME or not shown.isprintable():
        raise UserError(f"a gesture's name has 1 to {MAX_NAME} printable characters; change it")
    return name


def decode_jpeg(picture: bytes) -> np.ndarray:
    """Return a JPEG as uint8 RGB [H, W, 3]. Raises UserError if it is damaged or too large."""
    if not picture.startswith(JPEG_MAGIC):
        raise UserError("only JPEG pictures are accepted")
    return decode_frame(picture, MAX_PIXELS)

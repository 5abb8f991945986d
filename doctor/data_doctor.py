"""Check every clip and every frame of a data set before training.

    python train.py --config configs/config.json --check_data

Frames are decoded by the reader that training uses, so a frame that passes here is accepted there.
The check does not change the data and does not stop at the first problem. Each finding becomes a
row of the report: an "error" if training would stop, or learn or measure something wrong, else a
"note".
"""

import hashlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from clips.annotations import is_folder_name, names_of_clips, read_labels, read_rows
from clips.frames import (
    FrameError,
    OversizedFrameError,
    decode_frame,
    is_misnamed,
    list_frames,
    natural_key,
    prepare_decoders,
)
from clips.packs import Pack, PackedClip, PackedFrames, clip_path, open_folder
from clips.sampling import frames_needed
from clips.videos import VideoFile, is_video
from config import SET_PREFIXES, Config
from doctor.data_report import describe_sizes, open_report, plural, print_findings, print_sets
from system import stopping
from system.errors import UserError, first_few

_LARGEST_CHUNK = 32  # clips that a worker takes at once
_stop = None  # in a worker: the event that tells it to abandon its chunk


def check_data(config: Config, report_path="data_report.csv") -> int:
    """Examine all clips of all sets of `config`; print a summary and write `report_path`.

    Returns the exit status: 2 if there is an "error" among the findings, else 0.
    Raises UserError if the report cannot be written, or if a worker process dies.
    """
    prepare_decoders()
    with open_report(report_path) as report:
        class_names = _read_class_names(config, report)
        names = [name for name in SET_PREFIXES if config.set_paths(name)[1] is not None]
        clip_sets = [_read_set(name, config, class_names, report) for name in names]
        _find_unlisted_folders(clip_sets, report)
        _examine_clips(clip_sets, config, report)
        for clip_set in clip_sets:
            if len(clip_set.sizes) > 1:
                report.add(clip_set.name, "several frame sizes", describe_sizes(clip_set.sizes))
    print_sets(clip_sets)
    print_findings(report)
    errors, notes = report.total("error"), report.total("note")
    verdict = f"{plural(errors, 'error')}, {plural(notes, 'note')}"
    print(f"{verdict if errors or notes else 'No problems found'}; report: {report_path}")
    return 2 if errors else 0


# --- clip lists ----------------------------------------------------------------------------------


@dataclass
class ClipSet:
    """The clips of one set that can be examined, and statistics about them."""

    name: str
    folder: str | Pack
    root: str  # the folder's real path: sets with the same root share their folders
    listed: set | None = None  # all ids of the CSV, with any label; None: it is unreadable
    present: set = field(default_factory=set)  # names of the folders in `folder`
    ids: list = field(default_factory=list)  # clips that training uses and that have a folder
    lengths: Counter = field(default_factory=Counter)  # number of clips by number of frames
    sizes: Counter = field(default_factory=Counter)  # number of frames by (width, height)


def _read_class_names(config, report):
    """Return the class names, or None if the labels file is unusable."""
    try:
        names = read_labels(config.labels_csv)
    except UserError as error:
        report.add("labels", "unusable labels file", str(error))
        return None
    if config.num_classes not in (None, len(names)):
        detail = f"num_classes is {config.num_classes}, {config.labels_csv} has {len(names)} names"
        report.add("labels", "unusable labels file", detail)
    return names


def _read_set(name, config, class_names, report) -> ClipSet:
    folder, csv_path = config.set_paths(name)
    clip_set = ClipSet(name, open_folder(folder or ""), os.path.realpath(folder or ""))
    has_labels = name != "test"
    try:
        rows = read_rows(csv_path, has_labels)
    except UserError as error:
        report.add(name, "unreadable clip list", str(error))
        _find_folders(clip_set, [], config, report)
        return clip_set
    clip_set.listed = set(rows["id"])
    unusable = _find_bad_ids(name, rows, report)
    if has_labels and class_names is not None:
        rows = _drop_unknown_labels(name, rows, class_names, report)
    ids = [clip_id for clip_id in rows["id"].unique() if clip_id not in unusable]
    if len(ids) < (needed := 2 if name == "train" else 1):
        detail = f"{csv_path}: {len(ids)} usable, at least {needed} needed"
        report.add(name, "too few clips", detail)
    _find_folders(clip_set, ids, config, report)
    return clip_set


def _find_bad_ids(set_name, rows, report) -> set:
    """Report unusable and duplicate ids; return the unusable ones."""
    lines = defaultdict(list)
    for line, clip_id in rows["id"].items():
        lines[clip_id].append(line)
    unusable = {clip_id for clip_id in lines if not is_folder_name(clip_id)}
    for clip_id, numbers in lines.items():
        detail = f"{clip_id!r} on line {first_few(numbers)}"
        if clip_id in unusable:
            report.add(set_name, "unusable id", detail)
        elif len(numbers) > 1:
            report.add(set_name, "duplicate id", detail, clip_id)
    return unusable


def _drop_unknown_labels(set_name, rows, class_names, report):
    """Report the labels that are not class names, and the classes without clips."""
    is_known = rows["label"].isin(class_names)
    for label, count in Counter(rows["label"][~is_known]).items():
        report.add(set_name, "unknown label", f"{label!r} ({plural(count, 'row')})")
    if set_name == "train":
        used = set(rows["label"])
        for label in class_names:
            if label not in used:
                report.add(set_name, "class without clips", repr(label))
    return rows[is_known]


def _find_folders(clip_set, ids, config, report):
    """Set `present` and `ids` of a set, and report the clips without a folder."""
    try:
        clip_set.present = names_of_clips(clip_set.folder)
        if isinstance(clip_set.folder, Pack):
            clip_set.folder.check(config)
    except (OSError, UserError) as error:
        folder = str(clip_set.folder)
        detail = f"{SET_PREFIXES[clip_set.name]}_data_folder: {folder!r} ({error})"
        report.add(clip_set.name, "unreadable data folder", detail)
        return
    for clip_id in ids:
        if clip_id in clip_set.present:
            clip_set.ids.append(clip_id)
        else:
            detail = f"no such folder: {os.path.join(clip_set.folder, clip_id)}"
            report.add(clip_set.name, "missing clip", detail, clip_id)


def _find_unlisted_folders(clip_sets, report):
    sharing = defaultdict(list)
    for clip_set in clip_sets:
        sharing[clip_set.root].append(clip_set)
    for sets in sharing.values():
        if any(clip_set.listed is None for clip_set in sets):
            continue  # every clip of the unreadable CSV would be reported
        unlisted = sets[0].present.difference(*(clip_set.listed for clip_set in sets))
        for name in sorted(unlisted, key=natural_key):
            if not name.startswith("."):
                detail = f"{os.path.join(sets[0].folder, name)} is not in any CSV"
                report.add(sets[0].name, "unlisted folder", detail, name)


# --- all clips, over processes -------------------------------------------------------------------


def _examine_clips(clip_sets, config, report):
    # Here, since worker processes import this file, and need no PyTorch.
    from system import processes

    clips = [(clip_set, clip_id) for clip_set in clip_sets for clip_id in clip_set.ids]
    paths = (clip_path(clip_set.folder, clip_id) for clip_set, clip_id in clips)
    examine = partial(examine_clip, frames_needed=frames_needed(config),
                      max_pixels=config.max_frame_pixels, frame_rate=config.frame_rate)
    if config.num_workers == 0:
        with warnings.catch_warnings():
            _ignore_warnings()
            _record(clips, map(examine, paths), report)
        return
    num_workers = config.num_workers or processes.available_cores()
    chunk = max(1, min(_LARGEST_CHUNK, len(clips) // (8 * num_workers)))
    # Not forked from this process: a copy of one with OpenCV's or PyTorch's threads can hang.
    context = multiprocessing.get_context("forkserver")
    stop = context.Event()
    with ProcessPoolExecutor(num_workers, context, _start_worker, (stop,)) as pool:
        try:
            with stopping.kept_from_workers():  # until they handle signals themselves
                results = pool.map(examine, paths, chunksize=chunk)  # in the order of `clips`
            _record(clips, results, report)
        except BrokenProcessPool:
            clip_set, clip_id = clips[sum(clip_set.lengths.total() for clip_set in clip_sets)]
            raise UserError(
                f"{os.path.join(clip_set.folder, clip_id)}: a worker process died at this clip or "
                f"one of the next {chunk * num_workers}, possibly for lack of memory; lower "
                "num_workers"
            ) from None
        except BaseException:  # above all Ctrl-C: wait for one frame, not for all queued ones
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _record(clips, results, report):
    """Add each clip's result to its set and to the report, in the order of `clips`."""
    pace = {} if sys.stderr.isatty() else {"mininterval": 60}  # fewer lines in a log
    first_seen = {}
    progress = tqdm(results, "examining", len(clips), unit=" clips", **pace)
    for (clip_set, clip_id), result in zip(clips, progress, strict=True):
        clip_set.lengths[result.num_frames] += 1
        clip_set.sizes.update(result.sizes)
        for kind, detail, frame in result.findings:
            report.add(clip_set.name, kind, detail, clip_id, frame)
        _find_in_other_sets(clip_set, clip_id, result.digest, first_seen, report)


def _find_in_other_sets(clip_set, clip_id, digest, first_seen, report):
    """Report a clip that is also in an earlier set: the same folder, or a copy of it."""
    place = clip_set.root, clip_id
    for key, kind in ((place, "clip in two sets"), (digest, "content in two sets")):
        if key is None:
            continue
        other_set, other_id = first_seen.setdefault(key, (clip_set.name, clip_id))
        if other_set != clip_set.name:
            report.add(clip_set.name, kind, f"is {other_id!r} of {other_set}", clip_id)
            return


def _start_worker(stop):
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the main process's handler, if it has one
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping.SIGNALS)
    _ignore_warnings()
    prepare_decoders()
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _ignore_warnings():
    warnings.simplefilter("ignore")  # Pillow's, about EXIF data and the like


def _end_with_main_process():
    # A worker whose main process was killed would wait for its next clips forever.
    multiprocessing.parent_process().join()
    os._exit(1)


# --- one clip, in a worker -----------------------------------------------------------------------


@dataclass
class ClipResult:
    """What a worker found out about one clip."""

    num_frames: int = 0
    sizes: Counter = field(default_factory=Counter)  # number of frames by (width, height)
    digest: bytes | None = None  # of the bytes of all frames; None if any frame is unreadable
    misnamed: list = field(default_factory=list)  # frames whose extension names another format
    findings: list = field(default_factory=list)  # (kind, detail, frame)

    def add(self, kind, detail, frame=""):
        self.findings.append((kind, detail, frame))


def examine_clip(folder, frames_needed, max_pixels, frame_rate) -> ClipResult:
    """Examine one clip: a folder of frames, a PackedClip or a video; errors become findings.

    frames_needed: clips with fewer frames are padded.
    max_pixels: frames with more pixels are refused.
    frame_rate: frames per second that videos are resampled to.
    """
    result = ClipResult()
    try:
        if isinstance(folder, PackedClip):
            packed = PackedFrames(folder, max_pixels)
            names, frames, read = packed.names, packed.names, packed.content
        elif is_video(folder):
            _check_video(VideoFile(folder, frame_rate, max_pixels), result)
            _check_length(result, frames_needed)
            return result
        else:
            names, frames = os.listdir(folder), list_frames(folder)
            read = partial(_read_file, folder, frames)
        result.num_frames = len(frames)
        others = sorted(name for name in set(names).difference(frames) if name[0] != ".")
        if others:
            result.add("other files", first_few(map(repr, others)))
        _check_length(result, frames_needed)
        _check_numbers(frames, result)
        _check_frames(frames, read, max_pixels, result)
    except FrameError as error:
        result.add("unreadable clip" if is_video(folder) else "empty clip", str(error))
    except Exception as error:  # of any kind: the other clips are still examined
        result.add("unreadable clip", f"{type(error).__name__}: {error}")
    return result


def _check_length(result, frames_needed):
    if result.num_frames < frames_needed:
        detail = f"{plural(result.num_frames, 'frame')}; training needs {frames_needed}"
        result.add("short clip", detail)


def _check_video(video, result):
    """Decode all frames that training may use; raises FrameError for damage."""
    result.num_frames = len(video)
    for frame in video.frames_at(range(len(video))):
        if _stop is not None and _stop.is_set():
            return
        height, width, _ = frame.shape
        result.sizes[width, height] += 1
    result.digest = hashlib.blake2b(Path(video.path).read_bytes(), digest_size=16).digest()


def _check_numbers(frames, result):
    numbers = [[int(n) for n in re.findall(r"\d+", os.path.splitext(name)[0])] for name in frames]
    if not all(numbers):
        result.add("unnumbered frames", f"no number in {frames[numbers.index([])]!r}")
        return
    # A name may have several numbers: the frame's own is the first that changes.
    columns = list(zip(*numbers, strict=False))
    own = next((column for column in columns if len(set(column)) > 1), columns[-1])
    doubled = [number for number, count in Counter(own).items() if count > 1]
    gaps = [f"{a} to {b}" for a, b in pairwise(sorted(set(own))) if b > a + 1]
    if doubled:
        result.add("misnumbered frames", f"more than once: {first_few(doubled)}")
    if gaps:
        result.add("misnumbered frames", f"gaps in the numbers: {first_few(gaps)}")
    if min(own) > 1:
        result.add("late first number", f"the first is {min(own)}")


def _check_frames(frames, read, max_pixels, result):
    hasher, all_read = hashlib.blake2b(digest_size=16), True
    for position, frame in enumerate(frames):
        if _stop is not None and _stop.is_set():
            return
        data = _check_frame(frame, partial(read, position), max_pixels, result)
        all_read = all_read and len(data) > 0
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    if all_read:
        result.digest = hasher.digest()
    if result.misnamed:
        result.add("wrong extension", f"content of another format: {first_few(result.misnamed)}")
    if len(result.sizes) > 1:
        result.add("mixed frame sizes", describe_sizes(result.sizes))


def _read_file(folder, frames, position) -> bytes:
    path = os.path.join(folder, frames[position])
    if not os.path.isfile(path):  # reading a pipe would wait forever
        raise OSError("not a file but a folder, a device or a broken link")
    return Path(path).read_bytes()


def _check_frame(frame, read, max_pixels, result) -> bytes:
    """Decode a frame; count its size, or add a finding. Returns the file's bytes, if readable."""
    data = b""
    try:
        data = read()
        height, width, _ = decode_frame(data, max_pixels).shape
        result.sizes[width, height] += 1
        if is_misnamed(frame, data):
            result.misnamed.append(frame)
    except OSError as error:
        result.add("unreadable frame", error.strerror or str(error), frame)
    except FrameError as error:
        oversized = isinstance(error, OversizedFrameError)
        result.add("oversized frame" if oversized else "damaged frame", str(error), frame)
    return data

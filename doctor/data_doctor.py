"""Check every clip and every frame of a data set before training.

    python train.py --config configs/config.json --check_data

Frames are decoded by the reader that training uses, so a frame that passes here is accepted there.
The check does not change the data and does not stop at the first problem. Each finding becomes a
row of the report: an "error" if training would stop, or learn or measure something wrong, else a
"note".
"""

import hashlib
import os
import re
import signal
import sys
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from clips.annotations import groups_of, is_clip_id, lines_without_group, read_labels, read_rows
from clips.batches import as_it_is, end_workers, start_workers
from clips.films import is_video
from clips.folders import Clip, ClipFolder, FrameSource
from clips.frames import (
    FrameError,
    OversizedFrameError,
    composed,
    decimals_of,
    decode_frame,
    natural_key,
    prepare_decoders,
)
from clips.packs import open_folder
from clips.sampling import frames_needed
from config import SET_PREFIXES, Config
from doctor.data_report import describe_sizes, open_report, plural, print_findings, print_sets
from system import processes, stopping
from system.errors import UserError, summarize


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
        _find_shared_groups(clip_sets, report)
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
    folder: ClipFolder
    root: str  # the folder's real path: sets with the same root share their folders
    listed: set | None = None  # all ids of the CSV in NFC, any label; None: unreadable
    present: set = field(default_factory=set)  # ids of the clips in `folder`, in NFC
    groups: Counter = field(default_factory=Counter)  # number of clips by group
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
    clip_set.listed = set(map(composed, rows["id"]))
    unusable = _find_bad_ids(name, rows, report)
    if has_labels and class_names is not None:
        rows = _drop_unknown_labels(name, rows, class_names, report)
    clip_set.groups = _read_groups(name, rows, config, report)
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
    unusable = {clip_id for clip_id in lines if not is_clip_id(clip_id)}
    for clip_id, numbers in lines.items():
        detail = f"{clip_id!r} on line {summarize(numbers)}"
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


def _read_groups(set_name, rows, config, report) -> Counter:
    """Count the clips by group; report those without."""
    if config.group and set_name != "test":
        try:
            return Counter(groups_of(rows["id"], config.group).tolist())
        except UserError as error:
            report.add(set_name, "clip without group", str(error))
    elif "group" in rows:
        if lines := lines_without_group(rows):
            detail = f"{plural(len(lines), 'clip')}, on line {summarize(lines)}"
            report.add(set_name, "clip without group", detail)
        return Counter(rows["group"][rows["group"] != ""])
    return Counter()


def _find_shared_groups(clip_sets, report):
    """Report the groups, such as people, that are in an earlier set, too."""
    for number, clip_set in enumerate(clip_sets):
        for earlier in clip_sets[:number]:
            for group in sorted(clip_set.groups & earlier.groups, key=natural_key):
                detail = (
                    f"{group!r}: {plural(clip_set.groups[group], 'clip')}, and "
                    f"{earlier.groups[group]:,} of {earlier.name}"
                )
                report.add(clip_set.name, "group in two sets", detail)


def _find_folders(clip_set, ids, config, report):
    """Set `present` and `ids` of a set, and report the clips without a folder."""
    try:
        clip_set.present = clip_set.folder.siblings(ids)
        clip_set.folder.check(config)
    except (OSError, UserError) as error:
        folder = str(clip_set.folder)
        detail = f"{SET_PREFIXES[clip_set.name]}_data_folder: {folder!r} ({error})"
        report.add(clip_set.name, "unreadable data folder", detail)
        return
    for clip_id in ids:
        if composed(clip_id) in clip_set.present:
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
            if not name.rpartition("/")[2].startswith("."):
                detail = f"{os.path.join(sets[0].folder, name)} is not in any CSV"
                report.add(sets[0].name, "unlisted folder", detail, name)


# --- all clips, over processes -------------------------------------------------------------------


class ClipChecks(Dataset):
    """The results of all clips, as a data set, so that a loader's workers examine them."""

    def __init__(self, clips: list[Clip], config: Config):
        self.clips, self.config = clips, config

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        return examine_clip(self.clips[index], frames_needed(self.config), self.config)


def _examine_clips(clip_sets, config, report):
    """Add each clip's result to its set and to the report, in the order of the CSVs."""
    clips = [
        (clip_set, clip_set.folder.clip(clip_id))
        for clip_set in clip_sets
        for clip_id in clip_set.ids
    ]
    checks = ClipChecks([clip for _, clip in clips], config)
    loader = DataLoader(
        checks,
        batch_size=None,
        collate_fn=as_it_is,
        num_workers=processes.loader_workers(config.num_workers),
        worker_init_fn=_start_worker,
    )
    pace = {} if sys.stderr.isatty() else {"mininterval": 60}  # fewer lines in a log
    first_seen, number = {}, 0
    try:
        results = start_workers(loader)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about EXIF data and the like
            for number, result in enumerate(tqdm(results, "examining", unit=" clips", **pace)):
                clip_set, clip = clips[number]
                clip_set.lengths[result.num_frames] += 1
                clip_set.sizes.update(result.sizes)
                for kind, detail, frame in result.findings:
                    report.add(clip_set.name, kind, detail, clip.id, frame)
                _find_in_other_sets(clip_set, clip.id, result.digest, first_seen, report)
    except BaseException as error:  # mainly Ctrl-C: do not wait for the workers' clips
        end_workers()
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise UserError(
                f"{clips[number][1]}: a worker process died at this clip or one of the "
                "next, possibly for lack of memory; lower num_workers"
            ) from None
        raise


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


def _start_worker(_number):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping.SIGNALS)
    warnings.simplefilter("ignore")
    prepare_decoders()


# --- one clip, in a worker -----------------------------------------------------------------------


@dataclass
class ClipResult:
    """A worker's findings about one clip."""

    num_frames: int = 0
    sizes: Counter = field(default_factory=Counter)  # number of frames by (width, height)
    digest: bytes | None = None  # of the bytes of all frames; None if any frame is unreadable
    findings: list = field(default_factory=list)  # (kind, detail, frame)

    def add(self, kind, detail, frame=""):
        self.findings.append((kind, detail, frame))


def examine_clip(clip: Clip, frames_needed: int, config: Config) -> ClipResult:
    """Examine one clip; errors become findings. Those with fewer frames than needed are padded."""
    result = ClipResult()
    try:
        others = clip.folder.other_files(clip.id)
        source = clip.open(config)
        if source.native_rate is not None:  # a film
            _check_video(source, result)
            _check_length(result, frames_needed)
            return result
        result.num_frames, names = len(source), source.names
        if others:
            result.add("other files", summarize(map(repr, others)))
        _check_length(result, frames_needed)
        _check_numbers(names, result)
        _check_frames(source, config.max_frame_pixels, result)
    except FrameError as error:
        result.add("unreadable clip" if is_video(clip) else "empty clip", str(error))
    except Exception as error:  # of any kind: the other clips are still examined
        result.add("unreadable clip", f"{type(error).__name__}: {error}")
    return result


def _check_length(result, frames_needed):
    if result.num_frames < frames_needed:
        detail = f"{plural(result.num_frames, 'frame')}; training needs {frames_needed}"
        result.add("short clip", detail)


def _check_video(video: FrameSource, result):
    """Decode all frames that training may use; raise FrameError for damage."""
    result.num_frames = len(video)
    for frame in video.frames_at(range(len(video))):
        height, width, _ = frame.shape
        result.sizes[width, height] += 1
    result.digest = hashlib.blake2b(Path(video.path).read_bytes(), digest_size=16).digest()


def _check_numbers(frames, result):
    if decimals := decimals_of(frames):  # times, so there are no gaps
        doubled = [key[-1] for key, count in Counter(decimals.values()).items() if count > 1]
        if doubled:
            result.add("misnumbered frames", f"more than once: {summarize(doubled)}")
        return
    numbers = [[int(n) for n in re.findall(r"\d+", os.path.splitext(name)[0])] for name in frames]
    if not all(numbers):
        result.add("unnumbered frames", f"no number in {frames[numbers.index([])]!r}")
        return
    # A name may have several numbers: the first that changes is the frame's.
    columns = list(zip(*numbers, strict=False))
    own = next((column for column in columns if len(set(column)) > 1), columns[-1])
    doubled = [number for number, count in Counter(own).items() if count > 1]
    gaps = [f"{a} to {b}" for a, b in pairwise(sorted(set(own))) if b > a + 1]
    if doubled:
        result.add("misnumbered frames", f"more than once: {summarize(doubled)}")
    if gaps:
        result.add("misnumbered frames", f"gaps in the numbers: {summarize(gaps)}")
    if min(own) > 1:
        result.add("late first number", f"the first is {min(own)}")


def _check_frames(source: FrameSource, max_pixels, result):
    """Decode each frame; source: frames in files of their own, with `names` and `content`."""
    hasher, all_read = hashlib.blake2b(digest_size=16), True
    for position, name in enumerate(source.names):
        data = _check_frame(name, partial(source.content, position), max_pixels, result)
        all_read = all_read and len(data) > 0
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    if all_read:
        result.digest = hasher.digest()
    if len(result.sizes) > 1:
        result.add("mixed frame sizes", describe_sizes(result.sizes))


def _check_frame(frame, read, max_pixels, result) -> bytes:
    """Decode a frame; count its size, or add a finding. Returns the file's bytes, if readable."""
    data = b""
    try:
        data = read()
        height, width, _ = decode_frame(data, max_pixels).shape
        result.sizes[width, height] += 1
    except OSError as error:
        result.add("unreadable frame", error.strerror or str(error), frame)
    except FrameError as error:
        oversized = isinstance(error, OversizedFrameError)
        result.add("oversized frame" if oversized else "damaged frame", str(error), frame)
    return data

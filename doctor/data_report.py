"""The data doctor's report: the kinds of findings, their severity, and how they are written."""

import io
import os
from collections import Counter, defaultdict
from contextlib import contextmanager

from system.errors import UserError, summarize
from system.files import atomic_write

# Each kind of finding with its severity and remedy, in the order of the summary.
KINDS = {
    "unusable labels file": ("error", "correct labels_csv (or num_classes), see the detail"),
    "unreadable clip list": ("error", "correct the CSV, see the detail"),
    "unreadable data folder": ("error", "correct the path, or the permissions"),
    "unusable id": ("error", "use the name of one folder directly in the data folder"),
    "duplicate id": ("error", "keep one line per clip"),
    "too few clips": ("error", "add rows, or use the same spelling of labels in both files"),
    "class without clips": ("error", "add training clips, or drop the class from labels_csv"),
    "missing clip": ("error", "add the folder to the data folder, or drop the row"),
    "unreadable clip": ("error", "make the folder readable, or drop the row"),
    "empty clip": ("error", "extract its frames again, or drop the row"),
    "unreadable frame": ("error", "replace it with a readable file"),
    "damaged frame": ("error", "extract the frame again"),
    "oversized frame": ("error", "shrink the frame, or raise max_frame_pixels"),
    "misnumbered frames": ("error", "extract the clip again, or renumber its frames"),
    "mixed frame sizes": ("error", "extract the clip again; frames of two videos may be mixed"),
    "clip in two sets": ("error", "drop it from one of them; it would inflate the score"),
    "clip without group": ("error", "fill in the column `group`, or delete it"),
    "content in two sets": ("error", "drop it from one of them; it would inflate the score"),
    "group in two sets": (
        "note",
        "keep it in one set; otherwise the score is too high for new groups",
    ),
    "unknown label": ("note", "these rows are left out; to keep them, add the label to labels_csv"),
    "short clip": ("note", "padded with its last frame; a lower clip_size or step_size avoids it"),
    "late first number": ("note", "check whether the first frames were lost"),
    "unnumbered frames": ("note", "check that their alphabetical order is their order in time"),
    "other files": ("note", "they are ignored; convert them if they are frames"),
    "several frame sizes": ("note", "fine if intended: frames are scaled to frame_height"),
    "unlisted folder": ("note", "ignored; add a row to a CSV to use it as a clip"),
}
REPORT_COLUMNS = ("severity", "set", "clip", "frame", "kind", "detail")
NAMES_SHOWN = 10
ROWS_IN_MEMORY = 10_000  # a data set may have millions of damaged frames


class Report:
    """Writes the findings to a CSV file; keeps only the counts and the first names in memory."""

    def __init__(self, file):
        self.file = file
        self.rows = []  # not yet written
        self.counts = {kind: Counter() for kind in KINDS}  # by set
        self.names = defaultdict(list)  # by (kind, set)

    def add(self, set_name, kind, detail, clip="", frame=""):
        """Add a finding; `clip` is an id and `frame` a file name, if there is one."""
        clip, frame, detail = _printable(clip), _printable(frame), _printable(detail)
        self.counts[kind][set_name] += 1
        if self.counts[kind][set_name] <= NAMES_SHOWN:
            name = "/".join(part for part in (clip, frame) if part)
            self.names[kind, set_name].append(name or detail)
        self.rows.append((KINDS[kind][0], set_name, clip, frame, kind, detail))
        if len(self.rows) == ROWS_IN_MEMORY:
            self.write_rows()

    def write_rows(self):
        import pandas as pd  # not at the top: worker processes do not need it

        rows = pd.DataFrame(self.rows, columns=REPORT_COLUMNS)
        rows.to_csv(self.file, header=self.file.tell() == 0, index=False)
        self.rows = []

    def total(self, severity) -> int:
        return sum(c.total() for kind, c in self.counts.items() if KINDS[kind][0] == severity)


@contextmanager
def open_report(path):
    """Yield a Report; its file appears at `path` when the `with` block ends without an error."""
    try:
        # Two commands may run in the same folder.
        with atomic_write(path, partial=f"{path}.{os.getpid()}.partial") as file:
            text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
            report = Report(text)
            yield report
            report.write_rows()
            text.detach()
    except OSError as error:
        raise UserError(
            f"{path}: the report cannot be written ({error}); run the command in a folder that "
            "you may write to"
        ) from None


def _printable(text) -> str:
    """Escape line ends, control characters and undecodable bytes of file names."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_sets(clip_sets):
    for clip_set in clip_sets:
        lengths = clip_set.lengths
        print(f"{clip_set.name}: {plural(lengths.total(), 'clip')} examined in {clip_set.folder}")
        if lengths:
            num_frames = sum(length * clips for length, clips in lengths.items())
            print(
                f"  {plural(num_frames, 'frame')}; a clip has {min(lengths)} to {max(lengths)}, "
                f"mean {num_frames / lengths.total():.1f}"
            )
            print(f"  pixels: {describe_sizes(clip_set.sizes)}")
    print()


def print_findings(report):
    for kind, (severity, fix) in KINDS.items():
        if not report.counts[kind]:
            continue
        print(f"{severity}: {kind}")
        for set_name, count in report.counts[kind].items():
            names = report.names[kind, set_name]
            more = f" and {count - len(names):,} more" if count > len(names) else ""
            print(f"  {set_name} ({count:,}): {', '.join(names)}{more}")
        print(f"  -> {fix}\n")


def plural(count, noun) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def describe_sizes(sizes) -> str:
    """Return `176 x 100 (36 frames), ...` from a Counter by (width, height), most common first."""
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    few = summarize([f"{w} x {h} ({plural(count, 'frame')})" for (w, h), count in ordered], 5)
    return f"{len(sizes):,} sizes: {few}" if len(sizes) > 1 else few or "none"

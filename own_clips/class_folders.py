"""Find the clips in a folder with one folder per class, the layout of torchvision's `ImageFolder`.

`clips/wave/1.mp4`, `clips/wave/anna/1.mp4`, `clips/wave/1/00001.jpg`; or the same below `train/`
and `val/` (also `validation/`, `valid/`), with an optional `test/`, whose clips may lie directly in
it, without a class; or a pack of such folders.
"""

import pandas as pd

from clips.folders import ClipFolder
from clips.frames import composed, natural_key
from system.errors import UserError, summarize

PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
CONTROL_CHARACTERS = {chr(number) for number in range(32)} | {"\x7f"}


def labelled_clips(root: ClipFolder, others: list | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Return the clips below `root`, in natural order, and the folders without clips.

    The columns are id (the path below `root`), label (the class folder's name in NFC; empty for a
    test clip without) and part (`train`, `validation` or `test`; empty if the folder is not split).
    others: a list to which ignored files are added.
    Hidden files, and links that lead back to a folder above, are ignored.
    Raises UserError if there are no class folders, fewer than two classes, unusable names, or
    clips beside the folders of a split.
    """
    found = root.search()
    if others is not None:
        others += found.others
    if found.problems:
        raise UserError(f"--data {summarize(found.problems, 3)}")
    _check_names(root, [*found.ids, *found.empty])
    ids = sorted(found.ids, key=natural_key)
    paths = [clip_id.split("/") for clip_id in ids]
    _check_depth(root, paths)
    parts = _parts(root, paths)
    places = [1 if part else 0 for part in parts]  # of the class folder's name
    clips = pd.DataFrame(
        {
            "id": ids,
            "label": [
                composed("/".join(path[place:-1][:1]))
                for path, place in zip(paths, places, strict=True)
            ],
            "part": parts,
        }
    )
    labels = sorted(set(clips["label"]) - {""})
    if len(labels) < 2:
        raise UserError(
            f"--data {root}: a classifier needs two classes, but only {labels[0]!r} has clips; put "
            "the clips of each class into a folder with the name of the class"
        )
    return clips, found.empty


def _parts(root, paths: list[list[str]]) -> list[str]:
    """Return the part of each clip, by the name of its folder at the top; empty: not split."""
    parts = [PARTS.get(path[0].lower(), "") for path in paths]
    found = set(parts)
    is_split = "train" in found and ("" not in found or len(found) > 2)
    if not is_split or any(
        len(path) < 3 for path, part in zip(paths, parts, strict=True) if part == "train"
    ):  # a class that is called train
        return [""] * len(paths)
    beside = [
        "/".join(path)
        for path, part in zip(paths, parts, strict=True)
        if not part or (part == "validation" and len(path) < 3)
    ]
    if beside:
        raise UserError(
            f"--data {root}: is split into {summarize(sorted({path[0] for path in paths}), 5)}, "
            f"but {summarize(beside, 2)} are in no class folder of train/ or validation/; move "
            "them there, or out of the folder"
        )
    return parts


def _check_depth(root, paths: list[list[str]]) -> None:
    outside = ["/".join(path) for path in paths if len(path) < 2]
    if paths and not outside:
        return
    reason = f"there are clips directly in it ({summarize(outside, 2)})"
    if not paths:
        reason = "it has no videos and no folders of frames in it"
    raise UserError(
        f"--data {root}: expected one folder per class, but {reason}; put the clips of each class "
        "into a folder with the name of the class, or list them in CSVs and use --config"
    )


def _check_names(root, names: list[str]) -> None:
    """Raise UserError for names that do not fit the CSVs: one trimmed line per clip or class."""
    wrong = [name for name in names if any(map(_is_unusable, name.split("/")))]
    if wrong:
        raise UserError(
            f"--data {root}: {len(wrong):,} names with control characters, a backslash, a space at "
            f"their end, or bytes that are not UTF-8: {summarize(map(repr, wrong), 2)}; rename them"
        )


def _is_unusable(name: str) -> bool:
    is_text = not any("\ud800" <= character <= "\udfff" for character in name)
    return name != name.strip() or bool(({"\\"} | CONTROL_CHARACTERS) & set(name)) or not is_text

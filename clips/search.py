"""Finding clips: below a path, in a pack, and in an archive."""

import gzip
import io
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from clips.films import is_video
from clips.folders import Clip, clip_at, search_folder
from clips.frames import in_natural_order, natural_key
from clips.packs import SUFFIX, Pack
from system.errors import UserError, summarize

Frames = list[tuple[str, bytes]]  # name and content of each frame of a clip, in natural order

_GZIP, _ZIP = b"\x1f\x8b\x08", b"PK\3\4"
_ZIP_END = 22 + 20 + 56  # bytes of ZIP's end record and, if there are many files, of ZIP64's two
_BLOCK = 2**20
_TAR_BLOCK = 2**15  # tarfile copies the rest of a block with each header and file that it reads
_LETTERS_TO_DIGITS = str.maketrans("abcdefghijklmnopqrstuvwxyz", "0123456789abcdefghijklmnop")


def find_clips(path: str | Path, others: list | None = None) -> tuple[list[Clip], list[str]]:
    """Return the clips at or below a path, and a message for each folder that is not usable.

    Other folders, for example one per class, are searched. The path may also be a pack, or a folder
    in one. others: a list to which ignored files are added. Raises UserError if
    the path does not exist or is another file.
    """
    path = Path(path)
    pack = next(
        (
            each
            for each in (path, *path.parents)
            if each.suffix.lower() == SUFFIX and each.is_file()
        ),
        None,
    )
    if pack:
        return _packed_clips(Pack(pack), path.relative_to(pack).parts), []
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; correct the path")
    if path.is_dir():
        found = search_folder(path)
        if others is not None:
            others += found.others
        return list(map(clip_at, found.clips)), [message for _, message in found.problems]
    if not is_video(path):
        raise UserError(f"{path}: not a video file or a folder; give the clip's folder")
    return [clip_at(path)], []


def _packed_clips(pack: Pack, folder: tuple[str, ...]) -> list[Clip]:
    ids = sorted(clip_id.split("/") for clip_id in pack.ids())
    found = ["/".join(parts) for parts in ids if tuple(parts[: len(folder)]) == folder]
    if not found:
        raise UserError(f"{pack}: has no clip {'/'.join(folder)}; `pack.py --list` prints them")
    return [pack.clip(clip_id) for clip_id in found]


def no_films(paths) -> str:
    """Return a description of ignored files: how many there are, and the first ones."""
    kind = "file that is not a video" if len(paths) == 1 else "files that are not videos"
    return f"{len(paths):,} {kind}: {summarize(paths, 3)}"


# --- archives ----------------------------------------------------------------------------------


def is_hidden(path: str) -> bool:
    """Return whether a path in an archive, or a file's name, is a hidden one to leave out."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def ordered_parts(paths: list[Path]) -> list[Path]:
    """Return the parts of a split archive in natural order.

    Raises UserError if their names do not count up, by numbers or letters, without gaps.
    """
    paths = sorted(paths, key=lambda path: natural_key(str(path)))
    if len(paths) == 1:
        return paths
    ends = [re.fullmatch(r"(.*?)(\d+|[a-z]+)", str(path), re.DOTALL) for path in paths]
    if None in ends or len({(end[1], end[2].isdigit()) for end in ends}) > 1:
        raise UserError(
            f"{summarize(paths, 3)}: not the numbered parts of one archive; give one "
            "folder, one archive, or its parts"
        )
    numbers = [
        int(end[2]) if end[2].isdigit() else int(end[2].translate(_LETTERS_TO_DIGITS), 26)
        for end in ends
    ]
    for path, number, next_number in zip(paths, numbers, numbers[1:], strict=False):
        if next_number != number + 1:
            raise UserError(f"{path}: the part after this one is missing; download it")
    return paths


def archive_clips(
    paths: list[Path], is_frame: Callable[[str], bool], progress: Callable[[int], None]
) -> Iterator[tuple[str, Frames]]:
    """Yield path and frames of each clip in an archive, then its empty folders.

    Arguments and errors are those of `archive_members`; UserError also for frames in no folder.
    """
    clip, frames, clips, folders = None, [], set(), set()
    for path, data in archive_members(paths, is_frame, progress):
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise UserError(f"{path}: points outside the archive; do not trust it")
        folder = "/".join(parts if data is None else parts[:-1])
        if data is None:
            folders.add(folder)
            continue
        if not folder:
            raise UserError(f"{path}: is in no folder; put each clip in its own folder")
        if folder != clip:
            if frames:
                yield clip, _ordered(frames)
            clip, frames = folder, []
            clips.add(folder)
        frames.append((parts[-1], data))
    if frames:
        yield clip, _ordered(frames)
    inner = {path[: place.start()] for path in clips | folders for place in re.finditer("/", path)}
    for path in sorted(folders - clips - inner, key=natural_key):
        if path and not is_hidden(path):
            yield path, []


def _ordered(frames) -> Frames:
    contents = dict(frames)
    if len(contents) < len(frames):
        return frames  # `PackWriter.add_clip` refuses two frames of one name
    return [(name, contents[name]) for name in in_natural_order(contents)]


def archive_members(
    paths: list[Path], is_frame: Callable[[str], bool], progress: Callable[[int], None]
) -> Iterator[tuple[str, bytes | None]]:
    """Yield name and content of the frames in an archive, and names of folders with None.

    paths: a ZIP file, or a tar file, compressed or not, in one or several parts. is_frame: called
    with the name of each file. progress: called with the bytes of each piece of the archive. Raises
    UserError if the archive is damaged, cut off, or of another kind.
    """
    raw = _Parts(ordered_parts(paths), progress)
    try:
        with raw, io.BufferedReader(raw, _BLOCK) as stream:
            start = stream.peek(4)
            if start.startswith(_ZIP):
                if len(paths) > 1:
                    raise UserError(
                        f"{paths[0]}: a ZIP file in parts; join them into one file "
                        "first, or unpack them and pack their folder"
                    )
                yield from _zip_members(raw.path, is_frame, progress)
            elif start.startswith(_GZIP):
                with gzip.GzipFile(fileobj=stream) as unpacked:
                    yield from _tar_members(unpacked, is_frame)
            else:
                yield from _tar_members(stream, is_frame)
    except (
        EOFError,
        zlib.error,
        lzma.LZMAError,
        tarfile.TarError,
        zipfile.BadZipFile,
        NotImplementedError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk, unlike gzip's and bzip2's
        raise UserError(
            f"{raw.path}: damaged, cut off, or not a whole ZIP or tar file ({error}); "
            "download it again"
        ) from None


def _tar_members(stream, is_frame):
    watched = _Watched(stream)
    with tarfile.open(fileobj=watched, mode="r|", bufsize=_TAR_BLOCK) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # otherwise millions of them fill the memory
            if member.isdir():
                yield member.name, None
            elif (member.isfile() or member.issym() or member.islnk()) and is_frame(member.name):
                if not member.isfile():
                    raise UserError(
                        f"{member.name}: is a link; unpack the archive and pack its folder"
                    )
                yield member.name, archive.extractfile(member).read()
        end = archive.offset
    # tarfile stops without an error at the archive's end, at damage, and where the file is cut off
    # between two members; and gzip's CRC-32 comes last.
    while watched.read(_BLOCK):
        pass
    if watched.end_of_data > end:
        raise tarfile.ReadError("damage, or a second archive, in the middle")
    if watched.size == end:
        raise tarfile.ReadError("its end is missing")


class _Watched:
    """A stream for tarfile that records where the last nonzero byte was."""

    def __init__(self, stream):
        self.stream, self.size, self.end_of_data = stream, 0, 0

    def read(self, size: int) -> bytes:
        block = self.stream.read(size)
        if used := len(block.rstrip(b"\0")):
            self.end_of_data = self.size + used
        self.size += len(block)
        return block


def _zip_members(path, is_frame, progress):
    with zipfile.ZipFile(path) as archive:
        _check_zip_directory(path, archive)
        for info in sorted(archive.infolist(), key=_by_folder):
            progress(info.compress_size)
            if info.is_dir():
                yield info.filename, None
            elif is_frame(info.filename):
                if info.flag_bits & 1:
                    raise UserError(f"{path}: is encrypted; unpack it and pack its folder")
                yield info.filename, archive.read(info)


def _check_zip_directory(path, archive: zipfile.ZipFile) -> None:
    """Raise BadZipFile if the directory lacks entries, or the file begins with something else.

    zipfile reads those entries that exist, and the last of two archives.
    """
    with open(path, "rb") as file:
        file.seek(-min(_ZIP_END + len(archive.comment), os.path.getsize(path)), os.SEEK_END)
        tail = file.read()
    end = tail.rfind(b"PK\5\6", 0, len(tail) - len(archive.comment))
    if end < 0:
        raise zipfile.BadZipFile("something is after its end")
    (count,) = struct.unpack_from("<H", tail, end + 10)
    infos = archive.infolist()
    num_found = len(infos) % 2**16  # some programs write more files without ZIP64's record
    if (zip64 := tail.rfind(b"PK\6\6", 0, end)) >= 0:
        (count,) = struct.unpack_from("<Q", tail, zip64 + 32)
        num_found = len(infos)
    if num_found != count:
        raise zipfile.BadZipFile(f"{len(infos):,} of {count:,} files are in its directory")
    if infos and min(info.header_offset for info in infos):
        raise zipfile.BadZipFile("something is before its first file")


def _by_folder(info):
    folder, _, name = info.filename.rpartition("/")
    return natural_key(folder), natural_key(name)


class _Parts(io.RawIOBase):
    """The parts of a file as one stream; `path` is the part that is being read."""

    def __init__(self, paths, progress):
        self.paths, self.progress = iter(paths), progress
        self.path, self.file = paths[0], None

    def readable(self):
        return True

    def readinto(self, buffer) -> int:
        while self.file or self._open_next():
            try:
                size = self.file.readinto(buffer)
            except OSError as error:
                error.filename = self.path
                raise
            if size:
                self.progress(size)
                return size
            self.file.close()
            self.file = None
        return 0

    def _open_next(self) -> bool:
        path = next(self.paths, None)
        if path is not None:
            self.path, self.file = path, io.FileIO(path)
        return path is not None

    def close(self):
        if self.file:
            self.file.close()
        super().close()

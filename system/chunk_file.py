"""A large array in a file, computed chunk by chunk: what is done survives a kill.

Beside the array `NAME` there is a journal, `NAME.jsonl`, whose first line describes the array. One
line per finished chunk follows, once the chunk itself is on the disk.
"""

import io
import json
import os
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from system.files import write_text

SECONDS_BETWEEN_SYNCS = 2.0


class ChunkFile:
    """An array in a file without a name, which the system deletes when this process ends.

    `chunks`: those that are written, by number.
    """

    def __init__(self):
        descriptor, path = tempfile.mkstemp()
        os.unlink(path)
        self.file, self.chunks = io.FileIO(descriptor, "rb+"), {}

    def write(self, chunk: dict, data: bytes | memoryview) -> None:
        """Write the bytes of a chunk at its "offset"."""
        view, offset = memoryview(data).cast("B"), chunk["offset"]
        while view:  # a write may be cut short
            count = os.pwrite(self.file.fileno(), view, offset)
            view, offset = view[count:], offset + count
        self.chunks[chunk["chunk"]] = chunk

    def array(self, shape, dtype, offset: int = 0) -> np.ndarray:
        """Return the array, or a part of it, read from the disk where it is used."""
        return np.memmap(self.file, dtype, "r", offset, shape)

    def close(self) -> None:
        self.file.close()


class SharedFile(ChunkFile):
    """The file of an array that another process writes; it is opened once it is complete."""

    def __init__(self, path: Path):
        self.path, self.chunks = path, {}

    def write(self, chunk, data):
        self.chunks[chunk["chunk"]] = chunk

    def array(self, shape, dtype, offset=0):
        return np.memmap(self.path, dtype, "r", offset, shape)

    def close(self):
        pass


class JournaledFile(ChunkFile):
    """An array in a file with a journal, which a later process continues; one process writes it.

    `id` differs between any two such files.
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        """Open the file of the array that `about` describes, or start it anew.

        `changed` names the keys in which another array's description, found there, differs.
        Raises OSError if the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.journal, self.pending = path, journal_of(path), []
        header, self.chunks, length = read_journal(self.journal)
        self.id, known = header.get("id"), header.get("about", {})
        self.changed = sorted(key for key in about if key in known and known[key] != about[key])
        end = max((chunk["offset"] + chunk["size"] for chunk in self.chunks.values()), default=0)
        if known == about and path.exists() and path.stat().st_size >= end:
            os.truncate(self.journal, length)  # the last line may be half written
        else:
            self.id, self.chunks = uuid.uuid4().hex, {}
            for old in (self.journal, path):  # in this order: no journal of another array
                old.unlink(missing_ok=True)
            path.touch()
            write_text(self.journal, json.dumps({"id": self.id, "about": about}) + "\n")
        self.file, self.synced = io.FileIO(path, "rb+"), time.monotonic()

    def write(self, chunk, data):
        """Write a chunk; its line in the journal follows within seconds, or at `sync`."""
        super().write(chunk, data)
        self.pending.append(chunk)
        if time.monotonic() - self.synced > SECONDS_BETWEEN_SYNCS:
            self.sync()

    def sync(self) -> None:
        """Wait until all chunks are on the disk, and add their lines to the journal."""
        if self.pending:
            os.fsync(self.file.fileno())
            lines = "".join(json.dumps(chunk) + "\n" for chunk in self.pending)
            with open(self.journal, "a", encoding="utf-8") as journal:
                journal.write(lines)
            self.pending = []
        self.synced = time.monotonic()

    def close(self):
        self.sync()
        super().close()


def journal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.jsonl")


def read_journal(path: Path) -> tuple[dict, dict[int, dict], int]:
    """Return the header, the chunks by number, and the length in bytes of the whole lines.

    A journal that does not exist, or is damaged, is empty from there on.
    """
    header, chunks, length = {}, {}, 0
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        for line in path.read_bytes().splitlines(keepends=True):
            values = json.loads(line)
            if not line.endswith(b"\n"):
                break
            if header:
                chunks[int(values["chunk"])] = values | {"size": int(values["size"])}
            else:
                header = {"id": str(values["id"]), "about": dict(values["about"])}
            length += len(line)
    return header, chunks, length

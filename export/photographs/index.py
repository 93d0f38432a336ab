"""Where every picture of a source lies, kept on disk, so that a large tree is walked once.

Training begins with what was found within `FIRST_S`; a thread goes on and new pictures join as they are found. Walking
is the price of a tree of millions: about 10 s for a million files in the page cache, minutes on a cold disk.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from export.photographs.decode import Place
from export.photographs.errors import PhotographsError
from export.photographs.sources import Found, Source, search

log = logging.getLogger(__name__)

FIRST_S = 20.0
VERSION = 1


class Index:
    """Pictures by number, in an order that does not change while a program runs. Grows while the source is searched.

    Guarantees: what has a number stays as it is; `len` only grows; reading is safe while the search goes on.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        """Takes the index in `folder` if the source did not change since, else searches the source again.

        Raises `PhotographsError` for a source that cannot be searched.
        """
        self.source, self.folder = source, folder
        self.captions: dict[int, tuple[str, ...]] = {}
        self.labels: dict[int, str] = {}
        self.complete = False
        self.folders: dict[str, int] = {}
        self._names, self._name_ends = bytearray(), array("q")
        self._files: list[str] = []
        self._file_numbers: dict[str, int] = {}
        self._file, self._offset, self._size = array("l"), array("q"), array("q")
        self._error: PhotographsError | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if not self._read():
            self._search()

    def __len__(self) -> int:
        return len(self._size)  # the last that is appended to

    def name(self, number: int) -> str:
        start = self._name_ends[number - 1] if number else 0
        return bytes(self._names[start : self._name_ends[number]]).decode("utf-8", "surrogateescape")

    def place(self, number: int) -> Place:
        """Where the bytes of a picture lie, as `decode` takes it."""
        name, container = self.name(number), self._file[number]
        if container >= 0:
            file = self._files[container]
            return file, self._offset[number], self._size[number], f"{file}:{name}"
        file = name if os.path.isabs(name) else os.path.join(self._root(), name)
        return file, 0, -1, file

    def finish(self) -> None:
        """Waits until the search has ended: for those who need every picture, or the same pictures as others."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    _thread: threading.Thread | None = None

    def _root(self) -> str:
        place = self.source.places[0]
        return place if self.source.kind == "folder" else os.path.dirname(place)

    def _search(self) -> None:
        found = self._found()
        if self._take(found, time.monotonic() + FIRST_S):
            self._sort()
            self._write()
            return
        self._thread = threading.Thread(target=self._go_on, args=(found,), daemon=True, name="photographs-index")
        self._thread.start()

    def _found(self) -> Iterator[Found]:
        if self.source.kind == "hub":
            from export.photographs.hub import from_hub

            return from_hub(self.source, self.folder)
        return search(self.source, self.folders)

    def _take(self, found: Iterator[Found], until: float) -> bool:
        """Whether the search ended before `until`."""
        for each in found:
            self._append(each)
            if time.monotonic() > until and len(self) >= 32:
                return False
        self.complete = True
        return True

    def _go_on(self, found: Iterator[Found]) -> None:
        try:
            self._take(found, float("inf"))
            self._write()
        except PhotographsError as error:
            self._error = error
            log.warning("%s; training goes on with the %d photographs found so far", error, len(self))

    def _append(self, found: Found) -> None:
        number = len(self)
        if found.captions:
            self.captions[number] = found.captions
        if found.label:
            self.labels[number] = found.label
        alone = found.offset == 0 and found.size < 0
        name = found.name
        if alone and self.source.kind == "list":
            name = found.file
        self._names += name.encode("utf-8", "surrogateescape")
        self._name_ends.append(len(self._names))
        if alone:
            self._file.append(-1)
        else:
            if found.file not in self._file_numbers:
                self._file_numbers[found.file] = len(self._files)
                self._files.append(found.file)
            self._file.append(self._file_numbers[found.file])
        self._offset.append(found.offset)
        self._size.append(found.size)

    def _sort(self) -> None:
        """A folder that was wholly searched in time goes by name: the same on every machine."""
        if self.source.kind != "folder":
            return
        names = [self.name(number) for number in range(len(self))]
        order = sorted(range(len(names)), key=names.__getitem__)
        place = {old: new for new, old in enumerate(order)}
        self.captions = {place[number]: value for number, value in self.captions.items()}
        self.labels = {place[number]: value for number, value in self.labels.items()}
        encoded = [names[number].encode("utf-8", "surrogateescape") for number in order]
        self._names = bytearray(b"".join(encoded))
        self._name_ends = array("q", np.cumsum([len(each) for each in encoded], dtype=np.int64).tolist())

    def _write(self) -> None:
        """Best effort: an index that cannot be kept is made again next time."""
        about = {
            "version": VERSION,
            "source": self.source.text,
            "stamp": self.source.stamp(self.folders),
            "complete": self.complete,
            "files": self._files,
            "folders": self.folders,
            "captions": {str(number): value for number, value in self.captions.items()},
            "labels": {str(number): value for number, value in self.labels.items()},
        }
        partial = self.folder / f"index-{os.getpid()}.partial.npz"
        try:
            np.savez(
                partial,
                names=np.frombuffer(bytes(self._names), np.uint8),
                ends=np.array(self._name_ends, np.int64),
                container=np.array(self._file, np.int64),
                offset=np.array(self._offset, np.int64),
                size=np.array(self._size, np.int64),
                about=np.frombuffer(json.dumps(about).encode("utf-8", "surrogateescape"), np.uint8),
            )
            partial.rename(self.folder / "index.npz")
        except OSError:
            partial.unlink(missing_ok=True)

    def _read(self) -> bool:
        path = self.folder / "index.npz"
        try:
            with np.load(path) as kept:
                about = json.loads(bytes(kept["about"]).decode("utf-8", "surrogateescape"))
                if about["version"] != VERSION or not self._as_it_was(about):
                    return False
                self._names = bytearray(kept["names"].tobytes())
                self._name_ends, self._file = array("q", kept["ends"].tolist()), array("l", kept["container"].tolist())
                self._offset, self._size = array("q", kept["offset"].tolist()), array("q", kept["size"].tolist())
        except (OSError, ValueError, KeyError, EOFError):
            return False
        self._files, self.folders = about["files"], about["folders"]
        self._file_numbers = {file: number for number, file in enumerate(self._files)}
        self.captions = {int(number): tuple(value) for number, value in about["captions"].items()}
        self.labels = {int(number): value for number, value in about["labels"].items()}
        self.complete = about["complete"]
        return self.complete

    def _as_it_was(self, about: dict) -> bool:
        try:
            now = {folder: os.stat(folder).st_mtime_ns for folder in about["folders"]}
            return self.source.stamp(now) == about["stamp"]
        except OSError:
            return False

    @property
    def stamp(self) -> str:
        """Changes when other pictures have the numbers."""
        return self.source.stamp(self.folders) if self.complete else "growing"

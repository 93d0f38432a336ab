"""A folder that is watched: what is added to it, replaced in it or rewritten, at a small and bounded cost.

Two kinds of look. A quick one lists only those folders whose time of change moved, and asks the system about files that
are new or whose inode changed: additions and renames move that time. A whole one asks about every file, since a file
that is rewritten in place moves nothing else. Each waits for many times what the last one cost, so that a hundred
thousand old files take a few hundredths of a core, not a whole one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import described
from edge.field.frame_keys import mark_of, marked_key
from edge.field.shot import Shot
from edge.line.image_files import EXTENSIONS, natural, search
from edge.line.web import MAX_IMAGE_BYTES
from thinwire.text import safe_text, shown_address

SCAN_EVERY_S = 1.0
REST = 30  # times the cost of a look, until the next one: 3 % of a core at most
SETTLED_S = 0.5  # a file that has not changed for so long is taken for complete
YOUNG_EVERY_S = 0.2  # how often files that may still be written are looked at
FRESH_NS = 2_000_000_000
MAX_YOUNG = 64  # of them held open at a time


@dataclass
class _Young:
    """A file that may still be written, held open: renaming another file over it does not affect it."""

    handle: int
    mark: str
    since: float  # monotonic
    seen_at: float


class WatchedFolder:
    """A folder, looked through for image files that are new or have changed, and are complete.

    Complete: unchanged for half a second. A file that another is renamed over meanwhile is taken all the same, from the
    handle that was opened before. A folder that is gone is waited for. say: told when it goes and comes back.
    """

    live = False

    def __init__(self, folder: str, question: str, say: Callable[[str], None] = lambda text: None) -> None:
        self.name = shown_address(folder)
        self.trouble: dict[str, Any] | None = None
        self._folder, self._question, self._say = Path(folder), question, say
        self._seen: dict[str, tuple[int, str]] = {}  # path → inode and mark of what was given
        self._folders: dict[str, int] = {}  # path → time of change at the last listing
        self._young: dict[str, _Young] = {}
        self._told: set[str] = set()

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        quick_at = whole_at = 0.0
        try:
            while not stop.is_set():
                now = time.monotonic()
                whole = now >= whole_at
                if whole or now >= quick_at:
                    started = time.thread_time()
                    shots = self._guarded(whole)
                    cost_s = time.thread_time() - started
                    quick_at = time.monotonic() + max(SCAN_EVERY_S, REST * cost_s)
                    if whole:
                        whole_at = time.monotonic() + max(SCAN_EVERY_S, 2 * REST * cost_s)
                    for shot in shots:
                        yield shot
                        if stop.is_set():
                            return
                for shot in self._settled():
                    yield shot
                    if stop.is_set():
                        return
                stop.wait(min(max(0.0, quick_at - time.monotonic()), YOUNG_EVERY_S if self._young else SCAN_EVERY_S))
        finally:
            for young in self._young.values():
                os.close(young.handle)
            self._young.clear()

    def _guarded(self, whole: bool) -> list[Shot]:
        """A look that no exception ends: the folder is looked at again with the next one."""
        try:
            shots = self._look(whole)
        except Exception as error:  # of a failing file system, or an unexpected name
            text = safe_text(f"{self.name}: {described(error)}")
            if self.trouble is None:
                self._say(f"{text}; looking again until it can be read")
                self.trouble = {"since": time.time(), "error": text}
            self._folders.clear()
            return []
        if self.trouble is not None:
            self._say(f"{self.name}: can be read again")
            self.trouble = None
        return shots

    def _look(self, whole: bool) -> list[Shot]:
        if whole and not self._folders:
            self._tell_left_out()
        new: list[Path] = []
        present: set[str] = set()
        kept: dict[str, int] = {}
        self._walk(whole, new, present, kept)
        if whole:
            self._seen = {path: seen for path, seen in self._seen.items() if path in present}
        self._folders = kept
        found = (self._shot(path) for path in sorted(new, key=natural))
        return [shot for shot in found if shot is not None]

    def _tell_left_out(self) -> None:
        for note in search([self._folder]).notes():
            if note not in self._told:
                self._told.add(note)
                self._say(note)

    def _walk(self, whole: bool, new: list[Path], present: set[str], kept: dict[str, int]) -> None:
        """Fills in files to ask about, names of images seen, and folders with their times of change."""
        top = os.fspath(self._folder)
        below: dict[str, list[str]] = {}
        for each in self._folders:
            below.setdefault(os.path.dirname(each), []).append(each)
        stack = [top]
        while stack:
            folder = stack.pop()
            try:
                changed = os.stat(folder).st_mtime_ns
                # A folder's clock is coarse: what is added just after a look may leave it as it was
                fresh = time.time_ns() - changed < FRESH_NS
                if not whole and not fresh and self._folders.get(folder) == changed:
                    kept[folder] = changed
                    stack.extend(below.get(folder, ()))
                    continue
                with os.scandir(folder) as entries:
                    listed = list(entries)
            except OSError:
                if folder == top:
                    raise
                continue  # below, a folder that is gone again, or may not be read (the first search says so)
            kept[folder] = changed
            for entry in listed:
                if entry.name.startswith("."):
                    continue
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                        continue
                if os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    present.add(entry.path)
                    held = self._seen.get(entry.path)
                    known = held is not None and held[0] == entry.inode() and not entry.is_symlink()
                    if entry.path not in self._young and (whole or not known):
                        new.append(Path(entry.path))

    def _shot(self, path: Path) -> Shot | None:
        """The file's frame; None where there is nothing new, or not yet."""
        name = os.fspath(path)
        try:
            inode = os.lstat(path).st_ino
            found = path.stat()
        except (OSError, ValueError) as error:  # a link to nowhere, a loop, a name too long: opening it tells
            return self._unreachable(path, error)
        mark = mark_of(found)
        if self._seen.get(name) == (inode, mark) or not os.path.isfile(path):
            return None
        # An age below zero is a file from the future (the clock was set back): as complete as it gets
        if 0 <= time.time() - found.st_mtime < SETTLED_S:
            self._hold(path, mark)
            return None
        self._seen[name] = (inode, mark)
        return self._made(path, mark, path, found.st_mtime)

    def _unreachable(self, path: Path, error: Exception) -> Shot | None:
        try:
            inode = os.lstat(path).st_ino
        except (OSError, ValueError):
            return None  # gone again
        mark = f"missing: {type(error).__name__}"
        if self._seen.get(os.fspath(path)) == (inode, mark):
            return None
        self._seen[os.fspath(path)] = (inode, mark)
        return self._made(path, "missing", path, time.time())

    def _hold(self, path: Path, mark: str) -> None:
        if len(self._young) >= MAX_YOUNG:
            return  # the next look finds it again
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            now = time.monotonic()
            self._young[os.fspath(path)] = _Young(handle, mark, now, now)

    def _settled(self) -> list[Shot]:
        """Frames of files that have not changed for a while."""
        shots = []
        for name, young in list(self._young.items()):
            now = time.monotonic()
            try:
                found = os.fstat(young.handle)
                mark = mark_of(found)
                if mark != young.mark:
                    young.mark, young.since = mark, now
                    continue
                if now - young.since < SETTLED_S:
                    continue
                path = Path(name)
                in_place = False
                with contextlib.suppress(OSError):
                    there = path.stat()
                    in_place = (there.st_ino, there.st_dev) == (found.st_ino, found.st_dev)
                if in_place:
                    shots.append(self._made(path, mark, path, found.st_mtime))
                    self._seen[name] = (os.lstat(path).st_ino, mark)
                elif found.st_size <= MAX_IMAGE_BYTES:
                    data = os.pread(young.handle, found.st_size, 0)
                    shots.append(self._made(path, mark, data, found.st_mtime))
                    self._seen.setdefault(name, (found.st_ino, mark))
            except OSError:
                pass
            del self._young[name]
            os.close(young.handle)
        return shots

    def _made(self, path: Path, mark: str, image: Path | bytes, at: float) -> Shot:
        key = marked_key(path, mark, self._question)
        return Shot(key, safe_text(path), at, image, place=safe_text(path.parent))


class WatchedFile(WatchedFolder):
    """One image file that is written again and again, or will be there later."""

    def __init__(self, path: str, question: str, say: Callable[[str], None] = lambda text: None) -> None:
        super().__init__(os.path.dirname(path) or ".", question, say)
        self.name, self._path = shown_address(path), path

    def _tell_left_out(self) -> None:
        if not os.path.lexists(self._path) and not self._told:
            self._told.add(self._path)
            self._say(f"{self.name}: is not there yet: waiting for it")

    def _walk(self, whole: bool, new: list[Path], present: set[str], kept: dict[str, int]) -> None:
        if os.path.lexists(self._path):
            kept[self._path] = 0
            present.add(self._path)
            if self._path not in self._young:
                new.append(Path(self._path))

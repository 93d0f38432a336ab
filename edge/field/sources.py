"""Frames for `thinwire-edge run`: image files, folders, paths on stdin (`edge.field.watch`, `edge.field.video`: more).

Each source is an iterator of `Shot`. Live sources (cameras, RTSP) give the newest frame, and drop frames that come
while the encoder is busy; other sources wait.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from edge.errors import SourceError
from edge.field.frame_keys import file_key
from edge.field.in_work import InWork
from edge.field.shot import Shot, Source
from edge.field.video import Video, is_video
from edge.field.watch import WatchedFile, WatchedFolder
from edge.line.image_files import plain_word, search
from thinwire.files import other_kind
from thinwire.image_names import is_image_name
from thinwire.text import safe_text, shown

MAX_NAME_BYTES = 1 << 20


class Files:
    """Image files, and folders searched for them, once. Files that are gone are still named (opening them tells)."""

    live = False
    trouble: dict[str, Any] | None = None

    def __init__(self, paths: list[str], question: str, say: Callable[[str], None]) -> None:
        self.name = ", ".join(map(shown, paths))
        self._paths, self._question, self._say = paths, question, say

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        found = search(self._paths)
        for note in found.notes():
            self._say(note)
        if not found.images:  # no error: a run is also started to send what waits in its spool
            self._say(f"no image files in {self.name}: nothing new to send (--watch waits for some)")
        for source in found.images:
            if stop.is_set():
                return
            yield _file_shot(source.path, self._question)


class Lines:
    """Paths of image files, until the stream ends (stdin: `find ... | thinwire-edge run -`, with or without -print0).

    Names may hold any bytes; a line that no file can be called gets a frame too, whose result says so.
    """

    live = False
    name = "stdin"
    trouble: dict[str, Any] | None = None

    def __init__(self, question: str, stream: TextIO | None = None) -> None:
        stream = stream or sys.stdin
        self._stream = stream.buffer if isinstance(stream, io.TextIOWrapper) else stream
        self._question = question

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        for line in _names(self._stream):
            if stop.is_set():
                return
            name = os.fsdecode(line).rstrip("\r\n")
            if name.strip():
                yield _file_shot(Path(name), self._question)


def _names(stream: BinaryIO | TextIO) -> Iterator[bytes]:
    """Names as they come, one a line, or with a zero byte after each (`find -print0`): the first separator decides.

    Raises `SourceError` for what holds no names.
    """
    read = getattr(stream, "read1", stream.read)
    rest, separator = b"", b""
    while chunk := read(1 << 16):
        rest += os.fsencode(chunk)  # a text stream in the place of stdin gives text
        if not separator:
            if other_kind(rest[:64]) not in (None, "a text file"):
                raise SourceError(
                    f"stdin: holds {other_kind(rest[:64])}, and - is for names of files: give /dev/stdin in place of -"
                )
            found = re.search(rb"[\0\n]", rest)
            if found is None and len(rest) > MAX_NAME_BYTES:
                raise SourceError("stdin: holds no line ends: give the name of one file a line")
            if found is None:
                continue
            separator = found.group()
        *names, rest = rest.split(separator)
        yield from names
    if rest:
        yield rest


def open_sources(
    args: argparse.Namespace, question: str, say: Callable[[str], None], in_work: InWork | None = None
) -> list[Source]:
    """The sources that the words of the command line mean."""
    sources: list[Source] = []
    plain: list[str] = []
    for word in map(plain_word, args.sources):
        if word == "-":
            sources.append(Lines(question))
        elif args.watch and not is_video(word):
            is_file = os.path.isfile(word) or (not os.path.isdir(word) and is_image_name(Path(word).name))
            sources.append((WatchedFile if is_file else WatchedFolder)(word, question, say))
        elif is_video(word):
            sources.append(Video(word, question, args.fps, say, in_work))
        else:
            plain.append(word)
    return [Files(plain, question, say), *sources] if plain else sources


def _file_shot(path: Path, question: str) -> Shot:
    try:
        at = path.stat().st_mtime
    except (OSError, ValueError):
        at = time.time()  # opening it will tell what is wrong
    return Shot(file_key(path, question), safe_text(path), at, path, place=safe_text(path.parent))

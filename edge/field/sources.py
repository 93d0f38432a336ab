"""Frames for `thinwire-edge run`: files, watched folders, paths on stdin, videos, cameras and network streams.

Each source is an iterator of `Shot`. Live sources (cameras, RTSP) give the newest frame and drop those that nobody was
ready for; the others wait. Videos and cameras need PyAV (the extra `edge-video`).
"""

from __future__ import annotations

import os
import random
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from edge.errors import SourceError, SourceLost
from edge.field.frame_keys import file_key, fresh_key
from edge.line.image_files import find_images

VIDEO_ENDINGS = frozenset((".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".ts", ".mjpeg", ".mjpg", ".h264"))
SCAN_EVERY_S = 1.0
SETTLED_S = 0.5  # a file that has not changed for so long is taken for complete
RECONNECT_S = (1.0, 30.0)
DAMAGED_PACKETS = 100  # in a row
SILENCE_S = 10.0  # a camera that gives no frame for so long is taken for unplugged


@dataclass(frozen=True)
class Shot:
    """One frame to be looked at. key: see `edge.field.frame_keys`; image: a path, or uint8 (H, W, 3) RGB."""

    key: bytes
    source: str
    captured_at: float
    image: Path | np.ndarray


class Files:
    """Image files, and folders searched for them, once. Files that are gone are still named (opening them tells)."""

    live = False

    def __init__(self, paths: list[str], question: str, say: Callable[[str], None]) -> None:
        self._paths, self._question, self._say = paths, question, say

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        found = find_images(self._paths)
        if not found:  # no error: a run is also started to send what waits in its spool
            self._say(f"no image files in {', '.join(self._paths)}: nothing new to send (--watch waits for some)")
        for source in found:
            if stop.is_set():
                return
            yield _file_shot(source.path, self._question)


class WatchedFolder:
    """A folder, looked through every second for image files that are new or have changed, and are complete.

    Complete: unchanged for half a second (or renamed into the folder after being written, which is better).
    """

    live = False

    def __init__(self, folder: str, question: str) -> None:
        self._folder, self._question = folder, question
        self._seen: dict[Path, tuple[int, int]] = {}

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        while not stop.is_set():
            present = set()
            for source in find_images([self._folder]) if os.path.isdir(self._folder) else ():
                try:
                    found = source.path.stat()
                except OSError:
                    continue  # gone again
                present.add(source.path)
                mark = (found.st_size, found.st_mtime_ns)
                # An age below zero is a file from the future (the clock was set back): as complete as it gets
                if self._seen.get(source.path) == mark or 0 <= time.time() - found.st_mtime < SETTLED_S:
                    continue
                self._seen[source.path] = mark
                yield _file_shot(source.path, self._question)
                if stop.is_set():
                    return
            self._seen = {path: mark for path, mark in self._seen.items() if path in present}
            stop.wait(SCAN_EVERY_S)


class Lines:
    """Paths of image files, one a line, from a text stream until it ends (stdin: `find ... | thinwire-edge run -`)."""

    live = False

    def __init__(self, question: str, stream: TextIO | None = None) -> None:
        self._stream, self._question = stream or sys.stdin, question

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        for line in self._stream:
            if stop.is_set():
                return
            if line.strip():
                yield _file_shot(Path(line.rstrip("\r\n")), self._question)


class Video:
    """A video file (to its end), or a camera or network stream (for ever, opened again whenever it is lost).

    address: what PyAV opens: a path, /dev/video0, rtsp://..., http://..., tcp://... fps: frames a second to look at;
    None for all. say: told once when a camera is lost and when it is back. Raises `SourceError` without PyAV, or for a
    file that is no video.
    """

    def __init__(self, address: str, question: str, fps: float | None, say: Callable[[str], None]) -> None:
        self.live = is_live(address)
        self._address, self._question, self._fps, self._say = address, question, fps, say
        _pyav()

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        if not self.live:
            path = Path(self._address)
            for index, (image, _) in enumerate(self._frames(stop)):
                key = file_key(path, self._question, index + 1)
                yield Shot(key, f"{path}#{index}", time.time(), image)
            return
        pause = 0.0
        while not stop.is_set():
            try:
                for image, at in self._frames(stop):
                    if pause:
                        self._say(f"{self._address}: gives frames again")
                        pause = 0.0
                    yield Shot(fresh_key(), self._address, at, image)
                raise SourceLost(f"{self._address}: the stream ended")
            except SourceLost as error:
                if stop.is_set():
                    return
                if not pause:
                    self._say(f"{error}; opening it again until it is back")
                pause = min(RECONNECT_S[1], max(RECONNECT_S[0], 2 * pause))
                stop.wait(random.uniform(pause / 2, pause))

    def _frames(self, stop: threading.Event) -> Iterator[tuple[np.ndarray, float]]:
        """Sampled frames uint8 (H, W, 3) with their wall-clock times. Raises `SourceLost` or `SourceError`."""
        av = _pyav()
        # By default FFmpeg looks at five seconds of a stream before it gives the first frame
        options = {"analyzeduration": "500000", "fflags": "nobuffer"} if self.live else {}
        if self._address.startswith("rtsp"):
            options["rtsp_transport"] = "tcp"
        form = "v4l2" if self._address.startswith("/dev/") else None
        try:
            with av.open(self._address, format=form, options=options, timeout=SILENCE_S) as container:
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                due: float | None = None
                for frame in _decoded(av, container, stream):
                    if stop.is_set():
                        return
                    if self._fps is not None:
                        at = time.monotonic() if self.live or frame.time is None else frame.time
                        if due is not None and at < due - 1e-6:
                            continue
                        due = at + 1 / self._fps if due is None else max(due + 1 / self._fps, at)
                    yield frame.to_ndarray(format="rgb24"), time.time()
        except (av.FFmpegError, OSError, IndexError) as error:
            kind = SourceLost if self.live else SourceError
            raise kind(f"{self._address}: {getattr(error, 'strerror', None) or error}") from error


def _decoded(av, container, stream) -> Iterator:
    """Frames of a stream; packets that are damaged (a lossy radio, a stream joined midway) are passed over."""
    damaged = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            damaged += 1
            if damaged > DAMAGED_PACKETS:
                raise
            continue
        damaged = 0 if frames else damaged
        yield from frames


def is_live(address: str) -> bool:
    """Whether an address is a camera or a stream rather than a file."""
    if "://" in address:
        return not address.startswith("file://")
    try:
        return stat.S_ISCHR(os.stat(address).st_mode)
    except OSError:
        return address.startswith("/dev/")


def is_video(address: str) -> bool:
    return is_live(address) or Path(address).suffix.lower() in VIDEO_ENDINGS


class Gate:
    """Lets a frame through when the scene has changed since the last one that went through.

    Change is the mean absolute difference of 32x18 luma thumbnails, as a share of full scale: the sensor noise of a
    still scene is under 0.01, a person walking in is about 0.03 and more. 0 lets everything through.
    """

    def __init__(self, least_change: float) -> None:
        if not 0 <= least_change < 1:
            raise SourceError(f"a scene change is a share from 0 to 1, not {least_change}")
        self._least = least_change
        self._last: dict[str, np.ndarray] = {}

    def passes(self, source: str, view: np.ndarray) -> bool:
        """view: uint8 (H, W, 3)."""
        if self._least == 0:
            return True
        small = _thumbnail(view)
        last = self._last.get(source)
        if last is not None and np.abs(small - last).mean() < 255 * self._least:
            return False
        self._last[source] = small
        return True


def _thumbnail(view: np.ndarray) -> np.ndarray:
    """Means of a grid of cells: uint8 (H, W, 3) → float32 (18, 32) or coarser."""
    luma = view[..., 1].astype(np.float32)  # green is three fifths of luma, and enough
    rows, columns = min(18, luma.shape[0]), min(32, luma.shape[1])
    high, wide = luma.shape[0] // rows, luma.shape[1] // columns
    return luma[: rows * high, : columns * wide].reshape(rows, high, columns, wide).mean(axis=(1, 3))


def parse_crop(text: str) -> tuple[float, float, float, float]:
    """ "X,Y,W,H" in pixels, or as shares when all are at most 1. Raises `SourceError`."""
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise SourceError(f"--crop {text!r}: write X,Y,W,H in pixels, or in shares of the frame from 0 to 1") from None
    if min(x, y) < 0 or min(width, height) <= 0:
        raise SourceError(f"--crop {text!r}: X and Y are 0 or more, W and H above 0")
    return x, y, width, height


def cropped(image: np.ndarray, crop: tuple[float, float, float, float]) -> np.ndarray:
    """The part of uint8 (H, W, 3) that lies inside. Raises `SourceError` when none does."""
    high, wide = image.shape[:2]
    x, y, width, height = crop
    if max(crop) <= 1:
        x, width, y, height = x * wide, width * wide, y * high, height * high
    part = image[round(y) : round(y + height), round(x) : round(x + width)]
    if part.size == 0:
        raise SourceError(f"--crop leaves nothing of a frame of {wide}x{high} pixels")
    return np.ascontiguousarray(part)


def _file_shot(path: Path, question: str) -> Shot:
    try:
        at = path.stat().st_mtime
    except OSError:
        at = time.time()  # opening it will tell what is wrong
    return Shot(file_key(path, question), os.fspath(path), at, path)


def _pyav():
    try:
        import av
    except ModuleNotFoundError as error:
        raise SourceError("videos and cameras need PyAV: pip install 'thinwire[edge-video]'") from error
    av.logging.set_level(None)
    return av

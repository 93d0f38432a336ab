"""Frames of videos, cameras and network streams, by PyAV (the extra `edge-video`)."""

from __future__ import annotations

import os
import random
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import SourceError, SourceLost, described
from edge.field.frame_keys import file_key, fresh_key
from edge.field.in_work import MAX_DEATHS, InWork
from edge.field.shot import Shot
from edge.line.image_files import VIDEO_ENDINGS
from edge.line.web import WebError, checked, fetched_image, is_web_address
from thinwire.imaging import MAX_IMAGE_PIXELS
from thinwire.proxies import proxy_of
from thinwire.text import safe_text, shown, shown_address, without_secrets

RECONNECT_S = (1.0, 30.0)
DAMAGED_PACKETS = 100  # in a row
SILENCE_S = 10.0  # a camera that gives no frame for so long is taken for unplugged
MIN_ASPECT = Fraction(1, 4)  # of a pixel; beyond it the file is wrong
CLOCK_JUMP_S = 1.0  # of a recording's own clock, back: another recording was joined on
SNAPSHOT_EVERY_S = 1.0  # without --fps


class Video:
    """A video file (to its end), or a camera or network stream (for ever, opened again whenever it is lost).

    address: what PyAV opens: a path, /dev/video0, rtsp://..., http://..., tcp://...; an http address that gives one
    picture at a time (a camera's snapshot) is asked again and again. fps: frames a second to look at; None for all
    (snapshots: one a second). say: told once when a camera is lost and when it is back. Raises `SourceError` without
    PyAV, which snapshots do not need.
    """

    def __init__(
        self,
        address: str,
        question: str,
        fps: float | None,
        say: Callable[[str], None],
        in_work: InWork | None = None,
    ) -> None:
        self.live = is_live(address)
        self.name = shown_address(address)
        self.trouble: dict[str, Any] | None = None
        self._address, self._question, self._fps, self._say = address, question, fps, say
        self._in_work = in_work
        if "://" in address and not re.search(r"(?<=://)[^/?#]", address):
            raise SourceError(f"{self.name}: names no host: write {address.partition('://')[0]}://HOST[:PORT]/PATH")
        if is_web_address(address):
            try:
                checked(address)
            except WebError as error:
                raise SourceError(f"{self.name}: is no web address ({error})") from error
        else:
            _pyav()

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        return self._live_shots(stop) if self.live else self._file_shots(stop)

    def _file_shots(self, stop: threading.Event) -> Iterator[Shot]:
        path = Path(self._address.removeprefix("file://"))
        frames = self._frames(stop)
        index = 0
        while True:
            key = file_key(path, self._question, index + 1)
            if self._in_work is None:
                found = next(frames, None)
            elif self._in_work.given_up(key):
                raise SourceError(
                    f"{self.name}: the process died {MAX_DEATHS} times at its frame {index}: the rest of it is left out"
                )
            else:
                with self._in_work.on(key):
                    found = next(frames, None)
            if found is None:
                return
            yield Shot(key, f"{self.name}#{index}", time.time(), found[0], place=self.name)
            index += 1

    def _live_shots(self, stop: threading.Event) -> Iterator[Shot]:
        pause = 0.0
        while not stop.is_set():
            try:
                for image, at in self._live_frames(stop):
                    if pause:
                        self._say(f"{self.name}: gives frames again")
                        pause, self.trouble = 0.0, None
                    yield Shot(fresh_key(), self.name, at, image, live=True, place=self.name)
                raise SourceLost(f"{self.name}: the stream ended")
            except (GeneratorExit, SourceError):
                raise
            except Exception as error:  # a camera is never given up, whatever it or FFmpeg does
                if stop.is_set():
                    return
                text = str(error) if isinstance(error, SourceLost) else f"{self.name}: {described(error)}"
                text = without_secrets(safe_text(text))
                if not pause:
                    self._say(f"{text}; opening it again until it is back")
                    self.trouble = {"since": time.time(), "error": text}
                pause = min(RECONNECT_S[1], max(RECONNECT_S[0], 2 * pause))
                stop.wait(random.uniform(pause / 2, pause))

    def _live_frames(self, stop: threading.Event) -> Iterator[tuple[np.ndarray | bytes, float]]:
        if is_web_address(self._address) and (first := _snapshot(self._address, self.name)) is not None:
            return self._snapshots(first, stop)
        return self._frames(stop)

    def _snapshots(self, first: bytes, stop: threading.Event) -> Iterator[tuple[bytes, float]]:
        """Image files at the rate asked for. A picture that comes late moves the next one, it does not add to it."""
        every_s = SNAPSHOT_EVERY_S if self._fps is None else 1 / self._fps
        data: bytes | None = first
        while not stop.is_set():
            due = time.monotonic() + every_s
            yield data, time.time()
            if stop.wait(max(0.0, due - time.monotonic())):
                return
            data = _snapshot(self._address, self.name)
            if data is None:
                raise SourceLost(f"{self.name}: gives no picture any more")

    def _frames(self, stop: threading.Event) -> Iterator[tuple[np.ndarray, float]]:
        """Sampled frames uint8 (H, W, 3) with their wall-clock times. Raises `SourceLost` or `SourceError`."""
        av = _pyav()
        # By default FFmpeg looks at five seconds of a stream before it gives the first frame
        options = {"analyzeduration": "500000", "fflags": "nobuffer"} if self.live else {}
        if self._address.startswith("rtsp"):
            options["rtsp_transport"] = "tcp"
        if is_web_address(self._address):
            options["http_proxy"] = proxy_of(self._address) or ""  # in place of FFmpeg's own rules
        form = "v4l2" if self._address.startswith("/dev/") else None
        kind = SourceLost if self.live else SourceError
        try:
            with av.open(self._address, format=form, options=options, timeout=SILENCE_S) as container:
                if not container.streams.video:
                    raise kind(f"{self.name}: holds no pictures (sound only?): name a video")
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                pace = Pace(self._fps)
                for frame in _decoded(av, container, stream):
                    if stop.is_set():
                        return
                    if pace.wants(time.monotonic() if self.live or frame.time is None else frame.time):
                        yield upright(frame, stream.sample_aspect_ratio), time.time()
        except av.error.ProtocolNotFoundError as error:
            scheme = self._address.partition("://")[0]
            raise SourceError(
                f"{self.name}: {shown(scheme)}:// is no camera or stream that FFmpeg can open: mount it as a folder, "
                "or download it"
            ) from error
        except (av.FFmpegError, OSError, IndexError, ValueError) as error:
            text = without_secrets(str(getattr(error, "strerror", None) or error))
            raise kind(f"{self.name}: {text}") from error


class Pace:
    """Which frames to take at `fps` a second of the source's own clock; None for all.

    A clock that goes back (a recording joined to another) or stands still long starts over, it does not skip the rest.

    >>> pace = Pace(2)
    >>> [at for at in (0, 0.2, 0.5, 0.9, 1.0, 0.0, 0.2, 0.6) if pace.wants(at)]
    [0, 0.5, 1.0, 0.0, 0.6]
    """

    def __init__(self, fps: float | None) -> None:
        self._every = None if fps is None else 1 / fps
        self._due: float | None = None
        self._last = float("-inf")

    def wants(self, at: float) -> bool:
        if self._every is None:
            return True
        # Frames may be a little out of order; a due time that lies further ahead than one step is another clock's
        back = at < self._last - min(CLOCK_JUMP_S, self._every)
        self._last = at
        if self._due is None or back:
            self._due = at
        if at < self._due - 1e-6:
            return False
        # A frame that is a whole step late begins a new row of steps, so that a gap is not made up for
        self._due = (at if at - self._due >= self._every else self._due) + self._every
        return True


def upright(frame: Any, pixel_aspect: Fraction | None = None) -> np.ndarray:
    """A decoded frame as uint8 (H, W, 3) RGB, turned and mirrored as its display matrix says: phones store what the
    sensor saw, and how they were held beside it.

    pixel_aspect: width by height of one pixel, where they are not square (DV, DVD, analogue cameras); None: not told.
    """
    width, height = frame.width, frame.height
    if pixel_aspect and MIN_ASPECT <= pixel_aspect <= 1 / MIN_ASPECT and pixel_aspect != 1:
        # The longer side of a pixel is drawn out, so that no line or column is lost
        width, height = round(width * max(1, pixel_aspect)), round(height / min(1, pixel_aspect))
    if width * height > MAX_IMAGE_PIXELS:  # of a file that says what is not so
        width, height = frame.width, frame.height
    image = frame.to_ndarray(format="rgb24", width=width, height=height)
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = np.frombuffer(data, np.int32, 9).tolist()  # 16.16: x' = ax + cy, y' = bx + dy
            return _turned(image, a, b, c, d)
    return image


def _turned(image: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """The quarter turn and mirroring nearest to a display matrix."""
    if abs(b) + abs(c) > abs(a) + abs(d):  # columns become rows
        image = image.transpose(1, 0, 2)
        a, d = c, b
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


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


def _snapshot(url: str, name: str) -> bytes | None:
    """As `fetched_image`. Raises `SourceLost`."""
    try:
        return fetched_image(url, SILENCE_S)
    except WebError as error:
        raise SourceLost(f"{name}: {error}") from error


def is_live(address: str) -> bool:
    """Whether an address is a camera or a stream rather than a file."""
    if "://" in address:
        return not address.startswith("file://")
    try:
        return stat.S_ISCHR(os.stat(address).st_mode)
    except (OSError, ValueError):
        return address.startswith("/dev/")


def is_video(address: str) -> bool:
    return is_live(address) or Path(address).suffix.lower() in VIDEO_ENDINGS


def _pyav():
    try:
        import av
    except ModuleNotFoundError as error:
        raise SourceError("videos and cameras need PyAV: pip install 'thinwire[edge-video]'") from error
    av.logging.set_level(None)
    return av

"""`thinwire-edge run`: sources → encoder → spool → cloud → results, for months, with nobody watching.

Three threads meet only in the spool: this one encodes and accepts, the courier sends, the delivery writes results.
Each live source has a thread of its own, which drops frames rather than wait.
"""

from __future__ import annotations

import argparse
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge.encoder import Encoder, read_image
from edge.errors import SpoolDiskFull, SpoolFull
from edge.field.courier import Courier
from edge.field.fallback import Fallback
from edge.field.result_lines import lost, provisional
from edge.field.sinks import Delivery, Sink
from edge.field.sources import Files, Gate, Lines, Shot, Video, WatchedFolder, cropped, is_video
from edge.field.spool import Spool
from thinwire.errors import ImageError, ThinwireError

ROOM_EVERY_S = 0.5
NOTE_EVERY_S = 5.0
DOWN_AFTER_S = 3.0  # without an answer for so long, the device answers for itself

Source = Files | WatchedFolder | Lines | Video


@dataclass
class FrameCounts:
    """Frames of this run. unchanged: stopped by the gate; missed: a live source was faster than the encoder."""

    seen: int = 0
    known: int = 0
    unchanged: int = 0
    missed: int = 0
    accepted: int = 0
    refused: int = 0
    unreadable: int = 0


@dataclass
class FieldRun:
    """Everything that `run` needs, put together by `edge.cli`. rate: the layers that are spooled, by name."""

    sources: list[Source]
    encoder: Encoder
    rate: str
    question: str
    spool: Spool
    courier: Courier
    sinks: list[Sink]
    gate: Gate
    say: Callable[[str], None]
    crop: tuple[float, float, float, float] | None = None
    fallback: Fallback | None = None
    drain_s: float = float("inf")
    stop: threading.Event = field(default_factory=threading.Event)
    tally: FrameCounts = field(default_factory=FrameCounts)

    def run(self) -> bool:
        """Until every source has ended and every frame has its result, or `stop` is set. Says whether all have one."""
        if self.spool.recovered:
            self.say(self.spool.recovered)
        self._delivery = delivery = Delivery(self.spool, self.sinks, self.say)
        self.courier.on_result = delivery.wake
        self.courier.start()
        try:
            self._take_all()
            end = time.monotonic() + self.drain_s
            while self.spool.waiting_frames and not self.stop.is_set() and time.monotonic() < end:
                self.stop.wait(0.05)
                self._note()
        finally:
            self.stop.set()
            self.courier.close()
            delivery.close()
            self._note(last=True)
        return self.spool.waiting_frames == 0

    # ---------------------------------------------------------------- frames in

    def _take_all(self) -> None:
        shots: queue.Queue[Shot | ThinwireError | None] = queue.Queue(maxsize=4)
        feeders = [threading.Thread(target=self._feed, args=(source, shots), daemon=True) for source in self.sources]
        for feeder in feeders:
            feeder.start()
        running = len(feeders)
        while running and not self.stop.is_set():
            try:
                shot = shots.get(timeout=0.5)
            except queue.Empty:
                self._note()
                continue
            if shot is None:
                running -= 1
            elif isinstance(shot, ThinwireError):
                self.say(str(shot))
                self.tally.unreadable += 1
            else:
                self._take(shot)
            self._note()

    def _feed(self, source: Source, shots: queue.Queue) -> None:
        try:
            for shot in source.shots(self.stop):
                if not source.live:
                    _put(shots, shot, self.stop)
                    continue
                try:
                    shots.put_nowait(shot)
                except queue.Full:
                    self.tally.missed += 1  # the next frame will be newer
        except ThinwireError as error:
            _put(shots, error, self.stop)
        _put(shots, None, self.stop)

    def _take(self, shot: Shot) -> None:
        self.tally.seen += 1
        if self.spool.knows(shot.key):
            self.tally.known += 1
            return
        try:
            view = self._view(shot)
            if not self.gate.passes(_place(shot), view):
                self.tally.unchanged += 1
                return
            packet = self.encoder.encode(view, self.rate).packet.to_bytes()
            early = self._early(shot, view)
        except ImageError as error:
            self.say(str(error))
            self.tally.unreadable += 1
            self._accept(shot, None, lost(shot.key, shot.source, shot.captured_at, error.reason, str(error)))
            return
        self._accept(shot, packet, early)

    def _view(self, shot: Shot) -> np.ndarray:
        image = read_image(shot.image)
        if self.crop is not None:
            image = cropped(np.asarray(image), self.crop)
        return self.encoder.bundle.view(image)

    def _early(self, shot: Shot, view: np.ndarray) -> dict[str, Any] | None:
        if self.fallback is None or not self.fallback.ready or self.courier.down_s() < DOWN_AFTER_S:
            return None
        own = self.fallback.bundle
        if own.input_size != self.encoder.bundle.input_size:
            view = own.view(view)
        return provisional(shot.key, shot.source, shot.captured_at, self.fallback.answer(view))

    def _accept(self, shot: Shot, packet: bytes | None, line: dict[str, Any] | None) -> None:
        """Accepts, or waits for room where the source can wait; a live frame is turned away instead."""
        told = False
        while True:
            try:
                self.tally.accepted += self.spool.accept(
                    shot.key, shot.source, packet, self.question, shot.captured_at, line
                )
                if line is not None:
                    self.courier.on_result()
                self.courier.wake()
                return
            except (SpoolFull, SpoolDiskFull) as error:
                if not told and (self.tally.refused == 0 or isinstance(shot.image, Path)):
                    self.say(str(error))
                    told = True
                if not isinstance(shot.image, Path) or self.stop.wait(ROOM_EVERY_S):
                    self.tally.refused += 1
                    return

    # ---------------------------------------------------------------- books

    def _note(self, last: bool = False) -> None:
        """State for `thinwire-edge status`. Raises what ended another thread: better started again than hung."""
        if not last and (fault := self.courier.fault or self._delivery.fault):
            raise fault
        now = time.monotonic()
        if not last and now - getattr(self, "_noted_at", 0.0) < NOTE_EVERY_S:
            return
        self._noted_at = now
        try:
            meter = self.courier.meter
            self.spool.note("run.frames", asdict(self.tally))
            self.spool.note("run.link", {"down_s": round(self.courier.down_s(), 1), **asdict(self.courier.counts)})
            self.spool.note(
                "run.speed", {"base_ms": round(1000 * meter.base_s, 1), "us_per_byte": round(1e6 * meter.s_per_byte, 1)}
            )
            self.spool.note("run.noted_at", time.time())
        except ThinwireError as error:  # a full disk must not end the run
            self.say(str(error))


def open_sources(args: argparse.Namespace, question: str, say: Callable[[str], None]) -> list[Source]:
    """The sources that the words of the command line mean."""
    sources: list[Source] = []
    plain: list[str] = []
    for word in args.sources:
        if word == "-":
            sources.append(Lines(question))
        elif args.watch and Path(word).is_dir():
            sources.append(WatchedFolder(word, question))
        elif is_video(word):
            sources.append(Video(word, question, args.fps, say))
        else:
            plain.append(word)
    return [Files(plain, question, say), *sources] if plain else sources


def _place(shot: Shot) -> str:
    """What the gate compares within: a camera with itself, a video's frames with each other, a folder's files too."""
    if isinstance(shot.image, Path):
        return os.fspath(shot.image.parent)
    return shot.source.rpartition("#")[0] or shot.source


def _put(shots: queue.Queue, item: object, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            shots.put(item, timeout=0.5)
            return
        except queue.Full:
            continue

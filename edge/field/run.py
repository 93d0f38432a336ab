"""`thinwire-edge run`: sources → encoder → spool → cloud → results, for months, unattended.

Threads meet only in the spool: this one encodes and accepts, the courier sends, each output has one that writes its
results. Each source has a thread of its own; a live one drops frames rather than wait.

One frame never ends the run: whatever exception it raises becomes its final line, and a frame that was in work when the
process died twice (`edge.field.in_work`) gets one too. A source that ends by an exception is told and counted.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge.encoder import Encoder
from edge.errors import SpoolDiskFull, SpoolFull, SpoolReadOnly, described
from edge.field.courier import Courier
from edge.field.fallback import Fallback
from edge.field.in_work import MAX_DEATHS, InWork
from edge.field.refused_results import Refusals
from edge.field.result_lines import lost, provisional
from edge.field.rung_choice import FrameLadder, RungChoice
from edge.field.shot import Shot, Source
from edge.field.sinks import Delivery, Sink
from edge.field.spool import Spool
from edge.field.views import Gate
from thinwire.errors import ThinwireError
from thinwire.imaging import flat_note
from thinwire.packet import Packet
from thinwire.text import safe_text

ROOM_EVERY_S = 0.5
NOTE_EVERY_S = 5.0
DOWN_AFTER_S = 3.0  # without an answer for so long, the device answers for itself
MAX_SAID = 1000  # messages about frames that are remembered, so that a camera does not repeat one with each frame


@dataclass
class FrameCounts:
    """Frames of this run.

    unchanged: stopped by the gate; missed: a live source was faster than the encoder; refused: no room; unreadable:
    failed before they were sent, with a final line. sources_failed: sources that an exception ended.
    """

    seen: int = 0
    known: int = 0
    unchanged: int = 0
    missed: int = 0
    accepted: int = 0
    refused: int = 0
    unreadable: int = 0
    sources_failed: int = 0


@dataclass(frozen=True)
class _Ended:
    """What a source's thread leaves: the exception that ended it, None at its proper end."""

    source: Source
    error: BaseException | None = None


@dataclass
class FieldRun:
    """Everything that `run` needs, put together by `edge.cli`. rate: the layers that are spooled, by name.

    rungs: chooses the rate of each frame in its place, for bundles whose packets cannot be cut later. ladder: makes the
    packets of several bundles; `encoder` is then the one of the largest view.
    """

    sources: list[Source]
    encoder: Encoder
    rate: str
    question: str
    spool: Spool
    courier: Courier
    sinks: list[Sink]
    gate: Gate
    say: Callable[[str], None]
    in_work: InWork
    crop: tuple[float, float, float, float] | None = None
    fallback: Fallback | None = None
    rungs: RungChoice | None = None
    ladder: FrameLadder | None = None
    drain_s: float = float("inf")
    notify: Callable[[str], None] = lambda state: None
    stop: threading.Event = field(default_factory=threading.Event)
    tally: FrameCounts = field(default_factory=FrameCounts)
    unwritten: dict[str, int] = field(default_factory=dict)
    results_refused: dict[str, Refusals] = field(default_factory=dict)

    def run(self) -> bool:
        """Until every source has ended and every frame has its result, or `stop` is set.

        Says whether all have one and every output holds them; `unwritten` tells what outputs lack, `results_refused`
        what a receiver did not take.
        """
        if self.spool.recovered:
            self.say(self.spool.recovered)
        self._said: set[str] = set()
        self._flat: set[str] = set()  # sources of which a nearly flat view was told
        self._noted_at = 0.0
        self._delivery = delivery = Delivery(self.spool, self.sinks, self.say)
        self.courier.on_result = delivery.wake
        self.courier.start()
        self.notify("READY=1")
        try:
            self._take_all()
            end = time.monotonic() + self.drain_s
            while self.spool.waiting_frames and not self.stop.is_set() and time.monotonic() < end:
                self.stop.wait(0.05)
                self._note()
        finally:
            self.notify("STOPPING=1")
            self.stop.set()
            self.courier.close()
            delivery.close()
            self._note(last=True)
        self.results_refused = delivery.refused()
        self.unwritten = {name: count for name, count in self.spool.unwritten().items() if count}
        return self.spool.waiting_frames == 0 and not self.unwritten

    # ---------------------------------------------------------------- frames in

    def _take_all(self) -> None:
        shots: queue.Queue[Shot | _Ended] = queue.Queue(maxsize=4)
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
            if isinstance(shot, Shot):
                self._take(shot)
            else:
                running -= 1
                self._ended(shot, running)
            self._note()

    def _feed(self, source: Source, shots: queue.Queue) -> None:
        error: BaseException | None = None
        try:
            for shot in source.shots(self.stop):
                if not source.live:
                    _put(shots, shot, self.stop)
                    continue
                try:
                    shots.put_nowait(shot)
                except queue.Full:
                    self.tally.missed += 1  # the next frame will be newer
        except BaseException as caught:  # of any kind: a thread that dies unseen leaves a run that only looks alive
            error = caught
        _put(shots, _Ended(source, error), self.stop)

    def _ended(self, ended: _Ended, running: int) -> None:
        if ended.error is None:
            return
        self.tally.sources_failed += 1
        text = str(ended.error) if isinstance(ended.error, ThinwireError) else ""
        text = text or f"{ended.source.name}: {described(ended.error)}"
        self.say(f"{text}; no more frames are taken from it{'' if running else ', and no source is left'}")

    def _take(self, shot: Shot) -> None:
        self.tally.seen += 1
        if self.spool.knows(shot.key):
            self.tally.known += 1
            return
        if self.in_work.given_up(shot.key):
            why = f"the process died {MAX_DEATHS} times while this frame was in work: it is not tried again"
            self._give_up(shot, "GIVEN_UP", f"{shot.source}: {why}")
            return
        try:
            with self.in_work.on(shot.key):
                view = self._view(shot)
                if not self.gate.passes(shot.place, view):
                    self.tally.unchanged += 1
                    return
                packet, *others = (each.to_bytes() for each in self._packets(view))
        except Exception as error:
            self._give_up(shot, *_reason(error, shot))
            return
        except (
            BaseException
        ) as error:  # a panic of a Rust library is not an Exception; Ctrl-C and exit do not belong to a frame
            if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
                raise
            self._give_up(shot, *_reason(error, shot))
            return
        self._accept(shot, packet, self._early(shot, view), others)

    def _packets(self, view: np.ndarray) -> list[Packet]:
        """The packet that is sent, and others that may be asked for."""
        if self.ladder is not None:
            return self.ladder.packets(view)
        encoded = self.rungs.encode(view) if self.rungs else self.encoder.encode(view, self.rate)
        return [encoded.packet]

    def _give_up(self, shot: Shot, reason: str, why: str) -> None:
        """The frame's final line, without an answer."""
        self.tally.unreadable += 1
        self._say_once(why)
        self._accept(shot, None, lost(shot.key, shot.source, shot.captured_at, reason, why))
        self.in_work.forget(shot.key)

    def _say_once(self, text: str) -> None:
        if text not in self._said and len(self._said) < MAX_SAID:
            self._said.add(text)
            self.say(text)

    def _view(self, shot: Shot) -> np.ndarray:
        view = self.encoder.view(shot.image, self.crop, shot.source)
        name = shot.source if isinstance(shot.image, Path) else shot.place or shot.source
        if name not in self._flat and len(self._flat) < MAX_SAID and (note := flat_note(view, name)) is not None:
            self._flat.add(name)
            self.say(note)
        return view

    def _early(self, shot: Shot, view: np.ndarray) -> dict[str, Any] | None:
        """The device's own answer while the link is down; None where it has none, for whatever reason."""
        try:
            if self.fallback is None or not self.fallback.ready or self.courier.down_s() < DOWN_AFTER_S:
                return None
            own = self.fallback.bundle
            if own.input_size != self.encoder.bundle.input_size:
                view = own.view(view)
            return provisional(shot.key, shot.source, shot.captured_at, self.fallback.answer(view))
        except Exception as error:
            text = f"no answers on the device: {described(error)}"
            if text not in self._said:
                self._said.add(text)
                self.say(text)
            return None

    def _accept(
        self, shot: Shot, packet: bytes | None, line: dict[str, Any] | None, others: Sequence[bytes] = ()
    ) -> None:
        """Accepts, or waits for room where the source can wait; a live frame is turned away instead."""
        told = False
        while True:
            try:
                self.tally.accepted += self.spool.accept(
                    shot.key, shot.source, packet, self.question, shot.captured_at, line, others
                )
                if line is not None:
                    self.courier.on_result()
                self.courier.wake()
                return
            except (SpoolFull, SpoolDiskFull, SpoolReadOnly) as error:
                if not told and (self.tally.refused == 0 or not shot.live):
                    self.say(str(error))
                    told = True
                if shot.live or self.stop.wait(ROOM_EVERY_S):
                    self.tally.refused += 1
                    return
                self._note()

    # ---------------------------------------------------------------- books

    def _note(self, last: bool = False) -> None:
        """State for `thinwire-edge status`. Raises what ended another thread: better started again than hung."""
        if not last and (fault := self.courier.fault or self._delivery.fault):
            raise fault
        self.notify("WATCHDOG=1")
        now = time.monotonic()
        if not last and now - self._noted_at < NOTE_EVERY_S:
            return
        self._noted_at = now
        try:
            meter = self.courier.meter
            self.spool.note("run.frames", asdict(self.tally))
            self.spool.note("run.link", {"down_s": round(self.courier.down_s(), 1), **asdict(self.courier.counts)})
            self.spool.note(
                "run.speed", {"base_ms": round(1000 * meter.base_s, 1), "us_per_byte": round(1e6 * meter.s_per_byte, 1)}
            )
            lost_sources = {source.name: source.trouble for source in self.sources if source.trouble is not None}
            self.spool.note("run.lost_sources", lost_sources)
            self.spool.note("run.labels", self.courier.labels)
            self.spool.note("run.failing_outputs", self._delivery.troubles())
            self.spool.note(
                "run.results_refused", {name: each.count for name, each in self._delivery.refused().items()}
            )
            self.spool.note("run.noted_at", time.time())
        except ThinwireError as error:  # a full disk must not end the run
            self.say(str(error))


def _reason(error: BaseException, shot: Shot) -> tuple[str, str]:
    """Reason and message of a frame's final line. The message names the frame."""
    text = described(error)
    if isinstance(error, MemoryError):
        text = "there is not enough memory for this picture: scale it down"
    text = safe_text(text)
    if shot.source not in text:
        text = f"{shot.source}: {text}"
    if isinstance(error, ThinwireError):
        return error.reason, text
    return ("OUT_OF_MEMORY" if isinstance(error, MemoryError) else "INTERNAL"), text


def _put(shots: queue.Queue, item: object, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            shots.put(item, timeout=0.5)
            return
        except queue.Full:
            continue

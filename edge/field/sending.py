"""Sending: which frames of the spool go now, with how many layers, as which message."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edge.field.in_flight import Again, Counts, Flight, Wanted, frame_id
from edge.field.line_health import LineHealth
from edge.field.rate_control import FRAMING_BYTES, Budget, Cap, LinkMeter, RateControl
from edge.field.spool import Spool, SpooledFrame
from edge.field.spooled_labels import SpooledLabels
from edge.line.progressive import more_layers
from thinwire.bundle import Bundle
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb

EXPIRE_EVERY_S = 5.0


@dataclass
class Sender:
    """Used by the courier's thread. Fields without a word here are the courier's.

    fail: makes an exception the final result of a frame.
    again: frames that go again, by key.
    flying: frames on their way, by key.
    confidence: None where the server is not asked to stop early.
    others: bundles of packets that may follow a frame's first one, by model id: those that the server fuses with it.
    dial: the confidence that is asked for with these; 0: the server's default.
    """

    spool: Spool
    rate: RateControl
    cap: Cap
    budget: Budget
    window: int
    meter: LinkMeter
    counts: Counts
    labels: SpooledLabels
    health: LineHealth
    say: Callable[[str], None]
    fail: Callable[[SpooledFrame, Exception], None]
    again: dict[bytes, Again]
    flying: dict[bytes, Flight] = field(default_factory=dict)
    confidence: float | None = None
    others: dict[bytes, Bundle] = field(default_factory=dict)
    dial: float = 0.0

    def __post_init__(self) -> None:
        self._outgoing: queue.SimpleQueue[pb.ClassifyStreamRequest | None] = queue.SimpleQueue()
        self._asked: int | None = None  # the question whose labels this stream has been sent
        self._budget_told = False

    def open(self) -> queue.SimpleQueue[pb.ClassifyStreamRequest | None]:
        """Where the messages of a new stream come out; None ends them."""
        self._outgoing = queue.SimpleQueue()
        self.ask_again()
        return self._outgoing

    def ask_again(self) -> None:
        """The next frame of this stream names its question."""
        self._asked = None

    def fill(self) -> float:
        """Sends the frames that may be sent now; returns the longest time to wait for an event before the next call."""
        now = time.monotonic()
        wait_s = EXPIRE_EVERY_S
        # Wake up when the oldest frame in flight times out
        if self.flying:
            wait_s = min(wait_s, max(0.01, self.health.silent_in_s(self.flying.values())))
        # Forget pauses that are over, unless they carry facts for the next attempt (failures, or to send all layers)
        for key in [key for key, again in self.again.items() if again.due <= now and not again.failures]:
            if not (self.again[key].whole or self.again[key].wanted):
                del self.again[key]
        held = {key for key, again in self.again.items() if again.due > now}
        # Packets that the server waits for go before new frames
        for flight in [flight for flight in self.flying.values() if flight.wanted is not None]:
            if (cap_s := self.cap.wait_s()) > 0:
                return min(wait_s, cap_s)
            self._follow(flight)
        room = self.window - len(self.flying)
        if room <= 0:
            return wait_s
        # One frame more than there is room for shows `_layers` that there is a backlog
        frames = self.spool.waiting(room + 1, without=held | self.flying.keys(), fresh_s=self.rate.deadline_s)
        for place, frame in enumerate(frames[:room]):
            # The cap on kbit/s: wait until the bytes sent before have had their time
            if (cap_s := self.cap.wait_s()) > 0:
                return min(wait_s, cap_s)
            try:
                request, layers = self._request(frame, len(frames) - place - 1)
            except Exception as error:  # the packet or the question was damaged on disk, or what nobody expected
                self.fail(frame, error)
                continue
            # The day's budget: checked with the real size, before anything is sent
            size = request.ByteSize() + FRAMING_BYTES
            if not self.budget.allows(size):
                if not self._budget_told:
                    self._budget_told = True
                    self.say("the day's byte budget is spent: frames wait in the spool until midnight UTC")
                return min(wait_s, self.budget.resumes_in_s())
            # In flight from here on: an answer may come as soon as it is sent
            self._asked = frame.question
            self.labels.handles.sent(request.request)
            self.counts.labels_saved_bytes = self.labels.handles.counts.saved_bytes
            self.flying[frame.key] = Flight(
                frame,
                time.monotonic(),
                len(request.request.image.packet),
                layers,
                offered=bool(frame.others and self.others),
                so_far=again.wanted.so_far if request.follows and (again := self.again.get(frame.key)) else None,
            )
            self.counts.sent_frames += 1
            self._send(frame.key, request, size)
        if held:
            wait_s = min(wait_s, max(0.01, min(self.again[key].due for key in held) - now))
        return wait_s

    def extend(self, flying: Flight, wanted: int) -> bool:
        """Sends layers up to `wanted` if rate control, cap and budget allow it; returns whether it did."""
        packet = Packet.from_bytes(flying.frame.packet)
        backlog = self.spool.waiting_frames - len(self.flying)
        fits = flying.layers < wanted <= self._layers(packet, flying.frame, min(backlog, self.window))
        if not fits or self.cap.wait_s() > 0:
            return False
        more = more_layers(packet, flying.layers, wanted, frame_id(flying.frame.key))
        request = pb.ClassifyStreamRequest(more=more)
        size = request.ByteSize() + FRAMING_BYTES
        if not self.budget.allows(size):
            return False
        flying.packet_bytes += more.ByteSize()
        flying.layers, flying.extended, flying.sent_at = wanted, True, time.monotonic()
        flying.overtaken_at = None
        self._send(flying.frame.key, request, size)
        return True

    def follow(self, flying: Flight, wanted: Wanted) -> bool:
        """Sends the packet that is wanted, now or as soon as the cap allows; False where deadline or budget do not."""
        self.counts.asked += 1
        packet = self._other(flying.frame, wanted)
        if packet is None or not self._fits(len(packet), flying.frame):
            return False
        flying.so_far, flying.wanted, flying.sent_at = wanted.so_far, wanted, time.monotonic()
        flying.overtaken_at = None
        # Should the stream end in between: the server keeps what it has of the frames of this spool
        self.again.setdefault(flying.frame.key, Again()).wanted = wanted
        if self.cap.wait_s() <= 0:
            self._follow(flying)
        return True

    def _follow(self, flying: Flight) -> None:
        frame, wanted = flying.frame, flying.wanted
        packet = self._other(frame, wanted)
        request = self._following(frame, packet)
        flying.wanted = None
        flying.layers, flying.sent_at = wanted.layers, time.monotonic()
        flying.packet_bytes += len(packet)
        self.counts.followed += 1
        self._asked = frame.question
        self._send(frame.key, request, request.ByteSize() + FRAMING_BYTES)

    def _following(self, frame: SpooledFrame, packet: Packet) -> pb.ClassifyStreamRequest:
        message = pb.ClassifyStreamRequest(follows=True)
        if frame.question != self._asked:
            message.request.CopyFrom(self.labels.handles.shortened(self.labels.question(frame.question)))
        message.request.image.packet = packet.to_bytes()
        message.request.frame_id = frame_id(frame.key)
        return message

    def _other(self, frame: SpooledFrame, wanted: Wanted) -> Packet | None:
        """The packet that was asked for, None where this frame has no such one."""
        bundle = self.others.get(wanted.model_id)
        for packet in map(Packet.from_bytes, frame.others if bundle else ()):
            if packet.model_id == wanted.model_id and wanted.layers in self._levels(bundle, packet):
                return packet if len(packet.layers) == 1 else packet.prefix(wanted.layers)
        return None

    @staticmethod
    def _levels(bundle: Bundle, packet: Packet) -> range:
        """What can be sent of a packet: each number of its layers, or its one rung."""
        most = bundle.level(packet)
        return range(1 if len(packet.layers) > 1 else most, most + 1)

    def _offers(self, frame: SpooledFrame) -> list[pb.Offer]:
        """Packets of other bundles that the link is expected to carry in time."""
        found = []
        for packet in map(Packet.from_bytes, frame.others):
            if (bundle := self.others.get(packet.model_id)) is None:
                continue
            levels = self._levels(bundle, packet)
            sizes = [len(packet) if len(packet.layers) == 1 else len(packet.prefix(level)) for level in levels]
            fit = [level for level, size in zip(levels, sizes, strict=True) if self._fits(size, frame)]
            if fit:
                found.append(pb.Offer(model_id=packet.model_id, layers=fit))
        return found

    def _fits(self, packet_bytes: int, frame: SpooledFrame) -> bool:
        size = packet_bytes + FRAMING_BYTES
        age_s = max(0.0, time.time() - frame.accepted_at)
        backlog = min(max(0, self.spool.waiting_frames - len(self.flying)), self.window)
        behind_bytes = backlog * (len(frame.packet) + FRAMING_BYTES)
        limits = self.cap.s_per_byte, self.budget.frame_bytes()
        return self.budget.allows(size) and self.rate.fits(size, age_s, behind_bytes, self.meter, *limits)

    def _send(self, key: bytes, request: pb.ClassifyStreamRequest, size: int) -> None:
        self._budget_told = False
        self.budget.spent(size)
        self.cap.spent(size)
        self.meter.sent(key, size)
        self.counts.sent_bytes += size
        self._outgoing.put(request)

    def _layers(self, packet: Packet, frame: SpooledFrame, backlog: int) -> int:
        sizes = [len(packet.prefix(count + 1)) + FRAMING_BYTES for count in range(len(packet.layers))]
        age_s = max(0.0, time.time() - frame.accepted_at)
        return self.rate.layers(sizes, age_s, backlog, self.meter, self.cap.s_per_byte, self.budget.frame_bytes())

    def _request(self, frame: SpooledFrame, backlog: int) -> tuple[pb.ClassifyStreamRequest, int]:
        again = self.again.get(frame.key)
        if again and again.wanted and (other := self._other(frame, again.wanted)) is not None:
            self.counts.followed += 1
            return self._following(frame, other), again.wanted.layers
        packet = Packet.from_bytes(frame.packet)
        layers = self._layers(packet, frame, backlog)
        message = pb.ClassifyStreamRequest()
        if self.confidence is not None and layers > 1 and not (again and again.whole):
            message.progressive.max_layers, message.progressive.confidence = layers, self.confidence
            layers = 1
        elif frame.others and (offers := self._offers(frame)):
            message.progressive.max_layers, message.progressive.confidence = layers, self.dial
            message.progressive.others.extend(offers)
        if frame.question != self._asked:
            message.request.CopyFrom(self.labels.handles.shortened(self.labels.question(frame.question)))
        message.request.image.packet = packet.prefix(layers).to_bytes()
        message.request.frame_id = frame_id(frame.key)
        return message, layers

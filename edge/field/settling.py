"""Settling: what an answer means for its frame. A final result, further layers, or another attempt."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from edge.errors import FrameFailed, described
from edge.field.fallback import Fallback
from edge.field.in_flight import Again, Counts, Flight, Wanted, frame_id
from edge.field.line_health import LineHealth
from edge.field.rate_control import LinkMeter, RateControl
from edge.field.result_lines import answered, lost
from edge.field.sending import Sender
from edge.field.spool import Spool, SpooledFrame
from edge.field.spooled_labels import SpooledLabels
from edge.line.label_upload import in_pieces
from thinwire.contract import Reason
from thinwire.errors import ThinwireError
from thinwire.v1 import inference_pb2 as pb

SLOW_PAUSE_S = 60.0  # where an operator must act first
FRAME_PAUSE_S = 1.0  # for a frame that may be tried again and has no pause named
FINAL_CODES = frozenset((3, 9, 11, 15))  # INVALID_ARGUMENT, FAILED_PRECONDITION, OUT_OF_RANGE, DATA_LOSS
RETRIES_OF_INTERNAL = 3
OPERATOR_REASONS = frozenset(
    (Reason.UNAUTHENTICATED, Reason.PERMISSION_DENIED, Reason.UNIMPLEMENTED, Reason.UNKNOWN_MODEL)
)


class LabelsUnknown(ThinwireError):
    """The server was started again, and the labels are too many to go with a frame."""


@dataclass
class Settling:
    """Used by the courier's thread. Fields without a word here are the courier's.

    again: frames that go again, by key.
    """

    spool: Spool
    rate: RateControl
    meter: LinkMeter
    counts: Counts
    labels: SpooledLabels
    health: LineHealth
    fallback: Fallback | None
    on_result: Callable[[], None]
    again: dict[bytes, Again] = field(default_factory=dict)

    def take(self, response: pb.ClassifyStreamResponse, sender: Sender) -> None:
        """Raises a ThinwireError if the stream has to end; the frame is then sent again."""
        key = next((key for key in sender.flying if frame_id(key) == response.frame_id), None)
        if key is None:
            return  # a second answer to a frame that is settled
        flight = sender.flying[key]
        if flight.wanted is not None:
            return  # nothing is asked at the moment: its packet waits for the cap
        for other in sender.flying.values():
            if other.sent_at < flight.sent_at:
                other.overtaken_at = other.overtaken_at or time.monotonic()
        try:
            self._settle(key, response, sender)
        except ThinwireError:
            raise  # of the spool: the frame is sent again
        except Exception as error:  # an answer that is none: numbers that are not finite, fields that are missing
            sender.flying.pop(key, None)
            self.meter.forget(key)
            self.fail(flight.frame, error)

    def fail(self, frame: SpooledFrame, error: Exception) -> None:
        """The frame's final result: it raised an exception."""
        self.counts.failed += 1
        reason = error.reason if isinstance(error, ThinwireError) else FrameFailed.reason
        text = f"{frame.source}: {described(error)}"
        self._final(frame, lost(frame.key, frame.source, frame.captured_at, reason, text))

    def _settle(self, key: bytes, response: pb.ClassifyStreamResponse, sender: Sender) -> None:
        flying = sender.flying[key]
        kind = response.WhichOneof("outcome")
        reply = response.need_more.so_far if kind == "need_more" else response.result
        # The meter subtracts the server's own time: it measures the link
        took_s = self.meter.answered(key, reply.timing.total_ms / 1000)
        frame = flying.frame
        # 1. More layers are wanted and can be sent: the frame stays in flight
        if kind == "need_more" and self._more(flying, response.need_more, sender):
            return
        # 2. An answer, or one that must do: it is the final result
        del sender.flying[key]
        if kind in ("result", "need_more"):
            late_s = max(0.0, time.time() - frame.accepted_at)
            self.counts.answered += 1
            self.counts.in_time += late_s <= self.rate.deadline_s
            if self.fallback is not None:
                self.fallback.learn(reply.predictions)
            self.labels.tell(reply.notes)
            self._count(flying, reply)
            where = (frame.key, frame.source, frame.captured_at)
            self._final(frame, answered(*where, reply, flying.layers, flying.packet_bytes, took_s, late_s))
            return
        # 3. An error: final if another attempt cannot change it, else the frame waits for its next attempt
        error = response.error
        again = self.again.setdefault(key, Again())
        internal = error.code == grpc.StatusCode.INTERNAL.value[0]
        again.failures += internal
        refused = error.code in FINAL_CODES or error.reason in OPERATOR_REASONS or again.failures > RETRIES_OF_INTERNAL
        if flying.so_far is not None and refused:  # of a further packet: the first one's answer stands
            self.counts.answered += 1
            late_s = max(0.0, time.time() - frame.accepted_at)
            line = answered(key, frame.source, frame.captured_at, flying.so_far, 0, flying.packet_bytes, took_s, late_s)
            self._final(frame, {**line, "layers": flying.so_far.model.layers})
            return
        again.whole |= flying.extended  # the server no longer has the first layers: send all of them
        if (error.code in FINAL_CODES and not flying.extended) or again.failures > RETRIES_OF_INTERNAL:
            self.counts.failed += 1
            self._final(frame, lost(key, frame.source, frame.captured_at, error.reason, error.message))
            return
        if error.reason == Reason.UNKNOWN_LABEL_SET:
            # The server has restarted: send this stream the labels, register a new handle before the next
            if self.labels.handles.forget_all():
                sender.ask_again()
                if in_pieces(pb.RegisterLabelsRequest(labels=self.labels.question(frame.question).labels)):
                    raise LabelsUnknown("the labels are registered again")
            return
        pause_s = error.retry_after_ms / 1000 or FRAME_PAUSE_S * random.uniform(0.5, 1.5)
        if error.reason in OPERATOR_REASONS:
            pause_s = SLOW_PAUSE_S
            self.health.tell(error.reason, f"{self.health.line.server}: {error.message}; frames wait in the spool")
        again.due = time.monotonic() + pause_s

    def _more(self, flying: Flight, asked: pb.NeedMore, sender: Sender) -> bool:
        """Whether what the server asks for is on its way."""
        if not asked.model_id:
            return sender.extend(flying, asked.layer)
        return sender.follow(flying, Wanted(asked.model_id, asked.layer, asked.so_far))

    def _count(self, flying: Flight, reply: pb.ClassifyResponse) -> None:
        """How far a frame went that had packets of several bundles."""
        self.counts.fused += len(reply.opinions) > 1
        if flying.offered and flying.so_far is None:
            self.counts.packets_saved_bytes += sum(map(len, flying.frame.others))

    def _final(self, frame: SpooledFrame, result: dict[str, Any]) -> None:
        self.again.pop(frame.key, None)
        self.spool.finish(frame.key, result)
        self.on_result()

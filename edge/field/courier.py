"""The courier: sends frames from the spool to the cloud over one stream, and writes their answers into the spool.

Guarantees and requirements
- A frame leaves the spool only with a final result. Frames that are unanswered when a stream ends are sent again on the
  next one, with the same `frame_id` (the first 8 bytes of the key) under the same `thinwire-spool`. Together they are
  the idempotency key: the server repeats the answer it gave before. A second answer to a frame is ignored.
- At most `window` frames are in flight. A connection on which nothing has come for `timeout_s`, counted from the last
  answer, is replaced by a new one: a line can be dead without any error. After each such silence the next connection
  gets twice the time, up to 16 times: a message that is large for a slow link arrives at last. A frame that others have
  overtaken for `timeout_s` was lost by the server: it is sent again on a new connection.
- An exception of one frame or of one answer becomes that frame's final result; others are not concerned.
- Permanent refusals (BAD_PACKET, TOO_LARGE, ...) become the frame's final result. Other refusals are retried after the
  pause that the server asks for, or with exponential backoff and jitter. If the server lacks the bundle, refuses the
  token or runs another version, the courier reports it once and retries every minute.
- Labels of more than a few bytes are sent once per device: they are registered before the first frame, in pieces if
  they are many (`edge.line.label_upload`), and frames name their handle (`edge.line.label_handles`), which the spool
  keeps for the next start. A server that does not know the handle gets the labels again.
- With a `confidence`, only the first layer of a frame is sent at first. The server asks for more (`need_more`) where
  they may change the answer. They are sent if rate control, cap and budget allow it; otherwise the answer so far is the
  frame's result. A server without a calibration for the bundle gets all layers at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc

from edge.errors import ClientClosed, FrameFailed, Refused, ServerTimeout, described
from edge.field.fallback import Fallback, fetch_in_background
from edge.field.in_flight import Again, Counts, Flight, frame_id, read
from edge.field.rate_control import FRAMING_BYTES, Budget, Cap, LinkMeter, RateControl
from edge.field.result_lines import answered, lost
from edge.field.spool import Spool, SpooledFrame
from edge.line.client import check_server
from edge.line.label_handles import LabelHandles
from edge.line.label_upload import Progress, in_pieces
from edge.line.progressive import more_layers
from edge.line.uplink import Line, Uplink, typed_error
from thinwire.bundle import Bundle
from thinwire.contract import SPOOL_KEY, Reason
from thinwire.errors import ThinwireError
from thinwire.packet import Packet
from thinwire.text import safe_text
from thinwire.v1 import inference_pb2 as pb

PAUSE_S = (0.2, 5.0)  # first and longest pause before the next attempt, before jitter
CONNECT_S = 2.0
SLOW_PAUSE_S = 60.0  # where an operator must act first
FRAME_PAUSE_S = 1.0  # for a frame that may be tried again and has no pause named
FINAL_CODES = frozenset((3, 9, 11, 15))  # INVALID_ARGUMENT, FAILED_PRECONDITION, OUT_OF_RANGE, DATA_LOSS
RETRIES_OF_INTERNAL = 3
EXPIRE_EVERY_S = 5.0
MAX_NOTES = 20  # on labels, told in one run
MAX_PATIENCE = 16  # times the timeout, after silence again and again
MAX_DEFECTS = 3  # exceptions in a row that belong to no frame
LABELS_SAID_EVERY_S = 30.0
HANDLES_NOTE = "labels.handles"
OPERATOR_REASONS = frozenset(
    (Reason.UNAUTHENTICATED, Reason.PERMISSION_DENIED, Reason.UNIMPLEMENTED, Reason.UNKNOWN_MODEL)
)


class _LabelsUnknown(ThinwireError):
    """The server was started again, and the labels are too many to go with a frame."""


class _BudgetSpent(ThinwireError):
    """No bytes are left today."""


@dataclass
class Courier:
    """See the module. Runs on its own thread between `start` and `close`; `wake` tells it of a new frame.

    line: the server, and how to connect to it.
    spool: where frames come from and results go.
    bundle: what the frames' packets were made with.
    rate: chooses how many layers to send.
    cap, budget: bytes per second and per day; see `rate_control`.
    window: the most frames in flight.
    say: gets one line when the link is lost, when it is back, and when an operator must act.
    on_result: called after each result.
    fallback: gets its label vectors when the link works.
    confidence: probability above which further layers need not be sent; 0: the server's default; None: send all layers
        at once.
    counts: what was sent and answered.
    """

    line: Line
    spool: Spool
    bundle: Bundle
    rate: RateControl
    cap: Cap
    budget: Budget
    window: int = 16
    say: Callable[[str], None] = lambda text: None
    on_result: Callable[[], None] = lambda: None
    fallback: Fallback | None = None
    confidence: float | None = None
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.meter = LinkMeter()
        self._uplink = Uplink(self.line)
        self._events: queue.SimpleQueue[tuple[int, str, Any]] = queue.SimpleQueue()
        self._flying: dict[bytes, Flight] = {}
        self._again: dict[bytes, Again] = {}
        self._handles = LabelHandles()
        self._assumed: set[int] = set()  # questions whose noted handle was tried
        self._patience_s = self.line.timeout_s
        self._progress_at = float("-inf")
        self._defects = 0  # exceptions in a row that belong to no frame
        self.labels: dict[str, Any] | None = None  # progress of labels that are being sent
        self._asked: int | None = None  # the question whose labels this stream has been sent
        self._session = 0
        self._checked = self._progressive = False
        self._stopping = False
        self._down_since: float | None = None
        self._oldest_sent: float | None = None  # of the frames on their way
        self._told: str | None = None
        self._noted: set[str] = set()  # notes on labels that were told
        self._budget_told = self._broke = False
        self._expired_at = 0.0
        self.fault: BaseException | None = None  # a defect that ended the thread
        self._thread = threading.Thread(target=self._guarded, name="thinwire-courier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._events.put((0, "wake", None))

    def close(self, timeout_s: float = 10.0) -> None:
        """Ends the stream; frames on their way stay in the spool."""
        self._stopping = True
        self.wake()
        self._thread.join(timeout_s)
        self._uplink.close()

    def down_s(self) -> float:
        """How long frames have gone without an answer; 0 while the link works, or nothing is asked of it."""
        starts = [each for each in (self._down_since, self._oldest_sent) if each is not None]
        return max(0.0, time.monotonic() - min(starts)) if starts else 0.0

    # ---------------------------------------------------------------- connections

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.fault = error

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping:
            before = self.counts.answered + self.counts.failed
            try:
                self._expire()
                if self.spool.waiting_frames == 0:
                    self._wait(EXPIRE_EVERY_S)  # no frame, no connection
                    continue
                # Connect first: frames given to an unconnected channel would count as sent bytes and not be sent
                self._uplink.connect(CONNECT_S)
                if not self._checked:
                    self._check()
                self._register()
                if self.fallback is not None and not self.fallback.ready:
                    fetch_in_background(self.fallback, self._uplink, self.say)
                self._stream()
                continue
            except _LabelsUnknown:
                continue
            except Exception as error:
                if self._stopping:
                    return
                progress = self.counts.answered + self.counts.failed > before
                if not isinstance(error, ThinwireError):
                    self._defects = 1 if progress else self._defects + 1
                    if self._defects > MAX_DEFECTS:
                        raise  # of no frame, and it stays: better started again than hung
                    error = FrameFailed(f"a defect of thinwire, please report it: {described(error)}")
                pause = 0.0 if progress else min(PAUSE_S[1], max(PAUSE_S[0], 2 * pause))
                self._trouble(error)
                slow = isinstance(error, Refused) and error.server_reason in OPERATOR_REASONS
                if slow:
                    self._checked = False
                # Full jitter: devices that lost their link at the same moment must not all retry at the same moment
                self._pause(SLOW_PAUSE_S if slow else PAUSE_S[0] / 4 + random.uniform(0, pause))

    def _check(self) -> None:
        info = self._uplink.info()
        check_server(info, self.bundle, self.line.server)
        held = next(each for each in info.bundles if each.model_id == self.bundle.model_id)
        self._progressive = self.confidence is not None and held.progressive
        self._checked = True

    def _register(self) -> None:
        """Registers the labels of the next frame, so that frames need not carry them. Raises if no server answers."""
        for frame in self.spool.waiting(1):
            question = self._question(frame.question)
            wanted = self._handles.registration(question, at_once=True)
            if wanted is None or self._assume(frame.question, wanted):
                return
            try:
                if in_pieces(wanted):
                    reply = self._uplink.register(wanted, self._tell_labels, self._send_part, self._patience_s)
                else:
                    self._spend(wanted.ByteSize() + FRAMING_BYTES)
                    reply = self._uplink.register(wanted, timeout_s=self._patience_s)
                self._handles.registered(wanted, reply)
                self._tell(reply.notes)
                self.spool.note(HANDLES_NOTE, {_digest(wanted): reply.label_set})
            except _BudgetSpent:
                return  # frames will wait for the same reason
            except Refused as error:
                self._handles.refused(wanted, error)
            except ServerTimeout:
                self._patience_s = min(2 * self._patience_s, MAX_PATIENCE * self.line.timeout_s)
                raise
            finally:
                self.labels = None

    def _assume(self, number: int, wanted: pb.RegisterLabelsRequest) -> bool:
        """Takes the handle that an earlier run was given, once: a server that does not know it says so."""
        if number in self._assumed:
            return False
        self._assumed.add(number)
        handle = (self.spool.noted(HANDLES_NOTE) or {}).get(_digest(wanted))
        if handle:
            self._handles.assume(wanted, handle)
        return bool(handle)

    def _send_part(self, part: pb.RegisterLabelsPartRequest) -> pb.RegisterLabelsPartResponse:
        if self._stopping:
            raise ClientClosed("the run ends")
        self._spend(part.ByteSize() + FRAMING_BYTES)
        while (wait_s := self.cap.wait_s()) > 0 and not self._stopping:
            self._pause(wait_s)
        return self._uplink.register_part(part)

    def _spend(self, size: int) -> None:
        if not self.budget.allows(size):
            raise _BudgetSpent("the day's byte budget is spent")
        self.budget.spent(size)
        self.cap.spent(size)
        self.counts.sent_bytes += size

    def _tell_labels(self, progress: Progress) -> None:
        """Progress of many labels: for `status`, and a line at the start and every half minute."""
        self._down_since = None  # the link works
        now = time.monotonic()
        if self.labels is None:
            self._labels_said_at = float("-inf")
        self.labels = {"sent_bytes": progress.held_bytes, "of_bytes": progress.total_bytes}
        if now - self._labels_said_at > LABELS_SAID_EVERY_S:
            self._labels_said_at = now
            share = 100 * progress.held_bytes // progress.total_bytes
            state = (
                f"{share} % of {progress.total_bytes} bytes have crossed" if share < 100 else "the server prepares them"
            )
            self.say(f"labels go ahead of the frames, once: {state}")

    def _tell(self, notes: Iterable[str]) -> None:
        """Says what the server finds odd about the labels, once."""
        for note in notes:
            if note not in self._noted and len(self._noted) < MAX_NOTES:
                self._noted.add(note)
                self.say(f"note: {safe_text(note)}")

    def _question(self, number: int) -> pb.ClassifyRequest:
        question = self.spool.question(number)
        return pb.ClassifyRequest(labels=question["labels"], top_k=question["top_k"], prompt_set=question["prompt_set"])

    def _trouble(self, error: ThinwireError) -> None:
        if self._broke:  # a dead line: gRPC would keep the old connection
            self._broke = False
            self._uplink.close()
            self._uplink = Uplink(self.line)
        if self.spool.waiting_frames == 0:
            return  # nothing to send: not worth a message
        if self._down_since is None:
            self._down_since = time.monotonic()
        if type(error).__name__ != self._told:
            self._told = type(error).__name__
            self.say(f"{error}; frames wait in the spool")

    def _wait(self, seconds: float) -> None:
        """Waits for a new frame, at most `seconds`."""
        with contextlib.suppress(queue.Empty):
            self._events.get(timeout=seconds)

    def _pause(self, seconds: float) -> None:
        """Waits all of `seconds` even if frames come: a burst of frames must not become a burst of attempts."""
        end = time.monotonic() + seconds
        while not self._stopping and (left := end - time.monotonic()) > 0:
            self._wait(left)

    def _stream(self) -> None:
        """Sends and receives until the stream ends. Raises what ended it."""
        self._session += 1
        number = self._session
        outgoing: queue.SimpleQueue[pb.ClassifyStreamRequest | None] = queue.SimpleQueue()
        call = self._uplink.stream(iter(outgoing.get, None), ((SPOOL_KEY, self.spool.device),))
        threading.Thread(target=read, args=(call, number, self._events), daemon=True).start()
        self.counts.connections += 1
        self._asked = None
        try:
            while not self._stopping:
                wait_s = self._fill(outgoing)
                self._oldest_sent = min((each.sent_at for each in self._flying.values()), default=None)
                try:
                    session, kind, body = self._events.get(timeout=wait_s)
                except queue.Empty:
                    self._check_for_silence()
                    continue
                if kind == "wake" or session != number:
                    continue
                if kind == "end":
                    raise (
                        typed_error(body, self.line)
                        if isinstance(body, grpc.RpcError)
                        else Refused(f"{self.line.server} ended the stream", "UNAVAILABLE")
                    )
                self._heard()
                self._take(body, outgoing)
                self._check_for_silence()
        finally:
            call.cancel()
            outgoing.put(None)
            self.meter.lost()
            self._flying.clear()
            if self._down_since is None:
                self._down_since = self._oldest_sent
            self._oldest_sent = None

    def _heard(self) -> None:
        if self._told is not None:
            self.say(f"{self.line.server} answers again after {self.down_s():.0f} s")
        self._down_since = self._told = None
        self._progress_at, self._patience_s = time.monotonic(), self.line.timeout_s

    def _check_for_silence(self) -> None:
        self._expire()
        if self._flying and self._silent_in_s() <= 0:
            self._broke = True
            after_s = self._patience_s
            self._patience_s = min(2 * self._patience_s, MAX_PATIENCE * self.line.timeout_s)
            raise ServerTimeout(f"{self.line.server} has not answered for {after_s:g} s: connecting again")

    def _silent_in_s(self) -> float:
        """Seconds until the line counts as dead, with frames in flight; 0 or less: it does now."""
        oldest = min(each.sent_at for each in self._flying.values())
        ends = [max(oldest, self._progress_at) + self._patience_s]
        ends += [each.overtaken_at + self.line.timeout_s for each in self._flying.values() if each.overtaken_at]
        return min(ends) - time.monotonic()

    def _expire(self) -> None:
        if time.monotonic() - self._expired_at > EXPIRE_EVERY_S:
            self._expired_at = time.monotonic()
            if self.spool.expire():
                self.on_result()

    # ---------------------------------------------------------------- frames

    def _fill(self, outgoing: queue.SimpleQueue) -> float:
        """Sends the frames that may be sent now; returns the longest time to wait for an event before the next call."""
        now = time.monotonic()
        wait_s = EXPIRE_EVERY_S
        # Wake up when the oldest frame in flight times out
        if self._flying:
            wait_s = min(wait_s, max(0.01, self._silent_in_s()))
        # Forget pauses that are over, unless they carry facts for the next attempt (failures, or to send all layers)
        for key in [key for key, again in self._again.items() if again.due <= now and not again.failures]:
            if not self._again[key].whole:
                del self._again[key]
        held = {key for key, again in self._again.items() if again.due > now}
        room = self.window - len(self._flying)
        if room <= 0:
            return wait_s
        # One frame more than there is room for shows `_layers` that there is a backlog
        frames = self.spool.waiting(room + 1, without=held | self._flying.keys(), fresh_s=self.rate.deadline_s)
        for place, frame in enumerate(frames[:room]):
            # The cap on kbit/s: wait until the bytes sent before have had their time
            if (cap_s := self.cap.wait_s()) > 0:
                return min(wait_s, cap_s)
            try:
                request, layers = self._request(frame, len(frames) - place - 1)
            except Exception as error:  # the packet or the question was damaged on disk, or what nobody expected
                self._fail(frame, error)
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
            self._handles.sent(request.request)
            self.counts.labels_saved_bytes = self._handles.counts.saved_bytes
            self._flying[frame.key] = Flight(frame, time.monotonic(), len(request.request.image.packet), layers)
            self.counts.sent_frames += 1
            self._send(frame.key, request, size, outgoing)
        if held:
            wait_s = min(wait_s, max(0.01, min(self._again[key].due for key in held) - now))
        return wait_s

    def _send(self, key: bytes, request: pb.ClassifyStreamRequest, size: int, outgoing: queue.SimpleQueue) -> None:
        self._budget_told = False
        self.budget.spent(size)
        self.cap.spent(size)
        self.meter.sent(key, size)
        self.counts.sent_bytes += size
        outgoing.put(request)

    def _layers(self, packet: Packet, frame: SpooledFrame, backlog: int) -> int:
        sizes = [len(packet.prefix(count + 1)) + FRAMING_BYTES for count in range(len(packet.layers))]
        age_s = max(0.0, time.time() - frame.accepted_at)
        return self.rate.layers(sizes, age_s, backlog, self.meter, self.cap.s_per_byte, self.budget.frame_bytes())

    def _request(self, frame: SpooledFrame, backlog: int) -> tuple[pb.ClassifyStreamRequest, int]:
        packet = Packet.from_bytes(frame.packet)
        layers = self._layers(packet, frame, backlog)
        message = pb.ClassifyStreamRequest()
        again = self._again.get(frame.key)
        if self._progressive and layers > 1 and not (again and again.whole):
            message.progressive.max_layers, message.progressive.confidence = layers, self.confidence
            layers = 1
        if frame.question != self._asked:
            message.request.CopyFrom(self._handles.shortened(self._question(frame.question)))
        message.request.image.packet = packet.prefix(layers).to_bytes()
        message.request.frame_id = frame_id(frame.key)
        return message, layers

    def _take(self, response: pb.ClassifyStreamResponse, outgoing: queue.SimpleQueue) -> None:
        key = next((key for key in self._flying if frame_id(key) == response.frame_id), None)
        if key is None:
            return  # a second answer to a frame that is settled
        flight = self._flying[key]
        for other in self._flying.values():
            if other.sent_at < flight.sent_at:
                other.overtaken_at = other.overtaken_at or time.monotonic()
        try:
            self._settle(key, response, outgoing)
        except ThinwireError:
            raise  # of the spool: the frame is sent again
        except Exception as error:  # an answer that is none: numbers that are not finite, fields that are missing
            self._flying.pop(key, None)
            self.meter.forget(key)
            self._fail(flight.frame, error)

    def _fail(self, frame: SpooledFrame, error: Exception) -> None:
        """The frame's final result: it raised an exception."""
        self.counts.failed += 1
        reason = error.reason if isinstance(error, ThinwireError) else FrameFailed.reason
        text = f"{frame.source}: {described(error)}"
        self._final(frame, lost(frame.key, frame.source, frame.captured_at, reason, text))

    def _settle(self, key: bytes, response: pb.ClassifyStreamResponse, outgoing: queue.SimpleQueue) -> None:
        flying = self._flying[key]
        kind = response.WhichOneof("outcome")
        reply = response.need_more.so_far if kind == "need_more" else response.result
        # The meter subtracts the server's own time: it measures the link
        took_s = self.meter.answered(key, reply.timing.total_ms / 1000)
        frame = flying.frame
        # 1. More layers are wanted and can be sent: the frame stays in flight
        if kind == "need_more" and self._extend(flying, response.need_more.layer, outgoing):
            return
        # 2. An answer, or one that must do: it is the final result
        del self._flying[key]
        if kind in ("result", "need_more"):
            late_s = max(0.0, time.time() - frame.accepted_at)
            self.counts.answered += 1
            self.counts.in_time += late_s <= self.rate.deadline_s
            if self.fallback is not None:
                self.fallback.learn(reply.predictions)
            self._tell(reply.notes)
            where = (frame.key, frame.source, frame.captured_at)
            self._final(frame, answered(*where, reply, flying.layers, flying.packet_bytes, took_s, late_s))
            return
        # 3. An error: final if another attempt cannot change it, else the frame waits for its next attempt
        error = response.error
        again = self._again.setdefault(key, Again())
        internal = error.code == grpc.StatusCode.INTERNAL.value[0]
        again.failures += internal
        again.whole |= flying.extended  # the server no longer has the first layers: send all of them
        if (error.code in FINAL_CODES and not flying.extended) or again.failures > RETRIES_OF_INTERNAL:
            self.counts.failed += 1
            self._final(frame, lost(key, frame.source, frame.captured_at, error.reason, error.message))
            return
        if error.reason == Reason.UNKNOWN_LABEL_SET:
            # The server has restarted: send this stream the labels, register a new handle before the next
            if self._handles.forget_all():
                self._asked = None
                if in_pieces(pb.RegisterLabelsRequest(labels=self._question(frame.question).labels)):
                    raise _LabelsUnknown("the labels are registered again")
            return
        pause_s = error.retry_after_ms / 1000 or FRAME_PAUSE_S * random.uniform(0.5, 1.5)
        if error.reason in OPERATOR_REASONS:
            pause_s = SLOW_PAUSE_S
            if self._told != error.reason:
                self._told = error.reason
                self.say(f"{self.line.server}: {error.message}; frames wait in the spool")
        again.due = time.monotonic() + pause_s

    def _extend(self, flying: Flight, wanted: int, outgoing: queue.SimpleQueue) -> bool:
        """Sends layers up to `wanted` if rate control, cap and budget allow it; returns whether it did."""
        packet = Packet.from_bytes(flying.frame.packet)
        backlog = self.spool.waiting_frames - len(self._flying)
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
        self._send(flying.frame.key, request, size, outgoing)
        return True

    def _final(self, frame: SpooledFrame, result: dict[str, Any]) -> None:
        self._again.pop(frame.key, None)
        self.spool.finish(frame.key, result)
        self.on_result()


def _digest(registration: pb.RegisterLabelsRequest) -> str:
    return hashlib.sha256(registration.SerializeToString(deterministic=True)).hexdigest()[:32]

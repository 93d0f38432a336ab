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
- With `others`, the server may also ask for a packet of another bundle, which the spool holds beside the first. It
  goes as soon as the cap allows, if deadline and budget do. Should the stream break in between, the next one goes on
  where it was: the server keeps what it has of this spool's frames, or else answers the second packet by itself.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from edge.errors import FrameFailed, Refused, described
from edge.field.fallback import Fallback, fetch_in_background
from edge.field.in_flight import Counts, read
from edge.field.line_health import LineHealth
from edge.field.rate_control import Budget, Cap, LinkMeter, RateControl
from edge.field.sending import EXPIRE_EVERY_S, Sender
from edge.field.settling import OPERATOR_REASONS, SLOW_PAUSE_S, LabelsUnknown, Settling
from edge.field.spool import Spool
from edge.field.spooled_labels import SpooledLabels
from edge.line.client import check_server
from edge.line.ladder import fuses, not_fused
from edge.line.uplink import Line, Uplink, typed_error
from thinwire.bundle import Bundle
from thinwire.contract import SPOOL_KEY
from thinwire.errors import ThinwireError

PAUSE_S = (0.2, 5.0)  # first and longest pause before the next attempt, before jitter
CONNECT_S = 2.0
MAX_DEFECTS = 3  # exceptions in a row that belong to no frame


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
    others: bundles of packets that may follow a frame's first one.
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
    others: Sequence[Bundle] = ()
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.meter = LinkMeter()
        self._health = LineHealth(self.line, self.say)
        self._labels = SpooledLabels(
            self.spool, self.cap, self.budget, self.counts, self._health, self.say, self._pause
        )
        self._settling = Settling(
            self.spool,
            self.rate,
            self.meter,
            self.counts,
            self._labels,
            self._health,
            self.fallback,
            on_result=lambda: self.on_result(),
        )
        self._sender = Sender(
            self.spool,
            self.rate,
            self.cap,
            self.budget,
            self.window,
            self.meter,
            self.counts,
            self._labels,
            self._health,
            self.say,
            self._settling.fail,
            self._settling.again,
        )
        self._uplink = Uplink(self.line)
        self._events: queue.SimpleQueue[tuple[int, str, Any]] = queue.SimpleQueue()
        self._defects = 0  # exceptions in a row that belong to no frame
        self._session = 0
        self._checked = self._stopping = False
        self._expired_at = 0.0
        self._said: set[str] = set()
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
        return self._health.down_s()

    @property
    def labels(self) -> dict[str, Any] | None:
        """Progress of labels that are being sent; None: none are."""
        return self._labels.progress

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
                self._labels.register(self._uplink)
                if self.fallback is not None and not self.fallback.ready:
                    fetch_in_background(self.fallback, self._uplink, self.say)
                self._stream()
                continue
            except LabelsUnknown:
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
        self._sender.confidence = self.confidence if held.progressive else None
        fused = fuses(info, self.bundle, self.others)
        self._sender.others, self._sender.dial = {each.model_id: each for each in fused}, self.confidence or 0.0
        for bundle in self.others:
            if bundle not in fused and (text := not_fused(self.bundle, bundle)) not in self._said:
                self._said.add(text)
                self.say(text)
        self._checked = True

    def _trouble(self, error: ThinwireError) -> None:
        if self._health.silent:  # a dead line: gRPC would keep the old connection
            self._health.silent = False
            self._uplink.close()
            self._uplink = Uplink(self.line)
        if self.spool.waiting_frames:  # with nothing to send it is not worth a message
            self._health.trouble(error)

    def _wait(self, seconds: float) -> None:
        """Waits for a new frame, at most `seconds`."""
        with contextlib.suppress(queue.Empty):
            self._events.get(timeout=seconds)

    def _pause(self, seconds: float) -> bool:
        """Waits all of `seconds` even if frames come: a burst of frames must not become a burst of attempts.

        Returns False if the courier ends.
        """
        end = time.monotonic() + seconds
        while not self._stopping and (left := end - time.monotonic()) > 0:
            self._wait(left)
        return not self._stopping

    def _stream(self) -> None:
        """Sends and receives until the stream ends. Raises what ended it."""
        self._session += 1
        number = self._session
        outgoing, flying = self._sender.open(), self._sender.flying
        call = self._uplink.stream(iter(outgoing.get, None), ((SPOOL_KEY, self.spool.device),))
        threading.Thread(target=read, args=(call, number, self._events), daemon=True).start()
        self.counts.connections += 1
        try:
            while not self._stopping:
                wait_s = self._sender.fill()
                self._health.oldest_sent = min((each.sent_at for each in flying.values()), default=None)
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
                self._health.heard()
                self._settling.take(body, self._sender)
                self._check_for_silence()
        finally:
            call.cancel()
            outgoing.put(None)
            self.meter.lost()
            flying.clear()
            self._health.stream_ended()

    def _check_for_silence(self) -> None:
        self._expire()
        self._health.check(self._sender.flying.values())

    def _expire(self) -> None:
        if time.monotonic() - self._expired_at > EXPIRE_EVERY_S:
            self._expired_at = time.monotonic()
            if self.spool.expire():
                self.on_result()

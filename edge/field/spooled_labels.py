"""Labels of spooled frames: sent once per device, before the first frame, and named by a handle from then on.

The spool keeps the handle for the next start. A server that does not know it gets the labels again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from edge.errors import ClientClosed, Refused, ServerTimeout
from edge.field.in_flight import Counts
from edge.field.line_health import LineHealth
from edge.field.rate_control import FRAMING_BYTES, Budget, Cap
from edge.field.spool import Spool
from edge.line.label_handles import LabelHandles
from edge.line.label_upload import Progress, in_pieces
from edge.line.uplink import Uplink
from thinwire.errors import ThinwireError
from thinwire.text import safe_text
from thinwire.v1 import inference_pb2 as pb

MAX_NOTES = 20  # on labels, told in one run
LABELS_SAID_EVERY_S = 30.0
HANDLES_NOTE = "labels.handles"


class _BudgetSpent(ThinwireError):
    """No bytes are left today."""


@dataclass
class SpooledLabels:
    """Used by the courier's thread.

    pause: waits so many seconds, or until the courier ends; it then returns False.
    progress: of labels that are being sent, for `status`; None: none are.
    """

    spool: Spool
    cap: Cap
    budget: Budget
    counts: Counts
    health: LineHealth
    say: Callable[[str], None]
    pause: Callable[[float], bool]
    progress: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.handles = LabelHandles()
        self._assumed: set[int] = set()  # questions whose noted handle was tried
        self._noted: set[str] = set()  # notes on labels that were told

    def question(self, number: int) -> pb.ClassifyRequest:
        question = self.spool.question(number)
        return pb.ClassifyRequest(labels=question["labels"], top_k=question["top_k"], prompt_set=question["prompt_set"])

    def register(self, uplink: Uplink) -> None:
        """Registers the labels of the next frame, so that frames need not carry them. Raises if no server answers."""
        for frame in self.spool.waiting(1):
            question = self.question(frame.question)
            wanted = self.handles.registration(question, at_once=True)
            if wanted is None or self._assume(frame.question, wanted):
                return
            try:
                if in_pieces(wanted):

                    def send(part: pb.RegisterLabelsPartRequest) -> pb.RegisterLabelsPartResponse:
                        self._spend_part(part)
                        return uplink.register_part(part)

                    reply = uplink.register(wanted, self._tell_progress, send, self.health.patience_s)
                else:
                    self._spend(wanted.ByteSize() + FRAMING_BYTES)
                    reply = uplink.register(wanted, timeout_s=self.health.patience_s)
                self.handles.registered(wanted, reply)
                self.tell(reply.notes)
                self.spool.note(HANDLES_NOTE, {_digest(wanted): reply.label_set})
            except _BudgetSpent:
                return  # frames will wait for the same reason
            except Refused as error:
                self.handles.refused(wanted, error)
            except ServerTimeout:
                self.health.more_patience()
                raise
            finally:
                self.progress = None

    def tell(self, notes: Iterable[str]) -> None:
        """Says what the server finds odd about the labels, once."""
        for note in notes:
            if note not in self._noted and len(self._noted) < MAX_NOTES:
                self._noted.add(note)
                self.say(f"note: {safe_text(note)}")

    def _assume(self, number: int, wanted: pb.RegisterLabelsRequest) -> bool:
        """Takes the handle that an earlier run was given, once: a server that does not know it says so."""
        if number in self._assumed:
            return False
        self._assumed.add(number)
        handle = (self.spool.noted(HANDLES_NOTE) or {}).get(_digest(wanted))
        if handle:
            self.handles.assume(wanted, handle)
        return bool(handle)

    def _spend_part(self, part: pb.RegisterLabelsPartRequest) -> None:
        if not self.pause(0.0):
            raise ClientClosed("the run ends")
        self._spend(part.ByteSize() + FRAMING_BYTES)
        while (wait_s := self.cap.wait_s()) > 0 and self.pause(wait_s):
            pass

    def _spend(self, size: int) -> None:
        if not self.budget.allows(size):
            raise _BudgetSpent("the day's byte budget is spent")
        self.budget.spent(size)
        self.cap.spent(size)
        self.counts.sent_bytes += size

    def _tell_progress(self, progress: Progress) -> None:
        """Progress of many labels: for `status`, and a line at the start and every half minute."""
        self.health.works()
        now = time.monotonic()
        if self.progress is None:
            self._said_at = float("-inf")
        self.progress = {
            "sent_bytes": progress.held_bytes,
            "of_bytes": progress.total_bytes,
            "texts_done": progress.texts_done,
            "texts": progress.texts,
        }
        if now - self._said_at > LABELS_SAID_EVERY_S:
            self._said_at = now
            self.say(f"labels go ahead of the frames, once: {progress}")


def _digest(registration: pb.RegisterLabelsRequest) -> str:
    return hashlib.sha256(registration.SerializeToString(deterministic=True)).hexdigest()[:32]

"""Whether the courier's line works: since when it does not, how long to wait for it, and what was said of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edge.errors import ServerTimeout
from edge.field.in_flight import Flight
from edge.line.uplink import Line
from thinwire.errors import ThinwireError

MAX_PATIENCE = 16  # times the timeout, after silence again and again


@dataclass
class LineHealth:
    """Used by the courier's thread; `down_s` by others too.

    line: the server, and how long silence may last.
    say: gets one line when the link is lost and when it is back.
    patience_s: how long nothing may come before the line counts as dead.
    oldest_sent: monotonic seconds; of the frames on their way.
    silent: nothing came in time: gRPC would keep the dead connection.
    told: what is wrong, as it was said last.
    """

    line: Line
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.patience_s = self.line.timeout_s
        self.oldest_sent: float | None = None
        self.silent = False
        self.told: str | None = None
        self._down_since: float | None = None
        self._progress_at = float("-inf")

    def down_s(self) -> float:
        """How long frames have gone without an answer; 0 while the link works, or nothing is asked of it."""
        starts = [each for each in (self._down_since, self.oldest_sent) if each is not None]
        return max(0.0, time.monotonic() - min(starts)) if starts else 0.0

    def works(self) -> None:
        """Something crossed, if no answer."""
        self._down_since = None

    def heard(self) -> None:
        """An answer has come."""
        if self.told is not None:
            self.say(f"{self.line.server} answers again after {self.down_s():.0f} s")
        self._down_since = self.told = None
        self._progress_at, self.patience_s = time.monotonic(), self.line.timeout_s

    def trouble(self, error: ThinwireError) -> None:
        """An attempt failed."""
        if self._down_since is None:
            self._down_since = time.monotonic()
        self.tell(type(error).__name__, f"{error}; frames wait in the spool")

    def tell(self, kind: str, text: str) -> None:
        """Says `text`, unless the same kind of trouble was said last."""
        if kind != self.told:
            self.told = kind
            self.say(text)

    def stream_ended(self) -> None:
        if self._down_since is None:
            self._down_since = self.oldest_sent
        self.oldest_sent = None

    def more_patience(self) -> None:
        """After silence: a message that is large for a slow link arrives at last."""
        self.patience_s = min(2 * self.patience_s, MAX_PATIENCE * self.line.timeout_s)

    def silent_in_s(self, flights: Iterable[Flight]) -> float:
        """Seconds until the line counts as dead, with frames in flight; 0 or less: it does now."""
        flights = list(flights)
        ends = [max(min(each.sent_at for each in flights), self._progress_at) + self.patience_s]
        ends += [each.overtaken_at + self.line.timeout_s for each in flights if each.overtaken_at]
        return min(ends) - time.monotonic()

    def check(self, flights: Iterable[Flight]) -> None:
        """Raises ServerTimeout if nothing has come for too long."""
        flights = list(flights)
        if flights and self.silent_in_s(flights) <= 0:
            self.silent = True
            after_s = self.patience_s
            self.more_patience()
            raise ServerTimeout(f"{self.line.server} has not answered for {after_s:g} s: connecting again")

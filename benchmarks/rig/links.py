"""Uplinks by name, and when a link of that kind hands over each segment. `link_proxy` has the sockets.

What a link does to a segment of TCP payload (at most `SEGMENT_BYTES`, `HEADER_BYTES` of TCP and IPv4 in front of it):

    leaves the sender   max(now, end of the segment before) + 8 x bytes / rate        (token bucket without a burst)
    arrives             that + delay + a draw from -jitter .. +jitter, never before the segment before it
    or ends its connection, with `reset_probability`                                  (loss that TCP did not repair)

A bucket that saves tokens would let every small message pass an idle link in no time; a radio does not.

Where the figures come from. Rates: NB-IoT Cat-NB1 26 kbit/s down, 62 up, and 1.6 s to 10 s of latency (3GPP Release 13
as tabled at blog.mbedded.ninja/electronics/communication-protocols/cellular; the lower end is taken as the round trip);
LTE-M Cat-M1 half duplex 300 kbit/s down, 375 up, scheduling delays counted
(rfwireless-world.com, "LTE-M Device Categories"); 3G 1.6 Mbit/s down, 750 kbit/s up, 150 ms round trip (Lighthouse,
docs/throttling.md, which is WebPageTest's "Mobile 3G - Fast"); LTE 12 Mbit/s both ways, 70 ms (WebPageTest,
connectivity.ini, "LTE"); Wi-Fi 30 Mbit/s down, 15 up, 2 ms (the "WiFi" preset of earlier Chrome DevTools); satellite is
geostationary: HughesNet, 19.30 Mbit/s down, 2.54 up (Ookla, Q3 2021, at techblog.comsoc.org/2021/12/21) and 724 ms
(Ookla, Q2 2021, at rcrwireless.com/20210804). LTE-M's 100 ms are our assumption: published figures are of the radio
alone (10 ms to 15 ms). Delay is half a round trip. ALL jitters and reset probabilities are assumptions too, for want
of sources that give them in these terms: jitter a tenth of the delay or more, resets rare but present.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from thinwire.errors import ThinwireError

SEGMENT_BYTES = 1460
HEADER_BYTES = 40


class UnknownLink(ThinwireError):
    """A link was asked for that is not here; the message names those that are."""

    reason: ClassVar[str] = "UNKNOWN_LINK"


@dataclass(frozen=True)
class Link:
    """One kind of line. Rates in bits per second, headers included; None is as fast as this machine.

    delay_ms: one way. jitter_ms: half the width of the uniform draw around it. reset_probability: of each segment.
    """

    name: str
    up_bps: float | None = None
    down_bps: float | None = None
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    reset_probability: float = 0.0

    def __post_init__(self) -> None:
        rates = [rate for rate in (self.up_bps, self.down_bps) if rate is not None]
        if any(rate <= 0 for rate in rates) or not 0 <= self.jitter_ms <= self.delay_ms:
            raise UnknownLink(f"link {self.name!r}: rates must be above 0, and jitter between 0 and the delay")
        if not 0 <= self.reset_probability < 1:
            raise UnknownLink(f"link {self.name!r}: a reset probability lies between 0 and 1")


LINKS = {
    link.name: link
    for link in (
        Link("none"),
        Link("wi-fi", 15e6, 30e6, 1.0, 0.5, 0.0001),
        Link("lte", 12e6, 12e6, 35.0, 5.0, 0.0001),
        Link("3g", 750e3, 1.6e6, 75.0, 15.0, 0.0005),
        Link("lte-m", 375e3, 300e3, 50.0, 15.0, 0.0005),
        Link("satellite", 2.54e6, 19.3e6, 362.0, 36.0, 0.0005),
        Link("nb-iot", 62e3, 26e3, 800.0, 80.0, 0.001),
    )
}
"""Presets by name, from fast to slow; "none" passes bytes on as they come."""


def find_links(names: str) -> list[Link]:
    """ "lte-m,lte" or "all" → links, each once. Raises `UnknownLink`."""
    wanted = [name.strip().lower() for name in names.split(",") if name.strip()]
    wanted = [each for name in wanted for each in (LINKS if name == "all" else [name])]
    for name in wanted:
        if name not in LINKS:
            raise UnknownLink(f"--links: {name!r} is unknown: use all, or any of {', '.join(LINKS)}")
    return [LINKS[name] for name in dict.fromkeys(wanted)]


@dataclass(frozen=True)
class Passage:
    """What becomes of one segment: when it is there, on the clock of `now_s`, and whether it ends its connection."""

    arrives_s: float
    reset: bool


class Schedule:
    """One direction of a link, shared by all connections that cross it. Knows no clock: callers say what time it is."""

    def __init__(self, link: Link, rate_bps: float | None, seed: int) -> None:
        self._link, self._rate_bps = link, rate_bps
        self._random = random.Random(seed)
        self._free_s = self._last_s = float("-inf")

    def place(self, now_s: float, payload_bytes: int) -> Passage:
        """The next segment, given to the link at `now_s`."""
        self._free_s = max(now_s, self._free_s)
        if self._rate_bps is not None:
            self._free_s += 8 * (payload_bytes + HEADER_BYTES) / self._rate_bps
        link = self._link
        delay_ms = link.delay_ms + link.jitter_ms * self._random.uniform(-1, 1)
        self._last_s = max(self._last_s, self._free_s + delay_ms / 1000)
        reset = link.reset_probability > 0 and self._random.random() < link.reset_probability
        return Passage(self._last_s, reset)


def segments(data: bytes) -> list[bytes]:
    """What TCP makes of one write."""
    return [data[start : start + SEGMENT_BYTES] for start in range(0, len(data), SEGMENT_BYTES)]

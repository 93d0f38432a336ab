"""Who a client is, and how much of the service one client gets."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import grpc

from cloud.errors import RateLimited
from thinwire.contract import DEVICE_KEY, is_device_id

MAX_CLIENTS = 10_000


def client_of(context: grpc.aio.ServicerContext, by_token: bool) -> str:
    """What tells clients apart: their certificate, else their token (hashed), else their address without its port.

    `by_token` only where tokens are checked: unchecked ones could be made up for every call. Behind a proxy that
    ends TLS all clients have its address: give each a token.
    """
    if names := context.auth_context().get("x509_common_name"):
        return "certificate " + names[0].decode(errors="replace")
    for key, value in context.invocation_metadata() or ():
        if by_token and key == "authorization":
            return "token " + hashlib.sha256(value.encode()).hexdigest()[:12]
    peer = context.peer()  # "ipv4:127.0.0.1:50312", "ipv6:%5B::1%5D:50312", "unix:..."
    return peer.rpartition(":")[0] if peer.startswith("ip") else peer


def device_of(context: grpc.aio.ServicerContext, by_token: bool) -> str:
    """The name under which an answer is shown, kept and found again: the client's certificate, else what it calls
    itself in the metadata `thinwire-device` (1 to 64 of A-Z a-z 0-9 . _ : -; which is not checked), else
    `client_of`."""
    if names := context.auth_context().get("x509_common_name"):
        return names[0].decode(errors="replace")
    for key, value in context.invocation_metadata() or ():
        if key == DEVICE_KEY and is_device_id(value):
            return value
    return client_of(context, by_token)


class RateLimiter:
    """A token bucket for each client: `per_second` images on average, `burst` at once. Thread-safe.

    The state of at most 10,000 clients is kept; the one unseen for longest is forgotten first (its bucket is full again
    by then in all but the strangest cases). `per_second=None` lets everything pass.
    """

    def __init__(
        self, per_second: float | None, burst: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = per_second
        self._burst = float(burst or max(1, round(per_second or 1)))
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (tokens, when)
        self._lock = threading.Lock()
        self.refused = 0

    def charge(self, client: str, cost: int = 1) -> None:
        """Takes `cost` images from the client's bucket, or raises `RateLimited` with the time until they fit.

        A cost above the whole burst passes when the bucket is full and leaves it in debt: it is not refused for ever.
        """
        if self._rate is None:
            return
        now = self._clock()
        with self._lock:
            tokens, when = self._buckets.pop(client, (self._burst, now))
            tokens = min(self._burst, tokens + (now - when) * self._rate)
            missing = min(cost, self._burst) - tokens
            self._buckets[client] = (tokens if missing > 0 else tokens - cost, now)
            if len(self._buckets) > MAX_CLIENTS:
                self._buckets.popitem(last=False)
            if missing <= 0:
                return
            self.refused += 1
        wait_ms = max(1, int(1000 * missing / self._rate) + 1)
        raise RateLimited(
            f"this client may send {self._rate:g} images a second ({self._burst:g} at once): wait {wait_ms} ms", wait_ms
        )

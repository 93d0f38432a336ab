"""What watches a service, as settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cloud.errors import BadConfiguration
from thinwire.contract import is_loopback


@dataclass(frozen=True)
class WebOptions:
    """host, port (0 takes a free one); page: also what shows pictures, not metrics and health alone."""

    host: str = "127.0.0.1"
    port: int = 0
    page: bool = True
    allow_plaintext: bool = False

    def check(self) -> None:
        """Raises `BadConfiguration` where pictures would be shown beyond this machine without a word."""
        if self.page and not is_loopback(self.host) and not self.allow_plaintext:
            raise BadConfiguration(
                f"--http-host {self.host} would show what cameras see to anyone on the network: give --no-page "
                "(metrics and health alone), or --allow-plaintext behind a proxy that ends TLS and checks users"
            )


@dataclass(frozen=True)
class WatchOptions:
    """web None: no HTTP port. store None: no frame is kept. max_bytes and max_age_s: what the store keeps at most.
    traces: the OTLP endpoint (http://collector:4317), or "console"."""

    web: WebOptions | None = None
    store: Path | None = None
    max_bytes: int | None = None
    max_age_s: float | None = None
    request_log: bool = False
    traces: str | None = None

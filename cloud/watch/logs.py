"""Logs: rich for people at a terminal, plain lines for files, one JSON object a line for machines."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO

from cloud.engine.events import Observer
from thinwire.errors import ThinwireError

if TYPE_CHECKING:
    from cloud.engine.items import Item

requests_log = logging.getLogger("cloud.requests")


def set_up_logs(form: str = "auto", stream: TextIO | None = None) -> str:
    """Sends all logging to `stream` (stderr) in one of `cloud.config.FORMATS`; auto is rich at a terminal, else plain.
    Returns which it became. A second call replaces the first."""
    stream = stream or sys.stderr
    if form == "auto":
        form = "rich" if stream.isatty() else "plain"
    if form == "rich":
        from rich.console import Console
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(console=Console(file=stream), show_path=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="[%X]"))
    else:
        handler = logging.StreamHandler(stream)
        if form == "json":
            from pythonjsonlogger.json import JsonFormatter

            # Extra fields of a record (logging's extra=...) become keys of their own
            handler.setFormatter(
                JsonFormatter(
                    ["levelname", "name", "message"],
                    timestamp="time",
                    rename_fields={"levelname": "level", "name": "logger"},
                )
            )
        else:
            handler.setFormatter(logging.Formatter("thinwire-cloud: %(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    return form


class RequestLog(Observer):
    """One INFO record for everything that left the engine, with its figures as fields of their own. No labels, no
    texts, no bytes of inputs: logs travel further than pictures may."""

    def refused(self, reason: str) -> None:
        requests_log.info("rejected: %s", reason, extra={"outcome": "rejected", "reason": reason})

    def settled(self, item: Item, outcome: str, value: object) -> None:
        if not requests_log.isEnabledFor(logging.INFO):
            return
        reason = value.reason if isinstance(value, ThinwireError) else ""
        fields: dict[str, object] = {
            "kind": item.kind.name.lower(),
            "outcome": outcome,
            "reason": reason,
            "input_bytes": item.input_bytes,
        }
        if (timing := getattr(value, "timing", None)) is not None:
            fields |= {"bundle": value.bundle or "", "layers": value.layers, "batch_size": timing.batch_size}
            for name in ("queue_ms", "decode_ms", "synthesis_ms", "clip_ms", "head_ms", "total_ms"):
                fields[name] = round(getattr(timing, name), 3)
        told = " ".join(f"{name}={value}" for name, value in fields.items() if value != "")
        requests_log.info("%s", told, extra=fields)

"""One frame to be looked at, and what every source of frames has."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Shot:
    """key: see `edge.field.frame_keys`; source: its name, safe to store and to show; image: a path, a file's bytes, or
    uint8 (H, W, 3) RGB; live: it cannot wait for room; place: what the gate compares it within."""

    key: bytes
    source: str
    captured_at: float
    image: Path | bytes | np.ndarray
    live: bool = False
    place: str = ""


class Source(Protocol):
    """name: safe to show; live: drops frames rather than wait; trouble: {"since", "error"} while it gives none."""

    name: str
    live: bool
    trouble: dict[str, Any] | None

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        """Frames until there are no more, or `stop` is set."""

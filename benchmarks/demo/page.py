"""The demo's page: one HTML file that holds everything, thumbnails included."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from benchmarks.data.photos import Photo
    from edge.line.result import Result

STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem }
th, td { padding: .4rem .6rem; border-bottom: 1px solid #8884; text-align: left; vertical-align: middle }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums }
img { display: block; width: 112px; height: 112px; border-radius: 4px }
.right { color: #2a8a3a; font-weight: 600 } .wrong { color: #c0392b; font-weight: 600 } small { opacity: .7 }
"""

HEADS = ("packet B", "edge ms", "cloud ms", "round trip ms")


@dataclass(frozen=True)
class Shown:
    """One row: a photograph, its view uint8 (H, W, 3), what the cloud's CLIP was shown (None where that is no picture),
    the answer to that, and the same CLIP's answer to the uncompressed view."""

    photo: Photo
    view: np.ndarray
    seen: np.ndarray | None
    result: Result
    uncompressed: Result

    @property
    def right(self) -> bool:
        return self.result.predictions[0].label == self.photo.label

    @property
    def right_uncompressed(self) -> bool:
        return self.uncompressed.predictions[0].label == self.photo.label


def write_report(
    path: Path, facts: Sequence[str], groups: Sequence[tuple[str, Sequence[str], Sequence[Shown]]]
) -> None:
    """Writes the page. `facts`: lines of its head; `groups`: (title, labels, rows) each. Makes the folder."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>thinwire demo</title><style>{STYLE}</style><h1>thinwire demo</h1>",
        *(f"<p>{escape(fact)}</p>" for fact in facts),
    ]
    for title, labels, rows in groups:
        head = "".join(f"<th class=n>{name}" for name in HEADS)
        parts.append(f"<h2>{escape(title)}</h2><p><small>Labels: {escape(', '.join(labels))}</small></p>")
        columns = "<th>the device's view<th>what the cloud saw<th>file<th>uncompressed<th>through the wire"
        parts.append(f"<table><tr>{columns}{head}</tr>")
        parts.extend(_row(row) for row in rows)
        parts.append("</table>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _answers(result: Result, right: bool) -> str:
    """The first three answers, the first one marked."""
    mark = "right" if right else "wrong"
    return "<br>".join(
        f"<span class={mark if place == 0 else 'other'}>{escape(p.label)}</span> {100 * p.probability:.1f}%"
        for place, p in enumerate(result.predictions[:3])
    )


def _row(row: Shown) -> str:
    answers = f"<td>{_answers(row.uncompressed, row.right_uncompressed)}<td>{_answers(row.result, row.right)}"
    numbers = (
        f"{row.result.packet_bytes:,}",
        f"{row.result.edge_ms:.1f}",
        f"{row.result.server.total_ms:.1f}",
        f"{row.result.round_trip_ms:.1f}",
    )
    cells = "".join(f"<td class=n>{number}" for number in numbers)
    name = f"{escape(row.photo.name)}<br><small>{escape(row.photo.label)}</small>"
    seen = "no picture: it was sent a vector"
    if row.seen is not None:
        seen = f"<img alt='{escape(row.photo.label)}, decoded' src='{_thumbnail(row.seen)}'>"
    view = f"<img alt='{escape(row.photo.label)}' src='{_thumbnail(row.view)}'>"
    return f"<tr><td>{view}<td>{seen}<td>{name}{answers}{cells}</tr>"


def _thumbnail(view: np.ndarray) -> str:
    """The view, uint8 (H, W, 3), as a data URI."""
    file = io.BytesIO()
    Image.fromarray(view).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")

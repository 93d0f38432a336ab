"""The section of cascades: a small tower first, pixels where it is unsure, beside single codecs and over links.

It reads what `thinwire-bench cascade --json OUT/cascade.json` wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.section import Section, ends, html_table, markdown_table, number
from benchmarks.results.store import ResultsError

FILE = "cascade.json"
HEADER = ["data", "way", "bytes", "relative top-1", "asked for pixels", "ahead of it at equal bytes"]
LINKS = ["data", "link", "first packet alone, ms", "cascade, ms", "second packet alone, ms"]
NOTE = (
    "The device sends the vector of a small tower; the server asks for a still where that is expected to bring more "
    "than 1 - confidence of such frames to the CLIP's own answer; then both opinions count. In brackets 95 % paired "
    "bootstrap intervals. The last column is the top-1 of the cascade (at {confidence:g}) minus that of the codec, "
    "mixed of its points to the same mean bytes."
)


def cascade_section(out: Path) -> Section | None:
    """None where no cascade was measured. Raises `ResultsError` for a file that is none of a measurement."""
    path = out / FILE
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for name, found in document["sets"].items() for row in _rows(name, found)]
        links = [row for name, found in document["sets"].items() for row in _links(name, found)]
        note = NOTE.format(confidence=document["confidence"])
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}: is not what `thinwire-bench cascade --json` writes ({error!r})") from error
    html = f"<p class=note>{note}</p>" + html_table(HEADER, rows, 2)
    markdown = f"{note}\n\n{markdown_table(HEADER, rows)}"
    if links:
        html += html_table(LINKS, links, 2)
        markdown += f"\n\n{markdown_table(LINKS, links)}"
    return Section("cascade", "A small tower first, pixels when unsure", html, markdown, findings=document["sets"])


def _rows(name: str, found: Mapping[str, Any]) -> list[list[str]]:
    against = found["reported"]["against"]
    rows = [
        [name, f"cascade, confidence {point['confidence']:g}", *_measured(point), f"{point['needed_pixels']:.0%}", ""]
        for point in found["cascade"]
    ]
    told: set[str] = set()
    for way, point in found["single"].items():
        codec = "bare AV1" if way.startswith("bare ") else way.rpartition(" ")[0]
        ahead = "" if codec in told or codec not in against else _ahead(against[codec])
        told.add(codec)
        rows.append([name, way, *_measured(point), "", ahead])
    return rows


def _measured(point: Mapping[str, Any]) -> tuple[str, str]:
    relative = number(point["top1_relative"], ".3f") + ends(point["top1_relative_ci95"], ".3f")
    return f"{point['bytes_mean']:,.0f}", relative


def _ahead(difference: Sequence[float]) -> str:
    return f"{100 * difference[0]:+.1f} points" + ends([100 * each for each in difference[1:]], "+.1f")


def _links(name: str, found: Mapping[str, Any]) -> list[list[str]]:
    rows = found.get("wire", {}).get("links", ())
    return [
        [name, row["link"], *(f"{row[key]:,.0f}" for key in ("first_ms", "cascade_ms", "second_ms"))] for row in rows
    ]

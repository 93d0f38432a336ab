"""Which codec on which link: the fewest bytes that answer well in time. Shown where latency was measured.

It joins two experiments by (codec, rate): see `benchmarks.results.best_codec`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.codecs.grid import codec_title
from benchmarks.codecs.peers import WHOLE
from benchmarks.report.section import Section, html_table, markdown_table
from benchmarks.results.best_codec import ON_EDGE, best_codecs
from benchmarks.results.rows import group_points, rows_of
from benchmarks.results.store import read_points

DEADLINES_MS = (250, 1000, 5000)
METRIC = "top1_relative"
TOLERANCE = 0.05
INTRO = (
    "For each link and deadline, of the points whose 95th percentile, from the image to the labels, is within the "
    f"deadline and whose relative top-1 is at most {TOLERANCE:g} below the highest of these, the one with the fewest "
    "bytes. More than the uncompressed image's top-1 is luck and counts as 1. "
    '"On the edge" (CLIP\'s own image tower on the device, nothing is sent) only where nothing sent arrives in '
    "time."
)
LIGHT = "The same for devices that CLIP's image tower is too much for:"


def links_section(out: Path) -> Section | None:
    """None where no latency was measured, or nothing whose accuracy is known."""
    rows = [row for point in read_points(out, "latency") for row in point["rows"]]
    groups = group_points(read_points(out, "rate-accuracy"))
    if not rows or not groups:
        return None
    accuracies = [_capped(row) for row in rows_of(groups[0], groups[0].prompt_sets[0])]
    # A service that takes image files was timed with whole files: the same pixels, and so the same accuracy
    accuracies += [{**row, "codec": WHOLE[row["codec"]]} for row in accuracies if row["codec"] in WHOLE]
    tables = [_table(rows, accuracies)]
    towers = {row["codec"] for row in rows if row["kind"] == ON_EDGE}  # these carry CLIP's tower
    light = [row for row in rows if row["codec"] not in towers]
    if towers and light:
        tables.append(_table(light, accuracies))
    if not any(tables):
        return None
    header = ["link", *(f"within {deadline / 1000:g} s" for deadline in DEADLINES_MS)]
    notes = [f"{INTRO} Accuracy: {groups[0].title}.", LIGHT]
    shown = [(note, table) for note, table in zip(notes, tables) if table]
    html = "".join(f"<p class=note>{note}</p>" + html_table(header, table, len(header)) for note, table in shown)
    markdown = "\n\n".join(f"{note}\n\n{markdown_table(header, table)}" for note, table in shown)
    return Section("links", "Which codec on which link", html, markdown)


def _table(latency: Sequence[Mapping[str, Any]], accuracies: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each link; empty where no accuracy is known of anything."""
    found = best_codecs(latency, accuracies, DEADLINES_MS, metric=METRIC, tolerance=TOLERANCE)
    if not any(each["best"] for each in found):
        return []
    links = dict.fromkeys(each["link"] for each in found)
    return [[link, *(_words(each["best"]) for each in found if each["link"] == link)] for link in links]


def _capped(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, METRIC: None if row[METRIC] is None else min(1.0, row[METRIC])}


def _words(best: Mapping[str, Any] | None) -> str:
    if best is None:
        return "nothing arrives in time"
    name = " ".join(filter(None, (codec_title(best["codec"]), best["rate"])))
    told = f"{best[METRIC]:.2f} in {best['latency_ms']:.0f} ms"
    if best["kind"] == "on-edge":
        return f"{name}, on the edge: {told}"
    return f"{name}: {told} ({best['link_bytes_up_per_image']:,.0f} B up)"

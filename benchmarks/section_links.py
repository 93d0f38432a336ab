"""Which codec on which link: the fewest bytes that answer well in time. Shown where latency was measured.

It joins two experiments by (codec, rate): see `benchmarks.deployment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.deployment import best_codecs
from benchmarks.plot import codec_title
from benchmarks.points import read_points
from benchmarks.rows import group_points, rows_of
from benchmarks.sections import Section, html_table, markdown_table

DEADLINES_MS = (250, 1000, 5000)
METRIC = "top1_relative"
TOLERANCE = 0.05
INTRO = (
    "For each link and deadline, of the points whose 95th percentile, from the image to the labels, is within the "
    f"deadline and whose relative top-1 is at most {TOLERANCE:g} below the highest of these, the one with the fewest "
    'bytes. "On the edge" (CLIP\'s own image tower on the device, nothing is sent) only where nothing sent arrives in '
    "time."
)


def links_section(out: Path) -> Section | None:
    """None where no latency was measured, or nothing whose accuracy is known."""
    rows = [row for point in read_points(out, "latency") for row in point["rows"]]
    groups = group_points(read_points(out, "rate-accuracy"))
    if not rows or not groups:
        return None
    accuracies = rows_of(groups[0], groups[0].prompt_sets[0])
    found = best_codecs(rows, accuracies, DEADLINES_MS, metric=METRIC, tolerance=TOLERANCE)
    if not any(each["best"] for each in found):
        return None
    header = ["link", *(f"within {deadline / 1000:g} s" for deadline in DEADLINES_MS)]
    table = [
        [link, *(_words(each["best"]) for each in found if each["link"] == link)]
        for link in dict.fromkeys(each["link"] for each in found)
    ]
    intro = f"{INTRO} Accuracy: {groups[0].title}."
    html = f"<p class=note>{intro}</p>" + html_table(header, table, len(header))
    return Section("links", "Which codec on which link", html, f"{intro}\n\n{markdown_table(header, table)}")


def _words(best: Mapping[str, Any] | None) -> str:
    if best is None:
        return "nothing arrives in time"
    name = " ".join(filter(None, (codec_title(best["codec"]), best["rate"])))
    told = f"{best[METRIC]:.2f} in {best['latency_ms']:.0f} ms"
    if best["kind"] == "on-edge":
        return f"{name}, on the edge: {told}"
    return f"{name}: {told} ({best['link_bytes_up_per_image']:,.0f} B up)"

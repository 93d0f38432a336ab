"""Which codec on which link: the best accuracy whose answers arrive in time. Shown where latency was measured.

It joins two experiments: points of `latency` hold `rows` with `link`, `codec`, `rate` and `total_ms_p95` (from the
image to the labels, 95th percentile); accuracies are the rate-accuracy rows of the same codec and rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.points import read_points
from benchmarks.rows import group_points, rows_of
from benchmarks.sections import Section, html_table, markdown_table

DEADLINES_S = (0.25, 1.0, 5.0)
INTRO = (
    "For each link and deadline the codec with the highest relative top-1 whose 95th percentile, from the image to the "
    "labels, is within the deadline; of equal ones the one with fewer bytes."
)


def links_section(out: Path) -> Section | None:
    """None where no latency was measured, or nothing whose accuracy is known."""
    rows = [row for point in read_points(out, "latency") for row in point["rows"]]
    latencies = [row for row in rows if row["loop"] == "closed"]  # what a camera that waits for its answer sees
    groups = group_points(read_points(out, "rate-accuracy"))
    if not latencies or not groups:
        return None
    accuracies = rows_of(groups[0], groups[0].prompt_sets[0])
    table = best_on_links(latencies, accuracies)
    if not table:
        return None
    header = ["link", *(f"within {deadline:g} s" for deadline in DEADLINES_S)]
    intro = f"{INTRO} Accuracy: {groups[0].title}."
    html = f"<p class=note>{intro}</p>" + html_table(header, table, len(header))
    return Section("links", "Which codec on which link", html, f"{intro}\n\n{markdown_table(header, table)}")


def best_on_links(latencies: Sequence[Mapping[str, Any]], accuracies: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One line for each link, in the order given: its name, then the answer for each deadline."""
    known = {(row["codec"], row["rate"]): row for row in accuracies if row["top1_relative"] is not None}
    lines = []
    for link in dict.fromkeys(row["link"] for row in latencies):
        own = [row for row in latencies if row["link"] == link and (row["codec"], row["rate"]) in known]
        if not own:
            continue
        line = [link]
        for deadline_s in DEADLINES_S:
            in_time = [
                row for row in own if row["total_ms_p95"] is not None and row["total_ms_p95"] <= 1000 * deadline_s
            ]
            best = max(in_time, key=lambda row: _worth(known[row["codec"], row["rate"]]), default=None)
            line.append("nothing arrives in time" if best is None else _words(best, known[best["codec"], best["rate"]]))
        lines.append(line)
    return lines


def _worth(accuracy: Mapping[str, Any]) -> tuple[float, float]:
    return accuracy["top1_relative"], -(accuracy["bytes_mean"] or 0)


def _words(latency: Mapping[str, Any], accuracy: Mapping[str, Any]) -> str:
    name = " ".join(filter(None, (latency["codec"], latency["rate"])))
    return (
        f"{name}: {accuracy['top1_relative']:.2f} in {latency['total_ms_p95']:.0f} ms ({accuracy['bytes_mean']:.0f} B)"
    )

"""Which codec on which link: the fewest bytes that answer well enough within a deadline. Pure functions of rows.

Latency rows come from `thinwire-bench latency`, accuracy rows from `thinwire-bench rate-accuracy`; they meet by
(codec, rate).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DEADLINES_MS = (100, 250, 500, 1000, 2000, 5000)
ON_EDGE = "on-edge"


def best_codecs(
    latency: Iterable[Mapping[str, Any]],
    accuracy: Iterable[Mapping[str, Any]],
    deadlines_ms: Sequence[float] = DEADLINES_MS,
    percentile: str = "p95",
    loop: str = "closed",
    metric: str = "top1",
    tolerance: float = 0.0,
) -> list[dict[str, Any]]:
    """One row for each link (in the order of the latency rows) and deadline, with the best point of each kind.

    A point is fit for a deadline when that percentile of its latency is known and within it. Of fit points whose
    `metric` is at most `tolerance` below the highest, the one with the fewest bytes wins, then the faster one: what a
    few hundred images cannot tell apart should not be paid for. Points without accuracy are left out. A row: link,
    deadline_ms, best, family, peer, on_edge; each of the latter four is None where nothing is fit, else codec, rate,
    kind, the metric, latency_ms and link_bytes_up_per_image. `best` is among what is sent, and all on the edge (which
    needs no link, but CLIP's whole tower on the device) only where nothing that is sent is fit.

    >>> times = [{"kind": "family", "codec": "conv", "rate": "low", "link": "lte", "loop": "closed",
    ...           "latency_ms": {"p95": 90.0}, "link_bytes_up_per_image": 400.0}]
    >>> [row] = best_codecs(times, [{"codec": "conv", "rate": "low", "top1": 0.7}], deadlines_ms=[100])
    >>> row["best"]["codec"], row["best"]["top1"], row["peer"]
    ('conv', 0.7, None)
    """
    worth = {(row["codec"], row["rate"]): row[metric] for row in accuracy if row.get(metric) is not None}
    points = []
    links: list[str] = []
    for row in latency:
        late = row["latency_ms"].get(percentile)
        if row["loop"] != loop:
            continue
        if row["kind"] != ON_EDGE and row["link"] not in links:
            links.append(row["link"])
        if late is not None and (row["codec"], row["rate"]) in worth:
            points.append(
                {
                    "link": row["link"],
                    "kind": row["kind"],
                    "codec": row["codec"],
                    "rate": row["rate"],
                    metric: worth[row["codec"], row["rate"]],
                    "latency_ms": late,
                    "link_bytes_up_per_image": row["link_bytes_up_per_image"],
                }
            )
    rows = []
    for link in links:
        here = [point for point in points if point["link"] == link or point["kind"] == ON_EDGE]
        for deadline_ms in deadlines_ms:
            fit = [point for point in here if point["latency_ms"] <= deadline_ms]
            kinds = {kind: [point for point in fit if point["kind"] == kind] for kind in ("family", "peer", ON_EDGE)}
            best = _best(kinds["family"] + kinds["peer"] or kinds[ON_EDGE], metric, tolerance)
            found = {kind.replace("-", "_"): _best(own, metric, tolerance) for kind, own in kinds.items()}
            rows.append({"link": link, "deadline_ms": deadline_ms, "best": best, **found})
    return rows


def _best(points: Sequence[dict[str, Any]], metric: str, tolerance: float) -> dict[str, Any] | None:
    if not points:
        return None
    least = max(point[metric] for point in points) - tolerance
    good = [point for point in points if point[metric] >= least]
    found = min(good, key=lambda point: (point["link_bytes_up_per_image"], point["latency_ms"]))
    return {name: value for name, value in found.items() if name != "link"}

"""Which codec on which link: the most accurate point whose answers come within a deadline. Pure functions of rows.

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
) -> list[dict[str, Any]]:
    """One row for each link (in the order of the latency rows) and deadline, with the best point of each kind.

    A point is fit for a deadline when that percentile of its latency is known and within it. Of fit points the one with
    the higher `metric` wins, then the faster one. All on the edge needs no link and so competes on each. Points without
    accuracy are left out. A row: link, deadline_ms, best, family, peer, on_edge; each of the latter four is None where
    nothing is fit, else codec, rate, kind, the metric, latency_ms and link_bytes_up_per_image.

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
            row: dict[str, Any] = {"link": link, "deadline_ms": deadline_ms, "best": _best(fit, metric)}
            for kind in ("family", "peer", ON_EDGE):
                row[kind.replace("-", "_")] = _best([point for point in fit if point["kind"] == kind], metric)
            rows.append(row)
    return rows


def _best(points: Sequence[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    found = max(points, key=lambda point: (point[metric], -point["latency_ms"]), default=None)
    return None if found is None else {name: value for name, value in found.items() if name != "link"}

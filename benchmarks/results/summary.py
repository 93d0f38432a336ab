"""What a decision needs of a rate-accuracy run: bytes at a level, accuracy within a budget, encoding time."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.codecs.grid import FAMILY, PEER
from benchmarks.stats.paired import Crossing, cost_at

LEVELS = (0.90, 0.85)
"""Relative top-1 at which bytes are compared."""

BUDGETS = (300, 1150)
"""Mean bytes within which the best relative top-1 is asked."""


def summarise_run(rows: Sequence[dict]) -> dict[str, object]:
    """The `summary` of a document, from its points.

    Bytes at a level are interpolated in log(bytes) along a codec's Pareto front and never extrapolated; `at_most` marks
    a codec whose cheapest point is above the level already. `ratio` is family ÷ the peer with the fewest bytes, so
    less than 1 is ahead. A peer's front is picked among 42 points by the very images it is judged by, which flatters it
    a little. Whatever cannot be said is null beside a `reason`.
    """
    families = {codec: _of(rows, codec) for codec in _codecs(rows, FAMILY)}
    peers = {codec: _of(rows, codec) for codec in _codecs(rows, PEER)}
    crossings = {level: {name: _bytes_at(points, level) for name, points in peers.items()} for level in LEVELS}
    return {
        "levels": list(LEVELS),
        "budgets": list(BUDGETS),
        "families": {
            name: {
                "bytes_at": {f"{level:.2f}": _against(_bytes_at(points, level), crossings[level]) for level in LEVELS},
                "top1_relative_within": {str(budget): _within(points, peers, budget) for budget in BUDGETS},
                "encode": _encode(points, peers.get("av1")),
            }
            for name, points in families.items()
        },
        "peers": {
            name: {
                "bytes_at": {f"{level:.2f}": _crossing(crossings[level][name]) for level in LEVELS},
                "top1_relative_within": {str(budget): _best(points, budget) for budget in BUDGETS},
            }
            for name, points in peers.items()
        },
    }


def _codecs(rows: Sequence[dict], kind: str) -> list[str]:
    return list(dict.fromkeys(row["codec"] for row in rows if row["kind"] == kind))


def _of(rows: Sequence[dict], codec: str) -> list[dict]:
    """A codec's points that can be compared: some image arrived, and the reference gets something right."""
    return [
        row
        for row in rows
        if row["codec"] == codec and row["bytes_mean"] is not None and row["top1_relative"] is not None
    ]


def _bytes_at(points: Sequence[dict], level: float) -> Crossing:
    return cost_at([p["bytes_mean"] for p in points], [p["top1_relative"] for p in points], level)


def _crossing(found: Crossing) -> dict[str, object]:
    cost = None if found.cost is None else round(found.cost, 1)
    return {"bytes": cost, "at_most": found.at_most, "reason": found.reason}


def _against(own: Crossing, peers: dict[str, Crossing]) -> dict[str, object]:
    reached = {name: found for name, found in peers.items() if found.cost is not None}
    best = min(reached, key=lambda name: reached[name].cost, default=None)
    answer = {**_crossing(own), "best_peer": best, "best_peer_bytes": None, "best_peer_at_most": False, "ratio": None}
    if best is not None:
        answer["best_peer_bytes"] = round(reached[best].cost, 1)
        answer["best_peer_at_most"] = reached[best].at_most
        if own.cost is not None:
            answer["ratio"] = round(own.cost / reached[best].cost, 4)
    elif own.cost is not None:
        answer["reason"] = "no peer reaches this level" if peers else "no peer was measured"
    return answer


def _best(points: Sequence[dict], budget: float) -> dict[str, object]:
    """The measured point with the best accuracy among those within the budget."""
    affordable = [point for point in points if point["bytes_mean"] <= budget]
    if not affordable:
        least = min((point["bytes_mean"] for point in points), default=None)
        reason = "nothing was measured" if least is None else f"its cheapest point takes {least:.0f} bytes"
        return {"top1_relative": None, "reason": reason}
    best = max(affordable, key=lambda point: point["top1_relative"])
    return {key: best[key] for key in ("top1_relative", "top1_relative_ci95", "rate", "bytes_mean")} | {"reason": None}


def _within(points: Sequence[dict], peers: dict[str, list[dict]], budget: float) -> dict[str, object]:
    of_peers = {name: _best(rows, budget) for name, rows in peers.items()}
    able = {name: found for name, found in of_peers.items() if found["top1_relative"] is not None}
    best = max(able, key=lambda name: able[name]["top1_relative"], default=None)
    other = None if best is None else able[best]["top1_relative"]
    return {**_best(points, budget), "best_peer": best, "best_peer_top1_relative": other}


def _encode(points: Sequence[dict], av1: Sequence[dict] | None) -> dict[str, object]:
    """The slowest rate against the fastest AV1 still of the unshrunken view, both from the view to the bytes."""
    times = [point["encode_ms_p50"] for point in points if point["encode_ms_p50"] is not None]
    answer = {"encode_ms_p50": max(times, default=None), "av1_ms_p50": None, "ratio": None, "reason": None}
    if not av1:
        return {**answer, "reason": "av1 was not among the peers"}
    full = max(point["parameters"]["side"] for point in av1)
    of_view = [p["encode_ms_p50"] for p in av1 if p["parameters"]["side"] == full and p["encode_ms_p50"] is not None]
    answer["av1_ms_p50"] = min(of_view, default=None)
    answer["av1_side"] = full
    if times and of_view:
        answer["ratio"] = round(max(times) / min(of_view), 4)
    else:
        answer["reason"] = "nothing was measured"
    return answer

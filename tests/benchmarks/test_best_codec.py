"""Which codec on which link, on rows written by hand."""

from __future__ import annotations

from benchmarks.results.best_codec import best_codecs


def times(kind, codec, rate, link, p95, loop="closed", sent=100.0) -> dict:
    return {
        "kind": kind,
        "codec": codec,
        "rate": rate,
        "link": link,
        "loop": loop,
        "latency_ms": {"p50": 1.0, "p95": p95},
        "link_bytes_up_per_image": sent,
    }


ACCURACY = [
    {"codec": "conv", "rate": "low", "top1": 0.70},
    {"codec": "conv", "rate": "high", "top1": 0.80},
    {"codec": "jpeg", "rate": "224px quality 20", "top1": 0.85},
    {"codec": "tower", "rate": "256b", "top1": 0.84},
    {"codec": "webp", "rate": "unknown accuracy", "top1": None},
]
LATENCY = [
    times("family", "conv", "low", "lte-m", 150.0),
    times("family", "conv", "high", "lte-m", 240.0),
    times("peer", "jpeg", "224px quality 20", "lte-m", 900.0),
    times("peer", "webp", "unknown accuracy", "lte-m", 10.0),
    times("family", "conv", "low", "lte-m", 10.0, loop="open"),
    times("family", "conv", "high", "nb-iot", None),  # too many answers never came
    times("on-edge", "tower", "256b", "none", 300.0),
]


def test_the_most_accurate_in_time_wins():
    rows = {
        (row["link"], row["deadline_ms"]): row for row in best_codecs(LATENCY, ACCURACY, (100, 200, 250, 500, 1000))
    }
    assert list(dict.fromkeys(link for link, _ in rows)) == ["lte-m", "nb-iot"]
    best = {at: row["best"] and (row["best"]["codec"], row["best"]["rate"]) for at, row in rows.items()}
    assert best["lte-m", 100] is None
    assert best["lte-m", 200] == ("conv", "low")
    assert best["lte-m", 250] == ("conv", "high")
    assert best["lte-m", 500] == ("conv", "high")  # the tower on the device knows more, and is no codec
    assert best["lte-m", 1000] == ("jpeg", "224px quality 20")
    assert best["nb-iot", 1000] == ("tower", "256b")  # nothing that is sent arrives
    row = rows["lte-m", 1000]
    assert (row["family"]["top1"], row["peer"]["latency_ms"], row["on_edge"]["codec"]) == (0.80, 900.0, "tower")
    assert rows["nb-iot", 1000]["family"] is None


def test_of_points_as_good_as_each_other_the_one_with_the_fewest_bytes_wins():
    rows = [times("family", "conv", "low", "lte", 80.0, sent=300.0), times("family", "conv", "high", "lte", 60.0)]
    rows.append(times("peer", "jpeg", "224px quality 20", "lte", 50.0, sent=5000.0))
    (row,) = best_codecs(rows, ACCURACY, [100], tolerance=0.05)
    assert row["best"]["rate"] == "high"
    (row,) = best_codecs(rows, ACCURACY, [100], tolerance=0.04)
    assert row["best"]["codec"] == "jpeg"
    assert row["family"]["rate"] == "high"


def test_of_equally_accurate_points_the_faster_wins():
    accuracy = [{"codec": "a", "rate": "1", "top1": 0.5}, {"codec": "b", "rate": "1", "top1": 0.5}]
    latency = [times("family", "a", "1", "lte", 80.0), times("family", "b", "1", "lte", 60.0)]
    (row,) = best_codecs(latency, accuracy, [100])
    assert row["best"]["codec"] == "b"
    (row,) = best_codecs(latency, accuracy, [100], percentile="p50", metric="top1")
    assert row["best"]["latency_ms"] == 1.0

"""Sections of linear probes, retrieval and BLIP: what else than zero-shot labels survives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codecs.grid import FAMILY
from benchmarks.report.charts import Chart, Series
from benchmarks.report.section import Section, chart_section, ends, number
from benchmarks.results.groups import by_codec, bytes_mean, point_groups
from benchmarks.stats.paired import mcnemar_p, paired_difference, relative_top1
from benchmarks.study import blip, linear_probe, retrieval

PROBE_NOTE = (
    "Logistic regression on CLIP's vectors of half the images, tested on the other half. Trained on originals: what a "
    "probe that exists already makes of decoded images. Trained on decoded: what a new one would. Difference: the "
    "second less the first, in points, with a paired bootstrap interval over test images (the training half is drawn "
    "once, so its luck is not in the interval)."
)
RETRIEVAL_NOTE = (
    "Recall at 1, 5 and 10. Decoded images stand in the gallery (text to image) or ask (image to text, image to "
    "image: for the own original among all originals). Text to text involves no image. Intervals of R@1 against the "
    "originals': paired bootstrap over queries; captions of one image are not independent, so text to image is a "
    "little too sure."
)
BLIP_NOTE = (
    "BLIP's image-text matching head chooses among the labels that its contrastive features rank first; on decoded "
    "pictures of families that send pixels. McNemar's exact test is against the uncompressed pictures."
)
CUTS = (1, 5, 10)


def probe_section(out: Path) -> Section | None:
    """None where nothing was measured."""
    charts, tables, findings = [], [], []
    for place, group in enumerate(point_groups(out, linear_probe.NAME)):
        rows, series = [], []
        plain = _probe_right(group.reference, "originals")
        rows.append(["uncompressed", "–", "–", f"{100 * plain.mean():.1f}", "–", "–", "–"])
        for codec, points in by_codec(group).items():
            shares: dict[str, list[float]] = {"originals": [], "decoded": []}
            for point in points:
                old, new = (_probe_right(point, name) for name in ("originals", "decoded"))
                gain, interval = paired_difference(new, old, point["key"]["seed"])
                p = mcnemar_p(old, plain)
                size = bytes_mean(point)
                told = f"{100 * gain:+.1f}" + ends([100 * end for end in interval], "+.1f")
                accuracies = [float(right.mean()) for right in (old, new)]
                for name, share in zip(shares, accuracies):
                    shares[name].append(share)
                percents = [f"{100 * share:.1f}" for share in accuracies]
                rows.append([codec, point["rate"], number(size, ",.0f"), *percents, told, f"{p:.2g}"])
                findings.append(
                    {
                        "group": group.title,
                        "codec": codec,
                        "rate": point["rate"],
                        "bytes": size,
                        "uncompressed": round(float(plain.mean()), 5),
                        **{f"trained_on_{name}": round(share, 5) for name, share in zip(shares, accuracies)},
                        "gain": round(gain, 5),
                        "gain_ci95": [round(end, 5) for end in interval],
                        "mcnemar_p": p,
                    }
                )
            if points[0]["kind"] == FAMILY:
                sizes = [bytes_mean(point) for point in points]
                series.append(Series(f"{codec}, trained on originals", sizes, shares["originals"]))
                series.append(Series(f"{codec}, trained on decoded", sizes, shares["decoded"], dashed=True))
        header = [
            "codec",
            "rate",
            "bytes",
            "trained on originals %",
            "on decoded %",
            "difference, points",
            "p of first",
        ]
        title = f"{group.title} tested, {group.reference['n_train']} trained"
        tables.append((title, header, rows))
        charts.append(
            Chart(f"linear-probe-{place}", f"Linear probe: {title}", "bytes (log scale)", "accuracy", series, True)
        )
    if not tables:
        return None
    return chart_section("linear-probe", "Linear probes", PROBE_NOTE, charts, tables, findings)


def _probe_right(point: Mapping[str, Any], trained_on: str) -> np.ndarray:
    return np.array(point["predictions"][trained_on]) == np.array(point["targets"])


def retrieval_section(out: Path) -> Section | None:
    """None where nothing was measured."""
    charts, tables, findings = [], [], []
    for place, group in enumerate(point_groups(out, retrieval.NAME)):
        rows, series = [], []
        before = group.reference["ranks"]
        for direction, ranks in before.items():
            if ranks is not None:
                told = [f"{100 * share:.1f}" for share in recalls(ranks)]
                rows.append(["originals", "–", direction.replace("_", " "), "–", *told, "–"])
                findings.append({"group": group.title, "codec": "uncompressed", "direction": direction} | _named(ranks))
        for codec, points in by_codec(group).items():
            for direction in retrieval.RANKS:
                own = [point for point in points if point["ranks"][direction] is not None]
                for point in own:
                    ranks = point["ranks"][direction]
                    row = [codec, point["rate"], direction.replace("_", " "), number(bytes_mean(point), ",.0f")]
                    row += [f"{100 * share:.1f}" for share in recalls(ranks)]
                    found = {"group": group.title, "codec": codec, "rate": point["rate"], "direction": direction}
                    found |= {"bytes": bytes_mean(point), **_named(ranks)}
                    if before[direction] is None:
                        row.append("–")
                    else:
                        first = np.array(ranks) <= 1
                        change, interval = paired_difference(
                            first, np.array(before[direction]) <= 1, point["key"]["seed"]
                        )
                        row.append(f"{100 * change:+.1f}" + ends([100 * end for end in interval], "+.1f"))
                        found |= {"r1_change": round(change, 5), "ci95": [round(end, 5) for end in interval]}
                    rows.append(row)
                    findings.append(found)
                if own and own[0]["kind"] == FAMILY and direction != "text_to_text":
                    shares = [recalls(point["ranks"][direction])[0] for point in own]
                    name = f"{codec}, {direction.replace('_', ' ')}"
                    series.append(Series(name, [bytes_mean(point) for point in own], shares))
        header = [
            "codec",
            "rate",
            "direction",
            "bytes",
            *(f"R@{cut} %" for cut in CUTS),
            "R@1 against originals, points",
        ]
        tables.append((group.title, header, rows))
        charts.append(
            Chart(f"retrieval-{place}", f"Recall at 1: {group.title}", "bytes (log scale)", "R@1", series, True)
        )
    if not tables:
        return None
    return chart_section("retrieval", "Retrieval", RETRIEVAL_NOTE, charts, tables, findings, 3)


def recalls(ranks: Sequence[int]) -> list[float]:
    """Shares of queries whose answer is among the first 1, 5 and 10.

    >>> recalls([1, 3, 12, 7])
    [0.25, 0.5, 0.75]
    """
    return [float(np.mean(np.array(ranks) <= cut)) for cut in CUTS]


def _named(ranks: Sequence[int]) -> dict[str, float]:
    return {f"r{cut}": round(share, 5) for cut, share in zip(CUTS, recalls(ranks))}


def blip_section(out: Path) -> Section | None:
    """None where nothing was measured."""
    charts, tables, findings = [], [], []
    for place, group in enumerate(point_groups(out, blip.NAME)):
        plain = _right(group.reference)
        rows = [["uncompressed", "–", "–", f"{100 * plain.mean():.1f}", "–", "–"]]
        series = []
        for codec, points in by_codec(group).items():
            shares = []
            for point in points:
                right = _right(point)
                ratio, interval = relative_top1(right, plain, point["key"]["seed"])
                p = mcnemar_p(right, plain)
                shares.append(float(right.mean()))
                size = bytes_mean(point)
                told = number(ratio, ".3f") + ends(interval, ".3f")
                rows.append([codec, point["rate"], number(size, ",.0f"), f"{100 * shares[-1]:.1f}", told, f"{p:.2g}"])
                findings.append(
                    {
                        "group": group.title,
                        "codec": codec,
                        "rate": point["rate"],
                        "bytes": size,
                        "top1": round(shares[-1], 5),
                        "top1_relative": None if ratio is None else round(ratio, 5),
                        "mcnemar_p": p,
                    }
                )
            dashed = points[0]["kind"] != FAMILY
            series.append(Series(codec, [bytes_mean(point) for point in points], shares, dashed=dashed))
        tables.append((group.title, ["codec", "rate", "bytes", "top-1 %", "relative (95 %)", "McNemar p"], rows))
        charts.append(Chart(f"blip-{place}", f"BLIP: {group.title}", "bytes (log scale)", "top-1", series, True))
    if not tables:
        return None
    return chart_section("blip", "BLIP image-text matching", BLIP_NOTE, charts, tables, findings)


def _right(point: Mapping[str, Any]) -> np.ndarray:
    return np.array([answer == target for answer, target in zip(point["answers"], point["targets"])])

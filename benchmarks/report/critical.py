"""Sections of the critical rate: where each codec's accuracy begins to fall, and whether CLIPs differ in it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from benchmarks.report.charts import Chart, Series
from benchmarks.report.section import Section, chart_section, ends, number
from benchmarks.results.curves import Curve, curves_of, study_groups
from benchmarks.results.rows import Group
from benchmarks.stats.critical_rate import MIN_POINTS, find_knee, knee_ratio
from benchmarks.stats.paired import cost_at

LEVEL = 0.95
NOTE = (
    "The critical rate is the knee of a segmented regression of top-1 on log2(bytes), level above the knee (after "
    "Muggeo 2003), with its bootstrap interval over images; < and > mark an interval that ends where the measured "
    f"rates do. Beside it the bytes at which {100 * LEVEL:.0f} % of the "
    "uncompressed top-1 is reached. Peers along their Pareto fronts. A knee needs four rates."
)
MODELS_NOTE = (
    "Critical rate with one CLIP over that with another, on the same images, with paired bootstrap intervals: an "
    "interval that holds 1 shows no difference."
)


def critical_section(out: Path) -> Section | None:
    """None where nothing was measured."""
    groups = study_groups(out)
    if not groups:
        return None
    series, tables, findings = [], [], []
    for group in groups:
        found = [_knee_of(curve, group) for curve in curves_of(group)]
        findings += found
        known = [each for each in found if each["bytes"] is not None]
        series.append(
            Series(
                group.title,
                [each["codec"] for each in known],
                [each["bytes"] for each in known],
                [each["ci95"][0] for each in known],
                [each["ci95"][1] for each in known],
                line=False,
            )
        )
        header = ["codec", "critical rate, bytes", "plateau", "lost by halving below", f"bytes at {LEVEL:g}"]
        tables.append((group.title, header, [_line(each) for each in found]))
    charts = []
    if any(each.x for each in series):
        title = "Bytes below which top-1 falls"
        charts.append(Chart("critical-rate", title, "", "bytes an image (log scale)", series, log_y=True))
    return chart_section("critical-rate", "Critical rate", NOTE, charts, tables, findings, 1)


def _knee_of(curve: Curve, group: Group) -> dict[str, Any]:
    knee = find_knee(curve.sizes, curve.correct, group.reference["key"]["seed"])
    values = [row["top1_relative"] for row in curve.rows]
    comparable = None not in values
    crossing = cost_at(curve.sizes, values, LEVEL) if comparable else None
    return {
        "group": group.title,
        "data": group.reference["data"]["name"],
        "clip": group.reference["clip"],
        "codec": curve.title,
        "kind": curve.kind,
        "rates": len(curve.rows),
        "bytes": _round(knee.bytes),
        "ci95": None if knee.ci95 is None else [_round(end) for end in knee.ci95],
        "open": [knee.open_low, knee.open_high],
        "plateau_top1": None if knee.plateau is None else round(knee.plateau, 4),
        "top1_lost_by_halving": None if knee.slope is None else round(knee.slope, 4),
        "reason": knee.reason,
        "bytes_at_level": None if crossing is None or crossing.cost is None else _round(crossing.cost),
        "at_most": bool(crossing and crossing.at_most),
    }


def _line(each: dict[str, Any]) -> list[str]:
    if each["bytes"] is None:
        told = f"– ({each['reason']})"
    else:
        marks = ["<" if each["open"][0] else "", ">" if each["open"][1] else ""]
        interval = " to ".join(f"{mark}{end:,.0f}" for mark, end in zip(marks, each["ci95"]))
        told = f"{each['bytes']:,.0f} ({interval})"
    level = number(each["bytes_at_level"], ",.0f")
    return [
        each["codec"],
        told,
        number(each["plateau_top1"], ".3f"),
        number(each["top1_lost_by_halving"], ".3f"),
        "≤ " + level if each["at_most"] else level,
    ]


def models_section(out: Path) -> Section | None:
    """None unless the same images were seen by two CLIPs."""
    rows: list[list[str]] = []
    findings = []
    for first, second in itertools.combinations(study_groups(out), 2):
        if any(
            first.reference["key"][name] != second.reference["key"][name] for name in ("data_sha256", "answers_sha256")
        ):
            continue
        if first.reference["clip"] == second.reference["clip"]:
            continue
        others = {curve.codec: curve for curve in curves_of(second)}
        for curve in curves_of(first):
            other = others.get(curve.codec)
            if other is None or min(len(curve.rows), len(other.rows)) < MIN_POINTS:
                continue
            seed = first.reference["key"]["seed"]
            found = knee_ratio(curve.sizes, curve.correct, other.sizes, other.correct, seed)
            names = [group.reference["clip"].partition("#")[0] for group in (first, second)]
            told = "–" if found is None else f"{found[0]:.2f}{ends(found[1], '.2f')}"
            rows.append([first.reference["data"]["name"], curve.title, *names, told])
            findings.append(
                {
                    "data": first.reference["data"]["name"],
                    "codec": curve.title,
                    "clips": [first.reference["clip"], second.reference["clip"]],
                    "knee_ratio": None if found is None else round(found[0], 4),
                    "ci95": None if found is None else [round(end, 4) for end in found[1]],
                }
            )
    if not rows:
        return None
    table = ("Critical rate of one CLIP over another's", ["data", "codec", "CLIP", "other CLIP", "ratio"], rows)
    return chart_section("models", "Do CLIPs break at the same rate?", MODELS_NOTE, [], [table], findings, 4)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)

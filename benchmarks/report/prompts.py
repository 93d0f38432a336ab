"""The sections on prompt sets (does ensembling repair what compression breaks?) and on calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codecs.grid import FAMILY
from benchmarks.report.charts import Chart, Series
from benchmarks.report.section import Section, chart_section, ends, number
from benchmarks.results.curves import Curve, curves_of, study_groups
from benchmarks.results.rows import Group, correct
from benchmarks.stats.paired import paired_difference
from benchmarks.stats.reliability import calibration_interval, expected_calibration_error, reliability

SINGLE = "1"
PROMPTS_NOTE = (
    "Repair: what an ensemble of templates gains over one template at this point, less what it gains on the "
    "uncompressed images, in points of top-1, with a paired bootstrap interval. Above zero an ensemble mends some of "
    "what compression broke; an interval that holds zero shows nothing."
)
CALIBRATION_NOTE = (
    "Expected calibration error of the first answer's probability (15 bins of equal width; Guo et al. 2017) with its "
    "bootstrap interval, and confidence less accuracy: above zero the answers sound surer than they are. With 100 "
    "images the error of a perfectly calibrated answer is not 0 either: compare with the uncompressed line."
)


def prompts_section(out: Path) -> Section | None:
    """None unless one template and an ensemble were both asked."""
    charts, tables, findings = [], [], []
    for place, group in enumerate(study_groups(out)):
        ensembles = [name for name in group.prompt_sets if name != SINGLE]
        if SINGLE not in group.prompt_sets or not ensembles:
            continue
        plain = {name: correct(group.reference, name) for name in group.prompt_sets}
        rows, series = [], []
        for name in ensembles:
            gain_before = plain[name].astype(float) - plain[SINGLE]
            for curve in curves_of(group):
                repairs = []
                for row, point in zip(curve.rows, curve.points):
                    gain = correct(point, name).astype(float) - correct(point, SINGLE)
                    repair, interval = paired_difference(gain, gain_before, group.reference["key"]["seed"])
                    repairs.append((repair, *interval))
                    accuracies = [float(correct(point, each).mean()) for each in (SINGLE, name)]
                    rows.append(
                        [
                            curve.title,
                            row["rate"],
                            name,
                            f"{row['bytes_mean']:,.0f}",
                            *(f"{100 * each:.1f}" for each in accuracies),
                            f"{100 * repair:+.1f}" + ends([100 * end for end in interval], "+.1f"),
                        ]
                    )
                    findings.append(
                        {
                            "group": group.title,
                            "codec": curve.title,
                            "rate": row["rate"],
                            "templates": name,
                            "bytes": row["bytes_mean"],
                            "top1_single": round(accuracies[0], 5),
                            "top1_ensemble": round(accuracies[1], 5),
                            "repair": round(repair, 5),
                            "ci95": [round(end, 5) for end in interval],
                        }
                    )
                if curve.kind == FAMILY:
                    values = [[100 * each for each in column] for column in zip(*repairs)]
                    series.append(Series(f"{curve.title}, {name} templates", curve.sizes, *values))
        told = ", ".join(f"{100 * right.mean():.1f} with {name}" for name, right in plain.items())
        header = ["codec", "rate", "templates", "bytes", "one template %", "ensemble %", "repair, points"]
        tables.append((f"{group.title} (uncompressed: {told})", header, rows))
        title = f"Repair by ensembles of templates: {group.title}"
        charts.append(Chart(f"prompts-{place}", title, "bytes an image (log scale)", "points of top-1", series, True))
    if not tables:
        return None
    return chart_section("prompts", "Do more prompts repair it?", PROMPTS_NOTE, charts, tables, findings, 3)


def calibration_section(out: Path) -> Section | None:
    """None where nothing was measured."""
    charts, tables, findings = [], [], []
    for place, group in enumerate(study_groups(out)):
        curves = [curve for curve in curves_of(group) if curve.kind == FAMILY]
        peers = [curve for curve in curves_of(group) if curve.kind != FAMILY]
        name = group.prompt_sets[0]
        before = _calibration(group.reference, name)
        rows = [["uncompressed", "–", "–", *_told(before)]]
        series = []
        findings.append({"group": group.title, "codec": "uncompressed", "rate": None, **before})
        for curve in [*curves, *peers]:
            errors = [_calibration(point, name) for point in curve.points]
            for row, each in zip(curve.rows, errors):
                rows.append([curve.title, row["rate"], f"{row['bytes_mean']:,.0f}", *_told(each)])
                findings.append({"group": group.title, "codec": curve.title, "rate": row["rate"], **each})
            series.append(Series(curve.title, curve.sizes, [each["ece"] for each in errors], dashed=curve in peers))
        header = ["codec", "rate", "bytes", "ECE", "confidence", "accuracy", "confidence - accuracy"]
        tables.append((group.title, header, rows))
        title = f"Calibration error against bytes: {group.title}"
        charts.append(Chart(f"calibration-{place}", title, "bytes an image (log scale)", "ECE", series, True))
        charts.append(_diagram(f"reliability-{place}", group, curves, name))
    if not tables:
        return None
    return chart_section("calibration", "Are the probabilities honest?", CALIBRATION_NOTE, charts, tables, findings)


def _answers(point: dict[str, Any], prompt_set: str) -> tuple[np.ndarray, np.ndarray]:
    """(probability of the first answer, whether it is right) of each image that got one."""
    chances = point["answers"][prompt_set]["probability"]
    known = np.array([chance is not None for chance in chances])
    return np.array([chance for chance in chances if chance is not None], float), correct(point, prompt_set)[known]


def _calibration(point: dict[str, Any], prompt_set: str) -> dict[str, Any]:
    chances, right = _answers(point, prompt_set)
    if not len(chances):
        return {"ece": None, "ci95": None, "confidence": None, "accuracy": None}
    interval = calibration_interval(chances, right, point["key"]["seed"])
    return {
        "ece": round(expected_calibration_error(chances, right), 5),
        "ci95": [round(end, 5) for end in interval],
        "confidence": round(float(chances.mean()), 5),
        "accuracy": round(float(right.mean()), 5),
    }


def _told(each: dict[str, Any]) -> list[str]:
    gap = None if each["ece"] is None else each["confidence"] - each["accuracy"]
    shares = [number(each[name], ".3f") for name in ("confidence", "accuracy")]
    return [number(each["ece"], ".3f") + ends(each["ci95"], ".3f"), *shares, number(gap, "+.3f")]


def _diagram(name: str, group: Group, curves: Sequence[Curve], prompt_set: str) -> Chart:
    """Reliability of the uncompressed answers and of each family's ends, 5 wide bars so that few images fill them."""
    shown = [("uncompressed", group.reference)]
    for curve in curves:
        shown += [(f"{curve.title} {curve.rows[place]['rate']}", curve.points[place]) for place in (0, -1)]
    series = [Series("honest", [0.0, 1.0], [0.0, 1.0], dashed=True)]
    for told, point in shown:
        bars = [bar for bar in reliability(*_answers(point, prompt_set), bins=5) if bar.count]
        series.append(Series(told, [bar.confidence for bar in bars], [bar.accuracy for bar in bars]))
    return Chart(name, f"Reliability: {group.title}", "probability of the answer", "share that is right", series)

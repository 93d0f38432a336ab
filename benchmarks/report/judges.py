"""The section "Whom does a codec serve?": every codec before the serving CLIP, its own judges and foreign ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codecs.grid import FAMILY, PEER
from benchmarks.report.charts import Chart, Series
from benchmarks.report.section import Section, chart_section, ends, number
from benchmarks.results.curves import study_groups
from benchmarks.results.rows import Group
from benchmarks.results.transfer import (
    PREDICTORS,
    SERVING,
    TOP1,
    Served,
    foreign_mean,
    hull_of_peers,
    judge_names,
    predictors,
    served,
    summary,
)
from benchmarks.stats.paired import pareto_front

NOTE = (
    "A judge is a network beside the CLIP that serves. It answers by its own classes; its curve is the share of images "
    "for which it holds to what it said of the uncompressed view. Own: the codec's card names it, or what it was built "
    "on, as a teacher; foreign: the codec never met it. For the serving CLIP the curve is top-1. Bytes saved are "
    "against the hull of all image codecs together, whose rungs were chosen on training photographs; negative: the "
    "family needs more. Intervals: 95 % paired bootstrap over images. Codecs that send vectors show no picture, so "
    "only the serving CLIP can judge them."
)
RESAMPLES = 1000


def judges_section(out: Path) -> Section | None:
    """None where no point was shown to a judge."""
    charts: list[Chart] = []
    tables, findings = [], []
    for place, group in enumerate(each for each in study_groups(out) if judge_names(each)):
        curves = {name: served(group, name) for name in (SERVING, *judge_names(group))}
        for name, of in curves.items():
            stem = f"judges-{place + 1}-{''.join(letter if letter.isalnum() else '-' for letter in name)}"
            what = "top-1" if name == SERVING else "agreement with its own answer to the uncompressed view"
            title = f"{group.title}: {name}"
            charts.append(Chart(stem, title, "bytes an image (log scale)", what, _series(of), log_x=True))
        found = summary(group)
        header = ["judge", "codec", "role", "bytes saved against the best bare peer", "between"]
        tables.append((f"{group.title}: bytes saved at equal answers", header, [_line(each) for each in found]))
        header = ["codec", "judge", "role", "critical rate, bytes"]
        tables.append((f"{group.title}: critical rates", header, _knees(group, curves)))
        told = predictors(group)
        names = {**PREDICTORS, TOP1: "top-1 of the serving CLIP"}
        header = ["figure", "rho with foreign judges' mean agreement", "points"]
        lines = [
            [names[name], number(each.rho, ".3f") + ends(each.ci95, ".3f"), str(each.points)]
            for name, each in told.items()
        ]
        tables.append((f"{group.title}: what predicts a stranger's answer", header, lines))
        findings.append(
            {
                "group": group.title,
                "savings": found,
                "predictors": {name: {"rho": each.rho, "ci95": each.ci95} for name, each in told.items()},
            }
        )
    if not tables:
        return None
    return chart_section("judges", "Whom does a codec serve?", NOTE, charts, tables, findings, 3)


def _series(curves: Sequence[Served]) -> list[Series]:
    """Families with all rates, and the peers' common hull."""
    shown = [each for each in curves if each.kind == FAMILY]
    hull = hull_of_peers(curves)
    series = []
    for each in [*shown, *([hull] if hull else [])]:
        order = np.argsort(each.mean_sizes)
        if each.kind == PEER:
            order = pareto_front(each.mean_sizes, each.shares)
        same = each.same[order].astype(float)
        count = same.shape[1]
        draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
        low, high = np.percentile(draws @ same.T / count, [2.5, 97.5], axis=0)
        name = each.title if each.role is None else f"{each.title} ({each.role})"
        sizes = [each.mean_sizes[place] for place in order]
        series.append(Series(name, sizes, same.mean(1).tolist(), low.tolist(), high.tolist(), dashed=each.kind == PEER))
    return series


def _line(each: dict[str, Any]) -> list[str]:
    told = f"– ({each['reason']})"
    if each["saving"] is not None:
        told = f"{each['saving']:.0%}{ends(each['ci95'], '.0%')}"
    between = "–" if each["between"] is None else f"{each['between'][0]:.2f} to {each['between'][1]:.2f}"
    return [each["judge"], each["codec"], each["role"] or "–", told, between]


def _knees(group: Group, curves: dict[str, list[Served]]) -> list[list[str]]:
    """Critical rates of families, and of the best peers, before the serving CLIP and before all foreign judges."""
    rows = []
    for of in (curves[SERVING], foreign_mean(group)):
        for each in of:
            knee = each.knee(group.reference["key"]["seed"])
            told = f"– ({knee.reason})" if knee.bytes is None else f"{knee.bytes:,.0f}{ends(knee.ci95, ',.0f')}"
            rows.append([each.title, each.judge, each.role or "–", told])
    return rows

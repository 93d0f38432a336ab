"""The section that compares families at equal bytes, pair by pair on the same images."""

from __future__ import annotations

from pathlib import Path

from benchmarks.codecs.grid import FAMILY
from benchmarks.report.charts import Chart, Series
from benchmarks.report.section import Section, chart_section
from benchmarks.results.curves import curves_of, study_groups
from benchmarks.stats.comparison import Rate, duels

BUDGETS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NOTE = (
    "Within each budget of mean bytes every codec at its dearest affordable rate; families in pairs by McNemar's "
    "exact test on the same images, corrected after Holm (1979) over all pairs and budgets of a data set and CLIP. "
    "The embedding needs CLIP's own image tower on the device. Peers (best size and quality, picked on these images) "
    "are drawn and not tested here; their intervals and savings are above."
)


def architecture_section(out: Path) -> Section | None:
    """None where fewer than two families were measured anywhere."""
    charts, tables, findings = [], [], []
    for place, group in enumerate(study_groups(out)):
        curves = curves_of(group)
        families = {
            curve.title: [Rate(row["rate"], row["bytes_mean"], right) for row, right in zip(curve.rows, curve.correct)]
            for curve in curves
            if curve.kind == FAMILY
        }
        found = duels(families, BUDGETS)
        if not found:
            continue
        rows = [
            [
                f"{duel.budget:,.0f}",
                *(
                    f"{name} {rate} ({size:,.0f} B)"
                    for name, rate, size in zip((duel.first, duel.second), duel.rates, duel.bytes_mean)
                ),
                *(f"{100 * share:.1f}" for share in duel.top1),
                f"{duel.p:.2g}",
                f"{duel.p_holm:.2g}" + (" *" if duel.p_holm < 0.05 else ""),
            ]
            for duel in found
        ]
        header = ["budget B", "first", "second", "top-1 %", "top-1 % of second", "p", "p after Holm"]
        tables.append((group.title, header, rows))
        findings += [{"group": group.title, **vars(duel)} for duel in found]
        series = []
        for curve in curves:
            within = [[row for row in curve.rows if row["bytes_mean"] <= budget] for budget in BUDGETS]
            values = [max(rows, key=lambda row: row["bytes_mean"])["top1"] if rows else None for rows in within]
            series.append(Series(curve.title, BUDGETS, values, dashed=curve.kind != FAMILY))
        title = f"Top-1 within a budget: {group.title}"
        charts.append(Chart(f"architecture-{place}", title, "mean bytes allowed (log scale)", "top-1", series, True))
    if not tables:
        return None
    return chart_section("architecture", "Architectures at equal bytes", NOTE, charts, tables, findings, 3)

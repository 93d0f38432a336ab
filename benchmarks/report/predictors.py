"""The section on what predicts accuracy: rank correlations over points, and over images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report.charts import Chart, Series
from benchmarks.report.section import Section, chart_section, ends, number
from benchmarks.results.curves import Curve, curves_of, study_groups
from benchmarks.results.rows import Group, correct
from benchmarks.stats.comparison import Correlation, auc, correlate

METRICS = {
    "psnr_db": "PSNR",
    "ms_ssim": "MS-SSIM",
    "perceptual": "LPIPS-like (negative)",
    "patch_cosine": "CLIP cosine, patches",
    "pooled_cosine": "CLIP cosine, pooled",
    "margin": "zero-shot margin",
}
NOTE = (
    "Spearman's rank correlation of a point's mean figure with its top-1, over all points of families and peers "
    "together (one line of best fit for all codecs would need it), and the mean over codecs of the same within each. "
    "Intervals: bootstrap over images. Last columns: of the images that were right uncompressed, how well the figure "
    "of one image tells whether it still is (area under the ROC curve, mean over points; 0.5: not at all). The margin "
    "decides an answer, so its own 1.0 there is true by definition; 'margin before' is the uncompressed image's. "
    "Families that send no pixels have no PSNR, MS-SSIM or LPIPS-like distance."
)
FEWEST = 3  # points of a codec, and images on each side of an area under the curve


def predictors_section(out: Path) -> Section | None:
    """None where nothing was measured."""
    series, tables, findings = [], [], []
    for group in study_groups(out):
        curves = curves_of(group, hull=False)
        if sum(len(curve.points) for curve in curves) < FEWEST:
            continue
        found = [_of_metric(metric, group, curves) for metric in METRICS]
        before = _auc_before(group, curves)
        known = [each for each in found if each["across"] is not None]
        series.append(
            Series(
                group.title,
                [METRICS[each["metric"]] for each in known],
                [each["across"] for each in known],
                [each["across_ci95"][0] for each in known],
                [each["across_ci95"][1] for each in known],
                line=False,
            )
        )
        rows = [
            [
                METRICS[each["metric"]],
                number(each["across"], ".3f") + ends(each["across_ci95"], ".3f"),
                each["points"],
                number(each["within"], ".3f"),
                number(each["auc"], ".3f"),
            ]
            for each in found
        ]
        rows.append(["margin before", "–", "–", "–", number(before, ".3f")])
        header = ["figure", "rho across codecs", "points", "rho within a codec", "AUC of an image"]
        tables.append((group.title, header, rows))
        findings += [{"group": group.title, **each} for each in found]
        findings.append({"group": group.title, "metric": "margin_before", "auc": before})
    if not tables:
        return None
    title = "How well a figure ranks all operating points by their top-1"
    chart = Chart("predictors", title, "", "Spearman's rho across codecs", series)
    return chart_section("predictors", "What predicts accuracy?", NOTE, [chart], tables, findings, 1)


def _values(point: dict[str, Any], metric: str, prompt_set: str) -> np.ndarray:
    """One figure of each image, float (N,), larger for better; NaN where there is none."""
    if metric == "margin":
        answers = point["answers"][prompt_set]
        pairs = zip(answers["true_similarity"], answers["other_similarity"])
        return np.array([np.nan if a is None or b is None else a - b for a, b in pairs])
    values = np.array([np.nan if value is None else value for value in point["images"][metric]], float)
    return -values if metric == "perceptual" else values


def _of_metric(metric: str, group: Group, curves: Sequence[Curve]) -> dict[str, Any]:
    name, seed = group.prompt_sets[0], group.reference["key"]["seed"]

    def over(points: Sequence[dict[str, Any]]) -> Correlation:
        values = np.array([_values(point, metric, name) for point in points])
        return correlate(values, np.array([correct(point, name) for point in points]), seed)

    across = over([point for curve in curves for point in curve.points])
    each = [over(curve.points).rho for curve in curves if len(curve.points) >= FEWEST]
    within = [rho for rho in each if rho is not None]
    return {
        "metric": metric,
        "across": _round(across.rho),
        "across_ci95": None if across.ci95 is None else [_round(end) for end in across.ci95],
        "points": across.points,
        "within": _round(float(np.mean(within))) if within else None,
        "within_codecs": len(within),
        "auc": _mean_auc(group, curves, lambda point: _values(point, metric, name)),
    }


def _auc_before(group: Group, curves: Sequence[Curve]) -> float | None:
    before = _values(group.reference, "margin", group.prompt_sets[0])
    return _mean_auc(group, curves, lambda point: before)


def _mean_auc(group: Group, curves: Sequence[Curve], values) -> float | None:
    name = group.prompt_sets[0]
    was_right = correct(group.reference, name)
    found = []
    for curve in curves:
        for point in curve.points:
            still = correct(point, name)[was_right]
            if min(still.sum(), (~still).sum()) >= FEWEST:
                found.append(auc(values(point)[was_right], still))
    known = [each for each in found if each is not None]
    return _round(float(np.mean(known))) if known else None


def _round(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)

"""The section of cloud-side tricks, and of decoders that differ while encoder and tables do not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codecs.grid import FAMILY, codec_title
from benchmarks.report.charts import Chart, Series
from benchmarks.report.section import Section, chart_section, ends, number
from benchmarks.results.curves import study_groups
from benchmarks.results.groups import bytes_mean, point_groups
from benchmarks.results.rows import correct
from benchmarks.stats.paired import holm, mcnemar_p, paired_difference
from benchmarks.study import tricks

NOTE = (
    "Each trick on the very pictures that CLIP would see without it; change of top-1 in points with a paired "
    "bootstrap interval, and McNemar's exact p after Holm over all tricks of a data set. Kernels are for files "
    "smaller than the view alone (the server enlarges them bicubically). Cosine: of CLIP's vector with the "
    "uncompressed image's, mean."
)
DECODERS_NOTE = (
    "Two bundles with one model id have the same encoder and tables, so the same bytes; they differ in "
    "decoder.safetensors alone, for instance before and after the stage that tunes it on CLIP's cosine. Change: "
    "second less first, in points."
)


def tricks_section(out: Path) -> Section | None:
    """None where nothing was measured."""
    charts, tables, findings = [], [], []
    for place, group in enumerate(point_groups(out, tricks.NAME)):
        found = [
            _trick(point, trick)
            for point in (group.reference, *group.points)
            for trick in point["answers"]
            if trick != tricks.PLAIN
        ]
        for each, p in zip(found, holm([each["mcnemar_p"] for each in found])):
            each |= {"group": group.title, "p_holm": p}
        findings += found
        rows = [
            [
                each["codec"],
                each["rate"] or "–",
                each["trick"],
                number(each["bytes"], ",.0f"),
                f"{100 * each['top1_plain']:.1f}",
                f"{100 * each['change']:+.1f}" + ends([100 * end for end in each["ci95"]], "+.1f"),
                f"{each['p_holm']:.2g}" + (" *" if each["p_holm"] < 0.05 else ""),
                number(each["cosine_change"], "+.4f"),
            ]
            for each in found
        ]
        header = [
            "codec",
            "rate",
            "trick",
            "bytes",
            "top-1 % without",
            "change, points",
            "p after Holm",
            "cosine change",
        ]
        tables.append((group.title, header, rows))
        series = []
        for trick in dict.fromkeys(each["trick"] for each in found):
            own = [each for each in found if each["trick"] == trick]
            names = [f"{each['codec']} {each['rate'] or ''}".strip() for each in own]
            columns = [[100 * each["change"] for each in own]]
            columns += [[100 * each["ci95"][end] for each in own] for end in (0, 1)]
            series.append(Series(trick, names, *columns, line=False))
        title = f"What a trick changes: {group.title}"
        charts.append(Chart(f"tricks-{place}", title, "", "points of top-1", series))
    if not tables:
        return None
    return chart_section("tricks", "Tricks in the cloud", NOTE, charts, tables, findings, 3)


def _trick(point: Mapping[str, Any], trick: str) -> dict[str, Any]:
    plain = np.array([a == t for a, t in zip(point["answers"][tricks.PLAIN], point["targets"])])
    tried = np.array([a == t for a, t in zip(point["answers"][trick], point["targets"])])
    mean, interval = paired_difference(tried, plain, point["key"]["seed"])
    pairs = zip(point["pooled_cosine"][trick], point["pooled_cosine"][tricks.PLAIN])
    cosines = [a - b for a, b in pairs if a is not None and b is not None]
    return {
        "codec": codec_title(point["codec"]),
        "rate": point["rate"],
        "trick": trick,
        "bytes": bytes_mean(point),
        "top1_plain": round(float(plain.mean()), 5),
        "change": round(mean, 5),
        "ci95": [round(end, 5) for end in interval],
        "mcnemar_p": mcnemar_p(tried, plain),
        "cosine_change": round(float(np.mean(cosines)), 6) if cosines else None,
    }


def decoders_section(out: Path) -> Section | None:
    """None unless two families share a model id."""
    tables, findings = [], []
    for group in study_groups(out):
        name = group.prompt_sets[0]
        rows = []
        families = [point for point in group.points if point["kind"] == FAMILY]
        for first, second in itertools.combinations(families, 2):
            if _sent_by(first) != _sent_by(second) or first["parameters"] == second["parameters"]:
                continue
            after, before = correct(second, name), correct(first, name)
            change, interval = paired_difference(after, before, first["key"]["seed"])
            p = mcnemar_p(after, before)
            told = f"{100 * change:+.1f}" + ends([100 * end for end in interval], "+.1f")
            psnr = [_mean(point["images"]["psnr_db"]) for point in (first, second)]
            dB = ["–" if value is None else f"{value:.1f}" for value in psnr]
            rows.append([first["codec"], second["codec"], first["rate"], told, f"{p:.2g}", *dB])
            findings.append(
                {
                    "group": group.title,
                    "first": first["codec"],
                    "second": second["codec"],
                    "rate": first["rate"],
                    "change": round(change, 5),
                    "ci95": [round(end, 5) for end in interval],
                    "mcnemar_p": p,
                    "psnr_db": [None if value is None else round(value, 3) for value in psnr],
                }
            )
        header = ["first", "second", "rate", "change, points", "McNemar p", "PSNR dB of first", "of second"]
        tables.append((group.title, header, rows))
    if not findings:
        return None
    return chart_section("decoders", "One encoder, two decoders", DECODERS_NOTE, [], tables, findings, 3)


def _sent_by(point: Mapping[str, Any]) -> tuple:
    """All that a family's bytes depend on."""
    parameters = point["parameters"]
    encoders = {name: value for name, value in parameters["files"].items() if name != "decoder.safetensors"}
    return parameters["model_id"], parameters["layers"], parameters["encoder"], encoders


def _mean(values: list[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return float(np.mean(kept)) if kept else None

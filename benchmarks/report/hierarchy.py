"""The section on what breaks first: coarse against fine answers, fragile classes, new confusions."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.codecs.grid import FAMILY, PEER
from benchmarks.report.charts import Chart, Series
from benchmarks.report.section import Section, chart_section, number
from benchmarks.results.curves import Curve, curves_of, first_answers, study_groups
from benchmarks.results.hierarchy import LISTED, Survival, find_hierarchy, losses_by_class, new_confusions, survival
from benchmarks.results.rows import Group

NOTE = (
    "Of the images that were right uncompressed and are wrong now: how many answers still name the coarse class of "
    "the truth (hierarchies by hand, in benchmarks/results/hierarchies, after WordNet's upper nouns), beside what the "
    "same number of wrong answers would if drawn from the other labels. Then the classes that lose most, over all "
    "points of families or of peers, and the confusions that compression created. Counts of few images: no intervals "
    "are claimed."
)
FEWEST = 5  # images of a class, summed over points, before its loss is listed


def hierarchy_section(out: Path) -> Section | None:
    """None where nothing was measured. Data sets without a hierarchy get classes and confusions alone."""
    charts, tables, findings = [], [], []
    for place, group in enumerate(study_groups(out)):
        curves = curves_of(group)
        labels = group.reference["data"]["labels"]
        if not curves:
            continue
        coarse_of = find_hierarchy(labels, out)
        if coarse_of is not None:
            found = [(curve, _survivals(curve, group, coarse_of)) for curve in curves]
            tables.append((f"Coarse and fine: {group.title}", *_survival_table(found)))
            charts.append(_chart(f"hierarchy-{place}", group.title, found))
            findings += [
                {"group": group.title, "codec": curve.title, "rate": row["rate"], "bytes": row["bytes_mean"], **vars(s)}
                for curve, survivals in found
                for row, s in zip(curve.rows, survivals)
            ]
        for kind, name in ((FAMILY, "families"), (PEER, "peers")):
            own = [curve for curve in curves if curve.kind == kind]
            tables.append((f"Classes that lose most, {name}: {group.title}", *_classes(own, group, labels)))
            tables.append((f"New confusions, {name}: {group.title}", *_confusions(own, group, labels)))
    if not tables:
        return None
    return chart_section("hierarchy", "What breaks first?", NOTE, charts, tables, findings)


def _survivals(curve: Curve, group: Group, coarse_of: Mapping[str, str]) -> list[Survival]:
    labels = group.reference["data"]["labels"]
    names = sorted(set(coarse_of.values()))
    coarse = [names.index(coarse_of[label]) for label in labels]
    before = first_answers(group.reference, curve.prompt_set)
    return [
        survival(first_answers(point, curve.prompt_set), before, group.reference["targets"], coarse)
        for point in curve.points
    ]


def _survival_table(found: Sequence[tuple[Curve, Sequence[Survival]]]) -> tuple[list[str], list[list[str]]]:
    header = ["codec", "rate", "bytes", "top-1 %", "coarse top-1 %", "lost", "coarse kept", "share", "by chance"]
    rows = [
        [
            curve.title,
            row["rate"],
            f"{row['bytes_mean']:,.0f}",
            f"{100 * each.fine_top1:.1f}",
            f"{100 * each.coarse_top1:.1f}",
            str(each.lost),
            str(each.kept),
            number(each.share, ".2f"),
            number(each.chance, ".2f"),
        ]
        for curve, survivals in found
        for row, each in zip(curve.rows, survivals)
    ]
    return header, rows


def _chart(name: str, title: str, found: Sequence[tuple[Curve, Sequence[Survival]]]) -> Chart:
    series = []
    for curve, survivals in found:
        if curve.kind == FAMILY:
            series.append(Series(f"{curve.title}, coarse", curve.sizes, [each.coarse_top1 for each in survivals]))
            fine = [each.fine_top1 for each in survivals]
            series.append(Series(f"{curve.title}, fine", curve.sizes, fine, dashed=True))
    return Chart(name, f"Coarse and fine top-1: {title}", "bytes an image (log scale)", "top-1", series, True)


def _classes(curves: Sequence[Curve], group: Group, labels: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    sums: dict[int, list[int]] = {}
    for curve in curves:
        before = first_answers(group.reference, curve.prompt_set)
        for point in curve.points:
            losses = losses_by_class(first_answers(point, curve.prompt_set), before, group.reference["targets"])
            for label, (had, lost) in losses.items():
                total = sums.setdefault(label, [0, 0])
                total[0] += had
                total[1] += lost
    known = [(lost / had, label, had, lost) for label, (had, lost) in sums.items() if had >= FEWEST]
    rows = [
        [labels[label], str(had), str(lost), f"{share:.2f}"]
        for share, label, had, lost in sorted(known, key=lambda each: (-each[0], each[1]))[:LISTED]
    ]
    return ["class", "right before", "lost", "share"], rows


def _confusions(curves: Sequence[Curve], group: Group, labels: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    counts: collections.Counter[tuple[int, int]] = collections.Counter()
    for curve in curves:
        before = first_answers(group.reference, curve.prompt_set)
        for point in curve.points:
            counts += new_confusions(first_answers(point, curve.prompt_set), before, group.reference["targets"])
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:LISTED]
    return ["truth", "answer", "times"], [[labels[a], labels[b], str(count)] for (a, b), count in ordered]

"""The rate-accuracy sections: the plot with its filters, the bytes saved against each peer, every operating point."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.rate_accuracy import NAME
from benchmarks.codecs.grid import FAMILY, PEER, REFERENCE, codec_title
from benchmarks.report.plot import FAMILY_COLOURS, PEER_COLOURS, plot
from benchmarks.report.section import Section, html_table, markdown_table, number
from benchmarks.results.curves import study_groups
from benchmarks.results.rows import Group, rows_of
from benchmarks.results.saving import Saving, saving_of

COLUMNS = (
    "kind",
    "codec",
    "rate",
    "bytes_mean",
    "message_bytes_mean",
    "wire_bytes_mean",
    "bits_per_pixel",
    "top1",
    "top5",
    "top1_relative",
    "top1_relative_ci95",
    "mcnemar_p",
    "mean_per_class_recall",
    "margin",
    "pooled_cosine",
    "patch_cosine",
    "psnr_db",
    "ms_ssim",
    "perceptual",
    "encode_ms_p50",
    "hull",
)
"""What the page is given of each row; results.csv has everything."""

PLOT_NOTE = (
    "Each point is one setting of a codec. A peer's line runs through its best combinations of size and quality (the "
    "Pareto front; picked on the same images, which flatters peers a little). Bars: 95 % paired bootstrap intervals, "
    "a peer's where you point at it. An embedding needs CLIP's whole image tower on the device; the others do not."
)
SAVING_NOTE = (
    "Bytes that a family does without at equal top-1, averaged over the accuracies that both reach (Bjøntegaard's "
    "delta rate on Pareto fronts, prompt set {prompt_set}); negative: it needs more. In brackets the 95 % paired "
    "bootstrap interval."
)


def rate_accuracy_section(out: Path) -> Section | None:
    """The interactive plot and the table of every point; None where nothing was measured."""
    groups = study_groups(out)
    if not groups:
        return None
    rows = {group.title: rows_of(group) for group in groups}
    families = sorted({row["codec"] for of in rows.values() for row in of if row["kind"] == FAMILY})
    peers = sorted({row["codec"] for of in rows.values() for row in of if row["kind"] == PEER})
    colours = {codec: FAMILY_COLOURS[place % len(FAMILY_COLOURS)] for place, codec in enumerate(families)}
    colours |= {codec: PEER_COLOURS.get(codec.partition("@")[0], "#666666") for codec in peers}
    data = {
        "columns": list(COLUMNS),
        "titles": {codec: codec_title(codec) for codec in [*families, *peers]},
        "colours": colours,
        "groups": [
            {
                "title": group.title,
                "prompt_sets": group.prompt_sets,  # JavaScript sorts keys that look like numbers
                "sets": {
                    name: [
                        [row[column] for column in COLUMNS] for row in rows[group.title] if row["prompt_set"] == name
                    ]
                    for name in group.prompt_sets
                },
            }
            for group in groups
        ],
    }
    markdown = [PLOT_NOTE]
    figures = {}
    for group in groups:
        main = [row for row in rows[group.title] if row["prompt_set"] == group.prompt_sets[0]]
        stem = "rate-accuracy-" + re.sub(r"[^a-z0-9]+", "-", group.title.lower()).strip("-")
        figures[stem] = lambda path, main=main, title=group.title: plot(main, path, title)
        markdown += [
            f"### {group.title}",
            f"![relative top-1 against bytes](figures/{stem}.png)",
            _prompts_line(group, rows[group.title]),
            _points_table([row for row in main if row["kind"] != PEER or row["hull"]]),
        ]
    html = f"<div id=filters></div><div id=curve class=plot></div><p class=note>{PLOT_NOTE}</p>"
    flat = [{"group": group.title, **row} for group in groups for row in rows[group.title]]
    return Section(NAME, "Accuracy against bytes", html, "\n\n".join(markdown), data, "rate_accuracy.js", flat, figures)


def points_section(out: Path) -> Section | None:
    """A place for the table that the plot's filters fill."""
    if not study_groups(out):
        return None
    note = "<p class=note>Follows the choices above the plot; click a column's head to sort by it.</p>"
    return Section("points", "Every operating point", note + "<div id=points-table></div>", "See results.csv.")


def savings_section(out: Path) -> Section | None:
    """Each family against each peer, by data set and CLIP; None where there is nothing to compare."""
    parts, markdown = [], []
    prompt_set = "7"
    for group in study_groups(out):
        prompt_set = group.prompt_sets[0]
        table = savings_table(group, prompt_set)
        if len(table) > 1:
            header, *lines = table
            parts.append(f"<h3>{group.title}</h3>" + html_table(header, lines))
            markdown.append(f"### {group.title}\n\n{markdown_table(header, lines)}")
    if not parts:
        return None
    note = SAVING_NOTE.format(prompt_set=prompt_set)
    html = f"<p class=note>{note}</p>" + "".join(parts)
    return Section("savings", "Bytes saved at equal accuracy", html, "\n\n".join([note, *markdown]))


def savings_table(group: Group, prompt_set: str) -> list[list[str]]:
    """Header and one line for each family, one column for each peer; only a header where there are no peers."""
    codecs: dict[str, list[dict[str, Any]]] = {}
    kinds: dict[str, str] = {}
    for row, point in zip(rows_of(group, prompt_set), group.points):
        codecs.setdefault(row["codec"], []).append(point)
        kinds[row["codec"]] = row["kind"]
    peers = [codec for codec, kind in kinds.items() if kind == PEER]
    lines = [["against", *map(codec_title, peers)]]
    if peers:
        for family in (codec for codec, kind in kinds.items() if kind == FAMILY):
            cells = [
                saving_of(codecs[family], codecs[peer], prompt_set, group.reference["key"]["seed"]) for peer in peers
            ]
            lines.append([family, *map(_saving_words, cells)])
    return lines


def _saving_words(found: Saving) -> str:
    if found.saving is None:
        return found.reason
    interval = "" if found.ci95 is None else f" ({100 * found.ci95[0]:.0f} to {100 * found.ci95[1]:.0f})"
    return f"{100 * found.saving:.0f} %{interval}"


def _prompts_line(group: Group, rows: Sequence[dict[str, Any]]) -> str:
    plain = {row["prompt_set"]: row["top1"] for row in rows if row["kind"] == REFERENCE}
    told = ", ".join(f"{100 * plain[name]:.1f} with prompt set {name}" for name in group.prompt_sets)
    return f"Uncompressed top-1 in percent: {told}. Below: prompt set {group.prompt_sets[0]}."


def _points_table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["codec", "rate", "bytes", "message", "wire", "top-1 %", "top-5 %", "relative (95 %)", "McNemar p"]
    header += ["margin", "pooled cos", "patch cos", "PSNR dB", "MS-SSIM", "encode ms"]
    lines = []
    for row in rows:
        interval = row["top1_relative_ci95"]
        relative = "–" if interval is None else f"{row['top1_relative']:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
        lines.append(
            [
                codec_title(row["codec"]),
                row["rate"] or "–",
                *(number(row[key], ",.0f") for key in ("bytes_mean", "message_bytes_mean", "wire_bytes_mean")),
                *(number(None if row[key] is None else 100 * row[key], ".1f") for key in ("top1", "top5")),
                relative,
                number(row["mcnemar_p"], ".2g"),
                *(number(row[key], ".3f") for key in ("margin", "pooled_cosine", "patch_cosine")),
                number(row["psnr_db"], ".1f"),
                number(row["ms_ssim"], ".3f"),
                number(row["encode_ms_p50"], ".1f"),
            ]
        )
    return markdown_table(header, lines)

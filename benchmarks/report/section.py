"""What an experiment adds to the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.report.charts import SCRIPT, Chart, figures, page_data


@dataclass(frozen=True)
class Section:
    """One part of the report, made from points alone.

    html: its body, between the title and the next section. data: what its script reads as REPORT[name]; script: a file
    in benchmarks/report/assets. rows: flat lines of results.csv. figures: file stem → what draws it into a given path.
    findings: its figures by name, for findings.json, from which docs/study.md is written.
    """

    name: str
    title: str
    html: str
    markdown: str
    data: object = None
    script: str | None = None
    rows: Sequence[Mapping[str, Any]] = ()
    figures: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    findings: object = None


def html_table(header: Sequence[str], rows: Sequence[Sequence[object]], text_columns: int = 1) -> str:
    """A table whose columns after the first `text_columns` are numbers."""
    classes = ["" if place < text_columns else " class=n" for place in range(len(header))]
    head = "".join(f"<th{kind}>{escape(name)}" for kind, name in zip(classes, header))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(str(cell))}" for kind, cell in zip(classes, row)) for row in rows
    )
    return f"<div class=wide><table><thead><tr>{head}</thead><tbody>{body}</tbody></table></div>"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def ends(interval: Sequence[float] | None, form: str) -> str:
    """An interval in brackets, or nothing."""
    return "" if interval is None else f" ({format(interval[0], form)} to {format(interval[1], form)})"


def chart_section(
    name: str,
    title: str,
    note: str,
    charts: Sequence[Chart],
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]],
    findings: object = None,
    text_columns: int = 2,
) -> Section:
    """The usual section: a note, charts, then (title, header, rows) tables."""
    parts, markdown = [f"<p class=note>{escape(note)}</p>"], [note]
    for chart in charts:
        parts.append(chart.html())
        markdown.append(chart.markdown())
    for told, header, rows in tables:
        if rows:
            parts.append(f"<h3>{escape(told)}</h3>" + html_table(header, rows, text_columns))
            markdown.append(f"### {told}\n\n{markdown_table(header, rows)}")
    data, script = (page_data(charts), SCRIPT) if charts else (None, None)
    return Section(
        name, title, "".join(parts), "\n\n".join(markdown), data, script, figures=figures(charts), findings=findings
    )

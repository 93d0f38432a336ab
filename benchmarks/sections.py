"""What an experiment adds to the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Section:
    """One part of the report, made from points alone.

    html: its body, between the title and the next section. data: what its script reads as REPORT[name]; script: a file
    in benchmarks/page. rows: flat lines of results.csv. figures: file stem → what draws it into a given path.
    """

    name: str
    title: str
    html: str
    markdown: str
    data: object = None
    script: str | None = None
    rows: Sequence[Mapping[str, Any]] = ()
    figures: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


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

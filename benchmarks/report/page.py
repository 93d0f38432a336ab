"""`thinwire-bench report OUT`: report.html, report.md, results.csv and figures, from the points in OUT alone.

The same points give the same bytes: no clock, no machine and no order on disk goes into a report.
"""

from __future__ import annotations

import base64
import collections
import csv
import gzip
import importlib.resources
import io
import json
import pkgutil
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.report.section import Section
from benchmarks.report.stamp import stamp
from benchmarks.results.store import ResultsError, point_paths, read_point
from benchmarks.study.experiments import SECTIONS
from thinwire.files import write_whole

TITLE = "thinwire: accuracy on a thin wire"
FIGURE_SUFFIXES = (".png", ".svg")


def write_study_report(out: Path) -> dict[str, Path]:
    """Writes the report into `out`; returns its files by name. Raises `ResultsError` where there are no points."""
    points = _all_points(out)
    if not points:
        raise ResultsError(f"{out}: holds no measured points: run `thinwire-bench study --out {out}` first")
    made = (pkgutil.resolve_name(name)(out) for name in SECTIONS)
    sections: list[Section] = [section for section in made if section is not None]
    files = {"report_html": out / "report.html", "report_md": out / "report.md", "results_csv": out / "results.csv"}
    write_whole(files["results_csv"], _csv([row for section in sections for row in section.rows]))
    write_whole(files["report_md"], _markdown(sections, points))
    write_whole(files["report_html"], _html(sections, points))
    files["findings_json"] = out / "findings.json"
    write_whole(files["findings_json"], _findings(sections, points))
    for section in sections:
        for stem, draw in section.figures.items():
            for suffix in FIGURE_SUFFIXES:
                path = out / "figures" / f"{stem}{suffix}"
                with tempfile.TemporaryDirectory() as folder:
                    drawn = Path(folder) / path.name
                    draw(drawn)
                    write_whole(path, drawn.read_bytes())
                files[path.name] = path
    stamp(out, files)
    return files


def _all_points(out: Path) -> list[dict[str, Any]]:
    folders = sorted(each.name for each in out.iterdir() if each.is_dir()) if out.is_dir() else []
    return [read_point(path) for folder in folders for path in point_paths(out, folder)]


def _findings(sections: Sequence[Section], points: Sequence[dict[str, Any]]) -> str:
    """Every section's figures, with how many points of which experiment and which commands they come from."""
    counts = collections.Counter(point["experiment"] for point in points)
    document = {
        "points": dict(sorted(counts.items())),
        "commands": sorted({point["command"] for point in points}),
        "testbeds": [json.loads(bed) for bed in sorted({json.dumps(p["testbed"], sort_keys=True) for p in points})],
        "sections": {section.name: section.findings for section in sections if section.findings is not None},
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line a row; values that are not plain are written as JSON."""
    file = io.StringIO()
    table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()})
    return file.getvalue()


def _facts(points: Sequence[dict[str, Any]]) -> list[str]:
    """Where the figures come from: machines, versions, commands, days."""
    beds = {json.dumps(point["testbed"], sort_keys=True): point["testbed"] for point in points}
    lines = []
    for _, bed in sorted(beds.items()):
        versions = ", ".join(f"{name} {version}" for name, version in bed.get("versions", {}).items())
        told = f"{bed.get('cpu')}, {bed.get('cores')} cores, Python {bed.get('python')}, {bed.get('system')}"
        lines.append(f"Measured on {told}; {versions}.")
    days = sorted({point["measured_at"][:10] for point in points})
    lines.append(f"{len(points)} points, measured {days[0]}" + (f" to {days[-1]}." if len(days) > 1 else "."))
    lines += [f"Command: {command}" for command in sorted({point["command"] for point in points})]
    return lines


def _markdown(sections: Sequence[Section], points: Sequence[dict[str, Any]]) -> str:
    parts = [f"# {TITLE}"]
    parts += [f"## {section.title}\n\n{section.markdown}" for section in sections]
    parts.append("## Where the figures come from\n\n" + "\n".join(f"- {fact}" for fact in _facts(points)))
    return "\n\n".join(parts) + "\n"


def _html(sections: Sequence[Section], points: Sequence[dict[str, Any]]) -> str:
    page = {name: _page_file(name) for name in ("page.html", "page.css", "page.js")}
    bodies = [f"<section id='{s.name}'><h2>{escape(s.title)}</h2>{s.html}</section>" for s in sections]
    facts = "".join(f"<li>{escape(fact)}" for fact in _facts(points))
    bodies.append(f"<section id=facts><h2>Where the figures come from</h2><ul>{facts}</ul></section>")
    data = {section.name: section.data for section in sections if section.data is not None}
    scripts = dict.fromkeys(section.script for section in sections if section.script)
    fills = {
        "STYLE": page["page.css"],
        "SECTIONS": "\n".join(bodies),
        # "</" would end the script element in the middle of a label
        "DATA": json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("</", "<\\/"),
        "PLOTLY": _plotly(),
        "SCRIPT": page["page.js"] + "\n" + "\n".join(_page_file(name) for name in scripts),
    }
    text = page["page.html"].replace("{{TITLE}}", escape(TITLE))
    for name, fill in fills.items():  # one after the other: a fill may hold what looks like a mark
        before, mark, after = text.partition("{{" + name + "}}")
        if not mark:
            raise ResultsError(f"benchmarks/report/assets/page.html has no place for {name}: install thinwire again")
        text = before + fill + after
    return text


def _plotly() -> str:
    """plotly.js (MIT) from the Python package, gzip as base64: a third of its 4.8 MB."""
    source = importlib.resources.files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()


def _page_file(name: str) -> str:
    return importlib.resources.files("benchmarks.report").joinpath("assets", name).read_text(encoding="utf-8")

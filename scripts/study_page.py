"""Writes the figures of docs/study.md from a study's findings: `python scripts/study_page.py OUT`.

OUT is the folder of `thinwire-bench study`. Its findings.json is kept as benchmarks/results/study.json, the figures
that the page shows as docs/study/*.png, and every part of the page between `<!-- study: NAME -->` and `<!-- end -->` is
written again. Without OUT the page is written from what is kept; `--check` only says whether both agree.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "study.md"
PICTURES = ROOT / "docs" / "study"
KEPT = ROOT / "benchmarks" / "results" / "study.json"
NOT_YET = "*Not measured yet.* `thinwire-bench study --preset full --data-dir ../shared/data --out reports/study`"
Found = list[dict[str, Any]]


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(header), *rows]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def form(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def span(interval: list[float] | None, spec: str, scale: float = 1) -> str:
    return "" if interval is None else f" ({scale * interval[0]:{spec}} to {scale * interval[1]:{spec}})"


def critical(found: Found) -> str:
    header = ["data, CLIP", "codec", "critical rate, bytes (95 %)", "bytes at 0.95"]
    rows = [
        [
            each["group"],
            each["codec"],
            form(each["bytes"], ",.0f") + span(each["ci95"], ",.0f") if each["bytes"] else f"– ({each['reason']})",
            form(each["bytes_at_level"], ",.0f"),
        ]
        for each in found
    ]
    return table(header, rows)


def models(found: Found) -> str:
    rows = [
        [
            each["data"],
            each["codec"],
            *(clip.partition("#")[0] for clip in each["clips"]),
            form(each["knee_ratio"], ".2f") + span(each["ci95"], ".2f"),
        ]
        for each in found
    ]
    return table(["data", "codec", "CLIP", "other CLIP", "ratio of critical rates (95 %)"], rows)


def architecture(found: Found) -> str:
    told = [each for each in found if each["p_holm"] < 0.05]
    lines = [f"{len(told)} of {len(found)} pairs differ after Holm's correction (p < 0.05)."]
    rows = [
        [each["group"], f"{each['budget']:,.0f}"]
        + [f"{each[name]} {rate}" for name, rate in zip(("first", "second"), each["rates"])]
        + [f"{100 * share:.1f}" for share in each["top1"]]
        + [f"{each['p_holm']:.2g}"]
        for each in told
    ]
    if rows:
        header = ["data, CLIP", "budget, B", "first", "second", "top-1 %", "of second %", "p after Holm"]
        lines.append(table(header, rows))
    return "\n\n".join(lines)


def predictors(found: Found) -> str:
    rows = [
        [
            each["group"],
            each["metric"],
            form(each.get("across"), ".3f") + span(each.get("across_ci95"), ".3f"),
            form(each.get("within"), ".3f"),
            form(each["auc"], ".3f"),
        ]
        for each in found
    ]
    return table(["data, CLIP", "figure", "rho across codecs (95 %)", "rho within", "AUC of an image"], rows)


def hierarchy(found: Found) -> str:
    rows = []
    for group in dict.fromkeys(each["group"] for each in found):
        own = [each for each in found if each["group"] == group]
        lost, kept = sum(each["lost"] for each in own), sum(each["kept"] for each in own)
        chance = sum((each["chance"] or 0) * each["lost"] for each in own)
        shares = [form(part / lost if lost else None, ".2f") for part in (kept, chance)]
        rows.append([group, len(own), lost, kept, *shares])
    return table(["data, CLIP", "points", "answers lost", "coarse class kept", "share", "by chance"], rows)


def prompts(found: Found) -> str:
    rows = []
    for group, name in dict.fromkeys((each["group"], each["templates"]) for each in found):
        own = [each for each in found if (each["group"], each["templates"]) == (group, name)]
        mean = 100 * sum(each["repair"] for each in own) / len(own)
        signs = [sum(each["ci95"][0] > 0 for each in own), sum(each["ci95"][1] < 0 for each in own)]
        rows.append([group, name, len(own), f"{mean:+.2f}", *signs])
    header = ["data, CLIP", "templates", "points", "mean repair, points of top-1", "intervals above 0", "below 0"]
    return table(header, rows)


def ends_and_middle(found: Found, *keys: str) -> Found:
    """Of the entries that agree in `keys` the first, the middle and the last: a page is read, study.json holds all."""
    groups: dict[tuple, Found] = {}
    for each in found:
        groups.setdefault(tuple(each.get(key) for key in keys), []).append(each)
    return [
        each
        for group in groups.values()
        for place, each in enumerate(group)
        if place in (0, len(group) // 2, len(group) - 1)
    ]


def some(shown: Found, found: Found, text: str) -> str:
    return f"{len(shown)} of {len(found)} rows.\n\n{text}" if len(shown) < len(found) else text


def calibration(found: Found) -> str:
    rows = []
    shown = ends_and_middle([each for each in found if each["group"] == found[0]["group"]], "codec")
    for each in shown:
        gap = None if each["ece"] is None else each["confidence"] - each["accuracy"]
        told = form(each["ece"], ".3f") + span(each["ci95"], ".3f")
        rows.append([each["group"], each["codec"], each["rate"] or "–", told, form(gap, "+.3f")])
    text = table(["data, CLIP", "codec", "rate", "ECE (95 %)", "confidence - accuracy"], rows)
    return some(shown, found, text)


def probes(found: Found) -> str:
    shown = ends_and_middle(found, "group", "codec")
    rows = [
        [
            each["group"],
            each["codec"],
            each["rate"],
            form(each["bytes"], ",.0f"),
            f"{100 * each['uncompressed']:.1f}",
            f"{100 * each['trained_on_originals']:.1f}",
            f"{100 * each['trained_on_decoded']:.1f}",
            f"{100 * each['gain']:+.1f}" + span(each["gain_ci95"], "+.1f", 100),
        ]
        for each in shown
    ]
    header = ["data, CLIP", "codec", "rate", "bytes", "uncompressed %", "trained on originals %", "on decoded %"]
    return some(shown, found, table([*header, "difference (95 %)"], rows))


def retrieval(found: Found) -> str:
    shown = ends_and_middle(found, "group", "codec", "direction")
    rows = [
        [each["group"], each["codec"], each.get("rate", "–"), each["direction"].replace("_", " ")]
        + [f"{100 * each[name]:.1f}" for name in ("r1", "r5", "r10")]
        + [f"{100 * each['r1_change']:+.1f}" + span(each["ci95"], "+.1f", 100) if "r1_change" in each else "–"]
        for each in shown
    ]
    header = ["data, CLIP", "codec", "rate", "direction", "R@1 %", "R@5 %", "R@10 %", "R@1 against originals (95 %)"]
    return some(shown, found, table(header, rows))


def tricks(found: Found) -> str:
    told = [each for each in found if each["p_holm"] < 0.05]
    rows = [
        [
            each["group"],
            each["codec"],
            each["rate"] or "–",
            each["trick"],
            f"{100 * each['change']:+.1f}" + span(each["ci95"], "+.1f", 100),
            f"{each['p_holm']:.2g}",
        ]
        for each in told
    ]
    lines = [f"{len(told)} of {len(found)} tries change top-1 after Holm's correction (p < 0.05)."]
    if rows:
        header = ["data, CLIP", "codec", "rate", "trick", "change of top-1, points (95 %)", "p after Holm"]
        lines.append(table(header, rows))
    return "\n\n".join(lines)


def decoders(found: Found) -> str:
    rows = [
        [
            each["group"],
            each["first"],
            each["second"],
            each["rate"],
            f"{100 * each['change']:+.1f}" + span(each["ci95"], "+.1f", 100),
            f"{each['mcnemar_p']:.2g}",
        ]
        for each in found
    ]
    return table(["data, CLIP", "first", "second", "rate", "change of top-1, points (95 %)", "McNemar p"], rows)


def blip(found: Found) -> str:
    rows = [
        [
            each["group"],
            each["codec"],
            each["rate"],
            form(each["bytes"], ",.0f"),
            f"{100 * each['top1']:.1f}",
            form(each["top1_relative"], ".3f"),
            f"{each['mcnemar_p']:.2g}",
        ]
        for each in found
    ]
    return table(["data, BLIP", "codec", "rate", "bytes", "top-1 %", "relative", "McNemar p"], rows)


PARTS: dict[str, tuple[Callable[[Found], str], tuple[str, ...]]] = {
    "critical-rate": (critical, ("critical-rate",)),
    "models": (models, ()),
    "architecture": (architecture, ("architecture-0",)),
    "predictors": (predictors, ("predictors",)),
    "hierarchy": (hierarchy, ("hierarchy-0",)),
    "prompts": (prompts, ("prompts-0",)),
    "calibration": (calibration, ("calibration-0", "reliability-0")),
    "linear-probe": (probes, ("linear-probe-0",)),
    "retrieval": (retrieval, ("retrieval-0",)),
    "tricks": (tricks, ("tricks-0",)),
    "decoders": (decoders, ()),
    "blip": (blip, ()),
}
"""Part of the page → (what writes it from that section's findings, figures of the report that it shows)."""


def part(name: str, document: dict[str, Any] | None) -> str:
    write, figures = PARTS[name]
    found = (document or {"sections": {}})["sections"].get(name)
    if not found:
        return NOT_YET
    lines = [f"![{figure}](study/{figure}.png)" for figure in figures if (PICTURES / f"{figure}.png").is_file()]
    source = f"From `sections.{name}` of [study.json](../benchmarks/results/study.json)."
    return "\n\n".join([*lines, write(found), source])


def provenance(document: dict[str, Any] | None) -> str:
    if document is None:
        return NOT_YET
    beds = [f"{bed.get('cpu')}, {bed.get('cores')} cores, Python {bed.get('python')}" for bed in document["testbeds"]]
    points = ", ".join(f"{count} of {name}" for name, count in document["points"].items())
    commands = "\n".join(f"    {command}" for command in document["commands"])
    return f"Points: {points}. Measured on {'; '.join(beds)}, by\n\n{commands}"


def written(text: str, document: dict[str, Any] | None) -> str:
    """The page with every part written again. Raises KeyError for a part that nothing writes."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        body = provenance(document) if name == "provenance" else part(name, document)
        return f"<!-- study: {name} -->\n{body}\n<!-- end -->"

    return re.sub(r"<!-- study: ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def keep(out: Path) -> None:
    """Takes findings and figures over from a study."""
    KEPT.write_bytes((out / "findings.json").read_bytes())
    PICTURES.mkdir(exist_ok=True)
    for _, figures in PARTS.values():
        for figure in figures:
            source = out / "figures" / f"{figure}.png"
            if source.is_file():
                shutil.copyfile(source, PICTURES / source.name)


def main(words: list[str]) -> int:
    check = "--check" in words
    folders = [word for word in words if not word.startswith("--")]
    if folders and not check:
        keep(Path(folders[0]))
    document = json.loads(KEPT.read_text()) if KEPT.is_file() else None
    before = PAGE.read_text()
    after = written(before, document)
    if check:
        if after != before:
            print("docs/study.md differs from benchmarks/results/study.json: run `python scripts/study_page.py`")
        return int(after != before)
    PAGE.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The strip: each photograph, what the cloud sees of it, what it says, and the bytes that took."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from benchmarks.codecs.grid import codec_title
from benchmarks.report.section import Section, markdown_table
from benchmarks.results.store import read_points

NAME = "examples"
SHOWN_VECTOR = "mid"
INTRO = (
    "What CLIP is shown, its answer among 20 labels with its probability, and the bytes that were sent. Peers are at "
    "their best PSNR, of any size and quality, within the bytes of our middle rate (or at their smallest). "
    "Photographs: scikit-image."
)


def examples_section(out: Path) -> Section | None:
    """None where nothing was measured."""
    points = _newest(read_points(out, NAME))
    if not points:
        return None
    strips, lines = [], []
    for point in points:
        shown = [each for each in point["shown"] if each["picture"] or each["rate"] == SHOWN_VECTOR]
        cells = "".join(_cell(each) for each in shown)
        strips.append(f"<h3>{escape(point['label'])}</h3><div class=strip>{cells}</div>")
        lines += [[point["label"], _name(each), each["bytes"], _answer(each)] for each in shown]
    clip = points[0]["clip"].partition("#")[0]
    intro = f"{INTRO} CLIP: {clip}."
    html = f"<p class=note>{intro}</p>" + "".join(strips)
    table = markdown_table(["photograph", "sent as", "bytes", "answer"], lines)
    return Section("examples", "What the cloud sees", html, f"{intro}\n\n{table}")


def _newest(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One point a photograph: of several configurations in one folder the last that was measured."""
    last: dict[str, dict[str, Any]] = {}
    for point in sorted(points, key=lambda each: (each["measured_at"], each["photo"])):
        last[point["photo"]] = point
    return [last[photo] for photo in sorted(last)]


def _name(each: dict[str, Any]) -> str:
    return "original file" if each["kind"] == "reference" else f"{codec_title(each['codec'])} {each['rate']}"


def _answer(each: dict[str, Any]) -> str:
    return f"{each['label']} {100 * each['probability']:.0f} %"


def _cell(each: dict[str, Any]) -> str:
    picture = (
        f"<img src='{each['picture']}' alt='{escape(_name(each), quote=True)}' width=120 height=120>"
        if each["picture"]
        else "<div class=vector>a CLIP vector,<br>no picture</div>"
    )
    mark = "right" if each["right"] else "wrong"
    return (
        f"<figure class={each['kind']}>{picture}<figcaption><b>{escape(_name(each))}</b>"
        f"<span>{each['bytes']:,} B</span><span class={mark}>{escape(_answer(each))}</span></figcaption></figure>"
    )

"""The strip: each photograph, what the cloud sees of it, what it says, and the bytes that took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.codecs.grid import FAMILY, PEER, REFERENCE, codec_title
from benchmarks.report.section import Section, markdown_table
from benchmarks.results.store import read_points

NAME = "examples"
SHOWN = ("mid",)  # the rate of each family that is shown; the table and the points have all
INTRO = (
    "What CLIP is shown, its answer among the labels of the demo with its probability, and the bytes that were sent. A "
    "peer is at its best PSNR, of any size and quality, within the bytes of the codec that stands before it (or at its "
    "smallest). Photographs: scikit-image."
)


def examples_section(out: Path) -> Section | None:
    """None where nothing was measured."""
    points = [point for point in _newest(read_points(out, NAME)) if "answers" in point["shown"][0]]
    if not points:
        return None
    strips, lines = [], []
    clips = list(dict.fromkeys(_clip(answer) for each in points[0]["shown"] for answer in each["answers"]))
    for point in points:
        cells = "".join(map(_cell, _order(point["shown"])))
        strips.append(f"<h3>{escape(point['label'])}</h3><div class=strip>{cells}</div>")
        for each in _order(point["shown"]):
            told = {_clip(answer): _answer(answer) for answer in each["answers"]}
            lines.append([point["label"], _name(each), each["bytes"], *(told.get(clip, "–") for clip in clips)])
    intro = f"{INTRO} CLIPs: {', '.join(clips)}. Of {len(points)} photographs right: {'; '.join(_right(points))}."
    html = f"<p class=note>{escape(intro)}</p>" + "".join(strips)
    table = markdown_table(["photograph", "sent as", "bytes", *clips], lines)
    return Section("examples", "What the cloud sees", html, f"{intro}\n\n{table}")


def _order(shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The original, then each family at its middle rate with the peers of the same bytes right after it."""
    kept = [each for each in shown if each["kind"] == REFERENCE]
    for each in shown:
        if each["kind"] == FAMILY and (each["rate"] in SHOWN or not each["picture"]):
            kept.append(each)
            kept += [peer for peer in shown if peer["kind"] == PEER and peer["beside"] == each["codec"]]
    return kept


def _right(points: Sequence[dict[str, Any]]) -> list[str]:
    """Of each way that is shown: how many photographs each CLIP names right."""
    count: dict[str, Counter] = {}
    for point in points:
        for each in _order(point["shown"]):
            way = codec_title(each["codec"]) + (f" beside {each['beside']}" if each.get("beside") else "")
            way += f" {each['rate']}" if each["kind"] == FAMILY else ""
            for answer in each["answers"]:
                count.setdefault(way, Counter())[_clip(answer)] += answer["right"]
    return [f"{way} {', '.join(f'{right} ({clip})' for clip, right in each.items())}" for way, each in count.items()]


def _newest(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One point a photograph: of several configurations in one folder the last that was measured."""
    last: dict[str, dict[str, Any]] = {}
    for point in sorted(points, key=lambda each: (each["measured_at"], each["photo"])):
        last[point["photo"]] = point
    return [last[photo] for photo in sorted(last)]


def _clip(answer: dict[str, Any]) -> str:
    return answer["clip"].partition("#")[0]


def _name(each: dict[str, Any]) -> str:
    return "original file" if each["kind"] == REFERENCE else f"{codec_title(each['codec'])} {each['rate']}"


def _answer(answer: dict[str, Any]) -> str:
    return f"{answer['label']} {100 * answer['probability']:.0f} %"


def _cell(each: dict[str, Any]) -> str:
    picture = (
        f"<img src='{each['picture']}' alt='{escape(_name(each), quote=True)}' width=120 height=120>"
        if each["picture"]
        else "<div class=vector>a CLIP vector,<br>no picture</div>"
    )
    answers = "".join(
        f"<span class={'right' if answer['right'] else 'wrong'} title='{escape(_clip(answer), quote=True)}'>"
        f"{escape(_answer(answer))}</span>"
        for answer in each["answers"]
    )
    return (
        f"<figure class={each['kind']}>{picture}<figcaption><b>{escape(_name(each))}</b>"
        f"<span>{each['bytes']:,} B</span>{answers}</figcaption></figure>"
    )

"""`make demo`: a server, an edge and real photographs on this machine; a table, a page and one line of JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.codecs.peers import png_bytes
from benchmarks.data.photos import LABELS, Photo, local_photos, own_labels, own_photos, wheel_is_installed, wheel_photos
from benchmarks.demo.page import Shown, write_report
from benchmarks.demo.rivals import Rival, equal_rival, pictures
from benchmarks.results.testbed import cpu_model
from benchmarks.rig.server_process import running_service
from cloud.networks.parts import NamedParts, load_parts
from edge.defaults import DEFAULT_BUNDLE
from edge.line.client import Client
from edge.line.result import Result
from synthesis.adapter import Adapter
from thinwire.bundle import Bundle, load_bundle, resolve_bundle
from thinwire.errors import ThinwireError
from thinwire.imaging import open_image

REPORT = Path("reports/demo/report.html")
LOCAL_COUNT = 20
SEED = 0
TOP = 3  # answers of each kind that are shown


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code: 0 all photographs answered, 1 failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.demo.run", description="thinwire on this machine, in one minute.")
    parser.add_argument("--clip", default="clip-lite", help="CLIP of the server")
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, help="codec: name or folder")
    parser.add_argument("--rate", default="mid", help="rate of the packets")
    parser.add_argument(
        "--adapter",
        metavar="PATH",
        help="of the CLIP, for the codec's pictures (default: as a server has it; none: no adapter)",
    )
    parser.add_argument("--report", type=Path, default=REPORT, help="where the page goes")
    args = parser.parse_args(argv)
    try:
        summary = _run(args.clip, args.bundle, args.rate, args.adapter, args.report)
    except (ThinwireError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary, separators=(",", ":")), flush=True)
    return 0


def _run(clip: str, bundle_name: str, rate: str, adapter_name: str | None, report: Path) -> dict[str, object]:
    path = resolve_bundle(bundle_name)
    bundle = load_bundle(path)
    adapter = _adapter(adapter_name, bundle, clip)
    learned = "" if adapter is None else f", adapter {adapter.name}"
    asked: list[tuple[str, Sequence[str], Sequence[Photo]]] = [
        ("Well-known things, in the public domain", own_labels(), own_photos())
    ]
    if wheel_is_installed():
        asked.append(("Photographs from the scikit-image wheel", LABELS, wheel_photos()))
    local, local_labels = local_photos(LOCAL_COUNT, SEED)
    if local:
        asked.append((f"{len(local)} images of the ImageNette test set, seed {SEED}", local_labels, local))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(f"starting the server with CLIP {clip}, bundle {bundle.name}{learned} ...")
    with running_service(clip, path, adapter=adapter_name) as server, Client(server, bundle, rate=rate) as client:
        console.print(f"listening on {server}; {sum(len(photos) for _, _, photos in asked)} photographs")
        groups = [(title, labels, _classify(client, photos, labels)) for title, labels, photos in asked]
        everything = [row for _, _, rows in groups for row in rows]
        console.print("asking the same of bare AV1 stills, rung by rung ...")
        _, own, first = groups[0]
        rival = equal_rival(
            client, [row.view for row in first], [(own, row.photo.label) for row in first], _right(first)
        )
    right = _right(everything)
    for title, labels, rows in groups:
        console.print(f"\nlabels: {', '.join(labels)}", highlight=False)
        console.print(_table(title, rows))
        console.print(_score(rows), highlight=False)
    summary: dict[str, object] = {
        "images": len(everything),
        "mean_packet_bytes": round(float(np.mean([row.result.packet_bytes for row in everything])), 1),
        "right": right,
        "right_uncompressed": _right_uncompressed(everything),
        "bare_av1": None if rival is None else vars(rival),
        "edge_encode_ms_p50": round(float(np.median([r.result.encode_ms + r.result.code_ms for r in everything])), 2),
        "round_trip_ms_p50": round(float(np.median([row.result.round_trip_ms for row in everything])), 2),
        "groups": [
            {
                "title": title,
                "images": len(rows),
                "labels": len(labels),
                "mean_packet_bytes": round(float(np.mean([row.result.packet_bytes for row in rows])), 1),
                "right": _right(rows),
                "right_uncompressed": _right_uncompressed(rows),
            }
            for title, labels, rows in groups
        ],
        "bundle": bundle.name,
        "rate": rate,
        "clip": clip,
        "adapter": None if adapter is None else adapter.name,
        "cpu": cpu_model(),
        "report": str(report),
    }
    facts = [
        f"CLIP {clip}, bundle {bundle.name}, rate {rate}{learned}; server and edge on one machine ({cpu_model()}), "
        "loopback.",
        f"A packet has {summary['mean_packet_bytes']:g} bytes on average; {right} of {len(everything)} photographs "
        f"were named right through the wire, {_right_uncompressed(everything)} uncompressed: what is wrong in both is "
        f"the CLIP's doing, what is wrong in one the codec's.",
        f"Of the first {len(first)} photographs {_right(first)} were named right through the wire. "
        f"{_against(rival, _right(first))}",
    ]
    facts += [f"{title}: {_score(rows)}." for title, _, rows in groups]
    write_report(report, facts, groups)
    console.print(f"\n{facts[1]}\nreport: {report}", highlight=False)
    return summary


def _adapter(name: str | None, bundle: Bundle, clip: str) -> Adapter | None:
    """What the server has for this bundle: what `--adapter` names, else what it takes by itself."""
    named = NamedParts([bundle.path], adapters=None if name is None else [name])
    return next(iter(load_parts(named, [clip]).adapters), None)


def _classify(client: Client, photos: Sequence[Photo], labels: Sequence[str]) -> list[Shown]:
    client.classify(
        photos[0].data, labels
    )  # the first request makes the label vectors; no photograph should pay for it
    views = [client.bundle.view(open_image(photo.data, photo.name)) for photo in photos]
    packets = [client.encoder.encode(view, client.rate).packet.to_bytes() for view in views]
    return [
        Shown(
            photo, view, seen, client.classify(photo.data, labels), client.classify_file(png_bytes(view), labels, TOP)
        )
        for photo, view, seen in zip(photos, views, pictures(client.bundle, packets))
    ]


def _against(rival: Rival | None, right: int) -> str:
    """One sentence on the bytes that the best bare AV1 still takes for as many right answers."""
    if rival is None:
        return "Bare AV1 stills were not measured."
    if rival.right < right:
        return (
            f"No rung of bare AV1 names as many: the best, {rival.rung}, {rival.right} at {rival.mean_bytes:g} bytes."
        )
    return (
        f"The smallest rung of bare AV1 that names as many ({rival.rung}: {rival.right}) takes {rival.mean_bytes:g} "
        "bytes. So few photographs tell little: README has the measured table."
    )


def _right(rows: Sequence[Shown]) -> int:
    return sum(row.right for row in rows)


def _right_uncompressed(rows: Sequence[Shown]) -> int:
    return sum(row.right_uncompressed for row in rows)


def _score(rows: Sequence[Shown]) -> str:
    return f"top-1 uncompressed {_right_uncompressed(rows)}/{len(rows)}, through the wire {_right(rows)}/{len(rows)}"


def _table(title: str, rows: Sequence[Shown]) -> Table:
    table = Table(title=title)
    table.add_column("image")
    table.add_column("uncompressed", ratio=1)
    table.add_column("through the wire", ratio=1)
    for name in ("packet B", "edge ms", "cloud ms"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.photo.name,
            _answers(row.uncompressed, row.right_uncompressed),
            _answers(row.result, row.right) + ("" if row.right else f"  (is: {row.photo.label})"),
            str(row.result.packet_bytes),
            f"{row.result.edge_ms:.1f}",
            f"{row.result.server.total_ms:.1f}",
        )
    return table


def _answers(result: Result, right: bool, count: int = 2) -> str:
    best = [f"{p.label} {100 * p.probability:.0f}%" for p in result.predictions[:count]]
    best[0] = f"[{'green' if right else 'red'}]{best[0]}[/]"
    return ", ".join(best)


if __name__ == "__main__":
    sys.exit(main())

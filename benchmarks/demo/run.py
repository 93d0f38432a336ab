"""`make demo`: a server, an edge and real photographs on this machine; a table, a page and one line of JSON."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.data.photos import LABELS, Photo, local_photos, wheel_photos
from benchmarks.demo.page import Shown, write_report
from benchmarks.results.testbed import cpu_model
from benchmarks.rig.server_process import running_service
from edge.defaults import DEFAULT_BUNDLE
from edge.line.client import Client
from thinwire.bundle import load_bundle, resolve_bundle
from thinwire.errors import ThinwireError
from thinwire.imaging import open_image

REPORT = Path("reports/demo/report.html")
LOCAL_COUNT = 20
SEED = 0
JPEG_QUALITY = 75


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code: 0 all photographs answered, 1 failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.demo.run", description="thinwire on this machine, in one minute.")
    parser.add_argument("--clip", default="clip-lite", help="CLIP of the server")
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, help="codec: name or folder")
    parser.add_argument("--rate", default="mid", help="rate of the packets")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the page goes")
    args = parser.parse_args(argv)
    try:
        summary = _run(args.clip, args.bundle, args.rate, args.report)
    except (ThinwireError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary, separators=(",", ":")), flush=True)
    return 0


def _run(clip: str, bundle_name: str, rate: str, report: Path) -> dict[str, object]:
    path = resolve_bundle(bundle_name)
    bundle = load_bundle(path)
    photos = wheel_photos()
    local, local_labels = local_photos(LOCAL_COUNT, SEED)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(f"starting the server with CLIP {clip} and bundle {bundle.name} ...")
    with running_service(clip, path) as server, Client(server, bundle, rate=rate) as client:
        console.print(f"listening on {server}; {len(photos)} photographs from the scikit-image wheel")
        shown = _classify(client, photos, LABELS)
        shown_local = _classify(client, local, local_labels) if local else []
    groups = [("Photographs from the scikit-image wheel", LABELS, shown)]
    if local:
        groups.append((f"{len(local)} images of the ImageNette test set, seed {SEED}", local_labels, shown_local))
    for title, labels, rows in groups:
        console.print(f"\nlabels: {', '.join(labels)}", highlight=False)
        console.print(_table(title, rows))
        console.print(f"top-1: {_score(rows)}", highlight=False)
    everything = [*shown, *shown_local]
    summary: dict[str, object] = {
        "images": len(everything),
        "mean_packet_bytes": round(float(np.mean([row.result.packet_bytes for row in everything])), 1),
        "mean_jpeg_bytes": round(float(np.mean([row.jpeg_bytes for row in everything])), 1),
        "edge_encode_ms_p50": round(float(np.median([r.result.encode_ms + r.result.code_ms for r in everything])), 2),
        "round_trip_ms_p50": round(float(np.median([row.result.round_trip_ms for row in everything])), 2),
        "top1_plausible": _score(shown),
        "top1_imagenette": _score(shown_local) if local else None,
        "bundle": bundle.name,
        "rate": rate,
        "clip": clip,
        "cpu": cpu_model(),
        "report": str(report),
    }
    ratio = summary["mean_jpeg_bytes"] / summary["mean_packet_bytes"]
    facts = [
        f"CLIP {clip}, bundle {bundle.name}, rate {rate}; server and edge on one machine ({cpu_model()}), loopback.",
        f"A packet has {summary['mean_packet_bytes']:g} bytes on average, the same view as a JPEG of quality "
        f"{JPEG_QUALITY} {summary['mean_jpeg_bytes']:g}: {ratio:.0f} times as many.",
    ]
    facts += [f"{title}: top-1 {_score(rows)}." for title, _, rows in groups]
    write_report(report, facts, groups)
    console.print(f"\n{facts[1]}\nreport: {report}", highlight=False)
    return summary


def _classify(client: Client, photos: Sequence[Photo], labels: Sequence[str]) -> list[Shown]:
    client.classify(
        photos[0].data, labels
    )  # the first request makes the label vectors; no photograph should pay for it
    rows = []
    for photo in photos:
        view = client.bundle.view(open_image(photo.data, photo.name))
        rows.append(Shown(photo, view, client.classify(photo.data, labels), jpeg_bytes(view)))
    return rows


def jpeg_bytes(view: np.ndarray) -> int:
    """Size of the view, uint8 (H, W, 3), as a JPEG of quality 75 with optimised Huffman tables."""
    file = io.BytesIO()
    Image.fromarray(view).save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.tell()


def _score(rows: Sequence[Shown]) -> str:
    return f"{sum(row.right for row in rows)}/{len(rows)}"


def _table(title: str, rows: Sequence[Shown]) -> Table:
    table = Table(title=title)
    table.add_column("image")
    table.add_column("top 3", ratio=1)
    for name in ("packet B", "JPEG B", "edge ms", "cloud ms"):
        table.add_column(name, justify="right")
    for row in rows:
        best = [f"{p.label} {100 * p.probability:.0f}%" for p in row.result.predictions[:3]]
        best[0] = f"[{'green' if row.right else 'red'}]{best[0]}[/]"
        table.add_row(
            row.photo.name,
            ", ".join(best) + ("" if row.right else f"  (is: {row.photo.label})"),
            str(row.result.packet_bytes),
            str(row.jpeg_bytes),
            f"{row.result.edge_ms:.1f}",
            f"{row.result.server.total_ms:.1f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())

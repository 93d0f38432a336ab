"""The sections of throughput and energy: tables of their points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.codecs.grid import codec_title
from benchmarks.report.section import Section, html_table, markdown_table, number
from benchmarks.results.store import read_points

THROUGHPUT_NOTE = (
    "Images per second of decoding, networks and head in full batches, one call after the other (bare), of the engine "
    "with its queue, and of the server through gRPC, measured in turns and in one runtime; ratios are medians of the "
    "rounds'. Batches: runs of the device by how many images they held."
)
ENERGY_NOTE = (
    "Edge: image file to request, or to the labels where all is on the edge. Cloud: request to answer through the "
    "engine, one at a time. CPU-seconds are of the process; joules, where the machine shows RAPL, of the CPU packages "
    "above idle."
)


def throughput_section(out: Path) -> Section | None:
    """None where nothing was measured."""
    rates = ["bare /s", "engine /s", "served /s", "served ÷ bare"]
    header = ["codec", "rate", "CLIP", "runtime", *rates, "batches", "failed"]

    def line(row: Mapping[str, Any], point: Mapping[str, Any]) -> list[str]:
        runtime = row.get("runtime", "not told")  # in points of 2026-11-28 and before
        batches = ", ".join(f"{count} of {size}" for size, count in row["batch_histogram"].items())
        rates = [number(row[f"{name}_images_per_s"], ".1f") for name in ("bare", "engine", "served")]
        ratio = number(row["served_over_bare_ratio"], ".3f")
        point_is = [codec_title(row["codec"]), row["rate"], _clip(point), runtime]
        return [*point_is, *rates, ratio, batches, str(row["failed"])]

    return _section(out, "throughput", "The service, saturated", THROUGHPUT_NOTE, header, line)


def energy_section(out: Path) -> Section | None:
    """None where nothing was measured."""
    header = ["codec", "rate", "side", "CPU-seconds", "joules above idle", "seconds", "images", "failed"]

    def line(row: Mapping[str, Any], point: Mapping[str, Any]) -> list[str]:
        figures = ("cpu_s_per_image", "joules_per_image_above_idle", "wall_s_per_image")
        side = "all on the edge" if row["kind"] == "on-edge" else row["side"]
        told = [number(row[name], ".4f") for name in figures]
        return [codec_title(row["codec"]), row["rate"], side, *told, str(row["n"]), str(row["failed"])]

    return _section(out, "energy", "Work for one image", ENERGY_NOTE, header, line)


def _section(
    out: Path,
    name: str,
    title: str,
    note: str,
    header: Sequence[str],
    line: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]],
) -> Section | None:
    lines = [line(row, point) for point in read_points(out, name) for row in point["rows"]]
    if not lines:
        return None
    html = f"<p class=note>{note}</p>" + html_table(header, lines, 3)
    return Section(name, title, html, f"{note}\n\n{markdown_table(header, lines)}")


def _clip(point: Mapping[str, Any]) -> str:
    return point["key"]["clip"].partition("#")[0]

"""Tables on stderr: what a person reads of a document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOG_WIDTH = 140
"""Of a log file, whose 80 would cut every number."""


def cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_points(document: Mapping[str, Any]) -> None:
    """The reference, all family points and the peers' hulls; then what each family comes to."""
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    title = f"{document['data']['name']}: {document['n']} of {document['data']['images']} images, {document['clip']}"
    table = Table(title=f"{title}, prompt set {document['prompt_set']}; of peers the hull", box=None)
    for name in ("codec", "rate", "bytes", "top-1", "top-5", "relative (95%)", "McNemar p", "PSNR dB", "encode ms"):
        table.add_column(name, justify="left" if name in ("codec", "rate") else "right", no_wrap=True)
    shown = [row for row in document["points"] if row["kind"] != "peer" or row["hull"]]
    codecs = list(dict.fromkeys(row["codec"] for row in shown))
    for row in sorted(shown, key=lambda row: (codecs.index(row["codec"]), row["bytes_mean"] or 0)):
        interval = row["top1_relative_ci95"]
        table.add_row(
            row["codec"],
            row["rate"] or "-",
            cell(row["bytes_mean"], ",.0f"),
            cell(row["top1"], ".3f"),
            cell(row["top5"], ".3f"),
            "-" if interval is None else f"{row['top1_relative']:.3f} ({interval[0]:.3f}-{interval[1]:.3f})",
            cell(row["mcnemar_p"], ".2g"),
            cell(row["psnr_db"], ".1f"),
            cell(row["encode_ms_p50"], ".1f"),
        )
    console.print(table)
    for each in document.get("transfer", ()):
        console.print(transfer_line(each), highlight=False)
    for name, family in document["summary"]["families"].items():
        for line in family_lines(name, family):
            console.print(line, highlight=False)


def transfer_line(each: Mapping[str, Any]) -> str:
    """One family before one judge: the bytes that it saves against the best image codec at equal answers."""
    told = each["reason"] or "no interval"
    if each["ci95"] is not None:
        told = f"95%: {each['ci95'][0]:+.0%} to {each['ci95'][1]:+.0%}"
    saving = "-" if each["saving"] is None else f"{each['saving']:+.0%}"
    role = "" if each["role"] is None else f" ({each['role']})"
    return f"{each['codec']} before {each['judge']}{role}: saves {saving} of the best peer's bytes ({told})"


def family_lines(name: str, family: Mapping[str, Any]) -> list[str]:
    """One family's summary in words."""
    lines = []
    for level, at in family["bytes_at"].items():
        peer = ("" if at["best_peer"] is None else f"; best peer {at['best_peer']} {at['best_peer_bytes']:,.0f} B") + (
            "" if at["ratio"] is None else f", ratio {at['ratio']:.3f}"
        )
        if at["bytes"] is None:
            lines.append(f"{name}: relative top-1 {level} not reached ({at['reason']}){peer}")
        else:
            lines.append(f"{name}: relative top-1 {level} at {'≤' * at['at_most']}{at['bytes']:,.0f} B{peer}")
    for budget, best in family["top1_relative_within"].items():
        other = "" if best["best_peer"] is None else f"; {best['best_peer']} {best['best_peer_top1_relative']:.3f}"
        own = "-" if best["top1_relative"] is None else f"{best['top1_relative']:.3f}"
        lines.append(f"{name}: {own} within {budget} B{other}" + (f" ({best['reason']})" if best["reason"] else ""))
    encode = family["encode"]
    versus = encode["reason"] or f"AV1 speed 6 of the view {encode['av1_ms_p50']:.1f} ms, ratio {encode['ratio']:.3f}"
    lines.append(f"{name}: encode {cell(encode['encode_ms_p50'], '.1f')} ms; {versus}")
    return lines

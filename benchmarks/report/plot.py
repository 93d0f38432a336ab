"""The rate-accuracy picture: relative top-1 against bytes, families over the hulls of their peers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.codecs.grid import FAMILY, PEER, codec_title
from benchmarks.results.summary import LEVELS

FAMILY_COLOURS = ("#D55E00", "#0072B2", "#CC79A7", "#332288")
PEER_COLOURS = {
    "av1": "#009E73",
    "webp": "#56B4E9",
    "jpeg": "#999999",
    "jxl": "#E69F00",
    "avif": "#00634A",
    "webp-file": "#2A6C94",
    "jpeg-file": "#555555",
    "jxl-file": "#8A6000",
    "jpeg2000": "#000000",
}
"""Okabe and Ito's palette, told apart by every kind of colour vision; markers and dashes tell the same once more."""

MARKERS = {"av1": "D", "webp": "^", "jpeg": "s", "jxl": "v", "avif": "d", "jpeg2000": "x"}
BYTE_TICKS = (10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000, 10000, 20000)


NO_DATES = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""Metadata that would make two pictures of the same points differ."""


def plot(rows: Sequence[dict], path: Path, title: str) -> None:
    """Writes the picture; its format follows the file's name (png, svg, pdf). Makes the folder."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "thinwire"  # ids in an SVG are random otherwise
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    shown: list[dict] = []
    for codec in dict.fromkeys(row["codec"] for row in rows if row["kind"] == PEER):
        own = _hull(rows, codec)
        base = codec.partition("@")[0]
        style = {"color": PEER_COLOURS.get(base, "#666666"), "marker": MARKERS.get(base, "+")}
        _curve(axes, own, f"{codec_title(codec)}, best size × quality", 0.10, lw=1.2, ls="--", ms=4, **style)
        shown += own
    for place, codec in enumerate(dict.fromkeys(row["codec"] for row in rows if row["kind"] == FAMILY)):
        own = sorted(
            (row for row in rows if row["codec"] == codec and _drawable(row)), key=lambda row: row["bytes_mean"]
        )
        colour = FAMILY_COLOURS[place % len(FAMILY_COLOURS)]
        _curve(axes, own, f"thinwire {codec}", 0.22, color=colour, marker="o", lw=2.4, ls="-", ms=7, zorder=5)
        shown += own
    for level in (*LEVELS, 1.0):
        axes.axhline(level, color="#bbbbbb", lw=0.8, zorder=0)
    if shown:
        low, high = min(row["bytes_mean"] for row in shown), max(row["bytes_mean"] for row in shown)
        axes.set_xscale("log")
        axes.set_xlim(low / 1.15, high * 1.15)
        axes.xaxis.set_major_locator(FixedLocator([t for t in BYTE_TICKS if low / 1.15 <= t <= high * 1.15]))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(
            loc="lower right",
            fontsize=9,
            framealpha=0.85,
            edgecolor="none",
            title="bands: 95 % bootstrap intervals",
            title_fontsize=8,
            alignment="left",
        )
    axes.set_ylim(0, max([1.08, *(row["top1_relative"] + 0.04 for row in shown)]))  # a codec may beat the original
    axes.set_yticks(sorted({0.0, 0.2, 0.4, 0.6, 0.8, 1.0, *LEVELS}))
    axes.set_xlabel("mean bytes an image, headers included (B, log scale)")
    axes.set_ylabel("relative top-1 (through the codec ÷ uncompressed)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#eeeeee", zorder=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata=NO_DATES.get(path.suffix))
    pyplot.close(figure)


def _drawable(row: dict) -> bool:
    return row["bytes_mean"] is not None and row["top1_relative"] is not None


def _hull(rows: Sequence[dict], codec: str) -> list[dict]:
    own = [row for row in rows if row["codec"] == codec and row["hull"] and _drawable(row)]
    return sorted(own, key=lambda row: row["bytes_mean"])


def _curve(axes, rows: Sequence[dict], label: str, alpha: float, **style) -> None:
    sizes = [row["bytes_mean"] for row in rows]
    ends = [row["top1_relative_ci95"] or (row["top1_relative"],) * 2 for row in rows]
    axes.plot(sizes, [row["top1_relative"] for row in rows], label=label, **style)
    if len(rows) == 1:  # a band needs two ends
        axes.vlines(sizes, ends[0][0], ends[0][1], color=style["color"], alpha=0.5, lw=3)
    else:
        low, high = zip(*ends) if ends else ((), ())
        axes.fill_between(sizes, low, high, color=style["color"], alpha=alpha, lw=0)

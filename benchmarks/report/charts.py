"""Plain charts, drawn twice from one description: by plotly in the page, by matplotlib for papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.report.plot import NO_DATES

PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#999999", "#000000", "#AA4499")
SCRIPT = "charts.js"


@dataclass(frozen=True)
class Series:
    """One curve. low, high: ends of its intervals. line: joined by a line; dashed for peers and hypotheses."""

    name: str
    x: Sequence[float | str]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    line: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """`name` is its file's stem and its place in the page; x values that are words make categories."""

    name: str
    title: str
    x_title: str
    y_title: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False

    def html(self) -> str:
        return f"<h3>{escape(self.title)}</h3><div class=plot id='chart-{self.name}'></div>"

    def markdown(self) -> str:
        return f"![{self.title}](figures/{self.name}.png)"

    def plotly(self) -> dict[str, Any]:
        """What charts.js gives to Plotly.newPlot."""
        traces = []
        for place, each in enumerate(self._shown()):
            trace = {
                "name": each.name,
                "x": list(each.x),
                "y": list(each.y),
                "mode": "lines+markers" if each.line else "markers",
                "line": {"color": PALETTE[place % len(PALETTE)], "dash": "dash" if each.dashed else "solid"},
                "marker": {"color": PALETTE[place % len(PALETTE)]},
            }
            if each.low is not None and each.high is not None:
                up = [None if end is None else end - y for y, end in zip(each.y, each.high)]
                down = [None if end is None else y - end for y, end in zip(each.y, each.low)]
                trace["error_y"] = {"type": "data", "array": up, "arrayminus": down, "thickness": 1, "width": 3}
            traces.append(trace)
        axes = {
            "xaxis": {"title": {"text": self.x_title}, "type": "log" if self.log_x else "-", "gridcolor": "#eef0f3"},
            "yaxis": {"title": {"text": self.y_title}, "type": "log" if self.log_y else "-", "gridcolor": "#eef0f3"},
        }
        return {"id": f"chart-{self.name}", "traces": traces, "layout": axes}

    def draw(self, path: Path) -> None:
        """Writes the picture; its format follows the file's name."""
        import matplotlib

        matplotlib.use("Agg")
        matplotlib.rcParams["svg.hashsalt"] = "thinwire"  # ids in an SVG are random otherwise
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8, 4.6), layout="constrained")
        for place, each in enumerate(self._shown()):
            style = {"color": PALETTE[place % len(PALETTE)], "marker": "o", "ms": 5, "label": each.name}
            style["ls"] = ("--" if each.dashed else "-") if each.line else "none"
            axes.plot(each.x, each.y, **style)
            if each.low is not None and each.high is not None:
                ends = [(x, a, b) for x, a, b in zip(each.x, each.low, each.high) if a is not None and b is not None]
                if ends:
                    axes.vlines(*zip(*ends), color=style["color"], alpha=0.45, lw=2)
        if self.log_x:
            axes.set_xscale("log")
        if self.log_y:
            axes.set_yscale("log")
        axes.set_xlabel(self.x_title)
        axes.set_ylabel(self.y_title)
        axes.set_title(self.title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
        if len(self.series) > 1:
            axes.legend(fontsize=8, framealpha=0.85, edgecolor="none")
        if any(isinstance(x, str) and len(x) > 12 for each in self.series for x in each.x):
            axes.tick_params(axis="x", rotation=30)
        figure.savefig(path, dpi=150, metadata=NO_DATES.get(path.suffix))
        pyplot.close(figure)

    def _shown(self) -> list[Series]:
        """Without what has no y: matplotlib and plotly treat gaps differently."""
        found = []
        for each in self.series:
            kept = [place for place, y in enumerate(each.y) if y is not None]
            if kept:
                lists = {
                    name: None if (values := getattr(each, name)) is None else [values[place] for place in kept]
                    for name in ("x", "y", "low", "high")
                }
                found.append(Series(each.name, **lists, line=each.line, dashed=each.dashed))
        return found


def page_data(charts: Sequence[Chart]) -> dict[str, Any]:
    """`data` of a section that has charts; its `script` is `SCRIPT`."""
    return {"charts": [chart.plotly() for chart in charts]}


def figures(charts: Sequence[Chart]) -> dict[str, Callable[[Path], None]]:
    """`figures` of a section that has charts."""
    return {chart.name: chart.draw for chart in charts}

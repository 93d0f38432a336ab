"""Contexts: integer functions of what both ends already hold, which choose the probability table of each symbol.

No floats anywhere: a probability computed at run time in floating point differs between machines and corrupts the
stream. All functions take leading batch axes, so that counting tables over thousands of images uses the coder's own
code.

`none`: one bucket; a channel has one table.

`checkerboard`: a layer is coded in two passes over its cells (i, j), first i + j even, then odd. Three whole numbers
choose the bucket:
    past  sum of |symbol| over all channels of earlier layers, at the cell (twice) and at its 4 neighbours
    lean  sum of the symbols of the 4 neighbours in the same channel, with sign: where smooth channels go
    near  sum of |symbol| of the same neighbours: how busy sparse channels are
Each is compared with shipped edges. Neighbours are known in the second pass only. Bucket = past bucket x 16 + (0 in the
first pass; 1 + lean bucket x 3 + near bucket in the second).

A new context is a subclass of `Context` with its name in `CONTEXTS`: tables are counted and images coded with it at
once, by the readable coder. native/coder.c alone makes it fast: a case for its number (`Context.native`) in
`tw_buckets`, `tw_edge_widths` and `find_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from thinwire.errors import BadTables


@dataclass(frozen=True, eq=False)
class Edges:
    """Bucket edges, counted offline: past int32 (L, P) of each layer, lean (C, Q) and near (C, R) of each channel.

    A value's bucket is the number of edges that it reaches. `Context.edge_widths` gives P, Q and R.
    """

    past: np.ndarray
    lean: np.ndarray
    near: np.ndarray


class Context:
    """`none`, and what other contexts override.

    buckets      K, the buckets of a channel
    edge_widths  columns of `Edges.past`, `.lean` and `.near`
    native       number under which native/coder.c knows it; None: only the readable coder does
    """

    buckets: ClassVar[int] = 1
    edge_widths: ClassVar[tuple[int, int, int]] = (0, 0, 0)
    native: ClassVar[int | None] = 0

    def passes(self, height: int, width: int) -> list[np.ndarray]:
        """Flat indices (row-major, intp) of each pass's cells in coding order; passes without cells are left out."""
        return [np.arange(height * width)]

    def layer_buckets(
        self, layer: np.ndarray, earlier: np.ndarray, edges: Edges, index: int, span: tuple[int, int], number: int
    ) -> np.ndarray:
        """The bucket of each symbol of a layer as pass `number` sees it: int16, broadcasts to (..., c, h, w).

        layer: int32 (..., c, h, w), right in the cells of earlier passes; earlier: int32 (..., h, w), the sum of
        |symbol| over all channels of earlier layers; index: the layer's; span: its channels (start, stop).
        """
        return np.zeros((1, 1, 1), np.int16)

    def fit_edges(self, symbols: np.ndarray, layers: Sequence[tuple[int, int]]) -> Edges:
        """Edges for int32 symbols (N, C, h, w)."""
        return Edges(*(np.zeros(shape, np.int32) for shape in self.edge_shapes(len(layers), symbols.shape[1])))

    def edge_shapes(self, layers: int, channels: int) -> tuple[tuple[int, int], ...]:
        """The shapes of `Edges.past`, `.lean` and `.near`."""
        past, lean, near = self.edge_widths
        return (layers, past), (channels, lean), (channels, near)


class Checkerboard(Context):
    """Two passes; busy places and what the neighbours hold choose the table."""

    edge_widths = (3, 4, 2)
    buckets = 4 * (1 + 5 * 3)
    native = 1

    def passes(self, height: int, width: int) -> list[np.ndarray]:
        parity = np.add.outer(np.arange(height), np.arange(width)).ravel() % 2
        return [cells for cells in (np.flatnonzero(parity == 0), np.flatnonzero(parity == 1)) if len(cells)]

    def layer_buckets(
        self, layer: np.ndarray, earlier: np.ndarray, edges: Edges, index: int, span: tuple[int, int], number: int
    ) -> np.ndarray:
        past = past_bucket(earlier, edges.past[index])[..., None, :, :]  # one for all channels
        if number == 0:
            return past
        start, stop = span
        return past + neighbour_bucket(layer, edges.lean[start:stop], edges.near[start:stop])

    def fit_edges(self, symbols: np.ndarray, layers: Sequence[tuple[int, int]]) -> Edges:
        """At quantiles, over at most some 500 of the images."""
        sample = symbols[:: max(1, len(symbols) // 500)]
        past = [
            _rising(_quantiles(past_magnitude(earlier), [0.25, 0.5, 0.75]), 1)
            for _, _, earlier in walk_layers(sample, layers)
        ]
        lean, near = [], []
        for channel in range(symbols.shape[1]):
            q = _quantiles(around(sample[:, channel]), [0.2, 0.4, 0.6, 0.8])
            lean.append([min(q[0], q[1] - 1), *_rising(q[1:], q[1])])  # for a sparse channel: -1, 0, 1, 2
            near.append(_rising(_quantiles(around(np.abs(sample[:, channel])), [0.33, 0.67]), 1))
        return Edges(np.array(past, np.int32), np.array(lean, np.int32), np.array(near, np.int32))


CONTEXTS: dict[str, Context] = {"none": Context(), "checkerboard": Checkerboard()}


def find_context(name: str) -> Context:
    """The context of that name. Raises `BadTables` for an unknown one."""
    try:
        return CONTEXTS[name]
    except KeyError:
        raise BadTables(f"context {name!r} is unknown; this release knows {', '.join(CONTEXTS)}") from None


def walk_layers(symbols: np.ndarray, layers: Sequence[tuple[int, int]]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(index, layer (..., c, h, w), sum of |symbol| of earlier layers int32 (..., h, w)) of int32 (..., C, h, w).

    Layers are views of `symbols`: what is decoded into one before the next is asked for counts as earlier.
    """
    earlier = np.zeros((*symbols.shape[:-3], *symbols.shape[-2:]), np.int32)
    for index, (start, stop) in enumerate(layers):
        layer = symbols[..., start:stop, :, :]
        yield index, layer, earlier
        if index + 1 < len(layers):
            earlier = earlier + np.abs(layer).sum(-3, dtype=np.int32)


def past_magnitude(earlier: np.ndarray) -> np.ndarray:
    """int32 (..., h, w), the sum of |symbol| over earlier layers' channels → int32 (..., h, w), neighbours included."""
    return 2 * earlier + around(earlier)


def around(values: np.ndarray) -> np.ndarray:
    """Sum of the 4 neighbours of each cell of int (..., h, w); outside counts as 0."""
    total = np.zeros_like(values)
    total[..., 1:, :] += values[..., :-1, :]
    total[..., :-1, :] += values[..., 1:, :]
    total[..., :, 1:] += values[..., :, :-1]
    total[..., :, :-1] += values[..., :, 1:]
    return total


def digitise(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many of `edges` (..., n), broadcast against `values` with a last axis added, each value reaches: int16."""
    bucket = np.zeros(values.shape, np.int16)
    for index in range(edges.shape[-1]):
        bucket += values >= edges[..., index]
    return bucket


def past_bucket(earlier: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """First-pass buckets int16 (..., h, w) of a layer: earlier int32 (..., h, w) as in `past_magnitude`, edges (3,)."""
    return digitise(past_magnitude(earlier), edges) * np.int16(16)


def neighbour_bucket(layer: np.ndarray, lean: np.ndarray, near: np.ndarray) -> np.ndarray:
    """What the second pass adds: layer int32 (..., c, h, w), right in its even cells, edges (c, 4), (c, 2) → int16."""
    leaning, busy = around(np.stack((layer, np.abs(layer))))
    bucket = digitise(leaning, lean[:, None, None, :]) * np.int16(3)
    return bucket + digitise(busy, near[:, None, None, :]) + np.int16(1)


def _quantiles(values: np.ndarray, shares: list[float]) -> list[int]:
    return [int(np.ceil(value)) for value in np.quantile(values, shares)]


def _rising(edges: list[int], least: int) -> list[int]:
    """The edges, raised where needed so that they start at `least` and rise strictly: no bucket is empty by rule."""
    out: list[int] = []
    for edge in edges:
        out.append(max(edge, out[-1] + 1 if out else least))
    return out

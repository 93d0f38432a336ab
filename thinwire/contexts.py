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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thinwire.errors import BadTables

CONTEXTS = ("none", "checkerboard")
PAST_BUCKETS = 4
LEAN_BUCKETS = 5
NEAR_BUCKETS = 3
_STRIDE = 1 + LEAN_BUCKETS * NEAR_BUCKETS


def bucket_count(context: str) -> int:
    """K, the buckets of a channel. Raises `BadTables` for an unknown context."""
    if context not in CONTEXTS:
        raise BadTables(f"context {context!r} is unknown; this release knows {', '.join(CONTEXTS)}")
    return 1 if context == "none" else PAST_BUCKETS * _STRIDE


def pass_cells(context: str, height: int, width: int) -> list[np.ndarray]:
    """Flat indices (row-major, intp) of the cells of each pass, in coding order; passes without cells are left out."""
    parity = np.add.outer(np.arange(height), np.arange(width)).ravel() % 2
    if context == "none":
        return [np.arange(height * width)]
    return [cells for cells in (np.flatnonzero(parity == 0), np.flatnonzero(parity == 1)) if len(cells)]


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


@dataclass(frozen=True, eq=False)
class Edges:
    """Bucket edges, counted offline: past int32 (L, 3) of each layer, lean (C, 4) and near (C, 2) of each channel.

    A value's bucket is the number of edges that it reaches. Without contexts the matrices have no columns.
    """

    past: np.ndarray
    lean: np.ndarray
    near: np.ndarray


def past_bucket(earlier: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """First-pass buckets int16 (..., h, w) of a layer: earlier int32 (..., h, w) as in `past_magnitude`, edges (3,)."""
    return digitise(past_magnitude(earlier), edges) * np.int16(_STRIDE)


def neighbour_bucket(layer: np.ndarray, lean: np.ndarray, near: np.ndarray) -> np.ndarray:
    """What the second pass adds: layer int32 (..., c, h, w), right in its even cells, edges (c, 4), (c, 2) → int16."""
    leaning, busy = around(np.stack((layer, np.abs(layer))))
    bucket = digitise(leaning, lean[:, None, None, :]) * np.int16(NEAR_BUCKETS)
    return bucket + digitise(busy, near[:, None, None, :]) + np.int16(1)


def edge_shapes(context: str, layers: int, channels: int) -> tuple[tuple[int, int], ...]:
    """The shapes of `Edges.past`, `.lean` and `.near` under a context."""
    if context == "none":
        return (layers, 0), (channels, 0), (channels, 0)
    return (layers, PAST_BUCKETS - 1), (channels, LEAN_BUCKETS - 1), (channels, NEAR_BUCKETS - 1)


def fit_edges(symbols: np.ndarray, layers: Sequence[tuple[int, int]], context: str) -> Edges:
    """Edges at quantiles of int32 symbols (N, C, h, w), over at most some 500 of the images."""
    channels = symbols.shape[1]
    if context == "none":
        return Edges(*(np.zeros(shape, np.int32) for shape in edge_shapes(context, len(layers), channels)))
    sample = symbols[:: max(1, len(symbols) // 500)]
    earlier = np.zeros((len(sample), *sample.shape[2:]), np.int32)
    past = []
    for start, stop in layers:
        past.append(_rising(_quantiles(past_magnitude(earlier), [0.25, 0.5, 0.75]), 1))
        earlier += np.abs(sample[:, start:stop]).sum(1, dtype=np.int32)
    lean, near = [], []
    for channel in range(channels):
        q = _quantiles(around(sample[:, channel]), [0.2, 0.4, 0.6, 0.8])
        lean.append([min(q[0], q[1] - 1), *_rising(q[1:], q[1])])  # for a sparse channel: -1, 0, 1, 2
        near.append(_rising(_quantiles(around(np.abs(sample[:, channel])), [0.33, 0.67]), 1))
    return Edges(np.array(past, np.int32), np.array(lean, np.int32), np.array(near, np.int32))


def _quantiles(values: np.ndarray, shares: list[float]) -> list[int]:
    return [int(np.ceil(value)) for value in np.quantile(values, shares)]


def _rising(edges: list[int], least: int) -> list[int]:
    """The edges, raised where needed so that they start at `least` and rise strictly: no bucket is empty by rule."""
    out: list[int] = []
    for edge in edges:
        out.append(max(edge, out[-1] + 1 if out else least))
    return out

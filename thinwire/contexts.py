"""Contexts: integer functions of what both ends already hold, which choose the probability table of each symbol.

No floats anywhere: a probability computed at run time in floating point differs between machines and corrupts the stream.
All functions take leading batch axes, so that counting tables over thousands of images uses the coder's own code.

`none`         one bucket: a channel has one table.
`checkerboard` a layer is coded in two passes over its cells (i, j): i + j even, then odd. Two magnitudes choose the bucket:
               past = sum of |symbol| over all channels of earlier layers, at the cell (twice) and its 4 neighbours;
               near = sum of |symbol| over the 4 neighbours in the same channel (second pass only: they are then known).
               Bucket = past bucket x (near buckets + 1) + (0 in the first pass, 1 + near bucket in the second).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thinwire.errors import BadTables

CONTEXTS = ("none", "checkerboard")
PAST_BUCKETS = 4
NEAR_BUCKETS = 5


def bucket_count(context: str) -> int:
    """K, the buckets of a channel. Raises `BadTables` for an unknown context."""
    if context not in CONTEXTS:
        raise BadTables(f"context {context!r} is unknown; this release knows {', '.join(CONTEXTS)}")
    return 1 if context == "none" else PAST_BUCKETS * (1 + NEAR_BUCKETS)


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


def past_base(earlier: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """First-pass buckets int16 (..., h, w) of a layer: earlier int32 (..., h, w) as in `past_magnitude`, edges (3,)."""
    return digitise(past_magnitude(earlier), edges) * np.int16(1 + NEAR_BUCKETS)


def near_bucket(layer: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """What the second pass adds: layer int32 (..., c, h, w), right in its even cells, edges (c, 4) → int16, 1..5."""
    return digitise(around(np.abs(layer)), edges[:, None, None, :]) + np.int16(1)


def fit_edges(
    symbols: np.ndarray, layers: Sequence[tuple[int, int]], context: str
) -> tuple[np.ndarray, np.ndarray]:
    """Bucket edges of int32 symbols (N, C, h, w): past (L, 3) and near (C, 4) int32, at quantiles of the magnitudes.

    For `none` both have no columns. Edges are whole numbers, counted offline and shipped with the tables.
    """
    channels = symbols.shape[1]
    if context == "none":
        return np.zeros((len(layers), 0), np.int32), np.zeros((channels, 0), np.int32)
    sample = symbols[:: max(1, len(symbols) // 500)]
    earlier = np.zeros((len(sample), *sample.shape[2:]), np.int32)
    past = []
    for start, stop in layers:
        past.append(_spread(past_magnitude(earlier), [0.25, 0.5, 0.8]))
        earlier += np.abs(sample[:, start:stop]).sum(1, dtype=np.int32)
    near = [_spread(around(np.abs(sample[:, channel])), [0.3, 0.55, 0.75, 0.92]) for channel in range(channels)]
    return np.array(past, np.int32), np.array(near, np.int32)


def _spread(values: np.ndarray, quantiles: list[float]) -> list[int]:
    """Strictly rising edges, at least 1, nearest to the quantiles."""
    edges: list[int] = []
    for value in np.quantile(values, quantiles):
        edges.append(max(int(np.ceil(value)), edges[-1] + 1 if edges else 1))
    return edges

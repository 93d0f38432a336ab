"""Integer probability tables: counted offline over training symbols, shipped with the model, equal on both ends."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thinwire import contexts
from thinwire.errors import BadTables, SymbolError

PRECISION = 24
"""Bits of a probability in fixed point."""
TOTAL = 1 << PRECISION

MAX_TABLES = 1024
MAX_ALPHABET = 1 << 16
MAX_CHANNELS = 4096
_EDGES = ("past", "lean", "near")


@dataclass(frozen=True, eq=False)
class Tables:
    """Probabilities of symbols, as integers.

    freqs      uint32 (T, A)  each row sums to exactly 2**24 and has no zero; column a is symbol low + a
    table_of   uint16 (C, K)  the row that codes a channel in a context bucket
    low        int            the smallest symbol
    edges      contexts.Edges the context's bucket edges

    Guarantees: an existing object obeys all of the above. Construction raises `BadTables` otherwise.
    """

    freqs: np.ndarray
    table_of: np.ndarray
    low: int
    edges: contexts.Edges

    def __post_init__(self) -> None:
        matrices = {"freqs": (self.freqs, np.uint32), "table_of": (self.table_of, np.uint16)}
        matrices |= {f"{name}_edges": (getattr(self.edges, name), np.int32) for name in _EDGES}
        for name, (array, kind) in matrices.items():
            if array.ndim != 2 or array.dtype != kind:
                raise BadTables(f"tables: {name} must be a matrix of {kind.__name__}, is {array.dtype} {array.shape}")
        rows, alphabet = self.freqs.shape
        if not (1 <= rows <= MAX_TABLES and 2 <= alphabet <= MAX_ALPHABET):
            allowed = f"1..{MAX_TABLES} of 2..{MAX_ALPHABET}"
            raise BadTables(f"tables: {rows} rows of {alphabet} symbols, allowed are {allowed}")
        if not 1 <= len(self.table_of) <= MAX_CHANNELS or self.table_of.shape[1] < 1:
            raise BadTables(f"tables: table_of has shape {self.table_of.shape}, allowed are 1..{MAX_CHANNELS} channels")
        if not (self.freqs > 0).all() or not (self.freqs.sum(1, dtype=np.uint64) == TOTAL).all():
            raise BadTables(f"tables: every row must be positive and sum to {TOTAL}")
        if int(self.table_of.max()) >= rows:
            raise BadTables(f"tables: table_of names row {int(self.table_of.max())} of {rows}")
        if not -(1 << 20) <= self.low <= 1 << 20:
            raise BadTables(f"tables: the smallest symbol {self.low} is out of range")

    @property
    def high(self) -> int:
        """The largest symbol."""
        return self.low + self.freqs.shape[1] - 1

    @property
    def bits(self) -> np.ndarray:
        """float64 (T, A): what each symbol costs, -log2 of its probability."""
        return PRECISION - np.log2(self.freqs.astype(np.float64))

    def to_bytes(self) -> bytes:
        """The `tables.npz` file."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            freqs=self.freqs,
            table_of=self.table_of,
            low=np.int32(self.low),
            **{f"{name}_edges": getattr(self.edges, name) for name in _EDGES},
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Tables:
        """Reads `tables.npz`. Raises `BadTables` when it is not one."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                freqs, table_of, low = arrays["freqs"], arrays["table_of"], int(arrays["low"])
                edges = contexts.Edges(*(arrays[f"{name}_edges"] for name in _EDGES))
        except (ValueError, TypeError, KeyError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise BadTables(f"tables.npz cannot be read: {error}") from error
        return cls(freqs, table_of, low, edges)


def count_tables(
    symbols: np.ndarray,
    layers: Sequence[tuple[int, int]],
    context: str = "none",
    low: int | None = None,
    high: int | None = None,
    max_tables: int = 48,
) -> Tables:
    """Counts tables over training symbols int (N, C, h, w).

    layers: channel spans (start, stop) in sending order; context: see `contexts`; low, high: the symbol range (default:
    that of `symbols`; symbols beyond are counted as clipped); max_tables: histograms of channels and buckets are shared
    until so many are left, because each table used costs the readable coder one call per pass.
    Raises `SymbolError` for symbols of another shape, `BadTables` for an unknown context or an empty range.
    """
    if symbols.ndim != 4 or symbols.size == 0 or symbols.dtype.kind not in "iu":
        raise SymbolError(f"tables are counted over integers (N, C, h, w), got {symbols.dtype} {symbols.shape}")
    low = int(symbols.min()) if low is None else low
    high = max(int(symbols.max()), low + 1) if high is None else high
    channels, alphabet = symbols.shape[1], high - low + 1
    if alphabet < 2 or not 1 <= max_tables <= MAX_TABLES:
        raise BadTables(f"symbols {low}..{high} and {max_tables} tables: need two symbols and 1..{MAX_TABLES} tables")
    rule = contexts.find_context(context)
    k = rule.buckets
    edges = rule.fit_edges(np.clip(symbols, low, high).astype(np.int32), layers)
    counts = np.zeros(channels * k * alphabet, np.int64)
    for first in range(0, len(symbols), 64):
        chunk = np.clip(symbols[first : first + 64], low, high).astype(np.int32)
        bucket = _buckets(chunk, layers, rule, edges)
        row = np.arange(channels)[:, None, None] * k + bucket  # (n, C, h, w)
        counts += np.bincount((row * alphabet + (chunk - low)).ravel(), minlength=len(counts))
    freqs, table_of = share(counts.reshape(channels, k, alphabet), max_tables)
    return Tables(freqs, table_of, low, edges)


def _buckets(
    symbols: np.ndarray, layers: Sequence[tuple[int, int]], context: contexts.Context, edges: contexts.Edges
) -> np.ndarray:
    """The context bucket in which each symbol of int32 (N, C, h, w) is coded: intp, same shape."""
    count, channels, height, width = symbols.shape
    bucket = np.zeros((count, channels, height * width), np.intp)
    passes = context.passes(height, width)
    for index, layer, earlier in contexts.walk_layers(symbols, layers):
        start, stop = layers[index]
        for number, cells in enumerate(passes):
            seen = context.layer_buckets(layer, earlier, edges, index, (start, stop), number)
            seen = np.broadcast_to(seen, layer.shape).reshape(count, stop - start, -1)
            bucket[:, start:stop, cells] = seen[..., cells]
    return bucket.reshape(symbols.shape)


def share(counts: np.ndarray, max_tables: int) -> tuple[np.ndarray, np.ndarray]:
    """Histograms int (C, K, A) → freqs uint32 (T, A), table_of uint16 (C, K) with T <= max_tables.

    k-means under the coding cost (Bregman clustering with the Kullback-Leibler divergence, Banerjee et al. 2005), which
    minimises the bits lost to sharing. A bucket seen rarely leans on its channel's histogram. Deterministic.
    """
    channels, k, alphabet = counts.shape
    channel = counts.sum(1, keepdims=True) + 1e-3  # (C, 1, A)
    smooth = (counts + 4 * channel / channel.sum(2, keepdims=True)).reshape(channels * k, alphabet)
    weight = smooth.sum(1)
    entropy = -(smooth * np.log2(smooth)).sum(1) / weight + np.log2(weight)
    if len(smooth) <= max_tables:
        index = np.arange(len(smooth))
    else:
        index = _start(smooth, entropy * weight, max_tables)
        for _ in range(60):
            used, index = np.unique(index, return_inverse=True)
            cost = _cost(smooth, _with_tails(_sums(smooth, index, len(used))))  # (C*K, T) bits
            nearest = cost.argmin(1)
            # An unused table goes to the row that loses most by sharing
            loss = cost[np.arange(len(cost)), nearest] - entropy * weight
            for spare, row in zip(range(len(used), max_tables), np.argsort(-loss, kind="stable"), strict=False):
                nearest[row] = spare
            if (nearest == index).all():
                break
            index = nearest
    used, index = np.unique(index, return_inverse=True)
    centres = _with_tails(_sums(smooth, index, len(used)))
    return quantise(centres), index.reshape(channels, k).astype(np.uint16)


def _start(rows: np.ndarray, own_bits: np.ndarray, count: int) -> np.ndarray:
    """First assignment: the row that the tables so far serve worst becomes the next table, until there are `count`."""
    best = _cost(rows, rows.sum(0, keepdims=True))[:, 0]
    index = np.zeros(len(rows), np.intp)
    for table in range(1, count):
        cost = _cost(rows, _with_tails(rows[(best - own_bits).argmax()][None]))[:, 0]
        index[cost < best] = table
        best = np.minimum(best, cost)
    return index


def _cost(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Bits (M, T) of coding histograms (M, A) with the distributions of histograms (T, A)."""
    return rows @ -np.log2(centres / centres.sum(1, keepdims=True)).T


def quantise(weights: np.ndarray) -> np.ndarray:
    """Positive weights (T, A) → uint32 rows that sum to exactly 2**24, each entry at least 1."""
    alphabet = weights.shape[1]
    freqs = 1 + np.floor(weights / weights.sum(1, keepdims=True) * (TOTAL - alphabet)).astype(np.int64)
    # What rounding left over (less than one for each symbol) goes where it changes probabilities least
    freqs[np.arange(len(freqs)), freqs.argmax(1)] += TOTAL - freqs.sum(1)
    return freqs.astype(np.uint32)


def _sums(rows: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    total = np.zeros((count, rows.shape[1]))
    np.add.at(total, index, rows)
    return total


def _with_tails(hists: np.ndarray) -> np.ndarray:
    """Histograms (T, A) plus a little of a two-sided geometric of the same spread, and a trace of uniform.

    So that symbols which training never saw cost what their distance suggests, and none costs more than about 20 bits.
    """
    positions = np.arange(hists.shape[1])
    distance = np.abs(positions - hists.argmax(1)[:, None])
    spread = np.maximum((hists * distance).sum(1, keepdims=True) / hists.sum(1, keepdims=True), 1e-3)
    ratio = (np.sqrt(1 + spread**2) - 1) / spread  # of successive probabilities, for a mean distance of `spread`
    geometric = ratio**distance
    return hists + 4 * geometric / geometric.sum(1, keepdims=True) + 0.25 / hists.shape[1]

"""Symbols ↔ layer payloads, by the range coder of WIRE.md and the model's integer tables.

Each layer is one range-coded message of its own. Two forms give the same bytes:

compiled  native/coder.c as `thinwire._coder`: a whole packet a call, outside Python's lock
readable  contexts in NumPy, the coder in plain Python (range_coder.py): where the former is missing

`THINWIRE_CODER=python` takes the readable form, `THINWIRE_CODER=native` insists on the compiled one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType

import numpy as np

from thinwire import contexts
from thinwire.errors import BadPayload, BadTables, MalformedPacket, SymbolError
from thinwire.range_coder import RangeDecoder, RangeEncoder, UnreadablePayload
from thinwire.tables import Tables

MAX_SYMBOLS = 1 << 22
"""Largest latent; larger ones would let a small packet ask for much work."""

UNREADABLE = "layer {} holds bytes that its model's tables cannot read"
NOT_CANONICAL = "layer {} holds bytes that no encoder writes: it was altered or cut"


class SymbolCoder:
    """Codes the symbols of one image, layer by layer.

    Guarantees: `decode(encode(s, n))` is the first n layers of `s` and zeros for the others, on every machine. A
    payload decodes only if it is exactly what `encode` writes for the symbols returned; any other raises
    `BadPayload`, in time bounded by the latent's size. Objects are immutable and may be used by several threads.
    Requirements: symbols int (C, h, w) for the shape given; values outside [low, high] are clipped before coding.
    """

    exact = True  # what `decode` gives is what `encode` took

    def __init__(
        self,
        tables: Tables,
        shape: tuple[int, int, int],
        layers: Sequence[tuple[int, int]],
        context: str = "none",
        compiled: bool = True,
    ) -> None:
        """shape: (C, h, w); layers: channel spans (start, stop) that cover 0..C in order; compiled: use the compiled
        form where there is one. Raises `BadTables`.
        """
        rule = contexts.find_context(context)
        channels, height, width = shape
        if min(shape) < 1 or channels * height * width > MAX_SYMBOLS:
            raise BadTables(f"a latent of {shape} is empty or has more than {MAX_SYMBOLS} symbols")
        if [start for start, _ in layers] + [channels] != [0] + [stop for _, stop in layers]:
            raise BadTables(f"layers {list(layers)} do not cover {channels} channels in order")
        if any(start >= stop for start, stop in layers):
            raise BadTables(f"layers {list(layers)} hold an empty one")
        if tables.table_of.shape != (channels, rule.buckets):
            expected = channels, rule.buckets
            raise BadTables(f"tables are for {tables.table_of.shape} channels x buckets, not {expected}")
        edges = (tables.edges.past.shape, tables.edges.lean.shape, tables.edges.near.shape)
        if edges != rule.edge_shapes(len(layers), channels):
            raise BadTables(
                f"tables have bucket edges of another context or layer count than {context!r}, {len(layers)}"
            )
        self.tables = tables
        self.low, self.high = int(tables.low), int(tables.high)
        self.shape = (channels, height, width)
        self.layers = tuple((start, stop) for start, stop in layers)
        self.context = context
        self._rule = rule
        self._passes = rule.passes(height, width)
        self._compiled = _compile(self, rule) if compiled else None
        self._cums = _cums(tables) if self._compiled is None else []

    @property
    def form(self) -> str:
        """ "compiled" or "readable": which of the two forms codes."""
        return "readable" if self._compiled is None else "compiled"

    def encode(self, symbols: np.ndarray, n_layers: int | None = None) -> list[bytes]:
        """int (C, h, w) → the payloads of the first `n_layers` layers (default: all).

        Raises `SymbolError` for another shape or type, or an impossible number of layers.
        """
        symbols, count = self._checked(symbols, n_layers)
        if self._compiled is not None:
            return self._compiled.encode(symbols, count)
        payloads = []
        for runs, layer in self._walk(symbols, count):
            encoder = RangeEncoder()
            flat = layer.reshape(-1)
            for row, positions in runs:
                encoder.encode((flat[positions] - self.tables.low).tolist(), self._cums[row])
            payloads.append(encoder.finish())
        return payloads

    def decode(self, payloads: Sequence[bytes]) -> np.ndarray:
        """Payloads of the first layers → int32 (C, h, w), zeros in the channels of absent layers.

        Raises `BadPayload` for bytes that `encode` does not write, `MalformedPacket` for too many or no layers.
        """
        if not 1 <= len(payloads) <= len(self.layers):
            raise MalformedPacket(f"the packet has {len(payloads)} layers, its model has 1 to {len(self.layers)}")
        payloads = tuple(map(bytes, payloads))
        if self._compiled is not None:
            symbols = np.empty(self.shape, np.int32)
            status, layer = self._compiled.decode(payloads, symbols)
            if status != 0:
                raise BadPayload((UNREADABLE if status == 1 else NOT_CANONICAL).format(layer + 1))
            return symbols
        symbols = np.zeros(self.shape, np.int32)
        for number, (payload, (runs, layer)) in enumerate(zip(payloads, self._walk(symbols, len(payloads))), 1):
            decoder = RangeDecoder(payload)
            flat = layer.reshape(-1)
            try:
                for row, positions in runs:
                    columns = decoder.decode(len(positions), self._cums[row])
                    flat[positions] = np.array(columns, np.int32) + self.tables.low
            except UnreadablePayload:
                raise BadPayload(UNREADABLE.format(number)) from None
            if not decoder.is_canonical():
                raise BadPayload(NOT_CANONICAL.format(number))
        return symbols

    def level(self, payloads: Sequence[bytes]) -> int:
        """Which rate these payloads are of, as the decoder network is told: their number."""
        return len(payloads)

    def ideal_bits(self, symbols: np.ndarray) -> list[float]:
        """What a perfect coder would spend on int (C, h, w): cross-entropy under the tables, bits for each layer."""
        symbols, count = self._checked(symbols, None)
        symbols = np.clip(symbols, self.tables.low, self.tables.high)
        bits = self.tables.bits
        return [
            sum(float(bits[row][layer.reshape(-1)[positions] - self.tables.low].sum()) for row, positions in runs)
            for runs, layer in self._walk(symbols, count)
        ]

    def _checked(self, symbols: np.ndarray, n_layers: int | None) -> tuple[np.ndarray, int]:
        if symbols.shape != self.shape or symbols.dtype.kind not in "iu":
            raise SymbolError(f"symbols must be integers {self.shape}, got {symbols.dtype} {symbols.shape}")
        count = len(self.layers) if n_layers is None else n_layers
        if not 1 <= count <= len(self.layers):
            raise SymbolError(f"{count} layers were asked for, the model has 1 to {len(self.layers)}")
        if self._compiled is None or symbols.dtype != np.int32:  # the compiled form clips int32 itself
            symbols = np.clip(symbols, self.tables.low, self.tables.high)
        return np.ascontiguousarray(symbols, np.int32), count

    def _walk(self, symbols: np.ndarray, count: int) -> Iterator[tuple[Iterator[_Run], np.ndarray]]:
        """(runs in coding order, layer int32 (c, h, w)) of the first layers; a decoder fills each run's symbols."""
        for index, layer, earlier in contexts.walk_layers(symbols, self.layers[:count]):
            yield self._runs(index, layer, earlier), layer

    def _runs(self, index: int, layer: np.ndarray, earlier: np.ndarray) -> Iterator[_Run]:
        """Within a pass by rising table row; within a row by channel, then by cell."""
        start, stop = self.layers[index]
        channels = np.arange(stop - start)[:, None]
        for number, cells in enumerate(self._passes):
            bucket = self._rule.layer_buckets(layer, earlier, self.tables.edges, index, (start, stop), number)
            bucket = np.broadcast_to(bucket, layer.shape).reshape(stop - start, -1)[:, cells]
            rows = self.tables.table_of[start:stop][channels, bucket].ravel()
            positions = (channels * layer[0].size + cells).ravel()[np.argsort(rows, kind="stable")]
            used, sizes = np.unique(rows, return_counts=True)
            yield from zip(used.tolist(), np.split(positions, np.cumsum(sizes)[:-1]), strict=True)


_Run = tuple[int, np.ndarray]
"""(table row, flat positions in the layer) of symbols that one row codes."""


def _cums(tables: Tables) -> list[list[int]]:
    """Of each table row, the sums of frequencies before each column, and 2**24: (T, A + 1)."""
    return [[0, *row] for row in np.cumsum(tables.freqs, 1, dtype=np.int64).tolist()]


def _compile(coder: SymbolCoder, rule: contexts.Context) -> object | None:
    """The compiled form of a coder, or None where there is none."""
    module = compiled_module() if rule.native is not None else None
    if module is None:
        return None
    tables, edges = coder.tables, coder.tables.edges
    bounds = np.array([0, *(stop for _, stop in coder.layers)], np.int32)
    arrays = (edges.past, edges.lean, edges.near)
    try:
        return module.Coder(
            rule.native,
            coder.shape,
            bounds,
            np.ascontiguousarray(tables.freqs),
            tables.freqs.shape,
            np.ascontiguousarray(tables.table_of),
            tables.low,
            *map(np.ascontiguousarray, arrays),
        )
    except ValueError as error:  # a rule that SymbolCoder and Tables check too
        raise BadTables(f"the compiled coder refuses the tables: {error}") from error


@cache
def compiled_module() -> ModuleType | None:
    """`thinwire._coder`; None, and a warning once, where it is missing. THINWIRE_CODER=native: raises `ImportError`."""
    wish = os.environ.get("THINWIRE_CODER", "")
    if wish == "python":
        return None
    try:
        from thinwire import _coder
    except ImportError as error:
        if wish == "native":
            raise
        warnings.warn(
            f"thinwire's compiled coder is missing ({error}): packets are coded in plain Python, to the same bytes but "
            "more slowly; stills are sent larger than need be, and packed ones cannot be read. A wheel for this system "
            "has it. With a C compiler and Python's headers pip builds it from source, and `make setup` in a clone. "
            "THINWIRE_CODER=python silences this.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return _coder

"""Symbols ↔ layer payloads, by constriction's range coder and the model's integer tables.

Each layer is one range-coded message of its own. WIRE.md specifies the coder (state, table lookup, order, sealing) so
that it can be written again elsewhere; tests/thinwire/reference_coder.py is that, in forty lines of plain integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import constriction
import numpy as np

from thinwire import contexts
from thinwire.errors import BadPayload, BadTables, MalformedPacket, SymbolError
from thinwire.tables import Tables

MAX_SYMBOLS = 1 << 22
"""Largest latent; larger ones would let a small packet ask for much work."""


class SymbolCoder:
    """Codes the symbols of one image, layer by layer.

    Guarantees: `decode(encode(s, n))` is the first n layers of `s` and zeros for the others, on every machine. A
    payload decodes only if it is exactly what `encode` writes for the symbols returned; any other raises
    `BadPayload`, in time bounded by the latent's size. Objects are immutable and may be used by several threads.
    Requirements: symbols int (C, h, w) for the shape given; values outside [low, high] are clipped before coding.

    Symbols that share a table are coded by one call: a layer costs at most (passes x tables) calls.
    """

    exact = True  # what `decode` gives is what `encode` took

    def __init__(
        self, tables: Tables, shape: tuple[int, int, int], layers: Sequence[tuple[int, int]], context: str = "none"
    ) -> None:
        """shape: (C, h, w); layers: channel spans (start, stop) that cover 0..C in order. Raises `BadTables`."""
        buckets = contexts.bucket_count(context)
        channels, height, width = shape
        if min(shape) < 1 or channels * height * width > MAX_SYMBOLS:
            raise BadTables(f"a latent of {shape} is empty or has more than {MAX_SYMBOLS} symbols")
        if [start for start, _ in layers] + [channels] != [0] + [stop for _, stop in layers]:
            raise BadTables(f"layers {list(layers)} do not cover {channels} channels in order")
        if any(start >= stop for start, stop in layers):
            raise BadTables(f"layers {list(layers)} hold an empty one")
        if tables.table_of.shape != (channels, buckets):
            raise BadTables(f"tables are for {tables.table_of.shape} channels x buckets, not {(channels, buckets)}")
        edges = (tables.edges.past.shape, tables.edges.lean.shape, tables.edges.near.shape)
        if edges != contexts.edge_shapes(context, len(layers), channels):
            raise BadTables(
                f"tables have bucket edges of another context or layer count than {context!r}, {len(layers)}"
            )
        self.tables = tables
        self.low, self.high = int(tables.low), int(tables.high)
        self.shape = (channels, height, width)
        self.layers = tuple((start, stop) for start, stop in layers)
        self.context = context
        self._models = [_exact_model(row) for row in tables.freqs]
        self._cells = contexts.pass_cells(context, height, width)
        self._flat_tables = tables.table_of.ravel()
        self._table_starts = np.arange(channels)[:, None] * buckets  # of each channel in the above
        # What does not depend on symbols, for each layer and pass: flat positions in the layer, table row per channel
        self._positions = [
            [(np.arange(stop - start)[:, None] * (height * width) + cells).ravel() for cells in self._cells]
            for start, stop in self.layers
        ]
        self._fixed = (
            [
                _plan(np.repeat(tables.table_of[start:stop, 0], height * width), positions[0])
                for (start, stop), positions in zip(self.layers, self._positions, strict=True)
            ]
            if context == "none"
            else None
        )

    def encode(self, symbols: np.ndarray, n_layers: int | None = None) -> list[bytes]:
        """int (C, h, w) → the payloads of the first `n_layers` layers (default: all).

        Raises `SymbolError` for another shape or type, or an impossible number of layers.
        """
        symbols, count = self._checked(symbols, n_layers)
        payloads = []
        for index, layer, past in self._walk(symbols, count):
            coder = constriction.stream.queue.RangeEncoder()
            flat = layer.reshape(-1)
            for number in range(len(self._cells)):
                order, runs = self._groups(index, number, layer, past)
                values = flat[order] - self.tables.low
                for row, start, stop in runs:
                    coder.encode(values[start:stop], self._models[row])
            payloads.append(_seal(coder))
        return payloads

    def decode(self, payloads: Sequence[bytes]) -> np.ndarray:
        """Payloads of the first layers → int32 (C, h, w), zeros in the channels of absent layers.

        Raises `BadPayload` for bytes that `encode` does not write, `MalformedPacket` for too many or no layers.
        """
        if not 1 <= len(payloads) <= len(self.layers):
            raise MalformedPacket(f"the packet has {len(payloads)} layers, its model has 1 to {len(self.layers)}")
        symbols, models = np.zeros(self.shape, np.int32), self._models
        for index, layer, past in self._walk(symbols, len(payloads)):
            payload = bytes(payloads[index])
            decoder = constriction.stream.queue.RangeDecoder(_words(payload))
            again = constriction.stream.queue.RangeEncoder()
            flat = layer.reshape(-1)
            try:
                for number in range(len(self._cells)):
                    order, runs = self._groups(index, number, layer, past)
                    parts = []
                    for row, start, stop in runs:
                        model = models[row]
                        part = decoder.decode(model, stop - start)
                        again.encode(part, model)
                        parts.append(part)
                    flat[order] = np.concatenate(parts) + self.tables.low
            except (AssertionError, ValueError) as error:
                raise BadPayload(f"layer {index + 1} holds bytes that its model's tables cannot read") from error
            if _seal(again) != payload:
                raise BadPayload(f"layer {index + 1} holds bytes that no encoder writes: it was altered or cut")
        return symbols

    def level(self, payloads: Sequence[bytes]) -> int:
        """Which rate these payloads are of, as the decoder network is told: their number."""
        return len(payloads)

    def ideal_bits(self, symbols: np.ndarray) -> list[float]:
        """What a perfect coder would spend on int (C, h, w): cross-entropy under the tables, bits for each layer."""
        symbols, count = self._checked(symbols, None)
        bits = self.tables.bits
        spent = [0.0] * count
        for index, layer, past in self._walk(symbols, count):
            for number in range(len(self._cells)):
                order, runs = self._groups(index, number, layer, past)
                values = layer.reshape(-1)[order] - self.tables.low
                spent[index] += sum(float(bits[row][values[start:stop]].sum()) for row, start, stop in runs)
        return spent

    def _checked(self, symbols: np.ndarray, n_layers: int | None) -> tuple[np.ndarray, int]:
        if symbols.shape != self.shape or symbols.dtype.kind not in "iu":
            raise SymbolError(f"symbols must be integers {self.shape}, got {symbols.dtype} {symbols.shape}")
        count = len(self.layers) if n_layers is None else n_layers
        if not 1 <= count <= len(self.layers):
            raise SymbolError(f"{count} layers were asked for, the model has 1 to {len(self.layers)}")
        return np.ascontiguousarray(np.clip(symbols, self.tables.low, self.tables.high), np.int32), count

    def _walk(self, symbols: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """(index, layer int32 (c, h, w), first-pass buckets int16 (h, w)) of the first layers."""
        earlier, past = np.zeros(self.shape[1:], np.int32), None
        for index, (start, stop) in enumerate(self.layers[:count]):
            layer = symbols[start:stop]
            if self.context != "none":
                past = contexts.past_bucket(earlier, self.tables.edges.past[index])
            yield index, layer, past
            if self.context != "none" and index + 1 < count:
                earlier = earlier + np.abs(layer).sum(0, dtype=np.int32)

    def _groups(self, index: int, number: int, layer: np.ndarray, past: np.ndarray | None) -> _Plan:
        """The coding order of pass `number` of a layer."""
        if self._fixed is not None:
            return self._fixed[index]
        start, stop = self.layers[index]
        cells = self._cells[number]
        bucket = past.ravel()[cells]  # (cells,)
        if number > 0:
            edges = self.tables.edges
            near = contexts.neighbour_bucket(layer, edges.lean[start:stop], edges.near[start:stop])  # (c, h, w)
            bucket = bucket + near.reshape(stop - start, -1)[:, cells]
        rows = self._flat_tables.take(self._table_starts[start:stop] + bucket)  # (c, cells)
        return _plan(rows.ravel(), self._positions[index][number])


_Plan = tuple[np.ndarray, list[tuple[int, int, int]]]
"""(flat positions in the layer in coding order, [(table row, start, stop) of each run of one table])."""


def _plan(rows: np.ndarray, positions: np.ndarray) -> _Plan:
    """Sorts positions by table row; within a row they keep their order (channel, then cell)."""
    sizes = np.bincount(rows)
    used = np.flatnonzero(sizes)
    stops = np.cumsum(sizes[used])
    runs = list(zip(used.tolist(), (stops - sizes[used]).tolist(), stops.tolist(), strict=True))
    return positions[np.argsort(rows, kind="stable")], runs


def _exact_model(freqs: np.ndarray) -> constriction.stream.model.Categorical:
    """constriction's table with exactly the integer probabilities freqs / 2**24.

    constriction scales floats so that they fill 2**24 - A and then adds 1 to each. Given freqs - 1, which already sum
    to 2**24 - A and are whole, its scale is exactly 1 and every product and partial sum is a whole number below
    2**53: exact in IEEE double precision, therefore the same on every machine.
    """
    return constriction.stream.model.Categorical(freqs.astype(np.float64) - 1, perfect=False)


def _seal(coder: constriction.stream.queue.RangeEncoder) -> bytes:
    """The coder's message as the fewest bytes that decode when zeros follow without end.

    constriction ends a message with a 32-bit word that keeps it decodable whatever follows. Only zeros can follow here,
    so any number of the final interval will do: the smallest of those with most trailing zero bytes is taken, and its
    zeros are cut.
    """
    words = coder.get_compressed()
    if len(words) == 0:  # nothing was coded
        return b""
    _, (lower, size) = coder.pos()
    seal = lower + 0xFFFFFFFF  # constriction's choice; it writes the top word, and a zero word where that is ambiguous
    sealed_with = 2 if (lower + size & _WORDS_64) >> 32 == (seal & _WORDS_64) >> 32 else 1
    settled = int.from_bytes(words[:-sealed_with].astype(">u4").tobytes(), "big")
    settled -= seal >> 64  # its choice may have carried into the words before; ours may do otherwise
    for kept in range(9):  # bytes of the last 64 bits; with 8, `lower` itself is always in the interval
        step = 1 << (64 - 8 * kept)
        point = -(-lower // step) * step  # the first multiple of `step` that is not below `lower`
        if point < lower + size:
            break
    return ((settled << 64) + point).to_bytes(4 * (len(words) - sealed_with) + 8, "big").rstrip(b"\0")


_WORDS_64 = (1 << 64) - 1


def _words(payload: bytes) -> np.ndarray:
    """Payload → the decoder's words, with the zeros that `_seal` cut off (at least the two that it reads first)."""
    return np.frombuffer(payload + bytes(-len(payload) % 4 + 8), ">u4").astype(np.uint32)

"""The range coder by constriction 0.5, which WIRE.md took over: an oracle that shares no code with ours.

    python -m tests.thinwire.constriction_coder [--latents 1000000] [--seed 0]

codes random latents under random tables with both coders, both ways, and every tenth packet mutated too; the last line
is JSON.
Contexts and order come from the specification's plain reading (`plain_order`), symbol by symbol.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence

import constriction
import numpy as np

from thinwire import contexts
from thinwire.entropy import SymbolCoder
from thinwire.errors import BadPayload
from thinwire.tables import Tables, quantise

_WORDS_64 = (1 << 64) - 1


class ConstrictionCoder:
    """`SymbolCoder.encode` and `.decode` of a coder's tables; raises `BadPayload` likewise."""

    def __init__(self, coder: SymbolCoder) -> None:
        self.coder = coder
        self.models = [exact_model(row) for row in coder.tables.freqs]

    def encode(self, symbols: np.ndarray) -> list[bytes]:
        tables = self.coder.tables
        symbols = np.clip(symbols, tables.low, tables.high)
        payloads = []
        for index in range(len(self.coder.layers)):
            encoder = constriction.stream.queue.RangeEncoder()
            for order in plain_order(self.coder, symbols, index):
                for row, where in order:
                    encoder.encode(symbols[tuple(where.T)].astype(np.int32) - tables.low, self.models[row])
            payloads.append(seal(encoder))
        return payloads

    def decode(self, payloads: Sequence[bytes]) -> np.ndarray:
        tables = self.coder.tables
        symbols = np.zeros(self.coder.shape, np.int32)
        for index, payload in enumerate(payloads):
            decoder = constriction.stream.queue.RangeDecoder(words(payload))
            again = constriction.stream.queue.RangeEncoder()
            try:
                for order in plain_order(self.coder, symbols, index):
                    for row, where in order:
                        part = decoder.decode(self.models[row], len(where))
                        again.encode(part, self.models[row])
                        symbols[tuple(where.T)] = part + tables.low
            except (AssertionError, ValueError) as error:
                raise BadPayload(f"layer {index + 1} cannot be read") from error
            if seal(again) != payload:
                raise BadPayload(f"layer {index + 1} is not what an encoder writes")
        return symbols


def plain_order(coder: SymbolCoder, symbols: np.ndarray, index: int) -> Iterator[list[tuple[int, np.ndarray]]]:
    """For each pass of a layer: [(table row, int (n, 3) places (channel, i, j))], as WIRE.md states it.

    A generator, so that a decoder has filled a pass before the next one's contexts are read.
    """
    tables, (_, height, width) = coder.tables, coder.shape
    start, stop = coder.layers[index]
    energy = np.abs(symbols[:start]).sum(0) if start else np.zeros((height, width), int)

    def near_cells(i: int, j: int) -> list[tuple[int, int]]:
        four = ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
        return [(a, b) for a, b in four if 0 <= a < height and 0 <= b < width]

    past, lean, near = tables.edges.past[index].tolist(), tables.edges.lean.tolist(), tables.edges.near.tolist()
    energy, rows = energy.tolist(), tables.table_of.tolist()
    cells = [(i, j) for i in range(height) for j in range(width)]
    if coder.context == "none":
        passes = [cells]
    else:
        passes = [part for part in ([c for c in cells if sum(c) % 2 == parity] for parity in (0, 1)) if part]
    for number, part in enumerate(passes):
        held = symbols.tolist()
        places: dict[int, list[tuple[int, int, int]]] = {}
        beside = {cell: near_cells(*cell) for cell in part} if coder.context == "checkerboard" else {}
        for channel in range(start, stop):
            for i, j in part:
                bucket = 0
                if coder.context == "checkerboard":
                    busy_before = 2 * energy[i][j] + sum(energy[a][b] for a, b in beside[i, j])
                    bucket = 16 * sum(busy_before >= edge for edge in past)
                    if number == 1:
                        values = [held[channel][a][b] for a, b in beside[i, j]]
                        bucket += 1 + 3 * sum(sum(values) >= edge for edge in lean[channel])
                        bucket += sum(sum(map(abs, values)) >= edge for edge in near[channel])
                places.setdefault(rows[channel][bucket], []).append((channel, i, j))
        yield [(row, np.array(places[row])) for row in sorted(places)]


def exact_model(freqs: np.ndarray) -> constriction.stream.model.Categorical:
    """constriction's table with exactly the integer probabilities freqs / 2**24.

    constriction scales floats so that they fill 2**24 - A and then adds 1 to each. Given freqs - 1, which already sum
    to 2**24 - A and are whole, its scale is exactly 1 and every product and partial sum is a whole number below
    2**53: exact in IEEE double precision, therefore the same on every machine.
    """
    return constriction.stream.model.Categorical(freqs.astype(np.float64) - 1, perfect=False)


def seal(encoder: constriction.stream.queue.RangeEncoder) -> bytes:
    """The encoder's message with WIRE.md's ending in place of constriction's."""
    found = encoder.get_compressed()
    if len(found) == 0:  # nothing was coded
        return b""
    _, (lower, size) = encoder.pos()
    end = lower + 0xFFFFFFFF  # constriction's choice; it writes the top word, and a zero word where that is ambiguous
    sealed_with = 2 if (lower + size & _WORDS_64) >> 32 == (end & _WORDS_64) >> 32 else 1
    settled = int.from_bytes(found[:-sealed_with].astype(">u4").tobytes(), "big")
    settled -= end >> 64  # its choice may have carried into the words before; ours may do otherwise
    for kept in range(9):
        step = 1 << (64 - 8 * kept)
        point = -(-lower // step) * step
        if point < lower + size:
            break
    return ((settled << 64) + point).to_bytes(4 * (len(found) - sealed_with) + 8, "big").rstrip(b"\0")


def words(payload: bytes) -> np.ndarray:
    """Payload → constriction's words, with the zeros that were cut off (at least the two that it reads first)."""
    return np.frombuffer(payload + bytes(-len(payload) % 4 + 8), ">u4").astype(np.uint32)


def random_coder(rng: np.random.Generator, context: str, compiled: bool = True) -> SymbolCoder:
    """Random tables, from nearly flat to nearly certain, of a small random shape."""
    rule = contexts.find_context(context)
    stops = np.cumsum(rng.integers(1, 5, rng.integers(1, 4))).tolist()
    channels, height, width = stops[-1], int(rng.integers(1, 6)), int(rng.integers(1, 6))
    rows, alphabet = int(rng.integers(1, 6)), int(rng.integers(2, 40 if rng.random() < 0.9 else 3000))
    weights = rng.gamma(10 ** rng.uniform(-2, 1), 1, (rows, alphabet)) + 1e-12
    edges = contexts.Edges(
        *(np.sort(rng.integers(-4, 9, shape), 1).astype(np.int32) for shape in rule.edge_shapes(len(stops), channels))
    )
    table_of = rng.integers(0, rows, (channels, rule.buckets)).astype(np.uint16)
    tables = Tables(quantise(weights), table_of, int(rng.integers(-30, 5)), edges)
    spans = tuple(zip([0, *stops], stops, strict=False))
    return SymbolCoder(tables, (channels, height, width), spans, context, compiled)


def random_symbols(rng: np.random.Generator, coder: SymbolCoder) -> np.ndarray:
    """int32 symbols: drawn from the first table, or evenly, so that unlikely ones come too."""
    tables = coder.tables
    if rng.random() < 0.7:
        shares = tables.freqs[rng.integers(len(tables.freqs))] / float(1 << 24)
        columns = rng.choice(len(shares), coder.shape, p=shares / shares.sum())
    else:
        columns = rng.integers(-2, tables.freqs.shape[1] + 2, coder.shape)  # some beyond the range, to be clipped
    return (columns + tables.low).astype(np.int32)


def mutated(rng: np.random.Generator, payload: bytes) -> bytes:
    data = bytearray(payload)
    kind = rng.integers(4) if data else 3
    if kind == 0:
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[rng.integers(len(data)) :]
    elif kind == 2:
        data[rng.integers(len(data))] = rng.integers(256)
    else:
        data += rng.bytes(rng.integers(1, 5))
    return bytes(data)


def compare(rng: np.random.Generator, coder: SymbolCoder, oracle: ConstrictionCoder, mutants: bool = True) -> int:
    """One latent, both ways, and a mutated packet. Returns 1 if the mutant was accepted by both, else 0.

    Raises AssertionError for any difference.
    """
    symbols = random_symbols(rng, coder)
    payloads = coder.encode(symbols)
    assert payloads == oracle.encode(symbols), "other bytes"
    clipped = np.clip(symbols, coder.tables.low, coder.tables.high)
    assert (coder.decode(payloads) == clipped).all(), "other symbols"
    assert (oracle.decode(payloads) == clipped).all(), "constriction reads other symbols"
    if not mutants:
        return 0
    place = rng.integers(len(payloads))
    damaged = [*payloads[:place], mutated(rng, payloads[place]), *payloads[place + 1 :]]
    found = []
    for each in (coder, oracle):
        try:
            found.append(each.decode(damaged))
        except BadPayload:
            found.append(None)
    assert (found[0] is None) == (found[1] is None), "one coder refuses what the other reads"
    assert found[0] is None or (found[0] == found[1]).all(), "a damaged packet is read differently"
    return int(found[0] is not None)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng, done, accepted, started = np.random.default_rng(args.seed), 0, 0, time.monotonic()
    while done < args.latents:
        coder = random_coder(rng, ("none", "checkerboard")[int(rng.random() < 0.7)])
        oracle = ConstrictionCoder(coder)
        for _ in range(min(100, args.latents - done)):
            accepted += compare(rng, coder, oracle, mutants=done % 10 == 0)
            done += 1
        if done % 10_000 == 0:
            print(f"{done} latents, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(json.dumps({"latents": done, "form": coder.form, "mutants_accepted": accepted, "differences": 0}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

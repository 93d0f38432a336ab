from __future__ import annotations

from pathlib import Path

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thinwire.reference_coder import ReferenceDecoder, ReferenceEncoder
from thinwire import contexts
from thinwire.entropy import SymbolCoder, _exact_model, _seal, _words
from thinwire.errors import BadPayload, BadTables, MalformedPacket, PacketError, SymbolError
from thinwire.tables import TOTAL, Tables, count_tables, quantise

SPANS = ((0, 3), (3, 8), (8, 12))
SHAPE = (12, 6, 5)
HOSTILE = sorted((Path(__file__).parent / "hostile").glob("BadPayload-*.bin"))


def smooth_symbols(count: int, shape=SHAPE, seed: int = 0) -> np.ndarray:
    """Symbols that resemble latents: neighbours alike, spread falling with the channel. int32 (count, C, h, w)."""
    rng = np.random.default_rng(seed)
    channels, height, width = shape
    busy = rng.gamma(2, 0.5, (count, 1, height, width))
    base = rng.normal(0, 1, (count, channels, 1, 1)) + rng.normal(0, 0.7, (count, channels, height, width))
    spread = np.geomspace(3, 0.3, channels)[:, None, None]
    return np.rint(base * busy * spread).astype(np.int32)


def make_coder(context: str, shape=SHAPE, spans=SPANS, max_tables: int = 12) -> SymbolCoder:
    tables = count_tables(smooth_symbols(200, shape), spans, context, -15, 15, max_tables)
    return SymbolCoder(tables, shape, spans, context)


CODERS = {context: make_coder(context) for context in contexts.CONTEXTS}
both = pytest.mark.parametrize("context", contexts.CONTEXTS)


def fixed_coder(context: str, height: int = 2, width: int = 3) -> SymbolCoder:
    """A coder whose tables are written out here, so that golden bytes depend on nothing that is fitted."""
    freqs = np.array(
        [[3 << 22, 1 << 21, 1 << 20, 1 << 20], [1 << 22] * 4, [1 << 23, 1 << 22, 1 << 21, 1 << 21]], np.uint32
    )
    k = contexts.bucket_count(context)
    table_of = (np.arange(3 * k).reshape(3, k) % 3).astype(np.uint16)
    shapes = contexts.edge_shapes(context, 2, 3)
    edges = [np.tile(np.arange(1, shape[1] + 1, dtype=np.int32), (shape[0], 1)) for shape in shapes]
    return SymbolCoder(
        Tables(freqs, table_of, -1, contexts.Edges(*edges)), (3, height, width), ((0, 2), (2, 3)), context
    )


GOLDEN_SYMBOLS = np.array(
    [[[0, 1, -1], [2, 0, 0]], [[-1, -1, 0], [1, 2, -1]], [[2, 1, 0], [-1, 0, 1]]], np.int32
)  # (3, 2, 3)


LONG_NONE = [
    "a6779b5460482321d1334ca3f37464789dd16a753925432691e10908fd9b313f908d624242409c8fbf89",
    "2dbab72db3d0f684bd9bb51ecfd9d31672891e96",
]
LONG_CHECKERBOARD = [
    "b04ae70b838354764f5a2063972ef7e6bcce501e3556e139d23ecc81c252015c66ea5fea3fa553fe4d471f",
    "5976fbd9e4592e2bdb664122de6affc6e7341e0d",
]


@pytest.mark.parametrize(
    ("context", "expected"), [("none", ["dd7c4288", "fa58"]), ("checkerboard", ["d25d6a", "f5d8"])]
)
def test_golden_payloads(context, expected):
    coder = fixed_coder(context)
    assert [payload.hex() for payload in coder.encode(GOLDEN_SYMBOLS)] == expected
    assert (coder.decode([bytes.fromhex(text) for text in expected]) == GOLDEN_SYMBOLS).all()


@pytest.mark.parametrize(("context", "expected"), [("none", LONG_NONE), ("checkerboard", LONG_CHECKERBOARD)])
def test_golden_payloads_of_many_words(context, expected):
    channel, row, column = np.indices((3, 8, 9))
    symbols = ((7 * row * row + 3 * column + 5 * channel * column) % 11 // 3 - 1).astype(np.int32)
    coder = fixed_coder(context, 8, 9)
    assert [payload.hex() for payload in coder.encode(symbols)] == expected
    assert (coder.decode([bytes.fromhex(text) for text in expected]) == symbols).all()


@both
@settings(deadline=None)
@given(data=st.data())
def test_round_trip_of_every_prefix(context, data):
    coder = CODERS[context]
    seed, scale = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.sampled_from([0.0, 0.2, 1.0, 5.0, 60.0]))
    symbols = np.rint(np.random.default_rng(seed).normal(0, scale, SHAPE)).astype(np.int32)
    clipped = np.clip(symbols, -15, 15)
    payloads = coder.encode(symbols)
    for count, (_, stop) in enumerate(SPANS, 1):
        assert coder.encode(symbols, count) == payloads[:count]
        decoded = coder.decode(payloads[:count])
        assert decoded.dtype == np.int32
        assert (decoded[:stop] == clipped[:stop]).all()
        assert (decoded[stop:] == 0).all()


@settings(deadline=None)
@given(data=st.data())
def test_round_trip_of_arbitrary_shapes(data):
    height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    cuts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    stops = np.cumsum(cuts).tolist()
    spans = tuple(zip([0, *stops], stops, strict=False))
    low, span = data.draw(st.integers(-40, 3)), data.draw(st.integers(1, 50))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    symbols = rng.integers(low, low + span + 1, (3, stops[-1], height, width)).astype(np.int32)
    for context in contexts.CONTEXTS:
        tables = count_tables(symbols, spans, context, low, low + span, max_tables=5)
        coder = SymbolCoder(tables, symbols.shape[1:], spans, context)
        for image in symbols:
            assert (coder.decode(coder.encode(image)) == image).all()


rows = st.lists(st.floats(1e-9, 1.0), min_size=2, max_size=30).map(lambda row: quantise(np.array([row]))[0])


@settings(deadline=None)
@given(freqs=rows, data=st.data())
def test_bytes_are_those_of_the_specification(freqs, data):
    symbols = data.draw(st.lists(st.integers(0, len(freqs) - 1), max_size=80))
    model, plain = _exact_model(freqs), [int(freq) for freq in freqs]
    encoder, reference = constriction.stream.queue.RangeEncoder(), ReferenceEncoder()
    if symbols:
        encoder.encode(np.array(symbols, np.int32), model)
    for symbol in symbols:
        reference.encode(symbol, plain)
    payload = _seal(encoder)
    assert payload == reference.finish()
    assert not payload.endswith(b"\0")
    decoder = ReferenceDecoder(payload)
    assert [decoder.decode(plain) for _ in symbols] == symbols
    assert constriction.stream.queue.RangeDecoder(_words(payload)).decode(model, len(symbols)).tolist() == symbols


def test_carries_into_earlier_words_are_those_of_the_specification():
    # Symbols at the top of the interval keep `lower` close below a carry for whole words; the last one decides it
    freqs = np.array([TOTAL - 2, 1, 1], np.uint32)
    model, plain = _exact_model(freqs), freqs.tolist()
    for length in range(1, 40):
        for last in (0, 1, 2):
            symbols = [2] * length + [0] * (length % 5) + [last]
            encoder, reference = constriction.stream.queue.RangeEncoder(), ReferenceEncoder()
            encoder.encode(np.array(symbols, np.int32), model)
            for symbol in symbols:
                reference.encode(symbol, plain)
            assert _seal(encoder) == reference.finish()


@settings(deadline=None)
@given(freqs=rows)
def test_probabilities_are_the_integers_exactly(freqs):
    # The first symbol is the one whose interval holds point // ((2**64 - 1) >> 24): probe both sides of each boundary
    step = ((1 << 64) - 1) >> 24
    model, edges = _exact_model(freqs), np.cumsum(freqs.astype(np.int64)).tolist()
    for symbol, edge in enumerate(edges):
        for quantile, expected in ((edge - 1, symbol), (edge, symbol + 1)):
            if quantile == TOTAL:
                continue
            point = quantile * step
            words = np.array([point >> 32, point & 0xFFFFFFFF], np.uint32)
            assert constriction.stream.queue.RangeDecoder(words).decode(model, 1).tolist() == [expected]


@both
def test_bytes_stay_within_half_a_percent_of_the_cross_entropy(context):
    shape, spans = (48, 14, 14), ((0, 12), (12, 24), (24, 48))
    coder = SymbolCoder(count_tables(smooth_symbols(60, shape), spans, context, -15, 15), shape, spans, context)
    real = ideal = 0.0
    for symbols in smooth_symbols(20, shape, seed=1):
        payloads = coder.encode(symbols)
        for payload, bits in zip(payloads, coder.ideal_bits(symbols), strict=True):
            assert len(payload) <= 1.005 * bits / 8 + 2
        real, ideal = real + sum(map(len, payloads)), ideal + sum(coder.ideal_bits(symbols)) / 8
    assert real <= 1.005 * ideal


def test_contexts_save_bytes():
    test = smooth_symbols(50, seed=5)
    size = {c: sum(len(p) for symbols in test for p in CODERS[c].encode(symbols)) for c in contexts.CONTEXTS}
    assert size["checkerboard"] < 0.97 * size["none"]


def test_vectors_are_latents_of_one_cell():
    shape, spans = (512, 1, 1), ((0, 128), (128, 512))
    for context in contexts.CONTEXTS:
        coder = make_coder(context, shape, spans, max_tables=32)
        for symbols in smooth_symbols(10, shape, seed=3):
            payloads = coder.encode(symbols)
            assert (coder.decode(payloads) == np.clip(symbols, -15, 15)).all()
            for payload, bits in zip(payloads, coder.ideal_bits(symbols), strict=True):
                assert len(payload) <= 1.005 * bits / 8 + 2


@both
@settings(deadline=None)
@given(data=st.data())
def test_mutated_payloads_are_an_error_or_another_image(context, data):
    coder = CODERS[context]
    payloads = coder.encode(smooth_symbols(1, seed=data.draw(st.integers(0, 50)))[0])
    index = data.draw(st.integers(0, len(payloads) - 1))
    original = payloads[index]
    position = data.draw(st.integers(0, max(0, len(original) - 1)))
    mutated = data.draw(
        st.sampled_from(["flip", "cut", "extend", "insert"]).flatmap(
            lambda kind: {
                "flip": st.integers(1, 255).map(
                    lambda mask: original[:position] + bytes([original[position] ^ mask]) + original[position + 1 :]
                ),
                "cut": st.just(original[:position]),
                "extend": st.binary(min_size=1, max_size=9).map(lambda tail: original + tail),
                "insert": st.binary(min_size=1, max_size=3).map(
                    lambda middle: original[:position] + middle + original[position:]
                ),
            }[kind]
        )
    )
    if mutated == original:
        return
    damaged = [*payloads[:index], mutated, *payloads[index + 1 :]]
    try:
        symbols = coder.decode(damaged)
    except PacketError:
        return
    # What is accepted is exactly what an encoder writes for another image
    assert coder.encode(symbols) == damaged
    assert symbols.min() >= -15
    assert symbols.max() <= 15


@both
@settings(deadline=None)
@given(payloads=st.lists(st.binary(max_size=400), min_size=1, max_size=3))
def test_garbage_is_an_error_or_in_range(context, payloads):
    coder = CODERS[context]
    try:
        symbols = coder.decode(payloads)
    except PacketError:
        return
    assert coder.encode(symbols, len(payloads)) == payloads


@both
@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
def test_hostile_payloads(context, path):
    with pytest.raises(BadPayload):
        CODERS[context].decode([path.read_bytes()])


@both
def test_an_appended_byte_is_refused(context):
    payloads = CODERS[context].encode(smooth_symbols(1)[0])
    for tail in (b"\0", b"\x01", b"\xff" * 100):
        with pytest.raises(BadPayload, match="layer 2"):
            CODERS[context].decode([payloads[0], payloads[1] + tail])


def test_wrong_number_of_payloads():
    for payloads in ([], [b""] * 4):
        with pytest.raises(MalformedPacket, match="1 to 3"):
            CODERS["none"].decode(payloads)


def test_wrong_symbols():
    coder = CODERS["none"]
    with pytest.raises(SymbolError, match="integers"):
        coder.encode(np.zeros(SHAPE, np.float32))
    with pytest.raises(SymbolError, match="integers"):
        coder.encode(np.zeros((1, *SHAPE), np.int32))
    for count in (0, 4):
        with pytest.raises(SymbolError, match="layers"):
            coder.encode(np.zeros(SHAPE, np.int32), count)


def test_encoding_leaves_its_input_alone():
    symbols = np.full(SHAPE, 100, np.int64)
    CODERS["checkerboard"].encode(symbols)
    assert (symbols == 100).all()


@pytest.mark.parametrize(
    ("shape", "spans", "context", "match"),
    [
        (SHAPE, ((0, 3), (4, 12)), "none", "cover"),
        (SHAPE, ((0, 12), (12, 12)), "none", "empty"),
        (SHAPE, SPANS, "checkerboard", "channels x buckets"),
        (SHAPE, ((0, 12),), "none", "bucket edges"),
        ((12, 1000, 1000), SPANS, "none", "more than"),
        (SHAPE, SPANS, "hyperprior", "unknown"),
    ],
)
def test_tables_that_do_not_fit(shape, spans, context, match):
    with pytest.raises(BadTables, match=match):
        SymbolCoder(CODERS["none"].tables, shape, spans, context)


def test_threads_share_a_coder():
    from concurrent.futures import ThreadPoolExecutor

    images = np.clip(smooth_symbols(64, seed=9), -15, 15)
    for coder in CODERS.values():
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda image, c=coder: (c.decode(c.encode(image)) == image).all(), images))

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thinwire.reference_coder import ReferenceDecoder, ReferenceEncoder
from thinwire import contexts
from thinwire.entropy import SymbolCoder, compiled_module
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


def readable(coder: SymbolCoder) -> SymbolCoder:
    return SymbolCoder(coder.tables, coder.shape, coder.layers, coder.context, compiled=False)


CODERS = {context: make_coder(context) for context in contexts.CONTEXTS}
FORMS = CODERS | {f"{context}, readable": readable(coder) for context, coder in CODERS.items()}
both = pytest.mark.parametrize("context", contexts.CONTEXTS)
all_forms = pytest.mark.parametrize("coder", FORMS.values(), ids=FORMS)


def fixed_coder(context: str, height: int = 2, width: int = 3) -> SymbolCoder:
    """A coder whose tables are written out here, so that golden bytes depend on nothing that is fitted."""
    freqs = np.array(
        [[3 << 22, 1 << 21, 1 << 20, 1 << 20], [1 << 22] * 4, [1 << 23, 1 << 22, 1 << 21, 1 << 21]], np.uint32
    )
    k = contexts.find_context(context).buckets
    table_of = (np.arange(3 * k).reshape(3, k) % 3).astype(np.uint16)
    shapes = contexts.find_context(context).edge_shapes(2, 3)
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
    for coder in (fixed_coder(context), readable(fixed_coder(context))):
        assert [payload.hex() for payload in coder.encode(GOLDEN_SYMBOLS)] == expected
        assert (coder.decode([bytes.fromhex(text) for text in expected]) == GOLDEN_SYMBOLS).all()


@pytest.mark.parametrize(("context", "expected"), [("none", LONG_NONE), ("checkerboard", LONG_CHECKERBOARD)])
def test_golden_payloads_of_many_words(context, expected):
    channel, row, column = np.indices((3, 8, 9))
    symbols = ((7 * row * row + 3 * column + 5 * channel * column) % 11 // 3 - 1).astype(np.int32)
    for coder in (fixed_coder(context, 8, 9), readable(fixed_coder(context, 8, 9))):
        assert [payload.hex() for payload in coder.encode(symbols)] == expected
        assert (coder.decode([bytes.fromhex(text) for text in expected]) == symbols).all()


@all_forms
@settings(deadline=None)
@given(data=st.data())
def test_round_trip_of_every_prefix(coder, data):
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


def row_coders(freqs: np.ndarray, length: int) -> list[SymbolCoder]:
    """Both forms of a coder of one layer of `length` symbols, all under the row `freqs`."""
    edges = contexts.Edges(*(np.zeros(shape, np.int32) for shape in ((1, 0), (1, 0), (1, 0))))
    tables = Tables(freqs[None], np.zeros((1, 1), np.uint16), 0, edges)
    coder = SymbolCoder(tables, (1, 1, length), ((0, 1),))
    return [coder, readable(coder)]


def check_against_the_specification(symbols: list[int], freqs: np.ndarray) -> None:
    plain, reference = freqs.tolist(), ReferenceEncoder()
    for symbol in symbols:
        reference.encode(symbol, plain)
    payload = reference.finish()
    assert not payload.endswith(b"\0")
    decoder = ReferenceDecoder(payload)
    assert [decoder.decode(plain) for _ in symbols] == symbols
    for coder in row_coders(freqs, len(symbols)):
        assert coder.encode(np.array([[symbols]])) == [payload]
        assert coder.decode([payload]).ravel().tolist() == symbols


@settings(deadline=None)
@given(freqs=rows, data=st.data())
def test_bytes_are_those_of_the_specification(freqs, data):
    check_against_the_specification(data.draw(st.lists(st.integers(0, len(freqs) - 1), min_size=1, max_size=80)), freqs)


def test_carries_into_earlier_words_are_those_of_the_specification():
    # Symbols at the top of the interval keep `lower` close below a carry for whole words; the last one decides it
    freqs = np.array([TOTAL - 2, 1, 1], np.uint32)
    for length in range(1, 40):
        for last in (0, 1, 2):
            check_against_the_specification([2] * length + [0] * (length % 5) + [last], freqs)


@settings(deadline=None)
@given(freqs=rows)
def test_both_ends_of_every_symbol_are_read_exactly(freqs):
    last = len(freqs) - 1
    for symbol in range(len(freqs)):
        check_against_the_specification([symbol, 0, 0, 0], freqs)  # the first number of the symbol's interval
        check_against_the_specification([symbol, last, last, last], freqs)  # close to its last one


@pytest.mark.parametrize("alphabet", [2, 9, 300, 1 << 16])
def test_alphabets_of_any_size(alphabet):
    """The compiled decoder looks beside the likeliest symbol first, then by halves."""
    rng = np.random.default_rng(alphabet)
    weights = rng.gamma(0.3, 1, (1, alphabet)) + 1e-9
    symbols = [0, alphabet - 1, *rng.integers(0, alphabet, 50).tolist(), int(weights.argmax())]
    compiled, plain = row_coders(quantise(weights)[0], len(symbols))
    payloads = compiled.encode(np.array([[symbols]]))
    assert plain.encode(np.array([[symbols]])) == payloads
    for coder in (compiled, plain):
        assert coder.decode(payloads).ravel().tolist() == symbols


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
            assert payloads == readable(coder).encode(symbols)
            assert (coder.decode(payloads) == np.clip(symbols, -15, 15)).all()
            for payload, bits in zip(payloads, coder.ideal_bits(symbols), strict=True):
                assert len(payload) <= 1.005 * bits / 8 + 2


@all_forms
@settings(deadline=None)
@given(data=st.data())
def test_mutated_payloads_are_an_error_or_another_image(coder, data):
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


@all_forms
@settings(deadline=None)
@given(payloads=st.lists(st.binary(max_size=400), min_size=1, max_size=3))
def test_garbage_is_an_error_or_in_range(coder, payloads):
    try:
        symbols = coder.decode(payloads)
    except PacketError:
        return
    assert coder.encode(symbols, len(payloads)) == payloads


@all_forms
@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
def test_hostile_payloads(coder, path):
    with pytest.raises(BadPayload):
        coder.decode([path.read_bytes()])


@all_forms
def test_an_appended_byte_is_refused(coder):
    payloads = coder.encode(smooth_symbols(1)[0])
    for tail in (b"\0", b"\x01", b"\xff" * 100):
        with pytest.raises(BadPayload, match="layer 2"):
            coder.decode([payloads[0], payloads[1] + tail])


@all_forms
def test_wrong_number_of_payloads(coder):
    for payloads in ([], [b""] * 4):
        with pytest.raises(MalformedPacket, match="1 to 3"):
            coder.decode(payloads)


@all_forms
def test_wrong_symbols(coder):
    with pytest.raises(SymbolError, match="integers"):
        coder.encode(np.zeros(SHAPE, np.float32))
    with pytest.raises(SymbolError, match="integers"):
        coder.encode(np.zeros((1, *SHAPE), np.int32))
    for count in (0, 4):
        with pytest.raises(SymbolError, match="layers"):
            coder.encode(np.zeros(SHAPE, np.int32), count)


@all_forms
def test_encoding_takes_any_integers_and_leaves_them_alone(coder):
    payloads = coder.encode(np.full(SHAPE, 15, np.int32))
    for kind in (np.int8, np.uint16, np.int32, np.int64, np.uint64):
        symbols = np.full(SHAPE, 100, kind)  # beyond the tables' range
        assert coder.encode(symbols) == payloads
        assert coder.encode(np.moveaxis(np.moveaxis(symbols, 0, 2).copy(), 2, 0)) == payloads  # another layout
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


# ---------------------------------------------------------------- the two forms


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_compiled_coder_is_tested_where_there_is_a_compiler():
    from setup import source_hash

    assert source_hash() == compiled_module().SOURCE
    assert CODERS["none"].form == CODERS["checkerboard"].form == "compiled"
    assert readable(CODERS["none"]).form == "readable"


def test_a_context_that_only_python_knows_is_coded_by_the_readable_form(monkeypatch):
    class Columns(contexts.Context):
        """Even columns have another table than odd ones."""

        buckets, native = 2, None

        def layer_buckets(self, layer, earlier, edges, index, span, number):
            return np.arange(layer.shape[-1], dtype=np.int16)[None, None] % 2

    monkeypatch.setitem(contexts.CONTEXTS, "columns", Columns())
    symbols = np.zeros((20, 2, 4, 6), np.int32)
    symbols[..., 1::2] = np.random.default_rng(0).integers(-3, 4, (20, 2, 4, 3))
    coder = SymbolCoder(count_tables(symbols, ((0, 1), (1, 2)), "columns"), (2, 4, 6), ((0, 1), (1, 2)), "columns")
    assert coder.form == "readable"
    assert (coder.decode(coder.encode(symbols[0])) == symbols[0]).all()
    assert sum(map(len, coder.encode(symbols[0]))) < 12


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment, "PYTHONWARNINGS": "always"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


CODE_TWICE = """
import sys
{before}
from thinwire.bundle import load_bundle
coders = [load_bundle(name).coder for name in ("layered", "layered")]
print(*(coder.form for coder in coders))
"""


def test_without_the_compiled_part_a_warning_says_so_once():
    done = in_a_process(CODE_TWICE.format(before="sys.modules['thinwire._coder'] = None"), THINWIRE_CODER="")
    assert done.stdout.split() == ["readable", "readable"], done.stderr
    assert done.stderr.count("RuntimeWarning: thinwire's compiled coder is missing") == 1


def test_the_form_can_be_chosen():
    done = in_a_process(CODE_TWICE.format(before=""), THINWIRE_CODER="python")
    assert done.stdout.split() == ["readable", "readable"]
    assert "compiled coder" not in done.stderr
    done = in_a_process(CODE_TWICE.format(before="sys.modules['thinwire._coder'] = None"), THINWIRE_CODER="native")
    assert done.returncode != 0
    assert "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr


@pytest.mark.skipif(compiled_module() is None, reason="no compiled coder")
def test_the_compiled_coder_checks_what_it_is_given():
    """Python code could call it directly: nothing that it gets may make it read or write out of bounds."""
    make, coder = compiled_module().Coder, CODERS["checkerboard"]
    tables, edges = coder.tables, coder.tables.edges
    good = [
        1,
        coder.shape,
        np.array([0, 3, 8, 12], np.int32),
        tables.freqs,
        tables.freqs.shape,
        tables.table_of,
        tables.low,
        edges.past,
        edges.lean,
        edges.near,
    ]
    assert make(*good).encode(np.zeros(SHAPE, np.int32), 3) == coder.encode(np.zeros(SHAPE, np.int32))
    flat = tables.freqs.copy()
    flat[0, 0] += 1
    zero = tables.freqs.copy()
    zero[0, :2] = 0, zero[0, 0] + zero[0, 1]
    bad = {
        0: [7, -1],
        1: [(0, 6, 5), (12, -6, 5), (1 << 20, 1 << 10, 1 << 10)],
        2: [np.array(b, np.int32) for b in ([0], [0, 12], [0, 3, 3, 12], [0, 8, 3, 12], [1, 3, 8, 12], [0, 3, 8, 99])],
        3: [tables.freqs[1:], flat, zero, b""],
        4: [(0, 31), (1 << 20, 31), (12, 1), (12, 1 << 20)],
        5: [tables.table_of[1:], np.full_like(tables.table_of, 65535)],
        6: [1 << 30, -(1 << 30)],
        7: [edges.past[1:], b""],
        8: [edges.lean[1:]],
        9: [edges.near[1:]],
    }
    for place, values in bad.items():
        for value in values:
            with pytest.raises(ValueError):
                make(*good[:place], value, *good[place + 1 :])
    compiled, symbols = make(*good), np.zeros(SHAPE, np.int32)
    for count in (0, 4, -1):
        with pytest.raises(ValueError, match="layers"):
            compiled.encode(symbols, count)
    for payloads in ((), (b"",) * 4):
        with pytest.raises(ValueError, match="layers"):
            compiled.decode(payloads, symbols)
    for other in (symbols[1:], symbols.astype(np.int64), b"", memoryview(bytes(4 * symbols.size + 1))[1:]):
        with pytest.raises(ValueError, match="symbols"):
            compiled.encode(other, 3)
    with pytest.raises(TypeError):
        compiled.decode(("text",), symbols)
    with pytest.raises((TypeError, BufferError)):
        compiled.decode((b"",), bytes(4 * symbols.size))  # not to be written to


def test_threads_code_at_the_same_time():
    """The lock is given up: while one thread codes a large latent, others go on (no wall clock: they must finish)."""
    from concurrent.futures import ThreadPoolExecutor

    symbols = smooth_symbols(1, (64, 40, 40), seed=4)[0]
    spans = ((0, 64),)
    coder = SymbolCoder(
        count_tables(symbols[None], spans, "checkerboard", -15, 15), symbols.shape, spans, "checkerboard"
    )
    wanted = coder.encode(symbols)
    with ThreadPoolExecutor(8) as pool:
        assert all(found == wanted for found in pool.map(coder.encode, [symbols] * 64))
        assert all((found == np.clip(symbols, -15, 15)).all() for found in pool.map(coder.decode, [wanted] * 64))

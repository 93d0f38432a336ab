from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from thinwire import contexts
from thinwire.contexts import Edges
from thinwire.errors import BadTables, SymbolError
from thinwire.tables import TOTAL, Tables, count_tables, quantise, share

EDGES = Edges(np.zeros((1, 0), np.int32), np.zeros((2, 0), np.int32), np.zeros((2, 0), np.int32))


def tables(**changes) -> Tables:
    parts = {
        "freqs": np.array([[TOTAL - 1, 1], [TOTAL // 2, TOTAL // 2]], np.uint32),
        "table_of": np.array([[0], [1]], np.uint16),
        "low": -1,
        "edges": EDGES,
    }
    return Tables(**{**parts, **changes})


@settings(deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 60)), elements=st.floats(1e-12, 1e12)))
def test_quantised_rows_are_positive_and_sum_exactly(weights):
    freqs = quantise(weights)
    assert freqs.dtype == np.uint32
    assert (freqs > 0).all()
    assert (freqs.sum(1, dtype=np.int64) == TOTAL).all()
    ideal = weights / weights.sum(1, keepdims=True)
    assert np.abs(freqs / TOTAL - ideal).max() < 2 * weights.shape[1] / TOTAL


def test_npz_round_trip():
    rng = np.random.default_rng(0)
    spans = ((0, 2), (2, 4))
    counted = count_tables(rng.integers(-3, 4, (20, 4, 6, 6)), spans, "checkerboard", max_tables=6)
    again = Tables.from_bytes(counted.to_bytes())
    assert (again.freqs == counted.freqs).all()
    assert (again.table_of == counted.table_of).all()
    assert (again.low, again.high) == (counted.low, counted.high) == (-3, 3)
    for name in ("past", "lean", "near"):
        assert (getattr(again.edges, name) == getattr(counted.edges, name)).all()
    assert counted.to_bytes() == again.to_bytes()  # the model id hangs on these bytes


def test_counting_is_deterministic_and_follows_the_data():
    rng = np.random.default_rng(0)
    symbols = np.stack([np.zeros((300, 8, 8)), rng.integers(-2, 3, (300, 8, 8))], 1).astype(np.int32)
    first, second = (count_tables(symbols, ((0, 2),), "none", -2, 2) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()
    bits = first.bits[first.table_of[:, 0]]  # (C, A)
    assert bits[0, 2] < 0.01
    assert np.abs(bits[1] - np.log2(5)).max() < 0.05
    assert bits.max() < 24


def test_symbols_outside_of_the_range_count_as_clipped():
    symbols = np.array([-9, 9] * 50, np.int64).reshape(10, 1, 2, 5)
    counted = count_tables(symbols, ((0, 1),), "none", -1, 1)
    assert counted.freqs.shape[1] == 3
    assert counted.freqs[0, 0] > 10 * counted.freqs[0, 1]


@pytest.mark.parametrize("limit", [1, 2, 7, 40])
def test_sharing_keeps_to_its_limit_and_more_tables_cost_fewer_bits(limit):
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(0.3, 200, (20, 2, 9)))
    freqs, table_of = share(counts, limit)
    assert len(freqs) <= limit
    assert table_of.shape == (20, 2)

    def cost(freqs, table_of):
        return (counts * (24 - np.log2(freqs[table_of]))).sum()

    assert cost(*share(counts, 40)) <= cost(freqs, table_of) <= cost(*share(counts, 1))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"freqs": np.array([[TOTAL, 1]], np.uint32)}, "sum to"),
        ({"freqs": np.array([[TOTAL, 0]], np.uint32)}, "positive"),
        ({"freqs": np.array([[TOTAL // 2] * 2] * 2, np.int64)}, "uint32"),
        ({"freqs": np.array([[TOTAL]], np.uint32)}, "symbols"),
        ({"freqs": np.zeros((0, 2), np.uint32)}, "rows"),
        ({"table_of": np.array([[0], [2]], np.uint16)}, "row 2"),
        ({"table_of": np.array([0, 1], np.uint16)}, "matrix"),
        ({"table_of": np.zeros((0, 1), np.uint16)}, "channels"),
        ({"low": 1 << 30}, "smallest symbol"),
        ({"edges": Edges(EDGES.past, EDGES.lean, np.zeros((2, 0), np.float32))}, "near_edges"),
    ],
)
def test_tables_that_break_a_rule(changes, match):
    with pytest.raises(BadTables, match=match):
        tables(**changes)


def test_files_that_are_no_tables():
    pickled = io.BytesIO()
    np.savez(pickled, freqs=np.array([{}], object), allow_pickle=True)
    other = io.BytesIO()
    np.savez(other, weights=np.zeros(3))
    good = tables().to_bytes()
    for data in (b"", b"PK", b"not a zip", good[: len(good) // 2], pickled.getvalue(), other.getvalue()):
        with pytest.raises(BadTables, match=r"tables\.npz"):
            Tables.from_bytes(data)


def test_counting_refuses_what_is_not_symbols():
    with pytest.raises(SymbolError):
        count_tables(np.zeros((2, 3, 4, 4), np.float32), ((0, 3),))
    with pytest.raises(SymbolError):
        count_tables(np.zeros((3, 4, 4), np.int32), ((0, 3),))
    with pytest.raises(SymbolError):
        count_tables(np.zeros((0, 3, 4, 4), np.int32), ((0, 3),))
    with pytest.raises(BadTables, match="unknown"):
        count_tables(np.zeros((1, 3, 4, 4), np.int32), ((0, 3),), "mixture")
    with pytest.raises(BadTables, match="two symbols"):
        count_tables(np.zeros((1, 3, 4, 4), np.int32), ((0, 3),), "none", 5, 5)


def test_buckets_cover_their_range_and_no_more():
    rng = np.random.default_rng(2)
    layer = rng.integers(-9, 10, (3, 5, 5)).astype(np.int32)
    lean, near = np.array([[-3, 0, 1, 4]] * 3, np.int32), np.array([[3, 9]] * 3, np.int32)
    second = contexts.neighbour_bucket(layer, lean, near)
    first = contexts.past_bucket(np.abs(layer).sum(0, dtype=np.int32), np.array([2, 40, 100], np.int32))
    assert second.min() >= 1
    assert second.max() <= 15
    assert set(np.unique(first)) <= {0, 16, 32, 48}
    assert contexts.find_context("checkerboard").buckets == 64


def test_neighbours_do_not_wrap_around():
    values = np.zeros((1, 3, 4), np.int32)
    values[0, 0, 3] = 7
    total = contexts.around(values)
    assert total.sum() == 14
    assert total[0, 1, 3] == total[0, 0, 2] == 7


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (6, 5)])
def test_passes_visit_every_cell_once(shape):
    for context in contexts.CONTEXTS.values():
        cells = np.concatenate(context.passes(*shape))
        assert sorted(cells.tolist()) == list(range(shape[0] * shape[1]))

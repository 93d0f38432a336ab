"""Pieces of label lists from strangers: nothing is believed, nothing grows without bound."""

from __future__ import annotations

import hashlib
import zlib

import pytest

from cloud.errors import InvalidRequest
from cloud.front.label_parts import MAX_PART_BYTES, MAX_UPLOAD_BYTES, LabelParts
from thinwire.v1 import inference_pb2 as pb

REQUEST = pb.RegisterLabelsRequest(labels=[f"label {number}" for number in range(300)], prompt_set="1")
DATA = zlib.compress(REQUEST.SerializeToString())


def part(whole: bytes, start: int, stop: int, **more) -> pb.RegisterLabelsPartRequest:
    upload = hashlib.sha256(whole).digest()
    fields = {"upload": upload, "total_bytes": len(whole), "offset": start, "data": whole[start:stop]} | more
    return pb.RegisterLabelsPartRequest(**fields)


def test_pieces_in_any_order_and_twice_make_the_whole_once():
    parts = LabelParts()
    assert parts.take(part(DATA, 0, 0)) == (0, None)
    assert parts.take(part(DATA, 200, 300)) == (0, None)  # nothing before it
    assert parts.take(part(DATA, 0, 100)) == (100, None)
    assert parts.take(part(DATA, 50, 150)) == (150, None)
    assert parts.take(part(DATA, 0, 100)) == (150, None)
    assert parts.take(part(DATA, 150, len(DATA))) == (len(DATA), REQUEST)
    assert parts.take(part(DATA, 0, 0)) == (len(DATA), REQUEST)  # the answer was lost


@pytest.mark.parametrize(
    "more",
    [
        {"upload": b"short"},
        {"total_bytes": 0},
        {"total_bytes": MAX_UPLOAD_BYTES + 1},
        {"offset": len(DATA), "data": b"x"},
        {"data": bytes(MAX_PART_BYTES + 1), "total_bytes": MAX_UPLOAD_BYTES},
        {"offset": 2**32 - 1, "data": b"x"},
    ],
)
def test_pieces_that_are_none_are_refused(more):
    with pytest.raises(InvalidRequest):
        LabelParts().take(part(DATA, 0, 10, **more))


@pytest.mark.parametrize(
    "data",
    [
        b"no zlib",
        zlib.compress(b"\xff" * 100),
        zlib.compress(bytes(200 << 20)),  # a bomb
        DATA[:-4],
        zlib.compress(REQUEST.SerializeToString()[:-1]),
    ],
)
def test_a_whole_that_is_no_request_is_refused(data):
    parts = LabelParts()
    starts = range(0, len(data), MAX_PART_BYTES)
    for start in starts[:-1]:
        parts.take(part(data, start, start + MAX_PART_BYTES))
    with pytest.raises(InvalidRequest):
        parts.take(part(data, starts[-1], len(data)))


def test_a_whole_without_its_hash_is_dropped_and_can_be_sent_again():
    parts = LabelParts()
    parts.take(part(DATA, 0, 10, data=b"0123456789"))
    with pytest.raises(InvalidRequest, match="hash"):
        parts.take(part(DATA, 10, len(DATA)))
    assert parts.take(part(DATA, 0, len(DATA)))[1] == REQUEST


def test_unfinished_uploads_together_stay_within_their_bytes():
    parts = LabelParts(max_bytes=1 << 20)
    for number in range(100):
        upload = hashlib.sha256(bytes([number])).digest()
        parts.take(part(DATA, 0, 0, upload=upload, total_bytes=1 << 20, data=bytes(MAX_PART_BYTES)))
    assert sum(map(len, parts._uploads.values())) <= 1 << 20

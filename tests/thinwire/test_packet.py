from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

import thinwire.errors
from tests.thinwire.hostile.make import FILES
from thinwire.errors import (
    BadMagic,
    ChecksumMismatch,
    MalformedPacket,
    PacketError,
    PacketTooLarge,
    TruncatedPacket,
    UnknownVersion,
)
from thinwire.packet import MAX_PACKET_BYTES, Packet

FOLDER = Path(__file__).parent / "hostile"
HOSTILE = sorted(path for path in FOLDER.glob("*.bin") if not path.stem.startswith("BadPayload"))  # see test_entropy.py
ID = bytes.fromhex("0a0b0c0d")

packets = st.builds(
    Packet,
    model_id=st.binary(min_size=4, max_size=4),
    layers=st.lists(st.binary(max_size=300), min_size=1, max_size=16).map(tuple),
)


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (Packet(ID, (b"",)), "54570101 0a0b0c0d 00 4b1e6f65"),
        (Packet(ID, (b"thin",)), "54570101 0a0b0c0d 04 7468696e b481530e"),
        (Packet(ID, (b"a", b"", b"wire")), "54570103 0a0b0c0d 010004 61 77697265 b72ca610"),
        (Packet(ID, (bytes(200),)), "54570101 0a0b0c0d c801" + "00" * 200 + "e0c6fe81"),
    ],
)
def test_golden_bytes(packet, expected):
    assert packet.to_bytes() == bytes.fromhex(expected)
    assert Packet.from_bytes(bytes.fromhex(expected)) == packet


def test_crc_is_castagnoli():
    assert google_crc32c.value(b"123456789") == 0xE3069283  # the check value of CRC-32C


@given(packets)
def test_round_trip(packet):
    data = packet.to_bytes()
    assert Packet.from_bytes(data) == packet
    assert len(data) == len(packet) == packet.overhead_bytes + sum(map(len, packet.layers))


@given(packets, st.data())
def test_prefix_is_a_packet_of_the_first_layers(packet, data):
    count = data.draw(st.integers(1, len(packet.layers)))
    prefix = Packet.from_bytes(packet.prefix(count).to_bytes())
    assert prefix == Packet(packet.model_id, packet.layers[:count])


def test_prefix_of_impossible_length():
    for count in (0, 2, -1):
        with pytest.raises(MalformedPacket, match="prefix"):
            Packet(ID, (b"a",)).prefix(count)


@pytest.mark.parametrize(("size", "overhead"), [(0, 13), (127, 13), (128, 14), (16383, 14), (16384, 15), (65535, 15)])
def test_overhead_of_one_layer_is_at_most_16_bytes(size, overhead):
    packet = Packet(ID, (bytes(size),))
    assert packet.overhead_bytes == overhead
    assert len(packet.to_bytes()) == size + overhead


@given(packets, st.data())
def test_a_flipped_bit_is_a_typed_error(packet, data):
    original = packet.to_bytes()
    bit = data.draw(st.integers(0, 8 * len(original) - 1))
    damaged = bytearray(original)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PacketError):
        Packet.from_bytes(bytes(damaged))


@given(packets, st.data())
def test_truncation_is_a_typed_error(packet, data):
    original = packet.to_bytes()
    with pytest.raises(PacketError):
        Packet.from_bytes(original[: data.draw(st.integers(0, len(original) - 1))])


@given(packets, st.binary(min_size=1, max_size=50))
def test_extension_is_a_typed_error(packet, tail):
    with pytest.raises(PacketError):
        Packet.from_bytes(packet.to_bytes() + tail)


@given(packets, st.data())
def test_a_burst_of_noise_is_a_typed_error(packet, data):
    original = packet.to_bytes()
    start = data.draw(st.integers(0, len(original) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=4))
    damaged = original[:start] + noise + original[start + len(noise) :]
    if damaged != original:
        with pytest.raises(PacketError):
            Packet.from_bytes(damaged)


@given(st.binary(max_size=200))
def test_any_bytes_with_a_right_crc_are_an_error_or_canonical(body):
    body = b"TW\x01" + body
    data = body + struct.pack("<I", google_crc32c.value(body))
    try:
        packet = Packet.from_bytes(data)
    except PacketError:
        return
    assert packet.to_bytes() == data


def test_oversize_is_refused_before_anything_is_read():
    with pytest.raises(PacketTooLarge, match="limit is 262144"):
        Packet.from_bytes(bytes(MAX_PACKET_BYTES + 1))
    with pytest.raises(PacketTooLarge, match="fewer layers"):
        Packet(ID, tuple(bytes(65535) for _ in range(5)))
    with pytest.raises(PacketTooLarge, match="layer 1 has 65536"):
        Packet(ID, (bytes(65536),))


@pytest.mark.parametrize(
    ("model_id", "layers"),
    [(b"abc", (b"",)), (b"abcde", (b"",)), ("abcd", (b"",)), (ID, ()), (ID, (b"",) * 17), (ID, [b""]), (ID, ("a",))],
)
def test_impossible_packets_cannot_be_built(model_id, layers):
    with pytest.raises(MalformedPacket):
        Packet(model_id, layers)


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
def test_hostile_files(path):
    kind = path.stem.split("-")[0]
    with pytest.raises(getattr(thinwire.errors, kind)) as caught:
        Packet.from_bytes(path.read_bytes())
    assert type(caught.value).__name__ == kind
    assert str(caught.value)


def test_hostile_folder_is_what_its_script_writes():
    kept = {path.stem: path.read_bytes() for path in HOSTILE}
    assert kept == FILES


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (BadMagic, "BAD_PACKET"),
        (UnknownVersion, "BAD_PACKET"),
        (TruncatedPacket, "BAD_PACKET"),
        (ChecksumMismatch, "BAD_PACKET"),
        (MalformedPacket, "BAD_PACKET"),
        (PacketTooLarge, "TOO_LARGE"),
    ],
)
def test_reasons_are_part_of_the_contract(kind, reason):
    assert kind.reason == reason


def test_accepts_any_buffer():
    data = Packet(ID, (b"abc",)).to_bytes()
    assert Packet.from_bytes(bytearray(data)) == Packet.from_bytes(memoryview(data)) == Packet.from_bytes(data)

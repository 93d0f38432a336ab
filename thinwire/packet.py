"""The packet: what one image becomes on the wire. WIRE.md states the layout and the reason for each rule.

offset  size  field
0       2     magic, "TW"
2       1     version, 1
3       1     layer count n, 1..16
4       4     model id
8       1..3  n layer lengths, canonical unsigned LEB128, each at most 65535
...           n layer payloads
end-4   4     CRC-32C of every byte before it, little endian
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import google_crc32c

from thinwire.errors import (
    BadMagic,
    ChecksumMismatch,
    MalformedPacket,
    PacketTooLarge,
    TruncatedPacket,
    UnknownVersion,
)

MAGIC = b"TW"
VERSION = 1
MODEL_ID_BYTES = 4
MAX_LAYERS = 16
MAX_LAYER_BYTES = 65535
MAX_PACKET_BYTES = 256 * 1024

_HEADER = struct.Struct("<2sBB4s")
_CRC = struct.Struct("<I")
MIN_PACKET_BYTES = _HEADER.size + 1 + _CRC.size


@dataclass(frozen=True)
class Packet:
    """One image's coded layers and the id of the model that coded them.

    `layers` are opaque payloads, most important first; the first k of them are a valid lower-rate packet (`prefix`).

    Guarantees: `Packet.from_bytes(p.to_bytes()) == p`, and `Packet.from_bytes(b).to_bytes() == b` for every accepted b:
    there is exactly one byte string for each packet. Construction checks every limit, so an existing Packet is valid.

    >>> packet = Packet(bytes.fromhex("01020304"), (b"abc",))
    >>> packet.to_bytes().hex()
    '5457010101020304036162636ed6d011'
    >>> packet.overhead_bytes
    13
    """

    model_id: bytes
    layers: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.model_id, bytes) or len(self.model_id) != MODEL_ID_BYTES:
            raise MalformedPacket(f"a model id is {MODEL_ID_BYTES} bytes, got {self.model_id!r}")
        if not isinstance(self.layers, tuple) or not all(isinstance(layer, bytes) for layer in self.layers):
            raise MalformedPacket("layers must be a tuple of bytes")
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise MalformedPacket(f"a packet has 1 to {MAX_LAYERS} layers, got {len(self.layers)}")
        for index, layer in enumerate(self.layers):
            if len(layer) > MAX_LAYER_BYTES:
                raise PacketTooLarge(f"layer {index + 1} has {len(layer)} bytes, the limit is {MAX_LAYER_BYTES}")
        if len(self) > MAX_PACKET_BYTES:
            raise PacketTooLarge(
                f"the packet has {len(self)} bytes, the limit is {MAX_PACKET_BYTES}: send fewer layers"
            )

    def __len__(self) -> int:
        """Bytes of the whole packet."""
        return self.overhead_bytes + sum(map(len, self.layers))

    @property
    def overhead_bytes(self) -> int:
        """Bytes of the packet that are not layer payload (13 to 15 for one layer)."""
        return _HEADER.size + sum(_varint_size(len(layer)) for layer in self.layers) + _CRC.size

    def to_bytes(self) -> bytes:
        """The packet's one byte string."""
        parts = [_HEADER.pack(MAGIC, VERSION, len(self.layers), self.model_id)]
        parts += [_varint(len(layer)) for layer in self.layers]
        parts += self.layers
        body = b"".join(parts)
        return body + _CRC.pack(google_crc32c.value(body))

    @classmethod
    def from_bytes(cls, data: bytes) -> Packet:
        """Parses `data`, which may come from a stranger.

        Raises `PacketTooLarge` before anything is read or copied, `BadMagic`, `UnknownVersion`, `TruncatedPacket`,
        `MalformedPacket` or `ChecksumMismatch` (all of them `PacketError`).
        """
        if len(data) > MAX_PACKET_BYTES:
            raise PacketTooLarge(
                f"the packet has {len(data)} bytes, the limit is {MAX_PACKET_BYTES}: send fewer layers"
            )
        data = bytes(data)
        if data[: len(MAGIC)] != MAGIC[: len(data)]:
            raise BadMagic(f"not a thinwire packet: it begins with {data[:4].hex()}, not {MAGIC.hex()}")
        if len(data) > 2 and data[2] != VERSION:
            raise UnknownVersion(
                f"packet version {data[2]} is unknown, this release reads version {VERSION}: "
                "bring edge and cloud to the same thinwire release"
            )
        if len(data) < MIN_PACKET_BYTES:
            raise TruncatedPacket(f"the packet has {len(data)} bytes, the shortest has {MIN_PACKET_BYTES}")
        _, _, count, model_id = _HEADER.unpack_from(data)
        if not 1 <= count <= MAX_LAYERS:
            raise MalformedPacket(f"a packet has 1 to {MAX_LAYERS} layers, this one says {count}")
        end = len(data) - _CRC.size
        position = _HEADER.size
        lengths = []
        for _ in range(count):
            length, position = _read_varint(data, position, end)
            lengths.append(length)
        missing = position + sum(lengths) - end
        if missing > 0:
            raise TruncatedPacket(
                f"the packet lacks {missing} bytes of the {len(data) + missing} that its header states"
            )
        if missing < 0:
            raise MalformedPacket(f"the packet has {-missing} bytes more than its header states")
        if _CRC.unpack_from(data, end)[0] != google_crc32c.value(data[:end]):
            raise ChecksumMismatch("the packet's CRC-32C does not match: it was damaged on its way, send it again")
        layers = []
        for length in lengths:
            layers.append(data[position : position + length])
            position += length
        return cls(model_id, tuple(layers))

    def prefix(self, n_layers: int) -> Packet:
        """The same image at a lower rate: the first `n_layers` layers, framed again without coding them again.

        Raises `MalformedPacket` unless 1 <= n_layers <= len(layers).
        """
        if not 1 <= n_layers <= len(self.layers):
            raise MalformedPacket(f"a prefix of 1 to {len(self.layers)} layers can be taken, not {n_layers}")
        return Packet(self.model_id, self.layers[:n_layers])


def _varint_size(value: int) -> int:
    return 1 if value < 1 << 7 else 2 if value < 1 << 14 else 3


def _varint(value: int) -> bytes:
    """Canonical unsigned LEB128: seven bits a byte, least significant first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """The varint at `position` and the position after it; refuses non-canonical and over-long ones."""
    value = 0
    for index in range(3):  # three bytes hold 21 bits; 65535 needs no more
        if position >= end:
            raise TruncatedPacket("the packet ends inside its layer lengths")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index > 0:
                raise MalformedPacket("a layer length is not in its shortest form")
            if value > MAX_LAYER_BYTES:
                raise PacketTooLarge(f"a layer says it has {value} bytes, the limit is {MAX_LAYER_BYTES}")
            return value, position
    raise PacketTooLarge(f"a layer length is longer than 3 bytes, the limit is {MAX_LAYER_BYTES} bytes a layer")

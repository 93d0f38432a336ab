"""Writes the hostile packets beside this file: `python -m tests.thinwire.hostile.make`.

The part of a name before the first dash is the error that `Packet.from_bytes` must raise. Files named BadPayload hold
not a packet but the payload of a layer, which every entropy coder must refuse.
"""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c

HERE = Path(__file__).parent
HEADER = bytes.fromhex("5457 01 01 01020304")


def sealed(body: bytes) -> bytes:
    """`body` with a right CRC: what a forger sends."""
    return body + struct.pack("<I", google_crc32c.value(body))


GOOD = sealed(HEADER + b"\x03abc")

FILES = {
    "BadMagic-jpeg": bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffdb0043"),
    "BadMagic-text": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "BadMagic-lowercase": sealed(b"tw" + HEADER[2:] + b"\x03abc"),
    "BadMagic-shifted-by-one": GOOD[1:] + b"\0",
    "BadMagic-zeros": bytes(64),
    "ChecksumMismatch-flip-in-crc": GOOD[:-1] + bytes([GOOD[-1] ^ 1]),
    "ChecksumMismatch-flip-in-model-id": GOOD[:5] + bytes([GOOD[5] ^ 0x80]) + GOOD[6:],
    "ChecksumMismatch-flip-in-payload": GOOD[:10] + bytes([GOOD[10] ^ 4]) + GOOD[11:],
    "ChecksumMismatch-zero-crc": GOOD[:-4] + bytes(4),
    "ChecksumMismatch-big-endian-crc": GOOD[:-4] + GOOD[-4:][::-1],
    "MalformedPacket-17-layers": sealed(b"TW\x01\x11\x01\x02\x03\x04" + bytes(17)),
    "MalformedPacket-255-layers": sealed(b"TW\x01\xff\x01\x02\x03\x04" + bytes(255)),
    "MalformedPacket-length-of-0-in-two-bytes": sealed(HEADER + b"\x80\x00"),
    "MalformedPacket-length-of-3-in-two-bytes": sealed(HEADER + b"\x83\x00abc"),
    "MalformedPacket-length-of-3-in-three-bytes": sealed(HEADER + b"\x83\x80\x00abc"),
    "MalformedPacket-no-layers": sealed(b"TW\x01\x00\x01\x02\x03\x04\x00"),
    "MalformedPacket-trailing-byte": sealed(GOOD[:-4] + b"\0"),
    "MalformedPacket-two-packets": GOOD + GOOD,
    "PacketTooLarge-billion-byte-layer": sealed(HEADER + b"\x80\x94\xeb\xdc\x03"),
    "PacketTooLarge-endless-length": sealed(HEADER + b"\xff" * 64),
    "PacketTooLarge-layer-of-65536": sealed(HEADER + b"\x80\x80\x04" + bytes(64)),
    "TruncatedPacket-empty": b"",
    "TruncatedPacket-header-only": HEADER,
    "TruncatedPacket-lacks-last-byte": GOOD[:-1],
    "TruncatedPacket-length-runs-into-crc": sealed(HEADER + b"\x07abc"),
    "TruncatedPacket-magic-only": b"TW",
    "TruncatedPacket-one-byte": b"T",
    "TruncatedPacket-second-length-missing": sealed(b"TW\x01\x02\x01\x02\x03\x04\x80"),
    "TruncatedPacket-sixteen-full-layers-promised": sealed(b"TW\x01\x10\x01\x02\x03\x04" + b"\xff\xff\x03" * 16),
    "UnknownVersion-0": sealed(b"TW\x00" + HEADER[3:] + b"\x03abc"),
    "UnknownVersion-2": sealed(b"TW\x02" + HEADER[3:] + b"\x03abc"),
    "UnknownVersion-255-short": b"TW\xff",
}

PAYLOADS = {
    "BadPayload-all-ones": b"\xff" * 16,
    "BadPayload-64-kilobytes": b"\xa5" * 65535,
    "BadPayload-zeros": bytes(4),
    "BadPayload-trailing-zero": b"\x35\xf2\x00",
}


def main() -> None:
    for name, data in {**FILES, **PAYLOADS}.items():
        (HERE / f"{name}.bin").write_bytes(data)


if __name__ == "__main__":
    main()

"""PNG files without what is not pixels: text and colour profiles may be huge or damaged where the pixels are sound."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Pixels, palette, transparency, orientation. An animation's first frame is the IDAT that any reader shows.
KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"))
MOST_TEXT_BYTES = 64 << 10  # of a text that may tell the orientation
ORIENTED = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
TEXTS = frozenset((b"iTXt", b"zTXt", b"tEXt"))


def pixels_only(data: bytes) -> bytes:
    """`data` with only the chunks that decide the upright pixels. Other files, and what is no chain of chunks, come
    back as they are: opening them tells what is wrong."""
    if not data.startswith(SIGNATURE):
        return data
    kept = [SIGNATURE]
    whole = memoryview(data)
    for kind, start, end in _chunks(data):
        if kind in KEPT or (kind in TEXTS and end - start <= MOST_TEXT_BYTES and _tells_orientation(whole[start:end])):
            kept.append(whole[start:end])
    return b"".join(kept)


def _tells_orientation(chunk: memoryview) -> bool:
    """Whether a text chunk is one that readers look for the orientation in, and of harmless size once unpacked."""
    kind, body = bytes(chunk[4:8]), bytes(chunk[8:-4])
    if not body.startswith(ORIENTED):
        return False
    packed = body.partition(b"\0")[2]
    if kind == b"iTXt":
        packed = packed[2:].split(b"\0", 2)[-1] if packed[:1] == b"\1" else b""
    elif kind == b"zTXt":
        packed = packed[1:]
    else:
        packed = b""
    try:
        return not packed or len(zlib.decompressobj().decompress(packed, 16 * MOST_TEXT_BYTES)) < 16 * MOST_TEXT_BYTES
    except zlib.error:
        return False


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each chunk, length field and checksum included; the last may be cut."""
    start = len(SIGNATURE)
    while start + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        kind = data[start + 4 : start + 8]
        if not kind.isalpha():  # not a chain any more: let the decoder say so
            yield b"IDAT", start, len(data)
            return
        end = min(len(data), start + 12 + length)
        yield kind, start, end
        start = end

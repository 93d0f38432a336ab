"""JPEG as an abbreviated stream: the entropy-coded scan alone, its tables known at both ends.

ITU-T T.81 has such streams (annex B.5, "abbreviated format for compressed image data"). Quantisation tables are annex
K's, scaled by quality as the Independent JPEG Group's library does; Huffman tables are annex K's, because a file's own
optimised ones would have to be sent. Some 610 bytes of each colour file stay where they are.
"""

from __future__ import annotations

from benchmarks.codecs.bare_form import Form, refused
from thinwire.errors import DamagedFrame

# Annex K.1 and K.2: quantisation, in zigzag order. K.3 to K.6: Huffman tables, 16 counts and then the symbols
_LUMA = bytes.fromhex(
    "100b0c0e0c0a100e0d0e1211101318281a181616183123251d283a333d3c3933383740485c4e404457453738506d51575f62"
    "6768673e4d71797064785c656763"
)
_CHROMA = bytes.fromhex(
    "1112121815182f1a1a2f63423842636363636363636363636363636363636363636363636363636363636363636363636363"
    "6363636363636363636363636363"
)
_DC_LUMA = bytes.fromhex("00010501010101010100000000000000000102030405060708090a0b")
_AC_LUMA = bytes.fromhex(
    "0002010303020403050504040000017d01020300041105122131410613516107227114328191a1082342b1c11552d1f02433"
    "627282090a161718191a25262728292a3435363738393a434445464748494a535455565758595a636465666768696a737475"
    "767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2"
    "d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa"
)
_DC_CHROMA = bytes.fromhex("00030101010101010101010000000000000102030405060708090a0b")
_AC_CHROMA = bytes.fromhex(
    "00020102040403040705040400010277000102031104052131061241510761711322328108144291a1b1c109233352f01562"
    "72d10a162434e125f11718191a262728292a35363738393a434445464748494a535455565758595a636465666768696a7374"
    "75767778797a82838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9"
    "cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa"
)

_START, _END, _JFIF = b"\xff\xd8", b"\xff\xd9", 0xE0


def strip(file: bytes, form: Form) -> bytes:
    """A baseline JPEG file → its scan. Raises `ForeignEncoder` where `wrap` would give another picture."""
    try:
        segments, start = _segments(file)
    except (IndexError, ValueError) as error:
        raise refused("JPEG", form, str(error)) from error
    kept = [segment for segment in segments if segment[1] != _JFIF]
    scan = file[start : -len(_END)]
    if _START + b"".join(kept) != _header(form) or not file.endswith(_END) or _marker(scan) is not None:
        raise refused("JPEG", form)
    return scan


def wrap(bare: bytes, form: Form) -> bytes:
    """A scan → a whole file of the same picture. Raises `DamagedFrame` when it holds a marker: segments of its own."""
    at = _marker(bare)
    if at is not None or not bare:
        raise DamagedFrame("the JPEG scan is empty" if at is None else f"the JPEG scan has a marker at byte {at}")
    return _header(form) + bare + _END


def _marker(scan: bytes) -> int | None:
    """Where 0xFF is followed by anything but a stuffed zero."""
    at = scan.find(b"\xff")
    while at >= 0:
        if scan[at + 1 : at + 2] != b"\0":
            return at
        at = scan.find(b"\xff", at + 2)
    return None


def _segments(file: bytes) -> tuple[list[bytes], int]:
    """The marker segments between start of image and scan, the scan's header being the last; where the scan starts."""
    if file[:2] != _START:
        raise ValueError("no start of image")
    segments, at = [], 2
    while not segments or segments[-1][1] != 0xDA:
        size = int.from_bytes(file[at + 2 : at + 4], "big")
        if file[at] != 0xFF or size < 2 or at + 2 + size > len(file):
            raise ValueError(f"a broken segment at byte {at}")
        segments.append(file[at : at + 2 + size])
        at += 2 + size
    return segments, at


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def _header(form: Form) -> bytes:
    """Everything before the scan, as libjpeg orders it, without the JFIF segment (which states a pixel density)."""
    tables = [(_LUMA, _DC_LUMA, _AC_LUMA), (_CHROMA, _DC_CHROMA, _AC_CHROMA)][: 1 if form.grey else 2]
    quantisers = [_segment(0xDB, bytes([n]) + _scaled(table, form.value)) for n, (table, _, _) in enumerate(tables)]
    huffman = [
        _segment(0xC4, bytes([kind << 4 | n]) + table)
        for n, (_, dc, ac) in enumerate(tables)
        for kind, table in enumerate((dc, ac))
    ]
    if form.grey:
        components, scan = b"\x01\x11\x00", b"\x01\x00"
    else:  # luma sampled 2 x 2 against chroma: 4:2:0
        components, scan = b"\x01\x22\x00\x02\x11\x01\x03\x11\x01", b"\x01\x00\x02\x11\x03\x11"
    size = form.height.to_bytes(2, "big") + form.width.to_bytes(2, "big")
    frame = _segment(0xC0, b"\x08" + size + bytes([len(components) // 3]) + components)
    start = _segment(0xDA, bytes([len(scan) // 2]) + scan + b"\x00\x3f\x00")
    return _START + b"".join(quantisers) + frame + b"".join(huffman) + start


def _scaled(table: bytes, quality: float) -> bytes:
    """libjpeg's jpeg_quality_scaling: 50 is the table itself; values stay within 1 to 255."""
    quality = min(100, max(1, int(quality)))
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return bytes(min(255, max(1, (value * scale + 50) // 100)) for value in table)

"""A JPEG XL codestream without signature, size and image metadata: 4 to 8 bytes of each."""

from __future__ import annotations

from benchmarks.codecs.bare_form import Form, refused
from thinwire.errors import DamagedFrame

# ISO/IEC 18181-1, image metadata. "1": all default, 8 bits of sRGB. Grey: 8 bits, 16-bit buffers suffice, no extra
# channels, XYB; colours: grey, D65, sRGB's transfer, relative intent; no extensions, default transforms
_METADATA = {False: "11", True: "000001001001010001110110001"}
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, codes 1 to 7


def strip(file: bytes, form: Form) -> bytes:
    """A codestream → its frame, which begins at a whole byte. Raises `ForeignEncoder` when it begins otherwise."""
    header = _header(form)
    if not file.startswith(header):
        raise refused("JPEG XL", form)
    return file[len(header) :]


def wrap(bare: bytes, form: Form) -> bytes:
    """A frame → the whole codestream."""
    if not bare:
        raise DamagedFrame("the JPEG XL frame is empty")
    return _header(form) + bare


def _header(form: Form) -> bytes:
    """Bits from the least significant on, padded to a byte."""
    bits = _bits(0x0AFF, 16) + _size(form.width, form.height) + _METADATA[form.grey]
    bits += "0" * (-len(bits) % 8)
    return int(bits[::-1], 2).to_bytes(len(bits) // 8, "little")


def _size(width: int, height: int) -> str:
    """SizeHeader: eighths where both sides allow and are at most 256, a ratio where width follows from height."""
    ratio = next((code for code, (a, b) in enumerate(_RATIOS, 1) if height * a // b == width), 0)
    small = height % 8 == 0 and height <= 256 and (ratio > 0 or (width % 8 == 0 and width <= 256))
    sides = [height] if ratio else [height, width]
    coded = [_bits(side // 8 - 1, 5) if small else _large(side) for side in sides]
    return _bits(small, 1) + coded[0] + _bits(ratio, 3) + "".join(coded[1:])


def _large(side: int) -> str:
    selector = next(n for n, width in enumerate((9, 13, 18, 30)) if side <= 1 << width)
    return _bits(selector, 2) + _bits(side - 1, (9, 13, 18, 30)[selector])


def _bits(value: int, count: int) -> str:
    return f"{int(value):0{count}b}"[::-1]

"""One AV1 still as bare bytes: no AVIF boxes, no temporal delimiter, no sequence header, no OBU header of its frame.

An AVIF file of 80 x 80 pixels at quality 35 is 480 bytes plus about 290 that say nothing new: boxes, delimiter and
sequence header follow from the picture's size and a few settings. Both ends know those (`BareForm`), so only the frame
is sent. What is put back is written here, from the AV1 specification (section 5.5, sequence_header_obu) and ISO/IEC
14496-12 and 23000-22 (the boxes). It is never copied from the local encoder, whose version may differ from the other
end's. An encoder that writes another sequence header than this one is a typed error where it happens: at the edge.

A stranger's frame cannot ask for more memory than its form. The header written here says `reduced_still_picture_header`
and `enable_superres = 0`, so the frame carries no size of its own; the length field of its OBU is written here too, so
it is one frame and nothing behind it. Broken contents still reach a C decoder (dav1d): whoever decodes bytes from a
network should do so in a process that may die.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, features

from thinwire.errors import DamagedFrame, ForeignEncoder, ImageError, ThinwireError

Chroma = Literal["4:2:0", "4:4:4", "4:0:0"]
Tune = Literal["iq", "ssim", "psnr"]

MAX_PIXELS = 147_456
"""Largest picture, 384 x 384: AV1's level 2.0 ends here, and with it the one sequence header that is known."""

MAX_SIDE = 1024
"""Largest side in pixels: both sides of AV1's level 2.0 are longer."""

_OBU_SEQUENCE_HEADER, _OBU_TEMPORAL_DELIMITER, _OBU_FRAME = 1, 2, 6
_HAS_SIZE = 2  # obu_has_size_field, the one flag that is set in an OBU's first byte

# Colour as Pillow writes it, in the sequence header and in the box `colr`: BT.709 primaries, sRGB transfer, BT.601
# matrix, full range
_PRIMARIES, _TRANSFER, _MATRIX = 1, 13, 6


@dataclass(frozen=True)
class BareForm:
    """All that must be known of a bare frame beside its bytes. Raises `ImageError` for a form that cannot be.

    width, height: pixels, 1 to 1024, together at most 147,456. chroma: "4:0:0" is a grey picture. cdef, restoration:
    whether the sequence allows these filters; `form_of` knows what libaom chooses.
    """

    width: int
    height: int
    chroma: Chroma = "4:2:0"
    cdef: bool = True
    restoration: bool = False

    def __post_init__(self) -> None:
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise ImageError(f"a bare AV1 frame has sides of 1 to {MAX_SIDE} pixels, got {self.width}x{self.height}")
        if self.width * self.height > MAX_PIXELS:
            raise ImageError(
                f"a bare AV1 frame has at most {MAX_PIXELS} pixels, got {self.width}x{self.height}: shrink it first"
            )
        if self.chroma not in ("4:2:0", "4:4:4", "4:0:0"):
            raise ImageError(f"chroma of a bare AV1 frame is 4:2:0, 4:4:4 or 4:0:0, got {self.chroma!r}")

    @property
    def max_frame_bytes(self) -> int:
        """No frame of this form is longer; lossless noise stays below."""
        return 4 * self.width * self.height + 4096


def form_of(width: int, height: int, *, chroma: Chroma = "4:2:0", speed: int, tune: Tune = "iq") -> BareForm:
    """The form of what `encode` writes with these settings (libaom 3.12 to 3.14, as in Pillow 11.3 to 13.0)."""
    return BareForm(width, height, chroma, cdef=tune == "iq", restoration=speed <= 4)


def encode(image: Image.Image, form: BareForm, *, quality: int, speed: int, tune: Tune = "iq") -> bytes:
    """An image of the form's size, RGB or L → bare frame. One thread; the same bytes from the same libaom.

    quality: 0 to 99 (100 would be lossless, which has other headers); speed: 0 (slow) to 10. Raises `ValueError` for
    other numbers, `ImageError` for another size or mode, `ForeignEncoder` when Pillow has no AV1 encoder or it writes
    another sequence header than the form says.
    """
    if not (0 <= quality <= 99 and 0 <= speed <= 10):
        raise ValueError(f"quality is 0 to 99 and speed 0 to 10, got {quality} and {speed}")
    if image.size != (form.width, form.height) or image.mode not in ("RGB", "L"):
        raise ImageError(
            f"a bare frame of {form.width}x{form.height} is made of an RGB or L image of that size, got {image.mode} "
            f"{image.width}x{image.height}"
        )
    settings = {
        "quality": quality,
        "speed": speed,
        "subsampling": form.chroma,
        "max_threads": 1,
        "advanced": {"tune": tune},  # named always: libavif 1.3 and 1.4 have different defaults
    }
    if form.chroma == "4:0:0":
        image = image.convert("L")
    file = io.BytesIO()
    try:
        image.save(file, "AVIF", icc_profile=b"", exif=b"", xmp=b"", **settings)
    except (KeyError, OSError, ValueError) as error:
        raise ForeignEncoder(f"this Pillow cannot write AV1 ({error}): {_NEEDS}") from error
    return strip(file.getvalue(), form)


def strip(avif: bytes, form: BareForm) -> bytes:
    """An AVIF file of one picture of that form → its bare frame, uint8 bytes without any header.

    Raises `ForeignEncoder` when the file holds anything else than delimiter, sequence header and one frame, or another
    sequence header than `sequence_header(form)`: the other end could not put it back.
    """
    try:
        units = _units(_media_data(avif))
    except (IndexError, ValueError) as error:
        raise ForeignEncoder(f"the encoder's file is not an AVIF of one AV1 frame ({error}): {_NEEDS}") from error
    kinds = [kind for kind, _ in units]
    if kinds != [_OBU_TEMPORAL_DELIMITER, _OBU_SEQUENCE_HEADER, _OBU_FRAME]:
        raise ForeignEncoder(f"the encoder wrote OBUs of the types {kinds}, not one AV1 frame: {_NEEDS}")
    header, frame = units[1][1], units[2][1]
    # libavif 1.3 states the colours in the boxes alone, 1.4 in the sequence header too. No bit of a frame depends on it
    if header not in (sequence_header(form), sequence_header(form, colours=False)):
        raise ForeignEncoder(
            f"the encoder's AV1 sequence header is {header.hex()}, the wire's is {sequence_header(form).hex()} for "
            f"{form}: {_NEEDS}"
        )
    return frame


def wrap(bare: bytes, form: BareForm) -> bytes:
    """A bare frame → a whole AVIF file of the same picture: the very file that Pillow 13.0 (libavif 1.4) writes.

    Raises `DamagedFrame` for bytes that cannot be a frame of that form.
    """
    _check(bare, form)
    stream = (
        _unit(_OBU_TEMPORAL_DELIMITER, b"")
        + _unit(_OBU_SEQUENCE_HEADER, sequence_header(form))
        + _unit(_OBU_FRAME, bare)
    )
    return _boxes(stream, form)


def decode(bare: bytes, form: BareForm) -> np.ndarray:
    """A bare frame → uint8 (height, width, 3) RGB, the pixels that its AVIF file would have given.

    Raises `DamagedFrame` when the bytes do not decode, `ThinwireError` when this Pillow cannot read AV1. Entropy-coded
    data has no checksum of its own: altered bytes may decode to another picture.
    """
    file = wrap(bare, form)
    if not features.check("avif"):
        raise ThinwireError(f"this Pillow cannot read AV1: {_NEEDS}")
    try:
        with Image.open(io.BytesIO(file), formats=["AVIF"]) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, RuntimeError, SyntaxError, ValueError, MemoryError) as error:  # libavif's are of the second kind
        raise DamagedFrame(f"the AV1 frame of {form.width}x{form.height} pixels is damaged ({error})") from error
    if pixels.shape != (form.height, form.width, 3):
        raise DamagedFrame(f"the AV1 frame decodes to {pixels.shape}, not {form.height}x{form.width} pixels")
    return pixels


def sequence_header(form: BareForm, colours: bool = True) -> bytes:
    """Payload of the sequence header OBU (AV1 specification 5.5.1 with reduced_still_picture_header).

    colours: whether it repeats what the box `colr` says.
    """
    bits = _Bits()
    bits.put(1 if form.chroma == "4:4:4" else 0, 3)  # seq_profile
    bits.put(0b11, 2)  # still_picture, reduced_still_picture_header
    bits.put(0, 5)  # seq_level_idx: 2.0
    sides = [(side - 1, max(1, (side - 1).bit_length())) for side in (form.width, form.height)]
    for _, count in sides:
        bits.put(count - 1, 4)  # frame_width_bits_minus_1, frame_height_bits_minus_1
    for side, count in sides:
        bits.put(side, count)  # max_frame_width_minus_1, max_frame_height_minus_1
    bits.put(0b011, 3)  # use_128x128_superblock, enable_filter_intra, enable_intra_edge_filter
    bits.put(0, 1)  # enable_superres: a frame could otherwise be of another width
    bits.put(form.cdef, 1)
    bits.put(form.restoration, 1)
    bits.put(0, 1)  # high_bitdepth
    if form.chroma != "4:4:4":
        bits.put(form.chroma == "4:0:0", 1)  # mono_chrome
    bits.put(colours, 1)  # color_description_present_flag
    for value in (_PRIMARIES, _TRANSFER, _MATRIX) if colours else ():
        bits.put(value, 8)
    bits.put(1, 1)  # color_range: full
    if form.chroma == "4:2:0":
        bits.put(0, 2)  # chroma_sample_position: unknown
    if form.chroma != "4:0:0":
        bits.put(0, 1)  # separate_uv_delta_q
    bits.put(0, 1)  # film_grain_params_present
    bits.put(1, 1)  # trailing_one_bit, then zeros to the byte's end
    return bits.whole()


_NEEDS = "thinwire's stills need Pillow 11.3 or later with AVIF and libaom, as its wheels have it"


class _Bits:
    """Bits written from the most significant on."""

    def __init__(self) -> None:
        self._text = ""

    def put(self, value: int, count: int) -> None:
        self._text += f"{int(value):0{count}b}"

    def whole(self) -> bytes:
        text = self._text + "0" * (-len(self._text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def _check(bare: bytes, form: BareForm) -> None:
    """What can be said of a frame before it is decoded: its length, and the start of its header (section 5.9.2)."""
    limit = form.max_frame_bytes
    if not 2 <= len(bare) <= limit:
        raise DamagedFrame(
            f"a frame of {form.width}x{form.height} pixels is 2 to {limit} bytes, this one has {len(bare)}"
        )
    screen_content = bool(bare[0] & 0x40)  # after disable_cdf_update
    at = 3 if screen_content else 2  # force_integer_mv is there for screen content alone
    if bare[0] << at & 0x80:
        raise DamagedFrame("the AV1 frame asks to be shown at another size (render_and_frame_size_different)")


def _unit(kind: int, payload: bytes) -> bytes:
    """An OBU with its length (section 5.3)."""
    return bytes([kind << 3 | _HAS_SIZE]) + _leb128(len(payload)) + payload


def _leb128(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _units(stream: bytes) -> list[tuple[int, bytes]]:
    """(type, payload) of each OBU. Raises `ValueError` or `IndexError` when they do not fill the stream."""
    units, at = [], 0
    while at < len(stream):
        first, at, size, shift = stream[at], at + 1, 0, 0
        if first & 0x87 != _HAS_SIZE:
            raise ValueError(f"an OBU begins with {first:#04x}")
        while True:
            byte, at = stream[at], at + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if size > len(stream) - at:
            raise ValueError("an OBU ends behind the file")
        units.append((first >> 3, stream[at : at + size]))
        at += size
    return units


def _media_data(avif: bytes) -> bytes:
    """Contents of the one box `mdat`. Raises `ValueError` for a file of other or broken boxes."""
    at, found = 0, {}
    while at < len(avif):
        size, kind = int.from_bytes(avif[at : at + 4], "big"), avif[at + 4 : at + 8]
        if not 8 <= size <= len(avif) - at or kind in found:
            raise ValueError(f"broken box at byte {at}")
        found[kind] = avif[at + 8 : at + size]
        at += size
    if set(found) != {b"ftyp", b"meta", b"mdat"}:
        raise ValueError(f"boxes {sorted(found)}")
    return found[b"mdat"]


def _box(kind: bytes, *contents: bytes) -> bytes:
    body = b"".join(contents)
    return (len(body) + 8).to_bytes(4, "big") + kind + body


def _numbers(*values: int, size: int) -> bytes:
    return b"".join(value.to_bytes(size, "big") for value in values)


def _boxes(stream: bytes, form: BareForm) -> bytes:
    """AV1 stream → AVIF file, laid out as libavif 1.3 and 1.4 do: ftyp, meta, mdat, one item `av01`."""
    # The profile brands stand for 4:2:0 and 4:4:4; a grey picture is of neither
    brands = b"avifmif1miaf" + {"4:2:0": b"MA1B", "4:4:4": b"MA1A", "4:0:0": b""}[form.chroma]
    file_type = _box(b"ftyp", b"avif", bytes(4), brands)
    depths = bytes([1, 8]) if form.chroma == "4:0:0" else bytes([3, 8, 8, 8])
    profile_and_level = 0x20 if form.chroma == "4:4:4" else 0
    subsampling = {"4:2:0": 0x0C, "4:4:4": 0x00, "4:0:0": 0x1C}[form.chroma]
    properties = _box(
        b"iprp",
        _box(
            b"ipco",
            _box(b"ispe", bytes(4), _numbers(form.width, form.height, size=4)),
            _box(b"pixi", bytes(4), depths),
            _box(b"av1C", bytes([0x81, profile_and_level, subsampling, 0])),
            _box(b"colr", b"nclx", _numbers(_PRIMARIES, _TRANSFER, _MATRIX, size=2), b"\x80"),
        ),
        # item 1 has the four properties; the third, av1C, is essential
        _box(b"ipma", bytes(4), _numbers(1, size=4), _numbers(1, size=2), bytes([4, 1, 2, 0x83, 4])),
    )

    def meta(offset: int) -> bytes:
        return _box(
            b"meta",
            bytes(4),
            _box(b"hdlr", bytes(8), b"pict", bytes(13)),
            _box(b"pitm", bytes(4), _numbers(1, size=2)),
            _box(
                b"iloc",
                bytes(4),
                b"\x44\x00",  # offsets and lengths of 4 bytes
                _numbers(1, 1, 0, 1, size=2),  # one item, its id, this file, one extent
                _numbers(offset, len(stream), size=4),
            ),
            _box(
                b"iinf",
                bytes(4),
                _numbers(1, size=2),
                _box(b"infe", b"\x02\x00\x00\x00", _numbers(1, 0, size=2), b"av01Color\x00"),
            ),
            properties,
        )

    start = len(file_type) + len(meta(0)) + 8
    return file_type + meta(start) + _box(b"mdat", stream)

"""The range of deep pixels, nearly flat views, and PNG files whose pixels are sound while their texts are not."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from tests.thinwire.test_imaging import RED, UPRIGHT, corners, file_of, near, quarters
from thinwire.deep_pixels import judged_range
from thinwire.errors import ImageError
from thinwire.imaging import flat_note, open_image

RAMP = np.linspace(0, 1, 64)[None].repeat(8, 0)
EIGHT_BIT = np.rint(RAMP * 255)


def grey(values: np.ndarray, kind: str, **options) -> np.ndarray:
    """What is seen of a greyscale file that holds `values`."""
    return np.asarray(open_image(file_of(Image.fromarray(values), kind, **options)))[..., 0].astype(int)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_in_a_16_bit_file(bits):
    values = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        assert np.abs(grey(values, kind) - EIGHT_BIT).max() <= 1


@pytest.mark.parametrize("white", [255, 1023, 4095, 65535, 2**24 - 1])
def test_a_32_bit_tiff_of_any_range(white):
    assert np.abs(grey(np.rint(RAMP * white).astype(np.int32), "TIFF") - EIGHT_BIT).max() <= 1
    assert np.abs(grey((RAMP * white).astype(np.float32), "TIFF") - EIGHT_BIT).max() <= 1


def test_values_below_zero():
    for values in (RAMP * 2 - 1, RAMP * 4000 - 1000):  # normalised; Hounsfield units
        assert np.abs(grey(values.astype(np.float32), "TIFF") - EIGHT_BIT).max() <= 1
    assert np.abs(grey((RAMP * 4000 - 1000).astype(np.int32), "TIFF") - EIGHT_BIT).max() <= 1


def test_a_range_that_the_file_states_is_its_range():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 4095  # MaxSampleValue
    dark = np.rint(RAMP * 1000).astype(np.uint16)
    assert grey(dark, "TIFF", tiffinfo=tags).max() == round(1000 / 4095 * 255)
    tags[281] = 100  # and where its values lie beyond it, it is not
    assert grey(dark, "TIFF", tiffinfo=tags).max() == round(1000 / 1023 * 255)


def test_the_judge_of_ranges():
    assert judged_range(0, 0, is_float=False) == (0, 255)
    assert judged_range(0, 1.4, is_float=True) == (0, 1)
    assert judged_range(0, 255.0, is_float=True) == (0, 255)
    assert judged_range(0, 3.0e38, is_float=True) == (0, 3.0e38)
    assert judged_range(5, 4096, is_float=False) == (0, 16383)
    assert judged_range(5, 300, is_float=False, stated=(0, 4095)) == (0, 4095)


def png16(samples: np.ndarray, colour_type: int, interlaced: bool = False) -> bytes:
    """uint16 (H, W, channels) → a PNG of 16-bit samples; Pillow writes none in colour."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return PngImagePlugin._MAGIC + b"".join(
        chunk(kind, body) for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def chunk(kind: bytes, body: bytes, damaged: bool = False) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ damaged)


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("channels", [3, 4])
def test_fewer_bits_in_a_16_bit_file_in_colour(bits, channels):
    white = 2**bits - 1
    samples = np.stack([RAMP * white, (1 - RAMP) * white, RAMP * 0 + white / 2], -1).round().astype(np.uint16)
    if channels == 4:
        samples = np.concatenate([samples, np.full_like(samples[..., :1], 65535)], -1)
    for data in (png16(samples, {3: 2, 4: 6}[channels]), tiff16(samples)):
        seen = np.asarray(open_image(data)).astype(int)
        assert np.abs(seen - samples[..., :3] * (255 / white)).max() <= 1


def tiff16(samples: np.ndarray) -> bytes:
    """An uncompressed TIFF of 16-bit samples in colour."""
    height, width, channels = samples.shape
    data = samples.astype("<u2").tobytes()
    bits_at = 8
    tags_at = bits_at + 2 * channels
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, tags_at + 2 + 12 * (9 if channels == 3 else 10) + 4),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    if channels == 4:
        entries.append((338, 3, 1, 2))  # unassociated alpha
    out = struct.pack("<2sHI", b"II", 42, tags_at) + struct.pack(f"<{channels}H", *[16] * channels)
    out += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *each) for each in entries) + bytes(4)
    return out + data


# ---------------------------------------------------------------- nearly flat views


@pytest.mark.parametrize(("low", "high", "flat"), [(0, 0, True), (200, 206, True), (3, 40, False), (0, 255, False)])
def test_a_nearly_flat_view_is_told(low, high, flat):
    view = np.full((8, 8, 3), low, np.uint8)
    view[2:4, 3] = high
    note = flat_note(view, "yard.png")
    assert (note is not None) == flat
    if flat:
        assert note.startswith(f"yard.png: the view is nearly flat, its values are {low} to {high} of 255")


# ---------------------------------------------------------------- PNG files


def png_with(*chunks: bytes) -> bytes:
    """The quarters, with chunks before the pixels."""
    data = file_of(quarters(), "PNG")
    after_header = 8 + 25
    return data[:after_header] + b"".join(chunks) + data[after_header:]


HUGE = bytes(range(256)) * (8 << 10)  # 2 MiB
ODD_CHUNKS = {
    "compressed text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(HUGE)),
    "international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(HUGE)),
    "plain text": chunk(b"tEXt", b"Comment\0" + b"x" * len(HUGE)),
    "colour profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(HUGE)),
    "colour profile that is none": chunk(b"iCCP", b"profile\0\0these bytes are not compressed"),
    "damaged checksum of a text": chunk(b"tEXt", b"Comment\0words", damaged=True),
    "damaged checksum of a time": chunk(b"tIME", bytes(7), damaged=True),
    "a bomb that says it tells the orientation": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(HUGE)),
    "a physical size of two bytes": chunk(b"pHYs", bytes(2)),
    "animation control that is too short": chunk(b"acTL", bytes(2)),
}


@pytest.mark.parametrize("name", ODD_CHUNKS)
def test_what_is_not_pixels_does_not_cost_the_pixels(name):
    assert near(corners(open_image(png_with(ODD_CHUNKS[name]))), UPRIGHT)


def test_what_decides_the_upright_pixels_stays():
    turned = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    image = open_image(png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + turned)))
    assert near(corners(image), UPRIGHT[::-1])
    exif = Image.Exif()
    exif[0x0112] = 3
    assert near(corners(open_image(file_of(quarters(), "PNG", exif=exif))), UPRIGHT[::-1])
    palette = quarters("P")
    seen = open_image(file_of(palette, "PNG", transparency=palette.getpixel((1, 1))))
    assert seen.getpixel((1, 1)) == (255, 255, 255)
    assert near([seen.getpixel((24, 4))], [(0, 255, 0)], 60)


def test_damaged_pixels_are_damaged():
    data = bytearray(file_of(quarters(size=256), "PNG"))
    data[len(data) // 2] ^= 255
    with pytest.raises(ImageError, match="damaged"):
        open_image(bytes(data))
    cut = file_of(quarters(), "PNG")[:-30]
    with pytest.raises(ImageError, match="damaged"):
        open_image(cut)


def test_a_huge_profile_in_other_formats():
    for kind in ("JPEG", "WEBP", "TIFF"):
        assert near(corners(open_image(file_of(quarters(), kind, icc_profile=HUGE))), UPRIGHT)
    out = io.BytesIO()
    Image.new("RGB", (8, 8), RED).save(out, "GIF", comment=HUGE[:60000])
    assert near([open_image(out.getvalue()).getpixel((3, 3))], [RED])

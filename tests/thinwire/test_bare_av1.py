"""Bare AV1 frames: what is cut away comes back to the byte, and damaged frames are typed errors."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from thinwire.bare_av1 import BareForm, decode, encode, form_of, sequence_header, strip, wrap
from thinwire.errors import DamagedFrame, ForeignEncoder, ImageError

SIZES = [(1, 1), (2, 1), (7, 5), (33, 51), (80, 80), (112, 112), (224, 224), (300, 16)]

# A frame of 16 x 12 pixels at quality 35, speed 6, made by libaom 3.14.1, and the SHA-256 of its AVIF file
GOLDEN = bytes.fromhex("1b878785ddcf3cf3c2850080a246ec380a3d72f03939e575759a1b76c57baf7a7a1e85c2")
GOLDEN_FILE = "c9caf279bdb89997e40f2719c96917723939e69d85160998c2746067437fb3fe"


def textured(width: int, height: int, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[:height, :width]
    planes = [127 + 90 * np.sin(x / 9 + y / (7 + c)) + 30 * ((x // 5 + y // 3 + c) % 2) for c in range(3)]
    return Image.fromarray(np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)).convert(mode)


def whole_file(image: Image.Image, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "AVIF", max_threads=1, **settings)
    return file.getvalue()


def pixels(avif: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(avif)).convert("RGB"))


@pytest.mark.parametrize(("mode", "chroma"), [("RGB", "4:2:0"), ("RGB", "4:4:4"), ("L", "4:0:0"), ("L", "4:2:0")])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_bare_frame_gives_its_files_pixels(width: int, height: int, mode: str, chroma: str) -> None:
    image = textured(width, height, mode)
    for quality, speed, tune in ((0, 6, "iq"), (35, 8, "iq"), (35, 6, "ssim"), (35, 3, "psnr"), (60, 4, "iq")):
        form = form_of(width, height, chroma=chroma, speed=speed, tune=tune)
        full = whole_file(image, quality=quality, speed=speed, subsampling=chroma, advanced={"tune": tune})
        bare = strip(full, form)
        assert bare == encode(image, form, quality=quality, speed=speed, tune=tune)
        assert len(full) - len(bare) >= 280
        assert np.array_equal(decode(bare, form), pixels(full))
        assert np.array_equal(pixels(wrap(bare, form)), pixels(full))


def test_headers_and_boxes_never_drift() -> None:
    form = form_of(16, 12, speed=6)
    assert sequence_header(BareForm(80, 80)).hex() == "1819a7cf6880868342"
    assert sequence_header(BareForm(80, 80, restoration=True)).hex() == "1819a7cf6c80868342"
    assert sequence_header(BareForm(224, 224, "4:4:4")).hex() == "381df7f7da404341a4"
    assert sequence_header(BareForm(7, 5, "4:0:0")).hex() == "1808b46980868350"
    assert hashlib.sha256(wrap(GOLDEN, form)).hexdigest() == GOLDEN_FILE
    assert decode(GOLDEN, form).mean() == pytest.approx(np.asarray(textured(16, 12)).mean(), abs=3)


def test_an_older_encoder_is_accepted_and_another_refused() -> None:
    form = BareForm(16, 12)
    full = wrap(GOLDEN, form)
    header = sequence_header(form)
    older = sequence_header(form, colours=False)  # as libavif 1.3 writes it
    assert strip(_with_stream(bytes([10, len(older)]) + older), form) == GOLDEN
    assert strip(full, form) == GOLDEN
    for other in (dataclasses.replace(form, restoration=True), dataclasses.replace(form, width=17)):
        with pytest.raises(ForeignEncoder, match=header.hex()):
            strip(full, other)
    for stream in (b"", bytes([10, len(header)]) + header + b"\x2a\x00"):  # no header; metadata between
        with pytest.raises(ForeignEncoder, match="OBUs of the types"):
            strip(_with_stream(stream), form)
    for broken in (b"", full[:-1], full[:200], full + full, b"\xff" * 64, _with_stream(b"\x0a\xff\xff\xff\x7f")):
        with pytest.raises(ForeignEncoder):
            strip(broken, form)


def _with_stream(between: bytes) -> bytes:
    stream = b"\x12\x00" + between + bytes([0x32, len(GOLDEN)]) + GOLDEN
    return b"\0\0\0\x08ftyp\0\0\0\x08meta" + (len(stream) + 8).to_bytes(4, "big") + b"mdat" + stream


def test_forms_and_settings_that_cannot_be() -> None:
    for width, height in ((0, 5), (5, 0), (1025, 1), (385, 384), (10**9, 10**9), (-3, 5)):
        with pytest.raises(ImageError, match="bare AV1 frame"):
            BareForm(width, height)
    with pytest.raises(ImageError, match="chroma"):
        BareForm(8, 8, "4:2:2")
    for image in (textured(9, 8), textured(8, 8).convert("RGBA")):
        with pytest.raises(ImageError, match="of that size"):
            encode(image, BareForm(8, 8), quality=35, speed=6)
    for quality, speed in ((100, 6), (-1, 6), (35, 11)):
        with pytest.raises(ValueError, match="quality is 0 to 99"):
            encode(textured(8, 8), BareForm(8, 8), quality=quality, speed=speed)
    with pytest.raises(ForeignEncoder, match="sequence header"):  # speed 4 allows restoration
        encode(textured(8, 8), form_of(8, 8, speed=6), quality=35, speed=4)


def test_damaged_frames_are_typed_errors() -> None:
    form = form_of(16, 12, speed=6)
    for bare in (b"", b"\x00", GOLDEN[:3], b"\xff" * 40, GOLDEN + bytes(10**6)):
        with pytest.raises(DamagedFrame):
            decode(bare, form)
    with pytest.raises(DamagedFrame, match="shown at another size"):
        decode(b"\x20" + GOLDEN[1:], form)


@given(st.data())
def test_any_bytes_decode_or_are_damaged(data: st.DataObject) -> None:
    form = form_of(16, 12, speed=6)
    bare = bytearray(GOLDEN)
    for _ in range(data.draw(st.integers(1, 4))):
        bare[data.draw(st.integers(0, len(bare) - 1))] = data.draw(st.integers(0, 255))
    bare = bare[: data.draw(st.integers(0, len(bare)))]
    with contextlib.suppress(DamagedFrame):
        assert decode(bytes(bare), form).shape == (12, 16, 3)

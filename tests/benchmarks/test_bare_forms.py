"""Bare JPEG, WebP and JPEG XL: the same pixels as the whole file at any size, colour or grey, and typed errors."""

from __future__ import annotations

import hashlib
import io

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from benchmarks.codecs import bare_jpeg, bare_jxl, bare_webp
from benchmarks.codecs.bare_form import Form
from thinwire.errors import DamagedFrame, ForeignEncoder

SIZES = [(1, 1), (2, 1), (7, 5), (16, 8), (33, 51), (80, 64), (160, 120), (224, 224), (300, 16), (272, 136)]
CODECS = {"jpeg": bare_jpeg, "webp": bare_webp, "jxl": bare_jxl}
SETTINGS = {"jpeg": (1, 2, 35, 50, 80, 100), "webp": (0, 30, 100), "jxl": (25, 8, 1)}


def picture(width: int, height: int, grey: bool) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    planes = [127 + 90 * np.sin(x / 9 + y / (7 + c)) + 30 * ((x // 5 + y // 3 + c) % 2) for c in range(3)]
    return Image.fromarray(np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)).convert("L" if grey else "RGB")


def whole_file(codec: str, image: Image.Image, value: float) -> bytes:
    file = io.BytesIO()
    if codec == "jpeg":
        image.save(file, "JPEG", quality=int(value), **({} if image.mode == "L" else {"subsampling": "4:2:0"}))
    elif codec == "webp":
        image.save(file, "WEBP", quality=int(value), method=6)
    else:
        return imagecodecs.jpegxl_encode(np.asarray(image), distance=value, effort=4, usecontainer=False, numthreads=1)
    return file.getvalue()


def pixels(codec: str, file: bytes) -> np.ndarray:
    if codec == "jxl":
        return imagecodecs.jpegxl_decode(file, numthreads=1)
    return np.asarray(Image.open(io.BytesIO(file)))


@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
@pytest.mark.parametrize("codec", CODECS)
def test_bare_bytes_give_the_whole_files_pixels(codec, grey):
    for width, height in SIZES:
        image = picture(width, height, grey)
        for value in SETTINGS[codec]:
            form = Form(width, height, value, grey)
            file = whole_file(codec, image, value)
            bare = CODECS[codec].strip(file, form)
            assert len(file) - len(bare) >= (4 if codec == "jxl" else 27)
            again = CODECS[codec].wrap(bare, form)
            assert np.array_equal(pixels(codec, again), pixels(codec, file))
            assert CODECS[codec].strip(again, form) == bare


def test_what_is_put_back_never_drifts():
    """Golden: the constant bytes are part of the form, whatever library made a scan."""
    hashes = {
        "jpeg": hashlib.sha256(bare_jpeg.wrap(b"\x00", Form(80, 60, 10))).hexdigest()[:16],
        "jpeg grey": hashlib.sha256(bare_jpeg.wrap(b"\x00", Form(80, 60, 80, True))).hexdigest()[:16],
        "webp": bare_webp.wrap(b"\x50\x00\x00\x01\x02", Form(80, 60, 5)).hex(),
        "jxl": bare_jxl.wrap(b"\x00", Form(80, 60, 5)).hex(),
        "jxl grey": bare_jxl.wrap(b"\x00", Form(224, 224, 5, True)).hex(),
    }
    assert hashes == GOLDEN


GOLDEN = {
    "jpeg": "d54544945f2b570c",
    "jpeg grey": "a2df261b5463d1be",
    "webp": "524946461800000057454250565038200c0000005000009d012a50003c000102",
    "jxl": "ff0ad8b10100",
    "jxl grey": "ff0a774052dc0800",
}


@pytest.mark.parametrize("codec", CODECS)
def test_files_of_another_form_are_refused(codec):
    file = whole_file(codec, picture(48, 40, False), SETTINGS[codec][1])
    value = SETTINGS[codec][1]
    for form in (Form(40, 48, value), Form(48, 41, value), Form(48, 40, value, True)):
        if codec == "webp" and form.grey:
            continue  # WebP has no grey
        with pytest.raises(ForeignEncoder):
            CODECS[codec].strip(file, form)
    for broken in (b"", file[:3], b"\xff" * 40, b"RIFF" + bytes(40)):
        with pytest.raises(ForeignEncoder):
            CODECS[codec].strip(broken, Form(48, 40, value))


def test_jpegs_with_tables_of_their_own_are_refused():
    for settings in ({"optimize": True}, {"progressive": True}, {"subsampling": "4:4:4"}, {"quality": 21}):
        file = io.BytesIO()
        picture(48, 40, False).save(file, "JPEG", **{"quality": 20, **settings})
        with pytest.raises(ForeignEncoder):
            bare_jpeg.strip(file.getvalue(), Form(48, 40, 20))


def test_impossible_bare_bytes_are_damaged():
    form = Form(48, 40, 20)
    for scan in (b"", b"\xff\xd9", b"\x00\xff\xc0\x00", b"\x12\xff"):
        with pytest.raises(DamagedFrame):
            bare_jpeg.wrap(scan, form)
    for frame in (b"", b"\x50\x00", b"\x51\x00\x00\x01", b"\x40\x00\x00\x01", b"\xf0\xff\xff\x01"):
        with pytest.raises(DamagedFrame):
            bare_webp.wrap(frame, form)
    with pytest.raises(DamagedFrame):
        bare_jxl.wrap(b"", form)

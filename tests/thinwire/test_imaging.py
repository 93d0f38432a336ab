from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from thinwire.errors import ImageError
from thinwire.imaging import canonical_view, open_image, upright_rgb

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(mode: str = "RGB", size: int = 32) -> Image.Image:
    """Red, green / blue, white quarters."""
    image = Image.new("RGB", (size, size), WHITE)
    half = size // 2
    image.paste(RED, (0, 0, half, half))
    image.paste(GREEN, (half, 0, size, half))
    image.paste(BLUE, (0, half, half, size))
    return image.convert(mode)


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    width, height = image.size
    quarter = [(width // 4, height // 4), (3 * width // 4, height // 4)]
    quarter += [(width // 4, 3 * height // 4), (3 * width // 4, 3 * height // 4)]
    return [image.getpixel(at) for at in quarter]


def near(found: list, expected: list, tolerance: int = 12) -> bool:
    return np.abs(np.array(found, int) - np.array(expected, int)).max() <= tolerance


UPRIGHT = [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats(kind):
    image = open_image(file_of(quarters(), kind))
    assert image.mode == "RGB"
    assert near(corners(image), UPRIGHT)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("YCbCr", "JPEG")],
)
def test_colour_modes(mode, kind):
    image = open_image(file_of(quarters(mode), kind))
    assert image.mode == "RGB"
    assert near(corners(image), UPRIGHT, 60 if mode == "P" else 12)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_greyscale(mode):
    image = open_image(file_of(Image.new("L", (8, 8), 255).convert(mode), "PNG"))
    assert image.getpixel((3, 3)) == WHITE


def test_transparency_is_laid_over_white():
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 4, 8))
    image = open_image(file_of(half, "PNG"))
    assert image.getpixel((1, 1)) == RED
    assert image.getpixel((6, 6)) == WHITE
    palette = quarters("P")
    image = open_image(file_of(palette, "PNG", transparency=palette.getpixel((1, 1))))
    assert image.getpixel((1, 1)) == WHITE
    keyed = open_image(file_of(quarters(), "PNG", transparency=BLUE))
    assert keyed.getpixel((4, 28)) == WHITE


def test_16_bit_greyscale_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
    image = np.asarray(open_image(file_of(Image.fromarray(ramp), "PNG")))
    expected = np.rint(ramp / 65535 * 255)
    assert np.abs(image[..., 0] - expected).max() <= 1
    assert (image[..., 0] == image[..., 2]).all()


def test_float_images():
    ramp = np.linspace(-0.5, 1.5, 64, dtype=np.float32)[None].repeat(8, 0)
    image = np.asarray(open_image(file_of(Image.fromarray(ramp), "TIFF")))[..., 0]
    assert (image == np.rint(ramp.clip(0, 1) * 255)).all()
    ramp[0, 0] = np.nan
    with pytest.raises(ImageError, match="finite"):
        open_image(file_of(Image.fromarray(ramp), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    image = open_image(file_of(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert near([canonical_view(image, 8, 8)[4, 4]], [RED])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quarters().resize((32, 48))
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(file_of(stored, "JPEG", exif=exif, quality=95))
    assert image.size == (32, 48)
    assert near(corners(image), UPRIGHT)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"dpi": (300, 75)}),
        ("JPEG", {"dpi": (72, 288)}),
        ("PNG", {"dpi": (75, 300)}),  # pHYs
        ("TIFF", {"dpi": (204, 98)}),  # a fax
        ("TIFF", {"x_resolution": 98, "y_resolution": 204}),
        ("TIFF", {"x_resolution": 0, "y_resolution": 0}),
        ("BMP", {"dpi": (300, 100)}),
    ],
)
def test_resolutions_that_differ_leave_pixels_square(kind, options):
    """As browsers, Pillow and the loaders that CLIP was trained by have it: pixels count, not how large they print."""
    picture = quarters().resize((48, 32))
    plain = open_image(file_of(picture, kind))
    told = open_image(file_of(picture, kind, **options))
    assert told.size == plain.size == (48, 32)
    np.testing.assert_array_equal(canonical_view(told, 24, 24), canonical_view(plain, 24, 24))


def test_damaged_exif_does_not_cost_the_pixels():
    assert near(corners(open_image(file_of(quarters(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))), UPRIGHT)


def test_path_and_bytes_give_the_same(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(file_of(quarters(), "JPEG"))
    views = [canonical_view(open_image(source), 16, 16) for source in (path, str(path), path.read_bytes())]
    assert (views[0] == views[1]).all()
    assert (views[0] == views[2]).all()


def truncated(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = file_of(Image.fromarray(noise), kind)
    return data[: len(data) // 2]


def png_header(width: int, height: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "empty"),
        (b"once upon a time", "not an image of a supported format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (truncated("JPEG"), "damaged"),
        (truncated("PNG"), "damaged"),
        (truncated("WEBP"), "."),
        (truncated("TIFF"), "."),
        (file_of(quarters(), "JPEG")[:20], "."),
        (png_header(10_000, 10_000), "megapixels"),
        (png_header(60_000, 60_000), "megapixels"),
        (png_header(100, 100), "damaged"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, data, match):
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=match) as caught:
        open_image(path)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(ImageError, match=r"^frame 7: "):
        open_image(data, name="frame 7")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="folder"):
        open_image(tmp_path)
    with pytest.raises(ImageError):
        open_image("nul\0byte.png")


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF"]), data=st.data())
def test_mutated_files_are_an_image_or_an_error(kind, data):
    original = bytearray(file_of(quarters(size=16), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    try:
        view = canonical_view(open_image(bytes(original)), 16, 16)
    except ImageError:
        return
    assert view.shape == (16, 16, 3)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40))
def test_views_have_the_size_asked_for(image_width, image_height, height, width):
    image = Image.new("RGB", (image_width, image_height), (10, 200, 30))
    view = canonical_view(image, height, width)
    assert view.dtype == np.uint8
    assert view.shape == (height, width, 3)
    assert (view == (10, 200, 30)).all()


def test_view_is_resize_of_the_short_side_and_centre_crop():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (60, 100, 3), np.uint8)).resize((200, 120))
    resized = image.resize((100, 60), Image.Resampling.BICUBIC)
    assert (canonical_view(image, 60, 60) == np.asarray(resized.crop((20, 0, 80, 60)))).all()


def test_view_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    view = canonical_view(Image.fromarray(stripes), 8, 8)
    assert np.abs(view[1:-1, 1:-1].astype(int) - 127).max() < 12


def test_view_of_the_right_size_is_the_image():
    frame = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    view = canonical_view(frame, 24, 24)
    assert (view == frame).all()
    view[0] = 0  # a copy of its own
    assert frame[0].any()


def test_golden_view():
    y, x = np.mgrid[0:97, 0:131]
    frame = np.stack([x * 255 // 130, y * 255 // 96, (x * y) % 256], -1).astype(np.uint8)
    digest = hashlib.sha256(canonical_view(frame, 64, 48).tobytes()).hexdigest()
    assert digest[:16] == "6ca19d49bf6025e5"  # Pillow 13 on x86-64


def test_frames_of_another_kind():
    for frame in (
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3)),
        np.zeros((0, 8, 3), np.uint8),
    ):
        with pytest.raises(ImageError, match="frame"):
            canonical_view(frame, 8, 8)
    with pytest.raises(ImageError, match="open_image"):
        canonical_view(Image.new("L", (8, 8)), 8, 8)
    for size in (0, 20_000):
        with pytest.raises(ValueError, match="pixels"):
            canonical_view(Image.new("RGB", (8, 8)), size, 8)


def test_images_that_pillow_holds():
    for mode in ("RGB", "RGBA", "CMYK", "P", "L"):
        image = quarters(mode)
        upright = upright_rgb(image)
        assert upright.mode == "RGB"
        assert image.mode == mode
        assert (np.asarray(upright) == np.asarray(open_image(file_of(image, "TIFF")))).all()
    with pytest.raises(ImageError, match=r"^camera 1: .*damaged"):
        upright_rgb(Image.open(io.BytesIO(truncated("JPEG"))), "camera 1")

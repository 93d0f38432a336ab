"""Image files and the canonical view: the fixed-size RGB array that every codec and every peer starts from.

Both ends and all benchmarks use this one module. A plain instead of an antialiased resize alone moved a CLIP vector to
cosine 0.94, so there is no fast path that gives other pixels: no JPEG draft mode, no reducing gap.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from thinwire.errors import ImageError

_WANTED = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "AVIF": "AvifImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
}


def _load_plugins() -> tuple[str, ...]:
    """Imports just these of Pillow's forty plugins (a tenth of a second less at start); older Pillows lack AVIF."""
    for plugin in _WANTED.values():
        with contextlib.suppress(ImportError):
            importlib.import_module(f"PIL.{plugin}")
    return tuple(name for name in _WANTED if name in Image.OPEN)


FORMATS = _load_plugins()
"""Pillow formats that are opened. EPS and the like would start other programs on a stranger's bytes."""

MAX_IMAGE_PIXELS = 89_000_000
"""Larger images are refused before their pixels are decoded (89 MP take 356 MB); just under Pillow's own warning."""

MAX_SIDE = 16384
"""Largest side of a canonical view."""


def open_image(source: str | os.PathLike[str] | bytes, name: str | None = None) -> Image.Image:
    """The image in `source` (a path, or a file's bytes) as upright 8-bit RGB, whatever it was stored as.

    EXIF rotation is applied, CMYK converted, transparency laid over white, 16-bit and float values scaled to 8 bits,
    the first frame of an animation taken. Colour profiles are ignored. `name` is what errors call bytes. Raises
    `ImageError`, whose message begins with the file's name, for anything that is not such an image.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        label, data = name or "image", bytes(source)
    else:
        label = name or os.fspath(source)
        try:
            data = Path(source).read_bytes()
        except FileNotFoundError as error:
            raise ImageError(f"{label}: no such file") from error
        except IsADirectoryError as error:
            raise ImageError(f"{label}: is a folder, not an image file") from error
        except (OSError, ValueError) as error:
            raise ImageError(f"{label}: cannot be read ({error})") from error
    if not data:
        raise ImageError(f"{label}: the file is empty (0 bytes)")
    with _image_errors(label), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _finish(image, label)


def upright_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """An image that Pillow holds, as `open_image` would have given it; `image` itself is not altered.

    Raises `ImageError`, whose message begins with `name`, when its pixels cannot be read.
    """
    with _image_errors(name):
        _check_size(image, name)
        return _finish(image.copy(), name)  # copying loads the pixels


def canonical_view(image: Image.Image | np.ndarray, height: int, width: int) -> np.ndarray:
    """The centre of `image` that has the shape height:width, scaled to height x width: uint8 (height, width, 3) RGB.

    "Resize the shortest side, then crop the centre", in one antialiased bicubic pass over the crop (fixed-point
    arithmetic inside Pillow, so the bytes do not depend on the machine). Small images are scaled up. An image of the
    right size comes back unchanged. `image` is upright RGB from `open_image`, or a camera frame uint8 (H, W, 3) RGB.
    Raises `ImageError` for an array of another type or shape, `ValueError` for a size outside 1..16384.
    """
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"a view is 1 to {MAX_SIDE} pixels high and wide, got {height}x{width}")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ImageError(f"a frame must be uint8 (H, W, 3) RGB, got {image.dtype} {image.shape}")
        image = Image.fromarray(np.ascontiguousarray(image))
    if image.mode != "RGB":
        raise ImageError(f"a view is taken of RGB images, got mode {image.mode!r}: use open_image()")
    if image.size == (width, height):
        return np.array(image)
    crop = min(image.width / width, image.height / height)  # source pixels per view pixel, same along both axes
    left = (image.width - crop * width) / 2
    top = (image.height - crop * height) / 2
    # max/min: rounding must not push the box a hair outside the image, which Pillow refuses
    box = (max(0.0, left), max(0.0, top), min(image.width, left + crop * width), min(image.height, top + crop * height))
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


@contextlib.contextmanager
def _image_errors(label: str) -> Iterator[None]:
    """Whatever Pillow raises, as `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{label}: is no image of a supported format ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{label}: has more than {MAX_IMAGE_PIXELS / 1e6:.0f} megapixels: shrink it first") from error
    except MemoryError as error:
        raise ImageError(f"{label}: needs more memory than there is: shrink it first") from error
    except Exception as error:  # plugins raise OSError, SyntaxError, ValueError, struct.error, ... on bad bytes
        raise ImageError(f"{label}: the image is damaged ({error})") from error


def _finish(image: Image.Image, label: str) -> Image.Image:
    """An image just opened → its size checked, then its pixels loaded, turned upright (in place) and made RGB."""
    _check_size(image, label)
    image.load()
    _turn_upright(image)
    return _to_rgb(image, label)


def _check_size(image: Image.Image, label: str) -> None:
    """Before any pixel is decoded: a few bytes of header can announce gigabytes."""
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise ImageError(
            f"{label}: {width}x{height} is {width * height / 1e6:.0f} megapixels, the limit is "
            f"{MAX_IMAGE_PIXELS / 1e6:.0f}: shrink it first"
        )


def _turn_upright(image: Image.Image) -> None:
    """Applies the EXIF orientation in place. Damaged EXIF data is no reason to refuse whole pixels."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # whatever the EXIF parser stumbles over, the pixels are as stored
        pass


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    """A loaded image of any mode as plain RGB."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image if image.format == "JPEG" else image.copy()  # others may hold on to their (closed) file
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(image), label)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray, label: str) -> np.ndarray:
    """Deep greyscale (H, W) → uint8 (H, W). Integers count to 65535, floats to 1; ranges beyond are clipped."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ImageError(f"{label}: holds values that are not finite")
        return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    clipped = np.clip(values.astype(np.int64), 0, 65535)
    return ((clipped * 255 + 32767) // 65535).astype(np.uint8)

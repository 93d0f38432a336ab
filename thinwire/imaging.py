"""Image files and the canonical view: the fixed-size RGB array that every codec and every peer starts from.

Both ends and all benchmarks open pictures here. A plain instead of an antialiased resize alone moved a CLIP vector to
cosine 0.94, so there is no fast path that gives other pixels: no reducing gap, and JPEG's decoding at a half or a
quarter (`decode_cost.draft`) only where the view is a small part of what is left.

Memory: `reserved` is asked for what decoding takes (`decode_bytes`) before the first pixel, and refuses what does not
fit under the limit of the process, its container or its service. A large picture is held once: it is turned upright
after the view has been taken of it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from thinwire import deep_pixels
from thinwire.decode_cost import DRAFT_ABOVE_PIXELS, Crop, decode_bytes, draft
from thinwire.errors import CropOutside, ImageError
from thinwire.files import Endless, open_file, read_whole
from thinwire.memory import reserved
from thinwire.png_chunks import pixels_only

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

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused before they are read."""

FLAT_BELOW = 8
"""A view whose darkest and brightest values differ by less (of 255) is nearly flat."""

_ORIENTATION = 0x0112
_STRIP_BYTES = 8 << 20
# EXIF orientation → (axes swapped, then mirrored along the stored x, along the stored y), from upright to stored
_TURNS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture as it is stored: RGB, not yet turned upright. `open_picture` and `held_picture` make it.

    orientation: EXIF's, 1 to 8. stored_size: (width, height) as the file says; `image` may be smaller (`draft`).
    """

    image: Image.Image
    name: str
    orientation: int = 1
    stored_size: tuple[int, int] = (0, 0)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright picture."""
        width, height = self.stored_size
        return (height, width) if self._turn[0] else (width, height)

    @property
    def _turn(self) -> tuple[bool, bool, bool]:
        return _TURNS.get(self.orientation, (False, False, False))

    def upright(self) -> Image.Image:
        """A picture of its own, turned upright. Raises `ImageError` where there is no memory for it."""
        method = _TRANSPOSE.get(self.orientation)
        with _image_errors(self.name), reserved(4 * self.image.width * self.image.height):
            return self.image.copy() if method is None else self.image.transpose(method)

    def view(self, height: int, width: int, crop: Crop | None = None) -> np.ndarray:
        """As `canonical_view` of the upright picture, or of the part of it inside `crop`.

        A picture of up to `DRAFT_ABOVE_PIXELS` is turned first. Of a larger one only the view is turned, whose bytes
        may differ by rounding. Raises `CropOutside` where `crop` leaves nothing.
        """
        if self.orientation != 1 and self.image.width * self.image.height <= DRAFT_ABOVE_PIXELS:
            turned = Picture(self.upright(), self.name, 1, self.size)
            return turned.view(height, width, crop)
        swapped, _, _ = self._turn
        image = self.image if crop is None else self.image.crop(self._stored_box(crop))
        view = _scaled(image, *((width, height) if swapped else (height, width)), rows_first=swapped)
        method = _TRANSPOSE.get(self.orientation)
        return np.array(view if method is None else view.transpose(method))

    def _stored_box(self, crop: Crop) -> tuple[int, int, int, int]:
        """Where the crop lies in `image`."""
        swapped, flip_x, flip_y = self._turn
        left, top, right, bottom = crop_box(crop, *self.size, self.name)
        xs, ys = ((top, bottom), (left, right)) if swapped else ((left, right), (top, bottom))
        width, height = self.stored_size
        xs = (width - xs[1], width - xs[0]) if flip_x else xs
        ys = (height - ys[1], height - ys[0]) if flip_y else ys
        across, down = self.image.width / width, self.image.height / height
        xs, ys = [round(x * across) for x in xs], [round(y * down) for y in ys]
        return xs[0], ys[0], max(xs[1], xs[0] + 1), max(ys[1], ys[0] + 1)


ImageFile = str | os.PathLike[str] | bytes | bytearray | memoryview


def open_image(source: ImageFile, name: str | None = None) -> Image.Image:
    """The image in `source` (a path, or a file's bytes) as upright 8-bit RGB, whatever it was stored as.

    EXIF rotation is applied, CMYK converted, transparency laid over white, deeper values scaled to 8 bits by the range
    that the file states or holds (`deep_pixels`), the first frame of an animation taken. Colour profiles are ignored.
    `name` is what errors call bytes. Raises `ImageError`, whose message begins with the file's name, for anything that
    is not such an image, and for one that needs more memory than there is.
    """
    picture = open_picture(source, name)
    return picture.image if picture.orientation == 1 else picture.upright()


def open_picture(
    source: ImageFile,
    name: str | None = None,
    view: tuple[int, int] | None = None,
    crop: Crop | None = None,
) -> Picture:
    """As `open_image`, for callers that take views. Raises `ImageError`.

    view: (height, width) of the only view that will be taken, with `crop`: a large JPEG may then be decoded at a part
    of its size (`decode_cost.draft`).
    """
    label, data = _read(source, name)
    with _image_errors(label), _opened(data) as image:
        _check_size(image, label)
        stored = image.size
        drafted = view is not None and draft(image, view, crop)
        lower = deep_pixels.lower_bytes(image)
        with reserved(decode_bytes(image)):
            image.load()
            orientation = _orientation(image)
            if lower is not None:
                image = _joined(image, data, lower)
            return Picture(_to_rgb(image, label), label, orientation, stored if drafted else image.size)


def held_picture(image: Image.Image, name: str = "image") -> Picture:
    """An image that Pillow holds; `image` itself is not altered. Raises `ImageError`."""
    with _image_errors(name):
        _check_size(image, name)
        with reserved(decode_bytes(image)):
            image.load()
            return Picture(_to_rgb(image, name), name, _orientation(image), image.size)


def upright_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """An image that Pillow holds, as `open_image` would have given it; `image` itself is not altered.

    Raises `ImageError`, whose message begins with `name`, when its pixels cannot be read.
    """
    return held_picture(image, name).upright()


def decode_cost(data: bytes, view: tuple[int, int] | None = None) -> int:
    """Bytes of memory that `open_picture` will take for a file's bytes, read from its header; 0 for no image."""
    try:
        with _opened(data) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                return 0  # refused before it takes any
            if view is not None:
                draft(image, view)
            return decode_bytes(image)
    except Exception:  # whatever it is, opening it will tell
        return 0


def crop_box(crop: Crop, width: int, height: int, name: str = "image") -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of the part of a width x height picture that lies inside `crop`.

    Raises `CropOutside` when that is nothing.
    """
    x, y, wide, high = crop
    if max(crop) <= 1:
        x, wide, y, high = x * width, wide * width, y * height, high * height
    left, top = max(0, round(x)), max(0, round(y))
    right, bottom = min(width, round(x + wide)), min(height, round(y + high))
    if left >= right or top >= bottom:
        asked = ",".join(f"{each:g}" for each in crop)
        raise CropOutside(
            f"{name}: --crop {asked} lies outside this picture of {width}x{height} pixels: give it in shares of the "
            "frame, from 0 to 1, or leave it away"
        )
    return left, top, right, bottom


def canonical_view(image: Image.Image | np.ndarray | Picture, height: int, width: int) -> np.ndarray:
    """The centre of `image` that has the shape height:width, scaled to height x width: uint8 (height, width, 3) RGB.

    "Resize the shortest side, then crop the centre", in one antialiased bicubic pass over the crop (fixed-point
    arithmetic inside Pillow, so the bytes do not depend on the machine). Small images are scaled up. An image of the
    right size comes back unchanged. `image` is upright RGB from `open_image`, a `Picture`, or a camera frame uint8
    (H, W, 3) RGB. Raises `ImageError` for an array of another type or shape, `ValueError` for a size outside 1..16384.
    """
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"a view is 1 to {MAX_SIDE} pixels high and wide, got {height}x{width}")
    if isinstance(image, Picture):
        return image.view(height, width)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ImageError(f"a frame must be uint8 (H, W, 3) RGB, got {image.dtype} {image.shape}")
        image = Image.fromarray(np.ascontiguousarray(image))
    if image.mode != "RGB":
        raise ImageError(f"a view is taken of RGB images, got mode {image.mode!r}: use open_image()")
    return np.array(_scaled(image, height, width))


def flat_note(view: np.ndarray, name: str = "image") -> str | None:
    """A sentence for a view uint8 (H, W, 3) in which there is nearly nothing to see; None for any other.

    Of any colour: a camera without a signal often gives blue.
    """
    lows, highs = view.min(axis=(0, 1)), view.max(axis=(0, 1))
    widest = int(np.argmax(highs.astype(int) - lows))
    low, high = int(lows[widest]), int(highs[widest])
    if high - low >= FLAT_BELOW:
        return None
    return (
        f"{name}: the view is nearly flat, its values are {low} to {high} of 255: a covered lens, an empty picture, or "
        "values that use a small part of the file's range?"
    )


def _scaled(image: Image.Image, height: int, width: int, rows_first: bool = False) -> Image.Image:
    """The canonical view. Pillow scales along rows and then along columns, rounding after each: `rows_first` False.
    The other order is that of a picture lying on its side, and gives its bytes."""
    if image.size == (width, height):
        return image
    crop = min(image.width / width, image.height / height)  # source pixels per view pixel, same along both axes
    left = (image.width - crop * width) / 2
    top = (image.height - crop * height) / 2
    # max/min: rounding must not push the box a hair outside the image, which Pillow refuses
    box = (max(0.0, left), max(0.0, top), min(image.width, left + crop * width), min(image.height, top + crop * height))
    if rows_first:
        across = (0, box[1], image.width, box[3])
        image = image.resize((image.width, height), Image.Resampling.BICUBIC, box=across)
        box = (box[0], 0, box[2], height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _read(source: ImageFile, name: str | None) -> tuple[str, bytes]:
    """(what errors call it, its bytes)."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        label, data = name or "image", bytes(source)
    else:
        label = name or os.fspath(source)
        try:
            with open_file(source) as file:
                size = os.fstat(file.fileno()).st_size
                if size <= MAX_FILE_BYTES:
                    with reserved(2 * size):
                        data = read_whole(file, MAX_FILE_BYTES)
                else:
                    data = b""
        except FileNotFoundError as error:
            raise ImageError(f"{label}: no such file") from error
        except IsADirectoryError as error:
            raise ImageError(f"{label}: is a folder, not an image file") from error
        except Endless as error:
            raise ImageError(f"{label}: has more than {MAX_FILE_BYTES >> 20} MiB: {error.strerror}") from error
        except (OSError, ValueError) as error:
            raise ImageError(f"{label}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        except MemoryError as error:
            raise ImageError(f"{label}: {error}: shrink it first") from error
        if size > MAX_FILE_BYTES:
            raise ImageError(f"{label}: has more than {MAX_FILE_BYTES >> 20} MiB: shrink it first")
    if not data:
        raise ImageError(f"{label}: the file is empty (0 bytes)")
    return label, data


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(pixels_only(data)), formats=FORMATS)


@contextlib.contextmanager
def _image_errors(label: str) -> Iterator[None]:
    """Whatever Pillow raises, as `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{label}: is not an image of a supported format ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{label}: has more than {MAX_IMAGE_PIXELS / 1e6:.0f} megapixels: shrink it first") from error
    except MemoryError as error:
        needs = str(error) or "needs more memory than there is"
        raise ImageError(f"{label}: {needs}: shrink it first, or allow more memory") from error
    except Exception as error:  # plugins raise OSError, SyntaxError, ValueError, struct.error, ... on bad bytes
        raise ImageError(f"{label}: the image is damaged ({error})") from error


def _check_size(image: Image.Image, label: str) -> None:
    """Before any pixel is decoded: a few bytes of header can announce gigabytes."""
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise ImageError(
            f"{label}: {width}x{height} is {width * height / 1e6:.0f} megapixels, the limit is "
            f"{MAX_IMAGE_PIXELS / 1e6:.0f}: shrink it first"
        )


def _orientation(image: Image.Image) -> int:
    """EXIF's, also where XMP or a text tells it. Damaged EXIF data does not make the pixels unusable."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # whatever the EXIF parser stumbles over, the pixels are as stored
        return 1
    return found if found in _TURNS else 1


def _joined(image: Image.Image, data: bytes, lower: list) -> Image.Image:
    """A loaded colour image of 16-bit samples, whose lower bytes are decoded where the upper ones are nearly empty."""
    if max(high for _, high in image.getextrema()[:3]) >= 1 << 6:
        return image
    with _opened(data) as again:
        again.tile = lower
        again.load()
        return deep_pixels.joined(image, again)


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    """A loaded image of any mode as plain RGB."""
    if deep_pixels.is_deep(image):
        try:
            image = deep_pixels.to_8_bit(image)
        except ValueError as error:
            raise ImageError(f"{label}: {error}") from error
    if image.mode == "RGB" and not image.has_transparency_data:
        return image._new(image.im)  # the same pixels without the file, which is closed
    if image.has_transparency_data:
        return _in_strips(image, _over_white)
    return _in_strips(image, lambda part: part.convert("RGB"))


def _over_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert` over bands of rows, so that what it makes on its way stays small."""
    rows = max(1, _STRIP_BYTES // (4 * max(1, image.width)))
    if rows >= image.height:
        return convert(image)
    out = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        out.paste(convert(image.crop((0, top, image.width, min(top + rows, image.height)))), (0, top))
    return out

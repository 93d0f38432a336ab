"""Image codecs that thinwire is compared with, each at any size of the view and any setting of its one dial.

A peer does what a careful engineer would do without us: shrink the view (antialiased, Lanczos), encode it at some
quality, and let the receiver enlarge it again (bicubic, `thinwire.imaging.canonical_view`, as a server does with any
small file). Of `av1`, `webp`, `jpeg` and `jxl` only the bare form is sent: whatever follows from the picture's size and
setting (boxes, headers, tables) is put back by the receiver, and two bytes say which size and setting it was. The whole
files are peers of their own: `avif`, `webp-file`, `jpeg-file`, `jxl-file`, `jpeg2000`.
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image, features

from benchmarks.codecs import bare_jpeg, bare_jxl, bare_webp
from benchmarks.codecs.bare_form import Form
from thinwire import bare_av1
from thinwire.errors import DamagedFrame, ThinwireError
from thinwire.imaging import canonical_view

SIDES = (224, 160, 112, 80, 56, 40)
"""Sides of the shrunken view, for a view of 224 pixels; other views are shrunk by the same factors."""

FULL_SIDE = SIDES[0]


class UnknownPeer(ThinwireError):
    """A peer was asked for that is not here; the message names those that are."""

    reason: ClassVar[str] = "UNKNOWN_PEER"


@dataclass(frozen=True)
class Bare:
    """strip: whole file → bytes without what its form says; wrap: the way back, to a file of the same pixels."""

    strip: Callable[[bytes, Form], bytes]
    wrap: Callable[[bytes, Form], bytes]


@dataclass(frozen=True)
class Peer:
    """One codec. `dial` names its quality setting, `ladder` holds the values tried, from few bytes to many.

    encode: RGB image and value of the dial → file; decode: file → uint8 (h, w, 3); version: what did the work. bare:
    how its constant bytes are left out; None where the whole file is sent.
    """

    name: str
    dial: str
    ladder: tuple[float, ...]
    encode: Callable[[Image.Image, float], bytes]
    decode: Callable[[bytes], np.ndarray]
    version: Callable[[], str]
    bare: Bare | None = None


def sides(height: int, width: int, wanted: Sequence[int] = SIDES) -> list[tuple[int, int]]:
    """(height, width) of each size at which a view is sent, the view itself first."""
    return [(max(1, round(height * side / FULL_SIDE)), max(1, round(width * side / FULL_SIDE))) for side in wanted]


def encode(peer: Peer, view: np.ndarray, height: int, width: int, value: float) -> bytes:
    """uint8 (H, W, 3) view → what is sent of the view shrunk to height x width. All that a device would have to do.

    Raises `UnknownPeer` for a size or value that the two bytes of a bare peer cannot name.
    """
    image = Image.fromarray(view)
    if (height, width) != view.shape[:2]:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    file = peer.encode(image, value)
    if peer.bare is None:
        return file
    return _selector(peer, view.shape[:2], (height, width), value) + peer.bare.strip(file, Form(width, height, value))


def whole_file(peer: Peer, data: bytes, height: int, width: int) -> bytes:
    """What was sent of a view of height x width → the file that any decoder opens. Raises `DamagedFrame`."""
    if peer.bare is None:
        return data
    return peer.bare.wrap(data[SELECTOR_BYTES:], _form(peer, data, height, width))


def decode(peer: Peer, data: bytes, height: int, width: int) -> np.ndarray:
    """What was sent of a view of height x width → the shrunken picture, uint8 (h, w, 3). Raises `DamagedFrame`."""
    file = whole_file(peer, data, height, width)
    try:
        picture = peer.decode(file)
    except Exception as error:  # image libraries share no base class below Exception
        raise DamagedFrame(f"{peer.name}: the picture is damaged ({error})") from error
    if peer.bare is not None:
        form = _form(peer, data, height, width)
        if picture.shape != (form.height, form.width, 3):
            raise DamagedFrame(f"{peer.name}: the picture decodes to {picture.shape}, not to {form}")
    return picture


def restore(peer: Peer, data: bytes, height: int, width: int) -> np.ndarray:
    """What was sent → uint8 (height, width, 3), what CLIP is shown: decoded and enlarged as the server does."""
    return canonical_view(decode(peer, data, height, width), height, width)


SELECTOR_BYTES = 2
_DIAL_BITS = 7


def _selector(peer: Peer, view: tuple[int, int], size: tuple[int, int], value: float) -> bytes:
    """Two bytes: the side that `size` has of a view of 224 pixels (9 bits), the place of `value` in the ladder."""
    side = next((each for each in range(1, 1 << (16 - _DIAL_BITS)) if sides(*view, (each,)) == [size]), None)
    if side is None or value not in peer.ladder:
        raise UnknownPeer(
            f"{peer.name}: two bytes cannot name {size[1]}x{size[0]} of a view of {view[1]}x{view[0]} at "
            f"{peer.dial} {value:g}; its ladder is {', '.join(f'{rung:g}' for rung in peer.ladder)}"
        )
    return (side << _DIAL_BITS | peer.ladder.index(value)).to_bytes(SELECTOR_BYTES, "big")


def _form(peer: Peer, data: bytes, height: int, width: int) -> Form:
    number = int.from_bytes(data[:SELECTOR_BYTES], "big")
    side, place = number >> _DIAL_BITS, number & (1 << _DIAL_BITS) - 1
    if len(data) <= SELECTOR_BYTES or not side or place >= len(peer.ladder):
        raise DamagedFrame(f"{peer.name}: the selector {number:#06x} names no size and {peer.dial}")
    ((h, w),) = sides(height, width, (side,))
    return Form(w, h, peer.ladder[place])


def _by_pillow(
    image_format: str, setting: Callable[[float], dict[str, object]]
) -> Callable[[Image.Image, float], bytes]:
    def encode(image: Image.Image, value: float) -> bytes:
        file = io.BytesIO()
        image.save(file, image_format, **setting(value))
        return file.getvalue()

    return encode


def _open(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _pillow(feature: str) -> Callable[[], str]:
    return lambda: f"Pillow {importlib.metadata.version('pillow')} ({feature} {features.version(feature)})"


def _encode_jxl(image: Image.Image, distance: float) -> bytes:
    import imagecodecs

    # A bare codestream: shorter than the container, and a whole JPEG XL file
    return imagecodecs.jpegxl_encode(np.asarray(image), distance=distance, effort=7, usecontainer=False, numthreads=1)


def _decode_jxl(data: bytes) -> np.ndarray:
    import imagecodecs

    return imagecodecs.jpegxl_decode(data, numthreads=1)


def _jxl_version() -> str:
    import imagecodecs

    return f"imagecodecs {imagecodecs.__version__} ({imagecodecs.jpegxl_version()})"


def _encode_jpeg2000(image: Image.Image, ratio: float) -> bytes:
    file = io.BytesIO()
    # A bare codestream; "rates" are compression ratios of the raw pixels
    image.save(file, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True, no_jp2=True)
    return _without_comments(file.getvalue())


def _without_comments(codestream: bytes) -> bytes:
    """A JPEG 2000 codestream less the COM segments of its main header: OpenJPEG signs every file with 37 bytes."""
    kept, at = codestream[:2], 2  # start of codestream
    while codestream[at : at + 2] not in (b"\xff\x90", b""):  # start of the first tile
        end = at + 2 + int.from_bytes(codestream[at + 2 : at + 4])
        if codestream[at : at + 2] != b"\xff\x64":
            kept += codestream[at:end]
        at = end
    return kept + codestream[at:]


AV1_SPEED = 6


def _av1_form(form: Form) -> bare_av1.BareForm:
    return bare_av1.form_of(form.width, form.height, speed=AV1_SPEED)


def _encode_avif(image: Image.Image, quality: float) -> bytes:
    form = bare_av1.form_of(*image.size, speed=AV1_SPEED)
    return bare_av1.wrap(bare_av1.encode(image, form, quality=int(quality), speed=AV1_SPEED), form)


_BARE_AV1 = Bare(
    lambda file, form: bare_av1.strip(file, _av1_form(form)), lambda bare, form: bare_av1.wrap(bare, _av1_form(form))
)
_AV1_LADDER = (0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80)
_WEBP_LADDER = (0, 5, 10, 15, 20, 30, 40, 50, 60, 70, 85)
_JPEG_LADDER = (2, 5, 8, 10, 15, 20, 25, 35, 45, 55, 80)
_JXL_LADDER = (20, 15, 13, 11, 9.5, 8, 6.5, 5.5, 4.5, 3.5, 2.5, 2, 1)

_webp = _by_pillow("WEBP", lambda q: {"quality": int(q), "method": 6})
# Tables of annex K: a receiver knows them. A file of its own does better with tables of its own
_jpeg = _by_pillow("JPEG", lambda q: {"quality": int(q), "subsampling": "4:2:0"})
_jpeg_optimised = _by_pillow("JPEG", lambda q: {"quality": int(q), "optimize": True, "subsampling": "4:2:0"})


def _jpeg_version() -> str:
    return f"Pillow {importlib.metadata.version('pillow')} (libjpeg-turbo {features.version('libjpeg_turbo')})"


_bare_webp, _bare_jpeg, _bare_jxl = (Bare(codec.strip, codec.wrap) for codec in (bare_webp, bare_jpeg, bare_jxl))

PEERS = {
    peer.name: peer
    for peer in (
        Peer("av1", "quality", _AV1_LADDER, _encode_avif, _open, _pillow("avif"), _BARE_AV1),
        Peer("webp", "quality", _WEBP_LADDER, _webp, _open, _pillow("webp"), _bare_webp),
        Peer("jpeg", "quality", _JPEG_LADDER, _jpeg, _open, _jpeg_version, _bare_jpeg),
        Peer("jxl", "distance", _JXL_LADDER, _encode_jxl, _decode_jxl, _jxl_version, _bare_jxl),
        Peer("avif", "quality", _AV1_LADDER, _encode_avif, _open, _pillow("avif")),
        Peer("webp-file", "quality", _WEBP_LADDER, _webp, _open, _pillow("webp")),
        Peer("jpeg-file", "quality", _JPEG_LADDER, _jpeg_optimised, _open, _jpeg_version),
        Peer("jxl-file", "distance", _JXL_LADDER, _encode_jxl, _decode_jxl, _jxl_version),
        Peer("jpeg2000", "compression", (200, 120, 70, 40, 25, 15, 8), _encode_jpeg2000, _open, _pillow("jpg_2000")),
    )
}
BARE = tuple(name for name, peer in PEERS.items() if peer.bare)
"""The peers that are asked unless others are named."""

WHOLE = {"av1": "avif", "webp": "webp-file", "jpeg": "jpeg-file", "jxl": "jxl-file"}
"""The peer that sends the same pixels as a whole file, which is what a service takes that knows image files alone."""


def png_bytes(view: np.ndarray) -> bytes:
    """The view, uint8 (H, W, 3), as a PNG file: lossless, so the server's CLIP sees exactly these pixels."""
    file = io.BytesIO()
    Image.fromarray(view).save(file, "PNG")
    return file.getvalue()

"""Image codecs that thinwire is compared with, each at any size of the view and any setting of its one dial.

A peer does what a careful engineer would do without us: shrink the view (antialiased, Lanczos), encode it at some
quality, and let the server enlarge it again (bicubic, `thinwire.imaging.canonical_view`, as it does with any small
file). Files carry no metadata; every byte of a container is counted, as it would have to be sent.
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image, features

from thinwire.errors import ThinwireError
from thinwire.imaging import canonical_view

SIDES = (224, 160, 112, 80, 56, 40)
"""Sides of the shrunken view, for a view of 224 pixels; other views are shrunk by the same factors."""

FULL_SIDE = SIDES[0]


class UnknownPeer(ThinwireError):
    """A peer was asked for that is not here; the message names those that are."""

    reason: ClassVar[str] = "UNKNOWN_PEER"


@dataclass(frozen=True)
class Peer:
    """One codec. `dial` names its quality setting, `ladder` holds the values tried, from few bytes to many.

    encode: RGB image and value of the dial → file; decode: file → uint8 (h, w, 3); version: what did the work.
    """

    name: str
    dial: str
    ladder: tuple[float, ...]
    encode: Callable[[Image.Image, float], bytes]
    decode: Callable[[bytes], np.ndarray]
    version: Callable[[], str]


def sides(height: int, width: int, wanted: Sequence[int] = SIDES) -> list[tuple[int, int]]:
    """(height, width) of each size at which a view is sent, the view itself first."""
    return [(max(1, round(height * side / FULL_SIDE)), max(1, round(width * side / FULL_SIDE))) for side in wanted]


def encode(peer: Peer, view: np.ndarray, height: int, width: int, value: float) -> bytes:
    """uint8 (H, W, 3) view → file of the view shrunk to height x width. All that a device would have to do."""
    image = Image.fromarray(view)
    if (height, width) != view.shape[:2]:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return peer.encode(image, value)


def restore(peer: Peer, data: bytes, height: int, width: int) -> np.ndarray:
    """File → uint8 (height, width, 3), what CLIP is shown: decoded and enlarged as the server does."""
    return canonical_view(peer.decode(data), height, width)


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


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "jpeg",
            "quality",
            (2, 5, 10, 20, 35, 55, 80),
            _by_pillow("JPEG", lambda q: {"quality": int(q), "optimize": True, "subsampling": "4:2:0"}),
            _open,
            lambda: (
                f"Pillow {importlib.metadata.version('pillow')} (libjpeg-turbo {features.version('libjpeg_turbo')})"
            ),
        ),
        Peer(
            "webp",
            "quality",
            (0, 5, 15, 30, 50, 70, 85),
            _by_pillow("WEBP", lambda q: {"quality": int(q), "method": 6}),
            _open,
            _pillow("webp"),
        ),
        Peer(
            "avif",
            "quality",
            (5, 15, 25, 35, 45, 60, 80),
            _by_pillow("AVIF", lambda q: {"quality": int(q), "speed": 6, "subsampling": "4:2:0", "max_threads": 1}),
            _open,
            _pillow("avif"),
        ),
        Peer("jxl", "distance", (15, 11, 8, 5.5, 3.5, 2, 1), _encode_jxl, _decode_jxl, _jxl_version),
        Peer(
            "jpeg2000",
            "compression",
            (200, 120, 70, 40, 25, 15, 8),
            _encode_jpeg2000,
            _open,
            _pillow("jpg_2000"),
        ),
    )
}


def png_bytes(view: np.ndarray) -> bytes:
    """The view, uint8 (H, W, 3), as a PNG file: lossless, so the server's CLIP sees exactly these pixels."""
    file = io.BytesIO()
    Image.fromarray(view).save(file, "PNG")
    return file.getvalue()

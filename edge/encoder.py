"""The light encoder: image → canonical view → symbols → packet.

Symbols come from a network in ONNX Runtime and go through the shared range coder; a bundle of the family `still` needs
neither: Pillow's AV1 encoder takes the view as it is, and ONNX Runtime is never loaded.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np
from PIL import Image

from edge.errors import EncoderError
from thinwire.bundle import Bundle
from thinwire.decode_cost import Crop
from thinwire.errors import ImageError
from thinwire.imaging import Picture, crop_box, flat_note, held_picture, open_picture
from thinwire.packet import Packet

PROVIDERS = ("cpu", "cuda")
MAX_THREADS = 256

ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A path, a file's bytes, a Pillow image of any mode, or a camera frame uint8 (H, W, 3) RGB."""


@dataclass(frozen=True)
class Encoded:
    """A packet and the milliseconds that it cost.

    encode_ms in ONNX Runtime, code_ms in the range coder or the AV1 encoder; decode_image_ms (reading and decoding the
    image file) and preprocess_ms (making the view) are 0 where a view was given. note: what is odd about the picture,
    one sentence.
    """

    packet: Packet
    encode_ms: float
    code_ms: float
    decode_image_ms: float = 0.0
    preprocess_ms: float = 0.0
    note: str | None = None


class Encoder:
    """One bundle's encoder: a network in one ONNX Runtime session, or Pillow's AV1 encoder for a `still`.

    threads: CPU threads of one encode, 1 or more. precision: `fp32`, `int8`, or `auto` (what the bundle's card
    recommends). provider: `cpu`, or `cuda` (needs onnxruntime-gpu). A `still` runs on one thread of the CPU, whatever
    these say.

    Guarantees: the provider asked for is the one that runs, never a silent fallback; symbols have the card's shape and
    range; may be shared by threads. Requirements: views as `Bundle.view` makes them. Raises `EncoderError` when the
    session cannot be made or breaks the card, `MissingFile` when the bundle has no encoder of that precision,
    `ForeignEncoder` when this Pillow cannot write the frames of a `still`.
    """

    def __init__(self, bundle: Bundle, threads: int = 1, precision: str = "auto", provider: str = "cpu") -> None:
        if provider not in PROVIDERS:
            raise EncoderError(f"provider {provider!r} is unknown: use one of {', '.join(PROVIDERS)}")
        if not 1 <= threads <= MAX_THREADS:
            raise EncoderError(f"the encoder runs on 1 to {MAX_THREADS} threads, not {threads}")
        self.bundle = bundle
        self.height, self.width = bundle.input_size
        self._analysis = _planes
        self.runs = "Pillow's AV1"  # what encodes, for people
        if bundle.has_encoder:
            from edge.onnx_analysis import OnnxAnalysis

            self._analysis = OnnxAnalysis(bundle, threads, precision, provider)
            self.runs = self._analysis.path.name
        # Warm-up: the first run plans its memory, and shows a net that does not fit its card before any image is lost
        blank = np.zeros((self.height, self.width, 3), np.uint8)
        symbols = self.symbols(blank)
        if not bundle.has_encoder:
            for level in bundle.rates.values():
                bundle.coder.encode(symbols, level)

    def symbols(self, view: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) RGB view → int32 (C, h, w) in the card's [low, high]; of a still, uint8 (3, H, W).

        Raises `EncoderError`.
        """
        if not isinstance(view, np.ndarray) or view.dtype != np.uint8 or view.shape != (self.height, self.width, 3):
            got = f"{view.dtype} {view.shape}" if isinstance(view, np.ndarray) else type(view).__name__
            raise EncoderError(
                f"a view is uint8 ({self.height}, {self.width}, 3), got {got}: make it with bundle.view()"
            )
        return self._analysis(view)

    def layers_of(self, rate: str) -> int:
        """Number of layers that a rate sends, or its rung. Raises `RateError` naming the rates that exist."""
        return self.bundle.n_layers(rate)

    def encode(self, view: np.ndarray, rate: str) -> Encoded:
        """uint8 (H, W, 3) view → packet of the named rate. Raises `RateError` or `EncoderError`."""
        self.bundle.n_layers(rate)  # before the work
        started = time.perf_counter()
        symbols = self.symbols(view)
        encoded = time.perf_counter()
        packet = self.bundle.encode(symbols, rate)
        return Encoded(packet, 1000 * (encoded - started), 1000 * (time.perf_counter() - encoded))

    def encode_image(self, image: ImageLike, rate: str) -> Encoded:
        """Any image → packet of the named rate. Raises `ImageError` too, naming the file."""
        self.bundle.n_layers(rate)
        started = time.perf_counter()
        pixels = read_image(image, (self.height, self.width))
        read = time.perf_counter()
        view = self.bundle.view(pixels)
        made = time.perf_counter()
        encoded = self.encode(view, rate)
        return Encoded(
            encoded.packet,
            encoded.encode_ms,
            encoded.code_ms,
            1000 * (read - started),
            1000 * (made - read),
            flat_note(view, _name(image)),
        )

    def view(self, image: ImageLike, crop: Crop | None = None, name: str = "frame") -> np.ndarray:
        """The view uint8 (H, W, 3) of any image, or of the part of it inside `crop`. `name`: what errors call one that
        has no file. Raises `ImageError`."""
        size = self.height, self.width
        pixels = read_image(image, size, crop)
        if isinstance(pixels, Picture):
            return pixels.view(*size, crop)
        if crop is not None and pixels.ndim == 3:
            left, top, right, bottom = crop_box(crop, pixels.shape[1], pixels.shape[0], name)
            pixels = pixels[top:bottom, left:right]
        return self.bundle.view(pixels)


def _planes(view: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) → uint8 (3, H, W): a still's symbols are its pixels."""
    return view.transpose(2, 0, 1)


def default_rate(bundle: Bundle) -> str:
    """ "mid" where the bundle has it, else the middle one of its rates."""
    names = list(bundle.rates)
    return "mid" if "mid" in bundle.rates else names[(len(names) - 1) // 2]


def read_image(image: ImageLike, view: tuple[int, int] | None = None, crop: Crop | None = None) -> Picture | np.ndarray:
    """Whatever a caller holds → what `Bundle.view` takes. Raises `ImageError`. view, crop: as for `open_picture`."""
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, Image.Image):
        return held_picture(image, _name(image))
    if isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
        return open_picture(image, view=view, crop=crop)
    raise ImageError(
        f"an image is a path, a file's bytes, a Pillow image or a uint8 (H, W, 3) array, not {type(image).__name__}"
    )


def _name(image: ImageLike) -> str:
    """What notes and errors call it."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    return getattr(image, "filename", "") or ("frame" if isinstance(image, np.ndarray) else "image")

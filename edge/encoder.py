"""The light encoder: image → canonical view → integer symbols → packet, by ONNX Runtime and the shared range coder."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from PIL import Image

from edge.errors import EncoderError
from thinwire.bundle import Bundle
from thinwire.errors import ImageError
from thinwire.imaging import open_image, upright_rgb
from thinwire.packet import Packet

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
MAX_THREADS = 256

ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A path, a file's bytes, a Pillow image of any mode, or a camera frame uint8 (H, W, 3) RGB."""


@dataclass(frozen=True)
class Encoded:
    """A packet and the milliseconds that it cost.

    encode_ms in ONNX Runtime, code_ms in the range coder; decode_image_ms (reading and decoding the image file) and
    preprocess_ms (making the view) are 0 where a view was given.
    """

    packet: Packet
    encode_ms: float
    code_ms: float
    decode_image_ms: float = 0.0
    preprocess_ms: float = 0.0


class Encoder:
    """One bundle's encoder in one ONNX Runtime session.

    threads: CPU threads of one encode, 1 or more. precision: `fp32`, `int8`, or `auto` (what the bundle's card
    recommends). provider: `cpu`, `cuda` or `tensorrt` (the latter two need onnxruntime-gpu).

    Guarantees: the provider asked for is the one that runs, never a silent fallback; symbols have the card's shape and
    range; may be shared by threads. Requirements: views as `Bundle.view` makes them. Raises `EncoderError` when the
    session cannot be made or breaks the card, `MissingFile` when the bundle has no encoder of that precision.
    """

    def __init__(self, bundle: Bundle, threads: int = 1, precision: str = "auto", provider: str = "cpu") -> None:
        if provider not in PROVIDERS:
            raise EncoderError(f"provider {provider!r} is unknown: use one of {', '.join(PROVIDERS)}")
        if not 1 <= threads <= MAX_THREADS:
            raise EncoderError(f"the encoder runs on 1 to {MAX_THREADS} threads, not {threads}")
        self.bundle = bundle
        self.height, self.width = bundle.input_size
        self.low, self.high = bundle.card.wire["latent"]["low"], bundle.card.wire["latent"]["high"]
        self.path = bundle.encoder_path(precision)
        self._session = _open_session(self.path, threads, PROVIDERS[provider])
        _check_signature(self._session, self.path)
        # Warm-up: the first run plans its memory, and shows a net that does not fit its card before any image is lost
        self.symbols(np.zeros((self.height, self.width, 3), np.uint8))

    def symbols(self, view: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) RGB view → int32 (C, h, w) in the card's [low, high]. Raises `EncoderError`."""
        if not isinstance(view, np.ndarray) or view.dtype != np.uint8 or view.shape != (self.height, self.width, 3):
            got = f"{view.dtype} {view.shape}" if isinstance(view, np.ndarray) else type(view).__name__
            raise EncoderError(
                f"a view is uint8 ({self.height}, {self.width}, 3), got {got}: make it with bundle.view()"
            )
        try:
            (symbols,) = self._session.run(["symbols"], {"image": np.ascontiguousarray(view[None])})  # (1, H, W, 3)
        except Exception as error:  # ONNX Runtime's classes share no base below Exception
            raise EncoderError(f"{self.path}: the encoder failed ({_first_line(error)}): export it again") from error
        wanted = (1, *self.bundle.latent_shape)  # (1, C, h, w)
        if symbols.dtype != np.int32 or symbols.shape != wanted:
            raise EncoderError(
                f"{self.path}: gave {symbols.dtype} {symbols.shape}, its card says int32 {wanted}: export it again"
            )
        lowest, highest = int(symbols.min()), int(symbols.max())
        if lowest < self.low or highest > self.high:
            raise EncoderError(
                f"{self.path}: gave symbols {lowest}..{highest}, its card says {self.low}..{self.high}: "
                "export the bundle again"
            )
        return symbols[0]

    def layers_of(self, rate: str) -> int:
        """Number of layers that a rate sends. Raises `RateError` naming the rates that exist."""
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
        pixels = read_image(image)
        read = time.perf_counter()
        view = self.bundle.view(pixels)
        made = time.perf_counter()
        encoded = self.encode(view, rate)
        return Encoded(
            encoded.packet, encoded.encode_ms, encoded.code_ms, 1000 * (read - started), 1000 * (made - read)
        )


def default_rate(bundle: Bundle) -> str:
    """ "mid" where the bundle has it, else the middle one of its rates."""
    names = list(bundle.rates)
    return "mid" if "mid" in bundle.rates else names[(len(names) - 1) // 2]


def read_image(image: ImageLike) -> Image.Image | np.ndarray:
    """Whatever a caller holds → upright RGB for `Bundle.view`. Raises `ImageError`."""
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, Image.Image):
        return upright_rgb(image, getattr(image, "filename", "") or "image")
    if isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
        return open_image(image)
    raise ImageError(
        f"an image is a path, a file's bytes, a Pillow image or a uint8 (H, W, 3) array, not {type(image).__name__}"
    )


def _open_session(path: os.PathLike[str], threads: int, provider: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors come back as exceptions; its log would only repeat them on stderr
    # Threads that spin between frames would eat a small device's other cores and its battery
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missing provider is our error below, not two warnings
            session = ort.InferenceSession(os.fspath(path), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's classes share no base below Exception
        raise EncoderError(f"{path}: ONNX Runtime {ort.__version__} cannot load it ({_first_line(error)})") from error
    # The list of available providers tells what was compiled in; only the session knows what runs
    running = session.get_providers()
    if not running or running[0] != provider:
        fix = (
            ""
            if provider == PROVIDERS["cpu"]
            else ": install thinwire[edge-gpu] in place of thinwire[edge], or use cpu"
        )
        raise EncoderError(f"asked for {provider}, but ONNX Runtime runs on {', '.join(running)}{fix}")
    return session


def _check_signature(session: ort.InferenceSession, path: os.PathLike[str]) -> None:
    takes = [(each.name, each.type) for each in session.get_inputs()]
    gives = [each.name for each in session.get_outputs()]
    if takes != [("image", "tensor(uint8)")] or "symbols" not in gives:
        raise EncoderError(
            f"{path}: takes {takes} and gives {gives}; a thinwire encoder takes uint8 'image' and gives 'symbols'"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

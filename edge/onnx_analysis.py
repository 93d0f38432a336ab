"""Encoder networks in ONNX Runtime: canonical view → integer symbols."""

from __future__ import annotations

import os
import warnings

import numpy as np
import onnxruntime as ort

from edge.errors import EncoderError
from thinwire.bundle import Bundle

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxAnalysis:
    """One bundle's encoder network in one session; arguments and errors as of `edge.encoder.Encoder`."""

    def __init__(self, bundle: Bundle, threads: int, precision: str, provider: str) -> None:
        self.path = bundle.encoder_path(precision)
        self._shape = bundle.latent_shape
        self._low, self._high = bundle.coder.low, bundle.coder.high
        self._session = _open_session(self.path, threads, PROVIDERS[provider])
        _check_signature(self._session, self.path)

    def __call__(self, view: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) RGB view → int32 (C, h, w) in the card's [low, high]. Raises `EncoderError`."""
        try:
            (symbols,) = self._session.run(["symbols"], {"image": np.ascontiguousarray(view[None])})  # (1, H, W, 3)
        except Exception as error:  # ONNX Runtime's classes share no base below Exception
            raise EncoderError(f"{self.path}: the encoder failed ({_first_line(error)}): export it again") from error
        wanted = (1, *self._shape)  # (1, C, h, w)
        if symbols.dtype != np.int32 or symbols.shape != wanted:
            raise EncoderError(
                f"{self.path}: gave {symbols.dtype} {symbols.shape}, its card says int32 {wanted}: export it again"
            )
        lowest, highest = int(symbols.min()), int(symbols.max())
        if lowest < self._low or highest > self._high:
            raise EncoderError(
                f"{self.path}: gave symbols {lowest}..{highest}, its card says {self._low}..{self._high}: "
                "export the bundle again"
            )
        return symbols[0]


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
        raise EncoderError(f"asked for {provider}, but ONNX Runtime uses {', '.join(running)}{fix}")
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

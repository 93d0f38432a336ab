"""What a packet of a bundle holds once it is decoded: what the tuned net is given, real coder and all."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from export.onnx_export import session
from thinwire.bundle import Bundle

BATCH = 16


class Content(Protocol):
    """rungs: layer counts are 1..rungs; nested: what is stored for a view serves every rung."""

    rungs: int
    nested: bool

    def of(self, views: np.ndarray, rungs: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) and layer counts (N,) → what is stored of them, int8 or uint8 (N, C, h, w)."""
        ...

    def shown(self, stored: torch.Tensor, rungs: torch.Tensor) -> torch.Tensor:
        """Stored (B, C, h, w) and layer counts (B,) → float32, exactly what the cloud gives the net."""
        ...


class SymbolContent:
    """Symbols in nested layers: those of all layers are stored, the channels of absent ones are zero when shown.

    Coding symbols loses nothing, so the entropy coder is left out.
    """

    nested = True

    def __init__(self, bundle: Bundle) -> None:
        self._net = session(bundle.encoder_path())
        layers = bundle.card.wire["layers"]
        self.rungs = len(layers)
        arrives = torch.zeros(bundle.latent_shape[0], dtype=torch.int64)  # (C,): layers that must be sent for a channel
        for number, layer in enumerate(layers, 1):
            arrives[slice(*layer["channels"])] = number
        self._arrives = arrives

    def of(self, views: np.ndarray, rungs: np.ndarray) -> np.ndarray:
        starts = range(0, len(views), BATCH)
        parts = [self._net.run(None, {"image": np.ascontiguousarray(views[i : i + BATCH])})[0] for i in starts]
        return np.concatenate(parts).astype(np.int8)

    def shown(self, stored: torch.Tensor, rungs: torch.Tensor) -> torch.Tensor:
        sent = self._arrives.to(rungs.device)[None] <= rungs[:, None]  # (B, C)
        return (stored.float() * sent[:, :, None, None]).contiguous(memory_format=torch.channels_last)


class StillContent:
    """Pictures coded as bare stills: a rung is a size and a quality, and each is another picture."""

    nested = False

    def __init__(self, bundle: Bundle) -> None:
        self._coder = bundle.coder
        self.rungs = len(bundle.card.wire["stills"])

    def of(self, views: np.ndarray, rungs: np.ndarray) -> np.ndarray:
        planes = views.transpose(0, 3, 1, 2)
        return np.stack([
            np.asarray(self._coder.decode(self._coder.encode(view, int(rung))), np.uint8)
            for view, rung in zip(planes, rungs)
        ])  # fmt: skip

    def shown(self, stored: torch.Tensor, rungs: torch.Tensor) -> torch.Tensor:
        return stored.float().contiguous(memory_format=torch.channels_last)


def content_of(bundle: Bundle) -> Content:
    return (StillContent if "stills" in bundle.card.wire else SymbolContent)(bundle)

"""What the engine gives the runner, and gets back: decoded inputs, embeddings. No networks here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Prepared:
    """One decoded input: with a bundle, `array` is its symbols int32 (C, h, w); without, a view uint8 RGB (H, W, 3).

    Bundles are identified by `model_id`: two versions of one codec may share a name. `net` and `clip` are those this
    input was accepted with (None: the runner's own); the reference keeps them alive when models are reloaded or
    evicted. One batch may hold several variants of one CLIP, whose image towers differ (`cloud.networks.adapted`).
    """

    array: np.ndarray
    bundle: str | None = None
    n_layers: int = 0
    model_id: bytes = b""
    net: object = None  # of the runner's own kind (`cloud.networks.runner.Net`)
    clip: object = None  # with the image tower to use (`cloud.networks.clip.Clip`)


@dataclass(frozen=True, eq=False)
class Embedded:
    """embeddings float32 (B, D), unit rows, in the order of the input; where the time went, in milliseconds."""

    embeddings: np.ndarray
    synthesis_ms: float
    clip_ms: float


class Runner(Protocol):
    """What the engine needs of a device; tests use their own."""

    def run(self, batch: Sequence[Prepared]) -> Embedded: ...
    def picture(self, item: Prepared) -> np.ndarray: ...

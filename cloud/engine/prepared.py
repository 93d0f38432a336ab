"""What passes between engine and runner: decoded inputs in, embeddings out. No networks here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Prepared:
    """One decoded input: with a bundle, `array` is its symbols int32 (C, h, w); without, a view uint8 RGB (H, W, 3).

    Bundles are told apart by `model_id`; two generations of one codec may share a name. `net` and `clip` are what this
    input was accepted for, None for the runner's own: they stay alive with it when models are reloaded or evicted. In
    one batch there may be several of one CLIP, whose image towers differ (`cloud.networks.adapted`).
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
    """What the engine needs of a device; tests put their own in its place."""

    def run(self, batch: Sequence[Prepared]) -> Embedded: ...
    def picture(self, item: Prepared) -> np.ndarray: ...

"""Family `embedding`: a CLIP image tower on the edge; its unit vector is rotated, quantised in stages, entropy coded.

Nothing is trained. The axes are the principal ones of the vectors of training photographs. Sending a prefix of finely
quantised axes wastes bytes at low rates; so each layer of the packet quantises what the layers before it left of
*every* axis, with the steps that take off most squared error for the bits of that layer (reverse water-filling).
Mean cosine of clip-lite's vectors on held-out photographs at 32, 64 and 128 bytes of whole packets: 0.862, 0.953, 0.990
by stages; 0.710, 0.869, 0.963 by prefixes. A plan for 63 bytes alone gives 0.967: what layers cost.

An int8 encoder is not written: static QDQ convolutions of clip-lite's tower left a cosine of 0.84 (min-max) to 0.88
(percentiles) at the finest rate, and took longer than fp32 (19 against 17 ms on one core of a busy machine).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from export.entropy import entropy
from export.photographs.errors import PhotographsError
from export.towers import Tower

NAME = "embedding"
LADDER = {"16b": 16, "24b": 24, "low": 32, "48b": 48, "mid": 64, "96b": 96, "high": 128, "192b": 192, "256b": 256}
"""Rate → mean bytes of whole packets that it aims at. One layer each."""

FRAME_BYTES = 12  # of a packet without layers
LAYER_BYTES = 1.4  # a layer's length in the frame, and its rounding to whole bytes
SPARE = 0.93  # of the bits: photographs outside the fit cost up to 6 % more
ROUND_UP = 0.42  # values round away from zero above 1 - ROUND_UP: a little less than half, because zeros are cheap
STEPS = np.geomspace(0.25, 3.2, 16)  # candidate steps, in standard deviations of what is left of an axis
DONE = 1e-4  # of the variance: finer than this is below what float16 towers agree on
MAX_CHANNELS = 4096  # of a card


@dataclass(frozen=True, eq=False)
class Plan:
    """How vectors become symbols: mean (D,), basis (D, D) with an axis a row; inverse steps and gains, (L, D) each.

    A zero inverse step: the layer says nothing about that axis. Channels are the others, layer by layer.
    """

    mean: np.ndarray
    basis: np.ndarray
    inverse: np.ndarray
    gain: np.ndarray
    high: int  # symbols are -high..high

    @property
    def used(self) -> np.ndarray:
        """intp (C,): the channels, as places in a flat (L, D)."""
        return np.flatnonzero(self.inverse)

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        ends = np.cumsum((self.inverse > 0).sum(1)).tolist()
        return tuple(zip([0, *ends], ends))

    @property
    def rates(self) -> tuple[tuple[str, int], ...]:
        """low, mid and high are always there: where a small tower ends the ladder early, they are its last three."""
        names = list(LADDER)[: len(self.layers)]
        if "high" not in names:
            names = [f"{LADDER[name]}b" for name in names[:-3]] + ["low", "mid", "high"]
        return tuple((name, index + 1) for index, name in enumerate(names))

    def synthesis_weights(self) -> dict[str, torch.Tensor]:
        """The state of `synthesis.embedding.EmbeddingSynthesis`."""
        axes = self.basis[self.used % len(self.mean)] * self.gain.ravel()[self.used][:, None]  # (C, D)
        return {
            "axes.weight": torch.from_numpy(axes.T.copy()).float(),
            "axes.bias": torch.from_numpy(self.mean).float(),
        }


def fit_plan(vectors: np.ndarray) -> Plan:
    """Unit vectors (N, D) of training photographs → the plan whose layers meet `LADDER` on them. Deterministic."""
    vectors = vectors.astype(np.float64)
    mean = vectors.mean(0)
    _, axes = np.linalg.eigh(np.cov(vectors.T))
    basis = axes.T[::-1]  # by falling variance
    left = (vectors - mean) @ basis.T  # (N, D): what the layers so far have not said
    total = (left**2).mean(0).sum()
    inverses, gains, high, free = [], [], 1, MAX_CHANNELS
    for index, target in enumerate(LADDER.values()):
        before = list(LADDER.values())[index - 1] if index else FRAME_BYTES
        bits = 8 * SPARE * (target - before - LAYER_BYTES)
        inverse, gain = _spend(left, bits, free, floor=1e-6 * total / left.shape[1])
        if not inverse.any():
            break
        symbols = quantise(torch.from_numpy(left), torch.from_numpy(inverse)).numpy()
        left = left - gain * symbols
        inverses.append(inverse)
        gains.append(gain)
        high, free = max(high, int(np.abs(symbols).max())), free - np.count_nonzero(inverse)
        if (left**2).mean(0).sum() < DONE * total and len(gains) >= 3:
            break
    if len(gains) < 3:
        raise PhotographsError(
            f"{len(vectors)} vectors of rank {np.linalg.matrix_rank(vectors - mean)}: more photographs"
        )
    return Plan(mean, basis, np.stack(inverses), np.stack(gains), high)


def _spend(left: np.ndarray, bits: float, free: int, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Inverse steps and gains (D,) of one layer: per axis the step, or none, that minimises error + price · bits.

    The price is the lowest at which the layer keeps to its bits. `floor`: axes of less variance are left alone.
    """
    deviation = np.sqrt((left**2).mean(0))
    inverse = np.where(deviation**2 > floor, 1 / (STEPS[:, None] * np.maximum(deviation, 1e-12)), 0)  # (J, D)
    gain, saved, cost = (np.zeros_like(inverse) for _ in range(3))
    for row in range(len(STEPS)):
        symbols = quantise(torch.from_numpy(left), torch.from_numpy(inverse[row])).numpy()
        power = (symbols**2).mean(0)
        gain[row] = (left * symbols).mean(0) / np.maximum(power, 1e-12)
        saved[row] = gain[row] ** 2 * power
        cost[row] = entropy(symbols.astype(np.int64))
    columns, low, high = np.arange(left.shape[1]), 1e-18, 1e6
    for _ in range(80):
        price = (low * high) ** 0.5
        best = (saved - price * cost).argmax(0)
        worth = (saved - price * cost)[best, columns]
        keep = (worth > 0) & (np.argsort(np.argsort(-worth, kind="stable"), kind="stable") < free)
        fits = cost[best, columns][keep].sum() <= bits
        low, high = (low, price) if fits else (price, high)
        if fits:
            chosen = np.where(keep, inverse[best, columns], 0), np.where(keep, gain[best, columns], 0)
    return chosen


def quantise(values: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """values (B, D) in steps of 1 / inverse (D,), rounded towards zero a little more often than to nearest."""
    return torch.sign(values) * torch.floor(values.abs() * inverse + ROUND_UP)


class EmbeddingAnalysis(nn.Module):
    """RGB as `front.normalise` leaves it (B, 3, H, W) → whole numbers (B, C, 1, 1): all layers of a plan."""

    def __init__(self, tower: Tower, plan: Plan) -> None:
        super().__init__()
        self.tower, self.high = tower.net, plan.high
        arrays = {"mean": plan.mean, "basis": plan.basis.T.copy(), "inverse": plan.inverse, "gain": plan.gain}
        for name, value in arrays.items():
            self.register_buffer(name, torch.as_tensor(value).float())
        self.register_buffer("used", torch.from_numpy(plan.used))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.symbols(self.tower(x))[:, :, None, None]

    def symbols(self, vectors: torch.Tensor) -> torch.Tensor:
        left = (vectors - self.mean) @ self.basis
        layers = []
        for inverse, gain in zip(self.inverse, self.gain):
            layers.append(quantise(left, inverse).clamp(-self.high, self.high))
            left = left - layers[-1] * gain
        return torch.cat(layers, dim=1).index_select(1, self.used)

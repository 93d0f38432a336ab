"""How much two opinions of one frame count, and when the second is worth asking for: fitted without labels.

What counts as right is the CLIP's own answer on the original. Label sets are drawn for each photograph: the name that
the CLIP gives it among all, and others, some of them its near neighbours, since whoever writes labels does not write
random ones. `cloud.engine.fusion` says what the figures mean, and reads and writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.accuracy.calibration_fit import TEMPERATURES, margin_table
from cloud.engine.calibration import LayerCalibration
from cloud.engine.fusion import Fusion, Pair

SET_SIZES = (3, 100)  # labels of a set: drawn evenly on a logarithmic scale
SETS = 6  # of each photograph
NEAR = 100  # names that count as neighbours
MOST_NEAR = 0.5  # of a set, at most
LEAST_PHOTOGRAPHS = 50


@dataclass(frozen=True, eq=False)
class LabelSets:
    """names: int (M, L) of the texts in each set, -1 where it is shorter; photographs: int (M,), whose each is."""

    names: np.ndarray
    photographs: np.ndarray

    @property
    def absent(self) -> np.ndarray:
        """bool (M, L)."""
        return self.names < 0

    def logits(self, vectors: np.ndarray, texts: np.ndarray, scale: float) -> np.ndarray:
        """Image vectors (N, D) and all text vectors (T, D) → float64 (M, L), -inf where a set is shorter."""
        cosines = vectors.astype(np.float64) @ texts.T  # (N, T)
        logits = scale * cosines[self.photographs[:, None], np.maximum(self.names, 0)]
        return np.where(self.absent, -np.inf, logits)


def draw_sets(originals: np.ndarray, texts: np.ndarray, seed: int = 0) -> LabelSets:
    """Originals' vectors (N, D) and text vectors (T, D) → `SETS` label sets of each photograph."""
    rng = np.random.default_rng(seed)
    ranked = np.argsort(-(originals @ texts.T), axis=1)  # (N, T)
    rows, owners = [], []
    most = min(SET_SIZES[1], len(texts))
    for photograph, order in enumerate(ranked):
        for _ in range(SETS):
            size = round(np.exp(rng.uniform(np.log(SET_SIZES[0]), np.log(most))))
            near = round(rng.uniform(0, MOST_NEAR) * (size - 1))
            chosen = list(rng.permutation(order[1 : 1 + NEAR])[:near])
            others = rng.permutation(order[1:])
            chosen += [each for each in others[: 2 * size] if each not in set(chosen)][: size - 1 - near]
            rows.append([order[0], *chosen, *[-1] * (most - 1 - len(chosen))])
            owners.append(photograph)
    return LabelSets(np.array(rows), np.array(owners))


def fit_fusion(
    first: Mapping[int, np.ndarray],
    seconds: Mapping[bytes, Mapping[int, tuple[float, np.ndarray]]],
    originals: np.ndarray,
    texts: np.ndarray,
    scale: float,
    names: Mapping[bytes, str],
    seed: int = 0,
) -> Fusion:
    """Of every level of the first bundle with every level of each second one.

    first: vectors (N, D) by layers; seconds: (mean bytes, vectors) by model id and layers; originals: the CLIP's
    vectors of the uncompressed photographs; texts: unit vectors (T, D) of names; scale: the CLIP's. Raises `ValueError`
    for fewer than 50 photographs.
    """
    if len(originals) < LEAST_PHOTOGRAPHS:
        raise ValueError(f"{len(originals)} photographs: at least {LEAST_PHOTOGRAPHS} are needed")
    sets = draw_sets(originals, texts, seed)
    wanted = _softmax(sets.logits(originals, texts, scale))
    right = wanted.argmax(1)
    second = {
        (model_id, level): (size, sets.logits(vectors, texts, scale))
        for model_id, levels in seconds.items()
        for level, (size, vectors) in levels.items()
    }
    cool = {key: _temperature(logits, wanted) for key, (_, logits) in second.items()}
    pairs: dict[tuple[int, bytes, int], Pair] = {}
    for layers, vectors in first.items():
        own = sets.logits(vectors, texts, scale)
        temperature = _temperature(own, wanted)
        alone = own.argmax(1) == right
        for (model_id, level), (size, logits) in second.items():
            weights = _weights(own / temperature, logits / cool[model_id, level], wanted)
            both = [np.where(sets.absent, 0, each) for each in (own / temperature, logits / cool[model_id, level])]
            pooled = np.where(sets.absent, -np.inf, weights[0] * both[0] + weights[1] * both[1])
            gain = (pooled.argmax(1) == right).astype(float) - alone
            margins, confidences = margin_table(_softmax(own / temperature), gain)
            table = LayerCalibration(temperature, margins, confidences)
            pairs[layers, model_id, level] = Pair(float(size), cool[model_id, level], weights, table)
    return Fusion(pairs, dict(names))


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def _cross_entropy(logits: np.ndarray, wanted: np.ndarray) -> float:
    """Mean over the rows, nats. Where logits are -inf nothing is wanted."""
    top = logits.max(1, keepdims=True)
    log_total = np.log(np.exp(logits - top).sum(1, keepdims=True)) + top
    return float(-(wanted * np.where(np.isfinite(logits), logits - log_total, 0)).sum(1).mean())


def _temperature(logits: np.ndarray, wanted: np.ndarray) -> float:
    losses = [_cross_entropy(logits / each, wanted) for each in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def _weights(first: np.ndarray, second: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Of two rows of tempered logits (M, L): those of least cross-entropy of the pool. A convex problem."""
    from scipy.optimize import minimize

    absent = ~np.isfinite(first)
    one, other = np.where(absent, 0, first), np.where(absent, 0, second)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        pooled = np.where(absent, -np.inf, weights[0] * one + weights[1] * other)
        error = _softmax(pooled) - wanted
        slope = np.array([(error * each).sum(1).mean() for each in (one, other)])
        return _cross_entropy(pooled, wanted), slope

    found = minimize(loss, np.array([0.5, 0.5]), jac=True, bounds=[(0.0, 10.0)] * 2, method="L-BFGS-B")
    first_weight, second_weight = (float(each) for each in found.x)
    return (first_weight, second_weight) if first_weight + second_weight > 0 else (0.5, 0.5)

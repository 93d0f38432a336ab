"""How far an answer from few layers can be trusted, fitted: temperature scaling and isotonic regression.

`cloud.engine.calibration` says what the figures mean, and reads and writes them.
"""

from __future__ import annotations

import numpy as np

from cloud.engine.calibration import Calibration, LayerCalibration

TEMPERATURES = np.geomspace(0.1, 10, 81)


def fit(logits: np.ndarray, targets: np.ndarray) -> Calibration:
    """float (K, N, L) logits of N images from 1 to K layers, int (N,) true labels → what the first K - 1 are worth.

    At least 2 layers, 20 images and 2 labels, or `ValueError`.
    """
    layers, images, labels = logits.shape
    if layers < 2 or images < 20 or labels < 2:
        raise ValueError(f"{layers} layers, {images} images, {labels} labels: at least 2, 20 and 2 are needed")
    right = logits[-1].argmax(axis=1) == targets  # (N,)
    return Calibration(tuple(_fit_layer(each.astype(np.float64), targets, right) for each in logits[:-1]))


def _fit_layer(logits: np.ndarray, targets: np.ndarray, right_at_last: np.ndarray) -> LayerCalibration:
    rows = np.arange(len(targets))
    losses = []
    for temperature in TEMPERATURES:
        scaled = logits / temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        losses.append(np.mean(np.log(np.exp(scaled).sum(axis=1)) - scaled[rows, targets]))
    temperature = float(TEMPERATURES[int(np.argmin(losses))])
    odds = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    gain = right_at_last.astype(np.float64) - (logits.argmax(axis=1) == targets)  # -1, 0 or 1
    return LayerCalibration(temperature, *margin_table(odds / odds.sum(axis=1, keepdims=True), gain))


def margin_table(probabilities: np.ndarray, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers (N, L), and what more would bring of each, -1, 0 or 1 (N,) → margins and confidences (K,) of a table."""
    ordered = np.sort(probabilities, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    order = np.argsort(margins, kind="stable")
    _, level = np.unique(isotonic(1 - gain[order]), return_inverse=True)
    # One knot in the middle of each level: between them the table rises, so that a threshold in between divides the
    # images of a level (a step would take them all or none)
    sizes = np.bincount(level)
    means = np.bincount(level, 1 - gain[order]) / sizes
    centres = np.bincount(level, margins[order]) / sizes
    # From few images no certainty: the rule of succession
    means = np.clip(means, 0, 1 - 1 / (len(margins) + 2))
    return centres, np.maximum.accumulate(means)


def isotonic(values: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence nearest to `values` (N,) in squared error: pool adjacent violators.

    >>> isotonic(np.array([0.0, 2.0, 1.0, 3.0])).tolist()
    [0.0, 1.5, 1.5, 3.0]
    """
    blocks: list[list[float]] = []  # [mean, size]
    for value in values:
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, size = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + mean * size) / (last[1] + size)
            last[1] += size
    return np.concatenate([np.full(int(size), mean) for mean, size in blocks])

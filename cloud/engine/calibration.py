"""How far an answer from few layers can be trusted: temperature scaling and a margin table, kept beside the bundle.

`calibration.json` in a bundle's folder, one entry for each CLIP that it was measured with:

    {"format": 1, "model_id": hex, "clips": {CLIP id: {"data", "images",
        "layers": [{"temperature", "margins": [...], "confidence": [...]}, ...]}}}

`layers[k - 1]` speaks of answers from k layers. Its temperature T minimises the cross-entropy of softmax(logits / T)
against the true labels (Guo et al. 2017, "On Calibration of Modern Neural Networks"). `confidence` is 1 minus the
accuracy that all layers together would add, P(right from all) - P(right from k), as a non-decreasing function of the
top-1/top-2 margin at T: isotonic regression (pool adjacent violators), linear between the centres `margins` of its
levels. Not the probability of being right: an image that no layer gets right is no reason to send more. Not that of
staying the same either: changes from right to wrong and between wrong labels are not worth bytes. Chosen on
ImageNette images (docs/service.md says what that means for its figures there).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from thinwire.bundle import Bundle

log = logging.getLogger(__name__)

FILE = "calibration.json"
FORMAT = 1
MAX_BYTES = 1 << 20
TEMPERATURES = np.geomspace(0.1, 10, 81)


@dataclass(frozen=True, eq=False)
class LayerCalibration:
    """Answers from one number of layers. margins, confidences: float64 (K,), both non-decreasing, 0 to 1."""

    temperature: float
    margins: np.ndarray
    confidences: np.ndarray

    def confidence(self, margin: float) -> float:
        """1 minus the share of such images that all layers would get right beyond those that are right now."""
        return float(np.interp(margin, self.margins, self.confidences))


@dataclass(frozen=True)
class Calibration:
    """One bundle with one CLIP: `layers[k - 1]` for answers from k layers."""

    layers: tuple[LayerCalibration, ...]

    def of(self, n_layers: int) -> LayerCalibration | None:
        """None from the last layer on: nothing is left to ask for."""
        return self.layers[n_layers - 1] if 1 <= n_layers <= len(self.layers) else None


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
    ordered = np.sort(odds, axis=1)
    margins = (ordered[:, -1] - ordered[:, -2]) / ordered.sum(axis=1)
    order = np.argsort(margins, kind="stable")
    gain = right_at_last.astype(np.float64) - (logits.argmax(axis=1) == targets)  # -1, 0 or 1
    _, level = np.unique(isotonic(1 - gain[order]), return_inverse=True)
    # One knot in the middle of each level: between them the table rises, so that a threshold in between divides the
    # images of a level (a step would take them all or none)
    sizes = np.bincount(level)
    means = np.bincount(level, 1 - gain[order]) / sizes
    centres = np.bincount(level, margins[order]) / sizes
    # From few images no certainty: the rule of succession
    means = np.clip(means, 0, 1 - 1 / (len(margins) + 2))
    return LayerCalibration(temperature, centres, np.maximum.accumulate(means))


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


def write_calibration(bundle: Bundle, clip_id: str, calibration: Calibration, data: str, images: int) -> Path:
    """Adds (or replaces) the entry of one CLIP in the bundle's calibration.json; returns its path."""
    path = bundle.path / FILE
    document: dict[str, Any] = {"format": FORMAT, "model_id": bundle.model_id.hex(), "clips": {}}
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        if (old["format"], old["model_id"]) == (FORMAT, bundle.model_id.hex()):
            document = old
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or of another model: it is written anew
    document["clips"][clip_id] = {
        "data": data,
        "images": images,
        "layers": [
            {
                "temperature": round(each.temperature, 4),
                "margins": [round(float(value), 5) for value in each.margins],
                "confidence": [round(float(value), 4) for value in each.confidences],
            }
            for each in calibration.layers
        ],
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def read_calibration(bundle: Bundle, clip_id: str) -> Calibration | None:
    """The bundle's calibration for this very CLIP; None where there is none. Raises `ValueError` for a damaged file."""
    path = bundle.path / FILE
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: is larger than {MAX_BYTES >> 20} MiB")
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT or document["model_id"] != bundle.model_id.hex():
            raise ValueError("is of another model or format")
        entry = document["clips"].get(clip_id)
        if entry is None:
            return None
        layers = tuple(_read_layer(each) for each in entry["layers"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: {error}: remove it, or measure it anew with `thinwire-bench calibrate`") from error
    if len(layers) != len(bundle.coder.layers) - 1:
        raise ValueError(f"{path}: speaks of {len(layers)} layers, the bundle has {len(bundle.coder.layers)}")
    return Calibration(layers)


def _read_layer(entry: dict[str, Any]) -> LayerCalibration:
    margins = np.array(entry["margins"], np.float64)
    confidences = np.array(entry["confidence"], np.float64)
    temperature = float(entry["temperature"])
    tables = np.stack([margins, confidences])  # ValueError where their lengths differ
    if tables.ndim != 2 or tables.shape[1] == 0 or not np.isfinite(tables).all() or (np.diff(tables) < 0).any():
        raise ValueError("its tables are not non-decreasing numbers")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"its temperature is {temperature}")
    return LayerCalibration(temperature, margins, confidences)


def read_calibrations(bundles: Iterable[Bundle] | Sequence[Bundle], clip_id: str) -> dict[bytes, Calibration]:
    """By model id. A damaged file costs a warning and progressive answers for its bundle, nothing else."""
    found = {}
    for bundle in bundles:
        try:
            calibration = read_calibration(bundle, clip_id)
        except (OSError, ValueError) as error:
            log.warning("%s", error)
            continue
        if calibration is not None:
            found[bundle.model_id] = calibration
    return found

"""How far an answer from few layers can be trusted: temperature scaling and a margin table, kept beside the bundle.

`calibration.json` in a bundle's folder, one entry for each CLIP that it was measured with:

    {"format": 1, "model_id": hex, "clips": {CLIP id: {"data", "images",
        "layers": [{"temperature", "margins": [...], "confidence": [...]}, ...]}}}

`layers[k - 1]` describes answers from k layers. Its temperature T minimises the cross-entropy of softmax(logits / T)
against the true labels (Guo et al. 2017, "On Calibration of Modern Neural Networks"). `confidence` is 1 minus the
accuracy that all layers together would add, P(right from all) - P(right from k), as a non-decreasing function of the
top-1/top-2 margin at T: isotonic regression (pool adjacent violators), linear between the centres `margins` of its
levels. It is not the probability of being right: for an image that no layer gets right, more bytes are wasted. Nor is
it the probability of staying the same: changes from right to wrong, or between wrong labels, are not worth bytes.
Chosen on ImageNette images (docs/service.md says what that means for its figures there).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cloud.engine.clip_entries import read_entries, read_entry, write_entry

if TYPE_CHECKING:
    from thinwire.bundle import Bundle

FILE = "calibration.json"


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
        """None from the last layer on: there are no more layers to ask for."""
        return self.layers[n_layers - 1] if 1 <= n_layers <= len(self.layers) else None


def write_calibration(bundle: Bundle, clip_id: str, calibration: Calibration, data: str, images: int) -> Path:
    """Adds (or replaces) the entry of one CLIP in the bundle's calibration.json; returns its path."""
    entry = {
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
    return write_entry(bundle, FILE, clip_id, entry)


def read_calibration(bundle: Bundle, clip_id: str) -> Calibration | None:
    """The bundle's calibration for exactly this CLIP, or None. Raises `ValueError` for a damaged file."""

    def read(entry: dict[str, Any]) -> Calibration:
        layers = tuple(read_table(each) for each in entry["layers"])
        if len(layers) != len(bundle.coder.layers) - 1:
            raise ValueError(f"describes {len(layers)} layers, the bundle has {len(bundle.coder.layers)}")
        return Calibration(layers)

    return read_entry(bundle, FILE, clip_id, read, "thinwire-bench calibrate")


def read_table(entry: dict[str, Any]) -> LayerCalibration:
    """`temperature`, `margins` and `confidence` of a file. Raises `ValueError`, `KeyError` or `TypeError`."""
    margins = np.array(entry["margins"], np.float64)
    confidences = np.array(entry["confidence"], np.float64)
    temperature = float(entry["temperature"])
    tables = np.stack([margins, confidences])  # ValueError where their lengths differ
    if tables.ndim != 2 or tables.shape[1] == 0 or not np.isfinite(tables).all() or (np.diff(tables) < 0).any():
        raise ValueError("its tables are not non-decreasing numbers")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"its temperature is {temperature}")
    return LayerCalibration(temperature, margins, confidences)


def read_calibrations(bundles: Iterable[Bundle], clip_id: str) -> dict[bytes, Calibration]:
    """By model id. A damaged file costs a warning and progressive answers for its bundle, nothing else."""
    return read_entries(bundles, lambda bundle: read_calibration(bundle, clip_id))

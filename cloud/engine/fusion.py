"""Two packets of one frame, two opinions: how much each counts, and when the second is worth its bytes.

`fusion.json` in the folder of the bundle whose packet comes first, one entry for each CLIP it was measured with:

    {"format": 1, "model_id": hex, "clips": {CLIP id: {"data", "date", "images", "label_sets",
        "temperatures": {layers: T},
        "with": {model id of the second bundle, hex: {"bundle": name, "pairs": {layers: {layers of the second:
            {"bytes", "temperature", "weights": [first, second], "margins": [...], "confidence": [...]}}}}}}}}

The common opinion is a logarithmic pool (Genest and Zidek 1986, "Combining Probability Distributions"): the weighted
sum of both log-probabilities, each at its temperature, normalised again. Both opinions come from the same label
vectors, so that the pool is the answer of one vector, `sum(weight / temperature * vector)`: no more is computed.

`temperature` and `weights` minimise the cross-entropy against the CLIP's own answers on the originals of unlabelled
photographs. `confidence` is 1 minus the share of frames that the second packet brings to the CLIP's own answer beyond
those that are there already, as a non-decreasing function of the first answer's margin (as in `calibration`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cloud.engine.calibration import LayerCalibration, read_table
from cloud.engine.clip_entries import read_entries, read_entry, write_entry

if TYPE_CHECKING:
    from thinwire.bundle import Bundle

FILE = "fusion.json"


@dataclass(frozen=True, eq=False)
class Pair:
    """A first packet of some layers with a second one of some layers (or of a rung).

    packet_bytes: the second packet's, on average. weights: of the first and the second opinion's log-probabilities at
    their temperatures. table: what is known of the first answer alone, with the first one's temperature.
    """

    packet_bytes: float
    temperature: float
    weights: tuple[float, float]
    table: LayerCalibration

    @property
    def shares(self) -> tuple[float, float]:
        """The weights as shares of 1."""
        total = sum(self.weights)
        return self.weights[0] / total, self.weights[1] / total

    @property
    def scales(self) -> tuple[float, float]:
        """What the two unit vectors are multiplied by, before they are added."""
        return self.weights[0] / self.table.temperature, self.weights[1] / self.temperature


@dataclass(frozen=True, eq=False)
class Wanted:
    """The packet that is worth asking for. confidence: 1 minus what the best of those offered is expected to add."""

    model_id: bytes
    layers: int
    confidence: float


@dataclass(frozen=True, eq=False)
class Fusion:
    """One first bundle with one CLIP. pairs: by layers of the first packet, model id and layers of the second."""

    pairs: Mapping[tuple[int, bytes, int], Pair]
    names: Mapping[bytes, str] = field(default_factory=dict)  # of second bundles, by model id

    def pair(self, layers: int, model_id: bytes, second_layers: int) -> Pair | None:
        return self.pairs.get((layers, model_id, second_layers))

    def temperature(self, layers: int, offers: Mapping[bytes, Sequence[int]]) -> float | None:
        """Of the first answer; None where none of what is offered (layers by model id) was measured with it."""
        known = (self.pair(layers, model_id, each) for model_id, levels in offers.items() for each in levels)
        return next((pair.table.temperature for pair in known if pair is not None), None)

    def wanted(
        self, layers: int, margin: float, offers: Mapping[bytes, Sequence[int]], confidence: float
    ) -> Wanted | None:
        """What to ask for after a first answer of this margin; None where nothing offered adds over 1 - confidence.

        Of several that do, the one of fewest bytes that is within 1 - confidence of the best.
        """
        found: list[tuple[float, float, bytes, int]] = []  # (bytes, expected gain, model id, layers)
        for model_id, levels in offers.items():
            for level in set(levels):
                if (pair := self.pair(layers, model_id, level)) is not None:
                    found.append((pair.packet_bytes, 1 - pair.table.confidence(margin), model_id, level))
        if not found:
            return None
        most = max(gain for _, gain, _, _ in found)
        if most <= 1 - confidence:
            return None
        _, _, model_id, level = min(each for each in found if each[1] >= most - (1 - confidence))
        return Wanted(model_id, level, 1 - most)


def write_fusion(bundle: Bundle, clip_id: str, fusion: Fusion, about: Mapping[str, Any]) -> Path:
    """Adds (or replaces) the entry of one CLIP in the bundle's fusion.json; returns its path.

    about: `data`, `date`, `images` and `label_sets` of the measurement.
    """
    entry: dict[str, Any] = {**about, "temperatures": {}, "with": {}}
    for (layers, model_id, level), pair in sorted(fusion.pairs.items()):
        entry["temperatures"][str(layers)] = round(pair.table.temperature, 4)
        second = entry["with"].setdefault(model_id.hex(), {"bundle": fusion.names.get(model_id, ""), "pairs": {}})
        second["pairs"].setdefault(str(layers), {})[str(level)] = {
            "bytes": round(pair.packet_bytes, 1),
            "temperature": round(pair.temperature, 4),
            "weights": [round(weight, 4) for weight in pair.weights],
            "margins": [round(float(value), 5) for value in pair.table.margins],
            "confidence": [round(float(value), 4) for value in pair.table.confidences],
        }
    return write_entry(bundle, FILE, clip_id, entry)


def read_fusion(bundle: Bundle, clip_id: str) -> Fusion | None:
    """The bundle's fusion for exactly this CLIP, or None. Raises `ValueError` for a damaged file."""
    return read_entry(bundle, FILE, clip_id, _read, "thinwire-bench cascade --fit")


def _read(entry: dict[str, Any]) -> Fusion:
    pairs, names = {}, {}
    for second, held in entry["with"].items():
        model_id = bytes.fromhex(second)
        names[model_id] = str(held["bundle"])
        for layers, levels in held["pairs"].items():
            for level, each in levels.items():
                table = read_table({**each, "temperature": entry["temperatures"][layers]})
                weights = tuple(float(weight) for weight in each["weights"])
                temperature, size = float(each["temperature"]), float(each["bytes"])
                numbers = (*weights, temperature, size)
                if len(weights) != 2 or not all(map(math.isfinite, numbers)) or min(numbers) < 0:
                    raise ValueError("its weights are not two numbers from 0")
                if temperature == 0 or sum(weights) == 0:
                    raise ValueError("a temperature, or both weights, are 0")
                pairs[int(layers), model_id, int(level)] = Pair(size, temperature, weights, table)
    return Fusion(pairs, names)


def read_fusions(bundles: Iterable[Bundle], clip_id: str) -> dict[bytes, Fusion]:
    """By model id of the first bundle. A damaged file costs a warning and the fusing of its packets, nothing else."""
    return read_entries(bundles, lambda bundle: read_fusion(bundle, clip_id))


@dataclass(frozen=True, eq=False)
class Earlier:
    """What an earlier packet of the frame gave, and how it counts with the one that is answered now.

    vector: float32 (D,), unit; bundle, layers: of its packet; second: name of the bundle that it is fused with.
    """

    vector: np.ndarray
    bundle: str
    layers: int
    pair: Pair


def pooled(earlier: Earlier, vector: np.ndarray) -> np.ndarray:
    """Unit vectors (D,) → the vector (D,) float32 whose answer is the common one. Not of unit length: its length is the
    inverse of the common temperature."""
    first, second = earlier.pair.scales
    return (first * earlier.vector + second * vector).astype(np.float32)

"""What a server may ask for after a first answer: a further layer of the same packet, or a packet of another bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cloud.engine.calibration import LayerCalibration
from cloud.engine.fusion import Fusion
from thinwire.v1 import inference_pb2 as pb


@dataclass(frozen=True, eq=False)
class Asking:
    """Of one frame after a packet of `layers` (or of that rung). temperature: of its answer's margin.

    table: of a further layer; or fusion, with the `offers`: numbers of layers by model id.
    """

    temperature: float
    layers: int
    table: LayerCalibration | None = None
    fusion: Fusion | None = None
    offers: Mapping[bytes, Sequence[int]] = field(default_factory=dict)

    def more(self, margin: float, confidence: float) -> pb.NeedMore | None:
        """What is worth asking for after an answer of this margin, without that answer; None: it is final."""
        if self.table is not None:
            known = self.table.confidence(margin)
            return pb.NeedMore(layer=self.layers + 1, confidence=known) if known < confidence else None
        wanted = self.fusion.wanted(self.layers, margin, self.offers, confidence)
        if wanted is None:
            return None
        return pb.NeedMore(layer=wanted.layers, model_id=wanted.model_id, confidence=wanted.confidence)

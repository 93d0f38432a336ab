"""What a classification gives: predictions, bytes as really sent, and where the milliseconds went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from thinwire.v1 import inference_pb2 as pb


@dataclass(frozen=True)
class Prediction:
    """probability: softmax over the labels given, 0 to 1; similarity: cosine of image and label vectors, -1 to 1."""

    label: str
    probability: float
    similarity: float


@dataclass(frozen=True)
class ServerTiming:
    """Where the server's milliseconds went; stages shared by a batch count in full for every item of the batch."""

    queue_ms: float
    decode_ms: float
    synthesis_ms: float
    clip_ms: float
    head_ms: float
    total_ms: float
    batch_size: int


@dataclass(frozen=True)
class Opinion:
    """What one packet of a frame said by itself, where the answer is made from several.

    layers: that it held, or its rung; share: in the common opinion, 0 to 1; label, probability: its first.
    """

    bundle: str
    layers: int
    share: float
    label: str
    probability: float


@dataclass(frozen=True)
class Result:
    """An answer. Predictions come best first.

    packet_bytes: the whole packet as sent (or the image file's bytes); layers: those sent (0 for an image file).
    decode_image_ms, preprocess_ms, encode_ms, code_ms: reading the image, making its view, encoder, range coder.
    round_trip_ms: from sending to the answer, retries included. clip: the CLIP model that answered.
    request_bytes: the message as sent: the packet, with labels or the handle of labels that the server holds.
    notes: what is odd about the picture (nearly flat), and, beside the first answer to these labels, about the labels:
    which of them this CLIP cannot tell apart. opinions: of the packets that the answer is made from, if several.
    """

    predictions: tuple[Prediction, ...]
    packet_bytes: int
    layers: int
    decode_image_ms: float
    preprocess_ms: float
    encode_ms: float
    code_ms: float
    round_trip_ms: float
    server: ServerTiming
    clip: str
    request_bytes: int
    notes: tuple[str, ...] = ()
    opinions: tuple[Opinion, ...] = ()

    @property
    def best(self) -> Prediction:
        """The most probable label."""
        return self.predictions[0]

    @property
    def edge_ms(self) -> float:
        """All that the device did before sending."""
        return self.decode_image_ms + self.preprocess_ms + self.encode_ms + self.code_ms

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, edge_ms included."""
        return {**asdict(self), "predictions": [asdict(each) for each in self.predictions], "edge_ms": self.edge_ms}


def read_reply(
    reply: pb.ClassifyResponse,
    sent_bytes: int,
    layers: int,
    edge_ms: tuple[float, float, float, float],
    round_trip_ms: float,
    request_bytes: int,
    notes: tuple[str, ...] = (),
) -> Result:
    """A server's reply as a Result. edge_ms: decode_image, preprocess, encode, code."""
    timing = reply.timing
    server = ServerTiming(
        timing.queue_ms,
        timing.decode_ms,
        timing.synthesis_ms,
        timing.clip_ms,
        timing.head_ms,
        timing.total_ms,
        timing.batch_size,
    )
    predictions = tuple(Prediction(each.label, each.probability, each.similarity) for each in reply.predictions)
    return Result(
        predictions,
        sent_bytes,
        layers,
        *edge_ms,
        round_trip_ms,
        server,
        reply.model.clip,
        request_bytes,
        (*notes, *reply.notes),
        tuple(Opinion(each.bundle, each.layers, each.weight, each.label, each.probability) for each in reply.opinions),
    )

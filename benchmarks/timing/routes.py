"""Ways from an image file on the device to an answer: packets, image codecs through the same service, all on the edge.

Each names its operating point as `benchmarks.accuracy.rate_accuracy` does, so that its times meet its accuracy by
(codec, rate).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc
import numpy as np

from benchmarks.codecs import peers as codecs
from benchmarks.codecs.grid import bundle_parameters
from benchmarks.codecs.peers import Peer
from edge.field.fallback import ImageVectors, LabelVectors
from edge.line.client import Client, PreparedRequest, Question, prepare
from thinwire.bundle import Bundle
from thinwire.errors import ThinwireError
from thinwire.imaging import canonical_view, open_image
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc

NOWHERE = "127.0.0.1:1"  # for clients that only encode: they are never connected
FAMILY, PEER, ON_EDGE = "family", "peer", "on-edge"
PEER_POINTS = ((224, 20), (160, 20), (112, 20))
"""(side, quality) at which image codecs are timed unless told otherwise; each takes its ladder's nearest value."""


class NotOnEdge(ThinwireError):
    """Asked to answer on the device with a bundle that cannot."""

    reason: ClassVar[str] = "NOT_ON_EDGE"


@dataclass(frozen=True, eq=False)
class Way:
    """One operating point. `parameters` say all that its bytes and work depend on; they are part of a point's key.

    prepare: client, an image file's bytes, question → request, with what the device did for it in milliseconds.
    """

    kind: str
    codec: str
    rate: str
    parameters: dict[str, Any]
    bundle: Bundle
    prepare: Callable[[Client, bytes, Question], PreparedRequest] | None = None


def family_ways(bundle: Bundle, rates: str) -> list[Way]:
    """Rates of a bundle: "low,mid" or "all". Raises `RateError`."""
    names = list(bundle.rates) if rates == "all" else [name.strip() for name in rates.split(",") if name.strip()]
    ways = []
    for name in names:

        def packet(client: Client, data: bytes, question: Question, name: str = name) -> PreparedRequest:
            return prepare(client.encoder, data, name, question)

        parameters = {**bundle_parameters(bundle), "layers": bundle.n_layers(name)}
        ways.append(Way(FAMILY, bundle.name, name, parameters, bundle, packet))
    return ways


def peer_ways(peer: Peer, bundle: Bundle, points: Sequence[tuple[int, float]]) -> list[Way]:
    """A codec at (side of a 224-pixel view, value of its dial); `bundle` gives the view and runs on the same server.

    The server takes image files, so a bare peer goes as its whole file and under that name (`codecs.WHOLE`). A bare AV1
    frame travels as family `still`.
    """
    peer = codecs.PEERS[codecs.WHOLE.get(peer.name, peer.name)]
    height, width = bundle.input_size
    ways = {}
    for side, wanted in points:
        value = min(peer.ladder, key=lambda rung: abs(rung - wanted))
        h, w = (max(1, round(full * side / codecs.FULL_SIDE)) for full in (height, width))

        def image_file(client: Client, data: bytes, question: Question, h=h, w=w, value=value) -> PreparedRequest:
            started = time.perf_counter()
            image = open_image(data)
            read = time.perf_counter()
            view = canonical_view(image, height, width)
            made = time.perf_counter()
            file = codecs.encode(peer, view, h, w, value)
            done = time.perf_counter()
            edge_ms = (1000 * (read - started), 1000 * (made - read), 1000 * (done - made), 0.0)
            return PreparedRequest(question.request(image_file=file), len(file), 0, edge_ms)

        rate = f"{w}x{h} {peer.dial} {value:g}" if h != w else f"{w}px {peer.dial} {value:g}"
        parameters = {"height": h, "width": w, peer.dial: value, "encoder": peer.version()}
        ways[rate] = Way(PEER, peer.name, rate, parameters, bundle, image_file)
    return list(ways.values())


def on_edge_way(bundle: Bundle) -> Way:
    """All on the device: `bundle` must be of family embedding, whose encoder is CLIP's image tower.

    Raises `NotOnEdge` for other bundles.
    """
    if bundle.card.cloud["output"] != "embedding":
        raise NotOnEdge(f"{bundle.name} decodes to pixels: --on-edge needs a bundle of family embedding")
    rate = list(bundle.rates)[-1]
    parameters = {**bundle_parameters(bundle), "layers": bundle.n_layers(rate)}
    return Way(ON_EDGE, bundle.name, rate, parameters, bundle)


class EdgeHead:
    """What `thinwire-edge run --fallback` answers with, label vectors made by a server included.

    bundle: of family embedding. labels: L names. classes: float32 (L, D), unit rows, as `EncodeText` gives them.
    """

    def __init__(self, bundle: Bundle, labels: Sequence[str], classes: np.ndarray) -> None:
        self._images, self._labels = ImageVectors(bundle), LabelVectors(tuple(labels), classes)

    @classmethod
    def fetch(cls, bundle: Bundle, server: str, labels: Sequence[str], prompt_set: str) -> EdgeHead:
        """Asks `server` for the label vectors, once."""
        with grpc.insecure_channel(server, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            reply = stub.EncodeText(pb.EncodeTextRequest(texts=labels, prompt_set=prompt_set), timeout=60)
        return cls(bundle, labels, np.array([each.values for each in reply.embeddings], np.float32))

    def rank(self, symbols: np.ndarray, top_k: int) -> list[tuple[str, float]]:
        """int32 (C, 1, 1) → the `top_k` labels with their cosines, best first."""
        best = self._labels.rank(self._images.vector_of(symbols), top_k)
        return [(each["label"], each["similarity"]) for each in best]

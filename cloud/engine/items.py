"""What goes through the engine: limits, one accepted item with its bookkeeping, and the answer that comes out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from cloud.engine.batching import BatchLimits
from cloud.engine.fusion import Earlier
from cloud.engine.prepared import Prepared
from cloud.engine.text_heads import Head
from thinwire.packet import Packet

if TYPE_CHECKING:
    from cloud.engine.models import LoadedClip, Models


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of what the engine holds at once. Submissions beyond them are refused with `QueueFull`."""

    queue_items: int = 256  # accepted and unanswered
    queue_bytes: int = 64 << 20  # input bytes of these
    pixel_bytes: int = 512 << 20  # that their image files take to decode (280 kB can hold 88 megapixels)
    batch: BatchLimits | None = None  # None: what suits the device
    decode_threads: int | None = None  # 0: packets are decoded where the networks run; None: what suits the device
    pending_head_builds: int = 16
    max_prompts: int = 200_000  # labels x templates of one request
    # Longest wait that a new request may have before it; two batches are always taken. None: bounds by count and bytes
    # alone, which on a slow device means that those accepted wait long.
    max_wait_s: float | None = None
    default_deadline_s: float = 60.0  # for callers that give none


@dataclass(frozen=True)
class RankedLabel:
    label: str
    index: int  # among the labels given
    probability: float  # softmax over the request's labels
    similarity: float  # cosine of image and class vector


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each stage of one reply. Stages of a batch count in full for every item of the batch."""

    queue_ms: float  # waiting for a decode thread and for the device
    decode_ms: float  # parse and range-decode, or decoding an image file
    synthesis_ms: float
    clip_ms: float
    head_ms: float  # waiting for the text head (a cache hit: near 0) and applying it
    total_ms: float
    batch_size: int


@dataclass(frozen=True)
class Opinion:
    """What one packet of a fused answer says by itself: its first label, with the probability at its temperature.

    weight: its share in the common opinion, 0 to 1.
    """

    bundle: str
    layers: int
    weight: float
    label: str
    probability: float


@dataclass(frozen=True, eq=False)
class Answer:
    """embedding: float32 (D,) unit vector; predictions: best first, empty where no labels were given.

    margin: best minus second-best probability at the temperature asked for; None where none was. opinions: of the
    packets that a fused answer is made from, in their order; its embedding is the common one.
    """

    embedding: np.ndarray
    predictions: tuple[RankedLabel, ...]
    timing: Timing
    bundle: str | None  # None for an image file
    layers: int
    margin: float | None = None
    notes: tuple[str, ...] = ()  # of the head: about the labels
    opinions: tuple[Opinion, ...] = ()


class Kind(Enum):
    """What a submission asks for."""

    IMAGE = "an embedding, and labels where some were given"
    TEXTS = "vectors of texts"
    PICTURE = "the picture that a packet holds"


@dataclass(eq=False)
class Item:
    """One accepted input on its way through the engine; one thread at a time works on it.

    The engine writes the fields up to `clip` when it accepts the item, `loaded_clip` when its CLIP is found (loader
    thread where that must be loaded), `prepared` and `ready` when it is decoded (decode thread or device thread), and
    the seconds as each stage ends. `head` comes from the cache, or from `HeadBuilds` (text thread). `packet` and
    `image_file` are None once decoded.
    """

    kind: Kind
    packet: bytes | Packet | None
    image_file: bytes | None
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    top_k: int
    temperature: float | None
    due: float  # monotonic seconds
    input_bytes: int  # of the packet or image file
    size_bytes: int  # of everything it holds
    pixel_bytes: int  # that decoding will take; 0 for packets, and once it is decoded
    accepted: float
    future: Future
    models: Models
    clip: str
    earlier: Earlier | None = None
    loaded_clip: LoadedClip | None = None
    prepared: Prepared | None = None
    head: Head | None = None
    ready: float = 0.0
    queue_s: float = 0.0
    decode_s: float = 0.0
    head_s: float = 0.0

    def note_ready(self) -> None:
        """It has all that the device needs: from here on it waits for that."""
        now = time.monotonic()
        self.head_s, self.ready = now - self.ready, now


def top_predictions(
    head: Head, embeddings: np.ndarray, counts: Sequence[int], sharpness: np.ndarray | None = None
) -> list[tuple[RankedLabel, ...]]:
    """Unit vectors (B, D) and a count for each → that many labels each, best first; equal ones in the order given.

    sharpness (B,): what the logits are multiplied by; None: 1.
    """
    similarities = head.similarities(embeddings)[:, head.kept]  # (B, K)
    probabilities = head.probabilities(similarities if sharpness is None else similarities * sharpness[:, None])
    out = []
    for row, count in enumerate(counts):
        order = np.argsort(-similarities[row], kind="stable")[:count]
        places = [int(head.kept[i]) for i in order]
        out.append(
            tuple(
                RankedLabel(head.labels[place], place, float(probabilities[row, i]), float(similarities[row, i]))
                for i, place in zip(order, places, strict=True)
            )
        )
    return out


def top_margin(head: Head, embedding: np.ndarray, temperature: float) -> float:
    """Unit vector (D,) → p1 - p2 of the two best labels under softmax(logits / temperature), 0 to 1."""
    logits = head.logit_scale * head.similarities(embedding[None])[0, head.kept].astype(np.float64) / temperature
    if len(logits) < 2:
        return 1.0
    odds = np.sort(np.exp(logits - logits.max()))
    return float((odds[-1] - odds[-2]) / odds.sum())

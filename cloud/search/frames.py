"""What the store keeps of a frame, what is asked of it, what is found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_FOUND = 200


@dataclass(frozen=True, eq=False)
class Frame:
    """One kept answer. at_ms: milliseconds since 1970. vector: float32 (D,), unit length. packet: None for image files.
    predictions: (label, probability), best first."""

    at_ms: int
    device_id: str
    clip_id: str
    bundle: str
    layers: int
    packet: bytes | None
    predictions: tuple[tuple[str, float], ...]
    vector: np.ndarray

    @property
    def label(self) -> str:
        return self.predictions[0][0] if self.predictions else ""


@dataclass(frozen=True)
class Filter:
    """Conditions that all must hold; an empty one always does. Labels are compared with the best one, without case."""

    device_ids: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    after_ms: int = 0
    before_ms: int = 0  # 0: no bound
    ids: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self != Filter()


@dataclass(frozen=True)
class SearchQuery:
    """Exactly one of text, packet, image_file and like_id; clip "" is the server's default."""

    text: str | None = None
    packet: bytes | None = None
    image_file: bytes | None = None
    like_id: int | None = None
    filter: Filter = Filter()
    top_k: int = 10
    clip: str = ""
    deadline: float | None = None  # monotonic seconds


@dataclass(frozen=True, eq=False)
class Found:
    id: int
    similarity: float
    frame: Frame

    def as_json(self) -> dict[str, object]:
        frame = self.frame
        return {
            "id": self.id,
            "similarity": round(self.similarity, 5),
            "at": frame.at_ms / 1000,
            "device": frame.device_id,
            "predictions": [[label, round(probability, 4)] for label, probability in frame.predictions[:3]],
            "bundle": frame.bundle,
            "bytes": len(frame.packet or b""),
            "picture": frame.packet is not None,
        }

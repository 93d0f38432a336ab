"""The lines that `thinwire-edge run` writes, in plain JSON types: answers of cloud and device, and no answer at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thinwire.v1 import inference_pb2 as pb


def _head(key: bytes, source: str, captured_at: float, final: bool, ok: bool) -> dict[str, Any]:
    return {"key": key.hex(), "final": final, "ok": ok, "source": source, "captured_at": captured_at}


def answered(
    key: bytes,
    source: str,
    captured_at: float,
    reply: pb.ClassifyResponse,
    layers: int,
    packet_bytes: int,
    round_trip_s: float,
    latency_s: float,
) -> dict[str, Any]:
    """The cloud's answer. latency_s: from acceptance, waiting in the spool included; packet_bytes: all layers sent."""
    predictions = [
        {"label": each.label, "probability": round(each.probability, 6), "similarity": round(each.similarity, 6)}
        for each in reply.predictions
    ]
    opinions = [
        {"bundle": each.bundle, "layers": each.layers, "share": round(each.weight, 3), "label": each.label}
        for each in reply.opinions
    ]
    return {
        **_head(key, source, captured_at, final=True, ok=True),
        "predictions": predictions,
        **({"opinions": opinions} if opinions else {}),
        "answered_by": "cloud",
        "clip": reply.model.clip,
        "layers": layers,
        "packet_bytes": packet_bytes,
        "round_trip_ms": round(1000 * round_trip_s, 1),
        "latency_ms": round(1000 * latency_s, 1),
    }


def provisional(key: bytes, source: str, captured_at: float, predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The device's own answer (`edge.field.fallback`); the cloud's follows."""
    head = _head(key, source, captured_at, final=False, ok=True)
    return {**head, "predictions": list(predictions), "answered_by": "device"}


def lost(key: bytes, source: str, captured_at: float, reason: str, message: str) -> dict[str, Any]:
    """The final line of a frame that gets no answer."""
    error = {"reason": reason, "message": message}
    return {**_head(key, source, captured_at, final=True, ok=False), "error": error}

"""What a decoder's output depends on, beside the packet: by this, others say whose pictures they were made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thinwire.bundle import Bundle


@dataclass(frozen=True)
class DecoderIdentity:
    """Two decoders of one bundle with equal identities give the same pictures of the same packets.

    weights_sha256: of the weights' file; "" where nothing was trained. synthesis_sha256: of the net's description (a
    card's `cloud.synthesis`): of a still without weights this alone says how much grain is added.
    """

    weights_sha256: str
    synthesis_sha256: str

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> DecoderIdentity:
        """Of the bundle's own decoder."""
        return cls(decoder_hash(bundle), synthesis_hash(bundle.card.cloud["synthesis"]))


def decoder_hash(bundle: Bundle) -> str:
    """SHA-256 of the decoder's file, as the bundle's card states it; the model id leaves it out."""
    return bundle.card.cloud["files"].get("decoder.safetensors", {}).get("sha256", "")


def synthesis_hash(spec: Mapping[str, Any]) -> str:
    """SHA-256 of `spec` as JSON with sorted keys. 0 and 0.0 are one number."""
    numbers_alike = json.loads(json.dumps(spec), parse_int=float)
    return hashlib.sha256(json.dumps(numbers_alike, sort_keys=True).encode()).hexdigest()


def is_plain_still(spec: Mapping[str, Any]) -> bool:
    """Whether `spec` shows the picture as AV1 left it."""
    return spec.get("arch") == "still" and not any(spec.get("grain", ()))


def grain_hash(bundle: Bundle) -> str | None:
    """`synthesis_hash` of a still without weights that adds grain; None for every other bundle.

    What is kept of a bundle (views, figures) is named by the hashes of its files. Those do not tell such grain.
    """
    spec = bundle.card.cloud["synthesis"]
    return synthesis_hash(spec) if spec.get("arch") == "still" and not is_plain_still(spec) else None

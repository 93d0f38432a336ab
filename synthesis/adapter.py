"""Adapters: what a CLIP's image tower learned about one codec's pictures, as low-rank differences of its weights.

    adapter.json           what it is for: a CLIP by fingerprint, a bundle by picture id and by its decoder, rates
    adapter.safetensors    NAME.A (r, fan-in) and NAME.B (fan-out, r) for each weight NAME of the tower

An adapted weight is W + scale * B A, in W's shape (LoRA, Hu et al. 2021, arXiv 2106.09685). Here because the workshop
writes these folders and the cloud merges them, and those two never import each other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synthesis.decoder_identity import DecoderIdentity, is_plain_still
from synthesis.weights_file import half_precision
from thinwire.bundle import MODELS
from thinwire.errors import AdapterError

if TYPE_CHECKING:
    from synthesis.variant import DecoderVariant
    from thinwire.bundle import Bundle

CARD, WEIGHTS = "adapter.json", "adapter.safetensors"
FORMAT = 1
MAX_CARD_BYTES = 1 << 20
MAX_WEIGHT_BYTES = 256 << 20  # of ViT-bigG at rank 16 it is about 60 MB


@dataclass(frozen=True, eq=False)
class Adapter:
    """A loaded adapter; its weights had the hash that the card states.

    clip: `NAME#fingerprint` of the tower; picture_id: of the bundle whose pictures it knows; decoder_sha256,
    synthesis_sha256: identity of the decoder that made them (`DecoderIdentity`), the latter None in adapters of before
    2026-11-29; rates: name → number of layers; factors: weight name → (A (r, fan-in), B (fan-out, r)) float32; digest:
    SHA-256 of the weights.
    """

    path: Path
    name: str
    clip: str
    bundle: str
    picture_id: bytes
    decoder_sha256: str
    synthesis_sha256: str | None
    rates: dict[str, int]
    scale: float
    factors: dict[str, tuple[np.ndarray, np.ndarray]]
    digest: str
    about: dict[str, Any]

    @property
    def layers(self) -> frozenset[int]:
        """Layer counts of the packets that it is for."""
        return frozenset(self.rates.values())

    def is_for(self, clip_id: str) -> bool:
        """Whether `clip_id` (NAME#fingerprint) has the very weights that this was trained on."""
        return clip_id.rpartition("#")[2] == self.clip.rpartition("#")[2]

    def check_clip(self, clip_id: str) -> None:
        """Raises `AdapterError` for another CLIP."""
        if not self.is_for(clip_id):
            raise AdapterError(
                f"adapter {self.path} was trained on CLIP {self.clip}, this is {clip_id}: serve it with --clip "
                f"{self.clip.partition('#')[0]}, or train another with `thinwire-export adapt --clip ...`"
            )

    def check_bundle(self, bundle: Bundle, decoders: Sequence[DecoderVariant] = ()) -> None:
        """Raises `AdapterError` unless the very pictures that this was trained on come from `bundle` or from one of
        `decoders` that stands in for its decoder where this CLIP answers."""
        if bundle.picture_id != self.picture_id:
            raise AdapterError(
                f"adapter {self.path} was trained on bundle {self.bundle!r} ({self.picture_id.hex()}), not on "
                f"{bundle.name!r} ({bundle.picture_id.hex()}): serve that bundle, or train another adapter"
            )
        tuned = next((each for each in decoders if each.picture_id == self.picture_id and each.is_for(self.clip)), None)
        if changed := self._changed(bundle, tuned):
            maker = f"bundle {bundle.name!r}" if tuned is None else f"decoder {tuned.path}"
            decoder = "" if tuned is None else f" --decoder {tuned.path}"
            raise AdapterError(
                f"adapter {self.path} was trained on pictures of another decoder: {changed} of {maker} differ from "
                "those of then. Serve the decoder of then, or train the adapter again with `thinwire-export adapt "
                f"--bundle {bundle.path}{decoder}`"
            )

    def _changed(self, bundle: Bundle, tuned: DecoderVariant | None) -> str | None:
        """What of the decoder that is served, `tuned` or the bundle's own, differs from the one of the training.

        Adapters written before `synthesis_sha256` name the weights alone. That is enough for a net with weights. Every
        still without weights that shipped, since adapters for stills could be made, showed the plain picture.
        """
        served = DecoderIdentity.of_bundle(bundle) if tuned is None else tuned.identity
        if served.weights_sha256 != self.decoder_sha256:
            return "weights"
        if self.synthesis_sha256 is not None:
            same = served.synthesis_sha256 == self.synthesis_sha256
        else:
            same = bool(self.decoder_sha256) or is_plain_still(bundle.card.cloud["synthesis"])
        return None if same else "settings (such as grain: `synthesis` on the card)"

    def added_to(self, weights: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
        """`weights` (float32, by name with `prefix`) with the differences added; the arrays given stay as they are.

        Raises `AdapterError` where a weight is missing there or of another shape.
        """
        merged = dict(weights)
        for name, (a, b) in self.factors.items():
            weight = merged.get(prefix + name)
            if weight is None or not weight.ndim or (b.shape[0], a.shape[1]) != weight.reshape(len(weight), -1).shape:
                found = "is missing" if weight is None else f"is {weight.shape}"
                raise AdapterError(f"{self.path}: {name} {found} in this tower, so the adapter does not fit it")
            with np.errstate(over="ignore"):  # the tower's canary tells
                merged[prefix + name] = weight + np.float32(self.scale) * (b @ a).reshape(weight.shape)
        return merged


def write_adapter(
    folder: Path,
    *,
    clip: str,
    bundle: Bundle,
    rates: Mapping[str, int],
    scale: float,
    factors: Mapping[str, tuple[Any, Any]],
    about: Mapping[str, Any],
    decoder: DecoderVariant | None = None,
) -> Adapter:
    """Writes the two files and reads them back.

    factors: arrays or tensors, written as float16; decoder: a tuned one, where that and not the bundle's own made the
    pictures.
    """
    from safetensors.numpy import save

    tensors = {
        f"{name}.{side}": half_precision(factor) for name, pair in factors.items() for side, factor in zip("AB", pair)
    }
    data = save(tensors)
    pictures = DecoderIdentity.of_bundle(bundle) if decoder is None else decoder.identity
    card = {
        "format": FORMAT,
        "name": f"{bundle.name}-{clip.partition('#')[0]}",
        "clip": clip,
        "bundle": {
            "name": bundle.name,
            "model_id": bundle.picture_id.hex(),  # under its name of before stills were packed
            "decoder_sha256": pictures.weights_sha256,
            "synthesis_sha256": pictures.synthesis_sha256,
        },
        "rates": dict(rates),
        "scale": scale,
        "weights": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
        "about": dict(about),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(data)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return load_adapter(folder)


SERVED = ("still-clip-lite",)
"""Shipped adapters that a server takes where it is given none: they help on pictures of every kind that was measured
(docs/adapting.md). `layered-clip-lite` helps on those that it was taught on alone."""
NONE = "none"  # in their place: no adapter


def shipped_adapters() -> dict[str, Path]:
    """Name → folder of every adapter that ships with thinwire, sorted by name."""
    return {path.parent.name: path.parent for path in sorted((MODELS / "adapters").glob(f"*/{CARD}"))}


def load_adapter(source: Path | str) -> Adapter:
    """The adapter in a folder, or the shipped one of that name. Raises `AdapterError`, which names the file, when
    anything is missing or altered."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = shipped_adapters().get(str(source)) or Path(source)
    card = _read_card(folder / CARD)
    data = _read(folder / WEIGHTS, MAX_WEIGHT_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if digest != card["weights"]["sha256"]:
        raise AdapterError(f"{folder / WEIGHTS}: is not the file that {CARD} describes: copy the whole folder again")
    try:
        tensors = load(data)
        factors = _pairs({name: tensor.astype(np.float32) for name, tensor in tensors.items()})
    except (SafetensorError, ValueError) as error:
        raise AdapterError(f"{folder / WEIGHTS}: holds no pairs of factors ({error})") from error
    bundle = card["bundle"]
    return Adapter(
        path=folder,
        name=card["name"],
        clip=card["clip"],
        bundle=bundle["name"],
        picture_id=bytes.fromhex(bundle["model_id"]),
        decoder_sha256=bundle["decoder_sha256"],
        synthesis_sha256=bundle.get("synthesis_sha256"),
        rates=card["rates"],
        scale=float(card["scale"]),
        factors=factors,
        digest=digest,
        about=card.get("about", {}),
    )


def _pairs(tensors: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = {name[:-2] for name in tensors}
    if not names or tensors.keys() != {f"{name}.{side}" for name in names for side in "AB"}:
        raise ValueError("each weight needs .A and .B, and nothing else belongs in the file")
    pairs = {name: (tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in sorted(names)}
    for name, (a, b) in pairs.items():
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] or not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError(f"{name}: {tuple(a.shape)} and {tuple(b.shape)} are not finite factors")
    return pairs


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(_read(path, MAX_CARD_BYTES))
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r} is unknown, this release reads {FORMAT}")
        texts = [card["name"], card["clip"], card["bundle"]["name"], card["bundle"]["decoder_sha256"]]
        rates, synthesis = card["rates"], card["bundle"].get("synthesis_sha256")
        sound = (
            all(isinstance(text, str) for text in texts)
            and re.fullmatch(r".+#[0-9a-f]{16}", card["clip"])
            and re.fullmatch(r"[0-9a-f]{8}", card["bundle"]["model_id"])
            and (synthesis is None or isinstance(synthesis, str))
            and isinstance(card["weights"]["sha256"], str)
            and isinstance(card["scale"], int | float)
            and isinstance(rates, dict)
            and rates
            and all(type(layers) is int and layers > 0 for layers in rates.values())
        )
        if not sound:
            raise ValueError("a field is of the wrong kind")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AdapterError(f"{path}: is not an adapter's card ({error!r}): copy it again, or train one") from error
    return card


def _read(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise AdapterError(f"{path}: is larger than {limit >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(
            f"{path}: cannot be read ({error.strerror or error}); an adapter is a folder with {CARD} and {WEIGHTS}, "
            f"which `thinwire-export adapt` writes, or the name of one that ships ({', '.join(shipped_adapters())})"
        ) from error

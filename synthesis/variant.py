"""Decoder variants: what stands between one bundle's symbols and one CLIP in the place of the bundle's own decoder.

    decoder.json           what it is for: a CLIP by fingerprint, a bundle by model id; pixels or a neck into the tower
    decoder.safetensors    weights of the net that the card's `synthesis` describes, float16

Devices do not change: encoder, tables and model id are the bundle's. Here because the workshop writes these folders and
the cloud serves them, and those two never import each other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthesis.decoder_identity import DecoderIdentity, synthesis_hash
from synthesis.weights_file import half_precision
from thinwire.errors import DecoderError

if TYPE_CHECKING:
    from thinwire.bundle import Bundle

CARD, WEIGHTS = "decoder.json", "decoder.safetensors"
FORMAT = 1
MAX_CARD_BYTES = 1 << 20
MAX_WEIGHT_BYTES = 256 << 20
INTO = ("pixels", "tower")


@dataclass(frozen=True, eq=False)
class DecoderVariant:
    """A loaded variant; its weights had the hash that the card states.

    clip: `NAME#fingerprint`; bundle, picture_id: whose packets it decodes; into: `pixels`, or `tower` for a neck, whose
    `entry` (see `synthesis.neck.Entry`) says where it joins; spec: as `synthesis.build` takes it.
    """

    path: Path
    name: str
    clip: str
    bundle: str
    picture_id: bytes
    into: str
    spec: dict[str, Any]
    entry: dict[str, Any] | None
    digest: str
    about: dict[str, Any]

    @property
    def gives_vectors(self) -> bool:
        return self.into == "tower"

    @property
    def graph_spec(self) -> dict[str, Any]:
        """What its graph depends on (`synthesis.graph_files`): of a neck, where it joins and the CLIP too."""
        if self.into == "pixels":
            return self.spec
        return {**self.spec, "entry": self.entry, "clip": self.clip.rpartition("#")[2]}

    @property
    def identity(self) -> DecoderIdentity:
        return DecoderIdentity(self.digest, synthesis_hash(self.graph_spec))

    def is_for(self, clip_id: str) -> bool:
        """Whether `clip_id` (NAME#fingerprint) has the very weights that this was tuned for."""
        return clip_id.rpartition("#")[2] == self.clip.rpartition("#")[2]

    def check_clip(self, clip_id: str) -> None:
        """Raises `DecoderError` for another CLIP."""
        if not self.is_for(clip_id):
            raise DecoderError(
                f"decoder {self.path} was tuned for CLIP {self.clip}, this is {clip_id}: serve it with --clip "
                f"{self.clip.partition('#')[0]}, or tune another with `thinwire-export tune --clip ...`"
            )

    def check_bundle(self, bundle: Bundle) -> None:
        """Raises `DecoderError` for a bundle of other symbols."""
        if bundle.picture_id != self.picture_id:
            raise DecoderError(
                f"decoder {self.path} is for bundle {self.bundle!r} ({self.picture_id.hex()}), not for {bundle.name!r} "
                f"({bundle.picture_id.hex()}): serve that bundle, or tune another decoder"
            )


def write_variant(
    folder: Path,
    net: Any,
    *,
    clip: str,
    bundle: Bundle,
    into: str,
    spec: Mapping[str, Any],
    entry: Mapping[str, Any] | None,
    about: Mapping[str, Any],
) -> DecoderVariant:
    """Writes the two files (the weights of `net`, a torch module, as float16) and reads them back."""
    from safetensors.numpy import save

    data = save({name: half_precision(value) for name, value in net.state_dict().items()})
    card = {
        "format": FORMAT,
        "name": f"{bundle.name}-{clip.partition('#')[0].replace('/', '-')}-{into}",
        "clip": clip,
        "bundle": {"name": bundle.name, "model_id": bundle.picture_id.hex()},
        "into": into,
        "synthesis": dict(spec),
        "entry": None if entry is None else dict(entry),
        "weights": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
        "about": dict(about),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(data)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return load_variant(folder)


def load_variant(source: Path | str) -> DecoderVariant:
    """The variant in a folder. Raises `DecoderError`, which names the file, when anything is missing or altered."""
    folder = Path(source)
    card = _read_card(folder / CARD)
    digest = hashlib.sha256(_read(folder / WEIGHTS, MAX_WEIGHT_BYTES)).hexdigest()
    if digest != card["weights"]["sha256"]:
        raise DecoderError(f"{folder / WEIGHTS}: is not the file that {CARD} describes: copy the whole folder again")
    bundle = card["bundle"]
    return DecoderVariant(
        path=folder,
        name=card["name"],
        clip=card["clip"],
        bundle=bundle["name"],
        picture_id=bytes.fromhex(bundle["model_id"]),
        into=card["into"],
        spec=card["synthesis"],
        entry=card["entry"],
        digest=digest,
        about=card.get("about", {}),
    )


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(_read(path, MAX_CARD_BYTES))
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r} is unknown, this release reads {FORMAT}")
        texts = [card["name"], card["clip"], card["bundle"]["name"], card["weights"]["sha256"]]
        sound = (
            all(isinstance(text, str) for text in texts)
            and re.fullmatch(r".+#[0-9a-f]{16}", card["clip"])
            and re.fullmatch(r"[0-9a-f]{8}", card["bundle"]["model_id"])
            and card["into"] in INTO
            and isinstance(card["synthesis"], dict)
            and (isinstance(card["entry"], dict) if card["into"] == "tower" else card["entry"] is None)
        )
        if not sound:
            raise ValueError("a field is of the wrong kind")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DecoderError(f"{path}: is not a decoder's card ({error!r}): copy it again, or tune one") from error
    return card


def _read(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise DecoderError(f"{path}: is larger than {limit >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise DecoderError(
            f"{path}: cannot be read ({error.strerror or error}); a decoder is a folder with {CARD} and {WEIGHTS}, "
            "which `thinwire-export tune` writes"
        ) from error

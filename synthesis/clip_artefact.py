"""A served CLIP without PyTorch: graphs of its two towers, its weights, its tokenizer, and a card that describes them.

    clip.json              which CLIP it is (by fingerprint), preprocessing, files and their hashes, known answers
    image_tower.onnx       float32 RGB (B, 3, H, W) in [0, 1] → unit vectors (B, D) float32; also .fp16 and .int8
    text_tower.onnx        int64 tokens (B, L) → unit vectors (B, D) float32
    weights.safetensors    every weight, under open_clip's names; a folder of open_clip's own brings its own file

Graphs hold no weights (but .int8, whose are its own): whoever opens them brings those of the file. Here because the
workshop writes these folders (`thinwire-export clip-onnx`) and the cloud serves them, and those two never import each
other.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthesis.fingerprint import weights_fingerprint
from synthesis.weights_file import read_weights
from thinwire.bundle import MODELS
from thinwire.errors import ClipUnavailable

CARD, TEXT_TOWER, WEIGHTS = "clip.json", "text_tower.onnx", "weights.safetensors"
IMAGE_TOWERS = {"fp32": "image_tower.onnx", "fp16": "image_tower.fp16.onnx", "int8": "image_tower.int8.onnx"}
FORMAT = 1
OPSETS = range(17, 24)  # that this release's runtimes read
MAX_CARD_BYTES = 1 << 20
SHIPPED = "clip-lite"


@dataclass(frozen=True, eq=False)
class ClipArtefact:
    """A read card, whose files (all but the weights, see `weights`) had the hashes that it states.

    id: `NAME#fingerprint` of the CLIP that it was made of; preprocess: open_clip's PreprocessCfg; image_towers: file of
    each precision; tokenizer: as `synthesis.clip_tokenizer.tokenizer_of` takes it; any_length: whether the text tower
    takes tokens without their padding; tokens, texts, images: what the original gives for the texts and pictures of
    `synthesis.probes`; parity: how the forms compare with the original, as measured when they were made.
    """

    folder: Path
    id: str
    embed_dim: int
    logit_scale: float
    preprocess: dict[str, Any]
    tokenizer: dict[str, Any]
    any_length: bool
    image_towers: dict[str, Path]
    text_tower: Path
    weights_file: Path
    tokens: np.ndarray
    texts: np.ndarray
    images: np.ndarray
    parity: dict[str, Any]

    def weights(self) -> dict[str, np.ndarray]:
        """Every weight by open_clip's name. Raises `ClipUnavailable` unless they have the fingerprint of `id`."""
        try:
            weights = read_weights(self.weights_file)
        except ValueError as error:
            raise ClipUnavailable(f"{error}; {again(self)}") from error
        found, wanted = weights_fingerprint(weights, self.preprocess), self.id.rpartition("#")[2]
        if found != wanted:
            raise ClipUnavailable(
                f"{self.weights_file}: has fingerprint {found}, {CARD} beside it is of {self.id}: these are "
                f"the weights of another CLIP; {again(self)}"
            )
        return weights


def artefact_folder(spec: str) -> Path | None:
    """The folder of the artefact that `--clip SPEC` names; None where it names none."""
    folder = MODELS / SHIPPED if spec == SHIPPED else Path(spec)
    return folder if (folder / CARD).is_file() else None


def export_command(spec: str) -> str:
    """What makes an artefact of `spec`, and what serves it, as a sentence's end."""
    folder = f"{re.sub('[^A-Za-z0-9._-]+', '-', Path(spec).name).strip('-') or 'clip'}-onnx"
    return (
        f"where PyTorch is installed, `thinwire-export clip-onnx --clip {spec} --out {folder}`, then serve "
        f"`--clip {folder}`"
    )


def again(artefact: ClipArtefact) -> str:
    return f"copy the whole folder again, or make it again: {export_command(artefact.id.partition('#')[0])}"


def read_artefact(folder: Path) -> ClipArtefact:
    """The artefact in `folder`. Raises `ClipUnavailable`, which names the file, when anything is missing or altered."""
    path = folder / CARD
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise ClipUnavailable(f"{path}: is larger than {MAX_CARD_BYTES >> 20} MiB")
        card = json.loads(path.read_bytes())
    except OSError as error:
        raise ClipUnavailable(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ClipUnavailable(f"{path}: is not JSON ({error}): make it with `thinwire-export clip-onnx`") from error
    try:
        artefact = _of_card(folder, card)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ClipUnavailable(
            f"{path}: is not an artefact's card ({error!r}): make it with `thinwire-export clip-onnx`"
        ) from error
    for name, entry in card["files"].items():
        _check_file(folder / name, entry, artefact)
    return artefact


def _of_card(folder: Path, card: dict[str, Any]) -> ClipArtefact:
    if card["format"] != FORMAT:
        raise ValueError(f"format {card['format']!r} is unknown, this release reads {FORMAT}")
    if card["opset"] not in OPSETS:
        raise ValueError(f"opset {card['opset']!r} is not one of {OPSETS.start} to {OPSETS.stop - 1}")
    if not re.fullmatch(r".+#[0-9a-f]{16}", card["clip"]):
        raise ValueError(f"clip {card['clip']!r} is not NAME#fingerprint")
    listed = set(card["files"])
    towers, tokenizer = card["image_towers"], card["tokenizer"]
    needed = {*towers.values(), card["text_tower"], tokenizer["file"]}
    outside = [name for name in {*listed, card["weights"]} if Path(name).name != name]
    if outside or not needed <= listed or "fp32" not in towers or not set(towers) <= set(IMAGE_TOWERS):
        raise ValueError(f"its files do not fit each other: {sorted(outside or needed - listed or set(towers))}")
    dim, scale = int(card["embed_dim"]), float(card["logit_scale"])
    if not (dim > 0 and math.isfinite(scale)):
        raise ValueError("a field is out of range")
    probes = card["probes"]
    return ClipArtefact(
        folder=folder,
        id=card["clip"],
        embed_dim=dim,
        logit_scale=scale,
        preprocess=dict(card["preprocess"]),
        tokenizer=tokenizer,
        any_length=bool(card["any_length"]),
        image_towers={name: folder / file for name, file in towers.items()},
        text_tower=folder / card["text_tower"],
        weights_file=folder / card["weights"],
        tokens=_unpacked(probes["tokens"], "<i4", int(tokenizer["context_length"])).astype(np.int64),
        texts=_unpacked(probes["texts"], "<f4", dim),
        images=_unpacked(probes["images"], "<f4", dim),
        parity=card.get("parity", {}),
    )


def packed(values: np.ndarray, kind: str) -> str:
    """An array (N, D) as a card has it: base64 of little-endian `kind`."""
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode("ascii")


def _unpacked(text: str, kind: str, width: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), kind).reshape(-1, width)


def entry_of(data: bytes) -> dict[str, Any]:
    """What a card states of one file."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _check_file(path: Path, entry: Mapping[str, Any], artefact: ClipArtefact) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ClipUnavailable(f"{path}: cannot be read ({error.strerror or error}); {again(artefact)}") from error
    if found != entry["sha256"]:
        raise ClipUnavailable(f"{path}: is not the file that {CARD} describes; {again(artefact)}")

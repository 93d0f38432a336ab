"""Bundles: a trained codec as a folder that both ends load, checked file by file.

    card.json                             what follows, and the hash of every file
    tables.npz                            integer probability tables (both ends)
    encoder.onnx [, encoder.int8.onnx]    edge: uint8 (B, H, W, 3) view → int32 (B, C, h, w) symbols
    decoder.safetensors                   cloud: weights of the net that the card's `cloud.synthesis` describes

The family `still` has neither tables nor an encoder's file: its edge is `thinwire.still` alone. It may have

    symbols.bin                           model by which AV1 frames are packed (both ends; `thinwire.frame_packing`)

A bundle loads with the files that are there: an edge need not carry the decoder, a cloud not the encoder. Asking for
the path of a file that is not there raises `MissingFile`; nothing ever falls back to something else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thinwire.card import MAX_SYMBOLS_BYTES, SYMBOLS, Card, canonical_wire, check_card
from thinwire.checkpoint_help import explained
from thinwire.entropy import SymbolCoder
from thinwire.errors import (
    AlteredFile,
    BadCard,
    BadTables,
    BundleError,
    MissingFile,
    RateError,
    UnknownBundle,
    UnknownModel,
)
from thinwire.imaging import Picture, canonical_view
from thinwire.packet import MODEL_ID_BYTES, Packet
from thinwire.still import FAMILY as STILL
from thinwire.still import Rung, StillCoder
from thinwire.tables import Tables

CARD, TABLES, DECODER = "card.json", "tables.npz", "decoder.safetensors"
ENCODERS = {"fp32": "encoder.onnx", "int8": "encoder.int8.onnx"}
MAX_CARD_BYTES = 1 << 20
MAX_TABLES_BYTES = 16 << 20
MODELS = Path(__file__).resolve().parent / "models"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle. Its files had the hashes that the card states when it was loaded.

    path: its folder; card: see `thinwire.card.Card`; model_id: the 4 bytes that its packets carry; coder: its entropy
    coder; rates: name → number of layers (of a still: number of its rung), from low to high. Immutable; may be used by
    several threads.
    """

    path: Path
    card: Card
    model_id: bytes
    coder: SymbolCoder | StillCoder
    rates: dict[str, int]

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the canonical view, pixels."""
        return self.card.wire["input"]["height"], self.card.wire["input"]["width"]

    @cached_property
    def picture_id(self) -> bytes:
        """4 bytes that are equal where equal packets' pictures are: the model id, of a still as if nothing were packed.

        Packing saves bytes and changes no pixel, so what was trained on a still's pictures serves any model of symbols.
        """
        return model_id({key: value for key, value in self.card.wire.items() if key != "symbols"})

    @property
    def has_encoder(self) -> bool:
        """Whether the edge runs a network; a `still` is made by Pillow alone."""
        return self.card.wire["family"] != STILL

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the symbols."""
        return self.coder.shape

    def view(self, image: Image.Image | np.ndarray | Picture) -> np.ndarray:
        """The canonical view that this bundle's encoder takes: uint8 (H, W, 3)."""
        return canonical_view(image, *self.input_size)

    def n_layers(self, rate: str) -> int:
        """Layers that `rate` sends; of a still, its rung. Raises `RateError` for a name that the bundle lacks."""
        try:
            return self.rates[rate]
        except KeyError:
            raise RateError(f"bundle {self.name!r} has no rate {rate!r}: use one of {', '.join(self.rates)}") from None

    def encode(self, symbols: np.ndarray, rate: str) -> Packet:
        """Symbols (C, h, w) → the packet of a rate. Raises `RateError`, `SymbolError` or `PacketTooLarge`.

        Of a still: planes uint8 (3, H, W) of the view; raises `ForeignEncoder` too.
        """
        return Packet(self.model_id, tuple(self.coder.encode(symbols, self.n_layers(rate))))

    def decode(self, packet: Packet) -> np.ndarray:
        """A packet of this model → int32 (C, h, w), zeros in absent layers; of a still, uint8 (3, H, W).

        Raises `UnknownModel` when another model made it, `BadPayload`, `DamagedFrame` or `MalformedPacket` when it
        cannot be read, `CoderMissing` for a packed still where there is no compiled coder.
        """
        if packet.model_id != self.model_id:
            raise UnknownModel(
                f"the packet was made with model {packet.model_id.hex()}, bundle {self.name!r} is {self.model_id.hex()}"
                ": use the same bundle on both ends"
            )
        return self.coder.decode(packet.layers)

    def level(self, packet: Packet) -> int:
        """Which of the bundle's rates a packet is of: its number of layers, or its rung. Raises as `decode`."""
        return self.coder.level(packet.layers)

    def encoder_path(self, precision: str = "auto") -> Path:
        """The ONNX encoder: "fp32", "int8", or "auto" (what the card's `edge.precision` names, else fp32)."""
        if precision == "auto":
            precision = self.card.edge.get("precision", "fp32")
        if precision not in ENCODERS:
            raise BundleError(f"precision {precision!r} is unknown: use auto, {' or '.join(ENCODERS)}")
        if not self.has_encoder:
            raise MissingFile(f"bundle {self.name!r} has no encoder network: Pillow makes its stills")
        return self._file("edge", ENCODERS[precision])

    @property
    def decoder_path(self) -> Path:
        """The decoder's weights (safetensors)."""
        return self._file("cloud", DECODER)

    def symbol_model(self) -> bytes | None:
        """Of a still: what its `symbols.bin` holds; None where it has none. Raises `MissingFile` or `AlteredFile`."""
        return _read_symbol_model(self.path, self.card)

    def _file(self, section: str, file: str) -> Path:
        path = self.path / file
        if file not in getattr(self.card, section)["files"]:
            raise MissingFile(f"{path}: bundle {self.name!r} was written without this file")
        if not path.is_file():
            raise MissingFile(f"{path}: file is missing; copy the whole bundle, or install thinwire again")
        return path


def load_bundle(source: str | os.PathLike[str]) -> Bundle:
    """The bundle in a folder, or the shipped bundle of that name; the hash of every file that is there is checked.

    Raises `UnknownBundle`, `MissingFile` (card, tables or symbols), `AlteredFile`, `BadCard` or `BadTables`; each
    names the file.
    """
    folder = resolve_bundle(source)
    card = _read_card(folder / CARD)
    for section in (card.edge, card.cloud):
        for file, entry in section["files"].items():
            if (folder / file).exists():
                _check_hash(folder / file, entry["sha256"])
    if card.wire["family"] == STILL:
        coder: SymbolCoder | StillCoder = _still_coder(folder, card)
    else:
        coder = _read_coder(folder / TABLES, card)
    rates = {rate["name"]: rate.get("still") or rate["layers"] for rate in card.wire["rates"]}
    return Bundle(folder, card, model_id(card.wire), coder, rates)


def write_bundle(
    folder: str | os.PathLike[str],
    *,
    name: str,
    wire: Mapping[str, Any],
    tables: Tables | None = None,
    symbol_model: bytes | None = None,
    encoder: str | os.PathLike[str] | bytes | None = None,
    encoder_int8: str | os.PathLike[str] | bytes | None = None,
    decoder: str | os.PathLike[str] | bytes | None = None,
    edge: Mapping[str, Any] | None = None,
    cloud: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Bundle:
    """Writes a bundle, in the place of an older one, and loads it back.

    wire holds family, input, latent, layers, rates and context (see `thinwire.card`); the symbol range and the tables'
    hash are filled in. encoder, encoder_int8 and decoder are files or their bytes. A still needs no tables and no
    encoder; symbol_model is its `symbols.bin`, if it has one. The folder appears whole or not at all. Raises `BadCard`
    or `BadTables` when the parts do not fit each other, `BundleError` when `folder` holds other things.
    """
    folder = Path(folder)
    check_place(folder)
    shared, wire = _complete(wire, tables, encoder, symbol_model)
    named = {"fp32": encoder, "int8": encoder_int8}
    on_edge = {ENCODERS[name]: _bytes(source) for name, source in named.items() if source is not None}
    in_cloud = {} if decoder is None else {DECODER: _bytes(decoder)}
    card = {
        "format": 1,
        "name": name,
        "wire": wire,
        "edge": {**(edge or {}), "files": _entries(on_edge)},
        "cloud": {"output": "pixels", "synthesis": {}, "clip": None, **(cloud or {}), "files": _entries(in_cloud)},
        "about": dict(about or {}),
    }
    text = json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"
    checked = check_card(json.loads(text), str(folder / CARD))
    if tables is not None:
        _coder(checked, tables)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        partial.chmod(0o755)
        for file, data in {**on_edge, **in_cloud, **shared, CARD: text.encode()}.items():
            (partial / file).write_bytes(data)
        load_bundle(partial)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(old / folder.name)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return load_bundle(folder)


def check_place(folder: Path) -> None:
    """Raises `BundleError` where a bundle cannot be written because `folder` is, or holds, something else."""
    if folder.exists() and not (folder / CARD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder}: exists and is not a bundle; name another folder")


def shipped_bundles() -> dict[str, Path]:
    """Name → folder of every bundle that ships with thinwire, sorted by name."""
    return {path.parent.name: path.parent for path in sorted(MODELS.glob(f"*/{CARD}"))}


def resolve_bundle(source: str | os.PathLike[str]) -> Path:
    """The folder of a shipped bundle's name or of a path. Raises `UnknownBundle` when there is none."""
    shipped = shipped_bundles()
    if isinstance(source, str) and source in shipped:
        return shipped[source]
    path = Path(source)
    if path.is_dir():
        return path
    names = ", ".join(shipped) or "none"
    raise UnknownBundle(f"{os.fspath(source)!r} is neither a folder nor a bundle that ships with thinwire ({names})")


def model_id(wire: Mapping[str, Any]) -> bytes:
    """The first 4 bytes of SHA-256 over the card's `wire` section in canonical JSON.

    It holds everything that the meaning of a packet depends on (the tables by their hash), and nothing else: new
    metrics or a decoder trained further leave it as it is.
    """
    return hashlib.sha256(canonical_wire(wire)).digest()[:MODEL_ID_BYTES]


def _read_card(path: Path) -> Card:
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise BadCard(f"{path}: is larger than {MAX_CARD_BYTES >> 20} MiB")
        data = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise MissingFile(f"{path}: file is missing; a bundle is a folder that holds one") from None
    except OSError as error:
        raise BadCard(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # json and unicode errors are ValueErrors
        raise BadCard(f"{path}: is not JSON ({error})") from error
    return check_card(data, str(path))


def _complete(
    wire: Mapping[str, Any], tables: Tables | None, encoder: object, symbol_model: bytes | None
) -> tuple[dict[str, bytes], dict]:
    """The file that both ends need, where there is one, and `wire` with what is known of it."""
    if wire.get("family") == STILL:
        if tables is not None or encoder is not None:
            raise BadCard("a still has neither tables nor an encoder")
        if symbol_model is None:
            if "symbols" in wire:
                raise BadCard(f"wire.symbols names a model: give what {SYMBOLS} holds, or leave the key out")
            return {}, dict(wire)
        files = {SYMBOLS: symbol_model}
        return files, {**wire, "symbols": {"file": SYMBOLS, **_entries(files)[SYMBOLS]}}
    if symbol_model is not None:
        raise BadCard(f"a bundle of family {wire.get('family')!r} has tables and no {SYMBOLS}")
    if tables is None or encoder is None:
        raise BadCard(f"a bundle of family {wire.get('family')!r} needs tables and an encoder")
    packed = tables.to_bytes()
    latent = {**wire["latent"], "low": int(tables.low), "high": int(tables.high)}
    for key in ("low", "high"):
        if wire["latent"].get(key, latent[key]) != latent[key]:
            raise BadCard(f"latent.{key} is {wire['latent'][key]} in the card, {latent[key]} in the tables")
    return {TABLES: packed}, {**wire, "latent": latent, "tables_sha256": hashlib.sha256(packed).hexdigest()}


def _read_coder(path: Path, card: Card) -> SymbolCoder:
    if not path.is_file():
        raise MissingFile(f"{path}: file is missing; copy the whole bundle, or install thinwire again")
    if path.stat().st_size > MAX_TABLES_BYTES:
        raise BadTables(f"{path}: is larger than {MAX_TABLES_BYTES >> 20} MiB")
    _check_hash(path, card.wire["tables_sha256"])
    try:
        return _coder(card, Tables.from_bytes(path.read_bytes()))
    except BadTables as error:
        raise BadTables(f"{path}: {error}") from error


def _still_coder(folder: Path, card: Card) -> StillCoder:
    view, rungs = card.wire["input"], [Rung.of_card(entry) for entry in card.wire["stills"]]
    try:
        return StillCoder(rungs, (3, view["height"], view["width"]), _read_symbol_model(folder, card))
    except BadTables as error:
        raise BadTables(f"{folder / SYMBOLS}: {error}") from error


def _read_symbol_model(folder: Path, card: Card) -> bytes | None:
    if "symbols" not in card.wire:
        return None
    path, said = folder / SYMBOLS, card.wire["symbols"]
    if not path.is_file():
        raise MissingFile(f"{path}: file is missing; copy the whole bundle, or install thinwire again")
    if path.stat().st_size > MAX_SYMBOLS_BYTES:
        raise BadTables(f"{path}: is larger than {MAX_SYMBOLS_BYTES >> 20} MiB")
    _check_hash(path, said["sha256"])
    return path.read_bytes()


def _coder(card: Card, tables: Tables) -> SymbolCoder:
    latent = card.wire["latent"]
    if (tables.low, tables.high) != (latent["low"], latent["high"]):
        raise BadTables(f"symbols are {tables.low}..{tables.high}, the card says {latent['low']}..{latent['high']}")
    spans = [tuple(layer["channels"]) for layer in card.wire["layers"]]
    return SymbolCoder(tables, (latent["channels"], latent["height"], latent["width"]), spans, card.wire["context"])


def _check_hash(path: Path, wanted: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MissingFile(f"{path}: cannot be read ({error.strerror or error})") from error
    if found != wanted:
        why = explained(path) or "it was altered, or is of another version: copy the whole folder again"
        raise AlteredFile(
            f"{path}: is not the file that card.json describes (SHA-256 {found[:12]}, not {wanted[:12]}): {why}"
        )


def _entries(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    return {file: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for file, data in files.items()}


def _bytes(source: str | os.PathLike[str] | bytes) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _plain(value: object) -> object:
    """numpy and torch numbers and arrays as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise BadCard(f"{type(value).__name__} values cannot be stored in a card")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")

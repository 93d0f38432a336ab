"""The card of a bundle: what `card.json` must hold, checked field by field.

    {"format": 1, "name": "layered",
     "wire":  what the meaning of a packet depends on; its hash is the model id
        {"family": "layered", "input": {"height", "width", "resize": "shortest-crop", "filter": "bicubic"},
         "latent": {"channels", "height", "width", "low", "high"}, "layers": [{"channels": [start, stop]}, ...],
         "rates": [{"name": "low", "layers": 1}, ...], "context": "none" | "checkerboard", "tables_sha256": hex},
     "edge":  {"files": {"encoder.onnx": {"sha256", "bytes"}, ...}, "mean", "std", "precision": "fp32" | "int8"},
     "cloud": {"files": {...}, "output": "pixels" | "embedding", "synthesis": {"arch", ...},
        "clip": null | "name" | "name#fingerprint"},
     "about": {"training": {...}, "metrics": {...}}}

The family `still` (`thinwire.still`) has pictures in place of symbols: its wire holds no latent, layers, context and
tables, but "stills": [{"width", "height", "chroma", "cdef", "restoration", "quality", "speed", "tune", "lead": hex},
...], and its rates are {"name": "low", "still": 1}; its edge has no files. Its wire may hold "symbols": {"file":
"symbols.bin", "sha256", "bytes"}, the model by which frames are packed (`thinwire.frame_packing`).

Other keys are allowed in edge, cloud and about. In wire too: they are part of the model id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thinwire.bare_av1 import MAX_SIDE as MAX_STILL_SIDE
from thinwire.contexts import CONTEXTS
from thinwire.errors import BadCard, ImageError
from thinwire.imaging import MAX_SIDE
from thinwire.packet import MAX_LAYERS
from thinwire.still import FAMILY as STILL
from thinwire.still import MAX_LEAD_BYTES, MAX_RUNGS, Rung

FORMAT = 1
SYMBOLS = "symbols.bin"
MAX_SYMBOLS_BYTES = 16 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Card:
    """A checked card; the sections are plain JSON dictionaries."""

    name: str
    wire: dict[str, Any]
    edge: dict[str, Any]
    cloud: dict[str, Any]
    about: dict[str, Any]


def canonical_wire(wire: Mapping[str, Any]) -> bytes:
    """`wire` as one byte string: JSON, keys sorted, no spaces, ASCII."""
    return json.dumps(wire, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def check_card(data: object, label: str) -> Card:
    """Parsed `card.json` → Card. Raises `BadCard`, which begins with `label` and names the field."""
    try:
        card = _Section(data, "")
        if card.whole("format", 1, 1 << 30) != FORMAT:
            raise BadCard(f"format {card.data['format']} is unknown, this release reads {FORMAT}: update thinwire")
        _check_wire(card.section("wire"))
        for name in ("edge", "cloud"):
            _check_files(card.section(name).section("files"))
        if card.section("edge").data.get("precision", "fp32") not in ("fp32", "int8"):
            raise BadCard("edge.precision must be fp32 or int8")
        card.section("cloud").text("output", ("pixels", "embedding"))
        card.section("cloud").section("synthesis")
        sections = {name: card.section(name).data for name in ("wire", "edge", "cloud", "about")}
        return Card(name=card.name("name"), **sections)
    except BadCard as error:
        raise BadCard(f"{label}: {error}") from error


class _Section:
    """A JSON object whose fields are read with their kind; every failure says where."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise BadCard(f"{where.rstrip('.') or 'the card'} must be a JSON object")
        self.data, self.where = data, where

    def get(self, key: str) -> Any:
        if key not in self.data:
            raise BadCard(f"{self.where}{key} is missing")
        return self.data[key]

    def section(self, key: str) -> _Section:
        return _Section(self.get(key), f"{self.where}{key}.")

    def sections(self, key: str, limit: int) -> list[_Section]:
        items = self.get(key)
        if not isinstance(items, list) or not 1 <= len(items) <= limit:
            raise BadCard(f"{self.where}{key} must be a list of 1 to {limit}")
        return [_Section(item, f"{self.where}{key}[{index}].") for index, item in enumerate(items)]

    def whole(self, key: str, low: int, high: int) -> int:
        value = self.get(key)
        if type(value) is not int or not low <= value <= high:
            raise BadCard(f"{self.where}{key} must be a whole number from {low} to {high}, is {value!r}")
        return value

    def text(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.get(key)
        if value not in allowed:
            raise BadCard(f"{self.where}{key} must be one of {', '.join(allowed)}, is {value!r}")
        return value

    def name(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise BadCard(f"{self.where}{key} must be a name of letters, digits, dot, dash, underscore; is {value!r}")
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if type(value) is not bool:
            raise BadCard(f"{self.where}{key} must be true or false, is {value!r}")
        return value

    def hex(self, key: str, most: int) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not re.fullmatch(r"(?:[0-9a-f]{2})*", value) or len(value) > 2 * most:
            raise BadCard(f"{self.where}{key} must be at most {most} bytes in lowercase hex digits")
        return value

    def digest(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not _SHA256.fullmatch(value):
            raise BadCard(f"{self.where}{key} must be a SHA-256 in 64 lowercase hex digits")
        return value


def _check_wire(wire: _Section) -> None:
    wire.name("family")
    view = wire.section("input")
    view.whole("height", 1, MAX_SIDE)
    view.whole("width", 1, MAX_SIDE)
    view.text("resize", ("shortest-crop",))
    view.text("filter", ("bicubic",))
    if wire.data["family"] == STILL:
        _check_stills(wire)
    else:
        _check_symbols(wire)
    try:
        canonical_wire(wire.data)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadCard(f"wire has no canonical form: {error}") from error
    if _holds_float(wire.data):
        raise BadCard("wire must not hold fractional numbers: their text differs between writers, and so would the id")


def _check_symbols(wire: _Section) -> None:
    wire.digest("tables_sha256")
    wire.text("context", CONTEXTS)
    latent = wire.section("latent")
    channels = latent.whole("channels", 1, 4096)
    for key in ("height", "width"):
        latent.whole(key, 1, 4096)
    if latent.whole("low", -(1 << 20), 1 << 20) >= latent.whole("high", -(1 << 20), 1 << 20):
        raise BadCard("wire.latent.low must be less than wire.latent.high")
    layers = wire.sections("layers", MAX_LAYERS)
    position = 0
    for layer in layers:
        span = layer.get("channels")
        if not (isinstance(span, list) and len(span) == 2 and all(type(edge) is int for edge in span)):
            raise BadCard(f"{layer.where}channels must be [start, stop]")
        if span[0] != position or span[1] <= span[0]:
            raise BadCard(f"{layer.where}channels is {span}: layers must follow each other without gaps from 0")
        position = span[1]
    if position != channels:
        raise BadCard(f"wire.layers end at channel {position}, wire.latent.channels is {channels}")
    _check_rates(wire, "layers", len(layers))


def _check_stills(wire: _Section) -> None:
    stills = wire.sections("stills", MAX_RUNGS)
    for still in stills:
        still.whole("width", 1, MAX_STILL_SIDE)
        still.whole("height", 1, MAX_STILL_SIDE)
        still.text("chroma", ("4:2:0", "4:4:4", "4:0:0"))
        still.flag("cdef")
        still.flag("restoration")
        still.whole("quality", 0, 99)
        still.whole("speed", 0, 10)
        still.text("tune", ("iq", "ssim", "psnr"))
        still.hex("lead", MAX_LEAD_BYTES)
        try:
            Rung.of_card(still.data)
        except ImageError as error:
            raise BadCard(f"{still.where.rstrip('.')}: {error}") from error
    if "symbols" in wire.data:
        model = wire.section("symbols")
        model.text("file", (SYMBOLS,))
        model.digest("sha256")
        model.whole("bytes", 1, MAX_SYMBOLS_BYTES)
    _check_rates(wire, "still", len(stills))


def _check_rates(wire: _Section, key: str, most: int) -> None:
    """`key` is what a rate's number is called: 1 to `most`, rising from rate to rate."""
    previous, names = 0, set()
    for rate in wire.sections("rates", MAX_LAYERS):
        names.add(rate.name("name"))
        if rate.whole(key, 1, most) <= previous:
            raise BadCard(f"{rate.where}{key}: rates must rise")
        previous = rate.data[key]
    if len(names) != len(wire.data["rates"]):
        raise BadCard("wire.rates: two have one name")


def _holds_float(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_float, value.values()))
    return any(map(_holds_float, value)) if isinstance(value, list) else isinstance(value, float)


def _check_files(files: _Section) -> None:
    for file in files.data:
        # Plain names only: a card must not reach outside of its folder
        if not _NAME.fullmatch(file):
            raise BadCard(f"{files.where}{file!r} is not a plain file name")
        entry = files.section(file)
        entry.digest("sha256")
        entry.whole("bytes", 0, 1 << 40)

"""Family `still`: a packet that holds a bare AV1 frame. Pillow alone on the device, no network and no tables.

What other families call symbols are here the pixels of the canonical view, uint8 planes (3, H, W) in 0..255. Coding is
lossy: the view is shrunk to the rung's size, coded by AV1 at the rung's quality and stripped to the bare frame;
decoding gives the picture that AV1 kept, enlarged to the view again. A rung is one rate. Rates are no prefixes of each
other: a packet has one layer, and its first byte says which rung it is of.

    payload   byte 0: rung - 1, plus 64 for a packed frame or 128 where the rung's lead was cut off; then the packed
              frame, or the frame without its lead

A packed frame is the AV1 frame coded again by a model of its symbols (`thinwire.frame_packing`), where the bundle has
one: fewer bytes for the same pixels. Where packing is not possible (no compiled coder, a frame that the model does not
know) the frame goes as it is. The lead is how frames of a rung usually begin (the frame header depends on quality and
on little else); the card holds it, so that ten bytes of most frames that are not packed stay at home.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from thinwire import bare_av1
from thinwire.bare_av1 import BareForm
from thinwire.errors import BadPayload, DamagedFrame, MalformedPacket, SymbolError
from thinwire.frame_decoder import decode_apart
from thinwire.frame_packing import FramePacker, packable
from thinwire.imaging import canonical_view

FAMILY = "still"
MAX_RUNGS = 16
MAX_LEAD_BYTES = 32
# Of a payload's first byte: the lead was cut off; the frame is packed. Never both
_CUT, _PACKED = 0x80, 0x40


@dataclass(frozen=True)
class Rung:
    """One rate: the form of its frames, what the encoder is told (quality, speed, tune), and how frames begin."""

    form: BareForm
    quality: int
    speed: int
    tune: str
    lead: bytes = b""

    @classmethod
    def of_card(cls, entry: dict[str, Any]) -> Rung:
        """An entry of a checked card's `wire.stills`. Raises `ImageError` for a form that cannot be."""
        form = BareForm(entry["width"], entry["height"], entry["chroma"], entry["cdef"], entry["restoration"])
        return cls(form, entry["quality"], entry["speed"], entry["tune"], bytes.fromhex(entry["lead"]))

    def card(self) -> dict[str, Any]:
        """The entry of `wire.stills`."""
        form = self.form
        return {
            "width": form.width,
            "height": form.height,
            "chroma": form.chroma,
            "cdef": form.cdef,
            "restoration": form.restoration,
            "quality": self.quality,
            "speed": self.speed,
            "tune": self.tune,
            "lead": self.lead.hex(),
        }

    def frame(self, view: Image.Image) -> bytes:
        """An RGB view → bare frame, lead included. Raises `ForeignEncoder`."""
        size = (self.form.width, self.form.height)
        small = view if view.size == size else view.resize(size, Image.Resampling.LANCZOS)
        return bare_av1.encode(small, self.form, quality=self.quality, speed=self.speed, tune=self.tune)


class StillCoder:
    """Views ↔ payloads of one bundle of the family `still`; has the face of `thinwire.entropy.SymbolCoder`.

    shape: (3, H, W) of the canonical view. layers: one, of all three planes. low, high: 0 and 255. exact: False,
    for `decode(encode(x))` is near `x` and not `x`. form: "compiled", or "unpacked" where the bundle could pack its
    frames and this end has no compiled coder. May be shared by threads.
    """

    exact = False
    low, high = 0, 255
    layers = ((0, 3),)

    def __init__(self, rungs: Sequence[Rung], shape: tuple[int, int, int], symbol_model: bytes | None = None) -> None:
        """symbol_model: what the bundle's `symbols.bin` holds, if it has one. Raises `BadTables` for anything else."""
        self.rungs = tuple(rungs)
        self.shape = shape
        self._packer = None if symbol_model is None else FramePacker(symbol_model)

    @property
    def form(self) -> str:
        return "compiled" if self._packer is None or self._packer.compiled else "unpacked"

    def encode(self, symbols: np.ndarray, level: int | None = None) -> list[bytes]:
        """Planes uint8 (3, H, W) → the one payload of rung `level`, 1 to the number of rungs (default: the last).

        Raises `SymbolError` for another shape or type or an impossible rung, `ForeignEncoder` where this end's Pillow
        cannot write the frames.
        """
        level = len(self.rungs) if level is None else level
        if not isinstance(symbols, np.ndarray) or symbols.shape != self.shape or symbols.dtype != np.uint8:
            got = f"{symbols.dtype} {symbols.shape}" if isinstance(symbols, np.ndarray) else type(symbols).__name__
            raise SymbolError(f"a still is made of planes uint8 {self.shape}, got {got}")
        if not 1 <= level <= len(self.rungs):
            raise SymbolError(f"this bundle has rungs 1 to {len(self.rungs)}, not {level}")
        frame = self.rungs[level - 1].frame(Image.fromarray(np.ascontiguousarray(symbols.transpose(1, 2, 0))))
        return [self.payload(frame, level)]

    def payload(self, frame: bytes, level: int, packed: bool = True) -> bytes:
        """A bare frame of rung `level` → the payload that carries it; packed: where that saves bytes."""
        rung, number = self.rungs[level - 1], level - 1
        cut = bool(rung.lead) and frame.startswith(rung.lead)
        plain = bytes([number | (_CUT if cut else 0)]) + frame[len(rung.lead) if cut else 0 :]
        if packed and self._packer is not None:
            body = self._packer.pack(frame, rung.form, number)
            if body is not None and 1 + len(body) < len(plain):
                return bytes([number | _PACKED]) + body
        return plain

    def decode(self, payloads: Sequence[bytes]) -> np.ndarray:
        """The one payload → the picture it holds, enlarged to the view: uint8 (3, H, W).

        The frame is decoded in a process of its own (`thinwire.frame_decoder`). Raises `MalformedPacket` unless there
        is one layer, `BadPayload` for a payload that `encode` does not write, `DamagedFrame` for a frame that does not
        decode, `CoderMissing` for a packed one where there is no compiled coder.
        """
        number, packed, body = self._body(payloads)
        form = self.rungs[number].form
        picture = decode_apart(body, form, self._packer, number) if packed else decode_apart(body, form)
        pixels = canonical_view(picture, *self.shape[1:])  # (H, W, 3)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def frame(self, payloads: Sequence[bytes]) -> tuple[int, bytes]:
        """The one payload → (its rung from 1, the bare frame with its lead). Raises as `decode`; does not decode.

        Unpacks in this process: for packets of one's own.
        """
        number, packed, body = self._body(payloads)
        if packed:
            assert self._packer is not None  # `_parsed` has seen to it
            body = self._packer.unpack(body, self.rungs[number].form, number)
        return number + 1, body

    def _body(self, payloads: Sequence[bytes]) -> tuple[int, bool, bytes]:
        """(rung from 0, whether what follows is packed, the packed frame or the bare one with its lead)."""
        number, flags, body = self._parsed(payloads)
        rung = self.rungs[number]
        if len(body) > rung.form.max_frame_bytes:
            raise DamagedFrame(f"{len(body)} bytes are not an AV1 frame of {rung.form.width}x{rung.form.height} pixels")
        if flags & _PACKED:
            return number, True, body
        if not flags & _CUT and rung.lead and body.startswith(rung.lead):
            raise BadPayload(f"the payload carries the lead of rung {number + 1}: no encoder writes it")
        return number, False, (rung.lead if flags & _CUT else b"") + body

    def level(self, payloads: Sequence[bytes]) -> int:
        """The rung of a payload, from 1, by its first byte. Raises `MalformedPacket` or `BadPayload`."""
        return self._parsed(payloads)[0] + 1

    def _parsed(self, payloads: Sequence[bytes]) -> tuple[int, int, bytes]:
        """(rung from 0, flags, the rest of the payload); the flags are possible for that rung."""
        if len(payloads) != 1:
            raise MalformedPacket(f"the packet has {len(payloads)} layers, one of a still has one")
        payload = bytes(payloads[0])
        if not payload:
            raise BadPayload("a still's payload begins with the number of its rung, this one is empty")
        flags = payload[0] & (_CUT | _PACKED)
        number = payload[0] - flags
        if number >= len(self.rungs):
            raise BadPayload(f"the payload says rung {number + 1}, its model has 1 to {len(self.rungs)}")
        if flags == _CUT | _PACKED:
            raise BadPayload("the payload says both that its frame is packed and that a lead was cut off")
        if flags & _CUT and not self.rungs[number].lead:
            raise BadPayload(f"the payload says that a lead was cut off, frames of rung {number + 1} have none")
        if flags & _PACKED and (self._packer is None or not packable(self.rungs[number].form)):
            raise BadPayload(f"the payload says that its frame is packed, frames of rung {number + 1} never are")
        return number, flags, payload[1:]

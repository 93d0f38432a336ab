"""Family `still`: a packet that holds a bare AV1 frame. Pillow alone on the device, no network and no tables.

What other families call symbols are here the pixels of the canonical view, uint8 planes (3, H, W) in 0..255. Coding is
lossy: the view is shrunk to the rung's size, coded by AV1 at the rung's quality and stripped to the bare frame;
decoding gives the picture that AV1 kept, enlarged to the view again. A rung is one rate. Rates are no prefixes of each
other: a packet has one layer, and its first byte says which rung it is of.

    payload   byte 0: rung - 1, plus 128 where the rung's lead was cut off; then the frame without its lead

The lead is how frames of a rung usually begin (the frame header depends on quality and on little else); the card holds
it, so that ten bytes of most frames stay at home.
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
from thinwire.imaging import canonical_view

FAMILY = "still"
MAX_RUNGS = 16
MAX_LEAD_BYTES = 32
_CUT = 0x80  # of a payload's first byte: the lead was cut off


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
    for `decode(encode(x))` is near `x` and not `x`. form: "compiled", Pillow's AV1. May be shared by threads.
    """

    exact = False
    form = "compiled"
    low, high = 0, 255
    layers = ((0, 3),)

    def __init__(self, rungs: Sequence[Rung], shape: tuple[int, int, int]) -> None:
        self.rungs = tuple(rungs)
        self.shape = shape

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
        rung = self.rungs[level - 1]
        frame = rung.frame(Image.fromarray(np.ascontiguousarray(symbols.transpose(1, 2, 0))))
        cut = bool(rung.lead) and frame.startswith(rung.lead)
        return [bytes([level - 1 | (_CUT if cut else 0)]) + frame[len(rung.lead) if cut else 0 :]]

    def decode(self, payloads: Sequence[bytes]) -> np.ndarray:
        """The one payload → the picture it holds, enlarged to the view: uint8 (3, H, W).

        The frame is decoded in a process of its own (`thinwire.frame_decoder`). Raises `MalformedPacket` unless there
        is one layer, `BadPayload` for a payload that `encode` does not write, `DamagedFrame` for a frame that does not
        decode.
        """
        level, frame = self._parsed(payloads)
        form = self.rungs[level - 1].form
        if len(frame) > 4 * form.width * form.height + 4096:
            raise DamagedFrame(f"{len(frame)} bytes are not an AV1 frame of {form.width}x{form.height} pixels")
        pixels = canonical_view(decode_apart(frame, form), *self.shape[1:])  # (H, W, 3)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def level(self, payloads: Sequence[bytes]) -> int:
        """The rung of a payload, from 1. Raises as `decode`."""
        return self._parsed(payloads)[0]

    def _parsed(self, payloads: Sequence[bytes]) -> tuple[int, bytes]:
        """(rung from 1, frame with its lead)."""
        if len(payloads) != 1:
            raise MalformedPacket(f"the packet has {len(payloads)} layers, one of a still has one")
        payload = bytes(payloads[0])
        if not payload:
            raise BadPayload("a still's payload begins with the number of its rung, this one is empty")
        number, cut = payload[0] & ~_CUT, bool(payload[0] & _CUT)
        if number >= len(self.rungs):
            raise BadPayload(f"the payload says rung {number + 1}, its model has 1 to {len(self.rungs)}")
        lead = self.rungs[number].lead
        if cut and not lead:
            raise BadPayload(f"the payload says that a lead was cut off, frames of rung {number + 1} have none")
        if not cut and lead and payload[1:].startswith(lead):
            raise BadPayload(f"the payload carries the lead of rung {number + 1}: no encoder writes it")
        return number + 1, (lead if cut else b"") + payload[1:]

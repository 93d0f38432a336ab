"""`--rate auto` for stills: the rung is chosen when a frame is coded, because a still cannot be cut later.

Layers are cut when a frame is sent, by what the link carries then. A still's rung is chosen a little earlier by the
same rules (`RateControl`): the largest whose answer is expected in time.
"""

from __future__ import annotations

import numpy as np

from edge.encoder import Encoded, Encoder
from edge.field.courier import Courier
from edge.field.rate_control import FRAMING_BYTES
from edge.line.ladder import Ladder
from thinwire.packet import Packet

WEIGHT = 0.1  # of a new packet in the expected size of its rung


class RungChoice:
    """Codes views at the rung that the courier's link carries. Used by the capturing thread alone.

    sizes: expected bytes of a packet for each rate, in the bundle's order; empty before the first view.
    """

    def __init__(self, encoder: Encoder, courier: Courier) -> None:
        self._encoder, self._courier = encoder, courier
        self._rates = list(encoder.bundle.rates)
        self.sizes: list[float] = []

    def encode(self, view: np.ndarray) -> Encoded:
        """uint8 (H, W, 3) view → its packet. The first view is coded at every rung, to learn how large they are."""
        if not self.sizes:
            coded = [self._encoder.encode(view, rate) for rate in self._rates]
            self.sizes = [float(len(each.packet)) for each in coded]
            return coded[self._place()]
        place = self._place()
        encoded = self._encoder.encode(view, self._rates[place])
        self.sizes[place] += WEIGHT * (len(encoded.packet) - self.sizes[place])
        return encoded

    def _place(self) -> int:
        courier, sizes = self._courier, [round(size) + FRAMING_BYTES for size in self.sizes]
        backlog = min(courier.spool.waiting_frames, courier.window)
        frame_bytes = courier.budget.frame_bytes()
        return courier.rate.layers(sizes, 0.0, backlog, courier.meter, courier.cap.s_per_byte, frame_bytes) - 1


class FrameLadder:
    """Codes views with every step of a ladder. With `auto`, stills whose rate was not stated get the link's rung."""

    def __init__(self, ladder: Ladder, courier: Courier, auto: bool) -> None:
        self._ladder = ladder
        self._rungs = {
            step: RungChoice(step.encoder, courier)
            for step in ladder.others
            if auto and not step.stated and len(step.bundle.coder.layers) < len(step.bundle.rates)
        }

    def packets(self, view: np.ndarray) -> list[Packet]:
        """uint8 (H, W, 3) view of the widest step → a packet for each step."""
        return [
            self._rungs[step].encode(step.view(view)).packet if step in self._rungs else step.packet(view)
            for step in self._ladder.steps
        ]

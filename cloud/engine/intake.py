"""Untrusted bytes → checked arrays for the device, on the CPU. Runs on several threads at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cloud.engine.prepared import Prepared
from thinwire.errors import ThinwireError, UnknownModel
from thinwire.imaging import decode_cost, open_picture
from thinwire.packet import Packet

if TYPE_CHECKING:
    from thinwire.bundle import Bundle


class Intake:
    """Decodes packets of its bundles, and image files to the view that its CLIP takes.

    `refused` maps model ids of bundles that this server knows but cannot serve to the error that says why.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        view_height: int = 224,
        view_width: int = 224,
        refused: dict[bytes, ThinwireError] | None = None,
    ) -> None:
        self.bundles = {bundle.model_id: bundle for bundle in bundles}
        self.refused = refused or {}
        self._view = (view_height, view_width)

    def decode_bytes(self, image_file: bytes) -> int:
        """About how much memory `prepare` will take for an image file, from its header."""
        return decode_cost(image_file, self._view)

    def prepare(self, packet: bytes | Packet | None, image_file: bytes | None) -> Prepared:
        """One input → its array. Raises `PacketError`, `UnknownModel`, `ClipMismatch` or `ImageError`."""
        if packet is None:
            return Prepared(open_picture(image_file, view=self._view).view(*self._view))
        parsed = packet if isinstance(packet, Packet) else Packet.from_bytes(packet)
        if parsed.model_id in self.refused:
            error = self.refused[parsed.model_id]
            raise type(error)(str(error))  # a fresh one: exceptions collect tracebacks of every raise
        bundle = self.bundles.get(parsed.model_id)
        if bundle is None:
            known = ", ".join(f"{b.name} ({b.model_id.hex()})" for b in self.bundles.values()) or "none"
            raise UnknownModel(
                f"the packet was made with model {parsed.model_id.hex()}, which this server does not have "
                f"(it has: {known}); encode with one of these, or start the server with the right --bundle"
            )
        return Prepared(bundle.decode(parsed), bundle.name, bundle.level(parsed), parsed.model_id)

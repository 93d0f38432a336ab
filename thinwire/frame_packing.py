"""AV1 frames coded a second time, without loss: fewer bytes for the very same frame.

AV1 begins every frame with probabilities for pictures of any size and kind, and learns better ones on the way. A still
of 80 x 80 pixels ends before much is learned. A bundle may therefore hold a model of the symbols of such frames,
`symbols.bin`, trained on photographs (`thinwire-export still-symbols`). The device takes the symbols out of the frame
that Pillow wrote and codes them again with that model's probabilities; the cloud does the reverse and has the frame.

There is a compiled form alone (native/av1_*.c, in `thinwire._coder`). A device without it sends frames as they are.
"""

from __future__ import annotations

import hashlib

from thinwire.bare_av1 import BareForm
from thinwire.entropy import compiled_module
from thinwire.errors import BadTables, CoderMissing, DamagedFrame


class FramePacker:
    """Packs and unpacks the frames of one bundle. The same bytes on every machine; may be shared by threads.

    compiled: whether there is a compiled coder here; without one nothing is packed, and `unpack` raises. symbol_model:
    as it was given; digest: 16 bytes that tell it from others.
    """

    def __init__(self, symbol_model: bytes) -> None:
        """symbol_model: what `symbols.bin` holds. Raises `BadTables` for anything else; without a compiled coder nobody
        looks."""
        self.symbol_model = symbol_model
        self.digest = hashlib.sha256(symbol_model).digest()[:16]
        kind = packer_type()
        try:
            self._packer = None if kind is None else kind(symbol_model)
        except ValueError as error:
            raise BadTables(f"is no model of a still's symbols ({error})") from error

    @property
    def compiled(self) -> bool:
        return self._packer is not None

    def pack(self, frame: bytes, form: BareForm, rung: int) -> bytes | None:
        """A bare frame → its packed bytes; None where that cannot be done or would save nothing. rung: from 0."""
        if self._packer is None or not packable(form):
            return None
        return self._packer.pack(frame, form.width, form.height, form.cdef, form.restoration, rung)

    def check_compiled(self) -> None:
        """Raises `CoderMissing` where packed frames cannot be unpacked."""
        if self._packer is None:
            raise CoderMissing(
                "this still is packed and only thinwire's compiled coder unpacks it, which is missing here or switched "
                "off: install thinwire's wheel for this system (in a clone: `make setup`), leave THINWIRE_CODER unset"
            )

    def unpack(self, packed: bytes, form: BareForm, rung: int) -> bytes:
        """Packed bytes → the frame. Raises `DamagedFrame`, or `CoderMissing` where there is no compiled coder.

        There is no checksum: altered bytes may give another frame.
        """
        self.check_compiled()
        try:
            return self._packer.unpack(packed, form.width, form.height, form.cdef, form.restoration, rung)
        except ValueError as error:
            raise DamagedFrame(
                f"the packed AV1 frame of {form.width}x{form.height} pixels is damaged ({error})"
            ) from error


def packer_type() -> type | None:
    """`StillPacker` of the compiled coder, or None without one."""
    return getattr(compiled_module(), "StillPacker", None)


def packable(form: BareForm) -> bool:
    """Whether the model knows the symbols of frames of this form."""
    return form.chroma == "4:2:0" and not form.restoration

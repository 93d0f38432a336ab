"""What the engine asks of the models it answers with; `cloud.networks.loaded` is the form that loads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from cloud.engine.calibration import Calibration
from cloud.engine.fusion import Fusion
from cloud.engine.intake import Intake
from cloud.engine.prepared import Prepared
from cloud.engine.text_heads import HeadCache
from cloud.errors import UnknownClip

if TYPE_CHECKING:
    from thinwire.bundle import Bundle


@dataclass(frozen=True, eq=False)
class LoadedClip:
    """One CLIP, ready to answer: its text heads, and the intake that makes its views."""

    heads: HeadCache
    intake: Intake
    calibrations: dict[bytes, Calibration]  # by model id; bundles without one get no progressive answers
    fusions: dict[bytes, Fusion] = field(default_factory=dict)  # by model id of the first packet's bundle


class Models(Protocol):
    """What the engine asks of a set of models. A set never changes; a reload puts another in its place.

    `clip_of` and `attach` answer at once, with None where something must be loaded first; `load_clip_of` and
    `load_and_attach` may take seconds and are called on the loader thread. Attaching pins net and CLIP to an input, so
    that eviction cannot free them before it is answered.
    """

    intake: Intake
    default: str
    adapters: Sequence[Any]  # of the image tower (`synthesis.adapter.Adapter`), for the start-up message

    def names(self) -> tuple[str, ...]: ...
    def name_of(self, wanted: str) -> str: ...
    def clip_of(self, name: str) -> LoadedClip | None: ...
    def load_clip_of(self, name: str) -> LoadedClip: ...
    def attach(self, loaded_clip: LoadedClip, item: Prepared) -> Prepared | None: ...
    def load_and_attach(self, loaded_clip: LoadedClip, item: Prepared) -> Prepared: ...
    def net_is_loaded(self, bundle: Bundle) -> bool: ...


def known_name(wanted: str, names: Sequence[str]) -> str:
    """`wanted` where it is one of `names`, the first of them for "". Raises `UnknownClip`."""
    if wanted and wanted not in names:
        raise UnknownClip(f"this server has no CLIP {wanted!r}: it has {', '.join(names)}; omit it for the first one")
    return wanted or names[0]

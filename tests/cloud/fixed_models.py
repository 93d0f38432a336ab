"""A set of models for tests: one CLIP, and bundles that the runner holds already."""

from __future__ import annotations

from cloud.engine.calibration import read_calibrations
from cloud.engine.fusion import read_fusions
from cloud.engine.intake import Intake
from cloud.engine.models import LoadedClip, known_name
from cloud.engine.prepared import Prepared
from cloud.engine.text_heads import HeadCache
from thinwire.bundle import Bundle


class FixedModels:
    """One CLIP, and bundles that the runner holds already."""

    adapters = ()

    def __init__(self, intake: Intake, heads: HeadCache) -> None:
        self.intake = intake
        calibrations = read_calibrations(intake.bundles.values(), heads.clip.id) if hasattr(intake, "bundles") else {}
        fusions = read_fusions(intake.bundles.values(), heads.clip.id) if hasattr(intake, "bundles") else {}
        self._loaded_clip = LoadedClip(heads, intake, calibrations, fusions)
        self.default = getattr(heads.clip, "name", "")

    def names(self) -> tuple[str, ...]:
        return (self.default,)

    def name_of(self, wanted: str) -> str:
        return known_name(wanted, self.names())

    def clip_of(self, name: str) -> LoadedClip:
        return self._loaded_clip

    load_clip_of = clip_of

    def attach(self, loaded_clip: LoadedClip, item: Prepared) -> Prepared:
        return item

    load_and_attach = attach

    def net_is_loaded(self, bundle: Bundle) -> bool:
        return True

"""The models of a server: CLIPs by name, bundles by id. Loaded when first needed; a reload replaces the whole set."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cloud.engine.calibration import Calibration, read_calibrations
from cloud.engine.fusion import Fusion, read_fusions
from cloud.engine.intake import Intake
from cloud.engine.models import LoadedClip, known_name
from cloud.engine.prepared import Prepared
from cloud.engine.text_heads import HeadCache
from cloud.errors import BadConfiguration, ClipMismatch
from cloud.networks.model_cache import ModelCache
from cloud.networks.runtime import Net, Runtime, ServedClip, check_clip, clip_signature
from synthesis.clip_artefact import SHIPPED
from thinwire.errors import ThinwireError

if TYPE_CHECKING:
    from synthesis.adapter import Adapter
    from synthesis.variant import DecoderVariant
    from thinwire.bundle import Bundle

log = logging.getLogger(__name__)


class LoadedModels:
    """CLIPs and bundles over one LRU cache of networks. The default CLIP is never evicted.

    runtime: what loads and runs networks.
    model_cache: the cache. Successive sets may share it: files that did not change are not loaded again.
    clips: as for `load_clip`; the first is the default.
    bundles: codecs to serve.
    cache_dir: folder of text heads.
    adapters: of the image tower of one of the CLIPs, whichever it is. Where that CLIP answers, packets of the adapter's
        bundle and rates get the adapted tower, which the first such packet loads.
    decoders: tuned for one bundle and one of the CLIPs, whichever it is. Where that CLIP answers, the decoder decodes
        the bundle's packets in the place of the bundle's own.
    offered: nobody asked for the adapters, so that one of none of the CLIPs is left out and not refused.
    strict: a bundle made for another CLIP's embedding space is an error at start; else its packets are refused.

    The constructor raises what loading the default CLIP raises, what each bundle's canary run raises, and
    `AdapterError` or `DecoderError` for an adapter or a decoder of none of the CLIPs.
    """

    def __init__(
        self,
        runtime: Runtime,
        model_cache: ModelCache,
        clips: Sequence[str],
        bundles: Sequence[Bundle],
        cache_dir: Path | None = None,
        adapters: Sequence[Adapter] = (),
        decoders: Sequence[DecoderVariant] = (),
        *,
        strict: bool = True,
        offered: bool = False,
    ) -> None:
        self._runtime, self._model_cache, self._cache_dir = runtime, model_cache, cache_dir
        self._specs = _by_name(clips)
        self._bundles = {bundle.model_id: bundle for bundle in bundles}
        self._signatures = {name: clip_signature(spec) for name, spec in self._specs.items()}
        self._by_clip_id: dict[str, tuple[Intake, dict[bytes, Calibration], dict[bytes, Fusion]]] = {}  # by CLIP id
        self.default = next(iter(self._specs))
        self._first = self._make_clip(self.default)
        self.adapters = tuple(each for each in adapters if not offered or self._may_be_used(each))
        for left_out in set(adapters) - set(self.adapters):
            log.warning("served without the adapter that ships: %s is for CLIP %s", left_out.path, left_out.clip)
        self.decoders = tuple(decoders)
        for made in (*self.adapters, *self.decoders):
            if not self._may_be_used(made):
                made.check_clip(self._first.heads.clip.id)
        self.intake = self._first.intake
        if strict and self.intake.refused:
            error = next(iter(self.intake.refused.values()))
            raise type(error)(str(error))
        for bundle in self.intake.bundles.values():  # a canary run of each bundle, before the set is used
            self._net(bundle, self._first.heads.clip)

    def names(self) -> tuple[str, ...]:
        return tuple(self._specs)

    def name_of(self, wanted: str) -> str:
        return known_name(wanted, self.names())

    def clip_of(self, name: str) -> LoadedClip | None:
        if name == self.default:
            return self._first
        heads = self._model_cache.find(self._clip_key(name))
        return None if heads is None else self._loaded_clip(heads)

    def load_clip_of(self, name: str) -> LoadedClip:
        """Raises `ClipUnavailable`, or what a first run of the image tower raises."""
        return self._first if name == self.default else self._make_clip(name)

    def attach(self, loaded_clip: LoadedClip, item: Prepared) -> Prepared | None:
        clip = loaded_clip.heads.clip
        if not item.model_id:
            return replace(item, clip=clip)
        net = self._model_cache.find(self._net_key(self._bundles[item.model_id], clip))
        adapter = self._adapter(item, clip)
        tower = clip if adapter is None else self._model_cache.find(self._tower_key(adapter, self._name_of_clip(clip)))
        return None if net is None or tower is None else replace(item, net=net, clip=tower)

    def load_and_attach(self, loaded_clip: LoadedClip, item: Prepared) -> Prepared:
        """Raises `BundleError`, `ClipMismatch`, `InferenceFailed` or `AdapterError`: net or tower cannot be had."""
        clip = loaded_clip.heads.clip
        net = self._net(self._bundles[item.model_id], clip)
        adapter = self._adapter(item, clip)
        return replace(item, net=net, clip=clip if adapter is None else self._tower(adapter, clip))

    def net_is_loaded(self, bundle: Bundle) -> bool:
        return self._model_cache.find(self._net_key(bundle, self._first.heads.clip)) is not None

    def drop_others(self) -> None:
        """Removes from the cache what only earlier sets use."""
        clips = set(map(self._clip_key, self._specs))
        decoders = {_decoder_key(bundle) for bundle in self._bundles.values()}
        towers = {self._tower_key(adapter, name) for adapter in self.adapters for name in self._specs}
        tuned = {None, *(each.identity for each in self.decoders)}
        self._model_cache.keep_only(
            lambda key: key in clips | towers or (key[0] == "net" and key[1] in decoders and key[3] in tuned)
        )

    def _clip_key(self, name: str) -> Hashable:
        return ("clip", self._specs[name], self._signatures[name])

    def _make_clip(self, name: str) -> LoadedClip:
        def make() -> tuple[HeadCache, int]:
            clip, nbytes = self._runtime.load_clip(self._specs[name])
            return HeadCache(clip, self._cache_dir), nbytes

        return self._loaded_clip(self._model_cache.load(self._clip_key(name), make))

    def _adapter(self, item: Prepared, clip: ServedClip) -> Adapter | None:
        pictures, layers = self._bundles[item.model_id].picture_id, item.n_layers
        of_packet = (each for each in self.adapters if each.picture_id == pictures and layers in each.layers)
        return next((each for each in of_packet if each.is_for(clip.id)), None)

    def _tower_key(self, adapter: Adapter, name: str) -> Hashable:
        return ("tower", adapter.digest, adapter.scale, self._clip_key(name))

    def _tower(self, adapter: Adapter, clip: ServedClip) -> ServedClip:
        """`clip` with the adapter added to its image tower."""
        name = self._name_of_clip(clip)
        return self._model_cache.load(
            self._tower_key(adapter, name), lambda: self._runtime.load_adapted(self._specs[name], clip, adapter)
        )

    def _loaded_clip(self, heads: HeadCache) -> LoadedClip:
        clip = heads.clip
        if clip.id not in self._by_clip_id:  # two threads may both compute it, with the same result
            refused: dict[bytes, ThinwireError] = {}
            for bundle in self._bundles.values():
                try:
                    check_clip(bundle, clip)
                except ClipMismatch as error:
                    refused[bundle.model_id] = error
            fitting = [bundle for bundle in self._bundles.values() if bundle.model_id not in refused]
            intake = Intake(fitting, clip.image_height, clip.image_width, refused)
            self._by_clip_id[clip.id] = (intake, read_calibrations(fitting, clip.id), read_fusions(fitting, clip.id))
        return LoadedClip(heads, *self._by_clip_id[clip.id])

    def _net(self, bundle: Bundle, clip: ServedClip) -> Net:
        variant, spec = self._variant(bundle, clip), self._specs[self._name_of_clip(clip)]
        return self._model_cache.load(
            self._net_key(bundle, clip), lambda: self._runtime.load_net(bundle, clip, variant, spec)
        )

    def _variant(self, bundle: Bundle, clip: ServedClip) -> DecoderVariant | None:
        return next(
            (each for each in self.decoders if each.picture_id == bundle.picture_id and each.is_for(clip.id)), None
        )

    def _net_key(self, bundle: Bundle, clip: ServedClip) -> Hashable:
        variant = self._variant(bundle, clip)
        return ("net", _decoder_key(bundle), clip.id, None if variant is None else variant.identity)

    def _name_of_clip(self, clip: ServedClip) -> str:
        return clip.name if clip.name in self._specs else self.default

    def _may_be_used(self, made: Adapter | DecoderVariant) -> bool:
        """Whether it is for one of the CLIPs. Others than the default are loaded when they are first asked for, so that
        of those the name is looked at."""
        others = list(self._specs)[1:]
        return made.is_for(self._first.heads.clip.id) or any(self._may_be_of(made, name) for name in others)

    def _may_be_of(self, made: Adapter | DecoderVariant, name: str) -> bool:
        known = self._runtime.id_of(self._specs[name])
        return made.clip.partition("#")[0] == name if known is None else made.is_for(known)


def _by_name(specs: Sequence[str]) -> dict[str, str]:
    """{name in requests: how the CLIP is loaded}. A folder is named by its last part: clients see no paths."""
    named: dict[str, str] = {}
    for spec in specs:
        name = Path(spec).resolve().name if spec != SHIPPED and Path(spec).is_dir() else spec
        if named.setdefault(name, spec) != spec:
            raise BadConfiguration(f"--clip {spec} and --clip {named[name]} have one name {name!r}: rename a folder")
    return named


def _decoder_key(bundle: Bundle) -> Hashable:
    """Model id and hashes of the decoder's files: further training of a decoder keeps the model id."""
    hashes = sorted((name, entry["sha256"]) for name, entry in bundle.card.cloud["files"].items())
    return bundle.model_id, tuple(hashes), str(sorted(bundle.card.cloud["synthesis"].items()))

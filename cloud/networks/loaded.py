"""The models of a server: CLIPs by name, bundles by id. Loaded when first needed; a reload replaces the whole set."""

from __future__ import annotations

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
from cloud.networks.adapted import adapted_clip
from cloud.networks.batchnorm_folding import folded
from cloud.networks.clip import load_clip
from cloud.networks.model_cache import ModelCache
from cloud.networks.precision import in_precision
from cloud.networks.runner import Net, TorchRunner, check_clip, module_bytes
from cloud.networks.tuned import tuned_net
from synthesis.clip_source import SHIPPED, shipped_clip_path
from thinwire.errors import ThinwireError

if TYPE_CHECKING:
    from cloud.networks.clip import Clip
    from synthesis.adapter import Adapter
    from synthesis.variant import DecoderVariant
    from thinwire.bundle import Bundle


class LoadedModels:
    """CLIPs and bundles over one LRU cache of networks. The default CLIP is never evicted.

    runner: what loads and runs decoders.
    model_cache: the cache. Successive sets may share it: files that did not change are not loaded again.
    clips: as for `load_clip`; the first is the default.
    bundles: codecs to serve.
    device: as `pick_device` returns it.
    cache_dir: folder of text heads.
    precision: of image towers, as for `cloud.networks.precision.in_precision`.
    adapters: of the default CLIP's image tower. Packets of an adapter's bundle and rates get the adapted tower, which
        the first such packet loads.
    clip_backend: as for `cloud.networks.onnx_tower.in_backend`.
    decoders: tuned for one bundle and one of the CLIPs, whichever it is. Where that CLIP answers, the decoder decodes
        the bundle's packets in the place of the bundle's own.
    strict: a bundle made for another CLIP's embedding space is an error at start; else its packets are refused.

    The constructor raises what loading the default CLIP raises, what each bundle's canary run raises, `AdapterError`
    for an adapter of another CLIP, and `DecoderError` for a decoder that was tuned for none of the CLIPs.
    """

    def __init__(
        self,
        runner: TorchRunner,
        model_cache: ModelCache,
        clips: Sequence[str],
        bundles: Sequence[Bundle],
        device: str,
        cache_dir: Path | None = None,
        precision: str = "auto",
        adapters: Sequence[Adapter] = (),
        clip_backend: str = "auto",
        decoders: Sequence[DecoderVariant] = (),
        *,
        strict: bool = True,
    ) -> None:
        self._runner, self._model_cache, self._device, self._cache_dir = runner, model_cache, device, cache_dir
        self._precision, self._clip_backend = precision, clip_backend
        self._specs = _by_name(clips)
        self._bundles = {bundle.model_id: bundle for bundle in bundles}
        self._signatures = {name: clip_signature(spec) for name, spec in self._specs.items()}
        self._by_clip_id: dict[str, tuple[Intake, dict[bytes, Calibration], dict[bytes, Fusion]]] = {}  # by CLIP id
        self.default = next(iter(self._specs))
        self._first = self._make_clip(self.default)
        self.adapters = tuple(adapters)
        for adapter in adapters:
            adapter.check_clip(self._first.heads.clip.id)
        self.decoders = tuple(decoders)
        self._check_decoders()
        self._adapter_of = {(each.model_id, layers): each for each in adapters for layers in each.layers}
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
        tower = clip if adapter is None else self._model_cache.find(self._tower_key(adapter))
        return None if net is None or tower is None else replace(item, net=net, clip=tower)

    def load_and_attach(self, loaded_clip: LoadedClip, item: Prepared) -> Prepared:
        """Raises `BundleError`, `ClipMismatch`, `InferenceFailed` or `AdapterError`: net or tower cannot be had."""
        clip = loaded_clip.heads.clip
        net = self._net(self._bundles[item.model_id], clip)
        adapter = self._adapter(item, clip)
        return replace(item, net=net, clip=clip if adapter is None else self._tower(adapter))

    def net_is_loaded(self, bundle: Bundle) -> bool:
        return self._model_cache.find(self._net_key(bundle, self._first.heads.clip)) is not None

    def drop_others(self) -> None:
        """Removes from the cache what only earlier sets use."""
        clips = set(map(self._clip_key, self._specs))
        decoders = {_decoder_key(bundle) for bundle in self._bundles.values()}
        towers = set(map(self._tower_key, self.adapters))
        tuned = {None, *(each.digest for each in self.decoders)}
        self._model_cache.keep_only(
            lambda key: key in clips | towers or (key[0] == "net" and key[1] in decoders and key[3] in tuned)
        )

    def _clip_key(self, name: str) -> Hashable:
        return ("clip", self._specs[name], self._signatures[name])

    def _make_clip(self, name: str) -> LoadedClip:
        def make() -> tuple[HeadCache, int]:
            clip = as_served(load_clip(self._specs[name], self._device), self._precision, self._clip_backend)
            return HeadCache(clip, self._cache_dir), module_bytes(clip.model)

        return self._loaded_clip(self._model_cache.load(self._clip_key(name), make))

    def _adapter(self, item: Prepared, clip: Clip) -> Adapter | None:
        adapter = self._adapter_of.get((item.model_id, item.n_layers))
        return adapter if adapter is not None and clip.matches(adapter.clip) else None

    def _tower_key(self, adapter: Adapter) -> Hashable:
        return ("tower", adapter.digest, adapter.scale, self._clip_key(self.default))

    def _tower(self, adapter: Adapter) -> Clip:
        """The default CLIP with the adapter added to its image tower.

        The tower is read from disk again: the one in use may be in half precision or part of a CUDA graph, and the
        adapter's weight differences belong to the original float32 weights.
        """

        def make() -> tuple[Clip, int]:
            adapted = adapted_clip(load_clip(self._specs[self.default], self._device), adapter)
            clip = as_served(adapted, self._precision, self._clip_backend)
            return clip, module_bytes(clip.model.visual)

        return self._model_cache.load(self._tower_key(adapter), make)

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

    def _net(self, bundle: Bundle, clip: Clip) -> object:
        variant = self._variant(bundle, clip)

        def make() -> tuple[object, int]:
            tuned = None
            if variant is not None:  # weights as they were tuned on: those in use may be folded or in half precision
                original = load_clip(self._specs[self._name_of_clip(clip)], self._device)
                tuned = Net(tuned_net(variant, original), variant.gives_vectors)
            net = self._runner.load_net(bundle, clip, tuned)
            return net, net.nbytes

        return self._model_cache.load(self._net_key(bundle, clip), make)

    def _variant(self, bundle: Bundle, clip: Clip) -> DecoderVariant | None:
        return next((each for each in self.decoders if each.model_id == bundle.model_id and each.is_for(clip.id)), None)

    def _net_key(self, bundle: Bundle, clip: Clip) -> Hashable:
        variant = self._variant(bundle, clip)
        return ("net", _decoder_key(bundle), clip.id, None if variant is None else variant.digest)

    def _name_of_clip(self, clip: Clip) -> str:
        return clip.name if clip.name in self._specs else self.default

    def _check_decoders(self) -> None:
        """Refuses a decoder that none of the CLIPs could use. Others than the default are loaded when they are first
        asked for, so that of those the name is looked at."""
        own = self._first.heads.clip
        for variant in self.decoders:
            if not variant.is_for(own.id) and variant.clip.partition("#")[0] not in list(self._specs)[1:]:
                variant.check_clip(own.id)


def as_served(clip: Clip, precision: str = "auto", backend: str = "auto") -> Clip:
    """Makes the image tower of a `clip` from `load_clip` as fast as this machine allows.

    Folds its batch normalisation, converts it to `precision` (`cloud.networks.precision.in_precision`), records CUDA
    graphs on a GPU, and moves it to `backend` (`cloud.networks.onnx_tower.in_backend`).
    """
    from cloud.networks.onnx_tower import in_backend

    clip = in_precision(folded(clip), precision)
    if clip.device.startswith("cuda"):
        from cloud.networks.cuda_graphs import with_graphs

        clip = with_graphs(clip)
    return in_backend(clip, backend)


def _by_name(specs: Sequence[str]) -> dict[str, str]:
    """{name in requests: how the CLIP is loaded}. A folder is named by its last part: clients see no paths."""
    named: dict[str, str] = {}
    for spec in specs:
        name = Path(spec).resolve().name if spec != SHIPPED and Path(spec).is_dir() else spec
        if named.setdefault(name, spec) != spec:
            raise BadConfiguration(f"--clip {spec} and --clip {named[name]} have one name {name!r}: rename a folder")
    return named


def clip_signature(spec: str) -> Hashable:
    """A value that changes when the files behind `spec` change. Hub models (by tag) are taken as fixed."""
    path = shipped_clip_path() if spec == SHIPPED else Path(spec if Path(spec).is_dir() else spec.partition(":")[2])
    if path.is_dir():
        return tuple(sorted(_file_state(file) for file in path.iterdir() if file.is_file()))
    return _file_state(path) if path.is_file() else ()


def _file_state(path: Path) -> tuple[str, int, int]:
    state = path.stat()
    return str(path), state.st_mtime_ns, state.st_size


def _decoder_key(bundle: Bundle) -> Hashable:
    """Model id and hashes of the decoder's files: further training of a decoder keeps the model id."""
    hashes = sorted((name, entry["sha256"]) for name, entry in bundle.card.cloud["files"].items())
    return bundle.model_id, tuple(hashes), str(sorted(bundle.card.cloud["synthesis"].items()))

"""Puts an engine together from names: which CLIPs, which bundles, which device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cloud.engine.batching import BatchLimits
from cloud.engine.engine import Engine
from cloud.engine.items import EngineLimits
from cloud.engine.one_shot_executor import on_one_shot_thread
from cloud.engine.text_heads import default_cache_dir
from cloud.networks.adapted import load_adapters
from cloud.networks.clip import pick_device
from cloud.networks.loaded import LoadedModels, as_served
from cloud.networks.model_cache import ModelCache
from cloud.networks.runner import TorchRunner
from cloud.networks.tuned import load_variants
from synthesis.clip_source import SHIPPED
from thinwire.bundle import Bundle, load_bundle, shipped_bundles
from thinwire.errors import BundleError

if TYPE_CHECKING:
    from cloud.networks.clip import Clip

log = logging.getLogger(__name__)

FEW_CORES = 4
DECODE_THREADS = 2
DECODED_WITHIN_S = 60.0


def open_engine(
    clip: str | Sequence[str] = SHIPPED,
    bundles: Sequence[str | Path] | None = None,
    device: str = "auto",
    threads: int | None = None,
    limits: EngineLimits | None = None,
    cache_dir: Path | None = None,
    model_bytes: int | None = None,
    precision: str = "auto",
    adapters: Sequence[str | Path] = (),
    decoders: Sequence[str | Path] = (),
    synthesis_backend: str = "auto",
    clip_backend: str = "auto",
) -> ReloadableEngine:
    """Loads the default CLIP and every bundle, runs each once as a canary, and returns an engine that answers.

    `clip` is one or several as for `load_clip`: the first is the default, others are loaded when a request names them.
    `bundles` are names of shipped bundles or folders, None for all shipped; `device` as for `pick_device`; `threads`
    are torch's CPU threads; `limits.batch` None takes one that suits the device; `cache_dir` keeps text heads (default:
    `default_cache_dir()`); `model_bytes` bounds the weights in memory: beyond it the least recently used leave;
    `precision` of the image tower as for `cloud.networks.precision.in_precision`; `adapters` are folders of adapters of
    the default CLIP's image tower, each for one bundle at some rates; `decoders` are folders of decoders tuned for one
    bundle and one CLIP each; `synthesis_backend` of decoders as for
    `cloud.networks.onnx_synthesis.loader`; `clip_backend` of the image tower as for
    `cloud.networks.onnx_tower.in_backend`.
    A bundle named here that needs another CLIP than the default is an error; one that merely ships is refused packet by
    packet. Raises `ClipUnavailable`, `ClipMismatch`, `DeviceUnavailable`, `BundleError` or
    `AdapterError`.
    """
    import torch

    from cloud.networks.onnx_synthesis import loader

    device = pick_device(device)
    limits = limits or EngineLimits()
    if threads:
        torch.set_num_threads(threads)
    limits = fitting(limits, device, torch.get_num_threads())
    clips = [clip] if isinstance(clip, str) else list(clip)
    model_cache: ModelCache = ModelCache(model_bytes)
    runner = TorchRunner(None, load=loader(synthesis_backend))
    cache_dir = cache_dir or default_cache_dir()

    def read() -> LoadedModels:
        loaded = _load_bundles(shipped_bundles().values() if bundles is None else bundles)
        tuned = load_variants(decoders, loaded)
        fitted = load_adapters(adapters, loaded, tuned)
        return LoadedModels(
            runner,
            model_cache,
            clips,
            loaded,
            device,
            cache_dir,
            precision,
            fitted,
            clip_backend,
            tuned,
            strict=bundles is not None,
        )

    def opener() -> LoadedModels:
        return on_one_shot_thread(read)  # canaries run networks

    models = opener()
    for error in models.intake.refused.values():
        log.warning("%s", error)
    return ReloadableEngine(runner, models, opener, model_cache, limits, threads)


def served_runner(clip: Clip, bundles: Sequence[Bundle], precision: str = "auto") -> TorchRunner:
    """The networks as `open_engine` has them by default, without an engine; `clip` as `load_clip` gives it."""
    from cloud.networks.onnx_synthesis import loader

    return TorchRunner(as_served(clip, precision), bundles, loader("auto"))


def fitting(limits: EngineLimits, device: str, threads: int) -> EngineLimits:
    """`limits` with what they leave open as it suits a device: the batch, and where packets are decoded.

    A GPU fills up with items; on a CPU EfficientNet-Lite0 took 19 ms an image in batches of 8 and 25 ms in those of 32,
    whose activations no longer fit the caches. Decoding takes one core, for Python's lock: with few cores that all run
    the networks, stopping them for it costs less than sharing one of their cores does (see `cloud.engine.engine`).
    """
    on_cpu = not device.startswith("cuda")
    if limits.batch is None:
        limits = replace(limits, batch=BatchLimits(items=8 if on_cpu else 64))
    if limits.decode_threads is None:
        limits = replace(limits, decode_threads=0 if on_cpu and threads <= FEW_CORES else DECODE_THREADS)
    return limits


class ReloadableEngine(Engine):
    """An engine that can read its models from disk again while it answers."""

    def __init__(
        self,
        runner: TorchRunner,
        models: LoadedModels,
        opener: Callable[[], LoadedModels],
        model_cache: ModelCache,
        limits: EngineLimits,
        threads: int | None,
    ) -> None:
        def prepare_thread() -> None:
            import torch

            torch.set_num_threads(threads)  # OpenMP keeps this setting per thread

        super().__init__(runner, models, limits, **({"prepare_thread": prepare_thread} if threads else {}))
        self._opener = opener
        self.model_cache = model_cache

    def reload(self) -> None:
        """Reads CLIPs and bundles again, runs their canaries, then answers with them: all of them, or none.

        Takes seconds; call it on a thread of its own. Whatever it raises, the models in use stay in use.
        """
        self.model_cache.forget_failures()
        models = self._opener()
        self.use(models)
        # What waits undecoded has not taken hold of its nets yet, and their files may hold others now
        self._ledger.wait_for(lambda item: item.models is models or item.prepared is not None, DECODED_WITHIN_S)
        models.drop_others()


def _load_bundles(sources: Sequence[str | Path]) -> list[Bundle]:
    loaded: dict[bytes, Bundle] = {}
    for bundle in map(load_bundle, sources):
        if bundle.model_id in loaded:
            other = loaded[bundle.model_id].path
            raise BundleError(f"{bundle.path} and {other} have one model id {bundle.model_id.hex()}: serve one of them")
        loaded[bundle.model_id] = bundle
    return list(loaded.values())

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
from cloud.networks.choice import Asked, open_runtime
from cloud.networks.loaded import LoadedModels
from cloud.networks.model_cache import ModelCache
from cloud.networks.parts import NamedParts, Parts, load_parts
from synthesis.clip_artefact import SHIPPED

if TYPE_CHECKING:
    from cloud.networks.runtime import Runtime

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
    adapters: Sequence[str | Path] | None = None,
    decoders: Sequence[str | Path] | None = None,
    synthesis_backend: str = "auto",
    clip_backend: str = "auto",
    runtime: str = "auto",
) -> ReloadableEngine:
    """Loads the default CLIP and every bundle, runs each once as a canary, and returns an engine that answers.

    `clip` is one or several as for `load_clip`: the first is the default, others are loaded when a request names them.
    `bundles`, `adapters` and `decoders` as `NamedParts` has them: None is what a server takes by itself, which for
    stills before clip-lite is the adapter that ships. `device` as `--device` has it; `threads` are the networks' CPU
    threads; `limits.batch` None takes one that suits the device; `cache_dir` keeps text heads (default:
    `default_cache_dir()`); `model_bytes` bounds the weights in memory: beyond it the least recently used leave;
    `precision` of the image tower as the runtime has it; `synthesis_backend` and `clip_backend` as for
    `cloud.networks.torch_runtime.TorchRuntime`; `runtime` as for `open_runtime`.
    A bundle named here that needs another CLIP than the default is an error; one that merely ships is refused packet by
    packet. Raises `ClipUnavailable`, `ClipMismatch`, `DeviceUnavailable`, `BundleError`, `AdapterError` or
    `DecoderError`.
    """
    limits = limits or EngineLimits()
    clips = [clip] if isinstance(clip, str) else list(clip)
    cache_dir = cache_dir or default_cache_dir()
    model_cache: ModelCache = ModelCache(model_bytes)
    named = NamedParts(bundles, decoders, adapters)

    def parts() -> Parts:
        return load_parts(named, clips, precision)

    asked = Asked(device, threads, precision, clip_backend, synthesis_backend)
    first = parts()
    opened = open_runtime(runtime, asked, clips, first.bundles, first.decoders)
    limits = fitting(limits, opened.device, opened.threads)

    how = {"strict": bundles is not None, "offered": adapters is None}

    def read(found: Parts) -> LoadedModels:
        return LoadedModels(opened, model_cache, clips, found.bundles, cache_dir, found.adapters, found.decoders, **how)

    models = on_one_shot_thread(lambda: read(first))  # canaries run networks
    for error in models.intake.refused.values():
        log.warning("%s", error)
    return ReloadableEngine(opened, models, lambda: on_one_shot_thread(lambda: read(parts())), model_cache, limits)


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
    """An engine that can read its models from disk again while it answers. runtime: `torch` or `onnx`."""

    def __init__(
        self,
        runtime: Runtime,
        models: LoadedModels,
        opener: Callable[[], LoadedModels],
        model_cache: ModelCache,
        limits: EngineLimits,
    ) -> None:
        super().__init__(runtime.runner, models, limits, prepare_thread=runtime.prepare_thread)
        self.runtime = runtime.name
        self._opener = opener
        self.model_cache = model_cache

    def lines(self) -> list[str]:
        """What answers, for people: the default CLIP with the bundles, then each tuned decoder and adapter."""
        clip, models = self.heads.clip, self.models
        names = ", ".join(bundle.name for bundle in self.intake.bundles.values()) or "none (image files only)"
        told = [f"CLIP {clip.name} on {clip.device_name}, bundles: {names}"]
        for decoder in models.decoders:
            told.append(f"decoder {decoder.name}: packets of {decoder.bundle} for {decoder.clip}, into {decoder.into}")
        for adapter in models.adapters:
            rates = ", ".join(adapter.rates)
            told.append(f"adapter {adapter.name}: for {adapter.bundle} at {rates} and {adapter.clip}")
        return told

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

"""Puts an engine together from names: which CLIP, which bundles, which device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cloud.batching import BatchLimits
from cloud.clip import SHIPPED, load_clip, pick_device
from cloud.engine import Engine
from cloud.errors import ClipMismatch
from cloud.head import HeadCache, default_cache_dir
from cloud.intake import Intake
from cloud.requests import EngineLimits
from cloud.runner import TorchRunner, check_clip
from thinwire.bundle import Bundle, load_bundle, shipped_bundles
from thinwire.errors import BundleError, ThinwireError

log = logging.getLogger(__name__)


def open_engine(
    clip: str = SHIPPED,
    bundles: Sequence[str | Path] | None = None,
    device: str = "auto",
    threads: int | None = None,
    limits: EngineLimits | None = None,
    cache_dir: Path | None = None,
) -> Engine:
    """Loads everything, runs each bundle once as a canary, and returns an engine that answers.

    `clip` as for `load_clip`; `bundles` are names of shipped bundles or folders, None for all shipped; `device` as for
    `pick_device`; `threads` are torch's CPU threads; `limits.batch` None takes one that suits the device;
    `cache_dir` keeps text heads (default: `default_cache_dir()`).
    A bundle named here that needs another CLIP is an error; one that merely ships is refused packet by packet.
    Raises `ClipUnavailable`, `ClipMismatch`, `DeviceUnavailable` or `BundleError`.
    """
    import torch

    device = pick_device(device)
    limits = limits or EngineLimits()
    if limits.batch is None:
        # A GPU fills up with items; on a CPU EfficientNet-Lite0 took 19 ms an image in batches of 8 and 25 ms in those
        # of 32, whose activations no longer fit the caches.
        limits = replace(limits, batch=BatchLimits(items=64 if device.startswith("cuda") else 8))
    if threads:
        torch.set_num_threads(threads)
        limits = replace(limits, device_threads=threads)
    loaded = load_clip(clip, device)
    serving: dict[bytes, Bundle] = {}
    refused: dict[bytes, ThinwireError] = {}
    for bundle in map(load_bundle, shipped_bundles().values() if bundles is None else bundles):
        if bundle.model_id in serving:
            other = serving[bundle.model_id].path
            raise BundleError(f"{bundle.path} and {other} have one model id {bundle.model_id.hex()}: serve one of them")
        try:
            check_clip(bundle, loaded)
        except ClipMismatch as error:
            if bundles is not None:
                raise
            log.warning("%s", error)
            refused[bundle.model_id] = error
            continue
        serving[bundle.model_id] = bundle
    runner = TorchRunner(loaded, list(serving.values()))
    intake = Intake(list(serving.values()), loaded.image_height, loaded.image_width, refused)
    return Engine(runner, intake, HeadCache(loaded, cache_dir or default_cache_dir()), limits)

"""The load generator against a real server: what it counts, and that it does not hide a queue."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.system.service_load import DEADLINE_S, Load, measure, resident_bytes
from cloud.engine.batching import BatchLimits
from cloud.engine.items import EngineLimits
from tests.cloud.served import Served
from tests.cloud.tiny_clip import write_tiny_clip
from tests.cloud.tiny_codec import write_tiny_codec
from tests.waiting import until_async
from thinwire.packet import Packet


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    from cloud.networks.clip import load_clip

    folder = tmp_path_factory.mktemp("load")
    codec = write_tiny_codec(folder / "tiny-codec")
    symbols = np.zeros(codec.latent_shape, np.int32)
    packet = Packet(codec.model_id, tuple(codec.coder.encode(symbols))).to_bytes()
    return load_clip(str(write_tiny_clip(folder / "tiny-random-clip"))), codec, packet


async def test_every_figure_is_there(parts):
    clip, codec, packet = parts
    served = Served(clip, codec, limits=EngineLimits(queue_items=20, batch=BatchLimits(8), max_wait_s=0.3))
    try:
        args = SimpleNamespace(seconds=0.4, soak=0.4, only=None, seed=0)
        figures = await measure(served.address, os.getpid(), [packet], args)
    finally:
        served.close()
    for key in ("lone_overhead_ms_p50", "overload_p99_ratio", "overload_goodput_ratio", "soak_rss_growth"):
        assert np.isfinite(figures[key]), key
    assert "reject_ms_p99" in figures
    assert figures["capacity_per_s"] > 0
    assert figures["overload"]["failed"] == 0


async def test_refusals_are_counted_as_such_and_lateness_from_the_schedule(parts):
    clip, codec, packet = parts
    served = Served(clip, codec, limits=EngineLimits(queue_items=1))
    load = Load(served.address, [packet])
    try:
        await load.one(0)
        served.runner.gate.clear()  # the device stands still: one request is held, the others are refused
        opened = load.open(100, 0.3, np.random.default_rng(0))
        task = asyncio.ensure_future(opened)
        await until_async(lambda: served.engine.counts["rejected"])
        await asyncio.sleep(0.4)
        served.runner.gate.set()
        outcomes = await task
    finally:
        await load.close()
        served.close()
    assert len(outcomes.answered_ms) >= 1
    assert len(outcomes.refused_ms) == served.engine.counts["rejected"]
    assert outcomes.failed == 0
    assert max(outcomes.answered_ms) < 1000 * DEADLINE_S
    assert max(outcomes.answered_ms) > 300  # it waited while the device stood still
    assert resident_bytes(os.getpid()) > 1 << 20

"""All on the edge: the device's own ranking is the one that a real server gives for the same packet."""

from __future__ import annotations

import contextlib

import pytest

pytest.importorskip("torch")

from benchmarks.codecs.peers import png_bytes
from benchmarks.data.sets import load_dataset
from benchmarks.results.store import PointStore
from benchmarks.timing.energy_run import EnergyRun
from benchmarks.timing.latency_run import LatencyRun
from benchmarks.timing.routes import EdgeHead, on_edge_way
from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from edge import Client
from export import bundles
from export.cli import main
from tests.cloud.tiny_clip import write_tiny_clip
from tests.tiny_bundle import synthetic_views
from thinwire.bundle import load_bundle

LABELS = ["cat", "city at night", "dog", "rocket"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-random-clip")


@pytest.fixture(scope="module")
def bundle(clip, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            bundles,
            "training_views",
            lambda photographs, count, seed=0, size=(64, 64): synthetic_views(count, 64, seed),
        )
        out = tmp_path_factory.mktemp("bundles") / "embedding"
        assert main(["embedding", "--clip", str(clip), "--out", str(out), "--count", "300"]) == 0
    return load_bundle(out)


@pytest.fixture(scope="module")
def address(clip, bundle, tmp_path_factory):
    engine = open_engine(str(clip), [bundle.path], "cpu", 1, cache_dir=tmp_path_factory.mktemp("heads"))
    with background_server(engine) as address:
        yield address


def test_the_device_ranks_as_the_server_does(address, bundle):
    head = EdgeHead.fetch(bundle, address, LABELS, "7")
    rate = list(bundle.rates)[-1]
    with Client(address, bundle, rate) as client:
        for view in synthetic_views(6, 64, seed=9):
            there = client.classify(view, LABELS, len(LABELS), "7").predictions
            here = head.rank(client.encoder.symbols(view), len(LABELS))
            assert dict(here) == pytest.approx({each.label: each.similarity for each in there}, abs=1e-4)
            assert [similarity for _, similarity in here] == sorted((s for _, s in here), reverse=True)


def test_its_points(tmp_path, clip, bundle, monkeypatch, address):
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pack"
    for place, view in enumerate(synthetic_views(4, 64, seed=3)):
        path = folder / LABELS[place] / "a.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png_bytes(view))
    data, context = load_dataset(folder), {"testbed": {"cpu": "test"}}
    store = PointStore(tmp_path / "out", "latency", context)
    run = LatencyRun(data, str(clip), "1", 0, store, serve=lambda *_: contextlib.nullcontext(address))
    way = on_edge_way(bundle)
    (row,) = run.run([way], [])
    assert (row["kind"], row["link"], row["failed"], row["payload_bytes_mean"]) == ("on-edge", "none", 0, 0)
    spent = sum(row["stages_ms"][name]["mean"] for name in ("decode_image", "preprocess", "encode", "head"))
    assert 0 < spent <= row["latency_ms"]["mean"]
    assert row["stages_ms"]["send"]["mean"] is None
    energy = EnergyRun(data, str(clip), "1", 0, PointStore(tmp_path / "out", "energy", context), "cpu")
    (row,) = energy.run([way])
    assert (row["side"], row["failed"]) == ("edge", 0)

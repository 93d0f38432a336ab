"""Latency as an experiment of a study: the points it chooses, and where its rows go."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.accuracy import rate_accuracy
from benchmarks.codecs.grid import PeerGrid
from benchmarks.codecs.peers import PEERS, WHOLE, png_bytes
from benchmarks.data.sets import DataError
from benchmarks.results.best_codec import best_codecs
from benchmarks.results.rows import group_points, rows_of
from benchmarks.results.store import read_points
from benchmarks.study.experiments import EXPERIMENTS
from benchmarks.study.study import Preset, Study
from benchmarks.study.timing import PLANS, TimingPlan, study_energy, study_latency, study_throughput
from benchmarks.timing import latency_run, throughput_run
from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from tests.cloud.tiny_clip import write_tiny_clip
from tests.tiny_bundle import synthetic_views

PLAN = TimingPlan(3, 2, ("none",), ("none",), 50.0)


@pytest.fixture
def study(tmp_path, monkeypatch, tiny_bundle_with_decoder) -> Study:
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path / "cache"))
    clip = write_tiny_clip(tmp_path / "tiny-random-clip")
    folder = tmp_path / "data" / "eval-tiny"
    for place, view in enumerate(synthetic_views(4, 64, seed=2)):
        path = folder / ("cat", "dog")[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(view))
    preset = Preset("tiny", {}, 4, PeerGrid((224, 112), 3), "test")
    peers = [PEERS["jpeg"], PEERS["jxl"]]
    context = {"command": "test", "testbed": {"cpu": "test"}}
    return Study(preset, Path(folder.parent), tmp_path / "out", [tiny_bundle_with_decoder], peers, [str(clip)], context)


@pytest.fixture(autouse=True)
def servers_in_this_process(monkeypatch, tmp_path):
    """Real servers, without waiting for another interpreter to load torch. tests/benchmarks/test_latency.py does."""

    @contextlib.contextmanager
    def serve(clip: str, bundle: Path, adapter: None = None):
        with background_server(open_engine(clip, [bundle], "cpu", 1, cache_dir=tmp_path / "heads")) as address:
            yield address

    for module in (latency_run, rate_accuracy):
        monkeypatch.setattr(module, "running_service", serve)


def test_a_study_times_what_it_knows_the_accuracy_of(study):
    assert study_latency(study, PLAN) == (4, 4)
    assert {point["rows"][0]["codec"] for point in read_points(study.out, "latency")} == {"tiny"}  # no peer is known
    EXPERIMENTS["rate-accuracy"].run(study)
    points, measured = study_latency(study, PLAN)
    assert points > 4
    assert measured == points - 4
    assert study_latency(study, PLAN) == (points, 0)
    times = [point["rows"][0] for point in read_points(study.out, "latency")]
    assert len(times) == points
    assert {(row["link"], row["loop"]) for row in times} == {("none", "closed"), ("none", "open")}
    (group,) = group_points(read_points(study.out, "rate-accuracy"))
    accuracy = rows_of(group, "7")
    accuracy += [{**row, "codec": WHOLE[row["codec"]]} for row in accuracy if row["codec"] in WHOLE]
    known = {(row["codec"], row["rate"]): row for row in accuracy}
    assert {row["codec"] for row in times} == {"tiny", "jpeg-file"}  # a whole file; JPEG XL cannot be sent
    assert {row["rate"] for row in times if row["codec"] == "tiny"} == {"low", "high"}
    for row in times:
        assert known[row["codec"], row["rate"]]["hull"] or row["kind"] == "family"
        if row["kind"] == "family":
            assert row["payload_bytes_mean"] == pytest.approx(known[row["codec"], row["rate"]]["bytes_mean"], rel=0.5)
    table = best_codecs(times, accuracy, [60_000])
    assert [row["link"] for row in table] == ["none"]
    assert table[0]["best"]["top1"] == max(known[row["codec"], row["rate"]]["top1"] for row in times)


def test_a_broken_image_is_left_out_of_throughput_and_energy(study, monkeypatch):
    (study.data_dir / "eval-tiny" / "cat" / "0.png").write_bytes(b"not an image")
    sent = []
    monkeypatch.setattr(throughput_run, "measure", lambda service, bundle, packets, *_: sent.extend(packets) or {})
    assert study_throughput(study, PLAN) == (1, 1)
    row = read_points(study.out, "throughput")[0]["rows"][0]
    assert (len(sent), row["failed"]) == (3, 1)
    assert "0.png" in row["failure_messages"][0]
    assert study_energy(study, PLAN)[1] > 0
    for point in read_points(study.out, "energy"):
        assert (point["rows"][0]["failed"], point["rows"][0]["n"]) == (1, 2)
    for path in (study.data_dir / "eval-tiny").rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match="none of 4 images"):
        study_throughput(study, PLAN)


def test_throughput_takes_the_middle_rate(study, monkeypatch):
    monkeypatch.setattr(
        throughput_run, "measure", lambda *_: {"served_over_bare_ratio": 0.9}
    )  # test_latency.py does it
    assert study_throughput(study, PLAN) == (1, 1)
    assert study_throughput(study, PLAN) == (1, 0)
    (point,) = read_points(study.out, "throughput")
    assert (point["rows"][0]["rate"], point["rows"][0]["served_over_bare_ratio"]) == ("mid", 0.9)


def test_every_preset_has_a_plan():
    from benchmarks.study.study import PRESETS

    assert set(PLANS) == set(PRESETS)
    assert {"latency", "throughput"} <= set(EXPERIMENTS)

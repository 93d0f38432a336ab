"""Latency, throughput and energy on a tiny bundle and a tiny random CLIP: real clients, links and servers."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.cloud.tiny_clip import write_tiny_clip
from tests.tiny_bundle import synthetic_views

pytest.importorskip("torch")

from benchmarks import cli
from benchmarks.codecs.peers import PEERS, png_bytes
from benchmarks.data.sets import load_dataset
from benchmarks.results.progress import Progress
from benchmarks.results.store import PointStore, read_points
from benchmarks.rig.links import LINKS, Link
from benchmarks.timing.energy import Meter, per_image, rapl_zones
from benchmarks.timing.latency import CLOSED, OPEN, STAGES, Call, Run, arrivals_s, distribution, summarise
from benchmarks.timing.latency_run import LatencyRun, Loop
from benchmarks.timing.routes import NotOnEdge, family_ways, on_edge_way, peer_ways
from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from thinwire.errors import ImageError

LABELS = ("cat", "dog", "city at night")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THINWIRE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-random-clip")


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pack") / "eval-tiny"
    lines = ["path,class"]
    for place, view in enumerate(synthetic_views(6, 64, seed=2)):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / f"images/{place}.png").write_bytes(png_bytes(view))
        lines.append(f"images/{place}.png,{LABELS[place % 3]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Real servers in this process, so that no test waits for another interpreter; counts how many were started."""
    heads = tmp_path_factory.mktemp("heads")
    started = []

    @contextlib.contextmanager
    def start(clip: str, bundle):
        started.append(bundle.name)
        engine = open_engine(clip, [bundle.path], "cpu", 1, cache_dir=heads)
        with background_server(engine) as address:
            yield address

    start.started = started
    return start


def experiment(folder: Path, pack: Path, clip: Path, serve, limit: int | None = None, **other) -> LatencyRun:
    store = PointStore(folder, "latency", {"testbed": {"cpu": "test"}, "command": "test"})
    return LatencyRun(load_dataset(pack, limit), str(clip), "1", 0, store, serve=serve, **other)


def test_points_add_up_and_are_kept(tmp_path, pack, clip, serve, tiny_bundle_with_decoder):
    bundle = tiny_bundle_with_decoder
    ways = [*family_ways(bundle, "low,high"), *peer_ways(PEERS["jpeg"], bundle, [(224, 35), (112, 36), (112, 35)])]
    assert [way.rate for way in ways] == ["low", "high", "64px quality 35", "32px quality 35"]
    links = [LINKS["none"], Link("slow", 400e3, 400e3, 20.0, 5.0)]
    cases = [(link, loop) for link in links for loop in (Loop(), Loop(40.0))]
    ticks, skipped = [], []
    first = experiment(tmp_path, pack, clip, serve, progress=Progress(ticks.append, skipped.append))
    started = len(serve.started)
    rows = first.run(ways, cases)
    assert (first.measured, sum(ticks), len(skipped)) == (16, 16 * 6, 0)
    assert len(serve.started) == started + 1  # one server for all that share a bundle
    for row in rows:
        assert (row["n"], row["failed"], row["split"]) == (6, 0, 6)
        assert sum(row["stages_ms"][name]["mean"] for name in STAGES) == pytest.approx(
            row["latency_ms"]["mean"], abs=0.1
        )
        assert row["total_ms_p95"] == row["latency_ms"]["p95"] >= row["latency_ms"]["p50"] > 0
        assert row["link_bytes_up_per_image"] > row["payload_bytes_mean"] > 0
        assert 0 <= row["client_busy_share"] <= 1
        slow = row["link"] == "slow"
        for stage, payload in (("send", row["payload_bytes_mean"]), ("reply", 1)):
            at_least_ms = 15.0 + 1000 * 8 * payload / 400e3 if slow else 0.0
            assert row["stages_ms"][stage]["p50"] >= at_least_ms
        assert row["stages_ms"]["clip"]["p50"] > 0
    peer = {row["rate"]: row["payload_bytes_mean"] for row in rows if row["codec"] == "jpeg-file"}
    assert peer["32px quality 35"] < peer["64px quality 35"]
    stored = read_points(tmp_path, "latency")
    assert len(stored) == 16
    assert all(len(point["samples"]["latency_ms"]) == 6 for point in stored)

    second = experiment(tmp_path, pack, clip, serve, progress=Progress(ticks.append, skipped.append))
    assert second.run(ways, cases) == rows
    assert (second.measured, sum(skipped), len(serve.started)) == (0, 16 * 6, started + 1)
    # Whatever the figures depend on makes another point
    one = ([ways[0]], [(links[1], Loop())])
    for other in (
        experiment(tmp_path, pack, clip, serve, limit=4),
        experiment(tmp_path, pack, clip, serve, timeout_s=20.0),
    ):
        other.run(*one)
        assert other.measured == 1
    moved = experiment(tmp_path, pack, clip, serve)
    moved.run([ways[0]], [(Link("slow", 400e3, 400e3, 21.0, 5.0), Loop())])
    assert moved.measured == 1


def test_a_killed_run_loses_one_point_at_most(tmp_path, pack, clip, serve, tiny_bundle_with_decoder):
    class Killed(BaseException):
        pass

    seen = []

    def images(count: int) -> None:
        seen.append(count)
        if len(seen) > 8:  # in the middle of the second point
            raise Killed

    plan = (family_ways(tiny_bundle_with_decoder, "all"), [(LINKS["none"], Loop())])
    with pytest.raises(Killed):
        experiment(tmp_path, pack, clip, serve, progress=Progress(images)).run(*plan)
    again = experiment(tmp_path, pack, clip, serve)
    assert len(again.run(*plan)) == 3
    assert again.measured == 2


def test_a_broken_image_and_a_cut_line_fail_alone(tmp_path, clip, serve, tiny_bundle_with_decoder):
    folder = tmp_path / "pack"
    for place, view in enumerate(synthetic_views(12, 64, seed=3)):
        path = folder / LABELS[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(view))
    (folder / "cat/0.png").write_bytes(b"not an image")
    ways = family_ways(tiny_bundle_with_decoder, "low")
    run = experiment(tmp_path / "out", folder, clip, serve)
    (row,) = run.run(ways, [(Link("cut", None, None, 1.0, 0.0, 0.05), Loop())])
    assert row["failed"] >= 1
    assert any("not an image" in each or "image" in each for each in row["failure_messages"])
    assert row["latency_ms"]["mean"] is None  # an answer that never came is not left out of the mean
    assert row["latency_ms"]["p50"] > 0  # most came, some at the second try
    assert row["connections_lost"] > 0
    assert row["split"] <= 12 - row["failed"]


def test_open_loop_counts_from_when_an_image_was_due():
    """A stall of a second: a loop that waits tells it once, images that kept coming all say how long they waited."""
    due = [0.1 * k for k in range(10)]
    answered = [1.0 + 0.01 * k for k in range(10)]
    calls = [Call(d, max(d, a - 0.02), max(d, a - 0.01), a, (1.0, 1.0, 1.0, 1.0)) for d, a in zip(due, answered)]
    result = summarise(Run(calls, [], 1.1, 0.9, busy_s=0.1), ["x"] * 10, OPEN)
    assert result["latency_ms"]["p50"] == pytest.approx(1000 * (1.05 - 0.5), abs=1)
    assert result["latency_ms"]["p95"] == pytest.approx(1000)
    assert result["stages_ms"]["wait"]["p95"] == pytest.approx(980)
    assert not result["client_limited"]
    busy = Run(calls, [], 1.1, 0.9, busy_s=1.0)
    assert summarise(busy, ["x"] * 10, OPEN)["client_limited"]
    assert not summarise(busy, ["x"] * 10, CLOSED)["client_limited"]
    late = Run(calls, [], 5.0, 0.9, busy_s=0.1)
    assert summarise(late, ["x"] * 10, OPEN)["overloaded"]
    lost = [*calls[:-1], Call(0.9, 0.9, error="no answer")]
    figures = summarise(Run(lost, [], 1.1, 0.9), ["x"] * 10, OPEN)
    assert (figures["failed"], figures["latency_ms"]["mean"], figures["latency_ms"]["p95"]) == (1, None, None)
    assert figures["latency_ms"]["p50"] is not None
    json.dumps(figures, allow_nan=False)


def test_arrivals_are_poisson_and_the_same_again():
    times = arrivals_s(4.0, 20_000, seed=1)
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps.std() == pytest.approx(0.25, rel=0.05)  # of an exponential, mean and deviation are one
    assert np.array_equal(times[:10], arrivals_s(4.0, 10, seed=1))
    assert not np.array_equal(times[:10], arrivals_s(4.0, 10, seed=2))


def test_percentiles_by_hand():
    assert distribution(range(1, 101)) == {"mean": 50.5, "p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert distribution([math.nan]) == {"mean": None, "p50": None, "p95": None, "p99": None}


def test_only_embedding_bundles_answer_on_the_edge(tiny_bundle_with_decoder):
    with pytest.raises(NotOnEdge, match="family embedding"):
        on_edge_way(tiny_bundle_with_decoder)


# ---------------------------------------------------------------- energy


def counter(folder: Path, name: str, range_uj: int, energy_uj: int) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / name / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / name / "energy_uj"


def test_rapl_counts_packages_once_and_over_the_end_of_its_range(tmp_path, monkeypatch):
    package = counter(tmp_path, "intel-rapl:0", 10_000_000, 9_000_000)
    counter(tmp_path, "intel-rapl:0:0", 10_000_000, 5_000_000)  # its cores: a part of the package
    zones = rapl_zones(tmp_path)
    assert [zone.path.name for zone in zones] == ["intel-rapl:0"]
    meter = Meter(zones)
    package.write_text("9500000")
    assert meter.joules() == pytest.approx(0.5)
    package.write_text("1000000")  # began again at 10 000 000
    assert meter.joules() == pytest.approx(1.5)
    assert rapl_zones(tmp_path / "none") == []

    monkeypatch.setattr("benchmarks.timing.energy.IDLE_S", 0.01)

    def work(index: int) -> None:
        package.write_text(str((int(package.read_text()) + 2_000_000) % 10_000_000))
        if index == 1:
            raise ImageError("b.png: broken")

    row = per_image(work, 3, lambda: None, meter)
    assert (row["source"], row["n"], row["failed"]) == ("rapl", 3, 1)
    assert row["joules_per_image"] == pytest.approx(2.0)
    assert row["idle_watts"] == 0
    assert row["joules_per_image_above_idle"] == pytest.approx(2.0)


def test_without_rapl_cpu_seconds_are_counted():
    row = per_image(lambda index: sum(range(200_000)), 5, lambda: None, Meter([]))
    assert row["source"] == "cpu-seconds"
    assert row["joules_per_image"] is None
    assert row["cpu_s_per_image"] > 0


# ---------------------------------------------------------------- command line


def run_cli(capsys, *words: str) -> tuple[int, dict | None, str]:
    code = cli.main(list(words))
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err


def test_commands_end_to_end_and_again(capsys, tmp_path, pack, clip, tiny_bundle_with_decoder):
    """Through `thinwire-cloud serve` in a process of its own, and through the engine in this one."""
    common = ["--data", str(pack), "--clip", str(clip), "--prompt-set", "1", "--n", "4"]
    common += ["--bundles", str(tiny_bundle_with_decoder.path)]
    commands = {
        "latency": [
            "--links",
            "none",
            "--rates",
            "low",
            "--peers",
            "webp",
            "--peer-points",
            "224:30",
            "--arrivals",
            "50",
        ],
        "throughput": ["--rates", "mid", "--rounds", "2", "--round-s", "0.2", "--server-threads", "1"],
        "energy": ["--rates", "low", "--device", "cpu"],
    }
    points = {"latency": 4, "throughput": 1, "energy": 2}
    for name, words in commands.items():
        out = tmp_path / f"{name}.json"
        words = [name, *common, *words, "--json", str(out)]
        code, document, err = run_cli(capsys, *words)
        assert code == 0, err
        assert json.loads(out.read_text()) == document
        assert (document["benchmark"], document["points_measured"]) == (name, points[name])
        assert len(document["points"]) == points[name]
        assert len(list((tmp_path / f"{name}.json.points" / name).glob("*.json"))) == points[name]
        code, again, _ = run_cli(capsys, *words)
        assert (code, again["points_measured"], again["points"]) == (0, 0, document["points"])
        if name == "throughput":
            (row,) = document["points"]
            assert row["served_over_bare_ratio"] > 0
            assert row["runtime"] == "torch"  # the tiny CLIP has no ONNX form
            assert sum(int(size) * count for size, count in row["batch_histogram"].items()) == pytest.approx(
                row["images_answered"], rel=0.2
            )
            assert max(map(int, row["batch_histogram"])) <= row["batch_limit"]
    code, anew, _ = run_cli(capsys, *words, "--no-skip-existing")
    assert (code, anew["points_measured"]) == (0, points["energy"])


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_the_networks_alone_run_in_the_servers_runtime(runtime, monkeypatch):
    """What the server is compared with: not PyTorch's networks where the server runs ONNX Runtime's."""
    import queue

    from benchmarks.timing.throughput import _bare
    from cloud.networks.onnx.runner import OnnxRunner
    from cloud.networks.runner import TorchRunner
    from thinwire.bundle import load_bundle, shipped_bundles
    from thinwire.packet import Packet

    ran = []
    for kind, name in ((OnnxRunner, "onnx"), (TorchRunner, "torch")):
        usual = kind.run
        monkeypatch.setattr(kind, "run", lambda *args, usual=usual, name=name: ran.append(name) or usual(*args))

    class Pipe(queue.SimpleQueue):
        sent = None

        def recv(self):
            try:
                return self.get_nowait()
            except queue.Empty:
                raise EOFError from None

        def send(self, result):
            self.sent = result

    bundle = load_bundle(shipped_bundles()["layered"])
    symbols = np.zeros(bundle.latent_shape, np.int32)
    packet = Packet(bundle.model_id, tuple(bundle.coder.encode(symbols))).to_bytes()
    pipe = Pipe()
    pipe.put(0.01)
    _bare(pipe, runtime, "clip-lite", str(bundle.path), "cpu", 1, [packet], ["cat", "dog"], "1", 1)
    assert set(ran) == {runtime}
    assert min(pipe.sent.values()) > 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--links", "5g"], "any of none, wi-fi"),
        (["--loops", "figure-of-eight"], "closed, open"),
        (["--arrivals", "0"], "more than 0"),
        (["--bundles", ""], "nothing to measure"),
        (["--peers", "jxl"], "no JPEG XL"),
        (["--peers", "jpeg", "--peer-points", "224"], "SIDE:VALUE"),
        (["--peers", "jpeg", "--hull", "nowhere.json"], "rate-accuracy"),
    ],
)
def test_wrong_use_is_told(capsys, tmp_path, pack, words, told):
    code, _, err = run_cli(capsys, "latency", "--data", str(pack), "--json", str(tmp_path / "o.json"), *words)
    assert code == 1
    assert told in err


def test_peer_points_come_from_a_hull(capsys, tmp_path):
    from benchmarks.commands.timing import _hull

    rows = [
        {"kind": "peer", "codec": "webp", "hull": True, "parameters": {"side": 32, "quality": 30}},
        {"kind": "peer", "codec": "webp", "hull": False, "parameters": {"side": 64, "quality": 30}},
        {"kind": "peer", "codec": "jpeg", "hull": True, "parameters": {"side": 64, "quality": 20}},
    ]
    (tmp_path / "curve.json").write_text(json.dumps({"view": [64, 64], "points": rows}))
    assert _hull(str(tmp_path / "curve.json"), "webp") == [(112, 30)]

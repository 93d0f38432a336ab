"""The experiment on a tiny bundle and a tiny random CLIP: paths agree, points are kept, configurations never mix."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cloud.tiny_clip import write_tiny_clip
from tests.tiny_bundle import make_tiny_bundle, synthetic_views

pytest.importorskip("torch")

from benchmarks import cli
from benchmarks.accuracy import rate_accuracy
from benchmarks.accuracy.operating_point import Sight, measure_family
from benchmarks.accuracy.rate_accuracy import RateAccuracy
from benchmarks.codecs import grid
from benchmarks.codecs.grid import PEER, Point, fixed_rungs, peer_points
from benchmarks.codecs.peers import PEERS, encode, png_bytes, restore
from benchmarks.data.sets import load_dataset
from benchmarks.data.views import Views
from benchmarks.judges.judge import ClipsDiffer, Judge, Synthesis
from benchmarks.judges.originals import Originals
from benchmarks.results import store as points
from benchmarks.results.progress import Progress
from benchmarks.results.rows import group_points, rows_of
from benchmarks.results.store import PointStore, ResultsError, data_key, point_paths, read_points
from benchmarks.results.summary import summarise_run
from benchmarks.rig.wire_bytes import wire_meter
from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from edge import Client
from edge.line.client import Question
from thinwire.prompts import PROMPT_SETS

KEYS = {
    "codec",
    "rate",
    "bytes_mean",
    "bits_per_pixel",
    "top1",
    "top5",
    "top1_relative",
    "psnr_db",
    "encode_ms_p50",
    "n",
}
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
def judge(clip) -> Judge:
    import torch

    torch.set_num_threads(1)
    return Judge(str(clip), "cpu")


def write_pack(folder: Path, judge: Judge, count: int = 8) -> Path:
    """Pictures with labels that the random CLIP gives to three quarters of them."""
    names = [f"{letter}/{number}.png" for letter in "ab" for number in range(count // 2)]
    views = synthetic_views(len(names), 64, seed=2)
    lines = ["path,class"]
    for place, (name, view) in enumerate(zip(names, views)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png_bytes(view))
        ranked = judge.answers([view], LABELS, "1", 3)[0]
        lines.append(f"{name},{ranked[1 if place % 4 == 3 else 0].label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory, judge) -> Path:
    return write_pack(tmp_path_factory.mktemp("pack") / "eval-new", judge)


@pytest.fixture(scope="module")
def client(clip, tiny_bundle_with_decoder, tmp_path_factory):
    bundle = tiny_bundle_with_decoder
    with (
        open_engine(str(clip), [bundle.path], "cpu", 1, cache_dir=tmp_path_factory.mktemp("heads")) as engine,
        background_server(engine) as address,
        Client(address, bundle) as client,
    ):
        yield client


def probabilities(predictions) -> dict[str, float]:
    return {each.label: pytest.approx(each.probability, abs=1e-5) for each in predictions}


def test_in_process_answers_are_the_servers(client, judge):
    """What lets peers skip the wire: the same probabilities as the view sent as PNG, and as the peer's own file."""
    views = list(synthetic_views(3, 64, seed=5))
    for view, here in zip(views, judge.answers(views, LABELS, "7", 3)):
        there = client.classify_file(png_bytes(view), LABELS, 3, "7").predictions
        assert {each.label: each.probability for each in there} == probabilities(here)
        assert [each.label for each in there] == [each.label for each in here]
        file = encode(PEERS["jpeg-file"], view, 32, 32, 55)
        seen = judge.answers([restore(PEERS["jpeg-file"], file, 64, 64)], LABELS, "7", 3)[0]
        sent = client.classify_file(file, LABELS, 3, "7").predictions
        assert {each.label: each.probability for each in sent} == probabilities(seen)


@pytest.fixture
def sight(pack, judge):
    data = load_dataset(pack)
    views = Views(data, 64, 64)
    prompts = {name: PROMPT_SETS[name] for name in ("7", "1")}
    with wire_meter(data.labels) as meter:
        yield Sight(views, Originals(views, judge), judge, meter, prompts)


def test_a_family_is_asked_over_the_wire_and_looked_at_here(client, judge, sight):
    ticks = []
    sight.tick = ticks.append
    for point in grid.family_points(client.bundle, "tiny")[::2]:
        done = measure_family(client, Synthesis(client.bundle, judge), point, sight)
        content = done.content()
        assert (content["failed"], content["wire_disagreements"]) == (0, 0)
        images = content["images"]
        for index, item in enumerate(sight.data.items):
            told = client.classify(sight.views[index], sight.data.labels, 3, "7", point.rate)
            assert content["answers"]["7"]["top"][index] == [sight.data.labels.index(p.label) for p in told.predictions]
            assert content["answers"]["7"]["probability"][index] == pytest.approx(told.best.probability, abs=1e-5)
            similarity = {p.label: p.similarity for p in told.predictions}
            own = similarity.pop(sight.data.labels[item.target])
            assert content["answers"]["7"]["true_similarity"][index] == pytest.approx(own, abs=1e-5)
            assert content["answers"]["7"]["other_similarity"][index] == pytest.approx(
                max(similarity.values()), abs=1e-5
            )
            single = client.classify(sight.views[index], sight.data.labels, 1, "1", point.rate)
            assert sight.data.labels[content["answers"]["1"]["top"][index][0]] == single.best.label
            assert images["packet_bytes"][index] == told.packet_bytes
            assert images["packet_bytes"][index] < images["message_bytes"][index] < images["wire_bytes"][index]
        assert all(-1 <= value <= 1 for value in images["pooled_cosine"] + images["patch_cosine"])
        assert images["ms_ssim"] == [None] * 8  # 64 pixels are too few for five scales
    assert sum(ticks) == 2 * 8


def test_wire_bytes_are_the_message_in_its_frames(sight):
    """Measured bytes: headers and frames of a warm connection around the message, the same for equal messages."""
    question = Question.check(LABELS, 3, "7")
    overheads = set()
    for size in (100, 1000, 10_000):
        message, wire = sight.meter.measure(question, packet=bytes(size))
        assert message == question.request(packet=bytes(size)).ByteSize()
        overheads.add(wire - message)
    assert all(14 <= each < 200 for each in overheads)  # at least a frame's 9 and gRPC's 5 bytes


def test_originals_agree_with_themselves(sight, judge):
    seen = judge.embed([sight.views[index] for index in range(3)])
    original = sight.originals.embed([0, 1, 2])
    assert np.allclose((seen.embeddings * original.embeddings).sum(axis=1), 1, atol=1e-5)
    assert seen.patches.shape == original.patches.shape
    assert np.allclose(sight.originals.embed([2, 0]).embeddings, original.embeddings[[2, 0]])


def test_another_clip_on_the_server_is_noticed(client, tmp_path, judge):
    view = synthetic_views(1, 64)[0]
    judge.check_agrees(client, view, LABELS, "1")
    other = Judge(str(write_tiny_clip(tmp_path / "tiny-random-clip", seed=1)), "cpu")
    with pytest.raises(ClipsDiffer, match="weights were replaced"):
        other.check_agrees(client, view, LABELS, "1")


def run_cli(capsys, *words: str) -> tuple[int, dict | None, str]:
    code = cli.main(["rate-accuracy", *words])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err


def test_command_line_end_to_end_and_again(capsys, tmp_path, pack, clip, tiny_bundle_with_decoder, monkeypatch):
    out, picture = tmp_path / "deep" / "out.json", tmp_path / "out.png"
    words = ["--families", str(tiny_bundle_with_decoder.path), "--peers", "jpeg,av1", "--data", str(pack)]
    words += ["--clip", str(clip), "--prompt-set", "1", "--json", str(out), "--plot", str(picture)]
    code, document, err = run_cli(capsys, *words)
    assert code == 0, err
    assert json.loads(out.read_text()) == document
    rows = document["points"]
    assert all(set(row) >= KEYS | {"top1_relative_ci95", "mcnemar_p", "parameters", "hull"} for row in rows)
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in ("reference", "family", "peer")}
    assert [row["codec"] for row in of["reference"]] == ["uncompressed"]
    assert of["reference"][0]["top1"] == 0.75
    assert [row["rate"] for row in of["family"]] == ["low", "mid", "high"]
    assert len(of["peer"]) == len(fixed_rungs()["jpeg"]) + len(fixed_rungs()["av1"])
    assert all(row["n"] == 8 and row["failed"] == 0 and row["bytes_mean"] > 0 for row in rows)
    assert all(row["psnr_db"] > 3 for row in of["family"] + of["peer"])
    assert all(row["encode_ms_p50"] > 0 for row in rows)
    assert max(row["parameters"]["side"] for row in of["peer"]) <= 64
    for codec in ("tiny", "jpeg", "av1"):
        hull = sorted((r["bytes_mean"], r["top1"]) for r in rows if r["codec"] == codec and r["hull"])
        assert hull
        assert [top1 for _, top1 in hull] == sorted({top1 for _, top1 in hull})
    assert document["data"]["name"] == "eval-new"
    assert document["points_measured"] == len(rows)
    assert document["summary"]["families"]["tiny"]["encode"]["ratio"] > 0
    assert Image.open(picture).size[0] > 600
    assert "relative" in err

    # Again: nothing is computed, no server is started, no number changes
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(rate_accuracy, "running_service", never)
    monkeypatch.setattr(rate_accuracy, "measure_views", never)
    code, again, _ = run_cli(capsys, *words)
    assert code == 0
    assert again["points_measured"] == 0
    assert again["points"] == document["points"]
    assert again["summary"] == document["summary"]


def test_wrong_use_is_told(capsys, tmp_path, pack):
    words = ["--data", str(pack), "--json", str(tmp_path / "o.json")]
    code, _, err = run_cli(capsys, "--families", "none-such", *words)
    assert (code, "none-such" in err) == (1, True)
    code, _, err = run_cli(capsys, "--families", "", "--peers", "jpg", *words)
    assert (code, "use any of av1, webp" in err) == (1, True)


def experiment(tmp_path, pack, judge, limit=None, **other) -> RateAccuracy:
    data = load_dataset(pack, limit)
    store = PointStore(tmp_path / "points", "rate-accuracy", CONTEXT)
    return RateAccuracy(data, judge, "unused", {"1": PROMPT_SETS["1"]}, 0, store, **other)


CONTEXT = {"command": "thinwire-bench test", "testbed": {"cpu": "any"}}
JPEG = [replace(PEERS["jpeg"], ladder=(5, 35))]
POINTS = 1 + 6 * 2


def test_a_killed_run_loses_one_point_at_most(tmp_path, pack, judge):
    class Killed(BaseException):
        pass

    seen = []

    def images(count: int) -> None:
        seen.append(count)
        if sum(seen) > 5 * 8:  # in the middle of the sixth point
            raise Killed

    first = experiment(tmp_path, pack, judge, progress=Progress(images))
    with pytest.raises(Killed):
        first.run([], JPEG)
    assert first.measured == 5
    assert not list((tmp_path / "points").rglob("*.partial"))
    skipped = []
    second = experiment(tmp_path, pack, judge, progress=Progress(skipped=skipped.append))
    rows = second.run([], JPEG)
    assert (second.measured, sum(skipped)) == (POINTS - 5, 5 * 8)
    assert len(rows) == POINTS


def test_whatever_changes_the_numbers_changes_the_key(tmp_path, pack, judge, monkeypatch):
    assert _measured(experiment(tmp_path, pack, judge)) == POINTS
    assert _measured(experiment(tmp_path, pack, judge)) == 0
    assert _measured(experiment(tmp_path, pack, judge, limit=6)) == POINTS
    other = write_pack(tmp_path / "relabelled", judge)
    text = (other / "labels.csv").read_text().splitlines()
    name, label = text[1].split(",")
    text[1] = f"{name},{LABELS[(LABELS.index(label) + 1) % 3]}"
    (other / "labels.csv").write_text("\n".join(text))
    assert _measured(experiment(tmp_path, other, judge)) == POINTS  # the same pictures with one label corrected
    monkeypatch.setattr(points, "VERSION", points.VERSION + 1)
    assert _measured(experiment(tmp_path, pack, judge)) == POINTS


def test_another_machine_or_prompt_set_is_another_configuration(tmp_path, pack, judge):
    assert _measured(experiment(tmp_path, pack, judge)) == POINTS
    elsewhere = experiment(tmp_path, pack, judge)
    elsewhere.store = PointStore(tmp_path / "points", "rate-accuracy", {**CONTEXT, "testbed": {"cpu": "another"}})
    assert _measured(elsewhere) == POINTS
    more = experiment(tmp_path, pack, judge)
    more.prompts = {name: PROMPT_SETS[name] for name in ("1", "7")}
    assert _measured(more) == POINTS
    groups = group_points(read_points(tmp_path / "points", "rate-accuracy"))
    assert [len(group.points) for group in groups] == [POINTS] * 3
    assert len({group.title for group in groups}) == 3


def test_two_versions_of_a_codec_are_two_curves(tmp_path, pack, judge):
    experiment(tmp_path, pack, judge).run([], JPEG)
    newer = [replace(JPEG[0], version=lambda: "a newer library")]
    experiment(tmp_path, pack, judge).run([], newer)
    (group,) = group_points(read_points(tmp_path / "points", "rate-accuracy"))
    rows = rows_of(group)
    assert len(rows) == 1 + 2 * 12
    codecs = {row["codec"] for row in rows}
    assert len(codecs) == 3
    assert all(each.startswith("jpeg@") for each in codecs - {"uncompressed"})


def _measured(run: RateAccuracy) -> int:
    run.run([], JPEG)
    return run.measured


def test_a_decoder_trained_further_is_another_point(tmp_path, tiny_bundle_with_decoder):
    bundle = tiny_bundle_with_decoder
    twin = make_tiny_bundle(tmp_path / "twin")  # the same tables and encoder, no decoder: the same model id
    assert twin.model_id == bundle.model_id
    here, there = (grid.family_points(each, "tiny")[0].parameters for each in (bundle, twin))
    assert here != there
    assert {k: v for k, v in here.items() if k != "files"} == {k: v for k, v in there.items() if k != "files"}


def test_broken_images_are_failures_not_ends(tmp_path, judge):
    pack = write_pack(tmp_path / "pack", judge)
    (pack / "a/0.png").write_bytes(b"")
    found = experiment(tmp_path, pack, judge).run([], JPEG)
    rows = rows_of(*group_points(found))
    assert {row["failed"] for row in rows} == {1}
    assert all("a/0.png" in row["failure_messages"][0] for row in rows)
    again = experiment(tmp_path, pack, judge).run([], JPEG)
    assert again == found


def test_store_refuses_what_is_damaged(tmp_path, pack):
    data = load_dataset(pack)
    store = PointStore(tmp_path, "rate-accuracy", CONTEXT)
    key = {**data_key(data), "clip": "clip#1", "codec": "jpeg", "rate": "64px quality 5", "parameters": {"quality": 5}}
    assert store.load(key) is None
    saved = store.save(key, {"codec": "jpeg", "value": 1.5}, 2.0)
    assert store.load(key) == saved
    assert (saved["command"], saved["testbed"], saved["wall_s"]) == ("thinwire-bench test", {"cpu": "any"}, 2.0)
    assert store.load({**key, "clip": "clip#2"}) is None
    assert replace(store, skip_existing=False).load(key) is None
    path = store.path(key)
    assert point_paths(tmp_path, "rate-accuracy") == [path]
    whole = path.read_bytes()
    for damaged in (
        whole[:-20],
        b"",
        b"{}",
        b"[]",
        whole.replace(b"point/1", b"point/9"),
        whole.replace(b'y":5', b'y":6'),
    ):
        path.write_bytes(damaged)
        assert store.load(key) is None
    path.write_bytes(b"{")
    with pytest.raises(ResultsError, match="run the study again"):
        read_points(tmp_path, "rate-accuracy")


def row(kind, codec, size, relative, side=224, ms=2.0) -> dict:
    return {
        "kind": kind,
        "codec": codec,
        "rate": str(size),
        "bytes_mean": size,
        "top1_relative": relative,
        "top1_relative_ci95": [relative - 0.05, relative + 0.05],
        "encode_ms_p50": ms,
        "parameters": {"side": side},
    }


def test_summary_by_hand():
    rows = [
        row("reference", "uncompressed", 80_000, 1.0),
        row("family", "new", 100, 0.80, ms=4.0),
        row("family", "new", 400, 0.90, ms=5.0),
        row("peer", "webp", 1000, 0.85),
        row("peer", "webp", 4000, 0.95),
        row("peer", "av1", 900, 0.70, side=112, ms=1.0),
        row("peer", "av1", 1100, 0.80, ms=20.0),
        row("peer", "av1", 1500, 0.84, ms=25.0),
    ]
    summary = summarise_run(rows)
    new = summary["families"]["new"]
    assert new["bytes_at"]["0.90"] == {
        "bytes": 400.0,
        "at_most": False,
        "reason": None,
        "best_peer": "webp",
        "best_peer_bytes": 2000.0,
        "best_peer_at_most": False,
        "ratio": 0.2,
    }
    assert new["bytes_at"]["0.85"]["bytes"] == pytest.approx(200, abs=0.1)
    assert new["bytes_at"]["0.85"]["best_peer_bytes"] == 1000
    within = new["top1_relative_within"]
    assert (within["300"]["top1_relative"], within["300"]["best_peer"]) == (0.8, None)
    assert (within["1150"]["top1_relative"], within["1150"]["best_peer_top1_relative"]) == (0.9, 0.85)
    assert new["encode"] == {
        "encode_ms_p50": 5.0,
        "av1_ms_p50": 20.0,
        "ratio": 0.25,
        "reason": None,
        "av1_side": 224,
    }
    av1 = summary["peers"]["av1"]
    assert av1["bytes_at"]["0.90"]["reason"] == "best measured is 0.840 at 1500 bytes"
    assert av1["top1_relative_within"]["300"]["reason"] == "its cheapest point takes 900 bytes"
    json.dumps(summary, allow_nan=False)


def test_summary_without_peers_says_why():
    new = summarise_run([row("family", "new", 500, 0.95)])["families"]["new"]
    assert new["bytes_at"]["0.90"]["at_most"]
    assert new["bytes_at"]["0.90"]["reason"] == "no peer was measured"
    assert new["top1_relative_within"]["300"]["reason"] == "its cheapest point takes 500 bytes"
    assert new["encode"]["reason"] == "av1 was not among the peers"


def test_vector_formats_and_lone_points(tmp_path):
    from benchmarks.report.plot import plot

    rows = [{**row("family", "new", 100, 0.8), "hull": True}, {**row("peer", "jxl", 900, 0.8), "hull": True}]
    plot(rows, tmp_path / "a.svg", "title")
    assert b"relative top-1" in (tmp_path / "a.svg").read_bytes() or (tmp_path / "a.svg").stat().st_size > 5000
    plot([], tmp_path / "b.png", "nothing")
    assert Image.open(io.BytesIO((tmp_path / "b.png").read_bytes())).format == "PNG"


def test_points_of_other_view_shapes():
    grid = peer_points(PEERS["webp"], 64, 128)
    assert isinstance(grid[0], Point)
    assert grid[0].kind == PEER
    assert grid[0].rate == "128x64 quality 0"
    view = np.zeros((64, 128, 3), np.uint8)
    assert restore(PEERS["webp"], encode(PEERS["webp"], view, 32, 64, 5), 64, 128).shape == view.shape

"""Frames that the service keeps: found by text, image and likeness, filtered, deleted, and kept no longer than said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.engine.events import AnsweredFrame
from cloud.errors import BadConfiguration, InvalidRequest, StoreFailed
from cloud.front.access import Security
from cloud.search import vectors as vectors_module
from cloud.search.archive import Archive
from cloud.search.frames import Filter, Frame
from cloud.search.store import FrameStore
from cloud.search.vectors import Vectors
from cloud.watch.options import WatchOptions, WebOptions
from tests.cloud.served import classify, jpeg, refused
from tests.waiting import until
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import search_pb2

DIM = 8


def unit(seed: int, dim: int = DIM) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


def seen(seed: int, at=1000.0, device="cam", label="cat", packet: bytes | None = b"TW") -> AnsweredFrame:
    answer = SimpleNamespace(
        embedding=unit(seed),
        bundle="tiny",
        layers=2,
        predictions=(SimpleNamespace(label=label, probability=0.9),),
    )
    return AnsweredFrame(at, device, packet, None if packet else b"file", ("cat", "dog"), answer, "clip", "clip#1")


@pytest.fixture
def archive(tmp_path):
    """Returns a function that opens an archive in one file; its clock stands at `archive.now`."""
    opened = []

    def open_archive(**options) -> Archive:
        opened.append(Archive(tmp_path / "frames.db", clock=lambda: open_archive.now, **options))
        return opened[-1]

    open_archive.now = 1000.0
    open_archive.path = tmp_path / "frames.db"
    yield open_archive
    for each in opened:
        each.close()


def ids(found) -> list[int]:
    return [each.id for each in found]


def nearest(archive: Archive, seed: int, count: int = 3, **wanted):
    return archive.nearest("clip#1", unit(seed), Filter(**wanted), count)


# ---------------------------------------------------------------- vectors


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_search_agrees_with_a_plain_one(data):
    """Any mix of adds, removals and filters, over several blocks."""
    vectors_module.BLOCK, before = 8, vectors_module.BLOCK
    try:
        held, rows = Vectors(DIM), {}
        for number in range(1, data.draw(st.integers(0, 40)) + 1):
            row = (number * 37 % 100, f"cam-{number % 3}", ("cat", "Dog")[number % 2])
            held.add(number, *row, unit(number))
            rows[number] = row
        gone = data.draw(st.sets(st.integers(1, 40)))
        held.remove(np.array(sorted(gone), np.int64))
        rows = {number: row for number, row in rows.items() if number not in gone}
        wanted = Filter(
            device_ids=tuple(data.draw(st.sets(st.sampled_from(["cam-0", "cam-1", "nobody"])))),
            labels=tuple(data.draw(st.sets(st.sampled_from(["dog", "CAT"])))),
            after_ms=data.draw(st.integers(0, 60)),
            before_ms=data.draw(st.integers(0, 100)),
            ids=tuple(data.draw(st.sets(st.integers(1, 40), max_size=3))),
        )
        fit = [
            number
            for number, (at, device, label) in rows.items()
            if (not wanted.device_ids or device in wanted.device_ids)
            and (not wanted.labels or label.lower() in [each.lower() for each in wanted.labels])
            and at >= wanted.after_ms
            and (not wanted.before_ms or at < wanted.before_ms)
            and (not wanted.ids or number in wanted.ids)
        ]
        query, count = unit(1000), data.draw(st.integers(1, 12))
        best = sorted(fit, key=lambda number: -float(unit(number) @ query))[:count]
        found = held.nearest(query, wanted, count)
        assert [number for number, _ in found] == best
        assert all(cosine == pytest.approx(float(unit(number) @ query), abs=1e-5) for number, cosine in found)
        assert held.matching(wanted).tolist() == sorted(fit)
        assert len(held) == len(rows)
    finally:
        vectors_module.BLOCK = before


# ---------------------------------------------------------------- the archive


def test_what_was_kept_is_found_again_after_a_restart(archive):
    first = archive()
    for seed in range(20):
        first.answered(seen(seed, at=1000.0 + seed, device=f"cam-{seed % 2}"))
    first.flush()
    before = ids(nearest(first, 7))
    assert before[0] == 8  # ids count from 1
    first.close()
    assert archive.path.stat().st_mode & 0o077 == 0  # this user's alone
    second = archive()
    found = nearest(second, 7)
    assert ids(found) == before
    assert found[0].similarity == pytest.approx(1, abs=1e-3)  # float16 on disk
    frame = found[0].frame
    assert (frame.at_ms, frame.device_id, frame.packet, frame.predictions) == (1007000, "cam-1", b"TW", (("cat", 0.9),))
    assert second.devices() == ["cam-0", "cam-1"]
    assert nearest(second, 7, device_ids=("cam-0",))[0].frame.device_id == "cam-0"
    assert second.nearest("another-clip#2", unit(7), Filter(), 3) == []


def test_deleted_frames_are_gone_from_search_and_from_the_file(archive):
    held = archive()
    secret = b"TW" + bytes(range(40, 200)) * 3
    for seed in range(6):
        held.answered(seen(seed, device="cam-1" if seed < 3 else "cam-2", packet=secret if seed == 1 else b"TW"))
    assert held.delete(Filter(device_ids=("cam-1",))) == 3
    assert sorted(ids(nearest(held, 1, count=10))) == [4, 5, 6]
    assert held.frame(2) is None
    for invalid in ({"everything": False}, {}):
        with pytest.raises(InvalidRequest, match="say what to delete"):
            held.delete(Filter(), **invalid)
    with pytest.raises(InvalidRequest, match="either a filter"):
        held.delete(Filter(ids=(4,)), everything=True)
    assert held.delete(Filter(), everything=True) == 3
    assert held.store.frames == held.store.bytes == 0
    held.answered(seen(9))
    held.flush()
    assert ids(nearest(held, 9)) == [7]  # ids are not given twice
    held.close()
    assert secret not in archive.path.read_bytes()


def test_old_frames_leave(archive):
    held = archive(max_age_s=60)
    held.answered(seen(1, at=900.0))
    held.answered(seen(2, at=1000.0))
    held.flush()
    archive.now += 61
    held.answered(seen(3, at=archive.now))
    held.flush()
    assert ids(nearest(held, 1, count=9)) == [3] or held.store.frames == 1


def test_the_oldest_leave_when_there_is_too_much(archive):
    held = archive(max_bytes=20_000)
    for seed in range(60):
        held.answered(seen(seed, packet=b"TW" + bytes(998)))
        held.flush()
        assert held.store.bytes <= 20_000
    kept = sorted(ids(nearest(held, 1, count=99)))
    assert kept == list(range(61 - len(kept), 61))  # the newest
    assert 10 <= len(kept) <= 20
    assert held.store.path.stat().st_size < 100_000


def test_what_cannot_be_written_is_dropped_and_counted(archive, monkeypatch, caplog):
    held = archive()
    monkeypatch.setattr("cloud.search.archive.MAX_PENDING", 2)
    held._writing.acquire()  # the writer is busy
    for seed in range(5):
        held.answered(seen(seed))
    held._writing.release()
    assert held.dropped >= 2
    held.flush()
    assert held.store.frames + held.dropped == 5


def test_a_store_is_one_process_s_and_of_one_version(archive, tmp_path):
    held = archive()
    with pytest.raises(BadConfiguration, match="another process"):
        FrameStore(archive.path)
    held.close()
    with pytest.raises(StoreFailed, match="cannot be written"):
        FrameStore(tmp_path)  # a folder
    FrameStore(archive.path).close()  # what failed lets go of its lock


def test_a_failed_write_changes_nothing(archive):
    held = archive()
    bad = Frame(1, "cam", "clip#1", "tiny", 1, b"TW", (("cat", 0.5),), unit(1))
    worse = Frame("no time", None, "clip#1", "tiny", 1, b"TW", (), unit(2))  # NOT NULL
    with pytest.raises(Exception, match="NOT NULL"):
        held.store.add([bad, worse])
    assert held.store.frames == 0
    assert held.store.add([bad]) == [1]


# ---------------------------------------------------------------- over RPC, HTTP and the command line


@pytest.fixture
def keeping(serve, tmp_path):
    """A server that keeps frames."""
    return serve(watch=WatchOptions(web=WebOptions(), store=tmp_path / "frames.db"))


def send(served, packet, device="cam-1"):
    return served.stub.Classify(classify(packet), timeout=60, metadata=[("thinwire-device", device)])


def test_frames_are_found_by_image_text_and_likeness(keeping, make_packet):
    for seed in range(4):
        send(keeping, make_packet(seed), f"cam-{seed % 2}")
    keeping.stub.Embed(pb.EmbedRequest(image=pb.ImageInput(image_file=jpeg())), timeout=60)

    def ask(**fields):
        return keeping.search.SearchFrames(search_pb2.SearchFramesRequest(**fields), timeout=60).frames

    same = ask(image=pb.ImageInput(packet=make_packet(2)), with_packets=True)
    assert (same[0].id, same[0].packet, same[0].device_id) == (3, make_packet(2), "cam-0")
    assert same[0].similarity == pytest.approx(1, abs=2e-3)
    assert len(same) == 5
    assert [each.similarity for each in same] == sorted((each.similarity for each in same), reverse=True)
    assert same[0].predictions[0].label in ("cat", "dog", "car")
    assert ask(image=pb.ImageInput(image_file=jpeg()))[0].id == 5
    assert ask(image=pb.ImageInput(image_file=jpeg()))[0].packet_bytes == 0
    assert 3 not in [each.id for each in ask(like_id=3)]
    vectors = keeping.stub.EncodeText(pb.EncodeTextRequest(texts=["red truck", "a photo of a red truck."]), timeout=60)
    mean = np.mean([each.values for each in vectors.embeddings], axis=0)
    embedded = keeping.stub.Embed(pb.EmbedRequest(image=pb.ImageInput(packet=make_packet(0))), timeout=60)
    by_text = {each.id: each.similarity for each in ask(text="red truck")}
    expected = float(np.dot(embedded.embedding.values, mean / np.linalg.norm(mean)))
    assert by_text[1] == pytest.approx(expected, abs=2e-3)
    assert {each.device_id for each in ask(text="x", filter=search_pb2.FrameFilter(device_ids=["cam-1"]))} == {"cam-1"}
    assert ask(text="x", filter=search_pb2.FrameFilter(before_unix_ms=1000)) == []
    assert len(ask(text="x", top_k=2)) == 2


def test_what_is_wrong_with_a_question(keeping, make_packet):
    def fails(**fields):
        request = search_pb2.SearchFramesRequest(**fields)
        return refused(lambda: keeping.search.SearchFrames(request, timeout=60))[1]

    assert fails() == "INVALID_REQUEST"
    assert fails(text="  ") == "INVALID_REQUEST"
    assert fails(text="x" * 5000) == "INVALID_REQUEST"
    assert fails(text="x", top_k=1000) == "INVALID_REQUEST"
    assert fails(text="x", clip="nobody") == "UNKNOWN_MODEL"
    assert fails(like_id=77) == "UNKNOWN_FRAME"
    assert fails(image=pb.ImageInput(packet=b"TW broken")) == "BAD_PACKET"
    empty = search_pb2.DeleteFramesRequest()
    assert refused(lambda: keeping.search.DeleteFrames(empty, timeout=60))[1] == "INVALID_REQUEST"


def test_a_stream_s_frames_are_kept_once(keeping, make_packet):
    """A frame that was answered by need_more is kept when its final answer is given."""
    request = classify(make_packet(1, 1), frame_id=1)
    asked = pb.ClassifyStreamRequest(request=request, progressive=pb.Progressive(max_layers=2))
    assert len(list(keeping.stub.ClassifyStream(iter([asked]), timeout=60))) == 1
    info = keeping.search.GetStoreInfo(search_pb2.GetStoreInfoRequest(), timeout=60)
    assert (info.frames, list(info.device_ids), info.dropped) == (1, ["ipv4:127.0.0.1"], 0)
    assert info.oldest_unix_ms == info.newest_unix_ms > 1_700_000_000_000


def test_search_is_for_operators(serve, make_packet, tmp_path):
    cameras, operators = tmp_path / "cameras", tmp_path / "operators"
    cameras.write_text("camera-token-0001\n")
    operators.write_text("operator-token-01\n")
    question = search_pb2.GetStoreInfoRequest()

    def with_token(call, request, token):
        return call(request, timeout=60, metadata=[("authorization", f"Bearer {token}")])

    served = serve(
        watch=WatchOptions(store=tmp_path / "a.db"),
        security=Security(token_file=cameras, operator_token_file=operators),
    )
    info = served.search.GetStoreInfo
    assert with_token(info, question, "operator-token-01").frames == 0
    assert refused(lambda: with_token(info, question, "camera-token-0001"))[1] == "UNAUTHENTICATED"
    assert refused(lambda: info(question, timeout=60))[1] == "UNAUTHENTICATED"
    assert with_token(served.stub.Classify, classify(make_packet()), "camera-token-0001").predictions
    assert refused(lambda: with_token(served.stub.Classify, classify(make_packet()), "operator-token-01"))[1]
    # Tokens for cameras and none for operators: closed
    closed = serve(watch=WatchOptions(store=tmp_path / "b.db"), security=Security(token_file=cameras))
    code, reason, _ = refused(lambda: with_token(closed.search.GetStoreInfo, question, "camera-token-0001"))
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    assert not Security(allow_plaintext=True).operators_may_search("0.0.0.0")
    # No store
    plain = serve()
    assert refused(lambda: plain.search.GetStoreInfo(question, timeout=60))[1] == "SEARCH_OFF"


def test_search_over_http(keeping, make_packet):
    for seed in range(3):
        send(keeping, make_packet(seed), f"cam-{seed}")
    status, told = keeping.get("/api/search?text=red+truck&device=cam-1")
    assert (status, [each["device"] for each in told["found"]]) == (200, ["cam-1"])
    number = told["found"][0]["id"]
    assert keeping.get(f"/api/frames/{number}")[1][:4] == b"\x89PNG"
    assert keeping.get("/api/search", data=make_packet(2))[1]["found"][0]["device"] == "cam-2"
    assert keeping.get("/api/search", data=jpeg())[1]["found"]
    assert len(keeping.get(f"/api/search?like={number}")[1]["found"]) == 2
    assert keeping.get("/api/search?text=a&after=9e9")[1]["found"] == []
    assert keeping.get("/api/live")[1]["search"]["frames"] == 3
    for query in ("", "?text=a&k=1e9", "?text=a&after=soon", "?like=-1"):
        status, told = keeping.get(f"/api/search{query}")
        assert (status, told["reason"]) == (400, "INVALID_REQUEST")
    assert keeping.get("/api/frames/77")[0] == 404


@pytest.mark.slow
def test_the_command_line(keeping, make_packet, tmp_path):
    for seed in range(3):
        send(keeping, make_packet(seed), f"cam-{seed}")

    def run(*words) -> tuple[int, str, str]:
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        command = [sys.executable, "-m", "cloud.cli", words[0], "--server", keeping.address, *words[1:]]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    code, out, _ = run("search", "red truck", "--when", "last hour", "--device", "cam-1", "--json")
    row = json.loads(out)
    assert (code, row["id"], row["device"]) == (0, 2, "cam-1")
    packet = tmp_path / "one.twp"
    packet.write_bytes(make_packet(2))
    code, out, _ = run("search", "--image", str(packet), "--count", "1")
    assert out.split()[0] == "3"
    assert run("forget", "--device", "cam-0", "--after", "1h")[1] == "1 frames deleted\n"
    code, out, _ = run("kept")
    assert (code, json.loads(out)["frames"], json.loads(out)["devices"]) == (0, 2, ["cam-0", "cam-1", "cam-2"])
    code, out, err = run("forget")
    assert (code, out) == (1, "")
    assert "say what to delete" in err
    assert run("search")[0] == 1
    assert "--when replaces" in run("search", "x", "--when", "today", "--after", "1h")[2]


def test_the_service_goes_on_without_its_disk(keeping, make_packet, caplog):
    store = keeping.watch.searcher.archive.store
    store._db.execute("PRAGMA query_only=ON")  # as a full or read-only disk
    assert send(keeping, make_packet()).predictions
    until(lambda: "could not be kept" in caplog.text)
    store._db.execute("PRAGMA query_only=OFF")
    send(keeping, make_packet())
    assert keeping.search.GetStoreInfo(search_pb2.GetStoreInfoRequest(), timeout=60).frames == 1

"""`thinwire-edge run` against a real server with canned answers: what dies, what is repeated, what is written."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from edge.cli import main
from tests.edge.canned import Canned, answer_frame, cut, fail_frame, keep_silent, need_more, serve
from tests.tiny_bundle import make_tiny_bundle, make_tiny_still, photo, synthetic_views
from tests.waiting import until
from thinwire.packet import Packet

ROOT = Path(__file__).resolve().parents[2]
LABELS = "cat,dog,car"


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(8):
        photo(folder, f"{number}.jpg", seed=number)
    return folder


@pytest.fixture
def words(canned, tiny_bundle, tmp_path) -> list[str]:
    spool, out = tmp_path / "spool" / "s.db", tmp_path / "out.jsonl"
    where = ["--server", canned.address, "--bundle", str(tiny_bundle.path), "--spool", str(spool), "--out", str(out)]
    return ["--labels", LABELS, "--summary", *where]


@pytest.fixture
def out(tmp_path) -> Callable[[], list[dict]]:
    def read() -> list[dict]:
        path = tmp_path / "out.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


def run(*args: object) -> int:
    return main(["run", *map(str, args)])


def started(*args: object, **more) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "edge.cli", "run", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, text=True, **pipes | more)


def summary(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


# ---------------------------------------------------------------- the usual


def test_every_frame_has_one_result_and_a_second_run_sends_nothing(photos, words, canned, out, capsys):
    assert run(photos, *words) == 0
    facts = summary(capsys)
    assert (facts["accepted"], facts["answered"], facts["waiting"]) == (8, 8, 0)
    lines = out()
    assert sorted(line["source"] for line in lines) == sorted(map(str, photos.iterdir()))
    assert {(line["ok"], line["final"], line["answered_by"]) for line in lines} == {(True, True, "cloud")}
    assert lines[0]["predictions"][0]["label"] == "cat"
    assert [list(each.labels) for each in canned.frames] == [["cat", "dog", "car"], *[[]] * 7]  # once per stream
    assert {line["key"][:16] for line in lines} == {f"{each.frame_id:016x}" for each in canned.frames}
    assert run(photos, *words) == 0
    assert summary(capsys)["known"] == 8
    assert (len(out()), len(canned.frames)) == (8, 8)
    photo(photos, "0.jpg", seed=99)  # another picture under an old name is a new frame
    os.utime(photos / "0.jpg", (1, 1))
    assert run(photos, *words) == 0
    assert len(out()) == 9
    assert main(["status", "--spool", words[words.index("--spool") + 1], "--json"]) == 0
    status = summary(capsys)
    assert (status["waiting_frames"], status["running"], status["link"]["sent_frames"]) == (0, False, 1)


def test_a_folder_without_images_is_told_and_the_status_is_for_people(tmp_path, words, capsys):
    (tmp_path / "nothing").mkdir()
    assert run(tmp_path / "nothing", *words) == 0  # a run is also started to send what waits
    assert "no image files in" in capsys.readouterr().err
    assert main(["status", "--spool", words[words.index("--spool") + 1]]) == 0
    (noted,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("noted at")]
    assert noted.split()[2].startswith(time.strftime("%Y-"))


def test_broken_files_get_a_result_too(photos, words, out):
    (photos / "empty.jpg").touch()
    assert run(photos, photos / "missing.jpg", *words) == 1
    bad = {Path(line["source"]).name: line["error"]["reason"] for line in out() if not line["ok"]}
    assert bad == {"empty.jpg": "BAD_IMAGE", "missing.jpg": "BAD_IMAGE"}
    assert len(out()) == 10


def test_csv_stdout_and_stdin(photos, words, tmp_path, capsys, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{path}\n" for path in sorted(photos.iterdir()))))
    table = tmp_path / "out.csv"
    assert run("-", *words, "--out", table) == 0
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 8
    assert {(row["label"], row["final"], row["layers"]) for row in rows} == {("cat", "true", "2")}
    capsys.readouterr()
    at = words.index("--out")
    assert run(photos / "0.jpg", *words[:at], *words[at + 2 :], "--spool", tmp_path / "new.db") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["source"].endswith("0.jpg")
    assert lines[1]["answered"] == 1


def test_crop_and_gate_decide_what_is_sent(words, canned, tmp_path, tiny_bundle, capsys, out):
    folder = tmp_path / "still"
    folder.mkdir()
    scene = synthetic_views(1, 96, seed=3)[0].astype(int)
    rng = np.random.default_rng(0)
    for number in range(6):
        frame = np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255).astype(np.uint8)
        if number >= 4:
            frame[20:60, 20:60] = 255 - frame[20:60, 20:60]
        Image.fromarray(frame).save(folder / f"{number}.png")
    assert run(folder, *words, "--min-change", 0.02, "--crop", "0,0,0.75,0.75") == 0
    facts = summary(capsys)
    assert (facts["accepted"], facts["unchanged"]) == (2, 4)
    assert [Path(line["source"]).name for line in out()] == ["0.png", "4.png"]
    with Image.open(folder / "0.png") as image:
        from edge import Encoder

        wanted = Encoder(tiny_bundle).encode_image(image.crop((0, 0, 72, 72)), "mid").packet.to_bytes()
    assert canned.frames[0].image.packet == wanted


# ---------------------------------------------------------------- what goes wrong on the line


def test_cut_streams_are_taken_up_again_and_repeats_keep_their_number(photos, words, canned, out):
    canned.frame_script.extend([answer_frame, keep_silent, cut, answer_frame, cut, cut])
    assert run(photos, *words) == 0
    assert len(out()) == len({line["key"] for line in out()}) == 8
    assert len(canned.frames) > 8
    assert len({each.frame_id for each in canned.frames}) == 8
    assert canned.streams >= 4
    assert len({each.get("thinwire-spool") for each in canned.metadata if "thinwire-spool" in each}) == 1


def test_a_second_answer_changes_nothing(photos, words, canned, out):
    def twice(request, context):
        yield from answer_frame(request, context)
        yield from answer_frame(request, context)

    canned.frame_usual = twice
    assert run(photos, *words) == 0
    assert len(out()) == 8


def test_refusals_are_final_or_tried_again(photos, words, canned, out):
    exhausted, internal = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL
    bad = fail_frame(grpc.StatusCode.INVALID_ARGUMENT, "BAD_PACKET")
    canned.frame_script.extend([fail_frame(exhausted, "QUEUE_FULL", 600), bad, fail_frame(internal, "INTERNAL")])
    assert run(photos, *words) == 1
    lines = out()
    assert len(lines) == 8
    assert [line["error"]["reason"] for line in lines if not line["ok"]] == ["BAD_PACKET"]
    first = canned.frames[0].frame_id
    tries = [at for at, each in zip(canned.frame_times, canned.frames) if each.frame_id == first]
    assert len(tries) == 2
    assert tries[1] - tries[0] >= 0.55


def test_a_silent_line_is_left_for_a_new_connection(photos, words, canned, out):
    canned.frame_script.append(keep_silent)
    peers = set()

    def noting(request, context):
        peers.add(context.peer())
        yield from answer_frame(request, context)

    canned.frame_usual = noting
    assert run(photos, *words, "--timeout", 2, "--in-flight", 2) == 0
    assert len(out()) == 8
    assert len(peers) == 2


def test_few_frames_are_on_their_way_at_a_time(photos, words, canned):
    seen = []

    def slow(request, context):
        seen.append(len(canned.frames))
        yield from answer_frame(request, context)

    canned.frame_usual = slow
    assert run(photos, *words, "--in-flight", 1) == 0
    assert seen == list(range(1, 9))


def test_a_server_that_comes_later_and_dies_between_gets_every_frame(photos, tiny_bundle, tmp_path, out, words):
    import socket

    reserved = socket.socket()  # bound, never listening: nobody else gets the port, and connections are refused
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{reserved.getsockname()[1]}"
    client = started(photos, *words, "--server", address)

    def server(behaviour) -> grpc.Server:
        from thinwire.v1 import inference_pb2_grpc

        servicer = Canned([tiny_bundle])
        servicer.frame_usual = behaviour
        server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 1)])
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
        server.add_insecure_port(address)
        server.start()
        server.servicer = servicer
        return server

    line = client.stderr.readline()
    assert "no thinwire server answers" in line
    assert "frames wait in the spool" in line
    first = server(keep_silent)
    until(lambda: first.servicer.frames)
    first.stop(0).wait()
    second = server(answer_frame)
    _, err = client.communicate(timeout=60)
    second.stop(0).wait()
    reserved.close()
    assert client.returncode == 0, err
    assert "answers again" in err
    assert len(out()) == 8


def test_the_client_killed_again_and_again_loses_and_repeats_nothing(photos, words, canned, out):
    def slowly(request, context):
        time.sleep(0.05)
        yield from answer_frame(request, context)

    for number in range(8, 40):
        photo(photos, f"{number}.jpg", seed=number)
    canned.frame_usual = slowly
    for wanted in (3, 12):
        client = started(photos, *words)
        until(lambda wanted=wanted: len(out_safe(out)) >= wanted)
        client.send_signal(signal.SIGKILL)
        client.communicate()
    assert run(photos, *words) == 0
    assert len(out()) == len({line["key"] for line in out()}) == 40


def out_safe(out) -> list[dict]:
    try:
        return out()
    except ValueError:  # a line is being written
        return []


def test_a_server_of_another_release_or_without_our_bundle_is_told_and_frames_wait(
    photos, words, canned, tmp_path, capsys, out
):
    with serve(None) as address:
        assert run(photos, *words, "--server", address, "--drain", 3) == 1
    err = capsys.readouterr().err
    assert "no thinwire server of this release" in err
    assert err.count("frames wait in the spool") == 1
    other = make_tiny_bundle(tmp_path / "other", size=32, name="other")
    assert run(photos, *words, "--bundle", other.path, "--spool", tmp_path / "o.db", "--drain", 3) == 1
    assert "it holds: tiny (" in capsys.readouterr().err
    assert out() == []
    assert run(photos, *words) == 0
    assert len(out()) == 8


def test_a_defect_in_another_thread_ends_the_run(photos, words, monkeypatch):
    """A process that has ended is started again; one that hangs is not."""
    monkeypatch.setattr("edge.field.settling.Settling.take", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(photos, *words)


# ---------------------------------------------------------------- bytes


def test_a_server_that_is_not_there_costs_no_budget(photos, words, dead_address, capsys):
    assert run(photos, *words, "--server", dead_address, "--drain", 5) == 1
    facts = summary(capsys)
    assert (facts["waiting"], facts["sent_frames"], facts["sent_bytes"]) == (8, 0, 0)


def test_a_spent_budget_holds_frames_also_after_a_restart(photos, words, canned, capsys, out):
    budget = ["--mb-per-day", "0.0005", "--drain", "3"]
    assert run(photos, *words, *budget) == 1
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert "byte budget is spent" in said.err
    assert 0 < facts["sent_bytes"] <= 500
    assert 0 < facts["answered"] < 8
    before = len(canned.frames)
    assert run(photos, *words, *budget) == 1
    assert len(canned.frames) == before
    assert run(photos, *words) == 0
    assert len(out()) == 8


def test_auto_starts_small_and_sends_more_once_the_link_is_known(photos, words, canned, out):
    for number in range(8, 40):
        photo(photos, f"{number}.jpg", seed=number)
    assert run(photos, *words, "--rate", "auto", "--in-flight", 1, "--deadline", 30) == 0
    layers = [len(Packet.from_bytes(each.image.packet).layers) for each in canned.frames]
    assert layers[0] == 2
    assert layers[-1] == 3
    assert [line["layers"] for line in out()] == layers


def test_further_layers_go_where_the_server_asks_for_them(photos, words, canned, out):
    canned.progressive = True
    canned.frame_script.extend([need_more(2), answer_frame, need_more(3)])
    assert run(photos, *words, "--rate", "high", "--confidence", 0.8) == 0
    assert {(each.max_layers, round(each.confidence, 3)) for each in canned.offers} == {(3, 0.8)}
    assert {len(Packet.from_bytes(each.image.packet).layers) for each in canned.frames} == {1}
    assert [len(each.layers) for each in canned.more] == [1, 2]
    lines = {line["key"][:16]: line for line in out()}
    assert len(lines) == 8
    assert sorted(line["layers"] for line in lines.values()) == [1] * 6 + [2, 3]
    for more in canned.more:
        first = next(each for each in canned.frames if each.frame_id == more.frame_id)
        start = Packet.from_bytes(first.image.packet)
        whole = Packet(start.model_id, (*start.layers, *more.layers)).to_bytes()
        assert int.from_bytes(whole[-4:], "little") == more.packet_crc32c
        line = lines[f"{more.frame_id:016x}"]
        assert line["predictions"][0]["label"] == "more"
        assert line["packet_bytes"] == len(first.image.packet) + more.ByteSize()


def test_layers_that_do_not_fit_the_rate_leave_the_answer_so_far(photos, words, canned, out):
    canned.progressive = True
    canned.frame_usual = need_more(3)
    assert run(photos, *words, "--rate", "mid", "--confidence", 0.8) == 0
    assert canned.more == []
    assert {line["predictions"][0]["label"] for line in out()} == {"car"}


def test_a_server_that_let_go_of_a_frame_gets_it_whole(photos, words, canned, out):
    canned.progressive = True
    canned.frame_script.append(need_more(2))
    lost = grpc.StatusCode.INVALID_ARGUMENT
    canned.answer_more = lambda more: fail_frame(lost, "UNKNOWN_FRAME")(more, None)
    assert run(photos, *words, "--confidence", 0) == 0
    assert len(out()) == 8
    first = canned.frames[0].frame_id
    tries = [offer for offer, each in zip(canned.offers, canned.frames) if each.frame_id == first]
    assert [offer is not None for offer in tries] == [True, False]


def test_a_server_without_a_calibration_gets_frames_as_usual(photos, words, canned, out):
    assert run(photos, *words, "--confidence", 0.8) == 0
    assert set(canned.offers) == {None}
    assert {line["layers"] for line in out()} == {2}


# ---------------------------------------------------------------- sources that live


def test_a_watched_folder_gives_what_is_added(photos, words, canned, out, tmp_path):
    client = started(photos, *words, "--watch")
    until(lambda: len(out_safe(out)) == 8)
    photo(tmp_path, "late.jpg", seed=50)
    os.replace(tmp_path / "late.jpg", photos / "late.jpg")
    until(lambda: len(out_safe(out)) == 9)
    client.send_signal(signal.SIGTERM)
    text, err = client.communicate(timeout=60)
    assert client.returncode == 0, err
    assert json.loads(text)["answered"] == 9


def write_video(path: Path, frames: int = 20, fps: int = 10) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 80, "yuvj420p"
        for number in range(frames):
            picture = synthetic_views(1, 96, seed=number)[0][:80]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_gives_frames_at_the_rate_asked_for(words, tmp_path, out, capsys):
    video = write_video(tmp_path / "v.mkv")
    assert run(video, *words, "--fps", 2) == 0
    assert [line["source"].rpartition("#")[2] for line in out()] == ["0", "1", "2", "3"]
    assert run(video, *words, "--fps", 2) == 0
    assert len(out()) == 4
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert run(tmp_path / "bad.mp4", *words) == 1
    assert "bad.mp4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_camera_that_is_unplugged_is_opened_again(words, tmp_path, out):
    """A network camera: MJPEG over TCP that ends in the middle of a picture, is gone for a while, and comes back."""
    import io
    import socket

    pytest.importorskip("av")
    pictures = []
    for number in range(6):
        data = io.BytesIO()
        Image.fromarray(synthetic_views(1, 96, seed=number)[0]).save(data, "JPEG")
        pictures.append(data.getvalue())
    held = socket.create_server(("127.0.0.1", 0))
    url = f"tcp://127.0.0.1:{held.getsockname()[1]}"

    log = tmp_path / "stderr"

    def serve_once(cut_short: bool) -> None:
        before = len(out_safe(out))
        peer, _ = held.accept()

        def seen() -> bool:  # answers to frames of the first connection may still come during the second
            return len(out_safe(out)) >= before + 2 and (cut_short or "gives frames again" in log.read_text())

        with peer:
            for _ in range(1000):
                if seen():
                    break
                for picture in pictures:
                    peer.sendall(picture)
                time.sleep(0.03)
            if cut_short:
                peer.sendall(pictures[0][:500])
        assert seen()

    with log.open("w") as stderr:
        client = started(url, *words, "--fps", 20, stderr=stderr)
    serve_once(cut_short=True)
    serve_once(cut_short=False)
    client.send_signal(signal.SIGTERM)
    client.communicate(timeout=60)
    held.close()
    assert "opening it again" in log.read_text()


def test_a_still_is_coded_small_until_the_link_is_known_and_at_the_best_rung_then(photos, words, canned, out, tmp_path):
    for number in range(8, 40):
        photo(photos, f"{number}.jpg", seed=number)
    still = make_tiny_still(tmp_path / "still")
    canned.bundles = [still]
    asked = ["--rate", "auto", "--in-flight", 1, "--deadline", 30, "--bundle", still.path]
    assert run(photos, *words, *asked) == 0
    rungs = [still.level(Packet.from_bytes(each.image.packet)) for each in canned.frames]
    assert rungs[0] == 1
    assert len(out()) == len(rungs) == 40


def test_a_slow_link_keeps_a_still_at_its_lowest_rung(photos, words, canned, tmp_path):
    still = make_tiny_still(tmp_path / "still")
    canned.bundles = [still]
    asked = ["--rate", "auto", "--max-kbps", 1, "--deadline", 3, "--bundle", still.path, "--drain", 20]
    run(photos, *words, *asked)
    rungs = [still.level(Packet.from_bytes(each.image.packet)) for each in canned.frames]
    assert set(rungs) == {1}

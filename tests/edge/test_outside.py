"""What is outside: webhooks, brokers, cameras, proxies, service managers, addresses with passwords in them."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from edge.cli import main
from edge.errors import ConnectionOptionsError
from edge.field.service_manager import service_manager
from edge.field.sources import open_sources
from edge.field.spool_file import spool_facts
from edge.field.video import Pace
from edge.field.watch import WatchedFolder
from edge.line.image_files import search
from edge.line.uplink import Line
from edge.line.web import WebError, open_url
from tests.edge.canned import Canned
from tests.tiny_bundle import photo
from tests.waiting import until
from thinwire.proxies import proxy_for, proxy_of
from thinwire.text import safe_text, shown, shown_address, without_secrets
from thinwire.v1 import inference_pb2_grpc


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        photo(folder, f"{number}.jpg", seed=number)
    return folder


@pytest.fixture
def words(canned, tiny_bundle, tmp_path) -> list[str]:
    where = ["--server", canned.address, "--bundle", str(tiny_bundle.path), "--spool", str(tmp_path / "s.db")]
    return ["--labels", "cat,dog", "--summary", *where]


@contextlib.contextmanager
def listener(said: bytes) -> Iterator[str]:
    """A port where something says `said` to whoever comes, reads a little, and hangs up."""
    held = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = held.accept()
                with peer, contextlib.suppress(OSError):
                    peer.sendall(said)
                    peer.shutdown(socket.SHUT_WR)
                    peer.settimeout(1)
                    peer.recv(4096)

    threading.Thread(target=answer, daemon=True).start()
    try:
        yield f"127.0.0.1:{held.getsockname()[1]}"
    finally:
        held.close()


class Web:
    """A web server whose `answer(handler)` decides; requests: (method, path, headers, body)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict, bytes]] = []
        self.answer: Callable[[http.server.BaseHTTPRequestHandler], None] = lambda handler: ok(handler)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.requests.append((self.command, self.path, dict(self.headers), body))
                outer.answer(self)

            do_GET = do_POST = do_CONNECT = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def ok(handler, body: bytes = b"", kind: str = "text/plain", code: int = 200, **headers: str) -> None:
    handler.send_response(code)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def web():
    web = Web()
    yield web
    web.close()


# ---------------------------------------------------------------- outputs

NOT_HTTP = {
    "ssh": b"SSH-2.0-x\r\n",
    "tls": b"\x15\x03\x01\x00\x02\x02\x46",
    "nothing": b"",
    "redis": b"-ERR unknown command\r\n",
    "mysql": b"\x4a\x00\x00\x00\x0a8.0.36\x00",
    "endless header": b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 70000,
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    "odd length": b"HTTP/1.1 200 OK\r\nContent-Length: -x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "odd status": b"HTTP/1.1 9999 \xff\xfe\r\n\r\n",
    "escape": b"\x1b[2Jpwned\r\n\r\n",
}


def test_whatever_answers_at_a_webhook_is_a_pause_and_the_other_outputs_get_all(photos, words, tmp_path, capsys):
    with contextlib.ExitStack() as held:
        hooks = []
        for said in NOT_HTTP.values():
            hooks += ["--webhook", f"http://user:hunter2@{held.enter_context(listener(said))}/x"]
        assert main(["run", str(photos), *words, *hooks, "--out", str(tmp_path / "o.jsonl")]) == 1
    said = capsys.readouterr()
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 3
    facts = json.loads(said.out.splitlines()[-1])
    assert facts["answered"] == 3
    assert facts["unwritten"] >= 3 * 9  # a reply of status 200 with an odd body may count as taken
    assert set(facts["unwritten_by"].values()) == {3}
    assert "it speaks TLS: write https://" in said.err
    assert "SSH-2.0-x" in said.err
    assert "\x1b" not in said.err
    assert "hunter2" not in said.err + said.out
    assert b"hunter2" not in (tmp_path / "s.db").read_bytes()


@pytest.mark.parametrize(
    "where", ["http://u:p@[::1/x", "http://h:port/x", "ftp://h/x", "http:///x", "h/x", "http://h:0/x"]
)
def test_addresses_that_are_none_are_refused_at_once_without_their_password(words, photos, where, capsys):
    assert main(["run", str(photos), *words, "--webhook", where]) == 2
    err = capsys.readouterr().err
    assert "is not a web address" in err
    assert "u:p@" not in err


def test_outputs_that_lack_results_are_counted_and_a_later_run_writes_them(photos, words, web, tmp_path, capsys):
    web.answer = lambda handler: ok(handler, code=503)
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    out = tmp_path / "missing" / "o.jsonl"
    (tmp_path / "missing").write_text("a file where a folder should be")
    outputs = ["--webhook", f"http://{web.address}/x?token=hunter2", "--out", str(full), "--out", str(out)]
    assert main(["run", str(photos), *words, *outputs]) == 1
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["answered"], facts["unwritten"]) == (3, 9)
    assert len(facts["unwritten_by"]) == 3
    web.answer = ok
    (tmp_path / "missing").unlink()
    full.unlink()
    assert main(["run", str(photos), *words, *outputs]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["known"], facts["unwritten"]) == (3, 0)
    assert len(out.read_text().splitlines()) == 3
    spool = words[words.index("--spool") + 1]
    assert main(["status", "--spool", spool]) == 0
    assert "hunter2" not in capsys.readouterr().out


def test_an_output_that_hangs_holds_up_no_other(photos, words, tmp_path, monkeypatch):
    monkeypatch.setattr("edge.field.sinks.Delivery.close.__defaults__", (0.5,))
    held = socket.create_server(("127.0.0.1", 0))  # accepts, and never says a word
    with held:
        hook = f"http://127.0.0.1:{held.getsockname()[1]}/"
        assert main(["run", str(photos), *words, "--webhook", hook, "--out", str(tmp_path / "o.jsonl")]) == 1
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 3


def test_out_dash_is_stdout(photos, words, tmp_path, capsys):
    assert main(["run", str(photos), *words, "--out", "-", "--out", str(tmp_path / "o.jsonl")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["ok"] for line in lines[:3]] == [True] * 3
    assert not Path("-").exists()


# ---------------------------------------------------------------- proxies


PROXIES = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:2"}
RULES = [
    ("http://127.0.0.1:9000/x", "", False),
    ("http://localhost/x", "", False),
    ("http://[::1]:80/x", "", False),
    ("http://[::ffff:127.0.0.1]/", "", False),
    ("http://hooks.example.org/x", "", True),
    ("http://hooks.example.org/x", "example.org", False),
    ("http://hooks.example.org/x", ".example.org", False),
    ("http://badexample.org/x", "example.org", True),
    ("http://10.1.2.3/x", "10.0.0.0/8", False),
    ("http://11.1.2.3/x", "10.0.0.0/8", True),
    ("http://h:8080/", "h:8080", False),
    ("http://h:8081/", "h:8080", True),
    ("https://h/", "*", False),
    ("https://localhost.example.org/", "", True),
]


@pytest.mark.parametrize(("url", "no_proxy", "through"), RULES)
def test_one_rule_decides_about_proxies(monkeypatch, url, no_proxy, through):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**PROXIES, "no_proxy": no_proxy}.items():
        monkeypatch.setenv(name, value)
    assert (proxy_of(url) is not None) == through
    host = url.split("/")[2].partition("]")[0].strip("[") if "[" in url else url.split("/")[2].partition(":")[0]
    port = 8081 if "8081" in url else 8080 if "8080" in url else None
    assert (proxy_for("grpc", host, port) is not None) == through
    if port is None and "[::ffff" not in url:
        line = Line(f"[{host}]:443" if ":" in host else f"{host}:443")
        assert (("grpc.enable_http_proxy", 0) in line.options) != through


def test_a_webhook_on_this_machine_does_not_go_to_the_proxy_and_others_do(photos, words, web, monkeypatch):
    proxy = Web()
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    hooks = ["--webhook", f"http://{web.address}/own", "--webhook", "http://hooks.invalid/far"]
    assert main(["run", str(photos), *words, *hooks]) == 0
    proxy.close()
    assert {path for _, path, _, _ in web.requests} == {"/own"}
    assert {path for _, path, _, _ in proxy.requests} == {"http://hooks.invalid/far"}


# ---------------------------------------------------------------- cameras and snapshots


def jpeg(tmp_path: Path) -> bytes:
    return photo(tmp_path, "snapshot.jpg", seed=1).read_bytes()


def challenge(handler, scheme: str, body: bytes) -> None:
    if handler.headers.get("Authorization", "").startswith(scheme):
        ok(handler, body, "image/jpeg")
    else:
        ok(handler, code=401, WWW_Authenticate=f'{scheme} realm="cam", nonce="n", qop="auth"')


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "Basic", "Digest"])
def test_snapshots_are_polled_by_run_and_taken_by_classify(words, web, tmp_path, kind, capsys):
    data, line = jpeg(tmp_path), words[words.index("--server") :][:4]
    web.answer = lambda handler: challenge(handler, kind, data) if "/" not in kind else ok(handler, data, kind)
    url = f"http://admin:hunter2@{web.address}/snap.jpg"
    assert main(["classify", url, "--labels", "a,b", "--json", *line]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["image"] == f"http://{web.address}/snap.jpg"
    out = tmp_path / "o.jsonl"
    taken: list[int] = []

    def stop_when_all_is_answered() -> None:
        same = 0
        while same < 3:  # looks in a row at which nothing waited and nothing came
            before = out.read_bytes() if out.exists() else b""
            time.sleep(0.5)
            waiting = spool_facts(words[words.index("--spool") + 1])["waiting_frames"]
            quiet = waiting == 0 and out.exists() and out.read_bytes() == before and before.count(b"\n") >= 3
            same = same + 1 if quiet else 0
        os.kill(os.getpid(), 15)

    def usual(handler, answer=web.answer) -> None:
        taken.append(1)
        if len(taken) == 13:
            threading.Thread(target=stop_when_all_is_answered, daemon=True).start()
        if len(taken) > 12:
            ok(handler, code=503)  # no frame is under way when the signal comes
        else:
            answer(handler)

    web.answer = usual
    assert main(["run", url, *words, "--fps", "20", "--out", str(out)]) == 0
    lines = [json.loads(each) for each in out.read_text().splitlines()]
    assert len(lines) >= 3
    assert {each["source"] for each in lines} == {f"http://{web.address}/snap.jpg"}
    text = "".join((*capsys.readouterr(), said.err, out.read_text()))
    assert "hunter2" not in text
    assert b"hunter2" not in (tmp_path / "s.db").read_bytes()


def test_a_lost_camera_is_in_the_status_with_its_time_and_without_its_password(
    words, tmp_path, dead_address, capsys, monkeypatch
):
    pytest.importorskip("av")
    urls = [f"{scheme}://admin:hunter2@{dead_address}/x?token=secret7" for scheme in ("rtsp", "http", "tcp")]
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)

    def stop_when_all_are_lost() -> None:
        until(lambda: said.getvalue().count("opening it again") == 3)
        time.sleep(0.3)  # what is said comes before what is noted
        os.kill(os.getpid(), 15)

    threading.Thread(target=stop_when_all_are_lost, daemon=True).start()
    assert main(["run", *urls, *words, "--out", str(tmp_path / "o.jsonl")]) == 0
    spool = words[words.index("--spool") + 1]
    err = said.getvalue()
    capsys.readouterr()
    assert err.count("opening it again until it is back") == 3
    assert main(["status", "--spool", spool, "--json"]) == 0
    text = capsys.readouterr().out
    lost = json.loads(text)["lost_sources"]
    assert set(lost) == {f"{scheme}://{dead_address}/x?token=***" for scheme in ("rtsp", "http", "tcp")}
    assert all(0 <= time.time() - each["since"] < 200 for each in lost.values())
    assert main(["status", "--spool", spool]) == 0
    text += err + capsys.readouterr().out
    assert not any(secret in text for secret in ("hunter2", "secret7", "admin"))


def test_classify_goes_on_beside_an_address_that_gives_no_picture(photos, words, web, capsys):
    web.answer = lambda handler: ok(handler, b"<html>", "text/html")
    line = words[words.index("--server") :][:4]
    assert main(["classify", f"http://u:hunter2@{web.address}/", str(photos), "--labels", "a,b", "--json", *line]) == 1
    said = capsys.readouterr()
    assert [json.loads(each)["ok"] for each in said.out.splitlines()] == [False, True, True, True]
    assert "hunter2" not in said.out + said.err


def test_recordings_that_were_joined_are_read_to_their_end():
    def taken(times):
        pace = Pace(2)
        return [at for at in times if pace.wants(at)]

    assert taken([0, 0.5, 1.0, 0, 0.5, 1.0]) == [0, 0.5, 1.0, 0, 0.5, 1.0]
    assert taken([100, 100.5, 3, 3.2, 3.5]) == [100, 100.5, 3, 3.5]
    assert taken([0, 0.04, 0.02, 0.06, 0.5]) == [0, 0.5]  # frames out of order are no new clock
    assert taken([0, 3600, 3600.1, 3600.5]) == [0, 3600, 3600.5]


# ---------------------------------------------------------------- folders


def test_a_picture_that_is_renamed_over_again_and_again_gives_frames(tmp_path):
    folder = tmp_path / "w"
    folder.mkdir()
    pictures = [photo(tmp_path, f"{number}.jpg", seed=number).read_bytes() for number in range(5)]
    stop, shots = threading.Event(), []
    watch = WatchedFolder(str(folder), "q")
    thread = threading.Thread(target=lambda: shots.extend(watch.shots(stop)), daemon=True)
    thread.start()
    place = 0

    def replaced() -> bool:
        nonlocal place
        (tmp_path / "part").write_bytes(pictures[place % 5])
        os.replace(tmp_path / "part", folder / "latest.jpg")
        place += 1
        time.sleep(0.28)
        return len(shots) >= 3

    until(replaced)
    stop.set()
    thread.join(60)
    assert len({shot.key for shot in shots}) == len(shots)
    assert all(shot.image in pictures for shot in shots if isinstance(shot.image, bytes))


def test_a_file_that_is_still_written_is_waited_for_and_rewritten_ones_are_new(tmp_path, monkeypatch):
    monkeypatch.setattr("edge.field.watch.SETTLED_S", 2.0)  # far longer than a pause of the writer on a busy machine
    folder = tmp_path / "w"
    folder.mkdir()
    data = photo(tmp_path, "a.jpg", seed=1).read_bytes()
    stop, shots = threading.Event(), []
    watch = WatchedFolder(str(folder), "q")

    def take() -> None:
        for shot in watch.shots(stop):
            shots.append(shot.image if isinstance(shot.image, bytes) else shot.image.read_bytes())

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    with open(folder / "a.jpg", "wb") as file:
        for start in range(0, len(data), len(data) // 8 + 1):
            file.write(data[start : start + len(data) // 8 + 1])
            file.flush()
            time.sleep(0.1)
    until(lambda: shots)
    assert shots == [data]
    (folder / "a.jpg").write_bytes(data + b"more")
    (folder / "deep").mkdir()
    shutil.copy(folder / "a.jpg", folder / "deep" / "b.jpg")
    until(lambda: len(shots) == 3)
    stop.set()
    thread.join(60)


def test_watching_many_old_files_costs_little(tmp_path):
    """Looks are as far apart as 30 times their cost: what the thread uses is a small share of the time."""
    folder = tmp_path / "w"
    folder.mkdir()
    for number in range(3000):
        (folder / f"{number}.jpg").touch()
    os.utime(folder, (1, 1))
    stop, costs = threading.Event(), []
    watch = WatchedFolder(str(folder), "q")

    def take() -> None:
        for place, _ in enumerate(watch.shots(stop)):
            if place == 2999:
                costs.append((time.thread_time(), time.monotonic()))
        costs.append((time.thread_time(), time.monotonic()))

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    until(lambda: costs, 60)
    time.sleep(3)
    stop.set()
    thread.join(60)
    (cpu, wall), (cpu_end, wall_end) = costs
    assert (cpu_end - cpu) / (wall_end - wall) < 0.12


def test_what_a_folder_holds_beside_images_is_counted_and_said_once(photos, words, tmp_path, capsys):
    for name in ("a.heic", "b.HEIC", "c.jxl", "clip.mp4", "d.mts", "notes", ".hidden"):
        (photos / name).write_bytes(b"x")
    found = search([photos])
    assert dict(found.left_out) == {".heic": 2, ".jxl": 1, ".mp4": 1, ".mts": 1, "": 1}
    assert len(found.images) == 3
    assert main(["run", str(photos), *words, "--out", str(tmp_path / "o.jsonl")]) == 0
    err = capsys.readouterr().err
    assert err.count("left out") == 1
    assert "2 .heic" in err
    assert "name videos themselves" in err
    line = words[words.index("--server") :][:4]
    assert main(["classify", str(photos), "--labels", "a,b", *line]) == 0
    assert "2 .heic" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["mpg", "wmv", "3gp", "flv", "mts", "MPEG", "m2ts", "ogv"])
def test_endings_of_videos_are_known(ending, tmp_path):
    pytest.importorskip("av")
    import argparse

    args = argparse.Namespace(sources=[f"x.{ending}"], watch=False, fps=None)
    (source,) = open_sources(args, "q", print)
    assert type(source).__name__ == "Video"


# ---------------------------------------------------------------- addresses, text


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("rtsp://admin:hunter2@cam/x", "rtsp://cam/x"),
        ("http://admin:p@ss:w@cam:81/x?y=1", "http://cam:81/x?y=1"),
        ("rtsp://admin:hun#ter?2@cam:554/x", "rtsp://cam:554/x"),
        (
            "rtsp://cam/user=admin_password=hunter2_channel=1_stream=0.sdp",
            "rtsp://cam/user=***_password=***_channel=1_stream=0.sdp",
        ),
        ("https://h/x?api_key=abc&z=1#f", "https://h/x?api_key=***&z=1#f"),
        ("mqtt://h:1883/a@b", "mqtt://h:1883/a@b"),
        ("http://token@h/x", "http://h/x"),
        ("photos/a:b@c.jpg", "photos/a:b@c.jpg"),
    ],
)
def test_addresses_are_shown_without_secrets(address, wanted):
    assert shown_address(address) == wanted
    assert without_secrets(f"cannot open '{address}' now") == f"cannot open '{wanted}' now"


def test_text_is_made_safe_for_any_surrogate_and_control_character():
    for text in ("\udce9", "\ud800", "\udfff\ud800", "a\udc80\ud83d", b"\xff\xfe"):
        safe_text(text).encode("utf-8")
        shown(text).encode("utf-8")
    assert safe_text("é東\U0001f600") == "é東\U0001f600"
    assert shown("a\x1b[2J\n\u2028b") == "a�[2J��b"


@pytest.mark.parametrize("server", ["user:hunter2@host:50051", "http://user:hunter2@host:1", "u:hunter2@host"])
def test_a_server_address_with_a_password_is_refused_without_it(server):
    with pytest.raises(ConnectionOptionsError) as error:
        Line(server)
    assert "hunter2" not in str(error.value)


def test_web_errors_hold_no_secrets(dead_address):
    with pytest.raises(WebError) as error:
        open_url(f"http://admin:hunter2@{dead_address}/x?token=abc", 2)
    assert "hunter2" not in str(error.value)


# ---------------------------------------------------------------- the machine


def test_a_server_behind_a_socket_in_the_file_system(photos, words, tiny_bundle, tmp_path, capsys):
    path = tmp_path / "thinwire.sock"
    servicer = Canned([tiny_bundle])
    server = grpc.server(ThreadPoolExecutor(4))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        where = ["--server", f"unix:{path}"]
        assert main(["run", str(photos), *words, *where, "--out", str(tmp_path / "o.jsonl")]) == 0
        at = words.index("--bundle")
        assert main(["classify", str(photos), "--labels", "a,b", *words[at : at + 2], *where]) == 0
        assert Line(f"unix:{path}", token="t").local  # a token may go there
        main(["doctor", *words[at : at + 2], *where])
        assert f"{path} answers" in capsys.readouterr().out
    finally:
        server.stop(0).wait()
    assert main(["classify", str(photos), "--labels", "a,b", "--server", f"unix:{tmp_path}/no"]) == 2


@pytest.mark.parametrize("server", ["unix:", "unix:" + "x" * 200, "unix:a\0b"])
def test_paths_that_no_socket_can_have_are_refused(server):
    with pytest.raises(ConnectionOptionsError, match="unix:PATH"):
        Line(server)


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_ready_watchdog_and_stopping(photos, words, tmp_path, monkeypatch, abstract):
    name = f"thinwire-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        monkeypatch.setenv("WATCHDOG_USEC", "2000")
        assert main(["run", str(photos), *words, "--out", str(tmp_path / "o.jsonl")]) == 0
        manager.setblocking(False)
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(manager.recv(100).decode())
    assert heard[0] == "READY=1"
    assert heard.count("WATCHDOG=1") >= 2
    assert "STOPPING=1" in heard


def test_a_service_manager_that_is_not_there_or_not_ours_changes_nothing(tmp_path):
    for environment in ({}, {"NOTIFY_SOCKET": "odd"}, {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "x"}):
        tell = service_manager(environment)
        tell("READY=1")
        tell("WATCHDOG=1")

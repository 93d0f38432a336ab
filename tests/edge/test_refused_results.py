"""One result that a receiver refuses never blocks those behind it; a wrong address or login gives nothing up."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.cli import main
from edge.errors import OutputError
from edge.field.mqtt import MqttSink
from edge.field.sinks import WebhookSink
from edge.field.spool import Spool
from tests.edge.test_mqtt import fill
from tests.edge.test_outside import Web, ok
from tests.tiny_bundle import photo
from tests.waiting import until


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        photo(folder, f"{number}.jpg", seed=number)
    return folder


def number_of(body: bytes) -> int:
    return int(json.loads(body)["key"], 16)


def refused_in(spool: Spool) -> list[int]:
    path = spool.path.with_name(f"{spool.path.name}.refused.jsonl")
    if not path.exists():
        return []
    return [int(json.loads(line)["result"]["key"], 16) for line in path.read_text().splitlines()]


class Receiver:
    """Answers each result with the status that `status` gives for its number. taken: numbers that were accepted."""

    def __init__(self, web: Web, status: Callable[[int], int]) -> None:
        self.status, self.taken, self.asked, self._web = status, [], 0, web
        web.answer = self._answer

    def _answer(self, handler) -> None:
        number = number_of(self._web.requests[-1][3])
        code = self.status(number)
        self.asked += 1
        if code < 300:
            self.taken.append(number)
        ok(handler, code=code)


@pytest.mark.parametrize("code", [400, 413, 415, 422, 431])
def test_a_result_that_is_refused_is_kept_and_the_next_ones_go_on(web, tmp_path, code):
    receiver = Receiver(web, lambda number: code if number in (1, 3) else 200)
    with Spool(tmp_path / "s.db") as spool:
        sink = WebhookSink(f"http://{web.address}/x")
        spool.set_sinks([sink.name])
        fill(spool, 1, 2, 3, 4)
        assert sink.deliver(spool) == 4
        assert receiver.taken == [2, 4]
        assert refused_in(spool) == [1, 3]
        assert sink.refusals.count == 2
        assert f"HTTP {code}" in sink.refusals.why
        assert spool.unwritten() == {sink.name: 0}


@pytest.mark.parametrize("code", [401, 403, 404, 405, 410])
def test_what_concerns_the_address_gives_nothing_up_unless_a_later_result_is_taken(web, tmp_path, code):
    receiver = Receiver(web, lambda number: code)
    with Spool(tmp_path / "s.db") as spool:
        sink = WebhookSink(f"http://{web.address}/x")
        spool.set_sinks([sink.name])
        fill(spool, 1, 2, 3)
        with pytest.raises(OutputError, match=str(code)):
            sink.deliver(spool)
        assert refused_in(spool) == []
        assert spool.unwritten() == {sink.name: 3}
        receiver.status = lambda number: 200 if number != 1 else code  # a filter on the way dislikes the first
        assert sink.deliver(spool) == 3
        assert receiver.taken == [2, 3]
        assert refused_in(spool) == [1]


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503])
def test_a_receiver_that_is_busy_gets_the_same_result_again(web, tmp_path, code):
    receiver = Receiver(web, lambda number: code)
    with Spool(tmp_path / "s.db") as spool:
        sink = WebhookSink(f"http://{web.address}/x")
        spool.set_sinks([sink.name])
        fill(spool, 1, 2)
        with pytest.raises(OutputError, match=str(code)):
            sink.deliver(spool)
        assert receiver.asked == 1
        receiver.status = lambda number: 200
        assert sink.deliver(spool) == 2
        assert receiver.taken == [1, 2]
        assert refused_in(spool) == []


def test_a_redirect_is_no_refusal_and_is_told_with_its_target(web, tmp_path):
    def circle(handler) -> None:
        handler.send_response(301)
        handler.send_header("Location", "/x?token=hunter2")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web.answer = circle
    with Spool(tmp_path / "s.db") as spool:
        sink = WebhookSink(f"http://{web.address}/x")
        spool.set_sinks([sink.name])
        fill(spool, 1)
        with pytest.raises(OutputError, match="points to") as caught:
            sink.deliver(spool)
        assert "hunter2" not in str(caught.value)
        assert spool.unwritten() == {sink.name: 1}


def test_a_run_counts_what_was_refused_says_so_once_and_ends_with_1(photos, web, canned, tiny_bundle, tmp_path, capsys):
    ends = iter((413, 200, 422))
    web.answer = lambda handler: ok(handler, code=next(ends))
    words = ["--labels", "cat,dog", "--summary", "--server", canned.address, "--bundle", str(tiny_bundle.path)]
    words += ["--spool", str(tmp_path / "s.db"), "--webhook", f"http://u:hunter2@{web.address}/x", "--in-flight", "1"]
    assert main(["run", str(photos), *words]) == 1
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert (facts["answered"], facts["unwritten"], facts["results_refused"]) == (3, 0, 2)
    assert said.err.count("a result that is refused is kept in") == 1
    kept = tmp_path / "s.db.refused.jsonl"
    records = [json.loads(line) for line in kept.read_text().splitlines()]
    assert ["413" in records[0]["why"], "422" in records[1]["why"]] == [True, True]
    assert "hunter2" not in kept.read_text() + said.err + said.out
    assert main(["run", str(photos), *words]) == 0  # nothing new, and nothing waits
    assert main(["status", "--spool", str(tmp_path / "s.db")]) == 0


def test_refused_results_that_cannot_be_kept_wait(web, tmp_path):
    Receiver(web, lambda number: 422)
    with Spool(tmp_path / "s.db") as spool:
        (tmp_path / "s.db.refused.jsonl").mkdir()
        sink = WebhookSink(f"http://{web.address}/x")
        spool.set_sinks([sink.name])
        fill(spool, 1)
        with pytest.raises(OutputError, match="refused"):
            sink.deliver(spool)
        assert spool.unwritten() == {sink.name: 1}


@pytest.fixture
def mosquitto(tmp_path) -> Iterator[Callable[[str], int]]:
    """Starts a real broker with more lines of configuration; gives its port."""
    if (program := shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")) is None:
        pytest.skip("needs mosquitto")
    started = []

    def start(config: str) -> int:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (tmp_path / "acl").write_text("topic write answers\ntopic read #\n")
        (tmp_path / "acl").chmod(0o644)
        (tmp_path / "m.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n{config}\n")
        started.append(subprocess.Popen([program, "-c", tmp_path / "m.conf"], stderr=subprocess.DEVNULL))

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(listens)
        return port

    yield start
    for each in started:
        each.kill()
        each.wait()


def test_a_topic_that_the_broker_forbids_loses_nothing(mosquitto, tmp_path):
    """Over MQTT 3.1.1 brokers confirm a message that they throw away."""
    port = mosquitto(f"acl_file {tmp_path / 'acl'}")
    with Spool(tmp_path / "s.db") as spool:
        allowed, forbidden = (MqttSink(f"mqtt://127.0.0.1:{port}/{topic}") for topic in ("answers", "elsewhere"))
        spool.set_sinks([allowed.name, forbidden.name])
        fill(spool, 1, 2)
        assert allowed.deliver(spool) == 2
        with pytest.raises(OutputError, match="ot authori"):
            forbidden.deliver(spool)
        assert spool.unwritten() == {allowed.name: 0, forbidden.name: 2}
        allowed.close()
        forbidden.close()


def test_a_message_that_is_too_large_for_the_broker_does_not_block_the_next(mosquitto, tmp_path):
    port = mosquitto("max_packet_size 400")
    with Spool(tmp_path / "s.db") as spool:
        sink = MqttSink(f"mqtt://127.0.0.1:{port}/answers")
        spool.set_sinks([sink.name])
        for number, text in ((1, "small"), (2, "x" * 1000), (3, "small")):
            key = number.to_bytes(16, "big")
            spool.accept(key, "x", b"p", "{}", 0.0)
            spool.finish(key, {"key": key.hex(), "final": True, "text": text})
        assert sink.deliver(spool) == 3
        assert refused_in(spool) == [2]
        sink.close()

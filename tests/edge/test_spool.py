"""The spool on real disks: killed writers, full and read-only disks, damaged files, clocks that jump."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from edge.errors import OutputError, SpoolBusy, SpoolDiskFull, SpoolError, SpoolFull, SpoolReadOnly
from edge.field.sinks import Delivery, FileSink, StreamSink, WebhookSink
from edge.field.spool import ROW_BYTES, Spool
from edge.field.spool_file import spool_facts
from tests.tiny_disk import mounted_disk

ROOT = Path(__file__).resolve().parents[2]
QUESTION = json.dumps({"labels": ["cat", "dog"]})


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def put(spool: Spool, number: int, size: int = 400, **more) -> bool:
    return spool.accept(key(number), f"{number}.jpg", bytes([number % 251]) * size, QUESTION, 1000.0 + number, **more)


def put_until(spool: Spool, error: type[Exception], says: str, number: int = 0) -> int:
    """Accepts frames until the error comes; returns the first number that was not accepted."""
    while number < 2000:
        try:
            put(spool, number)
        except error as caught:
            if says in str(caught):
                return number
            raise
        number += 1
    raise AssertionError("nothing stopped it")


def answer(number: int, final: bool = True) -> dict:
    best = {"label": "cat", "probability": 0.5, "similarity": 0.25}
    return {"key": key(number).hex(), "final": final, "ok": True, "source": f"{number}.jpg", "predictions": [best]}


@pytest.fixture
def spool(tmp_path):
    with Spool(tmp_path / "spool.db") as spool:
        yield spool


def numbers(spool: Spool, **options) -> list[int]:
    return [int.from_bytes(each.key, "big") for each in spool.waiting(1000, **options)]


# ---------------------------------------------------------------- frames


def test_a_frame_waits_until_it_has_its_one_result(spool):
    assert put(spool, 1)
    assert not put(spool, 1)
    (frame,) = spool.waiting(10)
    assert (frame.source, frame.captured_at, frame.packet) == ("1.jpg", 1001.0, b"\x01" * 400)
    assert spool.question(frame.question) == {"labels": ["cat", "dog"]}
    assert spool.finish(key(1), answer(1))
    assert not spool.finish(key(1), answer(1))
    assert not spool.finish(key(2), answer(2))
    assert spool.waiting(10) == []
    assert not put(spool, 1)
    assert spool.knows(key(1))


def test_packets_of_other_bundles_lie_beside_the_first_and_count(tmp_path):
    with Spool(tmp_path / "s.db") as spool:
        put(spool, 1)
        before = spool.held_bytes
        put(spool, 2, others=[b"x" * 300, b"", b"y"])
        assert spool.held_bytes - before == before + 301 + 3 * 4
    with Spool(tmp_path / "s.db") as spool:
        one, two = spool.waiting(5)
        assert (one.others, two.others) == ((), (b"x" * 300, b"", b"y"))
        assert spool.finish(key(2), answer(2))
        spool.finish(key(1), answer(1))
        held = spool.held_bytes
    with Spool(tmp_path / "s.db") as spool:
        assert spool.held_bytes == held, "what is counted while it runs is what lies there"


def test_a_spool_of_an_earlier_release_is_taken_over(tmp_path):
    with Spool(tmp_path / "s.db") as spool:
        put(spool, 1)
    db = sqlite3.connect(tmp_path / "s.db")
    db.execute("ALTER TABLE frames DROP COLUMN others")
    db.commit()
    db.close()
    with Spool(tmp_path / "s.db") as spool:
        put(spool, 2, others=[b"more"])
        assert [frame.others for frame in spool.waiting(5)] == [(), (b"more",)]
    assert spool_facts(tmp_path / "s.db")["waiting_bytes"] == 2 * 400 + 8


def test_frames_that_can_still_be_in_time_go_first(tmp_path):
    now = [5000.0]
    with Spool(tmp_path / "s.db", clock=lambda: now[0], monotonic=lambda: now[0]) as spool:
        for number in range(6):
            put(spool, number)
            now[0] += 1
        assert numbers(spool) == [0, 1, 2, 3, 4, 5]
        assert numbers(spool, fresh_s=2.5) == [4, 5, 0, 1, 2, 3]
        assert [each.key for each in spool.waiting(2, without={key(4)}, fresh_s=2.5)] == [key(5), key(0)]


def test_a_reopened_spool_holds_the_same(tmp_path):
    with Spool(tmp_path / "s.db") as spool:
        for number in range(5):
            put(spool, number)
        spool.finish(key(3), answer(3))
        spool.note("run.link", {"up": True})
        held, device = spool.held_bytes, spool.device
    with Spool(tmp_path / "s.db") as spool:
        assert numbers(spool) == [0, 1, 2, 4]
        assert (spool.held_bytes, spool.device, spool.waiting_frames) == (held, device, 4)
        assert not put(spool, 3)
        assert spool.noted("run.link") == {"up": True}


KILLED = """
import sys
from edge.field.spool import Spool
spool = Spool(sys.argv[1])
number = 0
while True:
    spool.accept(number.to_bytes(16, "big"), "x", bytes(400), "{}", 0.0)
    if number % 3 == 0:
        spool.finish(number.to_bytes(16, "big"), {"key": number.to_bytes(16, "big").hex(), "final": True})
    print(number, flush=True)
    number += 1
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    path = tmp_path / "s.db"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, env=env)
    for line in writer.stdout:
        if int(line) >= 40:
            break
    with pytest.raises(SpoolBusy, match="another process"):
        Spool(path)
    assert spool_facts(path)["running"]
    writer.send_signal(signal.SIGKILL)
    last = max([40, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    writer.wait()
    with Spool(path) as spool:
        assert spool.recovered is None
        kept = numbers(spool)
        assert [n for n in range(last + 1) if n % 3] == [n for n in kept if n <= last and n % 3]
        assert all(spool.knows(key(n)) for n in range(last + 1))
        spool.set_sinks(["s"])
        lines, _ = spool.undelivered("s", 10_000)
        assert len({line for _, line in lines}) == len(lines) >= last // 3


# ---------------------------------------------------------------- bounds


def test_a_full_spool_refuses_and_keeps_what_it_accepted(tmp_path):
    with Spool(tmp_path / "s.db", max_bytes=1 << 16) as spool:
        taken = put_until(spool, SpoolFull, "drop-oldest")
        assert taken == (1 << 16) // (400 + ROW_BYTES)
        assert numbers(spool) == list(range(taken))
        for number in range(2):
            spool.finish(key(number), {"key": "k", "final": True})
        assert put(spool, 5000)


def test_a_spool_that_drops_the_oldest_says_so_in_the_results(tmp_path):
    with Spool(tmp_path / "s.db", max_bytes=1 << 16, when_full="drop-oldest") as spool:
        for number in range(100):
            put(spool, number, size=1500)
        spool.set_sinks(["s"])
        lines = [json.loads(line) for _, line in spool.undelivered("s", 1000)[0]]
        assert {line["error"]["reason"] for line in lines} == {"SPOOL_FULL"}
        dropped = [int(line["key"], 16) for line in lines]
        assert dropped == list(range(len(dropped)))
        assert dropped + numbers(spool) == list(range(100))
        assert spool.held_bytes <= 1 << 16


def test_old_frames_expire_with_a_result(tmp_path):
    now = [5000.0]
    with Spool(tmp_path / "s.db", max_age_s=60, clock=lambda: now[0], monotonic=lambda: now[0]) as spool:
        put(spool, 1)
        now[0] += 50
        put(spool, 2)
        assert spool.expire() == 0
        now[0] += 20
        assert spool.expire() == 1
        spool.set_sinks(["s"])
        ((_, line),), _ = spool.undelivered("s")
        assert json.loads(line)["error"]["reason"] == "EXPIRED"
        assert numbers(spool) == [2]


@pytest.mark.parametrize("step_s", [1.6e9, -1.6e9])
def test_a_clock_that_is_set_while_running_ages_nothing(tmp_path, step_s):
    wall, mono = [1.7e9], [10.0]
    with Spool(tmp_path / "s.db", max_age_s=60, clock=lambda: wall[0], monotonic=lambda: mono[0]) as spool:
        put(spool, 1)
        wall[0] += step_s + 30
        mono[0] += 30
        assert spool.expire() == 0
        wall[0] += 40
        mono[0] += 40
        assert spool.expire() == 1


def test_a_clock_that_went_back_between_runs_keeps_no_frame_for_ever(tmp_path):
    wall = [1.7e9]
    clocks = {"clock": lambda: wall[0], "monotonic": lambda: wall[0]}
    with Spool(tmp_path / "s.db", max_age_s=60, **clocks) as spool:
        put(spool, 1)
    wall[0] = 0.0  # no battery: the device starts in 1970 again
    with Spool(tmp_path / "s.db", max_age_s=60, **clocks) as spool:
        assert spool.expire() == 0
        wall[0] += 61
        assert spool.expire() == 1


# ---------------------------------------------------------------- bad disks


def test_sqlite_without_room_is_a_full_disk(spool):
    """SQLite's own bound gives the error of a full disk, on every machine."""
    put(spool, 0)
    pages = spool._db.execute("PRAGMA page_count").fetchone()[0]
    spool._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    taken = put_until(spool, SpoolDiskFull, "disk is full", 1)
    assert numbers(spool) == list(range(taken))
    spool._db.execute("PRAGMA max_page_count = 100000")
    assert put(spool, 500)


@pytest.fixture
def tiny_disk(tmp_path):
    with mounted_disk(tmp_path / "disk", "256k") as folder:
        yield folder


def test_a_disk_that_fills_up_loses_nothing_and_goes_on_when_freed(tiny_disk):
    ballast = tiny_disk / "ballast"
    with Spool(tiny_disk / "s.db") as spool:
        put(spool, 0)
        ballast.write_bytes(bytes(100_000))
        taken = put_until(spool, SpoolDiskFull, "free", 1)
        ballast.unlink()
        assert put(spool, 5000)
        assert numbers(spool) == [*range(taken), 5000]
        spool.set_sinks(["file"])
    with Spool(tiny_disk / "s.db") as spool:
        assert numbers(spool) == [*range(taken), 5000]


def test_a_disk_that_turns_read_only_is_told(tiny_disk):
    with Spool(tiny_disk / "s.db") as spool:
        put(spool, 0)
    remount = ["mount", "-o", "remount,ro", str(tiny_disk)]
    subprocess.run(remount, check=True)
    with pytest.raises(SpoolReadOnly, match="--spool"):
        Spool(tiny_disk / "s.db")
    assert spool_facts(tiny_disk / "s.db")["waiting_frames"] == 1


def test_a_place_that_takes_no_files_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SpoolReadOnly, match="--spool"):
        Spool(tmp_path / "file" / "s.db")
    with pytest.raises(SpoolError, match="no spool"):
        spool_facts(tmp_path / "none.db")


@pytest.mark.parametrize("damage", ["header", "middle", "empty", "text"])
def test_a_damaged_spool_is_set_aside_and_what_can_be_read_is_kept(tmp_path, damage):
    path = tmp_path / "s.db"
    with Spool(path) as spool:
        for number in range(300):
            put(spool, number)
    data = bytearray(path.read_bytes())
    assert len(data) > 100_000
    if damage == "header":
        data[:100] = bytes(100)
    elif damage == "middle":
        data[40_000:60_000] = os.urandom(20_000)
    path.write_bytes({"empty": b"", "text": b"not a database\n" * 1000}.get(damage, bytes(data)))
    with Spool(path) as spool:
        kept = numbers(spool)
        assert put(spool, 1000)
        if damage == "empty":
            assert spool.recovered is None  # an empty file is an empty database
            return
        assert "is damaged" in spool.recovered
        aside = next(path for path in tmp_path.glob("s.db.damaged-*") if not path.name.endswith(("-wal", "-shm")))
        assert str(aside) in spool.recovered
        if damage == "middle":
            assert 100 < len(kept) < 300
            assert sorted(kept) == kept
    with Spool(path) as spool:
        assert spool.recovered is None


# ---------------------------------------------------------------- results


def fill(spool: Spool, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        put(spool, number)
        spool.finish(key(number), answer(number))


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
@pytest.mark.parametrize("cut", range(0, 401, 57))
def test_a_file_gets_each_result_once_wherever_the_writer_died(tmp_path, name, cut):
    """The lines were written, the spool does not know: as after kill -9, or a power cut that tore the last line."""
    out = tmp_path / "out" / name
    with Spool(tmp_path / "s.db") as spool:
        sink = FileSink(out)
        spool.set_sinks([sink.name])
        fill(spool, 3)
        assert sink.deliver(spool) == 3
        before = out.stat().st_size
        fill(spool, 4, 3)
        told = spool.delivered
        spool.delivered = lambda *_: None
        FileSink(out).deliver(spool)
        spool.delivered = told
        os.truncate(out, min(out.stat().st_size, before + cut))
    with Spool(tmp_path / "s.db") as spool:
        sink = FileSink(out)
        spool.set_sinks([sink.name])
        fill(spool, 2, 7)
        while sink.deliver(spool):
            pass
    lines = out.read_text().splitlines()
    if name.endswith(".csv"):
        assert lines[0].startswith("key,final,ok,source,")
        assert [line.split(",")[0] for line in lines[1:]] == [key(n).hex() for n in range(9)]
        assert ",cat,0.5,0.25," in lines[1]
    else:
        assert [json.loads(line)["key"] for line in lines] == [key(n).hex() for n in range(9)]


def test_lines_that_the_spool_could_not_note_are_not_written_again(tmp_path, monkeypatch):
    """The disk was full for the spool, not for the file."""
    out = tmp_path / "out.jsonl"
    with Spool(tmp_path / "s.db") as spool:
        sink = FileSink(out)
        spool.set_sinks([sink.name])
        for start in (0, 3):  # without and with an earlier confirmation
            fill(spool, 3, start)
            with monkeypatch.context() as patch:
                patch.setattr(spool, "delivered", lambda *_: (_ for _ in ()).throw(SpoolDiskFull("full")))
                with pytest.raises(SpoolDiskFull):
                    sink.deliver(spool)
            sink.deliver(spool)
    assert [json.loads(line)["key"] for line in out.read_text().splitlines()] == [key(n).hex() for n in range(6)]


def test_a_new_spool_beside_old_results_repeats_none(tmp_path):
    out = tmp_path / "out.jsonl"
    for turn in range(2):
        with Spool(tmp_path / f"{turn}.db") as spool:
            sink = FileSink(out)
            spool.set_sinks([sink.name])
            fill(spool, 3 + turn)
            sink.deliver(spool)
    assert [json.loads(line)["key"] for line in out.read_text().splitlines()] == [key(n).hex() for n in range(4)]


def test_a_file_that_was_rotated_away_begins_anew(tmp_path):
    out = tmp_path / "out.jsonl"
    with Spool(tmp_path / "s.db") as spool:
        sink = FileSink(out)
        spool.set_sinks([sink.name])
        fill(spool, 2)
        sink.deliver(spool)
        out.rename(tmp_path / "old.jsonl")
        fill(spool, 2, 2)
        sink.deliver(spool)
    assert [json.loads(line)["key"] for line in out.read_text().splitlines()] == [key(2).hex(), key(3).hex()]


def test_results_stay_until_every_output_has_them(tmp_path, capsys):
    with Spool(tmp_path / "s.db") as spool:
        bad, good = FileSink(tmp_path / "f" / "x"), StreamSink()
        (tmp_path / "f").touch()
        spool.set_sinks([bad.name, good.name])
        fill(spool, 2)
        with pytest.raises(OutputError, match="cannot be written"):
            bad.deliver(spool)
        assert good.deliver(spool) == 2
        assert good.deliver(spool) == 0
        held = spool.held_bytes
        (tmp_path / "f").unlink()
        assert bad.deliver(spool) == 2
        assert (held > 0, spool.held_bytes) == (True, 0)
    assert len(capsys.readouterr().out.splitlines()) == 2


class Hook(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.headers["Idempotency-Key"], json.loads(body)["key"]))
        status = self.server.script.pop(0) if self.server.script else 204
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_webhook_gets_each_result_and_repeats_carry_their_key(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Hook)
    server.seen, server.script = [], [200, 503, 302]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    said = []
    with Spool(tmp_path / "s.db") as spool:
        sink = WebhookSink(f"http://127.0.0.1:{server.server_port}/x")
        spool.set_sinks([sink.name])
        fill(spool, 3)
        for _ in range(2):
            with pytest.raises(OutputError):
                sink.deliver(spool)
        delivery = Delivery(spool, [sink], said.append)
        delivery.close()
        assert spool.undelivered(sink.name)[0] == []
    server.shutdown()
    server.server_close()
    keys = [key(n).hex() for n in (0, 1, 1, 1, 2)]
    assert server.seen == [(f"{each}-final", each) for each in keys]


def test_an_early_result_comes_before_the_final_one(tmp_path):
    with Spool(tmp_path / "s.db") as spool:
        sink = FileSink(tmp_path / "out.jsonl")
        spool.set_sinks([sink.name])
        put(spool, 1, line=answer(1, final=False))
        assert spool.waiting_frames == 1
        sink.deliver(spool)
        spool.finish(key(1), answer(1))
        sink.deliver(spool)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["final"] for line in lines] == [False, True]


def test_look_works_beside_the_writer(spool):
    put(spool, 1)
    facts = spool_facts(spool.path)
    assert (facts["waiting_frames"], facts["running"], facts["waiting_bytes"]) == (1, True, 400)
    with sqlite3.connect(spool.path) as other:
        assert other.execute("SELECT count(*) FROM frames").fetchone() == (1,)
    other.close()

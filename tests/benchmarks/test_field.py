"""The field benchmarks, small: the real command line, a real proxy, processes that are really killed."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from benchmarks.cli import main
from benchmarks.rig.bad_link import BadLink, swinging


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_bad_day_loses_and_repeats_nothing(capsys):
    words = ["--frames", "150", "--light", "--cut-every", "0.5", "--server-kills", "1", "--client-kills", "1"]
    assert main(["field", *words]) == 0
    report = last_line(capsys)
    assert (report["frames"], report["lost"], report["duplicated"], report["strangers"]) == (150, 0, 0, 0)
    assert (report["server_kills"], report["client_kills"]) == (1, 1)
    assert report["connections"] > 1


def test_what_is_missing_is_counted(capsys):
    """Given up at once: every frame is lost, and the exit code says so."""
    assert main(["field", "--frames", "60", "--light", "--timeout", "0.001"]) == 1
    assert last_line(capsys)["lost"] > 0


def test_the_footprint_has_its_three_figures(capsys):
    pytest.importorskip("onnxruntime")
    assert main(["edge-footprint", "--frames", "20"]) == 0
    report = last_line(capsys)
    assert 20 < report["rss_mb"] < 1000
    assert 0 < report["cold_start_best_s"] <= report["cold_start_s"]
    assert report["cpu_ms_per_frame"] > 0


@pytest.fixture
def echo():
    """An address that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as held:

        def serve(peer: socket.socket) -> None:
            try:
                while data := peer.recv(65536):
                    peer.sendall(data)
            except OSError:
                pass

        def accept() -> None:
            while True:
                try:
                    peer, _ = held.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(peer,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{held.getsockname()[1]}"


def dial(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), 10)


def test_a_link_has_the_rate_that_it_is_told(echo):
    with BadLink(echo, lambda t: 80_000.0) as link, dial(link.address) as line:  # 10 kB/s each way
        started = time.monotonic()
        line.sendall(bytes(5000))
        got = 0
        while got < 5000:
            got += len(line.recv(65536))
        assert time.monotonic() - started >= 0.5
        assert link.bytes_up == 5000


def test_a_cut_resets_and_the_next_connection_works(echo):
    with BadLink(echo) as link:
        with dial(link.address) as line:
            line.sendall(b"x")
            assert line.recv(1) == b"x"
            link.cut()
            with pytest.raises(ConnectionResetError):
                line.recv(1)
        with dial(link.address) as line:
            line.sendall(b"y")
            assert line.recv(1) == b"y"
        assert (link.connections, link.cuts) == (2, 1)


def test_swings_repeat_and_know_both_ends():
    first, again, other = swinging(1, 9), swinging(1, 9), swinging(1, 9, seed=1)
    path = [first(t / 10) for t in range(1200)]
    assert path == [again(t / 10) for t in range(1200)] != [other(t / 10) for t in range(1200)]
    assert set(path) == {1, 9}
    assert 300 < path.count(1) < 900

"""The emulated links: schedules on a clock of the test's own, and bytes through real sockets."""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time
from dataclasses import replace

import pytest

from benchmarks.rig.link_proxy import LinkProxy
from benchmarks.rig.links import HEADER_BYTES, LINKS, SEGMENT_BYTES, Link, Schedule, UnknownLink, find_links, segments
from benchmarks.rig.wire_log import ConnectionLog, Exchange, match

SHAPED = [link for link in LINKS.values() if link.up_bps]


@pytest.mark.parametrize("link", SHAPED, ids=lambda link: link.name)
@pytest.mark.parametrize("way", ["up_bps", "down_bps"])
def test_presets_reproduce_their_delay_and_rate(link, way):
    """Within 5 %, over lone segments (delay) and over a busy minute (rate)."""
    rate_bps = getattr(link, way)
    lone = Schedule(link, rate_bps, seed=1)
    transmit_s = 8 * (1 + HEADER_BYTES) / rate_bps
    delays_ms = [1000 * (lone.place(100.0 * k, 1).arrives_s - 100.0 * k - transmit_s) for k in range(2000)]
    assert statistics.mean(delays_ms) == pytest.approx(link.delay_ms, rel=0.05)
    assert link.delay_ms - link.jitter_ms <= min(delays_ms) <= max(delays_ms) <= link.delay_ms + link.jitter_ms
    assert max(delays_ms) - min(delays_ms) == pytest.approx(2 * link.jitter_ms, rel=0.05)

    busy = Schedule(link, rate_bps, seed=2)
    count = round(60 * rate_bps / 8 / (SEGMENT_BYTES + HEADER_BYTES)) + 2
    arrivals = [busy.place(0.0, SEGMENT_BYTES).arrives_s for _ in range(count)]
    assert arrivals == sorted(arrivals)
    measured_bps = 8 * (SEGMENT_BYTES + HEADER_BYTES) * (count - 1) / (arrivals[-1] - arrivals[0])
    assert measured_bps == pytest.approx(rate_bps, rel=0.05)


def test_idle_links_save_nothing_up_and_resets_come_as_often_as_said():
    link = Link("test", 8000.0, None, 100.0, 0.0, 0.02)
    schedule = Schedule(link, 8000.0, seed=0)
    assert schedule.place(5.0, 460).arrives_s == pytest.approx(5.0 + 0.5 + 0.1)
    assert schedule.place(5.0, 460).arrives_s == pytest.approx(5.0 + 1.0 + 0.1)  # waits for the one before
    assert schedule.place(60.0, 460).arrives_s == pytest.approx(60.0 + 0.5 + 0.1)  # a minute of silence buys nothing
    assert sum(schedule.place(0.0, 1).reset for _ in range(10_000)) == pytest.approx(200, rel=0.25)
    assert not any(Schedule(LINKS["none"], None, 0).place(0.0, 1).reset for _ in range(10))


def test_names_and_nonsense():
    assert [link.name for link in find_links("LTE-M, lte,lte-m")] == ["lte-m", "lte"]
    assert len(find_links("all")) == len(LINKS) == 7
    with pytest.raises(UnknownLink, match="any of none, wi-fi"):
        find_links("5g")
    for wrong in ({"up_bps": 0.0}, {"jitter_ms": 5.0}, {"reset_probability": 1.0}):
        with pytest.raises(UnknownLink):
            replace(LINKS["none"], **wrong)
    assert b"".join(segments(bytes(4000))) == bytes(4000)


@pytest.fixture
def echo():
    """An echo server on real sockets; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(65536):
                    peer.sendall(data)
            except OSError:
                pass

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def connect(proxy: LinkProxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    peer = socket.create_connection((host, int(port)), timeout=30)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def receive(peer: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        part = peer.recv(65536)
        if not part:
            break
        got += part
    return got


def test_a_preset_through_real_sockets(echo):
    """Nothing is faster than the satellite preset allows, in delay and rate, and every byte arrives.

    A busy machine only adds time, so only this side is asserted here; `Schedule`, tested above, holds the exact times.
    """
    link = replace(LINKS["satellite"], jitter_ms=0.0, reset_probability=0.0)
    payload = bytes(range(256)) * 1600
    wire_bits = 8 * (len(payload) + HEADER_BYTES * len(segments(payload)))

    def trip_s(peer: socket.socket, data: bytes) -> float:
        started = time.monotonic()
        threading.Thread(target=peer.sendall, args=(data,), daemon=True).start()
        assert receive(peer, len(data)) == data
        return time.monotonic() - started

    with LinkProxy(link, echo) as proxy, connect(proxy) as peer:
        trip_s(peer, b"x")  # the handshake was in this one
        assert trip_s(peer, b"x") > 0.95 * 2 * link.delay_ms / 1000
        assert wire_bits / (trip_s(peer, payload) - 2 * link.delay_ms / 1000) < 1.05 * link.up_bps
        assert proxy.bytes_up == proxy.bytes_down > len(payload)
        assert proxy.cpu_s() > 0


def test_resets_end_connections_and_new_ones_can_be_made(echo):
    link = Link("cut", reset_probability=0.2)
    answered = 0
    with LinkProxy(link, echo, seed=3) as proxy:
        for _ in range(20):
            with connect(proxy) as peer, contextlib.suppress(ConnectionError):
                peer.sendall(b"ping")
                answered += receive(peer, 4) == b"ping"
        assert proxy.connections == 20
        assert proxy.resets > 0
        assert answered == 20 - proxy.resets


def test_a_dead_server_is_a_dead_line():
    got = b""
    with socket.socket() as dead, contextlib.ExitStack() as stack:
        dead.bind(("127.0.0.1", 0))  # bound, never listening
        proxy = stack.enter_context(LinkProxy(LINKS["none"], f"127.0.0.1:{dead.getsockname()[1]}"))
        try:
            with connect(proxy) as peer:  # the reset may come as early as here
                peer.sendall(b"x")
                got = peer.recv(1)
        except ConnectionError:
            pass
    assert got == b""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_frames_are_found_however_they_are_cut(step):
    up = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, bytes(18))
    up += frame(1, 4, 1, b"head") + frame(0, 1, 1, bytes(300)) + frame(1, 4, 3, b"head") + frame(0, 1, 3, b"")
    down = (
        frame(4, 0, 0)
        + frame(1, 4, 3, b"h")
        + frame(0, 0, 3, b"data")
        + frame(1, 5, 3, b"t")
        + frame(6, 0, 0, b"8" * 8)
    )
    seen: list[Exchange] = []
    log = ConnectionLog(seen)
    clock = 0.0
    for data, enters, leaves in ((up, log.from_client, log.to_server), (down, log.from_server, log.to_client)):
        for start in range(0, len(data), step):
            clock += 1.0
            enters(data[start : start + step], clock)
            leaves(data[start : start + step], clock + 0.5)
    first, second = seen
    assert first.opened_s < first.request_s <= second.request_s < second.reply_s <= second.closed_s
    assert first.reply_s is None


def test_calls_find_their_exchanges():
    a, b = Exchange(1.0, 1.2, 1.5, 1.9), Exchange(1.1, 1.3, 1.5, 1.8)
    assert match([(0.9, 2.0), (1.05, 2.0)], [a, b]) == [a, b]
    cut, again = Exchange(1.0, 1.2), Exchange(3.0, 3.1, 3.2, 3.3)  # lost on the way, tried again
    assert match([(0.9, 3.4)], [cut, again]) == [again]
    assert match([(0.9, 3.4), (3.35, 4.0)], [cut, again]) == [again, None]

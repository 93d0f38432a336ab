"""Results over MQTT against a broker that speaks just enough of MQTT 3.1.1, over real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest

from edge.errors import ConnectionOptionsError, OutputError
from edge.field.spool import Spool

pytest.importorskip("paho.mqtt")

from edge.field.mqtt import MqttSink


class Broker:
    """Confirms every message, unless `mute`. messages: (topic, payload) as they came."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict]] = []
        self.mute = False
        self.connections = 0
        self._held = socket.create_server(("127.0.0.1", 0))
        self.port = self._held.getsockname()[1]
        self._peers: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._held.shutdown(socket.SHUT_RDWR)  # else a waiting accept would take one more
        self._held.close()
        self.drop()

    def drop(self) -> None:
        for peer in self._peers:
            peer.close()
        self._peers.clear()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._held.accept()
            except OSError:
                return
            self.connections += 1
            self._peers.append(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        try:
            while True:
                kind, body = self._packet(peer)
                if kind >> 4 == 1:  # CONNECT
                    peer.sendall(bytes((0x20, 2, 0, 0)))
                elif kind >> 4 == 3:  # PUBLISH
                    length = int.from_bytes(body[:2], "big")
                    number = body[2 + length : 4 + length]
                    self.messages.append((body[2 : 2 + length].decode(), json.loads(body[4 + length :])))
                    if not self.mute:
                        peer.sendall(bytes((0x40, 2)) + number)
                elif kind >> 4 == 14:  # DISCONNECT
                    return
        except (OSError, IndexError):
            return

    @staticmethod
    def _packet(peer: socket.socket) -> tuple[int, bytes]:
        kind = peer.recv(1)[0]
        size = shift = 0
        while True:
            digit = peer.recv(1)[0]
            size |= (digit & 127) << shift
            shift += 7
            if digit < 128:
                break
        body = b""
        while len(body) < size:
            part = peer.recv(size - len(body))
            if not part:
                raise OSError("closed")
            body += part
        return kind, body


@pytest.fixture
def broker():
    broker = Broker()
    yield broker
    broker.close()


def fill(spool: Spool, *numbers: int) -> None:
    for number in numbers:
        key = number.to_bytes(16, "big")
        spool.accept(key, "x", b"p", "{}", 0.0)
        spool.finish(key, {"key": key.hex(), "final": True})


def test_results_are_confirmed_before_they_leave_the_spool(broker, tmp_path, monkeypatch):
    monkeypatch.setattr("edge.field.mqtt.CONFIRM_TIMEOUT_S", 0.5)
    with Spool(tmp_path / "s.db") as spool:
        sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/site/7/answers")
        spool.set_sinks([sink.name])
        fill(spool, 1, 2)
        assert sink.deliver(spool) == 2
        assert [(topic, int(line["key"], 16)) for topic, line in broker.messages] == [
            ("site/7/answers", 1),
            ("site/7/answers", 2),
        ]
        broker.mute = True
        fill(spool, 3)
        with pytest.raises(OutputError, match="confirm"):
            sink.deliver(spool)
        broker.mute = False
        assert sink.deliver(spool) == 1
        assert sink.deliver(spool) == 0
        assert {int(line["key"], 16) for _, line in broker.messages} == {1, 2, 3}
        assert broker.connections == 2
        sink.close()
        broker.close()
        fill(spool, 4)
        with pytest.raises(OutputError):
            sink.deliver(spool)
        assert len(spool.undelivered(sink.name)[0]) == 1


@pytest.mark.parametrize(
    "url",
    ["http://x/y", "mqtt://host", "mqtt:///topic", "mqtt://host:0/t", "mqtt://host:port/t", "mqtt://u:secret@h/#"],
)
def test_addresses_that_are_none(url):
    with pytest.raises(ConnectionOptionsError) as caught:
        MqttSink(url)
    assert "secret" not in str(caught.value)

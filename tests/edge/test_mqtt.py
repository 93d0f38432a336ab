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

from edge.field.mqtt import Brokers, MqttSink
from edge.field.sinks import Delivery
from tests.edge.test_outside import listener
from tests.waiting import until


class Broker:
    """Confirms every message, unless `mute`. messages: (topic, payload) as they came."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict]] = []
        self.mute = False
        self.refusal = 0  # return code of CONNACK
        self.logins: list[bytes] = []
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
            self._peers.append(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        try:
            while True:
                kind, body = self._packet(peer)
                if kind >> 4 == 1:  # CONNECT
                    if body[6] != 4:  # not MQTT 3.1.1: MQTT 3.1.1, section 3.1.2.2
                        peer.sendall(bytes((0x20, 2, 0, 1)))
                        return
                    self.connections += 1
                    self.logins.append(body)
                    peer.sendall(bytes((0x20, 2, 0, self.refusal)))
                    if self.refusal:
                        return
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


def test_topics_of_one_broker_share_one_connection(broker, tmp_path):
    """A broker throws a client out when another comes under its name."""
    brokers = Brokers()
    sinks = [MqttSink(f"mqtt://127.0.0.1:{broker.port}/topic/{number}", brokers) for number in range(3)]
    with Spool(tmp_path / "s.db") as spool:
        delivery = Delivery(spool, sinks, print)
        for number in range(1, 6):
            fill(spool, number)
            delivery.wake()
        until(lambda: len(broker.messages) == 15)
        delivery.close()
        assert spool.unwritten() == {sink.name: 0 for sink in sinks}
    assert broker.connections == 1
    other = MqttSink(f"mqtt://u@127.0.0.1:{broker.port}/topic/1", brokers)  # another login is another connection
    assert other._broker is not sinks[0]._broker
    assert other.name != sinks[1].name


def test_passwords_are_decoded_and_shown_nowhere(broker, tmp_path):
    with Spool(tmp_path / "s.db") as spool:
        sink = MqttSink(f"mqtt://the%40user:hunter%402%2F%3A@127.0.0.1:{broker.port}/t")
        spool.set_sinks([sink.name])
        fill(spool, 1)
        assert sink.deliver(spool) == 1
        sink.close()
    assert b"the@user" in broker.logins[0]
    assert b"hunter@2/:" in broker.logins[0]
    assert "hunter" not in sink.name + repr(sink._broker._address)


@pytest.mark.parametrize(("refusal", "said"), [(4, "user name or password"), (5, "Not authorized"), (3, "unavailable")])
def test_a_refused_login_is_called_so(broker, tmp_path, refusal, said):
    broker.refusal = refusal
    with Spool(tmp_path / "s.db") as spool:
        sink = MqttSink(f"mqtt://u:hunter2@127.0.0.1:{broker.port}/t")
        spool.set_sinks([sink.name])
        fill(spool, 1)
        with pytest.raises(OutputError, match="refuses the login") as caught:
            sink.deliver(spool)
        assert said in str(caught.value)
        assert ("--mqtt" in str(caught.value)) == (refusal in (4, 5))
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-x\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b""]
)
def test_what_does_not_speak_mqtt_is_a_pause(tmp_path, said, monkeypatch):
    monkeypatch.setattr("edge.field.mqtt.CONNECT_TIMEOUT_S", 3.0)
    with listener(said) as address, Spool(tmp_path / "s.db") as spool:
        sink = MqttSink(f"mqtt://{address}/t")
        spool.set_sinks([sink.name])
        fill(spool, 1)
        with pytest.raises(OutputError):
            sink.deliver(spool)

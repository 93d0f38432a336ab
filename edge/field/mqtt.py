"""Results to an MQTT broker (extra `edge-mqtt`): QoS 1, each confirmed by the broker before the spool lets go of it.

All topics of one broker share one connection: a broker throws a client out when another comes under its name.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

from edge.errors import ConnectionOptionsError, OutputError
from edge.field.refused_results import Refusals, ResultRefused, deliver_each
from edge.field.sinks import sink_name
from edge.field.spool import Spool
from thinwire.text import shown_address

CONNECT_TIMEOUT_S = 10.0
CONFIRM_TIMEOUT_S = 10.0
PORTS = {"mqtt": 1883, "mqtts": 8883}
PUBLISH_BYTES = 16  # of a PUBLISH beside topic and payload, at most
MAX_TOPIC_BYTES = 65535
# Reason codes of CONNACK in MQTT 3.1.1 (2 to 5) and 5.0, section 3.2.2.2
UNSUPPORTED = "Unsupported protocol version"
# Reason codes of PUBACK and DISCONNECT in MQTT 5.0, sections 3.4.2.1 and 3.14.2.1
TOO_LARGE = 0x95
OF_RESULT = frozenset((TOO_LARGE, 0x99))  # too large, payload format invalid
OF_TOPIC = frozenset((0x87, 0x90))  # not authorized, topic name invalid
LOGIN_REASONS = {"Bad user name or password", "Not authorized", "Bad authentication method", "Banned"}


@dataclass(frozen=True)
class Address:
    """A broker, and how to log in. user, password: as they are sent, no longer percent-encoded."""

    scheme: str
    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)


class BrokerRefuses(Exception):
    """The broker has a message and does not take it. code, said: MQTT 5's reason."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code, self.said = code, said


class Brokers:
    """One connection for each broker that the outputs of a run name. May be shared by threads."""

    def __init__(self) -> None:
        self._held: dict[Address, Broker] = {}

    def at(self, address: Address) -> Broker:
        broker = self._held.setdefault(address, Broker(address))
        broker.outputs += 1
        return broker


class Broker:
    """A connection, opened with the first result and opened again with the next one after a failure."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client: Any = None
        self.outputs = 0
        self._version_5 = True  # until the broker says that it knows 3.1.1 only, in which no message is refused
        self._refused: dict[int, Any] = {}  # by message
        self._lock = threading.Lock()

    def publish(self, topic: str, payload: str, device: str) -> None:
        """Returns once the broker has confirmed. Raises `BrokerRefuses`, `OSError`, `ValueError` or `RuntimeError`."""
        with self._lock:
            client = self._connected(device)
        most_bytes = client.limit.get("most_bytes")
        if most_bytes is not None and len(payload) + len(topic.encode()) + PUBLISH_BYTES > most_bytes:
            raise BrokerRefuses(TOO_LARGE, f"the broker takes at most {most_bytes} bytes, this message is larger")
        try:
            message = client.publish(topic, payload, qos=1)
            end = time.monotonic() + CONFIRM_TIMEOUT_S
            while not message.is_published():
                if not client.is_connected():
                    if client.last_reason is not None and client.last_reason.value in OF_RESULT:
                        raise BrokerRefuses(client.last_reason.value, f"the broker says: {client.last_reason}")
                    raise OSError("the connection was lost")
                if time.monotonic() > end:
                    raise OSError("the broker does not confirm")
                message.wait_for_publish(0.2)
            if (reason := self._refused.pop(message.mid, None)) is not None:
                raise BrokerRefuses(reason.value, f"the broker says: {reason}")
        except BrokerRefuses:
            if not client.is_connected():
                self._drop(client)
            raise
        except BaseException:
            self._drop(client)  # the next result opens a new connection
            raise

    def close(self) -> None:
        """One output has ended; with the last one the connection does."""
        self.outputs -= 1
        if self.outputs <= 0:
            self._drop(self._client)

    def _drop(self, client: Any) -> None:
        with self._lock:
            if client is None or self._client is not client:
                return  # another output's connection by now
            self._client = None
        client.disconnect()
        client.loop_stop()

    def _connected(self, device: str) -> Any:
        if self._client is None:
            self._client = self._opened(device)
        return self._client

    def _opened(self, device: str) -> Any:
        """A new connection, by MQTT 5, or by 3.1.1 where the broker knows no other."""
        import paho.mqtt.client as paho

        answered = threading.Event()
        reasons: list[Any] = []

        def on_publish(client, userdata, mid, reason, properties) -> None:
            if reason.is_failure:
                self._refused[mid] = reason

        def on_disconnect(client, userdata, flags, reason, properties) -> None:
            client.last_reason = reason
            answered.set()

        def on_connect(client, userdata, flags, reason, properties) -> None:
            client.limit["most_bytes"] = getattr(properties, "MaximumPacketSize", None)
            reasons.append(reason)
            answered.set()

        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=f"thinwire-{device[:12]}",
            protocol=paho.MQTTv5 if self._version_5 else paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.last_reason, client.limit = None, {}
        client.on_connect, client.on_publish, client.on_disconnect = on_connect, on_publish, on_disconnect
        if self._address.user is not None:
            client.username_pw_set(self._address.user, self._address.password)
        if self._address.scheme == "mqtts":
            client.tls_set_context(ssl.create_default_context())
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.connect(self._address.host, self._address.port, keepalive=60)
        client.loop_start()
        answered.wait(CONNECT_TIMEOUT_S)
        if not reasons or reasons[0].is_failure:
            client.loop_stop()
            client.disconnect()
            if not reasons:
                raise OSError(
                    "what answers there does not speak MQTT" if answered.is_set() else "no answer to the login"
                )
            said = str(reasons[0])
            if said == UNSUPPORTED and self._version_5:
                self._version_5 = False
                return self._opened(device)
            fix = ": check user and password in --mqtt" if said in LOGIN_REASONS else ""
            raise OSError(f"the broker refuses the login ({said}){fix}")
        return client


class MqttSink:
    """mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC, or mqtts:// for TLS with the public authorities.

    USER and PASSWORD are percent-encoded where they hold : / @ % and the like. At least once, as QoS 1 is; each message
    is a result's JSON, whose `key` and `final` tell a repeat. Raises `ConnectionOptionsError` for another form of
    address, or without paho-mqtt.
    """

    def __init__(self, url: str, brokers: Brokers | None = None) -> None:
        self._broker = (brokers or Brokers()).at(_address(url))
        self._topic = _topic(url)
        self.refusals = Refusals()
        try:
            import paho.mqtt.client  # noqa: F401
        except ModuleNotFoundError as error:
            raise ConnectionOptionsError("MQTT needs paho-mqtt: pip install 'thinwire[edge-mqtt]'") from error
        address = _address(url)
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.name = f"mqtt:{host}:{address.port}/{self._topic}"
        if address.user is not None:
            self.name = sink_name("mqtt", url).replace(shown_address(url), self.name.removeprefix("mqtt:"), 1)

    def deliver(self, spool: Spool) -> int:
        return deliver_each(spool, self.name, lambda line: self._publish(line, spool.device), self.refusals)

    def _publish(self, line: str, device: str) -> None:
        try:
            self._broker.publish(self._topic, json.dumps(json.loads(line)), device)
        except BrokerRefuses as error:
            text = f"{self.name}: does not accept results ({error.said})"
            if error.code in OF_RESULT | OF_TOPIC:
                raise ResultRefused(text, error.code in OF_RESULT) from error
            raise OutputError(text) from error
        except (OSError, ValueError, RuntimeError) as error:  # paho raises the latter two once a connection is lost
            raise OutputError(f"{self.name}: does not accept results ({error})") from error

    def close(self) -> None:
        """Ends the connection; the next result opens a new one."""
        self._broker.close()


def _address(url: str) -> Address:
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in PORTS or not parts.hostname or port == 0:
        raise ConnectionOptionsError(f"{shown_address(url)!r}: write mqtt://HOST:PORT/TOPIC, or mqtts:// for TLS")
    user = None if parts.username is None else urllib.parse.unquote(parts.username)
    password = None if parts.password is None else urllib.parse.unquote(parts.password)
    return Address(parts.scheme, parts.hostname, port or PORTS[parts.scheme], user, password)


def _topic(url: str) -> str:
    topic = urllib.parse.urlsplit(url).path.lstrip("/")
    if not topic or set("+#\0") & set(topic) or len(topic.encode("utf-8", "replace")) > MAX_TOPIC_BYTES:
        raise ConnectionOptionsError(
            f"{shown_address(url)!r}: results go to one topic, named after the host, without + and #"
        )
    return topic

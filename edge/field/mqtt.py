"""Results to an MQTT broker (extra `edge-mqtt`): QoS 1, each confirmed by the broker before the spool lets go of it."""

from __future__ import annotations

import json
import ssl
import urllib.parse

from edge.errors import ConnectionOptionsError, OutputError
from edge.field.spool import Spool

CONFIRM_TIMEOUT_S = 10.0
PORTS = {"mqtt": 1883, "mqtts": 8883}
BATCH = 32


class MqttSink:
    """mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC, or mqtts:// for TLS with the public authorities.

    At least once, as QoS 1 is; each message is a result's JSON, whose `key` and `final` tell a repeat. Raises
    `ConnectionOptionsError` for another form of address, or without paho-mqtt.
    """

    def __init__(self, url: str) -> None:
        self._parts = urllib.parse.urlsplit(url)
        self._topic = self._parts.path.lstrip("/")
        try:
            port = self._parts.port
        except ValueError:
            port = 0
        if self._parts.scheme not in PORTS or not self._parts.hostname or port == 0 or not self._topic:
            raise ConnectionOptionsError(f"{_shown(url)}: write mqtt://HOST:PORT/TOPIC, or mqtts:// for TLS")
        if set("+#") & set(self._topic):
            raise ConnectionOptionsError(f"{_shown(url)}: results go to one topic, without + and #")
        try:
            import paho.mqtt.client as paho
        except ModuleNotFoundError as error:
            raise ConnectionOptionsError("MQTT needs paho-mqtt: pip install 'thinwire[edge-mqtt]'") from error
        self._paho, self._port = paho, port or PORTS[self._parts.scheme]
        self.name = f"mqtt:{self._parts.hostname}:{self._port}/{self._topic}"
        self._client = None

    def deliver(self, spool: Spool) -> int:
        rows, _ = spool.undelivered(self.name, limit=BATCH)
        if not rows:
            return 0
        try:
            client = self._connected(spool.device)
            for number, line in rows:
                message = client.publish(self._topic, json.dumps(json.loads(line)), qos=1)
                message.wait_for_publish(CONFIRM_TIMEOUT_S)
                if not message.is_published():
                    raise OSError("the broker does not confirm")
                spool.delivered(self.name, number, {})
        except (OSError, ValueError, RuntimeError) as error:  # paho raises the latter two once a connection is lost
            self.close()
            raise OutputError(f"{self.name}: takes no results ({error})") from error
        return len(rows)

    def close(self) -> None:
        """Ends the connection; the next result opens a new one."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None

    def _connected(self, device: str):
        if self._client is None:
            client = self._paho.Client(self._paho.CallbackAPIVersion.VERSION2, client_id=f"thinwire-{device[:12]}")
            if self._parts.username:
                client.username_pw_set(self._parts.username, self._parts.password)
            if self._parts.scheme == "mqtts":
                client.tls_set_context(ssl.create_default_context())
            client.connect(self._parts.hostname, self._port, keepalive=60)
            client.loop_start()
            self._client = client
        return self._client


def _shown(url: str) -> str:
    """Without a password."""
    return repr(url.rpartition("@")[2])

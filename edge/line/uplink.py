"""The line to the cloud: one channel, a deadline on each call, retries by service config, errors that name the fix."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc

from edge.defaults import DEFAULT_TIMEOUT_S
from edge.errors import ClientClosed, ConnectionOptionsError, Refused, ServerTimeout, ServerUnreachable
from edge.line.connection_help import connection_fix
from edge.line.error_info import error_reason
from edge.line.label_upload import Progress, in_pieces, run_upload
from thinwire import __version__
from thinwire.contract import DEVICE_ID_RULE, DEVICE_KEY, Reason, is_device_id, is_loopback
from thinwire.errors import ThinwireError
from thinwire.files import read_file
from thinwire.proxies import proxy_for
from thinwire.text import safe_text, shown_address
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc

CHECK_TIMEOUT_S = 10.0
MAX_PEM_BYTES = 1 << 20
MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux, with its closing zero byte
MAX_REPLY_BYTES = 16 << 20  # 20,000 labels of 400 characters

SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "thinwire.v1.InferenceService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "3s",
                "backoffMultiplier": 2,
                # No call has side effects, so a repeat is safe; a full queue names its own pause by pushback
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}


@dataclass(frozen=True)
class Line:
    """Where the server is and how it is talked to; checked when made (`ConnectionOptionsError`).

    server: HOST:PORT ([::1]:50051 for IPv6), or unix:PATH. timeout_s: deadline of each call, retries included. tls:
    encrypt, trusting the authorities that gRPC ships; root_certificate: encrypt, trusting those in this PEM file.
    token: sent with each call as `authorization: Bearer TOKEN`, on an encrypted line or to this machine only.
    client_certificate, client_key: PEM files that show the server who we are (mTLS); either both or none.
    max_reconnect_s: longest pause between attempts to connect again. device_id: the name under which the server shows
    and keeps this device's frames (1 to 64 of A-Z a-z 0-9 . _ : -); None leaves it to the server.
    """

    server: str
    timeout_s: float = DEFAULT_TIMEOUT_S
    tls: bool = False
    root_certificate: str | os.PathLike[str] | None = None
    token: str | None = None
    client_certificate: str | os.PathLike[str] | None = None
    client_key: str | os.PathLike[str] | None = None
    max_reconnect_s: float = 10.0
    device_id: str | None = None

    def __post_init__(self) -> None:
        if self.unix:
            self._check_path()
        else:
            self._check_host()
        if not 0 < self.timeout_s < float("inf"):
            raise ConnectionOptionsError(f"a timeout is a number of seconds above 0, not {self.timeout_s}")
        if self.token is not None and not re.fullmatch(r"[\x21-\x7e]+", self.token):
            raise ConnectionOptionsError("a token is printable ASCII without spaces: check the file it came from")
        if self.token is not None and not self.encrypted and not self.local:
            raise ConnectionOptionsError(f"a token must not be sent to {self.server} unencrypted: turn on TLS")
        if self.device_id is not None and not is_device_id(self.device_id):
            raise ConnectionOptionsError(f"{self.device_id!r} is not a valid device id: {DEVICE_ID_RULE}")
        if (self.client_certificate is None) != (self.client_key is None):
            raise ConnectionOptionsError("a client certificate and its key go together: give --tls-cert and --tls-key")

    def _check_path(self) -> None:
        path = self.server.removeprefix("unix:").removeprefix("//")
        if not path or "\0" in path or len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise ConnectionOptionsError(
                f"{safe_text(self.server)!r} is not a server address: write unix:PATH, with a path of 1 to "
                f"{MAX_SOCKET_PATH_BYTES} bytes"
            )

    def _check_host(self) -> None:
        host, _, port = self.server.rpartition(":")
        shown = shown_address(self.server if "@" not in self.server else f"//{self.server}".rpartition("@")[2])
        # A target without a port would silently go to port 443
        if not re.fullmatch(r"\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+", host) or not re.fullmatch(r"\d{1,5}", port):
            raise ConnectionOptionsError(
                f"{shown!r} is not a server address: write HOST:PORT, like 127.0.0.1:50051, or unix:PATH"
            )
        if not 1 <= int(port) <= 65535:
            raise ConnectionOptionsError(f"{shown!r} has no valid port: ports are 1 to 65535")

    @property
    def unix(self) -> bool:
        """Whether the server is reached over a socket in the file system."""
        return self.server.startswith("unix:")

    @property
    def encrypted(self) -> bool:
        return self.tls or self.root_certificate is not None or self.client_certificate is not None

    @property
    def local(self) -> bool:
        return self.unix or is_loopback(self.server.rpartition(":")[0])

    @property
    def proxy(self) -> str | None:
        """What the connection goes through, by the one rule for all clients (`thinwire.proxies`)."""
        if self.unix:
            return None
        host, _, port = self.server.rpartition(":")
        return proxy_for("grpc", host, int(port))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        pairs = []
        if self.token is not None:
            pairs.append(("authorization", f"Bearer {self.token}"))
        if self.device_id is not None:
            pairs.append((DEVICE_KEY, self.device_id))  # HPACK: once per connection, then a byte or two
        return tuple(pairs) or None

    @property
    def options(self) -> list[tuple[str, str | int]]:
        """Channel options."""
        options: list[tuple[str, str | int]] = [
            ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
            ("grpc.service_config_disable_resolution", 1),  # a DNS TXT record must not change how often we retry
            ("grpc.enable_retries", 1),
            ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
            ("grpc.primary_user_agent", f"thinwire-edge/{__version__}"),
            # Slower than any server's minimum (pings faster than that kill the channel), faster than most NAT timeouts
            ("grpc.keepalive_time_ms", 120_000),
            ("grpc.keepalive_timeout_ms", int(1000 * max(20.0, self.timeout_s))),
            # After an outage, look again soon: the default's ceiling of two minutes outlives most deadlines
            ("grpc.initial_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", max(500, int(1000 * self.max_reconnect_s))),
            ("grpc.use_local_subchannel_pool", 1),  # a new channel must make a new connection
        ]
        if self.proxy is None:
            options.append(("grpc.enable_http_proxy", 0))
        return options

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None for a plain line. Raises `ConnectionOptionsError` for a certificate file that cannot be read."""
        if not self.encrypted:
            return None
        authorities = None if self.root_certificate is None else _pem(self.root_certificate, b"CERTIFICATE-----")
        if self.client_certificate is None:
            return grpc.ssl_channel_credentials(authorities)
        chain, key = _pem(self.client_certificate, b"CERTIFICATE-----"), _pem(self.client_key, b"PRIVATE KEY-----")
        return grpc.ssl_channel_credentials(authorities, key, chain)


def _pem(path: str | os.PathLike[str], kind: bytes) -> bytes:
    try:
        pem = read_file(path, MAX_PEM_BYTES)
    except OSError as error:
        raise ConnectionOptionsError(f"{path}: the certificate cannot be read ({error.strerror or error})") from error
    if b"-----BEGIN " not in pem or kind not in pem:
        raise ConnectionOptionsError(f"{path}: holds no PEM {kind.decode().rstrip('-').lower()}")
    return pem


def open_channel(line: Line) -> grpc.Channel:
    """A channel; nothing is sent before its first call. Raises `ConnectionOptionsError`."""
    credentials = line.credentials()
    if credentials is None:
        return grpc.insecure_channel(line.server, options=line.options)
    return grpc.secure_channel(line.server, credentials, options=line.options)


class Uplink:
    """One channel to one server; make one per process. Closing it ends the calls that are still running.

    Guarantees: every call has the line's deadline, and fails only with the typed errors of `typed_error`. May be shared
    by threads.
    """

    def __init__(self, line: Line) -> None:
        self.line = line
        self._channel = open_channel(line)
        self._takes_parts = True
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)

    def __enter__(self) -> Uplink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def connect(self, timeout_s: float) -> None:
        """Waits for a connection without sending anything that counts. Raises as `info` when none comes in time."""
        ready = grpc.channel_ready_future(self._channel)
        try:
            ready.result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            self.info(timeout_s)  # fails with the cause
        finally:
            ready.cancel()

    def info(self, timeout_s: float | None = None) -> pb.GetServerInfoResponse:
        """What the server is and accepts. Silence within `timeout_s` (at most 10 s) counts as `ServerUnreachable`."""
        return self.info_and_metadata(timeout_s)[0]

    def info_and_metadata(self, timeout_s: float | None = None) -> tuple[pb.GetServerInfoResponse, dict[str, str]]:
        """As `info`, with what the server sent before its answer."""
        timeout_s = min(CHECK_TIMEOUT_S, timeout_s or self.line.timeout_s)
        try:
            call = self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest(), timeout_s)
            return call.result(), dict(tuple(pair) for pair in call.initial_metadata() or ())
        except grpc.RpcError as error:
            raise typed_error(error, self.line, asked_only_info=True) from error
        except grpc.FutureCancelledError as error:
            raise _closed(self.line) from error

    def texts(self, texts: Sequence[str], prompt_set: str) -> pb.EncodeTextResponse:
        """The CLIP vectors of labels in their prompts. Raises as `classify`."""
        request = pb.EncodeTextRequest(texts=texts, prompt_set=prompt_set)
        return self.answer(self._call(self._stub.EncodeText, request, self.line.timeout_s))

    def register(
        self,
        request: pb.RegisterLabelsRequest,
        tell: Callable[[Progress], None] = lambda progress: None,
        send: Callable[[pb.RegisterLabelsPartRequest], pb.RegisterLabelsPartResponse] | None = None,
        timeout_s: float | None = None,
    ) -> pb.RegisterLabelsResponse:
        """A handle for labels. Raises as `classify`; `Refused` (UNIMPLEMENTED) by a server that knows no handles.

        Many labels go in pieces, each with the line's deadline, where the server takes them; tell: gets the progress;
        send: sends a piece in place of `register_part`. timeout_s: for labels that go in one message.
        """
        if in_pieces(request) and self._takes_parts:
            try:
                return run_upload(request, send or self.register_part, tell)
            except Refused as error:
                if error.server_reason != Reason.UNIMPLEMENTED:
                    raise
                self._takes_parts = False  # a server of an earlier release
        return self.answer(self._call(self._stub.RegisterLabels, request, timeout_s or self.line.timeout_s))

    def register_part(self, request: pb.RegisterLabelsPartRequest) -> pb.RegisterLabelsPartResponse:
        """One piece of many labels. Raises as `classify`."""
        return self.answer(self._call(self._stub.RegisterLabelsPart, request, self.line.timeout_s))

    def stream(
        self, requests: Iterator[pb.ClassifyStreamRequest], metadata: tuple[tuple[str, str], ...] = ()
    ) -> grpc.Call:
        """A `ClassifyStream` call without a deadline: who reads it watches over its frames."""
        try:
            return self._stub.ClassifyStream(requests, metadata=(*(self.line.metadata or ()), *metadata))
        except ValueError as error:
            raise _closed(self.line) from error

    def classify(self, request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        """Raises `ServerUnreachable`, `ServerTimeout`, `Refused` or `ClientClosed`."""
        return self.answer(self.send(request))

    def send(self, request: pb.ClassifyRequest) -> grpc.Future:
        """Starts a call and returns at once; `answer` waits for it."""
        return self._call(self._stub.Classify, request, self.line.timeout_s)

    def answer(self, call: grpc.Future) -> pb.ClassifyResponse:
        """The reply of a call that `send` started. Raises as `classify` does."""
        try:
            return call.result()
        except grpc.RpcError as error:
            raise typed_error(error, self.line) from error
        except grpc.FutureCancelledError as error:
            raise _closed(self.line) from error

    def _call(self, method: grpc.UnaryUnaryMultiCallable, request: object, timeout_s: float) -> grpc.Future:
        try:
            return method.future(request, timeout=timeout_s, metadata=self.line.metadata)
        except ValueError as error:  # "Cannot invoke RPC on closed channel!"
            raise _closed(self.line) from error


def typed_error(error: grpc.RpcError, line: Line, asked_only_info: bool = False) -> ThinwireError:
    """A failed call as an error that names what to do.

    `ServerUnreachable` when no server answers, `ServerTimeout` when the deadline passes, `Refused` for the server's own
    errors. A server that is silent when asked only for its info counts as unreachable.
    """
    code, details = error.code(), " ".join((error.details() or "").split())
    reason = error_reason(error)
    who = line.server
    if code == grpc.StatusCode.UNAVAILABLE and not reason:
        fix = connection_fix(details, who, line.encrypted, line.proxy)
        return ServerUnreachable(f"no thinwire server answers at {who} ({_cause(details) or code.name}): {fix}")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED and asked_only_info:
        return ServerUnreachable(
            f"no thinwire server answers at {who} (silence): check the address and the firewalls on the way, "
            "or name another with --server HOST:PORT"
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return ServerTimeout(f"{who} did not answer within {line.timeout_s:g} s: raise --timeout, or try later")
    if code == grpc.StatusCode.CANCELLED and not reason:
        return _closed(line)
    if code == grpc.StatusCode.UNIMPLEMENTED and not reason:
        return Refused(
            f"{who} is a gRPC server, but no thinwire server of this release: check --server", Reason.UNIMPLEMENTED
        )
    hints = {
        grpc.StatusCode.UNAUTHENTICATED: ": give a valid token with --token-file",
        grpc.StatusCode.PERMISSION_DENIED: ": this token may not do that; ask the server's operator",
    }
    return Refused(f"{who} refused: {details or code.name}{hints.get(code, '')}", reason or code.name)


def _cause(details: str) -> str:
    """gRPC's chain of connection errors, cut to its last link."""
    return details.rpartition("last error: ")[2].removeprefix("UNKNOWN: ").removeprefix("UNAVAILABLE: ")[:300]


def _closed(line: Line) -> ClientClosed:
    return ClientClosed(f"the client of {line.server} was closed: make a new one")

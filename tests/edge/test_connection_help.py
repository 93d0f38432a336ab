"""Connections that fail: the error names what is wrong there, and "start one" only where nothing listens."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import grpc
import pytest

from edge import AsyncClient
from edge.errors import ClientClosed, ServerUnreachable
from edge.line.connection_help import START, connection_fix, trusted_authorities
from edge.line.uplink import Line, Uplink
from tests.edge.canned import Canned, serve
from tests.edge.certificates import self_signed
from tests.tiny_bundle import synthetic_views

REFUSED = "ipv4:127.0.0.1:1: Failed to connect to remote host: Connection refused"


def failure(address: str, **options) -> str:
    with Uplink(Line(address, timeout_s=5, **options)) as uplink, pytest.raises(ServerUnreachable) as caught:
        uplink.info()
    return str(caught.value)


@contextlib.contextmanager
def listener(greeting: bytes) -> Iterator[str]:
    """Something that greets each connection and ends it."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.sendall(greeting)
                        connection.settimeout(0.2)
                        connection.recv(1000)

        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_nothing_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # bound, never listening
        assert START in failure(address)
        assert START in failure(address, tls=True)


def test_a_server_with_tls_and_one_without(tmp_path, tiny_bundle):
    pem, key = self_signed(tmp_path / "ours")
    other, _ = self_signed(tmp_path / "theirs")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), pem.read_bytes())])
    with serve(Canned([tiny_bundle]), credentials) as address:
        plain, foreign, shipped = failure(address), failure(address, root_certificate=other), failure(address, tls=True)
    with serve(Canned([tiny_bundle])) as address:
        needless = failure(address, root_certificate=pem)
    assert "give --tls or --tls-ca" in plain
    assert "authority that signed the server's certificate with --tls-ca" in foreign
    assert "authorities that gRPC ships" in shipped
    assert "no TLS is spoken there" in needless
    for text in (plain, foreign, shipped, needless):
        assert "thinwire-cloud serve`" not in text


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_something_else_listens(greeting):
    with listener(greeting) as address:
        text = failure(address)
    assert "check the port in --server" in text
    assert "thinwire-cloud serve`" not in text


@pytest.mark.parametrize(
    ("details", "encrypted", "says"),
    [
        (REFUSED, False, START),
        (REFUSED, True, START),
        ("Peer name cam.lan is not in peer certificate", True, "of another name"),
        ("Hostname Verification Check failed.", True, "or make one for cam.lan:50051"),
        ("SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: certificate has expired", True, "clock"),
        ("Tls handshake failed: TLSV1_ALERT_UNKNOWN_CA", True, "--tls-cert and --tls-key"),
        ("Socket closed", True, "ended the handshake"),
        ("Socket closed", False, "give --tls or --tls-ca"),
        ("errors resolving x: [field:hostname lookup error: Domain name not found]", False, "DNS"),
        ("connect: Network is unreachable (101)", False, "there is no way"),
        ("connect: No route to host (113)", False, "there is no way"),
        ("Connection timed out", False, "firewalls"),
        ("words that nobody has met", False, "check the address, the link and the server"),
    ],
)
def test_each_cause_has_its_fix(details, encrypted, says):
    assert says in connection_fix(details, "cam.lan:50051", encrypted)


def test_doctor_trusts_whom_the_client_trusts():
    assert trusted_authorities().count("BEGIN CERTIFICATE") > 50


def test_an_async_client_made_outside_its_loop(tiny_bundle):
    frame = synthetic_views(1, 64, seed=5)[0]
    with serve(Canned([tiny_bundle])) as address:
        client = AsyncClient(address, tiny_bundle)

        async def ask() -> str:
            return (await client.classify(frame, ["cat", "dog"])).best.label

        assert asyncio.run(ask()) == "cat"
        with pytest.raises(ClientClosed, match="event loop of its first call"):
            asyncio.run(ask())
        asyncio.run(client.close())
        unused = AsyncClient(address, tiny_bundle)
        asyncio.run(unused.close())
        in_thread: list[AsyncClient] = []
        thread = threading.Thread(target=lambda: in_thread.append(AsyncClient(address, tiny_bundle)))
        thread.start()
        thread.join()

        async def ask_and_close() -> str:
            async with in_thread[0] as other:
                return (await other.classify(frame, ["cat", "dog"])).best.label

        assert asyncio.run(ask_and_close()) == "cat"

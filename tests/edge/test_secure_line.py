"""TLS as the field has it: expired certificates, certificates from tomorrow, mutual TLS."""

from __future__ import annotations

import grpc
import pytest

from edge import Client
from edge.errors import ConnectionOptionsError, ServerUnreachable
from tests.edge.canned import Canned, serve
from tests.edge.certificates import self_signed
from tests.tiny_bundle import synthetic_views

FRAME = synthetic_views(1, 64, seed=5)[0]


@pytest.mark.parametrize(("days", "says"), [((-3, -1), "expired"), ((1, 3), "not yet valid")])
def test_a_certificate_out_of_its_time_names_the_clock(tmp_path, tiny_bundle, days, says):
    pem, key = self_signed(tmp_path, days=days)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), pem.read_bytes())])
    with serve(Canned([tiny_bundle]), credentials) as address:
        client = Client(address, tiny_bundle, root_certificate=pem, timeout_s=20)
        with client, pytest.raises(ServerUnreachable, match=says) as caught:
            client.check()
    assert "clock" in str(caught.value)


def test_mutual_tls(tmp_path, tiny_bundle):
    pem, key = self_signed(tmp_path / "server")
    mine, my_key = self_signed(tmp_path / "device", "device-7")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), pem.read_bytes())], mine.read_bytes(), True)
    with serve(Canned([tiny_bundle]), credentials) as address:
        options = {"root_certificate": pem, "timeout_s": 20}
        with Client(address, tiny_bundle, client_certificate=mine, client_key=my_key, **options) as client:
            assert client.classify(FRAME, ["cat", "dog"]).best.label == "cat"
        with Client(address, tiny_bundle, **options) as client, pytest.raises(ServerUnreachable):
            client.check()
    with pytest.raises(ConnectionOptionsError, match="--tls-key"):
        Client(address, tiny_bundle, client_certificate=mine)
    with pytest.raises(ConnectionOptionsError, match="private key"):
        Client(address, tiny_bundle, client_certificate=mine, client_key=mine)

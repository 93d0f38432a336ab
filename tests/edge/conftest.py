from __future__ import annotations

import socket

import pytest

from edge.encoder import Encoder
from edge.line.client import Client
from tests.edge.canned import Canned, serve


@pytest.fixture(scope="session")
def encoder(tiny_bundle) -> Encoder:
    return Encoder(tiny_bundle)


@pytest.fixture
def canned(tiny_bundle):
    """The servicer of a running server; its `address` says where."""
    servicer = Canned([tiny_bundle])
    with serve(servicer) as servicer.address:
        yield servicer


@pytest.fixture
def client(canned, tiny_bundle):
    with Client(canned.address, tiny_bundle, timeout_s=10) as client:
        yield client


@pytest.fixture
def dead_address() -> str:
    """A loopback address where nobody listens, and nobody will while the test holds it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, never listening
        yield f"127.0.0.1:{held.getsockname()[1]}"

"""Progressive answers through the real edge and the real cloud: bytes go out only where they may change the answer."""

from __future__ import annotations

import pytest

from tests.tiny_bundle import make_tiny_bundle, synthetic_views

pytest.importorskip("torch")

from cloud.front.server import background_server
from edge import Client
from edge.errors import ServerUnreachable
from edge.line.progressive import classify_progressive
from tests.cloud.tiny_engine import calibrated_engine

LABELS = ["cat", "dog", "city at night"]
VIEWS = list(synthetic_views(6, 64, seed=5))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", with_decoder=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory, bundle):
    with calibrated_engine(tmp_path_factory.mktemp("progressive"), bundle) as engine:
        yield engine


@pytest.fixture
def client(engine, bundle):
    with background_server(engine) as address, Client(address, bundle) as client:
        engine.close = lambda *_: True  # the engine outlives the server of one test
        yield client
    del engine.close


@pytest.mark.parametrize(("confidence", "layers"), [(0.4, 1), (0.7, 2), (0.9, 3), (0.0, 3)])
def test_as_many_layers_are_sent_as_the_confidence_needs(client, confidence, layers):
    outcomes = sorted(classify_progressive(client, VIEWS, LABELS, confidence=confidence), key=lambda each: each.index)
    assert [each.error for each in outcomes] == [None] * len(VIEWS)
    rates = list(client.bundle.rates)
    for view, outcome in zip(VIEWS, outcomes):
        fixed = client.classify(view, LABELS, rate=rates[layers - 1])
        assert outcome.result.layers == layers
        assert outcome.result.best.label == fixed.best.label
        assert outcome.result.best.similarity == pytest.approx(fixed.best.similarity, abs=1e-4)
        first = client.encoder.encode_image(view, rates[0]).packet
        if layers == 1:
            assert outcome.result.packet_bytes == len(first)
        else:  # no layer is sent twice: what steps cost beside their layers is framing
            framing = outcome.result.packet_bytes - fixed.packet_bytes
            assert 0 < framing <= 13 * (layers - 1)


def test_a_rate_bounds_what_is_sent_and_broken_images_fail_alone(client):
    images = [VIEWS[0], b"no image", VIEWS[1]]
    outcomes = sorted(
        classify_progressive(client, images, LABELS, rate="mid", confidence=0.9), key=lambda each: each.index
    )
    assert [each.ok for each in outcomes] == [True, False, True]
    assert [each.result.layers for each in outcomes if each.ok] == [2, 2]
    assert outcomes[1].error.reason == "BAD_IMAGE"


def test_nobody_there_is_an_error_that_says_so(bundle):
    with Client("127.0.0.1:1", bundle, timeout_s=5) as client, pytest.raises(ServerUnreachable):
        list(classify_progressive(client, VIEWS[:1], LABELS))

"""The whole path with nothing canned: image file → edge → gRPC → engine → synthesis → CLIP → labels.

The codec and CLIP are tiny and random: which label wins means nothing, that both ends agree on it means everything.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.tiny_bundle import RATES, make_tiny_bundle, photo, synthetic_views

pytest.importorskip("torch")

from cloud.decode import Decoder
from cloud.front.server import background_server
from edge import AsyncClient, Client
from edge.cli import main
from edge.errors import Refused
from tests.cloud.tiny_engine import tiny_engine
from tests.edge.odd_images import bad_images, good_images

LABELS = ["cat", "dog", "city at night"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory, tiny_bundle_with_decoder):
    with tiny_engine(tmp_path_factory.mktemp("slice"), tiny_bundle_with_decoder) as engine:
        yield engine


@pytest.fixture(scope="module")
def address(engine):
    with background_server(engine) as address:
        yield address


@pytest.fixture(scope="module")
def client(address, tiny_bundle_with_decoder):
    with Client(address, tiny_bundle_with_decoder) as client:
        yield client


@pytest.mark.parametrize(("rate", "layers"), RATES)
def test_each_rate_is_answered_as_the_engine_itself_answers(client, engine, rate, layers, tmp_path):
    path = photo(tmp_path)
    result = client.classify(path, LABELS, prompt_set="1", rate=rate)
    assert (result.layers, result.clip) == (layers, "tiny-random-clip")
    assert sum(each.probability for each in result.predictions) == pytest.approx(1, abs=1e-5)
    assert 0 < result.server.total_ms <= result.round_trip_ms
    packet = client.encoder.encode_image(path, rate).packet.to_bytes()
    direct = engine.submit(packet=packet, labels=tuple(LABELS), templates=("a photo of a {}.",)).result(60)
    assert [each.label for each in direct.predictions] == [each.label for each in result.predictions]
    for here, there in zip(result.predictions, direct.predictions):
        assert here.similarity == pytest.approx(there.similarity, abs=1e-4)


def test_what_the_cloud_sees_is_what_decode_shows(client, engine, tiny_bundle_with_decoder):
    """The picture of `thinwire-edge decode`, sent as a file, gets the answer that its packet gets."""
    frame = synthetic_views(1, 64, seed=8)[0]
    packet = client.encoder.encode(frame, "high").packet.to_bytes()
    pixels = Decoder([tiny_bundle_with_decoder]).picture(packet)
    assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    by_file = client.classify_file(file.getvalue(), LABELS)
    by_packet = client.classify(frame, LABELS, rate="high")
    assert by_file.best.label == by_packet.best.label
    assert by_file.best.similarity == pytest.approx(by_packet.best.similarity, abs=0.01)  # 8-bit rounding


def test_a_folder_of_odd_and_broken_images_through_the_command_line(
    address, tiny_bundle_with_decoder, tmp_path, capsys
):
    good, bad = good_images(tmp_path), bad_images(tmp_path)
    words = ["--labels", ",".join(LABELS), "--server", address, "--bundle", str(tiny_bundle_with_decoder.path)]
    assert main(["classify", str(tmp_path), *words, "--json", "--top-k", "1"]) == 1
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(each["ok"] for each in records) == len(good)
    assert sum(not each["ok"] for each in records) == len(bad)
    assert all(len(each["predictions"]) == 1 for each in records if each["ok"])
    assert main(["classify", *map(str, good), *words]) == 0


def test_refusals_of_the_real_server_name_the_fix(client, address, tmp_path):
    with pytest.raises(Refused) as caught:
        client.classify_file(b"no image", LABELS)
    assert caught.value.server_reason == "BAD_IMAGE"
    stranger = make_tiny_bundle(tmp_path / "stranger", size=32, name="stranger")
    with Client(address, stranger) as other, pytest.raises(Refused, match=r"it holds: tiny \(") as caught:
        other.classify(synthetic_views(1, 40)[0], LABELS)
    assert caught.value.server_reason == "UNKNOWN_MODEL"


async def test_the_async_client_agrees(client, address, tiny_bundle_with_decoder, tmp_path):
    path = photo(tmp_path)
    async with AsyncClient(address, tiny_bundle_with_decoder) as twin:
        result = await twin.classify(path, LABELS)
    assert [each.label for each in result.predictions] == [e.label for e in client.classify(path, LABELS).predictions]

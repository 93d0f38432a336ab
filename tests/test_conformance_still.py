"""What tests/test_conformance.py asks of families with layers, asked of the shipped stills in their own terms.

Packets that were kept decode to the very pictures that they were, every rate is answered by the real service, and
damage gives typed errors and nothing else.
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise

import google_crc32c
import numpy as np
import pytest

if any(importlib.util.find_spec(name) is None for name in ("torch", "open_clip", "skimage")):
    pytest.skip("needs the extras cloud and bench", allow_module_level=True)

import torch

from benchmarks.data.photos import LABELS, wheel_photos
from cloud.decode import Decoder
from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from edge import Client
from edge.encoder import Encoder
from edge.errors import Refused
from edge.line.client import Question
from scripts.golden_stills import golden_packet, plain_packet, planes_hash, read_stills, still_differences
from tests.light_server import light_service
from thinwire.bundle import load_bundle
from thinwire.errors import PacketError
from thinwire.imaging import open_image
from thinwire.packet import Packet

FLIPS = 200


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("still")


@pytest.fixture(scope="module")
def packets(bundle) -> dict[str, bytes]:
    """Rate → the golden packet of a photograph."""
    return {rate: golden_packet(bundle, said) for rate, said in read_stills(bundle)["photos"]["chelsea.png"].items()}


@pytest.fixture(scope="module", params=["here", "without torch"])
def address(request, bundle, tmp_path_factory):
    if request.param == "without torch":
        with light_service("--bundle", bundle.path) as address:
            yield address
        return
    threads = torch.get_num_threads()
    with (
        open_engine(bundles=[bundle.path], device="cpu", threads=1, cache_dir=tmp_path_factory.mktemp("h")) as engine,
        background_server(engine) as address,
    ):
        yield address
    torch.set_num_threads(threads)


def test_golden_packets_decode_to_the_golden_pictures(bundle):
    golden = read_stills(bundle)
    assert len(golden["photos"]) == 2
    assert still_differences(bundle) == []


def test_a_packet_that_is_not_packed_is_answered_alike(bundle, packets, address):
    """What devices without a compiled coder send."""
    question = Question.check(LABELS, top_k=3, prompt_set="7")
    plain = {rate: bytes.fromhex(said["plain"]) for rate, said in read_stills(bundle)["photos"]["chelsea.png"].items()}
    assert any(plain[rate] != packets[rate] for rate in packets) == ("symbols" in bundle.card.wire)
    with Client(address, bundle) as client:
        for rate in bundle.rates:
            one, two = (client.uplink.classify(question.request(packet=each[rate])) for each in (plain, packets))
            assert [each.label for each in one.predictions] == [each.label for each in two.predictions]
            for a, b in zip(one.predictions, two.predictions):
                assert a.probability == pytest.approx(b.probability, abs=1e-4)


def test_a_golden_file_that_says_something_else_is_noticed(bundle, packets):
    assert planes_hash(bundle, packets["low"]) != planes_hash(bundle, packets["mid"])


def test_the_same_view_gives_the_same_packet(bundle):
    one, two = Encoder(bundle, threads=1), Encoder(bundle, threads=2)
    view = bundle.view(open_image(wheel_photos()[0].data))
    for rate in bundle.rates:
        assert one.encode(view, rate).packet == two.encode(view, rate).packet


def test_higher_rates_take_more_bytes_and_are_nearer_to_the_view(bundle):
    encoder, views = Encoder(bundle), [bundle.view(open_image(photo.data)) for photo in wheel_photos()]
    sizes, errors = [], []
    for rate in bundle.rates:
        coded = [encoder.encode(view, rate).packet for view in views]
        sizes.append(np.mean([len(packet) for packet in coded]))
        seen = [bundle.decode(packet).transpose(1, 2, 0).astype(float) for packet in coded]
        errors.append(np.mean([(got - view) ** 2 for got, view in zip(seen, views)]))
    assert all(more > fewer for fewer, more in pairwise(sizes)), sizes
    assert all(better < worse for worse, better in pairwise(errors)), errors


def test_every_rate_is_answered_by_the_service(bundle, address):
    right = []
    with Client(address, bundle) as client:
        client.check()
        for rate in bundle.rates:
            results = [client.classify(photo.data, LABELS, prompt_set="7", rate=rate) for photo in wheel_photos()]
            assert {result.layers for result in results} == {1}
            right.append(sum(result.best.label == photo.label for result, photo in zip(results, wheel_photos())))
    assert right[-1] >= right[0], right
    assert right[-1] >= len(wheel_photos()) / 2, right  # chance is 0.6 of 12


def test_clip_sees_the_pixels_that_av1_kept(bundle, packets):
    seen = Decoder([bundle]).picture(packets["mid"])
    assert np.array_equal(seen, bundle.decode(Packet.from_bytes(packets["mid"])).transpose(1, 2, 0))


def test_grain_makes_another_picture_and_always_the_same(bundle, packets):
    import synthesis

    spec = {**bundle.card.cloud["synthesis"], "grain": [4.0] * len(bundle.rates)}
    planes = bundle.decode(Packet.from_bytes(packets["mid"])).astype(np.float32)  # (3, H, W)
    asked = torch.from_numpy(planes)[None], torch.tensor([bundle.rates["mid"]])
    seen, again = (synthesis.build(spec)(*asked)[0].numpy() * 255 for _ in range(2))
    assert 1 < (seen - planes).std() < 8
    assert abs((seen - planes).mean()) < 0.5
    assert np.array_equal(seen, again)


def test_the_service_refuses_poison_and_goes_on(bundle, address, packets):
    """A cut packet, half a frame, one of a rung that there is not, two frames, another model: between good ones."""
    question, good = Question.check(LABELS, top_k=1, prompt_set="7"), packets["mid"]
    payload = Packet.from_bytes(good).layers[0]
    plain = Packet.from_bytes(plain_packet(bundle, good)).layers[0]
    poisons = [
        good[:-5],
        Packet(bundle.model_id, (plain[: len(plain) // 2],)).to_bytes(),
        Packet(bundle.model_id, (b"\xc3" + payload[1:],)).to_bytes(),  # packed, and its lead cut off
        Packet(bundle.model_id, (b"\x0f" + payload[1:],)).to_bytes(),
        Packet(bundle.model_id, (payload, payload)).to_bytes(),
        Packet(bytes(255 - byte for byte in bundle.model_id), (payload,)).to_bytes(),
    ]
    with Client(address, bundle) as client:
        before = client.uplink.classify(question.request(packet=good))
        for poison in poisons:
            with pytest.raises(Refused):
                client.uplink.classify(question.request(packet=poison))
        after = client.uplink.classify(question.request(packet=good))
    assert [each.label for each in after.predictions] == [each.label for each in before.predictions]


def test_a_packet_cut_anywhere_is_refused(bundle, packets):
    data = packets["mid"]
    for length in range(len(data)):
        with pytest.raises(PacketError):
            bundle.decode(Packet.from_bytes(data[:length]))


def test_damage_under_a_correct_checksum_is_an_error_or_another_picture(bundle, packets):
    """Forged: the CRC fits. AV1 has no checksum of its own, so another picture is all that can be promised."""
    data, rng = packets["mid"], np.random.default_rng(0)
    for place in rng.integers(0, 8 * (len(data) - 4), FLIPS):
        forged = bytearray(data[:-4])
        forged[place // 8] ^= 1 << place % 8
        forged += google_crc32c.value(bytes(forged)).to_bytes(4, "little")
        try:
            planes = bundle.decode(Packet.from_bytes(bytes(forged)))
        except PacketError:
            continue
        assert (planes.dtype, planes.shape) == (np.uint8, bundle.latent_shape)

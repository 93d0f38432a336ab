"""What ships must do what was promised: exact packets, prefixes that answer, and nothing but typed errors on damage.

Every bundle in thinwire/models is tested, whatever its family; the server, CLIP and photographs are the real ones.
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
from safetensors.torch import load_file, save_file

import synthesis
from benchmarks.photos import LABELS, wheel_photos
from cloud.assemble import open_engine
from cloud.server import background_server
from edge import Client
from edge.client import Question
from edge.encoder import Encoder
from scripts.golden_packets import LEAST_EQUAL, describe_packets, encode_photos, read_golden
from thinwire.bundle import load_bundle, shipped_bundles, write_bundle
from thinwire.errors import PacketError
from thinwire.imaging import open_image
from thinwire.packet import Packet
from thinwire.tables import Tables

FLIPS = 200


@pytest.fixture(scope="module", params=shipped_bundles() or ["none"])
def bundle(request):
    return load_bundle(request.param)


@pytest.fixture(scope="module")
def golden(bundle):
    return read_golden(bundle)


@pytest.fixture(scope="module")
def packet(bundle, golden) -> Packet:
    """A real photograph's packet with all layers."""
    symbols, _ = golden
    return Packet(bundle.model_id, tuple(bundle.coder.encode(symbols["chelsea.png"])))


def test_at_least_one_bundle_ships():
    assert shipped_bundles()


# Golden packets


def test_golden_symbols_become_the_golden_packets_to_the_byte(bundle, golden):
    symbols, document = golden
    assert len(symbols) == 2
    assert describe_packets(bundle, symbols) == document, "see scripts/golden_packets.py: a new bundle, or a break?"


def test_golden_packets_decode_to_the_golden_symbols(bundle, golden):
    for symbols in golden[0].values():
        for rate, count in bundle.rates.items():
            decoded = bundle.decode(Packet.from_bytes(bundle.encode(symbols, rate).to_bytes()))
            sent = bundle.coder.layers[count - 1][1]  # channels
            assert np.array_equal(decoded[:sent], symbols[:sent])
            assert not decoded[sent:].any()


def test_the_encoder_gives_the_golden_symbols_up_to_ties_in_rounding(bundle, golden):
    found = encode_photos(bundle)
    for name, symbols in golden[0].items():
        assert (found[name] == symbols).mean() >= LEAST_EQUAL[bundle.card.cloud["output"]], name


# Determinism


def test_one_and_two_encoder_threads_write_the_same_packets(bundle):
    one, two = (Encoder(bundle, threads=threads, precision="fp32") for threads in (1, 2))
    top = list(bundle.rates)[-1]
    for photo in wheel_photos()[:6]:
        view = bundle.view(open_image(photo.data))
        assert one.encode(view, top).packet.to_bytes() == two.encode(view, top).packet.to_bytes(), photo.name


def test_float_noise_in_the_decoder_reaches_no_symbol(bundle, golden, packet, tmp_path):
    """Another GPU, another rounding: what CLIP sees may differ a little, the symbols may not."""
    noise = torch.Generator().manual_seed(0)
    weights = {
        name: (value.float() * (1 + 1e-3 * torch.randn(value.shape, generator=noise)))
        for name, value in load_file(bundle.decoder_path).items()
    }
    save_file(weights, tmp_path / "noisy.safetensors")
    noisy = write_bundle(
        tmp_path / "noisy",
        name=bundle.name,
        wire={key: value for key, value in bundle.card.wire.items() if key != "tables_sha256"},
        tables=Tables.from_bytes((bundle.path / "tables.npz").read_bytes()),
        encoder=bundle.encoder_path("fp32"),
        decoder=tmp_path / "noisy.safetensors",
        edge={key: value for key, value in bundle.card.edge.items() if key != "files"},
        cloud={key: value for key, value in bundle.card.cloud.items() if key != "files"},
    )
    assert noisy.model_id == bundle.model_id
    symbols = noisy.decode(packet)
    assert np.array_equal(symbols, golden[0]["chelsea.png"])
    with torch.inference_mode():
        ask = torch.from_numpy(symbols)[None].float(), torch.tensor([len(packet.layers)])
        clean, disturbed = synthesis.load(bundle)(*ask), synthesis.load(noisy)(*ask)
    assert not torch.equal(clean, disturbed)  # the noise was real
    assert (clean - disturbed).abs().mean() < 0.02


# Through the real service


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """One server with clip-lite that holds every shipped bundle."""
    threads = torch.get_num_threads()
    folders = list(shipped_bundles().values())
    with (
        open_engine(bundles=folders, device="cpu", threads=1, cache_dir=tmp_path_factory.mktemp("heads")) as engine,
        background_server(engine) as address,
    ):
        yield address
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def answers(bundle, address):
    """Layers sent → the server's reply for each photograph of `wheel_photos`: every prefix of its longest packet."""
    question, replies = Question.check(LABELS, top_k=len(LABELS), prompt_set="7"), {}
    with Client(address, bundle, precision="fp32") as client:
        client.check()
        symbols = [client.encoder.symbols(bundle.view(open_image(photo.data))) for photo in wheel_photos()]
        packets = [Packet(bundle.model_id, tuple(bundle.coder.encode(each))) for each in symbols]
        for count in range(1, len(bundle.coder.layers) + 1):
            parts = [packet.prefix(count).to_bytes() for packet in packets]
            replies[count] = [client.uplink.classify(question.request(packet=part)) for part in parts]
    return replies


def test_every_prefix_of_a_packet_is_answered_by_the_service(bundle, answers):
    assert len(answers) == len(bundle.coder.layers)
    for replies in answers.values():
        for reply in replies:
            probabilities = [each.probability for each in reply.predictions]
            assert sum(probabilities) == pytest.approx(1, abs=1e-4)
            assert probabilities == sorted(probabilities, reverse=True)


def test_more_layers_do_not_answer_worse(answers):
    """Top-1 over the twelve photographs: at most one fewer for each layer added, and none fewer at the end."""
    truth = [photo.label for photo in wheel_photos()]
    right = [sum(r.predictions[0].label == t for r, t in zip(replies, truth)) for replies in answers.values()]
    assert all(more >= fewer - 1 for fewer, more in pairwise(right)), right
    assert right[-1] >= right[0], right
    assert right[-1] >= len(truth) / 2, right  # chance is 0.6 of 12


def test_the_edge_and_a_bare_prefix_get_the_same_answer(bundle, address, answers):
    with Client(address, bundle, precision="fp32") as client:
        for rate, count in bundle.rates.items():
            result = client.classify(wheel_photos()[0].data, LABELS, prompt_set="7", rate=rate)
            best = answers[count][0].predictions[0]
            assert (result.layers, result.best.label) == (count, best.label)
            assert result.best.probability == pytest.approx(best.probability, abs=1e-3)


# Damage


def test_a_packet_cut_anywhere_is_refused(bundle, packet):
    """Also at a layer's end: a lower rate is framed anew (`prefix`), it is never a cut packet."""
    data = packet.to_bytes()
    for length in range(len(data)):
        with pytest.raises(PacketError):
            bundle.decode(Packet.from_bytes(data[:length]))


def test_damage_under_a_correct_checksum_is_an_error_or_another_valid_packet(bundle, packet):
    """Forged: the CRC fits. Either it is refused, or its symbols are those whose one packet this is."""
    data, rng = packet.to_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, 8 * len(data), FLIPS):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(PacketError):
            bundle.decode(Packet.from_bytes(bytes(damaged)))
    for place in rng.integers(0, 8 * (len(data) - 4), FLIPS):
        forged = bytearray(data[:-4])
        forged[place // 8] ^= 1 << place % 8
        forged += google_crc32c.value(bytes(forged)).to_bytes(4, "little")
        try:
            parsed = Packet.from_bytes(bytes(forged))
            symbols = bundle.decode(parsed)
        except PacketError:
            continue
        again = Packet(bundle.model_id, tuple(bundle.coder.encode(symbols, len(parsed.layers))))
        assert again.to_bytes() == bytes(forged)


def test_a_payload_cut_anywhere_is_an_error_or_another_valid_one(bundle, packet):
    """The last layer's payload, framed with its new length: what a sender with a bug would write."""
    *kept, last = packet.layers
    for length in range(0, len(last), max(1, len(last) // 100)):
        try:
            symbols = bundle.decode(Packet(bundle.model_id, (*kept, last[:length])))
        except PacketError:
            continue
        assert bundle.coder.encode(symbols)[-1] == last[:length]

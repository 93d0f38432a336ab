"""One suite for the bundle of every family: exact packets, prefixes that answer, nothing but typed errors on damage.

Stills are lossy and have no layers: tests/test_conformance_still.py asks the same of them in their own terms.

Every bundle in thinwire/models is tested, and of each family that ships none one that a few steps of
`thinwire-export train` made here; the server, CLIP and photographs are the real ones. Golden files exist for what
ships, and only what ships must answer well.
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import google_crc32c
import numpy as np
import onnxruntime as ort
import pytest

if any(importlib.util.find_spec(name) is None for name in ("torch", "open_clip", "skimage", "timm", "onnxscript")):
    pytest.skip("needs the extras cloud, export and bench", allow_module_level=True)

import torch
from safetensors.torch import load_file, save_file

import synthesis
from benchmarks.data.photos import LABELS, wheel_photos
from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from edge import Client
from edge.encoder import Encoder
from edge.errors import Refused
from edge.line.client import Question
from export.graphs import write_bundle_graph
from scripts.golden_packets import LEAST_EQUAL, describe_packets, encode_photos, read_golden
from tests.light_server import light_service
from tests.trained_bundles import bundle_of, family_names
from thinwire import still
from thinwire.bundle import load_bundle, shipped_bundles, write_bundle
from thinwire.errors import MissingFile, PacketError
from thinwire.imaging import open_image
from thinwire.packet import Packet
from thinwire.tables import Tables

pytestmark = pytest.mark.slow

FLIPS = 200
HOSTILE = sorted((Path(__file__).parent / "thinwire" / "hostile").glob("*.bin"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where bundles of families that ship none are made; they share a cache."""
    threads = torch.get_num_threads()
    yield tmp_path_factory.mktemp("made")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[name for name in family_names() if name != still.FAMILY])
def bundle(request, made):
    return load_bundle(bundle_of(request.param, made))


@pytest.fixture(scope="module")
def ships(bundle) -> bool:
    return bundle.path in shipped_bundles().values()


@pytest.fixture(scope="module")
def golden(bundle, ships):
    """Symbols and packets that were written down; for a bundle made here, what an encoder of its own gives now."""
    if ships:
        return read_golden(bundle)
    symbols = encode_photos(bundle)
    return symbols, describe_packets(load_bundle(bundle.path), symbols)


@pytest.fixture(scope="module")
def packet(bundle, golden) -> Packet:
    """A real photograph's packet with all layers."""
    symbols, _ = golden
    return Packet(bundle.model_id, tuple(bundle.coder.encode(symbols["chelsea.png"])))


def test_at_least_one_bundle_ships():
    assert shipped_bundles()


def test_the_card_names_a_family_that_there_is(bundle):
    assert bundle.card.wire["family"] in family_names()
    training = bundle.card.about["training"]
    assert min(training["encoder_parameters"], training["decoder_parameters"]) > 0
    assert training["data"].startswith("photos-train")


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


# The encoder's file


def test_the_card_states_that_onnx_gives_what_torch_gives(bundle):
    """The export refuses to write a bundle where it does not (`check_parity`); the card says on how many images."""
    parity = bundle.card.about["parity"]
    assert parity["images"] >= 8
    least = parity.get("least_cosine")  # of an embedding: one symbol at a tie moves those of later stages
    if least:
        assert least["onnx"] > least["torch"] - 1e-3
    else:
        assert parity["equal_symbols"] >= 0.999


def test_graph_optimisations_leave_the_symbols_alone(bundle):
    """ONNX Runtime's fused kernels against its plain ones, of each encoder in the bundle, on photographs."""
    views = np.stack([bundle.view(open_image(photo.data)) for photo in wheel_photos()[:4]])
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    floors = {"fp32": LEAST_EQUAL[bundle.card.cloud["output"]], "int8": 0.97}
    for precision, floor in floors.items():
        try:
            path = bundle.encoder_path(precision)
        except MissingFile:
            assert precision == "int8"
            continue
        plain = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        wanted = np.concatenate([plain.run(["symbols"], {"image": view[None]})[0] for view in views])
        encoder = Encoder(bundle, precision=precision)
        found = np.stack([encoder.symbols(view) for view in views])
        assert (found == wanted).mean() >= floor, precision


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


@pytest.fixture(scope="module", params=["here", "without torch"])
def address(request, bundle, ships, made):
    """A server with clip-lite that holds the bundle: of this process; of one where PyTorch is not installed."""
    if request.param == "without torch":
        if not ships:
            write_bundle_graph(bundle)
        with light_service("--bundle", bundle.path) as address:
            yield address
        return
    with (
        open_engine(bundles=[bundle.path], device="cpu", threads=1, cache_dir=made / "heads") as engine,
        background_server(engine) as address,
    ):
        yield address


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


@pytest.mark.parametrize(
    "bundle", [name for name in shipped_bundles() if name != still.FAMILY], indirect=True
)  # the others have learnt nothing
def test_more_layers_do_not_answer_worse(bundle, answers):
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


def test_hostile_files_are_refused(bundle):
    """The folder of tests/thinwire/hostile: packets of no model, and damage of every kind."""
    assert len(HOSTILE) > 20
    for path in HOSTILE:
        with pytest.raises(PacketError):
            bundle.decode(Packet.from_bytes(path.read_bytes()))


def test_the_service_refuses_poison_and_goes_on(bundle, address, packet):
    """A cut packet, one that a stranger lengthened and framed anew, and one of another model, between good ones."""
    question = Question.check(LABELS, top_k=1, prompt_set="7")
    first = packet.layers[0]
    # Bytes of the right length may by chance be another picture's packet; so many more never are.
    altered = Packet(bundle.model_id, (first + b"\x01" * 1000, *packet.layers[1:]))
    other = Packet(bytes(255 - byte for byte in bundle.model_id), packet.layers)
    with Client(address, bundle, precision="fp32") as client:
        before = client.uplink.classify(question.request(packet=packet.to_bytes()))
        for poison in (packet.to_bytes()[:-5], altered.to_bytes(), other.to_bytes()):
            with pytest.raises(Refused):
                client.uplink.classify(question.request(packet=poison))
        after = client.uplink.classify(question.request(packet=packet.to_bytes()))
    assert [each.label for each in after.predictions] == [each.label for each in before.predictions]


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

"""A replica as Ray makes it, without Ray: it loads what `thinwire-cloud serve` loads, and answers as that server."""

from __future__ import annotations

import asyncio
import inspect
from itertools import pairwise
from unittest.mock import MagicMock

import grpc
import pytest

from benchmarks.data.photos import wheel_photos
from cloud.cli import _open, _parser
from cloud.config import load_config
from cloud.errors import BadConfiguration
from cloud.front.server import background_server
from cloud.networks import assemble
from cloud.ray_replica import RaySettings, Replica
from edge.encoder import Encoder
from tests.cloud.adapters import write_random_adapter
from tests.cloud.random_variant import random_variant
from tests.cloud.served import LABELS, classify
from thinwire.bundle import load_bundle
from thinwire.v1 import inference_pb2_grpc

DECIDES_ANSWERS = (
    "clip",
    "bundles",
    "adapters",
    "decoders",
    "precision",
    "runtime",
    "clip_backend",
    "synthesis_backend",
)


def config_of(flags):
    return load_config(_parser().parse_args(["serve", *flags]), {})


def plain_answer(flags, request):
    engine = _open(config_of([*flags, "--device", "cpu", "--threads", "1"]))
    with background_server(engine) as address, grpc.insecure_channel(address) as channel:
        return inference_pb2_grpc.InferenceServiceStub(channel).Classify(request, timeout=60)


def replica_answer(request, **settings):
    replica = Replica(vars(RaySettings(**settings)))
    context = MagicMock()
    context.invocation_metadata.return_value, context.peer.return_value = (), "test"
    reply = asyncio.run(replica.Classify(request, context))
    context.set_code.assert_not_called()
    replica.__del__()
    return reply


def similarities(reply):
    return {each.label: each.similarity for each in reply.predictions}


def test_where_nothing_is_named_it_adds_the_adapter_that_the_server_adds():
    packet = Encoder(load_bundle("still")).encode_image(wheel_photos()[0].data, "low").packet.to_bytes()
    request = classify(packet, top_k=len(LABELS))
    served = similarities(plain_answer(["--bundle", "still"], request))
    assert similarities(replica_answer(request, bundles=("still",))) == pytest.approx(served, abs=1e-6)
    plain = similarities(replica_answer(request, bundles=("still",), adapters=("none",)))
    assert plain == pytest.approx(similarities(plain_answer(["--bundle", "still", "--adapter", "none"], request)))
    assert max(abs(plain[label] - served[label]) for label in plain) > 0.01


def test_adapters_and_decoders_of_ones_own_answer_as_on_the_server(
    tiny_clip_dir, tiny_clip, tiny_codec, make_packet, tmp_path
):
    decoder = random_variant(tmp_path / "decoder", tiny_codec, tiny_clip, "pixels")
    adapter = write_random_adapter(tmp_path / "adapter", tiny_clip, tiny_codec, ("low",), decoder=decoder)
    shared = {"clip": (str(tiny_clip_dir),), "bundles": (str(tiny_codec.path),)}
    flags = ["--clip", str(tiny_clip_dir), "--bundle", str(tiny_codec.path)]
    told = []
    for parts in (
        {},
        {"decoders": (str(decoder.path),)},
        {"decoders": (str(decoder.path),), "adapters": (str(adapter.path),)},
    ):
        request = classify(make_packet(3, 1), top_k=len(LABELS))
        words = [word for name, (folder,) in parts.items() for word in (f"--{name[:-1]}", folder)]
        told.append(similarities(replica_answer(request, **shared, **parts)))
        assert told[-1] == pytest.approx(similarities(plain_answer([*flags, *words], request)), abs=1e-6)
    for one, other in pairwise(told):
        assert max(abs(one[label] - other[label]) for label in one) > 1e-3


def test_both_ways_of_serving_say_the_same_of_the_networks(monkeypatch):
    """A setting that one of them passes on and the other does not would let them differ again."""
    calls = []
    signature = inspect.signature(assemble.open_engine)

    def record(*args, **kwargs):
        calls.append(signature.bind(*args, **kwargs).arguments)
        return MagicMock()

    monkeypatch.setattr("cloud.networks.assemble.open_engine", record)
    monkeypatch.setattr("cloud.front.process_tuning.settle_process", lambda: None)
    _open(config_of([]))
    Replica(vars(RaySettings()))
    served, replica = calls
    assert served.keys() == replica.keys()
    for name in DECIDES_ANSWERS:
        one, other = (list(each) if isinstance(each, tuple) else each for each in (served[name], replica[name]))
        assert one == other, name


def test_the_words_of_serve_run_become_settings_of_their_kind():
    words = {"clip": "a, b", "adapters": "none", "batch": "4", "gpus": "0.5", "runtime": "torch", "min_replicas": 2}
    assert RaySettings.of_words(words) == RaySettings(
        clip=("a", "b"), adapters=("none",), batch=4, gpus=0.5, runtime="torch", min_replicas=2
    )
    with pytest.raises(BadConfiguration, match=r"adapter: replicas have no such setting; known: .*adapters"):
        RaySettings.of_words({"adapter": "none"})
    with pytest.raises(BadConfiguration, match=r"batch: .*four"):
        RaySettings.of_words({"batch": "four"})

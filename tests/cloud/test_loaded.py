"""Several CLIPs and bundles: lazy loading, the memory budget, and a reload that is whole or nothing."""

from __future__ import annotations

import shutil
import threading

import grpc
import numpy as np
import pytest

import cloud.networks.runner
from cloud.engine.items import EngineLimits
from cloud.engine.text_heads import HeadCache
from cloud.errors import BadConfiguration, ClipUnavailable, UnknownClip
from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from cloud.networks.model_cache import ModelCache
from tests.cloud.served import classify
from tests.cloud.tiny_clip import write_tiny_clip
from tests.cloud.tiny_codec import write_tiny_codec
from tests.waiting import until
from thinwire.errors import AlteredFile
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc


@pytest.fixture(scope="module")
def second_clip_dir(tmp_path_factory):
    """Another CLIP with views of another size."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "second-clip", seed=9, image_size=48)


@pytest.fixture
def folders(tmp_path, tiny_clip_dir, tiny_codec):
    """A CLIP and a bundle of one's own, to be changed."""
    shutil.copytree(tiny_clip_dir, tmp_path / "one")
    shutil.copytree(tiny_codec.path, tmp_path / "codec")
    return tmp_path


def opened(clips, bundles, **kwargs):
    return open_engine([str(clip) for clip in clips], list(bundles), "cpu", 1, EngineLimits(queue_items=64), **kwargs)


def vector(engine, packet, clip=""):
    return engine.submit(packet=packet, clip=clip).result(60).embedding


def test_a_second_clip_is_loaded_by_the_first_request_that_names_it(
    tiny_clip_dir, second_clip_dir, tiny_codec, make_packet, tmp_path
):
    with opened([tiny_clip_dir, second_clip_dir], [tiny_codec.path], cache_dir=tmp_path) as engine:
        assert engine.models.names() == ("tiny-random-clip", "second-clip")
        assert engine.models.clip_of("second-clip") is None
        ask = {"packet": make_packet(), "labels": ("cat", "dog")}
        futures = [engine.submit(**ask, clip=clip) for clip in ("", "second-clip") * 4]
        answers = [future.result(60) for future in futures]
        assert engine.models.clip_of("second-clip") is not None
        for answer in answers[2:]:
            twin = answers[0] if np.allclose(answer.embedding, answers[0].embedding, atol=1e-5) else answers[1]
            np.testing.assert_allclose(answer.embedding, twin.embedding, atol=1e-5)
        assert not np.allclose(answers[0].embedding, answers[1].embedding, atol=1e-2)
        heads = HeadCache(engine.models.clip_of("second-clip").heads.clip)
        cosines = heads.load(("cat", "dog"), ("a photo of a {}.",)).classes @ answers[1].embedding
        assert answers[1].predictions[0].similarity == pytest.approx(float(cosines.max()), abs=1e-5)
        texts = engine.submit_texts(["cat"], clip="second-clip").result(60)
        np.testing.assert_allclose(texts, heads.clip.encode_texts(["cat"]), atol=1e-5)
        with pytest.raises(UnknownClip):
            engine.submit(**ask, clip="third")


def test_beyond_the_budget_the_least_recently_used_leaves_and_comes_back(
    tiny_clip_dir, second_clip_dir, tiny_codec, make_packet, tmp_path
):
    clips = [tiny_clip_dir, second_clip_dir]
    with opened(clips, [tiny_codec.path], cache_dir=tmp_path, model_bytes=1) as engine:
        before = vector(engine, make_packet())
        other = vector(engine, make_packet(), "second-clip")
        assert engine.model_cache.counts["evictions"] >= 2
        assert engine.model_cache.held_bytes > 0  # the newest stays, whatever its size
        np.testing.assert_allclose(vector(engine, make_packet()), before, atol=1e-5)
        np.testing.assert_allclose(vector(engine, make_packet(), "second-clip"), other, atol=1e-5)


def test_a_clip_that_cannot_be_loaded_fails_its_requests_and_no_others(folders, tiny_clip_dir, tiny_codec, make_packet):
    broken = folders / "broken"
    shutil.copytree(tiny_clip_dir, broken)
    (broken / "open_clip_model.safetensors").write_bytes(b"not weights")
    with opened([tiny_clip_dir, broken], [tiny_codec.path], cache_dir=folders / "heads") as engine:
        for _ in range(2):
            with pytest.raises(ClipUnavailable):
                vector(engine, make_packet(), "broken")
        assert engine.model_cache.counts["failures"] == 1  # the second was told without a second try
        assert vector(engine, make_packet()).shape == (32,)


def test_two_folders_of_one_name_are_refused(tiny_clip_dir, tiny_codec, tmp_path):
    shutil.copytree(tiny_clip_dir, tmp_path / tiny_clip_dir.name)
    with pytest.raises(BadConfiguration, match="rename a folder"):
        opened([tiny_clip_dir, tmp_path / tiny_clip_dir.name], [tiny_codec.path])


def test_a_reload_takes_the_new_decoder_and_keeps_what_did_not_change(folders, make_packet):
    with opened([folders / "one"], [folders / "codec"], cache_dir=folders / "heads") as engine:
        before, clip = vector(engine, make_packet()), engine.heads.clip
        engine.reload()
        assert engine.heads.clip is clip  # nothing had changed on disk
        np.testing.assert_allclose(vector(engine, make_packet()), before, atol=1e-6)
        replace_decoder(folders / "codec")
        engine.reload()
        assert not np.allclose(vector(engine, make_packet()), before, atol=1e-3)
        assert engine.heads.clip is clip
        assert len(engine.model_cache._held) == 2  # the old decoder is gone


def replace_decoder(folder):
    """The same wire format (and so the same model id) with other decoder weights."""
    import json

    import torch
    from safetensors.torch import save

    import synthesis
    from thinwire.bundle import load_bundle, write_bundle

    old = load_bundle(folder)
    torch.manual_seed(77)
    weights = save(synthesis.build(old.card.cloud["synthesis"]).state_dict())
    card = json.loads((folder / "card.json").read_text())
    new = write_bundle(
        folder,
        name=old.name,
        wire={key: value for key, value in card["wire"].items() if key != "tables_sha256"},
        tables=old.coder.tables,
        encoder=b"no encoder: the cloud does not need one",
        decoder=weights,
        cloud={"output": "pixels", "synthesis": old.card.cloud["synthesis"]},
    )
    assert new.model_id == old.model_id


def test_a_reload_that_fails_leaves_everything_as_it_was(folders, make_packet):
    with opened([folders / "one"], [folders / "codec"], cache_dir=folders / "heads") as engine:
        before, models = vector(engine, make_packet()), engine.models
        decoder = folders / "codec" / "decoder.safetensors"
        good = decoder.read_bytes()
        decoder.write_bytes(good[:-1])
        with pytest.raises(AlteredFile, match=r"decoder\.safetensors"):
            engine.reload()
        decoder.write_bytes(good)
        (folders / "one" / "open_clip_model.safetensors").write_bytes(b"half a copy")
        with pytest.raises(ClipUnavailable):
            engine.reload()
        assert engine.models is models
        np.testing.assert_array_equal(vector(engine, make_packet()), before)


def test_requests_under_way_keep_the_models_they_were_accepted_with(folders, make_packet):
    with opened([folders / "one"], [folders / "codec"], cache_dir=folders / "heads") as engine:
        before = vector(engine, make_packet())
        gate, old = threading.Event(), engine.models
        with engine._runner._lock:
            busy = engine.submit(packet=make_packet())
            busy.add_done_callback(lambda _: gate.wait(60))  # which holds the device thread
            until(busy.running)
        waiting = [engine.submit(packet=make_packet()) for _ in range(4)]
        replace_decoder(folders / "codec")
        reload = threading.Thread(target=engine.reload)
        reload.start()
        until(lambda: engine.models is not old)
        reload.join(0.2)
        assert reload.is_alive()  # until what waits has its nets
        gate.set()
        reload.join(60)
        for future in waiting:
            np.testing.assert_allclose(future.result(60).embedding, before, atol=1e-5)
        assert not np.allclose(vector(engine, make_packet()), before, atol=1e-3)


def test_the_server_tells_what_is_loaded_and_answers_by_clip(
    tiny_clip_dir, second_clip_dir, tiny_codec, make_packet, tmp_path
):
    engine = opened([tiny_clip_dir, second_clip_dir], [tiny_codec.path], cache_dir=tmp_path)
    with background_server(engine) as address, grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60)
        assert [(each.name, each.loaded, each.image_size) for each in info.clips] == [
            ("tiny-random-clip", True, 64),
            ("second-clip", False, 0),
        ]
        assert info.bundles[0].loaded
        got = stub.Classify(classify(make_packet(), clip="second-clip"), timeout=60)
        assert got.model.clip == "second-clip"
        again = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60)
        assert [each.loaded for each in again.clips] == [True, True]


def test_a_bundle_of_vectors_is_refused_with_one_clip_and_answered_with_its_own(
    tiny_clip_dir, second_clip_dir, tiny_codec, tmp_path, monkeypatch
):
    vectors = write_tiny_codec(tmp_path / "vectors", seed=4, clip="second-clip", output="embedding")
    monkeypatch.setattr("cloud.networks.parts.shipped_bundles", lambda: {"vectors": vectors.path})
    monkeypatch.setattr(
        cloud.networks.runner.TorchRunner,
        "load_net",
        lambda self, bundle, clip, variant=None: cloud.networks.runner.Net(_Ones(clip.embed_dim), True),
    )
    symbols = np.ones(vectors.latent_shape, np.int32)
    packet = Packet(vectors.model_id, tuple(vectors.coder.encode(symbols))).to_bytes()
    with open_engine([str(tiny_clip_dir), str(second_clip_dir)], None, "cpu", 1, cache_dir=tmp_path) as engine:
        with pytest.raises(cloud.errors.ClipMismatch, match="second-clip"):
            vector(engine, packet)
        assert vector(engine, packet, "second-clip") == pytest.approx(np.full(32, 32**-0.5), abs=1e-6)


class _Ones:
    nbytes = 0

    def __init__(self, dim):
        self.dim = dim

    def __call__(self, symbols, n_layers):
        import torch

        return torch.ones(len(symbols), self.dim)


def test_a_model_cache_loads_each_key_once_whoever_asks():
    model_cache, started, go, calls = ModelCache(), threading.Event(), threading.Event(), []

    def make():
        calls.append(1)
        started.set()
        assert go.wait(60)
        return "value", 1

    got = []
    threads = [threading.Thread(target=lambda: got.append(model_cache.load("key", make))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(60)
    go.set()
    for thread in threads:
        thread.join(60)
    assert (got, calls) == (["value"] * 3, [1])


def test_a_model_cache_drops_the_least_recently_used_first():
    model_cache = ModelCache(10)
    for key, size in (("a", 4), ("b", 4)):
        model_cache.load(key, lambda key=key, size=size: (key, size))
    assert model_cache.find("a") == "a"
    model_cache.load("c", lambda: ("c", 4))
    assert [model_cache.find(key) for key in "abc"] == ["a", None, "c"]
    model_cache.load("d", lambda: ("d", 99))
    assert [model_cache.find(key) for key in "abcd"] == [None, None, None, "d"]

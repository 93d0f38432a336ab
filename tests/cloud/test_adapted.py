"""An adapter on a real server: other answers at its rates, the same everywhere else; and what is refused at start."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil

import grpc
import numpy as np
import pytest
import torch

import synthesis
from benchmarks.data.photos import wheel_photos
from cloud.cli import main
from cloud.engine.items import EngineLimits
from cloud.front.server import background_server
from cloud.networks.adapted import served_adapters
from cloud.networks.assemble import open_engine
from cloud.networks.choice import Asked, open_runtime
from cloud.networks.clip import load_clip
from cloud.networks.loaded import LoadedModels
from cloud.networks.model_cache import ModelCache
from cloud.networks.precision import check_images
from cloud.networks.torch_runtime import TorchRuntime, adapted_clip
from edge.encoder import Encoder
from synthesis.adapter import load_adapter, shipped_adapters
from synthesis.variant import load_variant
from tests.cloud.adapters import write_random_adapter
from tests.cloud.random_variant import random_variant
from tests.cloud.served import LABELS, classify, jpeg
from tests.cloud.tiny_clip import write_tiny_clip
from tests.cloud.tiny_codec import write_tiny_codec
from tests.tiny_bundle import make_tiny_still, synthetic_views
from thinwire.bundle import load_bundle
from thinwire.entropy import compiled_module
from thinwire.errors import AdapterError
from thinwire.imaging import open_image
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2_grpc


@pytest.fixture(scope="module")
def adapter(tiny_clip, tiny_codec, tmp_path_factory):
    """For rate "low": one layer."""
    return write_random_adapter(tmp_path_factory.mktemp("adapter") / "low", tiny_clip, tiny_codec)


def opened(clip, codec, adapters=(), **kwargs):
    clips = [str(each) for each in clip] if isinstance(clip, list) else str(clip)
    folders = [each.path for each in adapters]
    return open_engine(clips, [codec.path], "cpu", 1, EngineLimits(queue_items=64), adapters=folders, **kwargs)


def similarities(address, packet=None, image_file=b""):
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        reply = stub.Classify(classify(packet, image_file=image_file, top_k=len(LABELS)), timeout=60)
    return {each.label: each.similarity for each in reply.predictions}


def test_a_server_with_it_answers_otherwise_at_its_rate_and_the_same_at_others(
    tiny_clip_dir, tiny_codec, adapter, make_packet, tmp_path
):
    asked = [{"packet": make_packet(3, 1)}, {"packet": make_packet(3, 2)}, {"image_file": jpeg()}]
    told = []
    for adapters in ((), (adapter,)):
        with background_server(opened(tiny_clip_dir, tiny_codec, adapters, cache_dir=tmp_path)) as address:
            told.append([similarities(address, **each) for each in asked])
    (plain_low, *plain), (adapted_low, *adapted) = told
    assert adapted == plain
    assert max(abs(plain_low[label] - adapted_low[label]) for label in plain_low) > 0.01


def test_one_batch_may_hold_both_towers(tiny_clip_dir, tiny_codec, adapter, make_packet, tmp_path):
    packets = [make_packet(seed, 1 + seed % 2) for seed in range(6)]
    with opened(tiny_clip_dir, tiny_codec, (adapter,), cache_dir=tmp_path) as engine:
        alone = [engine.submit(packet=packet).result(60).embedding for packet in packets]
        futures = [engine.submit(packet=packet) for packet in packets] + [engine.submit(image_file=jpeg())]
        together = [future.result(60).embedding for future in futures][:-1]
        np.testing.assert_allclose(together, alone, atol=1e-5)
        prepared = [engine.intake.prepare(packet, None) for packet in packets]
        loaded = engine.models.clip_of(engine.models.default)
        attached = [engine.models.attach(loaded, item) for item in prepared]
        assert len({id(item.clip) for item in attached}) == 2
        np.testing.assert_allclose(engine._runner.run(attached).embeddings, alone, atol=1e-5)


def test_the_tower_is_made_by_the_first_packet_that_needs_it_and_counted(
    tiny_clip_dir, tiny_codec, adapter, make_packet, tmp_path
):
    with opened(tiny_clip_dir, tiny_codec, (adapter,), cache_dir=tmp_path) as engine:
        before = engine.model_cache.held_bytes
        engine.submit(packet=make_packet(0, 2)).result(60)
        assert engine.model_cache.held_bytes == before
        first = engine.submit(packet=make_packet(0, 1)).result(60).embedding
        visual = load_clip(str(tiny_clip_dir)).model.visual
        wanted = sum(each.numel() * each.element_size() for each in visual.parameters())
        assert engine.model_cache.held_bytes - before == wanted
    with opened(tiny_clip_dir, tiny_codec, (adapter,), cache_dir=tmp_path, model_bytes=1) as engine:
        for layers in (1, 2, 1):  # evicted in between, and made again
            again = engine.submit(packet=make_packet(0, layers)).result(60).embedding
        np.testing.assert_allclose(again, first, atol=1e-5)
        assert engine.model_cache.counts["evictions"] >= 1


def test_merged_weights_are_those_plus_the_product_of_the_factors(tiny_clip, adapter):
    merged = adapted_clip(tiny_clip, adapter)
    assert merged.model.transformer is tiny_clip.model.transformer  # texts are nobody's business
    own, other = dict(tiny_clip.model.visual.named_parameters()), dict(merged.model.visual.named_parameters())
    for name, weight in own.items():
        a, b = adapter.factors.get(name, (None, None))
        wanted = weight if a is None else weight + adapter.scale * torch.from_numpy(b @ a)
        torch.testing.assert_close(other[name], wanted)
    assert {name for name in own if not torch.equal(own[name], other[name])} == set(adapter.factors)
    images = check_images(tiny_clip, 2)
    np.testing.assert_array_equal(tiny_clip.encode_texts(["cat"]), merged.encode_texts(["cat"]))
    assert not torch.allclose(tiny_clip.encode_images(images), merged.encode_images(images), atol=1e-2)


def test_torch_holds_one_text_tower_for_the_plain_and_the_adapted_clip(tiny_clip_dir, adapter):
    runtime = TorchRuntime("cpu", 1)
    plain, _ = runtime.load_clip(str(tiny_clip_dir))
    adapted, nbytes = runtime.load_adapted(str(tiny_clip_dir), plain, adapter)
    own, other = (dict(each.model.named_parameters()) for each in (plain, adapted))
    shared = {name for name in own if own[name] is other[name]}
    assert shared == {name for name in own if not name.startswith("visual.")} != set()
    assert nbytes == sum(4 * value.numel() for name, value in other.items() if name not in shared)


def test_a_reload_takes_the_new_adapter_and_lets_go_of_the_old(
    tiny_clip_dir, tiny_clip, tiny_codec, adapter, make_packet, tmp_path
):
    shutil.copytree(adapter.path, tmp_path / "mine")
    mine = dataclasses.replace(adapter, path=tmp_path / "mine")
    with opened(tiny_clip_dir, tiny_codec, (mine,), cache_dir=tmp_path) as engine:
        first = engine.submit(packet=make_packet(0, 1)).result(60).embedding
        held = engine.model_cache.held_bytes
        write_random_adapter(tmp_path / "mine", tiny_clip, tiny_codec, seed=5)
        engine.reload()
        second = engine.submit(packet=make_packet(0, 1)).result(60).embedding
        assert not np.allclose(first, second, atol=1e-2)
        assert engine.model_cache.held_bytes == held
        (tmp_path / "mine" / "adapter.safetensors").write_bytes(b"")
        with pytest.raises(AdapterError, match="is not the file"):
            engine.reload()
        np.testing.assert_allclose(engine.submit(packet=make_packet(0, 1)).result(60).embedding, second, atol=1e-5)


def test_another_clip_beside_the_first_keeps_its_own_tower(tiny_clip_dir, tiny_codec, adapter, make_packet, tmp_path):
    other = write_tiny_clip(tmp_path / "other", seed=4)
    with opened(other, tiny_codec, cache_dir=tmp_path) as engine:
        wanted = engine.submit(packet=make_packet(0, 1)).result(60).embedding
    with opened([tiny_clip_dir, other], tiny_codec, (adapter,), cache_dir=tmp_path) as engine:
        got = engine.submit(packet=make_packet(0, 1), clip="other").result(60).embedding
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_the_second_clip_may_have_an_adapter_too(tiny_clip, tiny_clip_dir, tiny_codec, adapter, make_packet, tmp_path):
    other = write_tiny_clip(tmp_path / "other", seed=4)
    of_other = write_random_adapter(tmp_path / "adapter", load_clip(str(other), "cpu"), tiny_codec, seed=1)
    asked = {"packet": make_packet(0, 1), "clip": "other"}
    with opened(other, tiny_codec, (of_other,), cache_dir=tmp_path) as engine:
        wanted = engine.submit(packet=asked["packet"]).result(20).embedding
    with opened([tiny_clip_dir, other], tiny_codec, cache_dir=tmp_path) as engine:
        plain = engine.submit(**asked).result(20).embedding
    with opened([tiny_clip_dir, other], tiny_codec, (adapter, of_other), cache_dir=tmp_path) as engine:
        np.testing.assert_allclose(engine.submit(**asked).result(20).embedding, wanted, atol=1e-5)
        held = engine.model_cache.held_bytes
        engine.reload()
        np.testing.assert_allclose(engine.submit(**asked).result(20).embedding, wanted, atol=1e-5)
        assert engine.model_cache.held_bytes == held  # neither loaded twice nor let go
    assert np.abs(wanted - plain).max() > 1e-3


def test_a_wrong_clip_bundle_or_decoder_is_refused_at_start(tiny_clip_dir, tiny_codec, adapter, tmp_path):
    other = write_tiny_clip(tmp_path / "other", seed=4)
    with pytest.raises(AdapterError, match=r"was trained on CLIP tiny-random-clip#.*, this is other#"):
        opened(other, tiny_codec, (adapter,))
    with pytest.raises(AdapterError, match=r"is for bundle 'tiny-codec'.*this server has another"):
        opened(tiny_clip_dir, write_tiny_codec(tmp_path / "another", seed=3), (adapter,))
    again = write_tiny_codec(tmp_path / "tiny-codec", blocks=[1, 0, 0])
    retrained = write_again_with_another_decoder(again)
    with pytest.raises(AdapterError, match="another decoder"):
        opened(tiny_clip_dir, retrained, (adapter,))
    twin = dataclasses.replace(adapter, path=shutil.copytree(adapter.path, tmp_path / "twin"))
    with pytest.raises(AdapterError, match="are both for tiny-codec at low"):
        opened(tiny_clip_dir, tiny_codec, (adapter, twin))


def altered_still(folder, **synthesis):
    """The still that ships, with other settings of the cloud's side: its packets and model id are the same."""
    shutil.copytree(load_bundle("still").path, folder)
    card = json.loads((folder / "card.json").read_text())
    card["cloud"]["synthesis"].update(synthesis)
    (folder / "card.json").write_text(json.dumps(card))
    return load_bundle(folder)


def without_synthesis(adapter, folder):
    """`adapter` as it was written before cards named more of the decoder than its weights."""
    shutil.copytree(adapter.path, folder)
    card = json.loads((folder / "adapter.json").read_text())
    del card["bundle"]["synthesis_sha256"]
    (folder / "adapter.json").write_text(json.dumps(card))
    return load_adapter(folder)


@pytest.mark.parametrize("of_before", [False, True])
def test_an_adapter_is_of_the_grain_that_it_was_trained_on(of_before, tmp_path, caplog):
    still, grainy = load_bundle("still"), altered_still(tmp_path / "grainy", grain=[3.0] * 6)
    assert grainy.model_id == still.model_id
    adapter = load_adapter("still-clip-lite")
    if of_before:
        adapter = without_synthesis(adapter, tmp_path / "before")
    adapter.check_bundle(still)
    adapter.check_bundle(altered_still(tmp_path / "same", grain=[0] * 6))  # 0 for 0.0
    with pytest.raises(AdapterError, match=r"another decoder: settings \(such as grain.*adapt --bundle .*grainy"):
        opened("clip-lite", grainy, (adapter,))
    with caplog.at_level(logging.WARNING):
        assert served_adapters(None, ["clip-lite"], [grainy]) == []
    assert "served without the adapter that ships" in caplog.text


@pytest.mark.skipif(not hasattr(compiled_module(), "StillPacker"), reason="no compiled coder, which packs stills")
def test_an_adapter_of_a_still_serves_it_packed_too(tiny_clip, tiny_clip_dir, tmp_path):
    """Packing changes the model id and no pixel; while devices change over, a server holds both bundles."""
    plain = make_tiny_still(tmp_path / "plain")
    packed = make_tiny_still(tmp_path / "packed", packed=True)
    planes = np.ascontiguousarray(synthetic_views(1, 64)[0].transpose(2, 0, 1))
    packets = [bundle.encode(planes, "low").to_bytes() for bundle in (plain, packed)]
    assert len(packets[1]) < len(packets[0])
    adapter = write_random_adapter(tmp_path / "adapter", tiny_clip, plain)
    assert write_random_adapter(tmp_path / "same", tiny_clip, packed).picture_id == adapter.picture_id
    with opened(tiny_clip_dir, plain, cache_dir=tmp_path) as engine:
        bare = engine.submit(packet=packets[0]).result(60).embedding
    bundles, adapters = [plain.path, packed.path], [adapter.path]
    with open_engine(
        str(tiny_clip_dir), bundles, "cpu", 1, EngineLimits(queue_items=64), adapters=adapters, cache_dir=tmp_path
    ) as engine:
        one, two = (engine.submit(packet=packet).result(60).embedding for packet in packets)
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert np.abs(one - bare).max() > 1e-3


def test_an_adapter_of_before_that_names_weights_is_bound_by_them(tiny_codec, adapter, tmp_path):
    old = without_synthesis(adapter, tmp_path / "before")
    old.check_bundle(tiny_codec)
    again = shutil.copytree(tiny_codec.path, tmp_path / "tiny-codec")
    with pytest.raises(AdapterError, match="another decoder: weights"):
        old.check_bundle(write_again_with_another_decoder(load_bundle(again)))


def test_an_adapter_to_a_tuned_decoder_is_of_that_decoders_settings(tiny_clip, tiny_codec, tmp_path):
    """The weights are the same, their card says something else: a decoder of another identity."""
    tuned = random_variant(tmp_path / "decoder", tiny_codec, tiny_clip, "pixels")
    adapter = write_random_adapter(tmp_path / "adapter", tiny_clip, tiny_codec, decoder=tuned)
    adapter.check_bundle(tiny_codec, [tuned])
    with pytest.raises(AdapterError, match="another decoder: weights of bundle"):
        adapter.check_bundle(tiny_codec)
    card = json.loads((tuned.path / "decoder.json").read_text())
    card["synthesis"]["grain"] = [1.0, 1.0]
    (tuned.path / "decoder.json").write_text(json.dumps(card))
    with pytest.raises(AdapterError, match=r"settings .* of decoder .*adapt --bundle .* --decoder "):
        adapter.check_bundle(tiny_codec, [load_variant(tuned.path)])


def write_again_with_another_decoder(bundle):
    from safetensors.torch import load_file, save

    from thinwire.bundle import write_bundle

    weights = {name: value + 0.01 for name, value in load_file(bundle.decoder_path).items()}
    wire = {key: value for key, value in bundle.card.wire.items() if key != "tables_sha256"}
    spec = bundle.card.cloud["synthesis"]
    return write_bundle(
        bundle.path,
        name=bundle.name,
        wire=wire,
        tables=bundle.coder.tables,
        encoder=b"no encoder",
        decoder=save(weights),
        cloud={"output": "pixels", "synthesis": spec},
    )


def test_the_command_line_says_it_once_and_clearly(tiny_clip_dir, tiny_codec, adapter, tmp_path, capsys):
    flags = ["--clip", str(tiny_clip_dir), "--bundle", str(tiny_codec.path)]
    assert main(["check-config", *flags, "--adapter", str(adapter.path)]) == 0
    assert f"# adapter of {adapter.clip} for tiny-codec at low: {adapter.path}" in capsys.readouterr().out
    assert main(["serve", "--port", "0", *flags, "--adapter", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err
    assert "cannot be read" in said
    assert "thinwire-export adapt" in said
    assert "layered-clip-lite" in said
    assert "Traceback" not in said


def test_an_adapter_that_gives_no_numbers_is_refused(tiny_clip, tiny_codec, tmp_path):
    huge = write_random_adapter(tmp_path / "huge", tiny_clip, tiny_codec, size=200.0)
    exploding = dataclasses.replace(load_adapter(huge.path), scale=1e38)
    with pytest.raises(AdapterError, match="give NaN"):
        adapted_clip(tiny_clip, exploding)


def test_a_packet_between_the_rates_keeps_the_plain_tower(tiny_clip_dir, tiny_codec, make_packet, adapter, tmp_path):
    """Layer counts decide, not names: a prefix of a packet is the packet of a lower rate."""
    whole = Packet.from_bytes(make_packet(1, 2))
    prefix = dataclasses.replace(whole, layers=whole.layers[:1]).to_bytes()
    with opened(tiny_clip_dir, tiny_codec, (adapter,), cache_dir=tmp_path) as engine:
        got = engine.submit(packet=prefix).result(60).embedding
        wanted = engine.submit(packet=make_packet(1, 1)).result(60).embedding
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_adapters())
def test_a_shipped_adapter_brings_answers_nearer_to_those_of_the_originals(name):
    adapter = load_adapter(name)
    bundle, clip = load_bundle(adapter.bundle), load_clip()
    adapter.check_bundle(bundle)
    adapted, net, encoder = adapted_clip(clip, adapter), synthesis.load(bundle), Encoder(bundle)
    cosines = []
    for photo in wheel_photos():
        original = torch.from_numpy(bundle.view(open_image(photo.data))).permute(2, 0, 1)[None] / 255
        wanted = clip.encode_images(original)
        for rate, layers in adapter.rates.items():
            symbols = torch.from_numpy(bundle.decode(encoder.encode_image(photo.data, rate).packet))[None].float()
            with torch.inference_mode():
                seen = net(symbols, torch.tensor([layers]))
            cosines.append([float((tower.encode_images(seen) * wanted).sum()) for tower in (clip, adapted)])
    plain, better = np.array(cosines).mean(axis=0)
    assert better > plain + 0.02


def test_a_server_takes_the_adapter_that_ships_where_it_fits_and_lets_it_be_left_out(tiny_clip_dir, tmp_path):
    still, layered = load_bundle("still"), load_bundle("layered")
    names = [each.name for each in served_adapters(None, ["clip-lite"], [layered, still])]
    assert names == ["still-clip-lite"]
    assert not served_adapters(["none"], ["clip-lite"], [still])
    assert not served_adapters(None, [str(tiny_clip_dir)], [still])
    assert not served_adapters(None, ["clip-lite"], [layered])
    assert not served_adapters(None, ["clip-lite"], [still], precision="int8")  # weights of its own
    photo = wheel_photos()[0].data
    packet = Encoder(still).encode_image(photo, "low").packet.to_bytes()
    vectors = []
    for adapters in (None, ["still-clip-lite"], ["none"]):
        with open_engine("clip-lite", ["still"], "cpu", 1, cache_dir=tmp_path, adapters=adapters) as engine:
            vectors.append(engine.submit(packet=packet).result(20).embedding)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert np.abs(vectors[0] - vectors[2]).max() > 0.01


def test_an_adapter_that_nobody_asked_for_is_left_out_where_the_clip_is_another(
    tiny_clip_dir, tiny_codec, adapter, caplog
):
    """clip-lite made anew under its name: the server starts without the adapter that ships."""
    other = write_tiny_clip(tiny_clip_dir.parent / "retrained", seed=4)
    runtime = open_runtime("torch", Asked("cpu", 1), [str(other)], [tiny_codec], [])
    given = [runtime, ModelCache(None), [str(other)], [tiny_codec], None, [adapter]]
    assert LoadedModels(*given, offered=True).adapters == ()
    assert f"served without the adapter that ships: {adapter.path} is for CLIP {adapter.clip}" in caplog.text
    with pytest.raises(AdapterError, match="was trained on CLIP"):
        LoadedModels(*given)

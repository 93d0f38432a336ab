"""`--runtime onnx`: torch's vectors and answers without torch, and one clear error for each thing that does not fit."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil

import numpy as np
import onnxruntime as ort
import pytest
import torch

pytest.importorskip("onnxscript")

from cloud.engine.items import EngineLimits
from cloud.engine.prepared import Prepared
from cloud.errors import BadConfiguration, ClipUnavailable, DeviceUnavailable, InferenceFailed
from cloud.networks.assemble import open_engine
from cloud.networks.choice import Asked, open_runtime
from cloud.networks.clip import load_clip
from cloud.networks.onnx import session
from cloud.networks.onnx.clip import load_onnx_clip
from cloud.networks.onnx.decoders import StillDecoder, load_decoder
from cloud.networks.onnx.graph_file import read_graph
from cloud.networks.onnx.runner import OnnxRunner
from cloud.networks.onnx.runtime import why_not
from cloud.networks.onnx.session import Place, pick_place
from cloud.networks.precision import check_images
from cloud.networks.runtime import is_clip
from export.clip_onnx.artefact import write_artefact
from export.clip_onnx.tokenizer import odd_texts
from export.graphs import write_bundle_graph, write_variant_graph
from synthesis.clip_artefact import CARD, IMAGE_TOWERS, OPSETS, WEIGHTS, entry_of
from synthesis.clip_tokenizer import MERGES
from synthesis.still import StillSynthesis
from tests.cloud.adapters import write_random_adapter
from tests.cloud.test_tuned import random_variant
from tests.cloud.tiny_clip import write_tiny_clip
from tests.cloud.tiny_codec import SHAPE, write_tiny_codec
from thinwire.errors import AdapterError, BundleError, DecoderError
from thinwire.packet import Packet

pytestmark = pytest.mark.slow

CPU = Place("cpu", 0, 1)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An open_clip folder of a small vision transformer with random weights."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "deep", layers=3)


@pytest.fixture(scope="module")
def form(original, tmp_path_factory):
    """Its ONNX form, in a folder of another name."""
    return write_artefact(str(original), tmp_path_factory.mktemp("clip") / "deep-onnx", say=lambda _: None)


@pytest.fixture(scope="module")
def clips(original, form):
    return load_clip(str(original)), load_onnx_clip(str(form), CPU)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """A codec whose folder has its decoder's graph."""
    bundle = write_tiny_codec(tmp_path_factory.mktemp("bundles") / "with-graph", seed=3)
    write_bundle_graph(bundle)
    return bundle


@pytest.fixture
def copy(form, tmp_path):
    """A copy of the form, to be damaged."""
    return shutil.copytree(form, tmp_path / form.name)


def opened(clip, codec, cache, **kwargs):
    return open_engine([str(clip)], [codec.path], "cpu", 1, EngineLimits(queue_items=64), cache_dir=cache, **kwargs)


def answer_of(engine, codec, layers=2, seed=0):
    symbols = np.random.default_rng(seed).integers(-3, 4, codec.latent_shape).astype(np.int32)
    data = Packet(codec.model_id, tuple(codec.coder.encode(symbols, layers))).to_bytes()
    return engine.submit(packet=data, labels=("cat", "dog")).result(60)


# The same CLIP


def test_the_form_is_the_same_clip_by_fingerprint(clips):
    wanted, got = clips
    assert got.id == wanted.id
    assert (got.embed_dim, got.logit_scale, got.context_length) == (
        wanted.embed_dim,
        pytest.approx(wanted.logit_scale),
        wanted.context_length,
    )
    assert got.name == "deep-onnx"  # what requests call it
    fingerprint = wanted.id.rpartition("#")[2]
    for clip, names in ((wanted, {"deep"}), (got, {"deep", "deep-onnx"})):
        assert all(is_clip(clip, name) for name in (*names, wanted.id, f"elsewhere#{fingerprint}"))
        assert not any(is_clip(clip, name) for name in ("", "deep#0000", "deep-onnx#0000", "other"))


@pytest.mark.parametrize("size", [(64, 64), (96, 80), (50, 120)])
def test_pictures_of_every_size_and_batch_get_torchs_vectors(clips, size):
    wanted, got = clips
    for batch in (1, 3):
        images = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
        theirs = wanted.encode_images(images).numpy()
        ours = got.encode_images(images.numpy())
        assert np.einsum("nd,nd->n", theirs, ours).min() > 0.99999


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_pictures_are_fitted_as_open_clip_fits_them(clips, mode):
    wanted, got = clips
    images = torch.rand(2, 3, 90, 130, generator=torch.Generator().manual_seed(1))
    theirs = dataclasses.replace(wanted, resize_mode=mode, fill=0.25).fit(images).numpy()
    artefact = dataclasses.replace(
        got.artefact, preprocess={**got.artefact.preprocess, "resize_mode": mode, "fill_color": 0.25 * 255}
    )
    np.testing.assert_allclose(dataclasses.replace(got, artefact=artefact).fit(images.numpy()), theirs, atol=2e-5)


def test_texts_get_the_same_tokens_and_vectors(clips):
    wanted, got = clips
    texts = odd_texts(1000, seed=5)
    np.testing.assert_array_equal(got.tokenize(texts), wanted.tokenize(texts).numpy())
    some = texts[:150]
    theirs, ours = wanted.encode_texts(some), got.encode_texts(some)
    assert np.einsum("nd,nd->n", theirs, ours).min() > 0.9999
    assert got.encode_texts([]).shape == (0, got.embed_dim)


def test_auto_takes_onnx_where_it_can_and_the_answers_are_torchs(original, form, codec, tmp_path):
    answers = {}
    for clip in (original, form):
        with opened(clip, codec, tmp_path / "heads") as engine:
            answers[engine.runtime] = [answer_of(engine, codec, layers) for layers in (1, 2)]
            (picture,) = [engine._runner.picture(prepared(engine, codec))]
            assert (picture.shape, picture.dtype) == ((96, 96, 3), np.uint8)
    for theirs, ours in zip(answers["torch"], answers["onnx"]):
        assert float(theirs.embedding @ ours.embedding) > 0.99999
        assert [each.label for each in theirs.predictions] == [each.label for each in ours.predictions]


def prepared(engine, codec) -> Prepared:
    item = Prepared(np.zeros(SHAPE, np.int32), codec.name, 2, codec.model_id)
    return engine.models.load_and_attach(engine.models.load_clip_of(engine.models.default), item)


def test_an_adapter_gives_the_same_answers_in_both(original, form, codec, tmp_path):
    adapter = write_random_adapter(tmp_path / "adapter", load_clip(str(original)), codec)
    vectors = []
    for clip in (original, form):
        with opened(clip, codec, tmp_path / "heads", adapters=[adapter.path]) as engine:
            vectors.append([answer_of(engine, codec, layers).embedding for layers in (1, 2)])
    (adapted, plain), (ours, ours_plain) = vectors
    assert float(adapted @ ours) > 0.99999
    assert float(plain @ ours_plain) > 0.99999
    with opened(form, codec, tmp_path / "heads") as engine:
        assert float(answer_of(engine, codec, 1).embedding @ ours) < 0.999


@pytest.mark.parametrize("into", ["pixels", "tower"])
def test_a_tuned_decoder_gives_the_same_answers_in_both(original, form, codec, clips, tmp_path, into):
    variant = random_variant(tmp_path / "decoder", codec, clips[0], into)
    if into == "tower":
        with pytest.raises(DecoderError, match=f"thinwire-export graph .*--bundle {codec.path}"):
            opened(form, codec, tmp_path / "heads", decoders=[variant.path], runtime="onnx")
        write_variant_graph(variant, codec, str(original))
    vectors = []
    for clip in (original, form):
        with opened(clip, codec, tmp_path / "heads", decoders=[variant.path]) as engine:
            vectors.append((engine.runtime, answer_of(engine, codec).embedding))
    assert [name for name, _ in vectors] == ["torch", "onnx"]
    assert float(vectors[0][1] @ vectors[1][1]) > 0.99999
    with opened(form, codec, tmp_path / "heads") as engine:
        assert float(answer_of(engine, codec).embedding @ vectors[1][1]) < 0.9999


def test_a_mixed_batch_gives_what_each_item_gives_alone_also_in_the_devices_memory(clips, codec):
    clip, decoder = clips[1], load_decoder(codec, CPU)
    rng = np.random.default_rng(0)
    batch = [
        Prepared(rng.integers(-3, 4, SHAPE).astype(np.int32), codec.name, layers, codec.model_id, decoder, clip)
        for layers in (1, 2, 2)
    ]
    batch[1:1] = [
        Prepared(rng.integers(0, 256, (*size, 3), dtype=np.uint8), clip=clip) for size in ((64, 64), (80, 96))
    ]
    runner = OnnxRunner(CPU)
    together = runner.run(batch).embeddings
    alone = np.concatenate([runner.run([item]).embeddings for item in batch])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    bound = decoder.there(np.stack([item.array for item in (batch[0], batch[-1])]), np.array([1, 2]))
    same_size = bound.numpy()[..., :64, :64].copy()  # as a decoder of CLIP's size gives it
    got = clip.encode_images_there(ort.OrtValue.ortvalue_from_numpy(same_size))
    np.testing.assert_allclose(got, clip.encode_images(same_size), atol=1e-6)


def test_a_plain_still_is_the_same_picture():
    rng = np.random.default_rng(0)
    planes, rungs = rng.integers(0, 256, (3, 3, 16, 24)).astype(np.float32), np.array([1, 2, 3])
    spec = {"grain": [0.0, 3.5, 12.0], "size": [16, 24]}
    wanted = StillSynthesis(**spec)(torch.from_numpy(planes), torch.from_numpy(rungs)).numpy()
    np.testing.assert_allclose(StillDecoder(**spec, place=CPU)(planes, rungs), wanted, atol=1e-6)


def test_half_precision_is_measured_before_it_serves(clips, form):
    half = load_onnx_clip(str(form), CPU, "fp16")
    assert half.image_tower is not clips[1].image_tower
    images = check_images(clips[0], 4).numpy()
    assert np.einsum("nd,nd->n", clips[1].encode_images(images), half.encode_images(images)).min() > 0.9995


# What does not fit


def rewrite(folder, **changes):
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **changes}))


def alter_file(folder, name, data):
    """Another file, under a card that says so."""
    (folder / name).write_bytes(data)
    files = json.loads((folder / CARD).read_text())["files"]
    rewrite(folder, files={**files, name: entry_of(data)})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "text_tower.onnx").unlink(), "text_tower.onnx: cannot be read.*thinwire-export clip-onnx"),
        (lambda f: (f / "image_tower.onnx").write_bytes(b"x"), "is not the file that clip.json describes"),
        (lambda f: (f / WEIGHTS).write_bytes(b"x"), "weights.safetensors: cannot be read"),
        (lambda f: (f / WEIGHTS).unlink(), "weights.safetensors: cannot be read"),
        (lambda f: rewrite(f, clip="deep#0123456789abcdef"), "has fingerprint .* weights of another CLIP"),
        (lambda f: rewrite(f, clip="deep"), "is not NAME#fingerprint"),
        (lambda f: rewrite(f, opset=OPSETS.stop), "opset"),
        (lambda f: rewrite(f, format=2), "format 2 is unknown"),
        (lambda f: rewrite(f, text_tower="../text_tower.onnx"), "do not fit each other"),
        (lambda f: rewrite(f, image_towers={}), "do not fit each other"),
        (lambda f: (f / CARD).write_text("{"), "is not JSON"),
        (lambda f: (f / CARD).write_text("[]"), "is not an artefact's card"),
        (lambda f: alter_file(f, "image_tower.onnx", b"\xff\xff"), "no ONNX graph"),
        (lambda f: alter_file(f, "image_tower.onnx", (f / "text_tower.onnx").read_bytes()), "takes tokens, not images"),
        (lambda f: alter_file(f, "bpe_merges.txt.gz", b"x"), "cannot be read"),
        (lambda f: alter_file(f, "bpe_merges.txt.gz", gzip.compress(b"a b")), f"CLIP's vocabulary has {MERGES}"),
        (lambda f: alter_file(f, "bpe_merges.txt.gz", swapped(f)), "tokenizer gives other tokens"),
    ],
)
def test_a_damaged_or_foreign_artefact_is_refused_by_name(copy, damage, says):
    damage(copy)
    with pytest.raises(ClipUnavailable, match=says) as caught:
        load_onnx_clip(str(copy), CPU)
    assert copy.name in str(caught.value)


def swapped(folder):
    """The merges with those of two words in each other's places."""
    lines = gzip.decompress((folder / "bpe_merges.txt.gz").read_bytes()).decode().split("\n")
    where = {line.replace(" ", ""): number for number, line in enumerate(lines)}
    first, second = where["cat</w>"], where["photo</w>"]
    lines[first], lines[second] = lines[second], lines[first]
    return gzip.compress("\n".join(lines).encode())


def test_weights_that_a_graph_lacks_or_has_otherwise_are_named(form, clips):
    path = form / IMAGE_TOWERS["fp32"]
    weights = clips[1].artefact.weights()
    name = read_graph(path).wanted[0].name
    for wrong, says in (({}, "missing"), ({name: np.zeros((1, 2))}, "of shape")):
        with pytest.raises(InferenceFailed, match=f"{name}.*{says}"):
            read_graph(path).take({**{k: v for k, v in weights.items() if k != name}, **wrong}, path)


def test_a_clip_without_a_form_names_the_command(original, codec):
    with pytest.raises(ClipUnavailable, match=rf"thinwire-export clip-onnx --clip {original} --out deep-onnx"):
        opened(original, codec, None, runtime="onnx")
    with pytest.raises(ClipUnavailable, match="clip-onnx --clip ViT-B-32:openai --out ViT-B-32-openai-onnx"):
        load_onnx_clip("ViT-B-32:openai", CPU)


def test_a_form_alone_is_no_folder_of_open_clip(form, codec):
    with pytest.raises(ClipUnavailable, match="--runtime onnx"):
        opened(form, codec, None, runtime="torch")


def test_a_bundle_without_a_graph_names_the_command(form, tiny_codec, tmp_path, monkeypatch):
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path))
    with pytest.raises(BundleError, match=f"thinwire-export graph {tiny_codec.path}"):
        opened(form, tiny_codec, tmp_path / "heads", runtime="onnx")
    assert why_not([str(form)], [tiny_codec], []) is not None  # so that `auto` takes torch


def test_precisions_that_are_not_there_name_the_command(form, codec):
    with pytest.raises(DeviceUnavailable, match="clip-onnx --int8 --clip deep"):
        load_onnx_clip(str(form), CPU, "int8")
    with pytest.raises(DeviceUnavailable, match="no precision 'bf16'"):
        load_onnx_clip(str(form), CPU, "bf16")
    with pytest.raises(BadConfiguration, match="--precision bf16 is a setting of the other runtime"):
        opened(form, codec, None, runtime="onnx", precision="bf16")
    with pytest.raises(BadConfiguration, match="--precision int8"):
        opened(form, codec, None, runtime="torch", precision="int8")


# Devices


def test_a_provider_is_had_by_name_or_not_at_all(form, monkeypatch):
    for device, provider in (("cuda", "CUDA"), ("tensorrt:1", "Tensorrt")):
        with pytest.raises(DeviceUnavailable, match=f"without {provider}ExecutionProvider.*cloud-gpu"):
            pick_place(device)
    for wrong in ("tpu", "cpu:1", "cuda:x"):
        with pytest.raises(DeviceUnavailable, match="unknown device"):
            pick_place(wrong)
    assert pick_place("auto").name == "cpu"
    # An onnxruntime that lists a provider and cannot load it answers on the CPU in silence; we do not
    monkeypatch.setattr(session, "has_provider", lambda kind: True)
    place = pick_place("cuda:1")
    assert (place.name, place.memory) == ("cuda:1", ("cuda", 1))
    with pytest.raises(DeviceUnavailable, match=r"cannot load CUDAExecutionProvider.*--device cpu"):
        load_onnx_clip(str(form), place)
    assert [name for name, _ in Place("tensorrt").providers()] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]


def test_auto_leaves_a_gpu_to_torch_where_it_alone_can_use_it(form, codec, monkeypatch):
    opened_names = []
    monkeypatch.setattr(session, "has_gpu", lambda: True)
    monkeypatch.setattr("cloud.networks.torch_runtime.TorchRuntime", lambda *args: opened_names.append("torch"))
    open_runtime("auto", Asked("auto", 1), [str(form)], [codec], [])
    assert opened_names == ["torch"]
    assert open_runtime("auto", Asked("cpu", 1), [str(form)], [codec], []).name == "onnx"


def test_settings_of_the_other_runtime_choose_it_or_are_refused(form, codec):
    for setting in ({"clip_backend": "torch"}, {"synthesis_backend": "onnx"}):
        with pytest.raises(BadConfiguration, match="setting of the other runtime"):
            open_runtime("onnx", Asked("cpu", 1, **setting), [str(form)], [codec], [])
    with pytest.raises(BadConfiguration, match="--device tensorrt"):
        open_runtime("torch", Asked("tensorrt", 1), [str(form)], [codec], [])


def test_torch_that_is_not_installed_names_the_extra(form, original, codec, monkeypatch):
    monkeypatch.setattr("cloud.networks.choice.has_torch", lambda: False)
    with pytest.raises(ClipUnavailable, match=r"thinwire\[cloud-torch\]"):
        opened(form, codec, None, runtime="torch")
    with pytest.raises(ClipUnavailable, match="thinwire-export clip-onnx"):
        opened(original, codec, None)


def test_an_adapter_cannot_be_added_to_int8_weights(form, original, codec, tmp_path, monkeypatch):
    adapter = write_random_adapter(tmp_path / "adapter", load_clip(str(original)), codec)
    runtime = open_runtime("onnx", Asked("cpu", 1), [str(form)], [codec], [])
    clip, _ = runtime.load_clip(str(form))
    monkeypatch.setattr(runtime, "_precision", "int8")
    with pytest.raises(AdapterError, match="--precision fp32"):
        runtime.load_adapted(str(form), clip, adapter)

"""Answers on the device while the link is down: the same as the cloud's, marked, and followed by the cloud's."""

from __future__ import annotations

import json
import struct
import threading

import numpy as np
import pytest

from edge.field.fallback import Fallback, ImageVectors, read_safetensors
from edge.line.uplink import Line, Uplink
from tests.tiny_bundle import CHANNELS, encoder_onnx, photo, synthetic_views
from thinwire.bundle import write_bundle
from thinwire.errors import BundleError
from thinwire.tables import count_tables

QUESTION = {"labels": ["cat", "dog", "car"], "top_k": 2, "prompt_set": "7"}
DIM = 8


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    header, body = {}, b""
    for name, value in tensors.items():
        kind = {"float16": "F16", "float32": "F32"}[str(value.dtype)]
        header[name] = {"dtype": kind, "shape": value.shape, "data_offsets": [len(body), len(body) + value.nbytes]}
        body += value.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.fixture(scope="module")
def axes():
    rng = np.random.default_rng(0)
    return rng.normal(size=(DIM, CHANNELS)).astype(np.float16), rng.normal(size=DIM).astype(np.float32)


@pytest.fixture(scope="module")
def embedding_bundle(tmp_path_factory, axes):
    """The tiny encoder on 16-pixel views (one cell of 6 symbols), under a linear map like an embedding bundle's."""
    from tests.tiny_bundle import HIGH, LAYERS, LOW, analyse

    symbols = analyse(synthetic_views(64, 16))
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "embedding",
        name="embedding-tiny",
        wire={
            "family": "embedding",
            "input": {"height": 16, "width": 16, "resize": "shortest-crop", "filter": "bicubic"},
            "latent": {"channels": CHANNELS, "height": 1, "width": 1},
            "layers": [{"channels": list(span)} for span in LAYERS],
            "rates": [{"name": "mid", "layers": 3}],
            "context": "none",
        },
        tables=count_tables(symbols, LAYERS, "none", LOW, HIGH, max_tables=4),
        encoder=encoder_onnx(16),
        decoder=safetensors({"axes.weight": axes[0], "axes.bias": axes[1]}),
        edge={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        cloud={
            "output": "embedding",
            "synthesis": {"arch": "embedding", "channels": CHANNELS, "dim": DIM},
            "clip": "canned#1",
        },
        about={},
    )


@pytest.fixture
def vectors(canned, embedding_bundle):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    canned.vectors = {label: row.tolist() for label, row in zip(QUESTION["labels"], rows)}
    canned.bundles.append(embedding_bundle)
    return rows


def test_the_vector_is_the_one_that_the_cloud_decodes(embedding_bundle, axes):
    torch = pytest.importorskip("torch")
    import synthesis

    view = synthetic_views(1, 16, seed=4)[0]
    images = ImageVectors(embedding_bundle)
    net = synthesis.load(embedding_bundle, "cpu")
    symbols = torch.from_numpy(images.encoder.symbols(view)[None].astype(np.float32))
    with torch.no_grad():
        cloud = net(symbols, torch.tensor([3])).numpy()[0]
    assert images.vector(view) @ cloud == pytest.approx(1, abs=1e-4)


def test_label_vectors_are_fetched_once_and_outlive_the_process(canned, embedding_bundle, vectors, tmp_path):
    images, said = ImageVectors(embedding_bundle), []
    first = Fallback(images, QUESTION, tmp_path, said.append)
    assert not first.ready
    with Uplink(Line(canned.address)) as uplink:
        first.fetch(uplink)
        canned.vectors = {}
        first.fetch(uplink)
    view = synthetic_views(1, 16, seed=4)[0]
    answer = first.answer(view)
    cosines = vectors @ images.vector(view)
    assert [each["label"] for each in answer] == [QUESTION["labels"][n] for n in np.argsort(-cosines)[:2]]
    assert answer[0]["similarity"] == pytest.approx(cosines.max(), abs=1e-4)
    again = Fallback(images, QUESTION, tmp_path, said.append)
    assert again.ready
    assert again.answer(view) == answer
    assert not Fallback(images, {**QUESTION, "labels": ["other"]}, tmp_path, said.append).ready
    assert said == []


def test_the_temperature_is_taken_from_the_servers_answers(canned, embedding_bundle, vectors, tmp_path):
    from edge.line.result import Prediction

    fallback = Fallback(ImageVectors(embedding_bundle), QUESTION, tmp_path, print)
    with Uplink(Line(canned.address)) as uplink:
        fallback.fetch(uplink)
    image = vectors.sum(axis=0) / np.linalg.norm(vectors.sum(axis=0))
    logits = 17.0 * vectors @ image
    shares = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-shares)
    fallback.learn([Prediction(str(n), float(shares[n]), float(vectors[n] @ image)) for n in order])
    view = synthetic_views(1, 16, seed=4)[0]
    first, second = fallback.answer(view)
    ratio = np.log(first["probability"] / second["probability"]) / (first["similarity"] - second["similarity"])
    assert ratio == pytest.approx(17, rel=0.02)


def test_bundles_that_cannot_answer_say_why(tiny_bundle, tmp_path):
    with pytest.raises(BundleError, match="embedding bundle"):
        ImageVectors(tiny_bundle)
    for data in (b"", b"\xff" * 40, struct.pack("<Q", 4) + b"junk", safetensors({})[:-1]):
        (tmp_path / "x.safetensors").write_bytes(data)
        with pytest.raises(BundleError, match="safetensors"):
            read_safetensors(tmp_path / "x.safetensors")


def test_frames_get_a_device_answer_while_the_link_is_down_and_the_clouds_later(
    canned, tiny_bundle, embedding_bundle, vectors, tmp_path, monkeypatch
):
    from edge.cli import main
    from tests.edge.canned import answer_frame, keep_silent
    from tests.waiting import until

    monkeypatch.setattr("edge.field.run.DOWN_AFTER_S", 0.3)
    folder, out = tmp_path / "photos", tmp_path / "out.jsonl"
    folder.mkdir()
    photo(folder, "0.jpg")
    words = ["--labels", "cat,dog,car", "--server", canned.address, "--bundle", str(tiny_bundle.path)]
    words += ["--spool", str(tmp_path / "s.db"), "--out", str(out), "--fallback", str(embedding_bundle.path)]
    assert main(["run", str(folder), *words]) == 0
    until(lambda: list(tmp_path.glob("labels-*.npz")))
    canned.frame_usual = keep_silent
    (folder / "0.jpg").unlink()
    photo(folder, "1.jpg", seed=1)

    def later() -> None:
        until(lambda: len(canned.frames) >= 2)
        photo(tmp_path, "2.jpg", seed=2)
        threading.Event().wait(0.5)
        (tmp_path / "2.jpg").rename(folder / "2.jpg")
        until(lambda: '"final":false' in out.read_text())
        canned.frame_usual = answer_frame
        until(lambda: out.read_text().count('"final":true') == 3)
        import os
        import signal

        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=later, daemon=True).start()
    assert main(["run", str(folder), *words, "--watch", "--timeout", "2"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    early = [line for line in lines if not line["final"]]
    assert [(line["source"][-5:], line["answered_by"]) for line in early] == [("2.jpg", "device")]
    final = [line for line in lines if line["final"]]
    assert len(final) == len({line["key"] for line in final}) == 3
    assert {line["answered_by"] for line in final} == {"cloud"}

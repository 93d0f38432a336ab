"""Probes, retrieval, tricks, domains and BLIP on tiny RANDOM models: shapes, pairing, resuming; and ranks by hand."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from benchmarks.accuracy import rate_accuracy
from benchmarks.codecs.grid import PeerGrid
from benchmarks.codecs.peers import PEERS, png_bytes
from benchmarks.data.textures import texture_set
from benchmarks.report.features import blip_section, probe_section, retrieval_section
from benchmarks.report.page import write_study_report
from benchmarks.report.tricks import decoders_section, tricks_section
from benchmarks.results.store import read_points
from benchmarks.study.blip import Blip, BlipUnavailable
from benchmarks.study.domains import domain_sets
from benchmarks.study.experiments import EXPERIMENTS
from benchmarks.study.linear_probe import probe, split
from benchmarks.study.retrieval import best_ranks, gallery_ranks, text_ranks
from benchmarks.study.study import Preset, Study
from benchmarks.study.tricks import PLAIN
from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from tests.cloud.tiny_clip import write_tiny_clip
from tests.tiny_bundle import make_tiny_bundle, synthetic_views
from thinwire.bundle import load_bundle

LABELS = ("cat", "dog")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THINWIRE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-random-clip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes that any features tell apart: bright and dark pictures."""
    root = tmp_path_factory.mktemp("data")
    lines = ["image,caption_1,caption_2"]
    for place, view in enumerate(synthetic_views(20, 64, seed=2)):
        name = f"{LABELS[place % 2]}/{place:02}.png"
        path = root / "eval-tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes((view // 2 + 120 * (place % 2)).astype(np.uint8)))
        lines.append(f"eval-tiny/{name},a picture of number {place},number {place} as a picture")
    (root / "captions.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def study(tmp_path, folder, clip, tiny_bundle_with_decoder) -> Study:
    preset = Preset("tiny", {}, 20, PeerGrid((224, 112), 3), "test")
    peers = [PEERS["jpeg"], PEERS["jxl"]]
    context = {"command": "test", "testbed": {"cpu": "test"}}
    families = [tiny_bundle_with_decoder]
    return Study(
        preset, folder, tmp_path / "out", families, peers, [str(clip)], context, captions=folder / "captions.csv"
    )


CODERS = 1 + 3 + 3  # reference, rates of the bundle, JPEGs


def test_probes_train_on_one_half_and_test_on_the_other(study):
    assert EXPERIMENTS["linear-probe"].run(study) == (CODERS, CODERS)
    assert EXPERIMENTS["linear-probe"].run(study) == (CODERS, 0)
    for point in read_points(study.out, "linear-probe"):
        assert (point["n"], point["n_train"], len(point["targets"])) == (10, 10, 10)
        assert len(point["bytes"]) == (0 if point["kind"] == "reference" else 20)
        own, new = (point["predictions"][name] for name in ("originals", "decoded"))
        if point["kind"] == "reference":
            assert own == new
            assert np.mean(np.array(own) == point["targets"]) > 0.8  # bright against dark
    section = probe_section(study.out)
    assert len(section.findings) == CODERS - 1
    assert section.data["charts"][0]["traces"]


def test_split_is_half_of_each_class():
    targets = [0] * 7 + [1] * 4 + [2]
    train, test = split(targets, seed=1)
    assert sorted(train + test) == list(range(12))
    assert [sum(targets[place] == label for place in train) for label in (0, 1, 2)] == [3, 2, 0]
    assert split(targets, seed=1) == (train, test) != split(targets, seed=2)


def test_probe_learns_what_is_there():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 200)
    vectors = np.eye(3)[targets] + rng.normal(size=(200, 3)) * 0.2
    assert np.mean(np.array(probe(vectors[:100], targets[:100], vectors[100:], 10.0)) == targets[100:]) > 0.95
    shuffled = rng.permutation(targets)
    assert np.mean(np.array(probe(vectors[:100], shuffled[:100], vectors[100:], 10.0)) == shuffled[100:]) < 0.55


def test_retrieval_in_four_directions(study):
    assert EXPERIMENTS["retrieval"].run(study) == (CODERS, CODERS)
    assert EXPERIMENTS["retrieval"].run(study) == (CODERS, 0)
    for point in read_points(study.out, "retrieval"):
        ranks = point["ranks"]
        assert (len(ranks["text_to_image"]), len(ranks["image_to_text"])) == (40, 20)
        plain = point["kind"] == "reference"
        assert (ranks["image_to_image"] is None, ranks["text_to_text"] is None) == (plain, not plain)
        if point["codec"] == "jpeg" and "64px" in point["rate"]:  # nearly the original
            assert np.mean(ranks["image_to_image"]) < 8  # of 20; 10.5 by chance
    assert len(retrieval_section(study.out).findings) == 3 + 3 * (CODERS - 1)


def test_ranks_by_hand():
    similarities = np.array([[0.9, 0.1, 0.5], [0.2, 0.2, 0.8]])
    assert gallery_ranks(similarities, np.array([0, 1])).tolist() == [1, 3]  # a tie counts against the answer
    assert best_ranks(similarities, np.array([0, 1, 1])).tolist() == [1, 1]
    texts = np.array([[1.0, 0.0], [0.8, 0.6], [0.9, 0.436], [0.0, 1.0], [0.3, 0.954]])
    assert text_ranks(texts, np.array([0, 0, 1, 2, 2])).tolist() == [2, 3, 1, 1]  # the third has no other of its image


def test_tricks_are_paired(study):
    points, measured = EXPERIMENTS["tricks"].run(study)
    assert (points, measured) == (1 + 3 + 2, 6)
    assert EXPERIMENTS["tricks"].run(study) == (6, 0)
    for point in read_points(study.out, "tricks"):
        small = point["kind"] == "peer"
        assert ("lanczos" in point["answers"]) == small
        assert {len(answers) for answers in point["answers"].values()} == {20}
        assert PLAIN in point["answers"]
        if point["kind"] == "reference":
            cosines = {trick: np.mean(values) for trick, values in point["pooled_cosine"].items()}
            assert cosines[PLAIN] > cosines["JPEG 90"] > cosines["JPEG 30"]
    assert {each["trick"] for each in tricks_section(study.out).findings} > {"JPEG 60", "nearest"}


@pytest.fixture
def served_here(monkeypatch, tmp_path):
    @contextlib.contextmanager
    def serve(clip: str, bundle: Path, adapter: None = None):
        with background_server(open_engine(clip, [bundle], "cpu", 1, cache_dir=tmp_path / "heads")) as address:
            yield address

    monkeypatch.setattr(rate_accuracy, "running_service", serve)


def test_domains_and_two_decoders_of_one_encoder(study, served_here, tmp_path, tiny_bundle_with_decoder, capsys):
    from safetensors.numpy import load_file, save_file

    other = make_tiny_bundle(tmp_path / "other", with_decoder=True)
    weights = load_file(other.path / "decoder.safetensors")
    save_file({name: value * 0.5 for name, value in weights.items()}, other.path / "decoder.safetensors")
    card = json.loads((other.path / "card.json").read_text())
    import hashlib

    data = (other.path / "decoder.safetensors").read_bytes()
    entry = card["cloud"]["files"]["decoder.safetensors"]
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    if "bytes" in entry:
        entry["bytes"] = len(data)
    (other.path / "card.json").write_text(json.dumps(card))
    study.families = [tiny_bundle_with_decoder, load_bundle(other.path)]
    assert study.families[0].model_id == study.families[1].model_id
    study.domains, study.limit, study.peers = [study.data_dir / "eval-tiny"], 4, []
    points, _ = EXPERIMENTS["domains"].run(study)
    assert points == 1 + 3 + 3
    found = decoders_section(study.out).findings
    assert [each["rate"] for each in found] == ["low", "mid", "high"]
    files = write_study_report(study.out)
    told = json.loads(files["findings_json"].read_text())
    assert told["points"] == {"domains": 7}
    assert "decoders" in told["sections"]


def test_textures_are_cut_from_the_wheel(study):
    pytest.importorskip("skimage")
    data = texture_set(10, 1)
    assert (data.total, len(data.labels)) == (48, 12)
    assert [item.name for item in data.items] == [item.name for item in texture_set(20, 1).items][:10]
    for item in data.items:
        picture = Image.open(__import__("io").BytesIO(data.read(item)))
        assert picture.size == (128, 128)
        assert item.name.startswith(data.labels[item.target])
    assert [data.name for data in domain_sets(study)] == ["textures-skimage"]


@pytest.fixture(scope="module")
def random_blip(tmp_path_factory) -> Path:
    """BLIP's real architecture, tiny, with RANDOM weights: it runs, and means nothing."""
    transformers = pytest.importorskip("transformers")
    import torch

    folder = tmp_path_factory.mktemp("blip") / "tiny-random-blip"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "photo", "of", ".", *LABELS]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    text = {
        "vocab_size": len(words), "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64,
        "projection_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
        "pad_token_id": 0, "bos_token_id": 5, "sep_token_id": 3, "eos_token_id": 3,
    }  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 48, "patch_size": 16}
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16
    )
    torch.manual_seed(0)
    transformers.BlipForImageTextRetrieval(config).save_pretrained(folder)
    processor = transformers.BlipImageProcessor(size={"height": 48, "width": 48})
    transformers.BlipProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def test_blip_matches_pictures_and_labels(random_blip):
    model = Blip(str(random_blip))
    assert model.id.startswith("tiny-random-blip#")
    views = list(synthetic_views(3, 64, seed=1))
    best, sure = model.match(views, LABELS)
    assert [set(each) for each in sure] == [{0, 1}] * 3
    assert best == [max(each, key=each.__getitem__) for each in sure]
    assert all(0 <= chance <= 1 for each in sure for chance in each.values())
    alone = [model.match([view], LABELS)[1][0] for view in views]  # a batch changes no answer
    assert alone == [pytest.approx(each, abs=1e-5) for each in sure]
    with pytest.raises(BlipUnavailable, match="save_pretrained"):
        Blip(str(random_blip.parent / "nothing"))


def test_blip_as_an_experiment(study, random_blip):
    assert EXPERIMENTS["blip"].run(study) == (0, 0)
    study.blip, study.limit = str(random_blip), 6
    assert EXPERIMENTS["blip"].run(study) == (6, 6)
    assert EXPERIMENTS["blip"].run(study) == (6, 0)
    point = read_points(study.out, "blip")[0]
    assert (len(point["answers"]), point["failed"]) == (6, 0)
    assert len(blip_section(study.out).findings) == 5

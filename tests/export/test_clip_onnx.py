"""`thinwire-export clip-onnx`: what ships is what it makes, folders are not mixed up, tokenizers are the original's."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest

from export.cli import main
from export.clip_onnx.artefact import ArtefactError, write_artefact
from export.clip_onnx.tokenizer import TokenizerError, odd_texts, write_tokenizer
from synthesis.clip_artefact import CARD, WEIGHTS, read_artefact
from synthesis.clip_source import open_clip_source, shipped_clip_path
from synthesis.clip_tokenizer import tokenizer_of
from synthesis.fingerprint import clip_fingerprint
from synthesis.graph_files import SHIPPED_GRAPHS, graph_name
from synthesis.probes import PROBE_TEXTS, probe_images
from tests.cloud.tiny_clip import write_tiny_clip
from thinwire.bundle import load_bundle, shipped_bundles


def test_the_shipped_form_is_of_the_shipped_weights_and_holds_none_itself():
    """Else run scripts/ship_graphs.py: the weights were changed."""
    folder = shipped_clip_path()
    artefact, source = read_artefact(folder), open_clip_source()
    assert artefact.id == f"clip-lite#{clip_fingerprint(source.model, source.preprocess)}"
    assert artefact.weights().keys() == source.model.state_dict().keys()
    assert not (folder / WEIGHTS).exists()
    assert sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".safetensors") < 600_000
    assert artefact.parity["fp32"]["cosine_min"] > 0.99999


def test_the_graphs_that_ship_are_those_of_what_ships():
    """Else run scripts/ship_graphs.py."""
    bundles = [load_bundle(name) for name in shipped_bundles()]
    wanted = {
        graph_name("decoder", each.card.cloud["synthesis"], each.latent_shape)
        for each in bundles
        if each.card.cloud["files"]
    }
    found = {path.name for path in SHIPPED_GRAPHS.glob("*.onnx")}
    assert {name for name in found if name.startswith("decoder-")} == wanted
    assert len(found - wanted) == 1  # the image tower's, for --runtime torch


def test_a_thousand_odd_texts_get_the_same_tokens_both_ways(tmp_path):
    for length in (32, 77):
        original = open_clip.tokenizer.SimpleTokenizer(context_length=length)
        card, _ = write_tokenizer(original, tmp_path)
        ours, texts = tokenizer_of(card, tmp_path), odd_texts(1000, seed=length)
        assert len(set(texts)) > 900
        np.testing.assert_array_equal(ours([*texts, *PROBE_TEXTS]), original([*texts, *PROBE_TEXTS]).numpy())


def test_a_tokenizer_of_the_hub_becomes_a_file(tmp_path):
    """MiniLM's, behind open_clip's face of such tokenizers."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cat", ".", "##s", "42"]
    rust = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    rust.normalizer, rust.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    from transformers import PreTrainedTokenizerFast

    inner = PreTrainedTokenizerFast(
        tokenizer_object=rust, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    original = open_clip.tokenizer.HFTokenizer.__new__(open_clip.tokenizer.HFTokenizer)
    original.tokenizer, original.context_length, original.tokenizer_mode = inner, 16, ""
    original.clean_fn, original.strip_sep_token = open_clip.tokenizer.get_clean_fn("whitespace"), True
    card, name = write_tokenizer(original, tmp_path)
    assert (card["kind"], name, card["zeroed"]) == ("tokenizers", "tokenizer.json", 3)
    np.testing.assert_array_equal(tokenizer_of(card, tmp_path)(["a photo of cats."]), [[2, 4, 5, 6, 7, 9, 8] + [0] * 9])


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (SimpleNamespace(), "no form without PyTorch"),
        (open_clip.tokenizer.SimpleTokenizer(reduction_mask="simple"), "masks or special tokens"),
        (open_clip.tokenizer.SimpleTokenizer(additional_special_tokens=["<x>"]), "masks or special tokens"),
    ],
)
def test_a_tokenizer_without_a_form_is_refused(tokenizer, says, tmp_path):
    with pytest.raises(TokenizerError, match=f"{says}.*--runtime torch"):
        write_tokenizer(tokenizer, tmp_path)


def test_probe_pictures_are_the_same_for_ever():
    images = probe_images(2, 32, 48)
    assert (images.shape, images.dtype) == ((2, 3, 32, 48), np.float32)
    assert 0 <= images.min() < 0.2
    assert 0.8 < images.max() <= 1
    assert float(images.sum()) == pytest.approx(4797.37, abs=0.05)


@pytest.mark.slow
def test_an_open_clip_folder_shares_its_weights_and_no_other_folder_is_touched(tmp_path, capsys):
    folder = write_tiny_clip(tmp_path / "own")
    assert main(["clip-onnx", "--clip", str(folder), "--out", str(folder)]) == 0
    assert f"own#{read_artefact(folder).id.partition('#')[2]}" in capsys.readouterr().out
    assert json.loads((folder / CARD).read_text())["weights"] == "open_clip_model.safetensors"
    assert not (folder / WEIGHTS).exists()
    other = write_tiny_clip(tmp_path / "other", seed=1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    for target, says in ((other, "of another CLIP"), (tmp_path / "notes", "neither an artefact nor")):
        with pytest.raises(ArtefactError, match=says):
            write_artefact(str(folder), target)
    with pytest.raises(SystemExit, match=r"clip-onnx: .*no such file or folder"):
        main(["clip-onnx", "--clip", str(tmp_path / "nothing"), "--out", str(tmp_path / "x")])

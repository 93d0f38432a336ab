"""The parts of the shipped CLIP's training, on numbers known by hand; the whole chain once, on a dozen pictures."""

from __future__ import annotations

import copy
import math

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from export.clip_lite import texts
from export.clip_lite.align import contrastive_loss, label_set_loss, load_training_set, name_loss
from export.clip_lite.assemble import assemble
from export.clip_lite.backbones import LITE0, backbone
from export.clip_lite.classes import class_prompts
from export.clip_lite.features import VIEWS, View, crop_views, train_features
from export.clip_lite.head import HeadRecipe, Texts, blended, expected_text, mean_by_node, train_head
from export.clip_lite.image_head import EMBED_DIM, ImageHead, TwoBranchHead, head_of
from export.clip_lite.joint import JointRecipe, Prompts, tune_jointly
from export.clip_lite.text_tower import (
    distil,
    distillation_loss,
    encode_trimmed,
    length_batches,
    new_model,
    rotation,
    text_parameters,
    text_tower_of,
    tokenize,
)
from export.photographs.collection import open_photographs
from export.teachers import lite0_input, load_lite0
from tests.export.fake_wordnet import write_wordnet
from tests.export.photographs import CAPTIONS, photograph
from thinwire.errors import ClipUnavailable

pytestmark = pytest.mark.slow

SENTENCES = ["a photo of a cat", "dog", "two people, a red car and a very long street in the evening sun " * 4, ""]


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_expected_text_is_the_unit_mean_of_the_likely_names():
    """ConSE by hand: 3/5 and 4/5 of two orthogonal names; half and half of (1, 0) and (0.6, 0.8)."""
    names = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    probability = torch.tensor([[3 / 7, 4 / 7, 0.0], [0.0, 0.0, 1.0], [0.5, 0.0, 0.5]])
    wanted = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.8 / math.sqrt(0.8), 0.4 / math.sqrt(0.8)]])
    torch.testing.assert_close(expected_text(probability, names), wanted)


def test_a_node_is_the_unit_mean_of_its_prompts():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    wanted = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [0.0, -1.0]])
    torch.testing.assert_close(mean_by_node(vectors, torch.tensor([0, 0, 1]), 2), wanted)


def test_label_set_loss_is_zero_when_the_distributions_match():
    image, text, scale = unit(6, 16), unit(4, 16, seed=1), torch.tensor(7.0)
    share = (scale * image @ text.T).softmax(1)
    mass = share * torch.linspace(0.1, 1, 6)[:, None]  # only shares inside the set matter
    assert label_set_loss(image, text, mass, scale).item() == pytest.approx(0, abs=1e-6)
    assert label_set_loss(image, text, mass.flip(1), scale).item() > 0.1


def test_label_set_loss_is_the_weighted_kl_by_hand():
    """Equal logits, so the softmax is 1/2; KL of (1, 0) is ln 2, of (1/2, 1/2) zero; weights are the total masses."""
    image, text = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    mass = torch.tensor([[0.6, 0.0], [0.1, 0.1]])
    loss = label_set_loss(image, text, mass, torch.tensor(5.0))
    assert loss.item() == pytest.approx(0.6 * math.log(2) / 0.8, rel=1e-5)


def test_images_that_show_nothing_of_the_set_are_left_out():
    image, text, scale = unit(3, 16), unit(4, 16, seed=1), torch.tensor(7.0)
    mass = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    alone = label_set_loss(image[:2], text, mass[:2], scale)
    mass[2] = 0.001
    torch.testing.assert_close(label_set_loss(image, text, mass, scale), alone)
    image.requires_grad_()
    nothing = label_set_loss(image, text, torch.zeros(3, 4), scale)
    nothing.backward()  # a batch without any still trains
    assert nothing.item() == 0


def test_contrastive_loss_is_clips():
    image, text, scale = unit(5, 16), unit(5, 16, seed=1), torch.tensor(10.0)
    logits = scale * image @ text.T
    rows = -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()) / 2
    torch.testing.assert_close(contrastive_loss(image, text, scale, 0.0), rows)
    assert contrastive_loss(image, image, torch.tensor(100.0), 0.0) < contrastive_loss(image, text, scale, 0.0)


@pytest.mark.parametrize("regulariser", [0.1, 2.5])
def test_the_regulariser_adds_the_missing_inner_product_of_positives(regulariser):
    image, text, scale = unit(5, 16), unit(5, 16, seed=1), torch.tensor(10.0)
    plain = contrastive_loss(image, text, scale, 0.0)
    missing = 1 - (image * text).sum(1).mean()
    torch.testing.assert_close(contrastive_loss(image, text, scale, regulariser), plain + regulariser * missing)


def test_equal_captions_are_no_negatives():
    """Rows 0 and 1 share a text: each must be scored as if the other were not in the batch."""
    image, text = unit(3, 16), unit(3, 16, seed=1)
    text[1] = text[0]
    same = torch.eye(3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    scale = torch.tensor(10.0)
    logits = scale * image @ text.T

    def loss(rows, row):
        return -(logits[row, rows].log_softmax(0)[rows.index(row)] + logits[rows, row].log_softmax(0)[rows.index(row)])

    wanted = (loss([0, 2], 0) + loss([1, 2], 1) + loss([0, 1, 2], 2)) / 6
    torch.testing.assert_close(contrastive_loss(image, text, scale, 0.0, same), wanted)
    assert same.diagonal().all()  # the caller's mask is left as it was


def test_a_rare_name_must_win_by_as_much_as_it_is_rarer():
    """Equal cosines: the adjusted softmax is the prior itself, so the loss is minus the logarithm of its share."""
    image, text = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 1.0]])
    prior, related = torch.tensor([0.1, 0.3, 0.0, 0.6]), torch.eye(4, dtype=torch.bool)
    names = torch.tensor([0, 1, 3])
    loss = name_loss(image, torch.tensor([1]), text, names, torch.tensor(5.0), prior, related)
    assert loss.item() == pytest.approx(-math.log(0.3), rel=1e-5)
    related[1, 3] = related[3, 1] = True  # what does not exclude the truth is no wrong answer
    loss = name_loss(image, torch.tensor([1]), text, names, torch.tensor(5.0), prior, related)
    assert loss.item() == pytest.approx(-math.log(0.3 / 0.4), rel=1e-5)


def test_a_rotation_between_two_sets_of_vectors_is_found():
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(2)))[0]
    vectors = unit(200, 16)
    found = rotation(vectors, vectors @ turn + 0.01 * unit(200, 16, seed=3))
    torch.testing.assert_close(found @ found.T, torch.eye(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, turn, atol=0.02, rtol=0)


def test_distillation_has_nothing_to_say_to_a_perfect_student():
    teacher = unit(8, 16)
    assert distillation_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-5)
    assert distillation_loss(unit(8, 16, seed=1), teacher).item() > 0.5


def test_crops_of_a_view_and_of_its_teacher_are_the_same_place():
    images = 255 * torch.rand(4, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    images = F.avg_pool2d(images, 31, stride=1, padding=15)  # smooth: small enough to survive 32 pixels
    for view in VIEWS:
        assert VIEWS[view.teacher].side is None
        assert VIEWS[view.teacher].scale == view.scale
        sharp, seen = (
            crop_views(images, each, torch.Generator().manual_seed(view.teacher))
            for each in (VIEWS[view.teacher], view)
        )
        assert seen.shape == (4, 3, 224, 224)
        assert (seen - sharp).abs().mean() < 2
    elsewhere = crop_views(images, View(0.55, None, 0), torch.Generator().manual_seed(99))
    assert (elsewhere - crop_views(images, View(0.55, None, 0), torch.Generator().manual_seed(1))).abs().mean() > 2


def test_batches_of_similar_length_lose_no_text():
    tokens = tokenize([f"{'word ' * (i % 9)}{i}" for i in range(50)])
    seen = list(length_batches(tokens, 8, torch.Generator().manual_seed(0)))
    assert sorted(torch.cat(seen).tolist()) == list(range(50))
    assert max(map(len, seen)) == 8
    spread = [float((tokens[index] != 0).sum(1).float().std()) for index in seen if len(index) == 8]
    assert np.mean(spread) < float((tokens != 0).sum(1).float().std())


def test_vectors_of_texts_are_computed_once_and_anew_for_other_texts(monkeypatch):
    asked = []

    class Sentences:
        def encode(self, texts, progress):
            asked.append(texts)
            return np.stack([np.full(384, len(text) / 16, np.float32) for text in texts])

    monkeypatch.setattr(texts, "MiniLM", Sentences)
    for wanted in (["a", "bb"], ["a", "bb"], ["a", "ccc"]):
        corpus = texts.encode_cached("some", wanted)
        assert corpus.texts == wanted
        np.testing.assert_array_equal(corpus.vectors[:, 0], [len(text) / 16 for text in wanted])
    assert asked == [["a", "bb"], ["a", "ccc"]]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Random text tower and head: nothing is learned, everything must still fit."""
    torch.manual_seed(0)
    model = new_model(tmp_path_factory.mktemp("model"))
    return model, ImageHead()


@pytest.fixture(scope="module")
def assembled(parts, tmp_path_factory):
    model, head = parts
    return assemble(tmp_path_factory.mktemp("clip") / "clip-lite", model.state_dict(), head, torch.tensor(20.0))


@pytest.fixture(scope="module")
def loaded(assembled):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{assembled}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{assembled}")


def test_open_clip_loads_the_folder_unmodified(assembled, loaded, parts):
    model, preprocess, tokenizer = loaded
    assert {path.name for path in assembled.iterdir()} == {"open_clip_config.json", "open_clip_model.safetensors"}
    assert model.logit_scale.exp().item() == pytest.approx(20, rel=1e-4)
    assert torch.equal(tokenizer(SENTENCES), tokenize(SENTENCES))
    view = preprocess(photograph("coffee.png"))
    assert view.shape == (3, 224, 224)
    image = view[None]
    trunk = load_lite0(num_classes=0)
    with torch.inference_mode():
        wanted = parts[1](trunk(image))
        got = model.encode_image(image)
        torch.testing.assert_close(F.normalize(got, dim=1), F.normalize(wanted, dim=1), atol=5e-3, rtol=0)
        for name, value in parts[0].state_dict().items():
            if not name.startswith("visual.") and name != "logit_scale":
                torch.testing.assert_close(model.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_preprocessing_is_the_teachers(loaded):
    """white is (255 - 127) / 128 = 1 for Lite0; another mean or std would shift every feature."""
    white = photograph("chelsea.png").point(lambda _: 255)
    torch.testing.assert_close(loaded[1](white), lite0_input(torch.full((3, 224, 224), 255.0)))


def test_trimmed_text_encoding_equals_open_clips(loaded):
    model, _, tokenizer = loaded
    with torch.inference_mode():
        for sentences in (SENTENCES, SENTENCES[:2], [""]):
            tokens = tokenizer(sentences)
            wanted = F.normalize(model.encode_text(tokens), dim=1)
            torch.testing.assert_close(encode_trimmed(model, tokens), wanted, atol=1e-5, rtol=1e-4)


def test_parts_that_do_not_fit_are_refused_by_name(parts, tmp_path):
    model, head = parts
    state = {name: value for name, value in model.state_dict().items() if name != "text_projection"}
    with pytest.raises(RuntimeError, match=r"missing .*text_projection.* unknown .*stranger"):
        assemble(tmp_path, state | {"stranger": torch.zeros(1)}, head, torch.tensor(20.0))
    assert not (tmp_path / "open_clip_model.safetensors").exists()


def test_the_head_starts_as_conse_with_a_rectifier():
    """Before any training an image already points to the name that its classifier gives it.

    That holds best where names are far apart, as 1000 random vectors in 384 dimensions are."""
    names = unit(1000, EMBED_DIM)
    head = TwoBranchHead(names, LITE0.classifier()).eval().merge()
    images = torch.stack([torch.from_numpy(np.array(photograph(name).resize((224, 224)))) for name in CAPTIONS])
    lite0, trunk = load_lite0(), load_lite0(num_classes=0)
    with torch.inference_mode():
        x = lite0_input(images.permute(0, 3, 1, 2))
        top = lite0(x).topk(5).indices
        said = (F.normalize(head(trunk(x)), dim=1) @ (names - names.mean(0)).T).argmax(1)
    assert sum(int(word) in five for word, five in zip(said, top.tolist())) >= 3


def test_a_clip_s_head_is_taken_out_of_it_for_its_own_backbone_only(assembled, loaded, parts):
    taken = head_of(loaded[0], LITE0)
    for name, value in parts[1].state_dict().items():
        torch.testing.assert_close(taken.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert text_tower_of(str(assembled)).text_projection.shape == (128, EMBED_DIM)
    with pytest.raises(ClipUnavailable, match="not lite2"):
        head_of(loaded[0], backbone("lite2"))
    with pytest.raises(ClipUnavailable, match="no such file or folder"):
        text_tower_of("/nowhere/at/all")


def test_two_branches_are_one_mlp():
    two = TwoBranchHead(unit(1000, EMBED_DIM), LITE0.classifier()).eval()
    features = torch.rand(5, 1280, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(two.merge()(features), two(features), rtol=1e-4, atol=1e-5)


def test_a_distilled_text_tower_goes_on_from_its_checkpoint(tmp_path):
    """Sixteen minutes of work must survive an interruption: the second call finds it finished and changes nothing."""
    corpus = texts.Corpus([f"thing {i}" for i in range(20)], unit(20, 384).numpy())
    learned = []
    for _ in range(2):
        model = new_model(tmp_path / "model")
        distil(
            model, corpus.texts, torch.from_numpy(corpus.vectors), tmp_path / "text.pt", minutes=1, epochs=1, batch=10
        )
        learned.append([value.clone() for value in text_parameters(model)])
    assert all(map(torch.equal, *learned))


def test_the_whole_chain_runs_on_a_few_photographs(monkeypatch, tmp_path, parts):
    """Features, head, text tower and joint tuning, a few steps of each: what one stage gives, the next must take.

    Text vectors are random here: what is learned means nothing, that everything moves and stays finite does."""
    monkeypatch.setenv("THINWIRE_WORDNET", str(write_wordnet(tmp_path)))
    photographs = open_photographs()
    data = load_training_set(photographs, train_features(photographs, 2))
    assert data.features.shape == (2, 36, 1280)
    assert data.caption_texts == [caption for caption in CAPTIONS.values() for _ in range(9)]
    assert data.caption_images.tolist() == list(range(36))
    nodes = len(data.sets.member)
    owner = torch.arange(nodes).repeat_interleave(2)
    names, name_owner = class_prompts(data.classes, data.sets.names)
    texts_of_nodes = Texts(unit(2 * nodes, EMBED_DIM, seed=1), owner, nodes)
    texts_of_names = Texts(unit(len(names), EMBED_DIM, seed=2), name_owner, len(data.classes.names))
    head, scale = train_head(
        data,
        unit(36, EMBED_DIM),
        texts_of_nodes,
        texts_of_names,
        HeadRecipe(steps=3, batch=8),
    )
    tuned, tuned_scale = train_head(
        data, unit(36, EMBED_DIM), texts_of_nodes, texts_of_names, HeadRecipe(steps=3, batch=8), (head, scale)
    )
    assert 0 < (tuned.fc1.weight - head.fc1.weight).abs().max() < 0.01
    assert tuned_scale == pytest.approx(scale.item(), rel=0.01)
    half = blended(head, copy.deepcopy(tuned), 0.5)
    torch.testing.assert_close(half.fc1.weight, (head.fc1.weight + tuned.fc1.weight) / 2)
    before = head.fc2.weight.clone()
    model = new_model(tmp_path / "model")
    torch.manual_seed(0)
    corpus = texts.Corpus([f"thing {i}" for i in range(20)], unit(20, 384).numpy())
    distil(model, corpus.texts, torch.from_numpy(corpus.vectors), tmp_path / "text.pt", minutes=1, epochs=1, batch=10)
    words = [value.clone() for value in text_parameters(model)]
    prompts = [f"thing {i} {k}" for i in range(nodes) for k in range(2)]
    target = torch.from_numpy(corpus.vectors)
    scale = tune_jointly(
        model,
        head,
        scale.log(),
        data,
        Prompts(prompts, owner, nodes),
        Prompts(names, name_owner, len(data.classes.names)),
        tokenize(corpus.texts),
        target,
        JointRecipe(minutes=1e-6, set_size=20, batch=8),
        tmp_path / "joint.pt",
    )
    assert 1 < scale <= 100
    assert not torch.equal(head.fc2.weight, before)
    assert not all(map(torch.equal, words, text_parameters(model)))
    assert all(value.isfinite().all() for value in (*head.parameters(), *model.parameters()))

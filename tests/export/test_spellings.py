"""Plurals by rule and by WordNet, and the training that makes them mean their singulars."""

from __future__ import annotations

import copy
import random
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from timm.data import ImageNetInfo

from export.clip_lite import pipeline, spellings
from export.clip_lite.align import load_training_set
from export.clip_lite.features import train_features
from export.clip_lite.held_plurals import HELD_PLURALS
from export.clip_lite.joint import JointRecipe
from export.clip_lite.plurals import Plurals, irregular_plurals, phrase_pairs, plural_pairs, spelled, spelling_pairs
from export.clip_lite.spellings import Lesson, SpellingRecipe, label_vectors, summary, teach_spellings, thing_names
from export.clip_lite.text_tower import text_parameters, text_tower_of
from export.clip_lite.wordnet import PHYSICAL_ENTITY, Synset
from export.photographs.collection import open_photographs
from export.teachers import cache_root
from synthesis.clip_source import shipped_clip_path
from tests.export.fake_wordnet import write_wordnet
from thinwire.labels import fill_templates
from thinwire.prompts import PROMPT_SETS

LEMMAS = (
    "dog",
    "cat",
    "box",
    "berry",
    "toy",
    "glass",
    "glasses",
    "wine glass",
    "cup of coffee",
    "Norfolk terrier",
    "Paris",
)


@pytest.fixture
def synsets():
    """Each lemma is a thing of its own; `eyes` names no thing."""
    found = {PHYSICAL_ENTITY: Synset(PHYSICAL_ENTITY, ("physical entity",), "", ())}
    for number, lemma in enumerate(LEMMAS):
        found[10_000 + number] = Synset(10_000 + number, (lemma,), "", (PHYSICAL_ENTITY,))
    return found | {1: Synset(1, ("eyes",), "", ())}


@pytest.fixture
def plurals(synsets, monkeypatch, tmp_path):
    monkeypatch.setenv("THINWIRE_WORDNET", str(write_wordnet(tmp_path)))
    return Plurals.of_wordnet(synsets)


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("dog", ["dogs"]),
        ("box", ["boxes"]),
        ("berry", ["berries"]),
        ("toy", ["toys"]),
        ("church", ["churches"]),
        ("red panda", ["red pandas"]),
        ("Norfolk terrier", ["Norfolk terriers"]),
        ("field mouse", ["field mice", "field mouses"]),
        ("fireman", ["firemen", "firemans"]),
        ("caiman", ["caimans"]),
        ("fig leaf", ["fig leaves", "fig leafs"]),
        ("cup of coffee", ["cups of coffee"]),
        ("bus", ["buses"]),
        ("eye", ["eyes"]),  # a word of its own, but of no thing
        ("glass", []),  # glasses are another thing
        ("wine glass", ["wine glasses"]),  # wine glasses are not
        ("scissors", []),
        ("trousers", []),
        ("trouser", []),  # nobody's label
        ("blue jean", []),
        ("Boeing 747", []),
        ("of", ["ofs"]),
    ],
)
def test_the_plural_of_a_name(plurals, name, several):
    assert plurals.of(name) == several


def test_exceptions_of_a_compound_are_no_exceptions_of_its_words(monkeypatch, tmp_path):
    folder = write_wordnet(tmp_path)
    (folder / "noun.exc").write_text("street_children street_child\nbox-kodaks box_kodak\noxen ox\n", "utf-8")
    monkeypatch.setenv("THINWIRE_WORDNET", str(folder))
    assert irregular_plurals() == {"street child": ["street children"], "ox": ["oxen"]}


def test_labels_as_others_write_them(plurals):
    pairs = spelling_pairs(["red panda", "berry"], plurals, 60)
    assert pairs == spelling_pairs(["red panda", "berry"], plurals, 60)
    written = {text for text, _ in pairs}
    for part in ("red pandas", "berries", '"', "the berry"):
        assert any(part in text for text in written), part
    assert all("red panda" in plain or "berry" in plain for _, plain in pairs)
    assert all(text != plain for text, plain in pairs)
    assert all("glasses" not in spelled("glass", plurals.of("glass"), random.Random(seed)) for seed in range(50))


def test_pairs_for_training(plurals):
    rng = random.Random(0)
    pairs = plural_pairs(["dog", "glass"], plurals, rng, ("a {} here", "{}"), 9)
    assert {plain for _, plain in pairs} == {"a dog here", "dog"}
    assert all("dogs" in text for text, _ in pairs)
    said = dict(pair for _ in range(40) for pair in phrase_pairs(["dog"], plurals, rng))
    assert said["photos of dogs"] == "photo of a dog"
    assert "itap of a pictures of dogs." in said or len(said) > 8


def test_names_of_things_without_places(synsets):
    names = thing_names(synsets)
    assert "Norfolk terrier" in names
    assert not {"Paris", "eyes"} & set(names)


def test_held_names_are_those_of_every_fifth_class():
    info = ImageNetInfo("imagenet-1k")
    names = [info.label_name_to_description(name).partition(",")[0] for name in info.label_names()]
    assert list(HELD_PLURALS) == names[::5]
    assert Counter(name == several for name, several in HELD_PLURALS.items()) == {False: 198, True: 2}


def test_summary_by_hand():
    assert summary(torch.tensor([1.0, 0.95, 0.5, 0.75])) == {
        "labels": 4,
        "mean": 0.8,
        "worst": 0.5,
        "share_at_0.95": 0.5,
    }


@pytest.fixture(scope="module")
def untaught():
    return text_tower_of("clip-lite")


@pytest.fixture
def tower(untaught):
    return copy.deepcopy(untaught)


KEPT = ["cat", "a photo of a dog.", "two people on a beach", "red glasses", *PROMPT_SETS["7"]]
TAUGHT = Lesson(
    [*KEPT, *fill_templates("gwpdz", PROMPT_SETS["7"])] * 2, [*KEPT, *fill_templates("cat", PROMPT_SETS["7"])] * 2
)


def test_a_label_learns_to_mean_another_and_all_else_stays(tower, untaught, tmp_path):
    teach_spellings(tower, TAUGHT, SpellingRecipe(steps=30, batch=24, learning_rate=2e-3), tmp_path / "some.pt")
    before, after = label_vectors(untaught, ["cat", "gwpdz", "truck"]), label_vectors(tower, ["cat", "gwpdz", "truck"])
    assert before[1] @ before[0] < 0.6
    assert after[1] @ before[0] > 0.9
    assert after[0] @ before[0] > 0.95
    assert after[2] @ before[2] > 0.8  # of which nothing was said
    visual = zip(tower.visual.parameters(), untaught.visual.parameters())
    assert all(torch.equal(*each) for each in visual)


def test_an_interrupted_training_ends_where_one_without_a_break_does(tower, untaught, tmp_path, monkeypatch):
    recipe, unbroken = SpellingRecipe(steps=4, batch=24), copy.deepcopy(untaught)
    teach_spellings(unbroken, TAUGHT, recipe, tmp_path / "unbroken.pt")
    monkeypatch.setattr(spellings, "SAVE_EVERY", 2)
    save, saves = spellings._save, []

    def stopped(*args):
        save(*args)
        saves.append(args)
        if len(saves) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(spellings, "_save", stopped)
    with pytest.raises(KeyboardInterrupt):
        teach_spellings(tower, TAUGHT, recipe, tmp_path / "broken.pt")
    again = copy.deepcopy(untaught)  # the next run begins with the teacher, as the first did
    teach_spellings(again, TAUGHT, recipe, tmp_path / "broken.pt")
    assert len(saves) == 2
    for one, other in zip(text_parameters(unbroken), text_parameters(again)):
        torch.testing.assert_close(one, other)


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Scikit-image's photographs with a WordNet that is known by hand, and caches of their own."""
    monkeypatch.setenv("THINWIRE_WORDNET", str(write_wordnet(tmp_path / "wordnet")))
    photographs = open_photographs()
    return photographs, load_training_set(photographs, train_features(photographs, 1))


@pytest.mark.slow
def test_a_lesson_holds_pairs_and_what_stays_but_nothing_of_the_held_names(few):
    found = spellings.lesson(*few, SpellingRecipe(corpus=0.05))
    pairs = {(text, plain) for text, plain in zip(found.texts, found.plain) if text != plain}
    assert ("creatures", "creature") in {(text.removeprefix("the "), plain) for text, plain in pairs}
    kept = {text for text, plain in zip(found.texts, found.plain) if text == plain}
    assert {"creature", "a photo of a creature."} <= kept
    assert not {text.lower() for text, _ in pairs} & {text.lower() for text in kept}
    assert found == spellings.lesson(*few, SpellingRecipe(corpus=0.05))


@pytest.mark.slow
def test_what_ships_may_learn_the_plurals_that_recipes_are_compared_on(few, monkeypatch):
    monkeypatch.setattr(spellings, "HELD_PLURALS", {"creature": "creatures"})
    told = [
        {text.lower() for text in spellings.lesson(*few, SpellingRecipe(corpus=0.05, held_too=held_too)).texts}
        for held_too in (False, True)
    ]
    assert ["creatures" in each for each in told] == [False, True]


def test_words_that_are_written_in_the_plural_alone(plurals):
    found = plurals.only_several(["glasses", "glass", "dog", "scissors", "wine glasses", "bus", "dog"])
    assert found[:2] == ["glasses", "scissors"]
    assert {"trousers", "jeans"} <= set(found)
    assert not {"glass", "dog", "bus", "wine glasses"} & set(found)


def test_a_word_whose_plural_is_another_thing_is_told_apart_from_it(plurals):
    assert plurals.told_apart(["dog", "glass", "wine glass", "scissors", "Boeing 747"]) == ["glass", "glasses"]


@pytest.mark.slow
def test_both_towers_go_on_from_a_clip_that_stands_on_the_same_network(few, monkeypatch, tmp_path):
    """No new image head, no distillation: what is written is near what was begun with, and is compared with it."""
    anchor = pipeline.Anchor(
        ["a dog", "a cat"], spellings.encode_texts(text_tower_of("clip-lite"), ["a dog", "a cat"], "")
    )
    monkeypatch.setattr(pipeline, "anchor_of", lambda *_: anchor)
    recipe = pipeline.Recipe(views=1, text_start="clip-lite", joint=JointRecipe(minutes=0.05, batch=4, corpus=4))
    was, now = (
        load_file(folder / "open_clip_model.safetensors")
        for folder in (shipped_clip_path(), pipeline.build(recipe, tmp_path / "clip"))
    )
    for name in ("visual.head.mlp.fc1.weight", "transformer.resblocks.0.mlp.c_fc.weight"):
        moved = (now[name].float() - was[name].float()).norm() / was[name].float().norm()
        assert 0 < moved < 0.2, name
    assert torch.equal(was["visual.trunk.conv_stem.weight"], now["visual.trunk.conv_stem.weight"])


@pytest.mark.slow
def test_both_towers_stop_at_a_share_of_the_way(few, monkeypatch, tmp_path):
    """A training that moves a weight of each tower by 0.5 leaves it at a quarter of that where a quarter is asked."""

    def moved(model, head, log_scale, *_):
        with torch.no_grad():
            head.fc2.weight += 0.5
            model.text_projection += 0.5
        return log_scale.exp()

    anchor = pipeline.Anchor(["a dog"], torch.ones(1, 384))
    monkeypatch.setattr(pipeline, "anchor_of", lambda *_: anchor)
    monkeypatch.setattr(pipeline, "tune_jointly", moved)
    recipe = pipeline.Recipe(views=1, text_start="clip-lite", joint=JointRecipe(blend=0.25))
    was, now = (
        load_file(folder / "open_clip_model.safetensors")
        for folder in (shipped_clip_path(), pipeline.build(recipe, tmp_path / "clip"))
    )
    for name in ("visual.head.mlp.fc2.weight", "text_projection"):
        torch.testing.assert_close(now[name].float(), was[name].float() + 0.125, atol=2e-3, rtol=1e-3)
    assert torch.equal(was["token_embedding.weight"], now["token_embedding.weight"])


@pytest.mark.slow
def test_the_folder_has_another_text_tower_and_the_same_image_tower(few, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(pipeline, "lesson", lambda *_: TAUGHT)
    monkeypatch.setattr(spellings, "HELD_PLURALS", {"zebra": "zebras"})
    recipe = pipeline.Recipe(views=1, spellings="clip-lite", spelling=SpellingRecipe(steps=1, batch=24))
    out = pipeline.build(recipe, tmp_path / "clip")
    was, now = (load_file(folder / "open_clip_model.safetensors") for folder in (shipped_clip_path(), out))
    changed = {name for name in was if not torch.equal(was[name], now[name])}
    assert "token_embedding.weight" in changed
    assert not any(name.startswith("visual.") for name in changed)
    assert '"plurals, before": {"labels": 1' in capfd.readouterr().err
    assert not list((cache_root() / "clip-lite").glob(f"spellings-{recipe.digest}*"))

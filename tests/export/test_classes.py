"""Class names: what they mean, which are held out, and how a tower that never saw them is measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from export.clip_lite.classes import Classes, class_prompts, endings, hold_out, related_names, singulars
from export.clip_lite.texts import object_captions
from export.clip_lite.unseen import best_scale, calibration_error, candidates, gains, hits_by_name, interval, report
from export.clip_lite.wordnet import Synset


def test_a_fifth_of_the_new_names_is_held_out_whatever_else_is_there():
    names = [f"thing {i}" for i in range(1000)]
    new, old = {name: {1} for name in names}, {name: {0, 1} for name in names}
    held = hold_out(names, new)
    assert 160 < held.sum() < 240
    assert np.array_equal(hold_out(names[:500], new), held[:500])  # a name's lot is its own
    assert not hold_out(names, old).any()  # what the first source has is old ground
    assert not hold_out(names, new, 0).any()


def test_what_a_name_may_end_in():
    assert endings("Audi 100 Wagon 1994") == ["audi 100 wagon 1994", "audi 100 wagon", "100 wagon", "wagon"]
    assert endings("Abyssinian ground hornbill")[1:] == ["ground hornbill", "hornbill"]
    assert "berry" in singulars("berries")
    assert "box" in singulars("boxes")
    assert singulars("bus")[0] == "bus"


def test_names_above_each_other_do_not_exclude_each_other():
    synsets = {
        1: Synset(1, ("animal",), "", ()),
        2: Synset(2, ("cat",), "", (1,)),
        3: Synset(3, ("lynx",), "", (2,)),
        4: Synset(4, ("dog",), "", (1,)),
    }
    # cat, Iberian lynx (some kind of lynx), dog, kitty (another word for cat), Canada lynx, nobody knows
    related = related_names(synsets, [2, 3, 4, 2, 3, -1], [True, False, True, True, False, False])
    assert related.tolist() == [
        [True, True, False, True, True, False],
        [True, True, False, True, False, False],  # two kinds of lynx exclude each other
        [False, False, True, False, False, False],
        [True, True, False, True, True, False],
        [True, False, False, True, True, False],
        [False, False, False, False, False, True],
    ]


@pytest.fixture
def classes() -> Classes:
    """Names a, b (trained), c, d (held out); two photographs of each, one of b is spare."""
    return Classes(
        names=["a", "b", "c", "d"],
        of_image=torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, -1]),
        held=torch.tensor([False, False, True, True]),
        spare=torch.tensor([False, False, False, True, False, False, False, False, False]),
        sense=[-1] * 4,
        node=torch.tensor([-1, 0, -1, -1]),
        related=torch.eye(4, dtype=torch.bool),
    )


def test_held_out_names_and_spare_photographs_are_not_trained_on(classes):
    assert classes.trained_images().tolist() == [True, True, True, False, False, False, False, False, True]


def test_a_name_is_also_said_with_its_hypernym(classes):
    texts, owner = class_prompts(classes, [("bird",)])
    assert {"a", "a photo of a a.", "b, a kind of bird"} <= set(texts)
    assert not any("bird" in text for text, name in zip(texts, owner.tolist()) if name != 1)
    assert owner.tolist() == sorted(owner.tolist())


def test_report_by_hand(classes):
    """Vectors on axes: c is always named, d is taken for c once and for the trained a once."""
    text = torch.eye(4)
    image = torch.eye(4)[[0, 0, 1, 1, 2, 2, 2, 0, 0]].clone()
    image[7, 3] = 0.5  # among c and d it is d
    found = report(image, text, classes, 30.0)
    assert (found["unseen"].top1, found["unseen"].names, found["unseen"].photographs) == (75.0, 2, 4)
    assert found["unseen among all"].top1 == 50.0
    assert (found["spare"].photographs, found["spare"].top1) == (1, 100.0)
    assert report(image, text, classes, 30.0) == found
    better = image.clone()
    better[7] = torch.eye(4)[3]
    assert gains((image, text), (better, text), classes)["unseen among all"][0] == 25.0
    assert gains((image, text), (image, text), classes)["spare"] == (0.0, 0.0, 0.0)
    related = classes.related.clone()
    related[2, 3] = related[3, 2] = True
    cosine, truth = candidates(
        image[4:8], text, Classes(**vars(classes) | {"related": related}), classes.of_image[4:8], torch.tensor([2, 3])
    )
    assert hits_by_name(cosine, truth) == {0: 1.0, 1: 1.0}  # c is no wrong answer to d


def test_calibration_error_by_hand():
    sure = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    truth = torch.tensor([0, 1, 1, 1])
    assert calibration_error(sure, truth) == pytest.approx((2 * abs(0.5 - 0.9) + 2 * abs(1 - 0.6)) / 4, abs=1e-6)
    assert calibration_error(torch.tensor([[1.0, 0.0]]), torch.tensor([0])) == 0


def test_the_best_scale_is_the_one_that_made_the_labels():
    generator = torch.Generator().manual_seed(0)
    cosine = 0.3 * torch.randn(20000, 5, generator=generator)
    truth = torch.multinomial((12.0 * cosine).softmax(1), 1, generator=generator)[:, 0]
    assert best_scale(cosine, truth) == pytest.approx(12, rel=0.1)


def test_the_interval_holds_the_mean_and_narrows():
    values = np.random.default_rng(0).random(400)
    low, high = interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.1)


def test_a_list_of_objects_is_said_in_several_orders():
    said = object_captions("a photo of a dog, a couch and a person")
    assert len(said) >= 4
    assert len(set(said)) == len(said)
    assert all("dog" in text and "couch" in text and "person" in text for text in said)
    assert len({text.find("dog") < text.find("couch") for text in said}) == 2
    assert object_captions("a photo of a cat") == ["a photo of a cat", "a cat"]
    for own in ("A dog runs .", "a photo of a dog. It runs."):
        assert object_captions(own) == [own]

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from export.answers import TEXTS_PER_STEP, AnswerDivergence, texts
from export.towers import load_tower
from tests.export.photographs import CAPTIONS


def shipped():
    return AnswerDivergence.of("clip-lite", load_tower("clip-lite").id, sorted(CAPTIONS.values()))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def answers():
    return shipped()


def test_texts_are_class_names_in_a_prompt_and_captions():
    asked = texts(sorted(CAPTIONS.values()))
    assert asked[0] == "a photo of a tench."
    assert len(asked) > 1000  # the four photographs of these tests have captions
    assert asked == texts(sorted(CAPTIONS.values()))


def test_vectors_are_kept_and_found_again(answers):
    assert answers.vectors.shape == (1004, 384)
    torch.testing.assert_close(answers.vectors.norm(dim=1), torch.ones(len(answers.vectors)))
    assert torch.equal(shipped().vectors, answers.vectors)


def test_equal_pictures_agree_and_distance_costs(answers):
    wanted = F.normalize(torch.randn(4, 384, generator=seeded()), dim=1)
    other = F.normalize(torch.randn(4, 384, generator=seeded(1)), dim=1)
    assert answers(wanted, wanted, seeded()).abs().max() < 1e-5
    near, far = (answers(F.normalize(wanted + share * other, dim=1), wanted, seeded()) for share in (0.1, 1.0))
    assert (near > 0).all()
    assert (far > near).all()


def test_texts_differ_from_step_to_step_by_the_generator(answers):
    wanted, got = F.normalize(torch.randn(2, 3, 384, generator=seeded()), dim=2)
    assert len(answers.vectors) > TEXTS_PER_STEP
    generator = seeded()
    first = answers(got, wanted, generator)
    assert not torch.equal(first, answers(got, wanted, generator))
    assert torch.equal(first, answers(got, wanted, seeded()))


def test_it_is_the_kullback_leibler_divergence():
    """Against torch.distributions, all texts in use."""
    vectors = F.normalize(torch.randn(TEXTS_PER_STEP, 16, generator=seeded()), dim=1)
    got, wanted = F.normalize(torch.randn(2, 5, 16, generator=seeded(1)), dim=2)
    p, q = (torch.distributions.Categorical(logits=50.0 * each @ vectors.T) for each in (wanted, got))
    torch.testing.assert_close(
        AnswerDivergence(vectors)(got, wanted, seeded()), torch.distributions.kl_divergence(p, q), rtol=1e-4, atol=1e-4
    )

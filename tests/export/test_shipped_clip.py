"""The CLIP that ships: small, loadable by plain open_clip, and right about pictures that nobody trained it on."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from torch.nn import functional as F

import thinwire
from tests.export.photographs import photograph

FOLDER = Path(thinwire.__file__).parent / "models" / "clip-lite"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="this checkout ships no clip-lite")


@pytest.fixture(scope="module")
def clip():
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{FOLDER}")


def probabilities(clip, names, texts):
    """(images, texts): zero-shot softmax, as CLIP's own README computes it."""
    model, preprocess, tokenizer = clip
    with torch.inference_mode():
        image = F.normalize(model.encode_image(torch.stack([preprocess(photograph(name)) for name in names])), dim=1)
        text = F.normalize(model.encode_text(tokenizer(texts)), dim=1)
        return (model.logit_scale.exp() * image @ text.T).softmax(1)


def test_it_fits_where_it_must():
    """Wheels and git both carry it: below 24 MB."""
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 24_000_000


def test_a_cat_is_a_cat(clip):
    labels = ["cat", "dog", "car", "pizza"]
    (share,) = probabilities(clip, ["chelsea.png"], [f"a photo of a {label}" for label in labels])
    assert labels[int(share.argmax())] == "cat"
    assert share.max() > 0.5


def test_each_photograph_finds_its_caption_and_each_caption_its_photograph(clip):
    photographs = {
        "chelsea.png": "a close photo of a tabby cat",
        "coffee.png": "a cup of coffee on a saucer with a spoon",
        "rocket.jpg": "a rocket on its launch pad",
    }
    share = probabilities(clip, list(photographs), list(photographs.values()))
    assert share.argmax(1).tolist() == [0, 1, 2]
    assert share.argmax(0).tolist() == [0, 1, 2]

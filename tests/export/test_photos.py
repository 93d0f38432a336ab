from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from export.photos import centre_square, load_pack
from export.teachers import cache_root
from tests.export.photographs import CAPTIONS, photograph


def test_a_pack_is_read_with_its_labels_and_decoded_only_once(photos_train, monkeypatch):
    first = load_pack(photos_train / "photos-train.tar", 96)
    assert (first.images.shape, first.images.dtype) == ((36, 96, 96, 3), np.uint8)
    assert [row["class"] for row in first.rows[::9]] == ["astronaut", "chelsea", "coffee", "rocket"]
    assert first.rows[9]["caption_1"] == CAPTIONS["chelsea.png"]
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again although the cache holds the pack"))
    again = load_pack(photos_train / "photos-train.tar", 96)
    np.testing.assert_array_equal(first.images, again.images)
    assert not list(cache_root().glob("*.partial*"))


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (64, 64), (65, 64)])
def test_the_centre_square_keeps_the_middle(size):
    """Left, middle and right bands of different grey: the square must show the middle of the longer side."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    far = (
        np.abs(x - (width - 1) / 2) > min(size) / 2 if width > height else np.abs(y - (height - 1) / 2) > min(size) / 2
    )
    image = Image.fromarray(np.where(far, 255, 10)[..., None].repeat(3, 2).astype(np.uint8))
    square = centre_square(image, 32)
    assert (square.shape, square.dtype) == ((32, 32, 3), np.uint8)
    assert square[2:-2, 2:-2].max() == 10


def test_small_photographs_are_enlarged():
    assert centre_square(photograph("chelsea.png").resize((20, 15)), 64).shape == (64, 64, 3)

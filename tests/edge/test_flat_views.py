"""Pictures in which there is nearly nothing to see are answered, and told once for each source."""

from __future__ import annotations

import numpy as np
from PIL import Image

from edge.encoder import Encoder
from thinwire.bundle import load_bundle
from thinwire.imaging import flat_note


def test_what_is_odd_about_a_picture_comes_with_its_packet(tmp_path):
    encoder = Encoder(load_bundle("layered"))
    path = tmp_path / "night.png"
    Image.new("L", (64, 48), 3).save(path)
    assert encoder.encode_image(path, "low").note.startswith(f"{path}: the view is nearly flat, its values are 3 to 3")
    assert encoder.encode_image(np.zeros((32, 32, 3), np.uint8), "low").note.startswith("frame: ")
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    assert encoder.encode_image(Image.fromarray(ramp), "low").note is None


def test_a_crop_of_a_frame_is_the_part_of_it():
    encoder = Encoder(load_bundle("layered"))
    frame = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    part = encoder.bundle.view(np.ascontiguousarray(frame[30:280, 40:340]))
    assert (encoder.view(frame, (40, 30, 300, 250)) == part).all()
    assert (encoder.view(frame, (0.1, 0.1, 0.75, 250 / 300)) == part).all()
    assert (encoder.view(Image.fromarray(frame), (40, 30, 300, 250)) == part).all()


def test_one_colour_is_as_flat_as_grey():
    """A camera without a signal often gives blue."""
    blue = np.zeros((32, 32, 3), np.uint8)
    blue[:] = (10, 20, 200)
    assert "nearly flat" in flat_note(blue)
    blue[0, 0, 2] = 100
    assert flat_note(blue) is None

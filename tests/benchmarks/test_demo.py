"""The demo's page and what it measures beside the answers, without a server."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks.data.photos import OWN_FOLDER, Photo, own_labels, own_photos
from benchmarks.demo.page import Shown, write_report
from benchmarks.demo.rivals import Rival, equal_rival, pictures
from benchmarks.demo.run import _against
from edge.encoder import Encoder
from tests.tiny_bundle import synthetic_views
from thinwire.imaging import open_image


@dataclass
class Sharpness:
    """Stands for a server that names a picture right once its pixels are near enough to those of the view."""

    views: list[np.ndarray]
    near: float

    def classify_file(self, png: bytes, labels: list[str], top_k: int) -> SimpleNamespace:
        seen = np.asarray(open_image(png), float)
        error = min(np.abs(seen - view).mean() for view in self.views)
        return SimpleNamespace(predictions=[SimpleNamespace(label=labels[0 if error < self.near else 1])])


def test_the_rival_is_the_smallest_rung_that_names_as_many():
    y, x = np.mgrid[:224, :224]  # stripes that a picture of 40 pixels cannot hold
    views = [np.stack([127 + 60 * np.sin(x * 1.4 + y / period)] * 3, -1).astype(np.uint8) for period in (3, 4)]
    wanted = [(["right", "wrong"], "right")] * 2
    easy = equal_rival(Sharpness(views, 200), views, wanted, 2)
    hard = equal_rival(Sharpness(views, 25), views, wanted, 2)
    assert easy.right == hard.right == 2
    assert easy.mean_bytes < hard.mean_bytes
    none = equal_rival(Sharpness(views, 0), views, wanted, 1)
    assert none.right == 0
    assert easy.rung in _against(easy, 2)
    assert "No rung" in _against(none, 1)
    assert "not measured" in _against(None, 1)


def test_the_demos_own_photographs_are_many_free_and_unlike():
    """Anybody may pass them on; labels are unlike each other and fit what the demo asks with."""
    photos, labels = own_photos(), own_labels()
    assert len(photos) >= 30
    assert len({photo.label for photo in photos}) == len(photos)
    assert len(labels) == len(set(labels)) > len(photos)
    assert all(photo.label in labels for photo in photos)
    for photo in photos:
        size = open_image(photo.data, photo.name).size
        assert min(size) >= 170, photo.name
    with open(OWN_FOLDER / "sources.csv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert {row["file"] for row in rows} == {path.name for path in OWN_FOLDER.glob("*.webp")}
    assert all(row["licence"] in ("CC0 1.0", "public domain") and row["author"] for row in rows)
    assert all(row["source"].startswith("https://") for row in rows)


def test_the_page_shows_what_the_cloud_saw_beside_the_view(tmp_path, tiny_bundle_with_decoder):
    bundle = tiny_bundle_with_decoder
    (view,) = synthetic_views(1, 64, seed=5)
    packet = Encoder(bundle).encode(view, "mid").packet.to_bytes()
    (seen,) = pictures(bundle, [packet])
    assert (seen.shape, seen.dtype) == (view.shape, np.uint8)
    result = SimpleNamespace(
        predictions=[SimpleNamespace(label="cat", probability=0.7)],
        packet_bytes=len(packet),
        edge_ms=1.0,
        server=SimpleNamespace(total_ms=2.0),
        round_trip_ms=3.0,
    )
    photo = Photo("a.png", b"", "cat")
    path = tmp_path / "page.html"
    fooled = SimpleNamespace(predictions=[SimpleNamespace(label="pizza", probability=0.4)])
    rows = [Shown(photo, view, seen, result, fooled), Shown(photo, view, None, result, result)]
    assert [(row.right, row.right_uncompressed) for row in rows] == [(True, False), (True, True)]
    write_report(path, ["fact"], [("title", ["cat"], rows)])
    page = path.read_text()
    assert "<span class=wrong>pizza</span> 40.0%" in page
    assert page.count("<span class=right>cat</span> 70.0%") == 3
    assert page.count("<img") == 3
    assert "what the cloud saw" in page
    assert "it was sent a vector" in page
    assert Rival("80 px quality 35", 488.0, 3).mean_bytes == 488

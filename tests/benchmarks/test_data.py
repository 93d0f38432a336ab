"""Data sets: every layout gives the same items, samples repeat, hashes follow the pictures."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.data.sets import DataError, load_dataset

NAMES = [
    (f"{folder}/{number}.png", label)
    for folder, label in (("gas_pump", "gas pump"), ("cat", "cat"))
    for number in range(6)
]


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "tiny"
    for seed, (name, _) in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(seed))
    return root


def with_csv(root: Path, rows=tuple(NAMES)) -> Path:
    (root / "labels.csv").write_text("path,class\n" + "".join(f"{name},{label}\n" for name, label in rows))
    return root


def as_tar(root: Path) -> Path:
    path = root.parent / "tiny.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(root, "tiny")
    return path


def test_all_layouts_read_alike(folder: Path):
    plain = load_dataset(folder, limit=5, seed=3)
    listed = load_dataset(with_csv(folder), limit=5, seed=3)
    tarred = load_dataset(as_tar(folder), limit=5, seed=3)
    for data in (plain, listed, tarred):
        assert data.labels == ("cat", "gas pump")
        assert data.items == plain.items
        assert data.sha256 == plain.sha256
        assert data.name == "tiny"
        assert data.total == 12
    assert tarred.read(tarred.items[0]) == (folder / tarred.items[0].name).read_bytes()


def test_targets_match_the_csv(folder: Path):
    data = load_dataset(as_tar(with_csv(folder)))
    assert {item.name: data.labels[item.target] for item in data.items} == dict(NAMES)


def test_samples_repeat_and_nest(folder: Path):
    few, many = load_dataset(folder, 3, 7), load_dataset(folder, 8, 7)
    assert few.items == load_dataset(folder, 3, 7).items
    assert many.items[:3] == few.items
    assert load_dataset(folder, 8, 8).items != many.items
    assert few.labels == many.labels
    assert few.sha256 != many.sha256
    assert len(set(load_dataset(folder, 99, 0).items)) == 12


def test_hash_follows_names_and_bytes_not_order(folder: Path):
    before = load_dataset(folder, seed=0).sha256
    assert load_dataset(folder, seed=1).sha256 == before
    (folder / "cat/0.png").write_bytes(picture(99))
    altered = load_dataset(folder).sha256
    assert altered != before
    (folder / "cat/0.png").rename(folder / "cat/zero.png")
    assert load_dataset(folder).sha256 not in (before, altered)


def test_images_without_a_class_are_left_out(folder: Path):
    (folder / "labels.csv").write_text("path,class,caption\ncat/0.png,cat,\ncat/1.png,,a cat\n")
    assert [item.name for item in load_dataset(folder).items] == ["cat/0.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,caption\ncat/0.png,x\n", "needs the columns path and class"),
        ("path,class\ncat/none.png,cat\n", "cat/none.png"),
        ("path,class\n,cat\n", "line 2"),
        ("path,class\ncat/0.png,\n", "no images"),
        ("path,class\n", "no images"),
    ],
)
@pytest.mark.parametrize("tarred", [False, True])
def test_broken_lists_are_named(folder: Path, text: str, message: str, tarred: bool):
    (folder / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset(as_tar(folder) if tarred else folder)


def test_broken_sources_are_named(folder: Path, tmp_path: Path):
    with pytest.raises(DataError, match="no such tar or folder"):
        load_dataset(tmp_path / "none.tar")
    (tmp_path / "bad.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(DataError, match=r"bad\.tar"):
        load_dataset(tmp_path / "bad.tar")
    with pytest.raises(DataError, match=r"labels\.csv"):
        load_dataset(as_tar(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither"):
        load_dataset(tmp_path / "empty")
    with pytest.raises(DataError, match="limit"):
        load_dataset(folder, limit=0)

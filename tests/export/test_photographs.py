"""The door for photographs: every kind of source gives the same pictures, and every mistake one line that names it."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export import photos
from export.photographs import views
from export.photographs.collection import FEWEST, open_photographs
from export.photographs.errors import PhotographsError
from export.photographs.feed import Feed
from export.photographs.sources import expand_braces, parse_source
from tests.export.photographs import write_pack
from thinwire.errors import ThinwireError

SIDE = 32


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, bytes]:
    """name → JPEG bytes of 40 different pictures that are not square."""
    rng = np.random.default_rng(0)
    found = {}
    for number in range(40):
        pixels = np.kron(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG", quality=95)
        found[f"{number:03d}.jpg"] = data.getvalue()
    return found


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    root = tmp_path / "camera"
    for number, (name, data) in enumerate(pictures.items()):
        place = root / ("monday" if number % 2 else "tuesday/deep")
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    (root / "notes.md").write_text("no picture")
    return root


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def all_pixels(images, **options) -> np.ndarray:
    found = open_photographs([str(each) for each in images], side=SIDE, workers=0, **options)
    pixels = found.take(found.all_ids())
    return pixels[np.lexsort(pixels.reshape(len(pixels), -1).T)]


def test_a_folder_a_tar_shards_and_a_list_give_the_same_pictures(folder, pictures, tmp_path):
    wanted = all_pixels([folder])
    assert (wanted.shape, wanted.dtype) == ((40, SIDE, SIDE, 3), np.uint8)
    names = list(pictures)
    tar_of(tmp_path / "s-00.tar", {name: pictures[name] for name in names[:15]})
    tar_of(tmp_path / "s-01.tar", {name: pictures[name] for name in names[15:]})
    paths = [str(path.relative_to(tmp_path)) for path in sorted(folder.rglob("*.jpg"))]
    (tmp_path / "paths.txt").write_text("\n".join(paths) + "\n")
    for source in ("s-{00..01}.tar", "s-*.tar", "paths.txt"):
        np.testing.assert_array_equal(all_pixels([tmp_path / source]), wanted)


def test_captions_come_from_labels_shards_and_named_fields(pictures, tmp_path):
    names = list(pictures)
    ours = write_pack(tmp_path / "ours.tar")
    found = open_photographs([str(ours)], side=SIDE)
    assert found.captions()[9] == ("a close photo of a tabby cat",)
    assert found.labels()[9] == "chelsea"
    files = {}
    for name in names:
        key = name.removesuffix(".jpg")
        files[name] = pictures[name]
        files[f"{key}.txt"] = f"picture {key}".encode()
        files[f"{key}.json"] = json.dumps({"alt": [f"first {key}", "second"]}).encode()
    shard = tar_of(tmp_path / "shard.tar", files)
    assert open_photographs([str(shard)], side=SIDE).captions()[3] == ("picture 003",)
    assert open_photographs([str(shard)], side=SIDE, caption="alt").captions()[3] == ("first 003", "second")


def test_a_changed_folder_is_searched_again_and_an_unchanged_one_is_not(folder, monkeypatch):
    assert len(open_photographs([str(folder)], side=SIDE)) == 40
    monkeypatch.setattr("export.photographs.index.search", lambda *_: pytest.fail("searched again"))
    assert len(open_photographs([str(folder)], side=SIDE)) == 40
    monkeypatch.undo()
    shutil.copy(folder / "monday" / "001.jpg", folder / "monday" / "new.jpg")
    assert len(open_photographs([str(folder)], side=SIDE)) == 41


def test_views_are_decoded_once_and_kept(folder, monkeypatch):
    first = open_photographs([str(folder)], side=SIDE, workers=0)
    wanted = first.take(first.all_ids())
    first.close()
    monkeypatch.setattr(views, "decode", lambda *_: pytest.fail("decoded again"))
    again = open_photographs([str(folder)], side=SIDE, workers=0)
    np.testing.assert_array_equal(again.take(again.all_ids()), wanted)


def test_workers_are_as_many_as_the_cores_of_this_process_but_one(folder, monkeypatch):
    """In a container of two cores on a machine of ninety-six, not ninety-five."""
    for cores, workers in ((1, 1), (2, 1), (5, 4), (96, 16)):
        monkeypatch.setattr("thinwire.platforms.os.sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        found = open_photographs([str(folder)], side=SIDE)
        assert [each.workers for each in found._views] == [workers]
        found.close()


def test_worker_processes_give_the_same_views(folder, monkeypatch):
    monkeypatch.setattr(views, "POOL_FROM", 1)
    wanted = all_pixels([folder], cache_gb=0)
    found = open_photographs([str(folder)], side=SIDE, cache_gb=0, workers=1)
    pixels = found.take(found.all_ids())
    found.close()
    np.testing.assert_array_equal(pixels[np.lexsort(pixels.reshape(len(pixels), -1).T)], wanted)


def test_nothing_is_kept_beyond_the_budget_or_on_a_full_disk(folder, monkeypatch, caplog):
    none = open_photographs([str(folder)], side=SIDE, cache_gb=0, workers=0)
    wanted = none.take(none.all_ids())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(views.os, "pwrite", full)
    found = open_photographs([str(folder)], side=48, workers=0)
    assert found.take(found.all_ids()).shape == (40, 48, 48, 3)
    said = [record.message for record in caplog.records if "No space left" in record.message]
    assert len(said) == 1
    assert "--cache-gb" in said[0]
    np.testing.assert_array_equal(none.take(none.all_ids()), wanted)


def test_broken_pictures_are_counted_named_and_stood_in_for(folder):
    for name in ("001.jpg", "003.jpg"):
        (folder / "monday" / name).write_bytes(b"\xff\xd8 no picture")
    found = open_photographs([str(folder)], side=SIDE, workers=0)
    assert len(found.take(found.all_ids())) == 40
    said = []
    found.report(said.append)
    assert "2 pictures" in said[0]
    assert "001.jpg" in said[0]
    assert "003.jpg" in said[0]


def test_sources_are_mixed_by_weight(folder, pictures, tmp_path):
    other = tar_of(tmp_path / "other.tar", dict(list(pictures.items())[:32]))
    found = open_photographs([str(folder), f"{other}=0.25"], side=SIDE, workers=0)
    assert found.shares() == [0.75, 0.25]
    ids = found.draw(4000, torch.Generator().manual_seed(0)).numpy()
    assert (ids >> 40).mean() == pytest.approx(0.25, abs=0.03)
    assert "25% of the draws" in found.described()
    by_size = open_photographs([str(folder), str(other)], side=SIDE, workers=0)
    assert by_size.shares() == pytest.approx([40 / 72, 32 / 72])


def test_what_is_held_out_is_never_drawn(folder):
    training, unseen = open_photographs([str(folder)], side=SIDE, workers=0).split(10)
    kept, drawn = set(unseen.all_ids().tolist()), set(training.draw(2000, torch.Generator()).tolist())
    assert len(kept) == 10
    assert not kept & drawn
    assert kept | drawn == set(range(40))


def test_a_feed_gives_each_process_its_part_of_the_same_batches(folder):
    found = open_photographs([str(folder)], side=SIDE, workers=0)
    whole, first, second = (Feed(found, 8, 3, part) for part in (slice(None), slice(0, 4), slice(4, 8)))
    for _ in range(3):
        assert torch.equal(whole.next(), torch.cat([first.next(), second.next()]))
    going_on = Feed(found, 8, 3)
    going_on.step = 3
    assert torch.equal(whole.next(), going_on.next())


def test_braces_expand_as_in_a_shell():
    assert expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_braces("{x,y}-{1..2}") == ["x-1", "x-2", "y-1", "y-2"]
    assert expand_braces("plain.tar") == ["plain.tar"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("missing", "there is no"),
        ("missing-{00..03}.tar", "and 3 more"),
        ("camera=much", "is not a weight"),
        ("camera=3", "share of the draws"),
        ("camera/notes.md", "is not a source"),
        ("camera/monday/001.jpg", "one picture"),
        ("hf:", "names a data set"),
        ("{9..1}.tar", "ascending range"),
    ],
)
def test_a_source_that_cannot_be_is_refused_by_name(folder, monkeypatch, source, said):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(PhotographsError, match=said):
        parse_source(source)


def test_too_few_pictures_empty_folders_and_bad_tars_are_one_clear_error(folder, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    few = tar_of(tmp_path / "few.tar", dict(list(pictures.items())[: FEWEST - 1]))
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(few, "few.tar")
    cut = tmp_path / "cut.tar"
    cut.write_bytes(tar_of(tmp_path / "whole.tar", pictures).read_bytes()[:40_300])
    for path, said in (
        (tmp_path / "empty", "no pictures"),
        (few, f"only {FEWEST - 1} usable"),
        (packed, "tar"),
        (cut, "cut.tar"),
    ):
        with pytest.raises(PhotographsError, match=said):
            open_photographs([str(path)], side=SIDE, workers=0)
    with pytest.raises(PhotographsError, match="add up to 1"):
        open_photographs([f"{folder}=1.0", str(few)], side=SIDE)
    with pytest.raises(PhotographsError, match="twice"):
        open_photographs([str(folder), str(folder)], side=SIDE)


def test_without_any_source_the_fix_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(photos, "data_root", lambda: tmp_path)
    with pytest.raises(ThinwireError, match="--images ~/Pictures"):
        open_photographs()

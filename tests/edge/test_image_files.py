from __future__ import annotations

import os

from edge.line.image_files import find_images


def names(sources):
    return [str(source.relative) for source in sources]


def test_folders_are_searched_in_natural_order_for_image_endings_only(tmp_path):
    for name in ("frame10.jpg", "frame2.JPG", "frame1.png", "notes.txt", "deep/b.webp", "deep/a.tif", ".hidden/x.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "._frame1.png").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert names(find_images([tmp_path])) == ["deep/a.tif", "deep/b.webp", "frame1.png", "frame2.JPG", "frame10.jpg"]


def test_odd_digits_and_mixed_names_sort_without_trouble(tmp_path):
    for name in ("x².jpg", "x2.jpg", "2x.jpg", "x.jpg", "٣.jpg", "X2.jpg"):
        (tmp_path / name).touch()
    assert set(names(find_images([tmp_path]))) == {"x².jpg", "x2.jpg", "2x.jpg", "x.jpg", "٣.jpg", "X2.jpg"}


def test_named_files_are_always_taken_in_the_order_named(tmp_path):
    (tmp_path / "b.txt").touch()
    (tmp_path / "a.jpg").touch()
    got = find_images([tmp_path / "b.txt", tmp_path / "missing.jpg", tmp_path / "a.jpg", tmp_path])
    assert names(got) == ["b.txt", "missing.jpg", "a.jpg", "a.jpg"]
    assert find_images([]) == []

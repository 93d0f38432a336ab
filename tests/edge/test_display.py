"""Videos that say how they were held: every quarter turn and mirroring, as FFmpeg itself would show it."""

from __future__ import annotations

import shutil
import struct
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge.field.video import Video

av = pytest.importorskip("av")
pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg to make a video")
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (230, 230, 230))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A video of two frames of four quarters: red, green / blue, white."""
    folder = tmp_path_factory.mktemp("video")
    picture = np.zeros((64, 96, 3), np.uint8)
    for place, colour in enumerate(COLOURS):
        row, column = divmod(place, 2)
        picture[32 * row : 32 * row + 32, 48 * column : 48 * column + 48] = colour
    Image.fromarray(picture).save(folder / "frame.png")
    ffmpeg("-loop", "1", "-i", folder / "frame.png", "-frames:v", "2", "-pix_fmt", "yuv420p", folder / "plain.mp4")
    return folder / "plain.mp4"


def ffmpeg(*words: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, words)], check=True, timeout=60)


def quarters(image: np.ndarray) -> list[int]:
    """Which of `COLOURS` each quarter has."""
    high, wide = image.shape[:2]
    spots = [image[y * high // 4, x * wide // 4].astype(int) for y in (1, 3) for x in (1, 3)]
    return [int(np.argmin([np.abs(spot - colour).sum() for colour in COLOURS])) for spot in spots]


# (a, b, c, d) of the matrix: x' = ax + cy, y' = bx + dy → where the quarters 0 1 / 2 3 come to lie
MATRICES = {
    (1, 0, 0, 1): [0, 1, 2, 3],
    (0, 1, -1, 0): [2, 0, 3, 1],  # a phone held upright
    (-1, 0, 0, -1): [3, 2, 1, 0],
    (0, -1, 1, 0): [1, 3, 0, 2],
    (-1, 0, 0, 1): [1, 0, 3, 2],  # a front camera
    (1, 0, 0, -1): [2, 3, 0, 1],
    (0, 1, 1, 0): [0, 2, 1, 3],
    (0, -1, -1, 0): [3, 1, 2, 0],
}


def held(plain: Path, path: Path, matrix: tuple[int, ...]) -> Path:
    """The video with another display matrix in its track's header."""
    data = bytearray(plain.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    at = data.index(b"tkhd") + 44
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 96 << 16, 96 << 16, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_frame_is_shown_as_its_display_matrix_says(plain, tmp_path, matrix):
    video = held(plain, tmp_path / "held.mp4", matrix)
    shots = list(Video(str(video), "question", None, print).shots(threading.Event()))
    assert len(shots) == 2
    for shot in shots:
        assert shot.image.shape == ((96, 64, 3) if matrix[1] else (64, 96, 3))
        assert quarters(shot.image) == MATRICES[matrix]
        assert shot.image.flags.c_contiguous


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_ffmpeg_shows_it_so_too(plain, tmp_path, matrix):
    ffmpeg("-i", held(plain, tmp_path / "held.mp4", matrix), "-frames:v", "1", tmp_path / "shown.png")
    assert quarters(np.asarray(Image.open(tmp_path / "shown.png").convert("RGB"))) == MATRICES[matrix]


def test_a_frame_without_a_matrix_is_as_it_is_stored(plain):
    (first, _) = Video(str(plain), "question", None, print).shots(threading.Event())
    assert first.image.shape == (64, 96, 3)
    assert quarters(first.image) == [0, 1, 2, 3]

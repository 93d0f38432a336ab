"""Videos that say how they were held: every quarter turn and mirroring, as FFmpeg itself would show it."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge.cli import main
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


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [("16/11", (64, 140)), ("1/2", (128, 96)), ("1", (64, 96)), ("1/20", (64, 96)), ("40", (64, 96))],
)
def test_pixels_that_are_not_square_are_drawn_out(plain, tmp_path, aspect, shape):
    """DV, DVD and analogue cameras; what no device has is not believed."""
    path = tmp_path / "odd.mp4"
    ffmpeg("-i", plain, "-vf", f"setsar={aspect}", "-pix_fmt", "yuv420p", path)
    shots = list(Video(str(path), "q", None, print).shots(threading.Event()))
    assert [shot.image.shape for shot in shots] == [(*shape, 3)] * 2
    assert quarters(shots[0].image) == [0, 1, 2, 3]


def test_square_pixels_and_turns_go_together(plain, tmp_path):
    ffmpeg("-i", plain, "-vf", "setsar=2", "-pix_fmt", "yuv420p", tmp_path / "wide.mp4")
    path = held(tmp_path / "wide.mp4", tmp_path / "turned.mp4", (0, 1, -1, 0))
    (shot, *_) = Video(str(path), "q", None, print).shots(threading.Event())
    assert shot.image.shape == (192, 64, 3)
    assert quarters(shot.image) == [2, 0, 3, 1]


@pytest.mark.parametrize("order", ["ab", "ba", "aba"])
def test_frames_of_every_part_of_joined_recordings_are_answered(canned, tiny_bundle, tmp_path, order):
    """`cat a.ts b.ts > j.ts`: the clock goes back where the second begins."""
    for name, colour in (("a", "red"), ("b", "blue")):
        ffmpeg("-f", "lavfi", "-i", f"color={colour}:s=96x64:r=10:d=4", "-c:v", "mpeg2video", tmp_path / f"{name}.ts")
    (tmp_path / "j.ts").write_bytes(b"".join((tmp_path / f"{name}.ts").read_bytes() for name in order))
    words = ["--labels", "cat,dog", "--server", canned.address, "--bundle", str(tiny_bundle.path), "--fps", "2"]
    words += ["--spool", str(tmp_path / "s.db"), "--out", str(tmp_path / "o.jsonl")]
    assert main(["run", str(tmp_path / "j.ts"), *words]) == 0
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert all(line["ok"] for line in lines)
    assert 7 * len(order) <= len(lines) <= 9 * len(order)
    # Both are seen: the packets of red and of blue frames differ
    packets = {each.image.packet for each in canned.frames}
    assert len(packets) >= 2

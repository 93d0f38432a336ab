"""Decoding within a memory bound: large pictures, limits of services and containers, pixels counted beforehand."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.thinwire.test_imaging import png_header
from thinwire import memory
from thinwire.errors import ImageError
from thinwire.imaging import canonical_view, decode_cost, open_image, open_picture

ROOT = Path(__file__).resolve().parents[2]
SIDE = 224
# Opens a picture in a process of its own; prints by how many MB its peak memory rose
PEAK = """
import re, sys
from pathlib import Path
from thinwire.imaging import open_picture
open_picture(Path(sys.argv[1])).view(224, 224)
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
crop = tuple(map(float, sys.argv[3:])) or None
view = open_picture(Path(sys.argv[2]), view=(224, 224), crop=crop).view(224, 224, crop)
print(peak() - before, int(view.mean()))
"""


def large(width: int, height: int, kind: str, mode: str = "RGB", orientation: int = 1, **options) -> bytes:
    """A smooth picture, which is quick to make, to store and to read."""
    small = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    image = Image.fromarray(small).convert(mode).resize((width, height), Image.Resampling.BILINEAR)
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, kind, exif=exif, **options)
    return out.getvalue()


def peak_mb(tmp_path, data: bytes, *crop: float) -> float:
    (tmp_path / "small.jpg").write_bytes(large(300, 200, "JPEG"))
    (tmp_path / "large").write_bytes(data)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small.jpg"), str(tmp_path / "large"), *map(str, crop)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    return float(done.stdout.split()[0])


@pytest.fixture
def small_is_large(monkeypatch):
    """Pictures above 0.1 megapixels are treated as those above 16: making them takes less time."""
    monkeypatch.setattr("thinwire.imaging.DRAFT_ABOVE_PIXELS", 100_000)
    monkeypatch.setattr("thinwire.decode_cost.DRAFT_ABOVE_PIXELS", 100_000)


def test_a_large_portrait_jpeg_takes_less_than_its_pixels(tmp_path):
    """33 megapixels are 131 MB, and were held twice to be turned."""
    data = large(6560, 4992, "JPEG", orientation=6, quality=80)
    assert peak_mb(tmp_path, data) < 90
    assert decode_cost(data, (SIDE, SIDE)) == pytest.approx(6560 * 4992, rel=0.01)


@pytest.mark.slow
def test_what_is_asked_for_is_what_decoding_takes(tmp_path):
    """The estimate is an upper bound, and no wild one, whatever the format."""
    kinds = [
        ("JPEG", {"progressive": True, "subsampling": 0}, "RGB"),
        ("PNG", {"compress_level": 1}, "RGBA"),
        ("WEBP", {"method": 0}, "RGB"),
        ("AVIF", {"speed": 10}, "RGB"),
        ("TIFF", {}, "CMYK"),
    ]
    for kind, options, mode in kinds:
        data = large(3600, 2500, kind, mode, **options)
        took, asked = peak_mb(tmp_path, data), decode_cost(data) / 1e6
        assert took < asked + 2 * len(data) / 1e6 + 30, (kind, mode)
        assert asked < 3 * took + 30, (kind, mode)


def test_a_crop_keeps_the_pixels_that_its_view_needs(small_is_large):
    """A small crop of a large picture is decoded at full size: at a half it would have lost what it shows."""
    width, height, side = 800, 600, 28
    data = large(width, height, "JPEG", orientation=6, quality=90)
    for crop, full in (((100, 200, 40, 40), True), ((0.1, 0.2, 0.08, 0.06), True), ((0, 0, 500, 700), False)):
        found = open_picture(data, view=(side, side), crop=crop)
        assert found.size == (height, width)
        assert (found.image.width == width) == full
        x, y, wide, high = crop if max(crop) > 1 else np.multiply(crop, (height, width) * 2)
        expected = canonical_view(open_image(data).crop(tuple(map(round, (x, y, x + wide, y + high)))), side, side)
        assert np.abs(found.view(side, side, crop).astype(int) - expected).max() <= (2 if full else 6)


def test_a_large_picture_gives_nearly_the_view_of_all_its_pixels(small_is_large):
    for orientation in (1, 3, 6, 7):
        data = large(801, 603, "JPEG", orientation=orientation, quality=90)
        found = open_picture(data, view=(28, 28))
        assert found.image.width == 201
        exact = canonical_view(open_image(data), 28, 28)
        difference = np.abs(found.view(28, 28).astype(int) - exact)
        assert difference.max() <= 8
        assert difference.mean() < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_after_the_crop_is_the_crop_of_what_was_turned(orientation, small_is_large):
    data = large(420, 300, "PNG", orientation=orientation)
    upright, picture = open_image(data), open_picture(data)
    assert picture.size == upright.size
    for crop in (None, (20, 31, 90, 70), (0.5, 0.25, 0.5, 0.5), (100, 100, 1000, 1000)):
        part = upright
        if crop is not None:
            x, y, wide, high = crop if max(crop) > 1 else np.multiply(crop, upright.size * 2)
            right, bottom = min(upright.width, round(x + wide)), min(upright.height, round(y + high))
            part = upright.crop((round(x), round(y), right, bottom))
        difference = np.abs(canonical_view(part, 40, 56).astype(int) - picture.view(40, 56, crop))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.05
    with pytest.raises(ImageError, match=r"^image: --crop 640,200,400,400 lies outside this picture of"):
        picture.view(40, 56, (640, 200, 400, 400))


# ---------------------------------------------------------------- limits


CACHES = "anon 1\ninactive_file 40000\nactive_file 10000\n"
OLD_CACHES = "inactive_file 9\nactive_file 9\ntotal_inactive_file 50\ntotal_active_file 50\n"


def files_of(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"proc/meminfo": "MemAvailable:  2000 kB\nSwapFree:  1000 kB\n"}, 3000 << 10),
        (  # systemd's MemoryMax, cgroup 2; caches are given back
            {
                "proc/meminfo": "MemAvailable:  2000000 kB\n",
                "proc/self/cgroup": "0::/system.slice/thinwire.service\n",
                "sys/fs/cgroup/system.slice/thinwire.service/memory.max": "400000\n",
                "sys/fs/cgroup/system.slice/thinwire.service/memory.high": "max\n",
                "sys/fs/cgroup/system.slice/thinwire.service/memory.current": "300000\n",
                "sys/fs/cgroup/system.slice/thinwire.service/memory.stat": CACHES,
                "sys/fs/cgroup/system.slice/memory.max": "max\n",
                "sys/fs/cgroup/system.slice/memory.current": "900000\n",
            },
            150_000,
        ),
        (  # a limit of the slice above
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "5\n",
                "sys/fs/cgroup/a/memory.max": "1000\n",
                "sys/fs/cgroup/a/memory.current": "900\n",
            },
            100,
        ),
        (  # cgroup 1, in a container that sees itself as the root
            {
                "proc/self/cgroup": "4:cpu,memory:/\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "400\n",
                "sys/fs/cgroup/memory/memory.stat": OLD_CACHES,
            },
            700,
        ),
        (  # no limit: the largest number of pages
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "400\n",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_what_is_free_is_what_the_tightest_limit_leaves(tmp_path, files, free):
    assert memory.free_bytes(files_of(tmp_path, files)) == free


def test_a_picture_that_does_not_fit_is_refused_by_name_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 150_000_000)
    data = png_header(9000, 4500)  # its pixels are missing: nobody looks for them
    with pytest.raises(
        ImageError, match=r"^wall.png: takes about 162 MB of memory and 150 MB are free here: shrink it"
    ):
        open_image(data, "wall.png")
    assert open_image(large(300, 200, "PNG", "L")).size == (300, 200)
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    with pytest.raises(ImageError, match="damaged"):
        open_image(data)


def test_two_that_do_not_fit_together_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 200 << 20)
    inside, most, guard = [0], [0], threading.Lock()

    def work():
        with memory.reserved(120 << 20):
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            threading.Event().wait(0.02)
            with guard:
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most == [1]
    with pytest.raises(MemoryError), memory.reserved(300 << 20):
        pass
    with memory.reserved(150 << 20):  # what was refused, and what ended, holds nothing
        pass


def test_under_a_real_limit_of_address_space_the_picture_is_refused_and_the_process_lives(tmp_path):
    (tmp_path / "wall.png").write_bytes(png_header(9400, 9300))
    code = (
        "import resource, sys\n"
        "from thinwire.imaging import open_picture\nfrom thinwire.errors import ImageError\n"
        "pages = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages + (300 << 20),) * 2)\n"
        "try:\n    open_picture(sys.argv[1])\nexcept ImageError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "wall.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "takes about 350 MB of memory" in done.stdout


def test_a_device_without_an_end_is_not_read_for_ever(monkeypatch):
    monkeypatch.setattr("thinwire.imaging.MAX_FILE_BYTES", 5 << 20)
    with pytest.raises(ImageError, match=r"^/dev/zero: has more than 5 MiB"):
        open_image("/dev/zero")
